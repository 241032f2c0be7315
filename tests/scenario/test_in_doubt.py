"""Submits in doubt: no task that a callback has named is paid for twice, and every input has its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    BatchProgress,
    BudgetExhausted,
    CallbackEndpoint,
    CallbackEvent,
    EditRequest,
    FluxClient,
    InDoubt,
    Job,
    JournalError,
    Limits,
    Outcome,
    Succeeded,
    TaskId,
)
from flux_async.batch.runner import run_batch
from flux_async.cli.status import status_of
from flux_async.job_state import JobState, ResubmitGranted, apply
from flux_async.journal.inbox import Inbox
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import Journal
from flux_async.transport import Unknown
from scripted_vendor import answer, task_record

pytestmark = pytest.mark.both_apis


@pytest.fixture(autouse=True)
def _few_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of waiting would be many reads of the file."""
    monkeypatch.setattr("flux_async.batch.scheduler.PEEK_S", 2.0)


def waiting(seconds: float) -> CallbackEndpoint:
    """Return an endpoint for which jobs in doubt wait so long."""
    return CallbackEndpoint("https://ours.example/flux-callback", key="hook", doubt_wait_s=seconds)


async def leave_in_doubt(client: FluxClient, calling: Any, path: Path) -> Any:
    """Run a batch that ends with its first image in doubt; return the vendor's task of it."""
    calls_after, calling.calls_after = calling.calls_after, lambda _: None
    calling.loses_answer = lambda number: number == 0
    outcomes = await calling.collect(client, path, calling.images[:1], callbacks=waiting(5.0))
    assert calling.kinds(outcomes) == {InDoubt: 1}
    calling.calls_after = calls_after
    return calling.tasks[0]


async def post(path: Path, calling: Any, call: Any, task_id: str | None = None) -> None:
    """Put a callback on disk while nothing runs."""
    async with Inbox(path, clock=calling.clock) as inbox:
        await calling.call_back(call, task_id, inbox=inbox)


async def states(path: Path) -> dict[JobState, int]:
    """Count the jobs of a journal by state."""
    async with Journal(path) as journal:
        return await journal.counts()


async def after_calls(calling: Any, count: int, seconds: float) -> None:
    """Wait until the vendor has taken so many submits, and then some seconds."""
    while len(calling.tasks) < count:
        await calling.clock.sleep(0.1)
    await calling.clock.sleep(seconds)


def troubled(calling: Any, until: float) -> Any:
    """Return a record-info without records until a time."""
    gone = answer(None, 422, msg="The record does not exist")
    return lambda request: gone if calling.clock.now < until else calling.record(request)


def possible_duplicate_charges(path: Path) -> list[Any]:
    """Return the possible duplicate charges of the command status."""
    with JournalReader(path) as reader:
        told: list[Any] = status_of(reader, None)["possible_duplicate_charges"]
    return told


# --- nothing is paid for twice ------------------------------------------------------------------------------


@pytest.mark.parametrize("granted", [False, True], ids=["policy", "granted before"])
@pytest.mark.parametrize("told", [False, True], ids=["no callbacks", "callbacks"])
async def test_mail_on_disk_forbids_a_second_charge(
    client: FluxClient, calling: Any, tmp_path: Path, granted: bool, told: bool
) -> None:
    """Permission to pay again, of this run or of an earlier command, is void where the task is known."""
    path = tmp_path / "run.sqlite3"
    call = await leave_in_doubt(client, calling, path)
    if granted:
        async with Journal(path, clock=calling.clock) as journal:
            (stored,) = await journal.jobs(JobState.IN_DOUBT)
            event = ResubmitGranted(at=calling.clock.wall())
            await journal.record(stored.number, apply(stored.job, event), event, before=stored.job)
    await post(path, calling, call)
    outcomes = await calling.collect(
        client,
        path,
        calling.images[:1],
        in_doubt="hold" if granted else "resubmit",
        callbacks=waiting(5.0) if told else None,
    )
    assert [outcome.image.task_id for outcome in outcomes] == ["t0"]
    assert calling.submits == 1
    assert possible_duplicate_charges(path) == []


