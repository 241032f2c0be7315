"""A batch learns when to poll, the next run starts with that, and a budget of polls is kept."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    EditRequest,
    FluxClient,
    Journal,
    Limits,
    Outcome,
    PollDeadlineExceeded,
    PollPolicy,
    Succeeded,
    run_batch,
)
from flux_async.batch.learned import Learned
from flux_async.policy.generation_times import kind_of
from flux_async.poll_rate import PollRate
from scripted_vendor import ScriptedVendor

URLS = [f"https://pictures.example/{n}.jpg" for n in range(400)]
KIND = "flux-kontext-pro/edit"


@pytest.fixture
def timed(vendor: ScriptedVendor) -> ScriptedVendor:
    """A vendor whose tasks take about 18 s, and whose records show begin and end to the second."""
    rng = random.Random(5)
    vendor.generation_s, vendor.has_times = lambda _: 18.0 * rng.uniform(0.85, 1.15), True
    return vendor


def polls_per_task(vendor: ScriptedVendor, first: int, last: int) -> float:
    """Return the polls of each task on average, of those from number ``first`` to ``last``."""
    tasks = {f"t{number}" for number in range(first, last)}
    return sum(task in tasks for _, task in vendor.polled) / len(tasks)


Opener = Callable[..., AbstractAsyncContextManager[FluxClient]]


@pytest.fixture
def opened(transport: Any, clock: Any, make: Any) -> Opener:
    """Open clients of their own on the one transport."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[FluxClient]:
        rng = random.Random(7)
        async with transport.client(rng=rng, **options) as client:
            yield client

    return run


async def collect(client: FluxClient, images: list[str], **options: Any) -> list[Outcome]:
    """Run a batch to its end; all of it succeeds."""
    async with run_batch(client, images, **options) as batch:
        outcomes = [outcome async for outcome in batch]
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    return outcomes


# --- learning ---------------------------------------------------------------------------------------------


async def test_a_batch_learns_when_to_poll(timed: ScriptedVendor, opened: Opener) -> None:
    """After a hundred tasks the others take less than half the polls of a fixed interval, and no longer."""
    async with opened(polling=PollPolicy.fixed(3.0)) as client:
        await collect(client, URLS[:60])
    fixed = polls_per_task(timed, 0, 60)
    async with opened() as client:
        await collect(client, URLS[:200])
        assert client.session.times.weight(KIND) > 150
    assert polls_per_task(timed, 160, 260) < 0.5 * fixed
    assert fixed > 6.0


async def test_the_next_run_starts_with_the_learned_times(
    timed: ScriptedVendor, opened: Opener, tmp_path: Path
) -> None:
    """A run on the same journal, by another process, begins where the first one ended."""
    journal = tmp_path / "run.sqlite3"
    async with opened() as client:
        await collect(client, URLS[:150], journal=journal)
    async with opened() as client:
        await collect(client, URLS[:170], journal=journal)
    assert polls_per_task(timed, 150, 170) < 0.8 * polls_per_task(timed, 0, 20)


@pytest.mark.parametrize("state", [None, "", "garbage", json.dumps({"version": 99})])
async def test_a_journal_without_knowledge_is_as_good_as_ever(
    timed: ScriptedVendor, opened: Opener, tmp_path: Path, state: str | None
) -> None:
    """One of an earlier release, and one whose entry is damaged: it is learned anew, and kept."""
    path = tmp_path / "run.sqlite3"
    async with opened() as client:
        await collect(client, URLS[:2], journal=path)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM meta WHERE name = 'generation_times'")
        if state is not None:
            connection.execute("INSERT INTO meta VALUES ('generation_times', ?)", (state,))
    connection.close()
    async with opened() as client:
        await collect(client, URLS[:5], journal=path)
        assert client.session.times.weight() == pytest.approx(3.0, rel=0.1)
    async with Journal(path) as journal:
        assert (await journal.generation_times() or "").startswith('{"version":1')


async def test_what_is_learned_is_kept_while_the_run_goes_on(
    timed: ScriptedVendor, opened: Opener, tmp_path: Path
) -> None:
    """Every two minutes, so that a run that is killed leaves it too."""
    journal = Journal(tmp_path / "run.sqlite3", clock=timed.clock)
    slow = opened(limits=Limits(submits=1, window_s=10.0))
    async with slow as client, journal, run_batch(client, URLS[:30], journal=journal) as batch:
        outcomes = [await anext(batch) for _ in range(20)]
        assert await journal.generation_times() is not None
    assert len(outcomes) == 20


