"""A batch over a scripted vendor and virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    AuthenticationError,
    BatchProgress,
    Charge,
    EditRequest,
    Failed,
    FluxClient,
    FluxError,
    GenerateRequest,
    InDoubt,
    InsufficientCreditsError,
    InvalidInput,
    Job,
    JobConflictError,
    JobKey,
    Journal,
    JournalBusyError,
    Limits,
    PollDeadlineExceeded,
    RequestNotSent,
    Scope,
    Succeeded,
    TaskFailed,
    TaskId,
    run_batch,
)
from flux_async.job_state import Event, SubmitAccepted, SubmitIntended, TaskSucceeded, apply
from flux_async.transport import NotSent, Unknown

pytestmark = pytest.mark.both_apis

URLS = [f"https://example.com/{number}.jpg" for number in range(40)]


async def collect(client: FluxClient, images: Any, **options: Any) -> list[Any]:
    """Run a batch to its end."""
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


async def test_every_image_has_one_outcome(client: Any, vendor: Any) -> None:
    """Forty images, forty successes, forty submits."""
    outcomes = await collect(client, URLS)
    assert {outcome.job.request.input_image for outcome in outcomes} == set(URLS)
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert vendor.count("generate") == 40


async def test_a_batch_takes_as_long_as_its_submits_and_its_last_task(
    client: Any, vendor: Any, clock: Any
) -> None:
    """Neither the start, nor the spacing, nor the last poll adds more than a second."""
    vendor.generation_s = 13.0
    began = clock.now
    assert len(await collect(client, URLS)) == len(URLS)
    assert clock.now - began < len(URLS) * 0.51 + 13.0 + 1.0


async def test_inputs_come_from_any_stream_of_any_kind(client: Any, vendor: Any) -> None:
    """URLs, requests and jobs, from a generator or an async one; the same thing twice is one job."""

    async def stream() -> AsyncIterator[Any]:
        yield URLS[0]
        yield EditRequest.text_removal(URLS[0])
        yield GenerateRequest(prompt="A lighthouse")
        yield Job(request=EditRequest.text_removal(URLS[1]), key=JobKey("mine"))
        yield URLS[0]

    outcomes = await collect(client, stream())
    assert len(outcomes) == 3
    assert "mine" in {outcome.job.key for outcome in outcomes}
    assert len(await collect(client, (url for url in URLS[2:5]))) == 3


async def test_one_bad_input_does_not_end_the_others(client: Any, vendor: Any) -> None:
    """What is no request becomes a failure of its own; nothing is submitted for it."""
    outcomes = await collect(client, [URLS[0], "photo.jpg", 7, b"\x89PNG", URLS[1]])
    bad = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(outcomes) == 5
    assert [type(outcome.error) for outcome in bad] == [InvalidInput] * 3
    assert "client.upload" in str(bad[2].error)
    assert vendor.count("generate") == 2


async def test_one_failed_task_does_not_end_the_others(client: Any, vendor: Any, make: Any) -> None:
    """A task that fails is one outcome among many."""
    poll = vendor.script["record-info"][0]
    vendor.script["record-info"] = [
        lambda request: (
            make.record(3, "t3", errorCode=400) if request.query["taskId"] == "t3" else poll(request)
        )
    ]
    outcomes = await collect(client, URLS[:10])
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert isinstance(failed.error, TaskFailed)
    assert len(outcomes) == 10


async def test_the_same_call_on_the_same_journal_resumes(client: Any, vendor: Any, tmp_path: Path) -> None:
    """What is done is not submitted again; what is new is."""
    journal = tmp_path / "run.sqlite3"
    await collect(client, URLS[:10], journal=journal)
    outcomes = await collect(client, URLS[:15], journal=journal)
    assert len(outcomes) == 5
    assert vendor.count("generate") == 15


async def test_breaking_out_stops_all_new_spending(client: Any, vendor: Any, tmp_path: Path) -> None:
    """After the block is left no POST starts; a later run finishes the rest, each image paid once."""
    journal = tmp_path / "run.sqlite3"
    seen = 0
    async with run_batch(client, URLS, journal=journal) as batch:
        async for _ in batch:
            seen += 1
            if seen == 5:
                break
    spent = vendor.count("generate")
    assert spent < 40
    for _ in range(50):
        await asyncio.sleep(0)
    assert vendor.count("generate") == spent
    outcomes = await collect(client, URLS, journal=journal)
    assert vendor.count("generate") == 40
    assert len(outcomes) >= 40 - spent


async def test_a_consumer_that_raises_leaves_nothing_running(client: Any, vendor: Any) -> None:
    """The consumer's own error comes out, and no coroutine stays."""
    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        async with run_batch(client, URLS) as batch:
            async for _ in batch:
                raise ZeroDivisionError
    while client.session.background.in_flight:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


