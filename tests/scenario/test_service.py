"""A job service over a scripted vendor and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from starlette.applications import Starlette

from flux_async import (
    AlreadySubmitted,
    Charge,
    ConfigurationError,
    DeadlineExceeded,
    Failed,
    FluxError,
    FolderSink,
    InDoubt,
    InvalidInput,
    JobCancelled,
    JobConflictError,
    JobKey,
    JobService,
    JobState,
    JobStatus,
    Journal,
    JournalBusyError,
    QueueFull,
    Succeeded,
    UnknownJob,
    events,
    run_batch,
)
from flux_async.testing import FluxSandbox
from flux_async.transport import Unknown
from tests.support.file_host import JPEG

URLS = [f"https://example.com/{number}.jpg" for number in range(300)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal."""
    return tmp_path / "jobs.sqlite3"


@pytest.fixture
async def service(client: Any, vendor: Any, path: Path) -> AsyncIterator[JobService]:
    """An open service whose tasks take 5 s."""
    vendor.generation_s = 5.0
    async with JobService(client, journal=path) as opened:
        yield opened


@asynccontextmanager
async def collecting(service: JobService, key: str | None = None) -> AsyncIterator[list[Any]]:
    """Read the events of a service meanwhile."""
    seen: list[Any] = []

    async def read() -> None:
        async for event in service.events(key):
            seen.append(event)

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read())
        await asyncio.sleep(0)
        yield seen
        reading.cancel()


@attrs.define(eq=False)
class Silent:
    """A transport whose submits are not answered until it is allowed."""

    vendor: Any
    was_asked: asyncio.Event = attrs.field(factory=asyncio.Event)
    may_answer: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def exchange(self, request: Any, *, timeout_s: float) -> Any:
        """Answer polls only."""
        if "generate" in request.path:
            self.was_asked.set()
            await self.may_answer.wait()
        return await self.vendor.exchange(request, timeout_s=timeout_s)

    def fetch(self, url: str, **limits: Any) -> Any:
        """Open a file."""
        return self.vendor.fetch(url, **limits)

    async def aclose(self) -> None:
        """Close."""


# --- jobs -------------------------------------------------------------------------------------------------


async def test_a_job_is_added_in_one_request_and_answered_in_another(
    service: JobService, vendor: Any, path: Path
) -> None:
    """It is in the journal when ``add`` returns; its outcome comes from there, too."""
    key = await service.add(URLS[0], key="order-17")
    assert key == "order-17"
    found = await service.get(key)
    assert isinstance(found, JobStatus)
    assert (found.state, found.attempts, found.charge) == (JobState.PENDING, 0, Charge.NO)
    outcome = await service.result(key)
    assert isinstance(outcome, Succeeded)
    assert outcome.job.key == key
    assert await service.get(key) == outcome
    assert vendor.count("generate") == 1


async def test_the_same_job_is_added_once(service: JobService, vendor: Any) -> None:
    """While it waits, while it runs, and when it has its outcome."""
    first = await service.add(URLS[0])
    assert await service.add(URLS[0]) == first
    await vendor.wait_for_submits(1)
    assert await service.add(URLS[0]) == first
    await service.result(first)
    assert await service.add(URLS[0]) == first
    await service.result(first)
    assert vendor.count("generate") == 1
    with pytest.raises(JobConflictError):
        await service.add(URLS[1], key=first)


async def test_what_is_no_request_is_refused_at_once(service: JobService, vendor: Any) -> None:
    """The caller gets the error, and nothing is in the journal."""
    for image in (7, "photo.jpg", "https://"):
        with pytest.raises(InvalidInput):
            await service.add(image)  # type: ignore[arg-type]
    for priority in ("x", None, 1.5, True, 50, -9_951, 10**30):
        with pytest.raises(InvalidInput, match="priority must be a whole number from -9,950 to 49"):
            await service.add(URLS[0], priority=priority)  # type: ignore[arg-type]
    assert service.snapshot().waiting == 0


async def test_unknown_keys_are_an_error(service: JobService) -> None:
    """Of their own class, which is a LookupError; also those that no journal can hold."""
    for ask in (service.get, service.result, service.cancel):
        with pytest.raises(UnknownJob, match="There is no job 'nobody'"):
            await ask("nobody")
        for unstorable in ("", "a\0", "\ud800"):
            with pytest.raises(UnknownJob):
                await ask(unstorable)
    with pytest.raises(LookupError):
        async for _ in service.events("nobody"):
            pass


