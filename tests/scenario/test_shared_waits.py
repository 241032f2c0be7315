"""Many waits for one task share their polls, and a callback wakes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from flux_async import (
    EditRequest,
    FluxClient,
    ImageResult,
    NotFoundError,
    PollDeadlineExceeded,
    TaskFailed,
    TaskId,
)
from flux_async.models import CallbackEvent

TASK = TaskId("t1")


async def waits(client: FluxClient, count: int, **options: Any) -> list[Any]:
    """Let several coroutines wait for the task, and return what each of them got."""
    results: list[Any] = []

    async def one() -> None:
        try:
            results.append(await client.wait(TASK, **options))
        except Exception as error:  # noqa: BLE001 - checked below
            results.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())
    return results


async def test_one_poll_serves_all_waiters(client: FluxClient, transport: Any) -> None:
    """Fifty coroutines that wait for a task cause the polls of one."""
    results = await waits(client, 50)
    assert {image.result_url for image in results} == {"https://files.example/t1.jpg"}
    assert transport.count("record-info") == 3


LEFT_OVER = {
    "another task's success": lambda make: make.record(1, "t2"),
    "a success that names no task": lambda make: make.record(1, "t2", taskId=None),
    "a failure that names no task": lambda make: make.answer(None, 501, msg="Image generation task failed"),
}


@pytest.mark.parametrize("left_over", LEFT_OVER.values(), ids=LEFT_OVER)
async def test_the_answer_to_an_earlier_poll_is_not_believed(
    client: FluxClient, transport: Any, make: Any, left_over: Any
) -> None:
    """A poll whose answer may be another task's is made again, at once, over a fresh connection."""
    transport.script["record-info"] = [left_over(make), make.record(0), left_over(make), make.record(1)]
    image = await client.wait(TASK)
    assert image.result_url == "https://files.example/t1.jpg"
    kept = [request.keep_alive for _, request in transport.seen]
    assert kept == [True, False, True, False]


async def test_a_failure_without_a_task_is_believed_over_a_fresh_connection(
    client: FluxClient, transport: Any, make: Any
) -> None:
    """There it can be no other task's."""
    transport.script["record-info"] = [make.answer(None, 501, msg="Image generation task failed")]
    with pytest.raises(TaskFailed):
        await client.wait(TASK)
    assert transport.count("record-info") == 2


async def test_only_polls_may_use_kept_connections(client: FluxClient, transport: Any) -> None:
    """A submit, a balance and a single record have connections of their own."""
    await client.submit(EditRequest.text_removal("https://h.example/a.jpg"))
    await client.credits()
    await client.record(TASK)
    assert not any(request.keep_alive for _, request in transport.seen)