async def test_a_slow_consumer_holds_the_producers_back(
    transport: Any, vendor: Any, make: Any, clock: Any
) -> None:
    """While no outcome is taken, at most the configured tasks are in flight."""
    limits = Limits(in_flight=4)
    client = FluxClient(make.key, transport=transport, clock=clock, limits=limits)
    async with client, run_batch(client, URLS) as batch:
        async with asyncio.timeout(60):
            while vendor.count("generate") < 4:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.03)
        assert vendor.count("generate") == 4
        assert len([outcome async for outcome in batch]) == 40


async def test_a_submit_in_doubt_is_not_resubmitted(client: Any, vendor: Any, tmp_path: Path) -> None:
    """A submit without an answer is one outcome, also in another run."""
    journal = tmp_path / "run.sqlite3"
    make_task = vendor.script["generate"][0]
    vendor.script["generate"] = [make_task, Unknown("dropped"), make_task]
    outcomes = await collect(client, URLS[:5], journal=journal)
    assert Counter(type(outcome) for outcome in outcomes) == {Succeeded: 4, InDoubt: 1}
    assert vendor.count("generate") == 5
    (again,) = await collect(client, URLS[:5], journal=journal)
    assert isinstance(again, InDoubt)
    assert vendor.count("generate") == 5


async def test_a_submit_in_doubt_is_resubmitted_once_with_permission(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """``in_doubt="resubmit"`` submits it once more."""
    journal = tmp_path / "run.sqlite3"
    make_task = vendor.script["generate"][0]
    vendor.script["generate"] = [make_task, Unknown("dropped"), make_task]
    await collect(client, URLS[:5], journal=journal)
    (outcome,) = await collect(client, URLS[:5], journal=journal, in_doubt="resubmit")
    assert isinstance(outcome, Succeeded)
    assert vendor.count("generate") == 6
    with pytest.raises(InvalidInput, match="hold"):
        run_batch(client, URLS, in_doubt="perhaps")


async def test_a_dead_key_halts_the_batch_once(client: Any, vendor: Any, make: Any, tmp_path: Path) -> None:
    """One submit, one error after the iteration; everything is left for a later run."""
    journal = tmp_path / "run.sqlite3"
    make_task = vendor.script["generate"][0]
    vendor.script["generate"] = [make.answer(None, 401)]
    with pytest.raises(AuthenticationError):
        await collect(client, URLS, journal=journal)
    assert vendor.count("generate") == 1
    vendor.script["generate"] = [make_task]
    assert len(await collect(client, URLS, journal=journal)) == 40


async def test_an_empty_balance_lets_tasks_in_flight_finish(
    client: Any, vendor: Any, make: Any, tmp_path: Path
) -> None:
    """Tasks submitted before the halt finish; then the error is raised, once."""
    journal = tmp_path / "run.sqlite3"
    make_task = vendor.script["generate"][0]
    vendor.script["generate"] = [*[make_task] * 12, make.answer(None, 402)]
    outcomes = []
    async with run_batch(client, URLS, journal=journal) as batch:
        with pytest.raises(InsufficientCreditsError):
            async for outcome in batch:
                outcomes.append(outcome)
        assert [outcome async for outcome in batch] == []
    assert len(outcomes) == 12
    assert vendor.count("generate") <= 12 + 1 + 6
    vendor.script["generate"] = [make_task]
    assert len(await collect(client, URLS, journal=journal)) == 28


async def test_a_budget_is_kept(client: Any, vendor: Any) -> None:
    """No submit that would go over it."""
    with pytest.raises(FluxError, match="over 52 credits") as caught:
        await collect(client, URLS, max_credits=52)
    assert caught.value.scope == "stop"
    assert vendor.count("generate") == 10


async def test_a_service_that_is_never_reached_halts_and_a_later_run_takes_it_up(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """No outcome, no charge: the batch halts, and the job is still pending in the journal."""
    journal = tmp_path / "run.sqlite3"
    make_task = vendor.script["generate"][0]
    vendor.script["generate"] = [NotSent("refused")]
    with pytest.raises(RequestNotSent) as halt:
        await collect(client, URLS[:1], journal=journal)
    assert (halt.value.scope, halt.value.charge) == (Scope.STOP, Charge.NO)
    vendor.script["generate"] = [make_task]
    (outcome,) = await collect(client, URLS[:1], journal=journal)
    assert isinstance(outcome, Succeeded)


async def test_a_deadline_is_an_outcome_and_the_task_is_taken_up_again(
    client: Any, vendor: Any, make: Any, tmp_path: Path
) -> None:
    """The paid task is waited for by the next run, without another submit."""
    journal = tmp_path / "run.sqlite3"
    poll = vendor.script["record-info"][0]
    vendor.script["record-info"] = [lambda request: make.record(0, request.query["taskId"])]
    (outcome,) = await collect(client, URLS[:1], journal=journal, timeout=20)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, PollDeadlineExceeded)
    vendor.script["record-info"] = [poll]
    (outcome,) = await collect(client, URLS[:1], journal=journal)
    assert isinstance(outcome, Succeeded)
    assert vendor.count("generate") == 1


async def test_one_key_cannot_mean_two_things(client: Any, vendor: Any) -> None:
    """The conflict ends the batch before anything is spent on either."""
    jobs = [Job(request=EditRequest.text_removal(url), key=JobKey("same")) for url in URLS[:2]]
    with pytest.raises(JobConflictError):
        await collect(client, jobs)


async def test_a_second_run_on_one_journal_is_refused(client: Any, vendor: Any, tmp_path: Path) -> None:
    """The error names the lock owner, and nothing is changed."""
    journal = tmp_path / "run.sqlite3"
    async with run_batch(client, URLS, journal=journal):
        before = journal.read_bytes()
        with pytest.raises(JournalBusyError, match="process"):
            await collect(client, URLS, journal=journal)
        assert journal.read_bytes()[:100] == before[:100]


async def test_observers_see_it_and_cannot_break_it(client: Any, vendor: Any) -> None:
    """The last value adds up, and an observer that raises is only logged."""
    seen: list[BatchProgress] = []

    def watch(progress: BatchProgress) -> None:
        seen.append(progress)
        raise RuntimeError("not my day")

    await collect(client, URLS, on_progress=watch)
    last = seen[-1]
    assert (last.seen, last.submits, last.succeeded, last.credits) == (40, 40, 40, 200.0)
    assert (last.generating, last.fetching, last.failed, last.in_doubt) == (0, 0, 0, 0)


async def test_submits_of_an_earlier_process_count_against_the_rate_limit(
    transport: Any, vendor: Any, make: Any, clock: Any, tmp_path: Path
) -> None:
    """A batch restarted at once does not exceed the limit of the account."""
    journal = tmp_path / "run.sqlite3"
    for _ in range(4):
        client = FluxClient(make.key, transport=transport, clock=clock, rng=random.Random(1))
        async with client, run_batch(client, URLS, journal=journal) as batch:
            seen = 0
            async for _outcome in batch:
                seen += 1
                if seen == 8:
                    break
    times = [at for at, request in transport.seen if request.method == "POST"]
    assert len(times) > 25
    assert all(sum(start <= at < start + 10 for at in times) <= 20 for start in times)


async def test_a_run_is_used_once_and_in_a_block(client: Any, vendor: Any) -> None:
    """Iterating without the block, or entering twice, raises an error with the right way."""
    batch = run_batch(client, URLS[:1])
    with pytest.raises(InvalidInput, match="async with"):
        await batch.__anext__()
    async with batch:
        pass
    with pytest.raises(InvalidInput, match="once"):
        async with batch:
            pass


async def test_gathered_in_input_order(client: Any, vendor: Any) -> None:
    """``remove_text_many`` gives one outcome per input, in their order, duplicates included."""
    outcomes = await client.remove_text_many([URLS[2], URLS[0], URLS[2], "photo.jpg", URLS[1]])
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Succeeded, Succeeded, Failed, Succeeded]
    assert outcomes[0] is outcomes[2]
    assert [outcome.job.request.input_image for outcome in outcomes if outcome.job] == [
        URLS[2],
        URLS[0],
        URLS[2],
        URLS[1],
    ]