async def test_a_result_is_waited_for_no_longer_than_asked(service: JobService, vendor: Any) -> None:
    """The job goes on."""
    key = await service.add(URLS[0])
    with pytest.raises(DeadlineExceeded, match="is submitted and goes on") as late:
        await service.result(key, timeout=3.0)
    assert (late.value.charge, late.value.task_id) == (Charge.YES, "t0")
    assert isinstance(await service.result(key), Succeeded)


async def test_failures_and_doubts_are_answered_with_their_errors(
    client: Any, vendor: Any, make: Any, path: Path
) -> None:
    """Also a failure that a later run may still change."""
    accepted = vendor.script["generate"][0]
    async with JobService(client, journal=path) as service:
        vendor.script["generate"] = [make.answer(None, 422)]
        refused = await service.result(await service.add(URLS[0]))
        vendor.script["generate"] = [Unknown("dropped")]
        doubtful = await service.add(URLS[1])
        assert isinstance(await service.result(doubtful), InDoubt)
        vendor.script["generate"] = [accepted]
    assert isinstance(refused, Failed)
    assert type(refused.error).__name__ == "InvalidRequestError"
    async with JobService(vendor.client(), journal=path) as again:
        assert isinstance(await again.result(doubtful), InDoubt)


async def test_a_job_that_failed_before_its_submit_is_added_again(
    client: Any, vendor: Any, path: Path
) -> None:
    """Its file is gone when its turn comes, and is back later: the failure has cost nothing."""
    image = path.with_name("poster.jpg")
    image.write_bytes(JPEG)
    async with JobService(client, journal=path) as service:
        key = await service.add(image)
        image.unlink()
        gone = await service.result(key)
        assert isinstance(gone, Failed)
        assert (gone.error.charge, gone.job and gone.job.key) == (Charge.NO, key)
        image.write_bytes(JPEG)
        assert await service.add(image) == key
        assert isinstance(await service.get(key), JobStatus)
    assert vendor.count("generate") == 0


async def test_a_job_of_another_release_is_a_failure(client: Any, vendor: Any, path: Path) -> None:
    """It is answered, and disturbs no other."""
    async with Journal(path, clock=client.session.clock) as journal:
        await journal.add([(JobKey("odd"), '{"newField":1}')])
    async with JobService(client, journal=path) as service:
        odd = await service.result("odd")
        assert isinstance(await service.result(await service.add(URLS[0])), Succeeded)
    assert isinstance(odd, Failed)
    assert isinstance(odd.error, InvalidInput)


async def test_a_full_queue_says_when_to_come_again(client: Any, vendor: Any, path: Path) -> None:
    """What was refused is not in the journal."""
    async with JobService(client, journal=path, most_waiting=5) as service:
        added, full = [], list[QueueFull]()
        for url in URLS[:30]:
            try:
                added.append(await service.add(url))
            except QueueFull as error:
                full.append(error)
        assert full
        assert full[0].retry_after_s >= 1.0
        snapshot = service.snapshot()
        assert (snapshot.waiting, snapshot.is_ready) == (5, False)
        for key in added:
            assert isinstance(await service.result(key), Succeeded)
    assert vendor.count("generate") == len(added) == 30 - len(full)


async def test_the_highest_priority_is_submitted_first(client: Any, vendor: Any, path: Path) -> None:
    """Only what is about to be submitted goes before it."""
    limits = client.session.spacing.limits
    async with JobService(client, journal=path) as service:
        for url in URLS[:60]:
            await service.add(url)
        urgent = await service.add("https://example.com/urgent.jpg", priority=10)
        await service.result(urgent)
        place = vendor.submitted.index("https://example.com/urgent.jpg")
    assert place <= 2 * limits.concurrent_submits + 4


# --- cancelling -------------------------------------------------------------------------------------------