@pytest.mark.parametrize("signed", [True, False])
async def test_a_second_charge_is_reported_when_it_is_found(
    client: FluxClient, calling: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, signed: bool
) -> None:
    """A job in doubt was resubmitted with permission; a later callback shows that the first was charged."""
    path = tmp_path / "run.sqlite3"
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda call: None if call.task_id == "t0" else 0.0
    again = {"in_doubt": "resubmit", "callbacks": waiting(5.0)}
    outcomes = await calling.collect(client, path, calling.images[:1], **again)
    assert [outcome.image.task_id for outcome in outcomes] == ["t1"]
    assert possible_duplicate_charges(path) == []
    calling.signed = signed
    await post(path, calling, calling.tasks[0])
    caplog.clear()
    assert await calling.collect(client, path, calling.images[:1], **again) == []
    assert calling.submits == 2
    (warning,) = [record.message for record in caplog.records if "t0" in record.message]
    assert "perhaps paid for twice" in warning
    assert ("unsigned" in warning) is not signed
    (told,) = possible_duplicate_charges(path)
    assert (told["image"], told["task_id"], told["signed"]) == (calling.images[0], "t0", signed)


async def test_a_callback_before_a_permitted_resubmit_is_used(calling: Any, transport: Any) -> None:
    """Forty jobs may be resubmitted and queue behind others; their callbacks come meanwhile."""
    bold = Limits(unknown_answers=100)
    client = transport.client(limits=bold)
    calling.images = [f"https://pictures.example/many/{n}.jpg" for n in range(100)]
    calling.loses_answer = lambda number: number < 40
    calling.calls_after = lambda call: 4.0 if int(call.task_id[1:]) < 40 else 0.0
    grants: list[float] = []
    on_disk = Journal.record

    async def record(self: Journal, number: int, job: Any, event: Any, **options: Any) -> None:
        grants.extend([calling.clock.now] * isinstance(event, ResubmitGranted))
        await on_disk(self, number, job, event, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "record", record)
        outcomes = await calling.collect(client, ":memory:", in_doubt="resubmit", callbacks=waiting(15.0))
    assert calling.kinds(outcomes) == {Succeeded: 100}
    assert len(grants) == 40
    assert {len(calling.tasks_of(image)) for image in calling.images} == {1}


async def test_a_callback_for_an_older_attempt_counts_after_a_later_one_was_refused(
    client: FluxClient, calling: Any, transport: Any, make: Any
) -> None:
    """The second submit receives 429; during the pause the callback of the first one's task comes."""
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda _: 20.0

    def refused(request: Any) -> Any:
        calling.sent.append({})
        return make.answer(None, 429, msg="slow down")

    transport.script["generate"] = [calling.generate, refused, calling.generate]
    outcomes = await calling.collect(
        client, ":memory:", calling.images[:1], in_doubt="resubmit", callbacks=waiting(30.0)
    )
    assert [outcome.image.task_id for outcome in outcomes] == ["t0"]
    assert calling.submits == 2
    assert len(calling.tasks) == 1


@pytest.mark.parametrize(("code", "message"), [(500, "x"), (455, "x"), (422, "The record does not exist")])
async def test_what_cannot_be_confirmed_now_is_not_paid_for_again(
    client: FluxClient, calling: Any, tmp_path: Path, code: int, message: str
) -> None:
    """A callback named the task, record-info fails when the wait ends: held, and settled by a later run."""
    path, broken_until = tmp_path / "run.sqlite3", calling.clock.now + 150.0
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda _: 80.0

    def record(request: Any) -> Any:
        is_broken = calling.clock.now < broken_until
        return answer(None, code, msg=message) if is_broken else calling.record(request)

    calling.script["record-info"] = [record]
    options: dict[str, Any] = {"in_doubt": "resubmit", "callbacks": waiting(100.0)}
    outcomes = await calling.collect(client, path, calling.images[:1], **options)
    assert calling.kinds(outcomes) == {InDoubt: 1}
    await calling.clock.sleep(100.0)
    outcomes = await calling.collect(client, path, calling.images[:1], **options)
    assert [outcome.image.task_id for outcome in outcomes] == ["t0"]
    assert calling.submits == 1