async def test_a_journal_that_cannot_keep_it_is_no_error(
    timed: ScriptedVendor, opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a head start, no more: a warning, and the run goes on."""
    async with opened() as client:
        await client.run(EditRequest.text_removal(URLS[0]))
        journal = Journal(tmp_path / "run.sqlite3")
        await Learned(session=client.session, journal=journal).save_times()
        assert "could not be saved" in caplog.text
        async with journal:
            learned = Learned(session=client.session, journal=journal)
            await learned.save_times()
            before = journal.commits
            await learned.save_times()
            assert journal.commits == before, "nothing is new"
            await Learned(session=client.session, journal=Journal()).save_times()


async def test_clients_of_one_session_learn_together(timed: ScriptedVendor, opened: Opener) -> None:
    """They share the learned times."""
    async with opened() as client:
        other = client.with_options(timeout=60.0)
        await asyncio.wait_for(collect(client, URLS[:100]), 60)
        await other.run(EditRequest.text_removal(URLS[300]))
        assert other.session.times.weight(KIND) == pytest.approx(101, rel=0.2)
    assert polls_per_task(timed, 100, 101) <= 4


async def test_a_task_that_is_waited_for_by_its_id_is_like_all(timed: ScriptedVendor, opened: Opener) -> None:
    """Without a request it is polled as all tasks are; its record shows its age, and it counts."""
    request = EditRequest.text_removal(URLS[0])
    async with opened() as client:
        task = await client.submit(request)
        began = timed.clock.now
        await client.wait(task)
        first = timed.polled[0][0] - began
        assert first < 4.0
        assert client.session.times.weight() == pytest.approx(1.0)
        assert client.session.times.weight(kind_of(request)) == 0.0
        task = await client.submit(request)
        await client.wait(task, request=request, age=0.0)
        assert client.session.times.weight(kind_of(request)) == pytest.approx(1.0)


async def test_an_old_task_is_polled_soon(timed: ScriptedVendor, opened: Opener) -> None:
    """A wait for a task that ended long ago costs one poll, within a second."""
    async with opened() as client:
        task = await client.submit(EditRequest.text_removal(URLS[0]))
        await timed.clock.sleep(100.0)
        began = timed.clock.now
        await client.wait(task, age=100.0)
        assert timed.clock.now - began < 1.2
    assert len(timed.polled) == 1


# --- a limit of polls per second --------------------------------------------------------------------------


async def test_the_limit_of_polls_per_second_is_kept(timed: ScriptedVendor, opened: Opener) -> None:
    """Forty tasks at once, two polls a second at most: all end, and no second has more."""
    async with opened(limits=Limits(submits=400, window_s=10.0, polls_per_s=2.0), timeout=600.0) as client:
        await collect(client, URLS[:40])
    times = [at for at, _ in timed.polled]
    assert all(sum(at <= other < at + 0.99 for other in times) <= 2 for at in times)


async def test_the_most_likely_ended_come_first(clock: Any) -> None:
    """Of the waiting polls, the one most likely to find an end comes first, compared at its turn."""
    limiter, order = PollRate(clock, 1.0), list[float]()

    async def poll(chance: float) -> None:
        assert await limiter.permit(lambda: chance, clock.now + 100.0)
        order.append(chance)

    async with asyncio.TaskGroup() as group:
        for chance in (0.5, 0.1, 0.9, 0.3, 0.7):
            group.create_task(poll(chance))
    assert order == [0.9, 0.7, 0.5, 0.3, 0.1]
    assert not len(limiter)


async def test_the_poll_that_keeps_the_time_can_be_cancelled(clock: Any) -> None:
    """The next in the queue takes over, and every wait ends."""
    limiter = PollRate(clock, 5.0)
    assert await limiter.permit(lambda: 1.0, clock.now + 1.0)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(limiter.permit(lambda: 0.5, clock.now + 100.0)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    assert [task.result() for task in waiting[1:]] == [True, True]


async def test_a_turn_that_comes_too_late_is_none(clock: Any) -> None:
    """At its deadline a poll gives up its turn, also if the next permit is far off."""
    limiter = PollRate(clock, 1000.0)
    assert await limiter.permit(lambda: 1.0, clock.now + 1.0)
    began, ends = clock.now, dict[float, float]()

    async def poll(span: float) -> None:
        assert not await limiter.permit(lambda: 1.0, began + span)
        ends[span] = clock.now - began

    async with asyncio.TaskGroup() as group:
        for span in (50.0, 20.0, 70.0):
            group.create_task(poll(span))
            await asyncio.sleep(0)
    assert ends == {20.0: 20.0, 50.0: 50.0, 70.0: 70.0}


async def test_every_wait_ends_where_the_budget_is_too_small(timed: ScriptedVendor, opened: Opener) -> None:
    """Each ends at its own deadline, whether or not a poll was possible."""
    async with opened(limits=Limits(polls_per_s=0.05)) as client:
        tasks = [await client.submit(EditRequest.text_removal(url)) for url in URLS[:6]]
        began = timed.clock.now
        ends = []

        async def one(task: str) -> None:
            try:
                await client.wait(task, age=0.0, timeout=30.0)
            except PollDeadlineExceeded:
                ends.append(timed.clock.now - began)

        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(one(task))
    assert len(ends) >= 3
    assert max(ends) <= 30.5
    assert len(timed.polled) <= 3


async def test_a_task_with_a_callback_is_polled_first(timed: ScriptedVendor, opened: Opener) -> None:
    """With one poll in ten seconds, the task whose callback came is the next to be polled."""
    async with opened(limits=Limits(polls_per_s=0.1)) as client:
        tasks = [await client.submit(EditRequest.text_removal(url)) for url in URLS[:5]]

        async def one(task: str) -> None:
            await client.wait(task, age=0.0, timeout=300.0)

        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(one(task))
            await timed.clock.sleep(40.0)
            before = len(timed.polled)
            last = next(task for task in reversed(tasks) if task not in {t for _, t in timed.polled})
            client.notify(last)
    assert timed.polled[before][1] == last