async def test_a_waiting_job_is_cancelled(service: JobService, vendor: Any, path: Path) -> None:
    """In the queue, or with the run before its submit; it is never submitted, and stays cancelled."""
    keys = [await service.add(url) for url in URLS[:40]]
    await vendor.wait_for_submits(3)
    cancelled = [keys[8], keys[12], keys[14], keys[39]]
    async with collecting(service) as seen:
        for key in cancelled:
            assert await _cancel(service, key, times=3)
            await service.cancel(key)
            outcome = await service.result(key)
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, JobCancelled)
            assert outcome.error.charge is Charge.NO
        for key in keys:
            await service.result(key)
    settled = [event.job for event in seen if isinstance(event, events.Settled)]
    assert sorted(settled) == sorted({*settled})
    assert {*cancelled} <= {*settled}
    assert vendor.count("generate") == 36
    await service.cancel(cancelled[0])  # it is so already
    await service.aclose()
    async with JobService(vendor.client(), journal=path) as later:
        outcome = await later.result(cancelled[0])
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, JobCancelled)


async def test_what_is_submitted_cannot_be_cancelled(service: JobService, vendor: Any) -> None:
    """The error says what it costs; the job goes on."""
    key = await service.add(URLS[0])
    await vendor.wait_for_submits(1)
    with pytest.raises(AlreadySubmitted, match="cannot be cancelled: it is") as late:
        await service.cancel(key)
    assert late.value.charge is not Charge.NO
    assert isinstance(await service.result(key), Succeeded)
    with pytest.raises(AlreadySubmitted, match="it is done"):
        await service.cancel(key)


async def _cancel(service: JobService, key: str, *, times: int) -> bool:
    """Cancel a job by several requests at once; return whether it is cancelled, which all of them say."""

    async def cancel() -> bool:
        try:
            await service.cancel(key)
        except AlreadySubmitted:
            return False
        return True

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(cancel()) for _ in range(times)]
    (is_cancelled,) = {call.result() for call in calls}
    return is_cancelled


async def test_each_moment_is_a_moment_to_cancel(client: Any, vendor: Any, path: Path, clock: Any) -> None:
    """Whenever it comes, a job is either cancelled and free, or submitted once and answered."""
    vendor.generation_s = 1.0
    async with JobService(client, journal=path) as service:
        for number, url in enumerate(URLS[:40]):
            key = await service.add(url)
            for _ in range(number):
                await asyncio.sleep(0)
            if number % 3 == 0:
                await clock.sleep(0.01 * number)
            is_cancelled = await _cancel(service, key, times=1 + number % 2)
            outcome = await service.result(key)
            assert isinstance(outcome, Failed if is_cancelled else Succeeded)
            assert (url in vendor.submitted) is not is_cancelled
        assert service.snapshot().halted is None
    assert max(vendor.charged.values(), default=1) == 1


# --- events -----------------------------------------------------------------------------------------------


async def test_the_events_of_one_job_end_with_its_outcome(service: JobService, vendor: Any) -> None:
    """For a page that shows the progress of one image."""
    key = await service.add(URLS[0])
    await service.add(URLS[1])
    seen = [event async for event in service.events(key)]
    kinds = [type(event).__name__ for event in seen]
    assert kinds[:2] == ["SubmitStarted", "Submitted"]
    assert kinds[-1] == "Settled"
    assert {event.job for event in seen} == {key}
    (late,) = [event async for event in service.events(key)]
    assert isinstance(late, events.Settled)
    assert late.outcome == "succeeded"


async def test_each_job_is_added_once_for_observers(client: Any, vendor: Any, path: Path) -> None:
    """By the service when it is added, by the run if an earlier process has added it."""
    async with JobService(client, journal=path) as service:
        async with collecting(service) as seen:
            keys = [await service.add(url) for url in URLS[:5]]
            for key in keys:
                await service.result(key)
        added = [event.job for event in seen if isinstance(event, events.JobAdded)]
    assert added == keys


async def test_events_end_when_the_service_closes(client: Any, vendor: Any, path: Path) -> None:
    """So does the wait for a result."""
    vendor.generation_s = 1000.0
    service = await JobService(client, journal=path).open()
    key = await service.add(URLS[0])
    await vendor.wait_for_submits(1)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(_all(service))
        waiting = group.create_task(_result(service, key))
        await asyncio.sleep(0)
        await service.aclose()
    assert following.result()
    assert isinstance(waiting.result(), DeadlineExceeded)