async def test_the_journal_holds_no_key(client: Any, vendor: Any, make: Any, tmp_path: Path) -> None:
    """Not in the file, not in its write-ahead log."""
    await collect(client, URLS[:3], journal=tmp_path / "run.sqlite3")
    assert make.key not in str([path.read_bytes() for path in tmp_path.iterdir()])


async def test_what_the_vendor_will_soon_delete_is_taken_up_first(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """Paid 13 days ago or earlier, then what is ready, then what was only submitted, whatever came first."""
    now, path = client.session.clock.wall(), tmp_path / "run.sqlite3"
    days_ago = {URLS[0]: (1.0, False), URLS[1]: (13.5, False), URLS[2]: (2.0, True), URLS[3]: (13.2, True)}
    async with Journal(path, clock=client.session.clock) as journal:
        for number, (url, (days, ready)) in enumerate(days_ago.items()):
            (stored,) = await journal.add_jobs([Job(request=EditRequest.text_removal(url))])
            at, job = now - days * 86_400, stored.job
            events: list[Event] = [
                SubmitIntended(api="kontext", at=at),
                SubmitAccepted(at=at, task_id=TaskId(f"old{number}")),
            ]
            if ready:
                events.append(TaskSucceeded(at=at, result_url=url))
            for event in events:
                job = apply(job, event)
                await journal.record(stored.number, job, event)
    one_at_a_time = FluxClient("k", transport=vendor, clock=client.session.clock, limits=Limits(in_flight=1))
    async with one_at_a_time:
        outcomes = await collect(one_at_a_time, [], journal=path)
    assert [outcome.job.request.input_image for outcome in outcomes] == [URLS[n] for n in (3, 1, 2, 0)]
    assert vendor.count("generate") == 0
