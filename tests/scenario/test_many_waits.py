"""Many waits at once: their cost, their end, and that nothing remains of them."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from flux_async import (
    ClientClosed,
    DeadlineExceeded,
    EditRequest,
    FluxClient,
    Limits,
    PollPolicy,
    RetryPolicy,
    Succeeded,
    TaskId,
    run_batch,
)
from flux_async.poll_rate import PollRate
from flux_async.submitter import take

URLS = [f"https://pictures.example/{number}.jpg" for number in range(400)]
ORIGIN: ContextVar[str] = ContextVar("ORIGIN", default="none")


# --- the rate of polls ------------------------------------------------------------------------------------


async def test_a_permit_costs_no_more_where_thousands_wait(clock: Any) -> None:
    """Of three thousand polls in the queue as many are compared as of three hundred."""

    async def comparisons(waiting: int) -> int:
        rate, deadline, compared = PollRate(clock, 1.0), clock.now + 1e6, 0

        def chance() -> float:
            nonlocal compared
            compared += 1
            return 0.5

        tasks = [
            asyncio.get_running_loop().create_task(rate.permit(chance, deadline)) for _ in range(waiting)
        ]
        await clock.sleep(10.5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return compared

    assert await comparisons(3_000) == await comparisons(300)


async def test_a_cancelled_wait_costs_the_others_no_turn(
    client: FluxClient, transport: Any, clock: Any
) -> None:
    """Twenty waits end before the turn of their poll; the poll of the next one comes at once."""
    limits = Limits(polls_per_s=0.1)
    async with transport.client(limits=limits) as paced:
        await paced.wait("t1")
        before = transport.count("record-info")
        gone = [asyncio.get_running_loop().create_task(paced.wait(f"gone-{n}", age=500.0)) for n in range(20)]
        await clock.sleep(2.0)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        await clock.sleep(20.0)
        assert transport.count("record-info") - before <= 1
        assert paced.session.background.in_flight == 0


# --- waits ------------------------------------------------------------------------------------------------


async def test_leaving_a_batch_ends_its_waits_and_frees_their_slots(
    transport: Any, clock: Any, make: Any
) -> None:
    """Three hundred tasks in flight, twice: no coroutine is left, and every task id is kept."""
    numbers = iter(range(10_000))
    transport.script["generate"] = [lambda _: make.answer({"taskId": f"t{next(numbers)}"})]
    transport.script["record-info"] = [lambda request: make.record(0, request.query["taskId"])]
    limits = Limits(submits=1000, window_s=1.0, in_flight=300)
    polling = PollPolicy(interval_s=500.0, cap_s=500.0)
    async with transport.client(limits=limits, polling=polling) as client:
        for _ in range(2):
            before = len(asyncio.all_tasks())
            async with run_batch(client, URLS, timeout=10_000.0) as batch:
                while batch.progress.generating < 300:
                    await clock.sleep(1.0)
            assert len(asyncio.all_tasks()) == before
            assert client.poller.waiting == 0
        assert len({unclaimed.task_id for unclaimed in client.unclaimed}) == 600


async def test_a_task_whose_outcome_was_not_taken_is_unclaimed_once(
    transport: Any, clock: Any, make: Any
) -> None:
    """The block is left between the end of a task and its outcome."""
    transport.script["record-info"] = [make.record(1)]
    async with transport.client() as client:
        async with run_batch(client, URLS[:1]) as batch:
            while batch.progress.succeeded == 0:
                await clock.sleep(1.0)
        assert [unclaimed.task_id for unclaimed in client.unclaimed] == ["t1"]


async def test_an_unforeseen_error_of_a_wait_is_raised_for_every_waiter(
    client: FluxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wait goes on for ever."""

    def broken() -> float:
        raise RuntimeError("no luck today")

    monkeypatch.setattr(client.session.rng, "random", broken)
    with pytest.raises(RuntimeError, match="no luck today"):
        await client.wait("t1")
    assert client.poller.waiting == 0