async def test_waits_end_as_soon_as_the_service_closes(vendor: Any, path: Path) -> None:
    """Not after the POSTs in flight: so requests are answered within the limit of a server."""
    silent = Silent(vendor)
    client = vendor.client(transport=silent)
    service = await JobService(client, journal=path, stop_within=3600.0).open()
    keys = [await service.add(url) for url in URLS[:2]]
    await silent.was_asked.wait()
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(_result(service, key)) for key in keys]
        await asyncio.sleep(0)
        closing = group.create_task(service.aclose())
        await asyncio.wait(waits, timeout=60.0)
        assert not closing.done()
        silent.may_answer.set()
    assert {type(wait.result()) for wait in waits} == {DeadlineExceeded}


async def _all(service: JobService) -> list[Any]:
    return [event async for event in service.events()]


async def _result(service: JobService, key: str) -> object:
    try:
        return await service.result(key)
    except DeadlineExceeded as late:
        return late


# --- opening, closing, restarting -------------------------------------------------------------------------


async def test_a_restart_goes_on_where_the_last_process_ended(vendor: Any, path: Path, clock: Any) -> None:
    """Tasks that were paid are waited for, waiting jobs are submitted, outcomes are answered; all once."""
    vendor.generation_s = 30.0
    async with JobService(vendor.client(), journal=path) as service:
        done = await service.add(URLS[0])
        await service.result(done)
        keys = [await service.add(url, priority=int(url == URLS[9])) for url in URLS[1:10]]
        await vendor.wait_for_submits(4)
    made = vendor.count("generate")
    assert 4 <= made < 10
    async with JobService(vendor.client(), journal=path) as service:
        assert isinstance(await service.get(done), Succeeded)
        for key in keys:
            assert isinstance(await service.result(key), Succeeded)
    assert vendor.count("generate") == 10
    assert set(vendor.charged.values()) == {1}


async def test_closing_waits_for_posts_in_flight(client: Any, vendor: Any, path: Path) -> None:
    """Their answers are recorded; nothing is in doubt."""
    vendor.latency_s = 2.0
    service = await JobService(client, journal=path).open()
    keys = [await service.add(url) for url in URLS[:3]]
    await vendor.wait_for_submits(1)
    await service.aclose()
    await service.aclose()
    with pytest.raises(QueueFull, match="closing"):
        await service.add(URLS[5])
    async with run_batch(vendor.client(), [], journal=path) as batch:
        outcomes = [outcome async for outcome in batch]
    assert len(outcomes) == vendor.count("generate") < len(keys)
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)


async def test_closing_takes_no_longer_than_given(vendor: Any, path: Path) -> None:
    """A POST without an answer by then is in doubt, and is never made again by itself."""
    silent = Silent(vendor)
    service = await JobService(vendor.client(transport=silent), journal=path, stop_within=0.01).open()
    key = await service.add(URLS[0])
    await silent.was_asked.wait()
    await service.aclose()
    async with JobService(vendor.client(), journal=path) as again:
        found = await again.get(key)
    assert isinstance(found, InDoubt)
    assert found.error.charge is Charge.MAYBE


async def test_a_service_opens_and_closes_a_client_of_its_own(vendor: Any, path: Path) -> None:
    """One that is in use already is left open."""
    own, shared = vendor.client(), vendor.client()
    async with JobService(own, journal=path):
        assert not own.snapshot().is_closed
    assert own.snapshot().is_closed
    async with shared:
        async with JobService(shared, journal=path):
            pass
        assert not shared.snapshot().is_closed


async def test_a_service_is_opened_once(client: Any, vendor: Any, path: Path) -> None:
    """Before it is open, and the second time, the mistake is named."""
    service = JobService(client, journal=path)
    with pytest.raises(ConfigurationError, match="not open"):
        await service.add(URLS[0])
    await service.aclose()
    async with service.lifespan(object()):
        with pytest.raises(ConfigurationError, match="opened before"):
            await service.open()
    with pytest.raises(ConfigurationError, match="no callbacks"):
        _ = service.receiver


async def test_a_service_that_could_not_be_opened_is_opened_later(vendor: Any, path: Path) -> None:
    """It closes its client all the same."""
    own = vendor.client()
    service = JobService(own, journal=path)
    async with JobService(vendor.client(), journal=path):
        with pytest.raises(JournalBusyError):
            await service.open()
    async with service:
        assert service.snapshot().is_open
    assert own.snapshot().is_closed


