"""One sleep for all who wait, and nothing that grows with how many they are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
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
from flux_async.submit_gate import take
from flux_async.timing import Agenda, Alarm, LookPace

URLS = [f"https://pictures.example/{number}.jpg" for number in range(400)]
ORIGIN: ContextVar[str] = ContextVar("ORIGIN", default="nobody")


class Counted(float):
    """An hour that counts how often it is compared with another."""

    comparisons = 0

    def __lt__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float(self) < float(other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return isinstance(other, float) and float(self) == float(other)

    __hash__ = float.__hash__


# --- the agenda -------------------------------------------------------------------------------------------


def test_those_who_are_due_come_in_the_order_of_their_hours() -> None:
    """Whoever was set anew comes at his latest hour only, and whoever was dropped not at all."""
    agenda = Agenda[str]()
    for name, at in (("a", 3.0), ("b", 1.0), ("c", 2.0), ("d", 1.5), ("b", 9.0), ("c", 0.5)):
        agenda.set(name, at)
    agenda.drop("d")
    agenda.drop("nobody")
    assert len(agenda) == 3
    assert [agenda.take(8.0), agenda.take(8.0), agenda.take(8.0)] == ["c", "a", None]
    assert agenda.next_at() == 9.0
    assert agenda.take(9.0) == "b"
    assert agenda.next_at() == float("inf")
    assert agenda.take(float("1e9")) is None


def test_an_agenda_like_any_other() -> None:
    """Over thousands of changes it says what a list that is searched would say."""
    rng, agenda, plain = random.Random(3), Agenda[int](), dict[int, float]()
    for _ in range(5_000):
        who, now = rng.randrange(40), rng.uniform(0, 50)
        if rng.random() < 0.7:
            at = rng.uniform(0, 100)
            agenda.set(who, at)
            plain[who] = at
        elif rng.random() < 0.5:
            agenda.drop(who)
            plain.pop(who, None)
        else:
            first = min(plain, key=lambda name: plain[name], default=None)
            expected = first if first is not None and plain[first] <= now else None
            assert agenda.take(now) == expected
            plain.pop(first if expected is not None and first is not None else -1, None)
        assert agenda.next_at() == min(plain.values(), default=float("inf"))


def test_hours_that_were_changed_are_not_kept() -> None:
    """One who is set anew a hundred thousand times, often to the same hour, takes the room of a few."""
    agenda = Agenda[str]()
    for number in range(100_000):
        agenda.set("a", float(number // 1_000))
    assert len(agenda._heap) < 100


# --- the alarm --------------------------------------------------------------------------------------------


@contextmanager
def ringing(clock: Any) -> Iterator[tuple[Alarm[str], list[tuple[str, float]], list[asyncio.Task[None]]]]:
    """Have an alarm that notes whom it called when, and its coroutines."""
    called: list[tuple[str, float]] = []
    kept: list[asyncio.Task[None]] = []

    def start(work: Coroutine[Any, Any, None]) -> None:
        kept.append(asyncio.get_running_loop().create_task(work))

    def fail(who: str, error: Exception) -> None:
        raise AssertionError(who) from error

    yield Alarm(clock, start, lambda who: called.append((who, clock.now)), fail), called, kept
    for task in kept:
        task.cancel()


async def test_one_coroutine_calls_everybody_at_his_hour(clock: Any) -> None:
    """Whoever comes later with an earlier hour is called at that hour; then nothing is left running."""
    began = clock.now
    with ringing(clock) as (alarm, called, kept):
        for number in range(100):
            alarm.set(f"n{number}", began + 10.0 + number)
        await clock.sleep(5.0)
        alarm.set("late", began + 6.0)
        alarm.drop("n1")
        await asyncio.wait(kept)
        assert len(kept) == 1
        assert called[:3] == [("late", began + 6.0), ("n0", began + 10.0), ("n2", began + 12.0)]
        assert len(called) == 100


async def test_when_all_have_left_nobody_sleeps(clock: Any) -> None:
    """The coroutine does not sleep on for the hour of somebody who is gone; who comes then has another."""
    began = clock.now
    with ringing(clock) as (alarm, called, kept):
        alarm.set("a", began + 100.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        alarm.drop("a")
        await asyncio.wait(kept)
        assert clock.now == began
        alarm.set("b", began + 1.0)
        await asyncio.wait(kept)
        assert called == [("b", began + 1.0)]


# --- the pace of looks ------------------------------------------------------------------------------------


async def test_a_turn_costs_no_more_where_thousands_wait(clock: Any) -> None:
    """To keep the time nobody goes through all who wait."""

    async def comparisons(waiting: int) -> int:
        pace, ends = LookPace(clock, 1.0), clock.now + 1e6
        tasks = [
            asyncio.get_running_loop().create_task(pace.turn(lambda: 0.5, Counted(ends + number)))
            for number in range(waiting)
        ]
        await clock.sleep(2.0)
        Counted.comparisons = 0
        await clock.sleep(20.0)
        counted = Counted.comparisons
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return counted

    few, many = await comparisons(300), await comparisons(3_000)
    assert many < 2 * few


async def test_who_leaves_the_queue_costs_the_others_no_turn(
    client: FluxClient, transport: Any, clock: Any
) -> None:
    """Twenty waits that end before their look had its turn; the next one's look comes at once."""
    limits = Limits(polls_per_s=0.1)
    async with FluxClient(
        "k", "http://127.0.0.1:1", transport=transport, clock=clock, limits=limits
    ) as paced:
        await paced.wait("t1")
        before = transport.count("record-info")
        gone = [asyncio.get_running_loop().create_task(paced.wait(f"gone-{n}", age=500.0)) for n in range(20)]
        await clock.sleep(2.0)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        await clock.sleep(20.0)
        assert transport.count("record-info") - before <= 1
        assert paced._session._exchanges.in_flight == 0


