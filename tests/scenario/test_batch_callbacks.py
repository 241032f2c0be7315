"""Batches with callbacks that come early, late, twice, forged or never: only polls change a job."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from flux_async import Failed, FluxClient, InDoubt, InvalidInput, JournalError, Limits, Succeeded
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.runner import run_batch
from flux_async.job_state import JobState
from flux_async.journal.inbox import Inbox
from flux_async.journal.store import Journal
from flux_async.models import CallbackEvent, TaskId

pytestmark = pytest.mark.both_apis


@pytest.fixture(autouse=True)
def _few_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of waiting would be many reads of the file."""
    monkeypatch.setattr("flux_async.batch.scheduler.PEEK_S", 0.5)


@pytest.fixture
async def client(transport: Any, clock: Any) -> AsyncIterator[FluxClient]:
    """A client that does not halt however many answers are lost: callbacks are to settle them."""
    limits = Limits(unknown_answers=1000)
    async with transport.client(rng=random.Random(7), limits=limits) as made:
        yield made


UNSIGNED = CallbackEndpoint("https://ours.example/flux-callback")


async def test_every_attempt_has_an_address_of_its_own(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """128 random bits in the query, on disk with the intent, and the job's key does not depend on them."""
    assert calling.kinds(await calling.collect(client, tmp_path / "run.sqlite3")) == {Succeeded: 12}
    ids = [call.attempt for call in calling.tasks]
    assert len(set(ids)) == 12
    assert all(len(found) == 32 for found in ids)
    async with Journal(tmp_path / "run.sqlite3", clock=client.session.clock) as journal:
        stored = await journal.job((await journal.jobs(JobState.DONE))[0].job.key)
        assert stored is not None
        assert "callBackUrl" not in stored.request
        _, callback_id = await journal.attempt(stored.number, 1)
        assert callback_id in ids
    assert (await calling.collect(client, tmp_path / "run.sqlite3")) == []
    assert calling.submits == 12


async def test_the_address_is_on_disk_before_the_request_leaves(
    client: FluxClient, calling: Any, tmp_path: Path, transport: Any
) -> None:
    """At the moment of the POST another process finds the attempt by the id in its address."""
    seen: list[bool] = []
    generate = calling.generate

    def read_first(request: Any) -> Any:
        import sqlite3  # noqa: PLC0415 - only here

        (found,) = parse_qs(urlsplit(json.loads(request.body)["callBackUrl"]).query)["c"]
        connection = sqlite3.connect(tmp_path / "run.sqlite3")
        sql = "SELECT state FROM attempt WHERE callback_id = ?"
        seen.append(connection.execute(sql, (found,)).fetchone() == ("submitting",))
        connection.close()
        return generate(request)

    transport.script["generate"] = [read_first]
    await calling.collect(client, tmp_path / "run.sqlite3")
    assert seen == [True] * 12


@pytest.mark.one_api("nothing here depends on the wire format")
async def test_with_callbacks_a_task_costs_one_poll(
    client: FluxClient, calling: Any, tmp_path: Path, transport: Any
) -> None:
    """Once callbacks have proven reliable, a task costs about one poll."""
    images = [f"https://pictures.example/many/{n}.jpg" for n in range(200)]
    assert calling.kinds(await calling.collect(client, tmp_path / "run.sqlite3", images)) == {Succeeded: 200}
    assert transport.count("record-info") / 200 <= 1.6  # the first twenty are polled as ever


async def test_without_any_callback_the_run_polls(
    client: FluxClient, calling: Any, tmp_path: Path, transport: Any
) -> None:
    """If no callback comes, the run ends as it does without them."""
    calling.calls_after = lambda _: None
    assert calling.kinds(await calling.collect(client, tmp_path / "run.sqlite3")) == {Succeeded: 12}
    assert transport.count("record-info") >= 12 * 3


@pytest.mark.parametrize("receiver", ["the run's journal", "another process"])
async def test_a_callback_names_the_task_of_a_lost_answer(
    client: FluxClient, calling: Any, tmp_path: Path, receiver: str
) -> None:
    """Every third answer is dropped after the charge; every task is found, and nothing is paid twice."""
    path = tmp_path / "run.sqlite3"
    calling.loses_answer = lambda number: number % 3 == 2
    async with Inbox(path, clock=client.session.clock) as elsewhere:
        other = receiver == "another process"
        running = asyncio.get_running_loop().create_task(calling.collect(client, path))
        while calling.inbox is None:
            await asyncio.sleep(0)
        calling.inbox = elsewhere if other else calling.inbox
        outcomes = await running
    assert calling.kinds(outcomes) == {Succeeded: 12}
    assert {len(calling.tasks_of(image)) for image in calling.images} == {1}


async def test_an_early_callback_is_kept(
    client: FluxClient, calling: Any, tmp_path: Path, transport: Any
) -> None:
    """One that comes while the answer is still on its way, and the answer then never comes."""
    calling.loses_answer = lambda _: True
    calling.calls_after = lambda _: -calling.generation_s
    transport.latency_s = 5.0
    assert calling.kinds(await calling.collect(client, tmp_path / "run.sqlite3")) == {Succeeded: 12}
    assert calling.submits == 12


async def test_a_job_in_doubt_without_a_callback_is_an_outcome_after_the_wait(
    client: FluxClient, calling: Any, clock: Any
) -> None:
    """It is reported after the wait, not before, and not resubmitted."""
    calling.makes_task = lambda number: number != 3
    began = clock.now
    async with Journal(clock=clock) as journal:
        calling.inbox = journal
        async with run_batch(client, calling.images, journal=journal, callbacks=calling.endpoint) as batch:
            outcomes = [outcome async for outcome in batch]
    assert calling.kinds(outcomes) == {Succeeded: 11, InDoubt: 1}
    assert isinstance(outcomes[-1], InDoubt)
    assert clock.now - began == pytest.approx(600 + 22 * 60, abs=30)  # the vendor takes ten minutes
    assert calling.submits == 12


async def test_a_job_in_doubt_without_a_callback_is_resubmitted_with_permission_after_the_wait(
    client: FluxClient, calling: Any, tmp_path: Path, clock: Any
) -> None:
    """With callbacks ``resubmit`` is safe: the vendor would have called back about an existing task."""
    calling.makes_task = lambda number: number != 3
    calling.loses_answer = lambda number: number == 5
    endpoint = CallbackEndpoint("https://ours.example/x", key="hook", doubt_wait_s=100.0)
    began = clock.now
    outcomes = await calling.collect(
        client, tmp_path / "run.sqlite3", in_doubt="resubmit", callbacks=endpoint
    )
    assert calling.kinds(outcomes) == {Succeeded: 12}
    assert calling.submits == 13
    assert {len(calling.tasks_of(image)) for image in calling.images} == {1}
    assert clock.now - began > 100


@pytest.mark.one_api("nothing here depends on the wire format")
async def test_jobs_in_doubt_take_no_slot_while_they_wait(
    client: FluxClient, calling: Any, clock: Any
) -> None:
    """More jobs in doubt than slots, and the others are not delayed."""
    images = [f"https://pictures.example/many/{n}.jpg" for n in range(300)]
    calling.makes_task = lambda number: number % 2 == 0
    ended: list[float] = []
    async with Journal(clock=clock) as journal:
        calling.inbox = journal
        async with run_batch(client, images, journal=journal, callbacks=calling.endpoint) as batch:
            async for outcome in batch:
                if isinstance(outcome, Succeeded):
                    ended.append(clock.now)
    assert len(ended) == 150
    assert max(ended) < 1000.0 + 300 / 2 + 60


async def test_a_callback_that_came_between_two_runs_settles_a_job_in_doubt(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """A run ends with a job in doubt; the callback comes while nothing runs; the next run reads it."""
    path = tmp_path / "run.sqlite3"
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda _: None
    short = CallbackEndpoint("https://ours.example/x", key="hook", doubt_wait_s=5.0)
    assert calling.kinds(await calling.collect(client, path, calling.images[:2], callbacks=short)) == {
        Succeeded: 1,
        InDoubt: 1,
    }
    async with Inbox(path) as inbox:
        lost = calling.tasks[0]
        await inbox.receive(CallbackEvent(task_id=TaskId("t0"), attempt_id=lost.attempt, signed=True))
    assert calling.kinds(await calling.collect(client, path, [])) == {Succeeded: 1}, "though it is no input"
    assert calling.submits == 2


@pytest.mark.parametrize(
    "lie",
    [
        {"task_id": "t1"},  # another job's task
        {"task_id": "unknown"},
        {"task_id": "t0", "signed": False},
        {"task_id": "stranger"},  # a task of the same account, made from another image
    ],
    ids=["another job's task", "no such task", "unsigned", "another image"],
)
async def test_a_forged_callback_settles_nothing(
    client: FluxClient, calling: Any, tmp_path: Path, lie: dict[str, Any]
) -> None:
    """A callback about a job in doubt counts only signed, and if record-info shows the same submit."""
    path = tmp_path / "run.sqlite3"
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda _: None
    calling.add_foreign_task("stranger")

    async def notify() -> None:
        while len(calling.tasks) < 2:
            await calling.clock.sleep(0.1)
        call = calling.tasks[1]
        await calling.clock.sleep(1.0)
        reported = {"signed": True, "attempt_id": call.attempt} | lie
        await calling.inbox.receive(CallbackEvent(**reported))

    notifying = asyncio.get_running_loop().create_task(notify())
    endpoint = CallbackEndpoint("https://ours.example/x", key="hook", doubt_wait_s=200.0)
    outcomes = await calling.collect(client, path, calling.images[:3], callbacks=endpoint)
    await notifying
    assert calling.kinds(outcomes) == {Succeeded: 2, InDoubt: 1}
    assert all(
        outcome.image.task_id != lie["task_id"] or lie["task_id"] == "t1"
        for outcome in outcomes
        if isinstance(outcome, Succeeded)
    )


async def test_without_a_key_record_info_alone_confirms(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """Without signatures, the secret address and the vendor's echo suffice."""
    calling.loses_answer = lambda number: number == 0
    calling.signed = False
    outcomes = await calling.collect(client, tmp_path / "run.sqlite3", callbacks=UNSIGNED)
    assert calling.kinds(outcomes) == {Succeeded: 12}


async def test_duplicates_and_latecomers_change_nothing(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """The same callback ten times, also long after the end: one outcome each, one submit each."""
    path = tmp_path / "run.sqlite3"
    deliver = calling.deliver

    async def often(call: Any) -> None:
        for _ in range(10):
            await deliver(call)
            await calling.clock.sleep(2.0)

    calling.deliver = often
    assert calling.kinds(await calling.collect(client, path)) == {Succeeded: 12}
    assert calling.submits == 12


async def test_a_stop_ends_the_wait_for_callbacks(
    client: FluxClient, calling: Any, tmp_path: Path, clock: Any
) -> None:
    """A stopped run reports jobs in doubt at once; leaving it in the middle leaves nothing running."""
    calling.makes_task = lambda number: number != 0
    began = clock.now
    async with Journal(tmp_path / "run.sqlite3", clock=clock) as journal:
        calling.inbox = journal
        outcomes = []
        async with run_batch(
            client, calling.images[:3], journal=journal, callbacks=calling.endpoint
        ) as batch:
            async for outcome in batch:
                outcomes.append(outcome)
                if len(outcomes) == 2:
                    batch.stop()
    assert calling.kinds(outcomes) == {Succeeded: 2, InDoubt: 1}
    assert clock.now - began < 60
    async with Journal(tmp_path / "more.sqlite3", clock=clock) as journal:
        calling.inbox = journal
        calling.makes_task = lambda _: False
        async with run_batch(client, calling.images[:3], journal=journal, callbacks=calling.endpoint):
            await asyncio.sleep(0.02)
    assert not [task for task in asyncio.all_tasks() if "flux_async" in repr(task.get_coro())]


async def test_a_record_that_cannot_be_read_yet_is_polled_again(
    client: FluxClient, calling: Any, tmp_path: Path, transport: Any, make: Any
) -> None:
    """The callback came, but record-info fails for a while: the job is settled when it answers."""
    calling.loses_answer = lambda number: number == 0
    record, troubles = calling.record, iter(range(12))

    def troubled(request: Any) -> Any:
        return make.answer(None, 500, msg="busy") if next(troubles, None) is not None else record(request)

    transport.script["record-info"] = [troubled]
    assert calling.kinds(await calling.collect(client, tmp_path / "run.sqlite3", calling.images[:1])) == {
        Succeeded: 1
    }
    assert calling.submits == 1


async def test_a_failed_inbox_does_not_end_the_batch(
    client: FluxClient, calling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks that cannot be read save no time; the batch goes on by polling."""

    async def broken(*_: object) -> Any:
        raise JournalError("no")

    monkeypatch.setattr(Journal, "callbacks_after", broken)
    assert calling.kinds(await calling.collect(client, tmp_path / "run.sqlite3")) == {Succeeded: 12}


async def test_it_works_in_memory(client: FluxClient, calling: Any, clock: Any) -> None:
    """A journal without a file receives callbacks too, in this process."""
    async with Journal(clock=clock) as journal:
        calling.inbox = journal
        calling.loses_answer = lambda number: number % 4 == 0
        async with run_batch(client, calling.images, journal=journal, callbacks=calling.endpoint) as batch:
            assert calling.kinds([outcome async for outcome in batch]) == {Succeeded: 12}


def test_bad_callback_options_are_refused(client: FluxClient) -> None:
    """Before anything is opened or sent."""
    with pytest.raises(InvalidInput, match="CallbackEndpoint"):
        run_batch(client, [], callbacks="https://ours.example/")  # type: ignore[arg-type]
    for bad in (
        {"url": "ftp://x"},
        {"url": "https://x/?c=1"},
        {"url": "https://x/#f"},
        {"url": "https://x", "key": " "},
    ):
        with pytest.raises(InvalidInput):
            CallbackEndpoint(**bad)
    with pytest.raises(InvalidInput, match="doubt_wait_s"):
        CallbackEndpoint("https://x", doubt_wait_s=-1)


async def test_a_callback_can_name_a_failed_task(
    client: FluxClient, calling: Any, tmp_path: Path, transport: Any, make: Any
) -> None:
    """Callbacks report failures and successes alike; record-info decides."""
    calling.loses_answer = lambda _: True

    def failed(request: Any) -> Any:
        call = next(c for c in calling.tasks if c.task_id == request.query["taskId"])
        flag = 3 if calling.clock.now >= call.ready_at else 0
        return make.record(flag, call.task_id, errorCode=501, paramJson=json.dumps(call.sent))

    transport.script["record-info"] = [failed]
    outcomes = await calling.collect(client, tmp_path / "run.sqlite3", calling.images[:2])
    assert calling.kinds(outcomes) == {Failed: 2}
    assert calling.submits == 2


@pytest.mark.one_api("nothing here depends on the wire format")
async def test_random_faults_of_answers_and_callbacks_give_one_outcome_each(
    make_calling: Any, tmp_path: Path
) -> None:
    """Answers are dropped, callbacks are dropped, late or early, all at random."""
    for seed in range(6):
        rng = random.Random(seed)
        async with make_calling() as vendor:
            vendor.loses_answer = lambda _, rng=rng: rng.random() < 0.3
            vendor.makes_task = lambda _, rng=rng: rng.random() < 0.9
            silent: set[str] = set()

            def calls_after(call: Any, rng: Any = rng, silent: Any = silent) -> float | None:
                after: float | None = rng.choice([-12.0, -5.0, 0.0, 0.0, 1.0, 90.0, None])
                if after is None:
                    silent.add(call.sent["inputImage"])
                return after

            vendor.calls_after = calls_after
            images = [f"https://pictures.example/{seed}/{n}.jpg" for n in range(40)]
            limits = Limits(unknown_answers=1000)
            async with vendor.client(limits=limits) as client:
                path = tmp_path / f"{seed}.sqlite3"
                short = CallbackEndpoint("https://ours.example/x", key="hook", doubt_wait_s=120.0)
                outcomes = await vendor.collect(client, path, images, in_doubt="resubmit", callbacks=short)
            assert len({o.job.key for o in outcomes if o.job is not None}) == len(outcomes) == 40
            paid_twice = {image for image in images if len(vendor.tasks_of(image)) > 1}
            # Only where the answer was lost and the callback too, after the full wait, with permission.
            assert paid_twice <= silent