async def test_a_later_waiter_shares_the_polls(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """A second wait that begins between two polls of the first causes no additional one."""
    transport.script["record-info"] = [make.record(0)] * 9 + [make.record(1)]

    async def late() -> None:
        await clock.sleep(4.5)
        await client.wait(TASK)

    async with asyncio.TaskGroup() as group:
        group.create_task(client.wait(TASK))
        group.create_task(late())
    assert transport.count("record-info") == 10


async def test_if_the_polling_waiter_is_cancelled_another_takes_over(
    client: FluxClient, transport: Any
) -> None:
    """The wait of the others goes on where the one whose request is on its way is cancelled."""
    transport.latency_s = 2.0
    async with asyncio.TaskGroup() as group:
        first = group.create_task(client.wait(TASK))
        second = group.create_task(client.wait(TASK))
        while not transport.in_flight:
            await asyncio.sleep(0)
        first.cancel()
    assert first.cancelled()
    assert second.result().task_id == TASK


async def test_a_short_wait_does_not_spoil_a_long_one(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """Repeated short waits cost the others neither polls nor time."""
    transport.latency_s = 0.3
    began = clock.now
    transport.script["record-info"] = [lambda _: make.record(int(clock.now - began >= 12.0))]
    ended: list[float] = []

    async def long() -> None:
        await client.wait(TASK, timeout=300)
        ended.append(clock.now - began)

    async def short() -> None:
        while not ended:
            with contextlib.suppress(PollDeadlineExceeded):
                await client.wait(TASK, timeout=1)

    async with asyncio.TaskGroup() as group:
        group.create_task(long())
        group.create_task(short())
    assert ended[0] < 15.0


async def test_tasks_without_a_callback_are_polled_as_usual(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """While callbacks come for some tasks, others on the same client are not left to the sweep."""
    await _many(client, transport, clock, make, notified=range(9), count=9)
    ready = clock.now + 12.0
    transport.script["record-info"] = [lambda _: make.record(int(clock.now >= ready))]
    await client.wait(TASK)
    assert clock.now - ready < 4.0
    assert client.poller.are_callbacks_coming(), "and they say nothing about callbacks"


async def test_a_failure_is_raised_for_each_waiter(client: FluxClient, transport: Any, make: Any) -> None:
    """Every waiter raises an error of its own: the same message, not the same object."""
    transport.script["record-info"] = [make.record(0), make.record(3, errorCode=501, errorMessage="no")]
    errors = await waits(client, 3)
    assert all(isinstance(error, TaskFailed) for error in errors)
    transport.script["record-info"] = [make.answer(None, 422, msg="The record does not exist")]
    errors = await waits(client, 3)
    assert all(isinstance(error, NotFoundError) or error.task_id == TASK for error in errors)
    assert len({id(error) for error in errors}) == 3


async def test_each_wait_keeps_its_own_deadline(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """A short wait beside a long one ends at its own time."""
    transport.script["record-info"] = [make.record(0)]
    began = clock.now
    ends: list[float] = []

    async def one(timeout: float) -> None:
        with pytest.raises(PollDeadlineExceeded):
            await client.wait(TASK, timeout=timeout)
        ends.append(clock.now - began)

    async with asyncio.TaskGroup() as group:
        for timeout in (10.0, 40.0):
            group.create_task(one(timeout))
    assert ends == pytest.approx([10.0, 40.0], abs=2.5)


async def seconds_of_five(client: FluxClient, clock: Any, notify: Callable[[], Any]) -> float:
    """Have five wait for one task, and a callback come meanwhile; return how long they waited."""
    began = clock.now
    async with asyncio.TaskGroup() as group:
        group.create_task(notify())
        for _ in range(5):
            group.create_task(client.wait(TASK))
    return float(clock.now - began)


async def test_a_process_stopped_during_a_poll_polls_once_more(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """The deadline passed meanwhile, and what the poll found was true before: the task has finished."""

    def stopped(_: Any) -> Any:
        clock.now += 400.0
        return make.record(0)

    transport.script["record-info"] = [make.record(0), stopped, make.record(1)]
    image = await client.wait(TASK, timeout=300.0)
    assert image.result_url == "https://files.example/t1.jpg"


@pytest.mark.parametrize("has_finished", [True, False])
async def test_a_process_stopped_between_polls_makes_the_one_that_was_due(
    client: FluxClient, transport: Any, clock: Any, make: Any, has_finished: bool
) -> None:
    """And if that finds nothing, the wait ends within seconds all the same."""
    transport.script["record-info"] = [make.record(0), make.record(0), make.record(int(has_finished))]
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(waits(client, 1, timeout=300.0))
        while transport.count("record-info") < 2 or transport.in_flight:
            await asyncio.sleep(0)
        clock.now += 400.0
        gone_on = clock.now
    (found,) = waiting.result()
    assert isinstance(found, ImageResult if has_finished else PollDeadlineExceeded)
    assert transport.count("record-info") > 2
    assert clock.now - gone_on < 10.0


async def test_a_callback_wakes_all_waiters(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """With a callback the end is seen at once, with one poll."""
    transport.script["record-info"] = [make.record(1)]

    async def notify() -> None:
        await clock.sleep(0.5)
        client.notify(CallbackEvent(task_id=TASK))

    assert await seconds_of_five(client, clock, notify) == pytest.approx(0.6)
    assert transport.count("record-info") == 1


@pytest.mark.parametrize("after_s", [0.05, 0.3], ids=["during a poll", "after a poll"])
async def test_a_callback_just_after_a_poll_began_wakes_at_once(
    client: FluxClient, transport: Any, clock: Any, make: Any, after_s: float
) -> None:
    """A poll that began before the callback proves nothing: another follows, and not a second later."""
    notified_at: list[float] = []

    def record(_request: Any) -> Any:
        return make.record(int(bool(notified_at) and clock.now > notified_at[0] + 0.1))

    transport.script["record-info"] = [record]

    async def notify() -> None:
        while transport.count("record-info") == 0:
            await clock.sleep(0.01)
        await clock.sleep(after_s)
        notified_at.append(clock.now)
        client.notify(TASK)

    async with asyncio.TaskGroup() as group:
        group.create_task(notify())
        for _ in range(3):
            group.create_task(client.wait(TASK))
    assert clock.now - notified_at[0] < 0.5


def _notify_there(client: FluxClient) -> None:
    async def notify() -> None:
        client.notify(TASK)

    asyncio.run(notify())


@pytest.mark.parametrize(
    "notify_from", [lambda client: client.notify(TASK), _notify_there], ids=["thread", "loop"]
)
async def test_a_callback_from_elsewhere_wakes_as_well(
    client: FluxClient, transport: Any, clock: Any, make: Any, notify_from: Callable[[FluxClient], None]
) -> None:
    """A receiver may be served by another thread, or on another event loop than the client's."""
    transport.script["record-info"] = [make.record(1)]

    async def notify() -> None:
        await clock.sleep(0.5)
        with clock.hold():
            await asyncio.to_thread(notify_from, client)

    assert await seconds_of_five(client, clock, notify) == pytest.approx(0.6)
    assert transport.count("record-info") == 1


def test_a_callback_for_a_client_whose_loop_has_ended_is_ignored(transport: Any) -> None:
    """It is no error of the receiver's."""

    async def use() -> FluxClient:
        async with transport.client() as client:
            return client

    asyncio.run(use()).notify(TASK)


async def test_a_callback_before_the_wait_is_kept(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """A wait for a task whose callback has come polls at once."""
    transport.script["record-info"] = [make.record(1)]
    client.notify("t1")
    began = clock.now
    await client.wait(TASK)
    assert clock.now - began == pytest.approx(0.1)


async def test_a_flood_of_false_callbacks_costs_few_polls(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """A thousand false callbacks a second about one task cause a handful of polls, and no wrong result."""
    transport.script["record-info"] = [make.record(0)]

    async def lie() -> None:
        for _ in range(2000):
            client.notify("t1")
            await clock.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        group.create_task(lie())
        with pytest.raises(PollDeadlineExceeded):
            await client.wait(TASK, timeout=20)
    assert transport.count("record-info") <= 14


async def test_early_callbacks_are_kept_within_bounds(client: FluxClient) -> None:
    """Callbacks for tasks without a wait do not fill the memory."""
    for number in range(10_500):
        client.notify(f"unknown-{number}")
    assert client.poller.early == 10_000
    assert client.poller.waiting == 0


async def test_nothing_is_kept_of_a_wait_that_is_over(client: FluxClient) -> None:
    """When the last waiter has gone, nothing is left of the task."""
    await waits(client, 2)
    assert client.poller.waiting == 0


async def _many(
    client: FluxClient, transport: Any, clock: Any, make: Any, *, notified: range, count: int
) -> list[float]:
    """Run tasks of 12 s in turn, with callbacks for those in ``notified``; return the delay of each end."""
    lags = []
    for number in range(count):
        ready = clock.now + 12.0
        task = f"n{number}"
        transport.script["record-info"] = [
            lambda request, ready=ready, task=task: make.record(int(clock.now >= ready), task)
        ]

        async def notify(task: str = task, ready: float = ready) -> None:
            await clock.sleep(ready - clock.now)
            client.notify(task)

        async with asyncio.TaskGroup() as group:
            if number in notified:
                group.create_task(notify())
            await client.wait(task, expects_callback=True)
        lags.append(clock.now - ready)
        await clock.sleep(6.0)
    return lags


async def test_while_callbacks_come_polling_is_a_sweep(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """After three ends reported by callbacks, a task costs the one poll that confirms it."""
    await _many(client, transport, clock, make, notified=range(3), count=3)
    before = transport.count("record-info")
    lags = await _many(client, transport, clock, make, notified=range(20), count=20)
    assert transport.count("record-info") - before == 20
    assert max(lags) < 0.2


async def test_when_callbacks_stop_polling_is_what_it_was(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """After two or three ends without a callback, tasks are polled as without callbacks."""
    await _many(client, transport, clock, make, notified=range(8), count=8)
    lags = await _many(client, transport, clock, make, notified=range(0), count=10)
    assert max(lags[:3]) > 10, "these waited for the sweep"
    assert max(lags[4:]) < 4.0
    lags = await _many(client, transport, clock, make, notified=range(40), count=40)
    before = transport.count("record-info")
    await _many(client, transport, clock, make, notified=range(5), count=5)
    assert transport.count("record-info") - before == 5, "and they are believed again"


async def test_without_callbacks_nothing_changes(
    client: FluxClient, transport: Any, clock: Any, make: Any
) -> None:
    """Where none ever comes, the rhythm is the policy's from the first task to the last."""
    lags = await _many(client, transport, clock, make, notified=range(0), count=12)
    assert max(lags) < 4.0