async def test_a_failing_clock_raises_for_every_waiter(
    client: FluxClient, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for waits that begin afterwards; none goes on for ever."""

    async def broken(_: float) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr(clock, "sleep", broken)
    async with asyncio.timeout(60):
        for _ in range(2):
            waits = [asyncio.get_running_loop().create_task(client.wait(f"t{n}", age=0.0)) for n in range(3)]
            await asyncio.wait(waits)
            assert [str(task.exception()) for task in waits] == ["stopped"] * 3
    assert client.poller.waiting == 0


async def test_cancelling_one_waiter_as_the_end_is_found_does_not_affect_the_other(
    client: FluxClient, transport: Any, make: Any
) -> None:
    """Cancelled in the very turn in which the answer comes: the other waiter gets the image."""
    waits: list[asyncio.Task[Any]] = []

    def end(_: Any) -> Any:
        waits[0].cancel()
        return make.record(1)

    transport.script["record-info"] = [end]
    waits += [asyncio.get_running_loop().create_task(client.wait("t1")) for _ in range(2)]
    await asyncio.wait(waits)
    assert waits[0].cancelled()
    assert waits[1].result().task_id == "t1"


async def test_of_unclaimed_tasks_the_newest_are_kept(client: FluxClient) -> None:
    """Ten thousand of them; a claimed one is removed, whatever its position."""
    request = EditRequest.text_removal(URLS[0])
    for number in range(10_005):
        client.session.keep_unclaimed(request, "kontext", TaskId(f"n{number}"))
    client.session.claim(TaskId("n7000"))
    known = [unclaimed.task_id for unclaimed in client.unclaimed]
    assert (len(known), known[0], known[-1]) == (9_999, "n5", "n10004")


async def test_an_upload_serves_the_submit_after_a_paid_failure(
    client: FluxClient, transport: Any, make: Any
) -> None:
    """Waiting for the first task forgets the request, but not the address of the upload."""
    transport.script["file-url-upload"] = [make.answer({"downloadUrl": "https://uploads.example/1.jpg"})]
    transport.script["generate"] = [make.answer({"taskId": "t1"}), make.answer({"taskId": "t2"})]
    transport.script["record-info"] = [make.record(3, errorCode=500, errorMessage="no"), make.record(1, "t2")]
    retry = RetryPolicy(max_paid_attempts=2)
    async with run_batch(client, URLS[:1], via_upload=True, retry=retry) as batch:
        (outcome,) = [outcome async for outcome in batch]
    assert isinstance(outcome, Succeeded)
    assert (transport.count("generate"), transport.count("file-url-upload")) == (2, 1)


async def test_observers_are_called_in_the_context_of_their_batch(client: FluxClient, vendor: Any) -> None:
    """Two batches wait on one client: neither sees the context variables of the other."""
    seen: set[tuple[str, str]] = set()

    async def run(name: str) -> None:
        ORIGIN.set(name)
        wanted = [f"{url}?{name}" for url in URLS[:5]]
        async with run_batch(client, wanted, on_progress=lambda _: seen.add((name, ORIGIN.get()))) as batch:
            assert len([outcome async for outcome in batch]) == 5

    async with asyncio.TaskGroup() as group:
        group.create_task(run("a"))
        group.create_task(run("b"))
    assert seen == {("a", "a"), ("b", "b")}


async def test_a_callback_does_not_hold_up_closing(
    client: FluxClient, transport: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes while a request is being ended begins nothing that closing would wait for."""

    async def stubborn(*_: Any, **__: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(type(transport), "exchange", stubborn)
    began, waits = clock.now, list[asyncio.Task[Any]]()
    with clock.hold():
        for name in ("t1", "t2"):
            waits.append(asyncio.get_running_loop().create_task(client.wait(name)))
        reading = asyncio.get_running_loop().create_task(client.credits())
        await asyncio.sleep(0)
        closing = asyncio.get_running_loop().create_task(client.aclose())
        await asyncio.sleep(0.005)
        client.notify("t1")
    await closing
    assert clock.now == began
    for ended in (reading, *waits):
        with pytest.raises(ClientClosed):
            await ended


async def test_a_deadline_holds_while_a_lock_passes_to_the_next_waiter(clock: Any) -> None:
    """A call between the release of a lock and the next waiter's turn waits no longer than its deadline."""
    lock = asyncio.Lock()
    await lock.acquire()
    following = asyncio.get_running_loop().create_task(lock.acquire())
    await asyncio.sleep(0)
    lock.release()
    async with asyncio.timeout(60):
        with pytest.raises(DeadlineExceeded):
            await take(lock, clock.now + 0.02, clock)
    await following
    lock.release()