async def test_it_lives_as_long_as_an_application(client: Any, vendor: Any, path: Path) -> None:
    """The frameworks call ``lifespan`` with their application."""
    service = JobService(client, journal=path)
    app = Starlette(lifespan=service.lifespan)
    assert not service.snapshot().is_open
    async with app.router.lifespan_context(app):
        assert service.snapshot().is_open
        await service.result(await service.add(URLS[0]))
    assert not service.snapshot().is_open


async def test_it_lives_as_long_as_an_application_of_quart(client: Any, vendor: Any, path: Path) -> None:
    """Which calls functions of the service before and after it serves."""
    quart = pytest.importorskip("quart")
    service = JobService(client, journal=path)
    app = quart.Quart(__name__)
    app.before_serving(service.open)
    app.after_serving(service.aclose)
    async with app.test_app():
        assert service.snapshot().is_open
        await service.result(await service.add(URLS[0]))
    assert not service.snapshot().is_open


@pytest.mark.parametrize(
    "options", [{"stop_within": 0}, {"most_waiting": 0}, {"directory": 7}, {"in_doubt": "perhaps"}], ids=str
)
def test_wrong_options_are_refused_before_anything_is_opened(vendor: Any, path: Path, options: Any) -> None:
    """As those of a batch are."""
    with pytest.raises(InvalidInput):
        JobService(vendor.client(), journal=path, **options)
    with pytest.raises(InvalidInput, match="must be a FluxClient"):
        JobService("client", journal=path)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "in a journal or in an engine"),
        ({"journal": "jobs.sqlite3", "engine": "postgresql://host/flux"}, "in a journal or in an engine"),
        ({"engine": "mysql://host/flux"}, "no address of PostgreSQL"),
        ({"engine": 7}, "must be an Engine or its DSN"),
        ({"engine": "postgresql://host/flux", "staging": "inputs"}, "no place for files"),
        ({"engine": "postgresql://host/flux", "batch": "a/b"}, "no name for a batch"),
        ({"engine": "postgresql://host/flux", "batch": " a"}, "letters, digits"),
        ({"engine": "postgresql://host/flux", "batch": ".."}, "no name for a batch"),
        ({"engine": "postgresql://host/flux", "max_credits": 5.0}, "max_credits is not available"),
        ({"engine": "postgresql://host/flux", "verify": True}, "in a folder|for a service with a client"),
        ({"engine": "postgresql://host/flux", "callbacks": "https://host/cb"}, "must be a CallbackEndpoint"),
        (
            {"engine": "postgresql://host/flux", "directory": "a", "sink": FolderSink("b")},
            "both destinations",
        ),
    ],
    ids=[
        "neither",
        "both",
        "mysql",
        "number",
        "staging",
        "batch",
        "blank",
        "dots",
        "budget",
        "checks",
        "callbacks",
        "places",
    ],
)
def test_wrong_options_of_an_engine_are_refused_before_it_connects(
    vendor: Any, options: dict[str, Any], words: str
) -> None:
    """With a client and without."""
    if "engine" in options:
        pytest.importorskip("dbos")
    for clients in ((vendor.client(),), ()):
        with pytest.raises(FluxError, match=words):
            JobService(*clients, **options)


# --- trouble ----------------------------------------------------------------------------------------------


async def test_a_halt_ends_the_run_and_not_the_service(
    client: Any, vendor: Any, make: Any, path: Path, clock: Any
) -> None:
    """Jobs are taken meanwhile; a minute later one submit shows that the credits are back."""
    accepted = vendor.script["generate"][0]
    vendor.script["generate"] = [make.answer(None, 402)]
    async with JobService(client, journal=path) as service:
        keys = [await service.add(url) for url in URLS[:3]]
        while service.snapshot().halted is None:
            await clock.sleep(1.0)
        snapshot = service.snapshot()
        assert (snapshot.halted, snapshot.is_ready) == ("InsufficientCreditsError", False)
        assert vendor.count("generate") == 1
        keys.append(await service.add(URLS[3]))
        await service.cancel(keys[1])
        vendor.script["generate"] = [accepted]
        outcomes = [await service.result(key) for key in keys]
        assert service.snapshot().is_ready
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded, Succeeded]
    assert vendor.count("generate") == 4