@pytest.mark.parametrize("echo", [None, "{no json", "{}", '{"inputImage":"https://pictures.example/0.jpg"}'])
async def test_a_task_that_may_be_ours_is_not_paid_for_again(
    client: FluxClient, calling: Any, echo: str | None
) -> None:
    """If record-info does not show the source of the named task, permission to resubmit is not used."""
    calling.loses_answer = lambda number: number == 0
    calling.script["record-info"] = [lambda request: task_record(1, request.query["taskId"], paramJson=echo)]
    outcomes = await calling.collect(
        client, ":memory:", calling.images[:1], in_doubt="resubmit", callbacks=waiting(100.0)
    )
    assert calling.kinds(outcomes) == {InDoubt: 1}
    assert calling.submits == 1


async def test_a_callback_about_a_missing_task_does_not_prevent_a_resubmit(
    client: FluxClient, calling: Any
) -> None:
    """A callback named a task without a record long afterwards: permission to resubmit is used."""
    calling.loses_answer = lambda number: number == 0
    calling.makes_task = lambda number: number > 0
    endpoint = waiting(200.0)
    calling.calls_after = lambda _: None

    async def lie() -> None:
        while not calling.submits:
            await calling.clock.sleep(0.1)
        attempt = (await calling.inbox.attempt(1, 1))[1]
        event = CallbackEvent(task_id=TaskId("nobodys"), attempt_id=attempt, signed=True)
        await calling.inbox.receive(event)

    lying = asyncio.get_running_loop().create_task(lie())
    outcomes = await calling.collect(
        client, ":memory:", calling.images[:1], in_doubt="resubmit", callbacks=endpoint
    )
    await lying
    assert [outcome.image.task_id for outcome in outcomes] == ["t1"]
    assert calling.submits == 2


@pytest.mark.parametrize("policy", ["hold", "resubmit"])
async def test_a_refusal_that_names_a_task_is_settled_by_its_callback(
    client: FluxClient, calling: Any, transport: Any, policy: str
) -> None:
    """An answer of 500 with a task id contradicts itself; its callback proves the task."""

    def contradicted(request: Any) -> Any:
        calling.generate(request)
        return answer({"taskId": "t0"}, 500, msg="Server Error")

    transport.script["generate"] = [contradicted, calling.generate]
    outcomes = await calling.collect(
        client, ":memory:", calling.images[:1], in_doubt=policy, callbacks=waiting(100.0)
    )
    assert [outcome.image.task_id for outcome in outcomes] == ["t0"]
    assert calling.submits == 1