# --- waits ------------------------------------------------------------------------------------------------


async def test_jobs_that_wait_hold_no_coroutine(transport: Any, clock: Any, make: Any) -> None:
    """Three hundred tasks in flight are a few coroutines; left early, their places are free again."""
    numbers = iter(range(10_000))
    transport.script["generate"] = [lambda _: make.answer({"taskId": f"t{next(numbers)}"})]
    transport.script["record-info"] = [lambda request: make.record(0, request.query["taskId"])]
    limits = Limits(submits=1000, window_s=1.0, in_flight=300)
    polling = PollPolicy(interval_s=500.0, cap_s=500.0)
    async with FluxClient(
        "k", "http://127.0.0.1:1", transport=transport, clock=clock, limits=limits, polling=polling
    ) as client:
        for _ in range(2):
            before = len(asyncio.all_tasks())
            async with run_batch(client, URLS, timeout=10_000.0) as batch:
                while batch.progress.generating < 300:
                    await clock.sleep(1.0)
                await clock.sleep(1.0)
                assert len(asyncio.all_tasks()) - before < 12
        assert len(client.unclaimed) == 600, "without a file the paid tasks would be lost"
        assert client._waiting._boards == {}


async def test_an_outcome_that_nobody_takes_is_no_loss(transport: Any, clock: Any, make: Any) -> None:
    """A block that is left between the end of a task and its outcome tells of the task once."""
    transport.script["record-info"] = [make.record(1)]
    async with FluxClient("k", "http://127.0.0.1:1", transport=transport, clock=clock) as client:
        async with run_batch(client, URLS[:1]) as batch:
            while batch.progress.succeeded == 0:
                await clock.sleep(1.0)
        assert [loose.task_id for loose in client.unclaimed] == ["t1"]