async def test_answers_that_make_no_sense_are_tried_again_rarely(
    client: Any, vendor: Any, path: Path, clock: Any
) -> None:
    """Each try may be charged without a known task."""
    vendor.script["generate"] = [Unknown("dropped")]
    async with JobService(client, journal=path) as service:
        for url in URLS[:20]:
            await service.add(url)
        while service.snapshot().halted is None:
            await clock.sleep(1.0)
        made = vendor.count("generate")
        assert service.snapshot().halted == "TooManyUnknownAnswers"
        await clock.sleep(590.0)
        assert vendor.count("generate") == made
        await clock.sleep(60.0)
        assert vendor.count("generate") == made + 1


async def test_a_budget_that_is_used_up_needs_a_person(
    client: Any, vendor: Any, path: Path, clock: Any
) -> None:
    """The service answers, and submits nothing more."""
    async with JobService(client, journal=path, max_credits=5.0) as service:
        first, second = await service.add(URLS[0]), await service.add(URLS[1])
        assert isinstance(await service.result(first), Succeeded)
        await clock.sleep(10_000.0)
        assert isinstance(await service.get(second), JobStatus)
        assert service.snapshot().halted == "BudgetExhausted"
    assert vendor.count("generate") == 1


async def test_a_task_that_takes_longer_is_taken_up_again(client: Any, vendor: Any, path: Path) -> None:
    """Its result is fetched although the wait for it has ended once."""
    vendor.generation_s = 1000.0
    async with JobService(client, journal=path, timeout=60.0) as service:
        key = await service.add(URLS[0])
        late = await service.result(key)
        assert isinstance(late, Failed)
        assert type(late.error).__name__ == "PollDeadlineExceeded"
        while not isinstance(outcome := await service.get(key), Succeeded):
            await vendor.clock.sleep(100.0)
    assert vendor.count("generate") == 1
    assert outcome.job.key == key


async def test_callbacks_end_the_wait(calling: Any, client: Any, path: Path) -> None:
    """The receiver is the service's own, on its journal."""
    journal = Journal(path, clock=client.session.clock)
    async with JobService(client, journal=journal, callbacks=calling.endpoint) as service:
        assert "1 key" in repr(service.receiver)
        calling.inbox = journal
        key = await service.add(URLS[0])
        seen = [event async for event in service.events(key)]
    assert any(isinstance(event, events.CallbackReceived) for event in seen)


async def test_a_snapshot_says_how_the_service_is(
    service: JobService, vendor: Any, make: Any, clock: Any
) -> None:
    """It makes no request."""
    before = service.snapshot()
    assert (before.is_ready, before.waiting, before.active) == (True, 0, 0)
    assert (before.client.last_success_at, before.client.credits) == (None, None)
    keys = [await service.add(url) for url in URLS[:30]]
    await vendor.wait_for_submits(3)
    busy = service.snapshot()
    assert busy.waiting > 0
    assert busy.active > 0
    assert busy.client.tasks_in_flight >= 1
    assert busy.progress is not None
    for key in keys:
        await service.result(key)
    polls = vendor.count("record-info")
    after = service.snapshot()
    assert after.client.last_success_at is not None
    assert after.client.median_s["flux-kontext-pro/edit"] > 0
    assert (after.journal_lag_s, after.client.pauses, after.client.is_halted) == (0.0, (), False)
    assert vendor.count("record-info") == polls


async def test_files_go_to_the_folder(clock: Any, path: Path, tmp_path: Path) -> None:
    """Against the sandbox; after a restart the outcome has its file, too."""
    with FluxSandbox(clock=clock) as sandbox:
        folder = tmp_path / "clean"
        async with JobService(sandbox.client(), journal=path, directory=folder) as service:
            key = await service.add(URLS[0], key="poster")
            outcome = await service.result(key)
        assert isinstance(outcome, Succeeded)
        assert outcome.file is not None
        assert outcome.file.parent == folder
        async with JobService(sandbox.client(), journal=path, directory=folder) as service:
            assert await service.get(key) == outcome
        assert sandbox.ledger.double_charges == {}