async def test_a_callback_that_could_not_be_read_is_read_again(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """The journal fails once while a callback is read: a job in doubt is settled all the same."""
    path = tmp_path / "run.sqlite3"
    await post(path, calling, await leave_in_doubt(client, calling, path))
    failed: list[str] = []
    on_disk = Journal.job

    async def job(self: Journal, key: str) -> Any:
        if not failed:
            failed.append(key)
            raise JournalError("The journal could not be read.")
        return await on_disk(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "job", job)
        await calling.collect(client, path, calling.images[1:2])
    assert failed
    assert await states(path) == {JobState.DONE: 2}


async def test_two_jobs_of_one_image_share_no_task(client: FluxClient, calling: Any) -> None:
    """Both answers are dropped, record-info shows no address, and both callbacks name one task at once."""
    calling.loses_answer = lambda _: True
    calling.calls_after = lambda _: None
    calling.shows = lambda _, sent: json.dumps({k: v for k, v in sent.items() if k != "callBackUrl"})
    request = EditRequest.text_removal(calling.images[0])

    async def notify() -> None:
        await after_calls(calling, 2, 5.0)
        async with asyncio.TaskGroup() as both:
            for call in calling.tasks:
                both.create_task(calling.call_back(call, "t0", inbox=calling.inbox))

    async with asyncio.TaskGroup() as group:
        group.create_task(notify())
        jobs = [Job(key=key, request=request) for key in ("a", "b")]
        outcomes = await calling.collect(client, ":memory:", jobs, callbacks=waiting(60.0))
    assert calling.kinds(outcomes) == {Succeeded: 1, InDoubt: 1}


# --- every input has its outcome ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["hold", "resubmit"])
@pytest.mark.parametrize("named", ["nowhere", "t0", "stranger"])
@pytest.mark.parametrize("comes_s", [0.0, 0.5, 1.5])
async def test_an_input_has_its_outcome_while_its_older_job_is_settled(
    client: FluxClient, calling: Any, tmp_path: Path, policy: str, named: str, comes_s: float
) -> None:
    """The callback of an older job in doubt is being checked when the same image comes as input."""
    path = tmp_path / "run.sqlite3"
    call = await leave_in_doubt(client, calling, path)
    await post(path, calling, call, named)
    calling.add_foreign_task("stranger")
    calling.latency_s = 1.0
    until = calling.clock.now + (0.0 if named == "stranger" else 3.0)
    calling.script["record-info"] = [troubled(calling, until)]
    seen: list[BatchProgress] = []

    async def images() -> AsyncIterator[str]:
        await calling.clock.sleep(comes_s)
        yield calling.images[0]
        await calling.clock.sleep(20.0)

    outcomes = await calling.collect(
        client, path, images(), callbacks=waiting(120.0), in_doubt=policy, on_progress=seen.append
    )
    settled = named == "t0" or policy == "resubmit"
    assert calling.kinds(outcomes) == {Succeeded if settled else InDoubt: 1}
    assert calling.submits == (2 if named != "t0" and policy == "resubmit" else 1)
    assert (seen[-1].seen, seen[-1].waiting) == (1, 0)
    assert calling.clock.now - call.ready_at < 150.0


async def test_a_job_in_doubt_outside_the_input_is_settled_when_its_record_appears(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """It is no input of this run, its callback came, and record-info has no record for a while."""
    path = tmp_path / "run.sqlite3"
    call = await leave_in_doubt(client, calling, path)
    await post(path, calling, call)
    calling.script["record-info"] = [troubled(calling, calling.clock.now + 20.0)]
    async with run_batch(client, [], journal=path, callbacks=waiting(60.0)) as batch:
        with calling.patience():
            outcomes = [outcome async for outcome in batch]
        progress = batch.progress
    assert [outcome.image.task_id for outcome in outcomes] == ["t0"]
    assert (progress.seen, progress.succeeded, progress.waiting, progress.submits) == (1, 1, 0, 0)
    assert await states(path) == {JobState.DONE: 1}


@pytest.mark.parametrize("named", ["stranger", "nowhere"])
async def test_a_job_outside_the_input_that_stays_in_doubt_is_not_counted(
    client: FluxClient, calling: Any, tmp_path: Path, named: str
) -> None:
    """Its callback names no task of this image: it is unchanged, without an outcome, and the run ends."""
    path = tmp_path / "run.sqlite3"
    call = await leave_in_doubt(client, calling, path)
    calling.add_foreign_task("stranger")
    await post(path, calling, call, named)
    async with run_batch(client, [], journal=path, callbacks=waiting(60.0)) as batch:
        with calling.patience():
            assert [outcome async for outcome in batch] == []
        assert (batch.progress.seen, batch.progress.waiting) == (0, 0)
    assert await states(path) == {JobState.IN_DOUBT: 1}


async def test_a_callback_after_the_outcome_in_doubt_makes_no_second_outcome(
    client: FluxClient, calling: Any
) -> None:
    """The outcome was reported after the wait; then its callback comes, while the batch goes on."""
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda call: 60.0 if call.task_id == "t0" else 0.0

    async def images() -> AsyncIterator[str]:
        yield calling.images[0]
        await calling.clock.sleep(200.0)
        yield calling.images[0]
        yield calling.images[1]

    outcomes = await calling.collect(client, ":memory:", images(), callbacks=waiting(20.0))
    assert [type(outcome) for outcome in outcomes] == [InDoubt, Succeeded]
    assert len({outcome.job.key for outcome in outcomes}) == 2
    assert calling.submits == 2


@pytest.mark.parametrize("at", [62.0, 72.0, 82.0, 92.0])
async def test_callbacks_during_the_last_polls_make_no_second_outcome(
    calling: Any, clock: Any, at: float
) -> None:
    """One slot, slow polls, callbacks that settle nothing, at about the end of the waits."""
    alone = Limits(in_flight=1)
    async with calling.client(limits=alone) as client:
        calling.loses_answer = lambda number: number < 4
        calling.calls_after = lambda _: None

        async def notify() -> None:
            await after_calls(calling, 4, 20.0)
            for call in calling.tasks[:3]:
                await calling.call_back(call, "nowhere", inbox=calling.inbox)
            await clock.sleep(30.0)
            calling.latency_s = 10.0
            await clock.sleep(1000.0 + at - clock.now)
            with contextlib.suppress(JournalError):  # the run may be over
                await calling.call_back(calling.tasks[3], "nowhere too", inbox=calling.inbox)

        async with asyncio.TaskGroup() as group:
            group.create_task(notify())
            outcomes = await calling.collect(client, ":memory:", calling.images[:4], callbacks=waiting(60.0))
    assert calling.kinds(outcomes) == {InDoubt: 4}
    assert len({outcome.job.key for outcome in outcomes}) == 4


# --- how long a doubt is waited for -------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_jump_of_the_wall_clock_leaves_the_wait_as_it_is(
    client: FluxClient, calling: Any, monkeypatch: pytest.MonkeyPatch, clock: Any, hours: int
) -> None:
    """In the middle of the wait the machine's clock is set: it lasts as long by the monotonic one."""
    calling.makes_task = lambda _: False
    wall = type(clock).wall
    monkeypatch.setattr(type(clock), "wall", lambda self: wall(self) + 3600 * hours * (self.now > 1010))
    began = clock.now
    outcomes = await calling.collect(client, ":memory:", calling.images[:1], callbacks=waiting(60.0))
    assert calling.kinds(outcomes) == {InDoubt: 1}
    assert clock.now - began == pytest.approx(60.0, abs=2.0)


@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_jump_of_the_wall_clock_pays_for_nothing_twice(
    client: FluxClient, calling: Any, monkeypatch: pytest.MonkeyPatch, clock: Any, hours: int
) -> None:
    """Also with permission: the second submit does not leave before the wait is really over."""
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda call: 30.0 if call.task_id == "t0" else 0.0
    wall = type(clock).wall
    monkeypatch.setattr(type(clock), "wall", lambda self: wall(self) + 3600 * hours * (self.now > 1010))

    async def have_it_think_again() -> None:
        await after_calls(calling, 3, 15.0)
        await calling.call_back(calling.tasks[0], "nowhere", inbox=calling.inbox)

    async with asyncio.TaskGroup() as group:
        group.create_task(have_it_think_again())
        outcomes = await calling.collect(
            client, ":memory:", calling.images[:3], in_doubt="resubmit", callbacks=waiting(90.0)
        )
    assert calling.kinds(outcomes) == {Succeeded: 3}
    assert {len(calling.tasks_of(image)) for image in calling.images[:3]} == {1}


@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_job_in_doubt_of_an_earlier_run_waits_no_longer_than_the_limit(
    client: FluxClient, calling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Any, hours: int
) -> None:
    """A jump of the wall clock can only shorten the rest of an earlier process's wait."""
    path = tmp_path / "run.sqlite3"
    await leave_in_doubt(client, calling, path)
    wall, began = type(clock).wall, clock.now
    monkeypatch.setattr(type(clock), "wall", lambda self: wall(self) + 3600 * hours)
    outcomes = await calling.collect(client, path, calling.images[:1], callbacks=waiting(60.0))
    assert calling.kinds(outcomes) == {InDoubt: 1}
    assert clock.now - began <= (62.0 if hours < 0 else 2.0)


async def test_a_callback_that_comes_during_the_check_of_another_is_used(
    client: FluxClient, calling: Any, clock: Any
) -> None:
    """The first names a foreign task, and record-info is slow; the right one is used without delay."""
    calling.loses_answer = lambda _: True
    calling.calls_after = lambda _: 18.0
    calling.add_foreign_task("stranger")

    async def notify() -> None:
        await after_calls(calling, 2, 25.0)
        calling.latency_s = 10.0
        await calling.call_back(calling.tasks[1], "stranger", inbox=calling.inbox)

    async with asyncio.TaskGroup() as group:
        group.create_task(notify())
        outcomes = await calling.collect(client, ":memory:", calling.images[:1], callbacks=waiting(900.0))
    assert calling.kinds(outcomes) == {Succeeded: 1}
    assert clock.now - calling.tasks[1].ready_at < 60.0


async def test_jobs_in_doubt_are_settled_after_the_credits_are_used_up(
    client: FluxClient, calling: Any
) -> None:
    """Nothing more is spent, but paid tasks are still fetched, and the halt is raised last."""
    calling.loses_answer = lambda number: number < 4
    outcomes: list[Outcome] = []
    async with Journal(clock=calling.clock) as journal:
        calling.inbox = journal
        async with run_batch(
            client, calling.images, journal=journal, callbacks=waiting(60.0), max_credits=20
        ) as batch:
            with pytest.raises(BudgetExhausted):
                async for outcome in batch:
                    outcomes.append(outcome)
            assert batch.progress.waiting == 0
            assert batch.progress.credits == 20
    assert calling.kinds(outcomes) == {Succeeded: 4}
    assert calling.submits == 4


async def test_jobs_in_doubt_are_reported_at_once_when_the_run_is_stopped(
    client: FluxClient, calling: Any
) -> None:
    """A stopped batch does not wait for callbacks, and permission to resubmit is no longer used."""
    calling.makes_task = lambda number: number > 1
    async with Journal(clock=calling.clock) as journal:
        calling.inbox = journal
        async with run_batch(
            client, calling.images[:3], journal=journal, callbacks=waiting(900.0), in_doubt="resubmit"
        ) as batch:
            outcomes = [await anext(batch)]
            await calling.clock.sleep(5.0)
            assert batch.progress.waiting == 2
            batch.stop()
            stopped_at = calling.clock.now
            outcomes += [outcome async for outcome in batch]
            assert calling.clock.now - stopped_at < 1.0
            assert batch.progress.waiting == 0
    assert calling.kinds(outcomes) == {Succeeded: 1, InDoubt: 2}
    assert calling.submits == 3


async def test_a_stop_ends_the_polls_of_a_job_in_doubt_outside_the_input(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """Its record still cannot be read: it is left to the next run, and polling ends."""
    path = tmp_path / "run.sqlite3"
    call = await leave_in_doubt(client, calling, path)
    await post(path, calling, call, "nowhere")

    async def images() -> AsyncIterator[str]:
        await calling.clock.sleep(30.0)
        batch.stop()
        yield calling.images[1]

    async with run_batch(client, images(), journal=path, callbacks=waiting(60.0)) as batch:
        with calling.patience():
            assert [outcome async for outcome in batch] == []
    assert calling.submits == 1
    assert calling.count("record-info") < 20


# --- a task that another job's poll has found ---------------------------------------------------------------


async def test_a_waiting_job_in_doubt_takes_the_task_found_by_another_poll(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """The first answer is dropped, and its task answers the second submit: both settle in this run."""
    calling.calls_after = lambda call: None if call.task_id == "t0" else 60.0
    generate = calling.generate

    def misdirected(request: Any) -> Any:
        generate(request)
        return Unknown("dropped") if len(calling.tasks) == 1 else answer({"taskId": "t0"})

    calling.script["generate"] = [misdirected]
    path = tmp_path / "run.sqlite3"
    outcomes = await calling.collect(client, path, calling.images[:2], callbacks=waiting(900.0))
    for outcome in outcomes:
        assert isinstance(outcome, Succeeded)
        assert calling.tasks_of(outcome.job.request.input_image) == [outcome.image.task_id]
    assert len(outcomes) == calling.submits == 2
    assert calling.clock.now < calling.tasks[0].ready_at + 300.0


async def test_a_task_found_by_another_poll_forbids_a_second_charge(
    client: FluxClient, calling: Any, tmp_path: Path
) -> None:
    """Permission to pay again is void where the record of a task has been seen to show this very request."""
    path = tmp_path / "run.sqlite3"
    await leave_in_doubt(client, calling, path)
    calling.calls_after = lambda _: None
    calling.script["generate"] = [answer({"taskId": "t0"})]
    outcomes = await calling.collect(client, path, calling.images[1:2], callbacks=waiting(5.0))
    assert calling.kinds(outcomes) == {InDoubt: 1}
    async with Journal(path, clock=calling.clock) as journal:
        (stored,) = [job for job in await journal.jobs(JobState.IN_DOUBT) if job.number == 1]
        event = ResubmitGranted(at=calling.clock.wall())
        await journal.record(stored.number, apply(stored.job, event), event, before=stored.job)
    outcomes = await calling.collect(client, path, calling.images[:1], callbacks=None)
    assert [outcome.image.task_id for outcome in outcomes] == ["t0"]
    assert calling.submits == 1