async def test_what_goes_wrong_in_a_wait_is_told_to_whoever_waits(
    client: FluxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw ends the wait; nobody waits for ever."""

    def broken() -> float:
        raise RuntimeError("no luck today")

    monkeypatch.setattr(client.session.rng, "random", broken)
    with pytest.raises(RuntimeError, match="no luck today"):
        await client.wait("t1")
    assert client._waiting._boards == {}


async def test_a_clock_that_fails_is_told_to_whoever_waits(
    client: FluxClient, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All hear of it, and whoever begins to wait then as well; nobody waits for ever."""

    async def broken(_: float) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr(clock, "sleep", broken)
    async with asyncio.timeout(60):
        for _ in range(2):
            waits = [asyncio.get_running_loop().create_task(client.wait(f"t{n}", age=0.0)) for n in range(3)]
            await asyncio.wait(waits)
            assert [str(task.exception()) for task in waits] == ["stopped"] * 3
    assert client._waiting._boards == {}


async def test_one_who_cannot_be_told_keeps_it_from_nobody(
    client: FluxClient, transport: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What it raises is logged; the other who waits for the task, and whoever waits for others, are told."""

    def broken(_: Any) -> None:
        raise RuntimeError("not listening")

    transport.script["record-info"] = [lambda request: make.record(1, request.query["taskId"])]
    for timeout in (1e-9, 100.0):
        request = EditRequest.text_removal(URLS[0])
        client.begin_wait(TaskId("t1"), broken, request=request, timeout=timeout)
    async with asyncio.TaskGroup() as group:
        for task_id in ("t1", "t2"):
            group.create_task(client.wait(task_id, timeout=100.0))
    assert caplog.text.count("could not be told") == 2


async def test_one_who_is_cancelled_as_the_end_is_found_keeps_it_from_nobody(
    client: FluxClient, transport: Any, make: Any
) -> None:
    """Cancelled in the very turn in which the answer comes, he is gone, and the other has the picture."""
    waits: list[asyncio.Task[Any]] = []

    def end(_: Any) -> Any:
        waits[0].cancel()
        return make.record(1)

    transport.script["record-info"] = [end]
    waits += [asyncio.get_running_loop().create_task(client.wait("t1")) for _ in range(2)]
    await asyncio.wait(waits)
    assert waits[0].cancelled()
    assert waits[1].result().task_id == "t1"


async def test_a_wait_may_be_left_by_whoever_began_it(client: FluxClient, transport: Any, clock: Any) -> None:
    """Then nobody is told, and nothing is left."""
    told: list[Any] = []
    wait = client.begin_wait(TaskId("t1"), told.append, request=EditRequest.text_removal(URLS[0]))
    await clock.sleep(0.1)
    wait.leave()
    wait.leave()
    await clock.sleep(50.0)
    assert told == []
    assert client._session._exchanges.in_flight == 0


async def test_of_unclaimed_tasks_the_newest_are_kept(client: FluxClient) -> None:
    """Ten thousand of them; one that was claimed is forgotten, whoever is before it."""
    request = EditRequest.text_removal(URLS[0])
    for number in range(10_005):
        client.session.leave(request, TaskId(f"n{number}"))
    client.session.claim(TaskId("n7000"))
    known = [loose.task_id for loose in client.unclaimed]
    assert (len(known), known[0], known[-1]) == (9_999, "n5", "n10004")


async def test_an_upload_serves_the_submit_after_a_paid_failure(
    client: FluxClient, transport: Any, make: Any
) -> None:
    """Waiting for the first task forgets the request, but not where the picture has been put."""
    transport.script["file-url-upload"] = [make.answer({"downloadUrl": "https://uploads.example/1.jpg"})]
    transport.script["generate"] = [make.answer({"taskId": "t1"}), make.answer({"taskId": "t2"})]
    transport.script["record-info"] = [make.record(3, errorCode=500, errorMessage="no"), make.record(1, "t2")]
    retry = RetryPolicy(max_paid_attempts=2)
    async with run_batch(client, URLS[:1], via_upload=True, retry=retry) as batch:
        (outcome,) = [outcome async for outcome in batch]
    assert isinstance(outcome, Succeeded)
    assert (transport.count("generate"), transport.count("file-url-upload")) == (2, 1)


async def test_observers_are_called_in_the_context_of_their_batch(
    client: FluxClient, vendor: Any, clock: Any
) -> None:
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
    began, told = clock.now, list[Any]()
    with clock.hold():
        for name in ("t1", "t2"):
            client.begin_wait(TaskId(name), told.append, request=EditRequest.text_removal(URLS[0]))
        reading = asyncio.get_running_loop().create_task(client.credits())
        await asyncio.sleep(0)
        closing = asyncio.get_running_loop().create_task(client.aclose())
        await asyncio.sleep(0.005)
        client.ring("t1")
    await closing
    assert clock.now == began
    with pytest.raises(ClientClosed):
        await reading


async def test_a_deadline_holds_also_as_the_pace_changes_hands(clock: Any) -> None:
    """Whoever comes between one submit's turn and that of the next in line waits no longer than he may."""
    pace = asyncio.Lock()
    await pace.acquire()
    following = asyncio.get_running_loop().create_task(pace.acquire())
    await asyncio.sleep(0)
    pace.release()
    async with asyncio.timeout(60):
        with pytest.raises(DeadlineExceeded):
            await take(pace, clock.now + 0.02, clock)
    await following
    pace.release()
