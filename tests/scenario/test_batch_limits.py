"""A batch within its limits: balance, budget, memory; slow, failing and absent consumers; any input."""

from __future__ import annotations

import asyncio
import base64
import errno
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import DiskFull, EditRequest, Failed, FluxClient, Job, JobKey, Limits, PollPolicy, Succeeded
from flux_async.api.stored_requests import store_request
from flux_async.api_errors import InsufficientCreditsError
from flux_async.batch.runner import run_batch
from flux_async.errors import BudgetExhausted, InvalidInput, JobConflictError, JournalBusyError
from flux_async.job_state import JobState
from flux_async.journal.store import Journal
from flux_async.transport import FileStream
from scripted_vendor import PRICE, ScriptedVendor

IN_AIR = 6
NEVER_S = 3600.0
POLLING = PollPolicy(first_s=0.0, interval_s=0.002, jitter=0.0)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNoaGgAAAMEAYF1LgG8AAAAAElFTkSuQmCC"
)


def image(n: int) -> str:
    return f"https://pictures.example/{n}.jpg"


def images(count: int) -> list[str]:
    return [image(n) for n in range(count)]


@attrs.define
class File:
    """A small image."""

    wait_s: float
    status: int = 200
    host: str = "files.example"
    headers: dict[str, str] = attrs.field(factory=dict)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Send it, after a while."""
        await asyncio.sleep(self.wait_s)
        yield PIXEL


@attrs.define
class FileHost:
    """Serves a small image for every address.

    Attributes:
        file_s: Seconds that a file takes.
        quick_files: Number of files that take no time, from the first on.
        fetched: Number of downloads of each address.
    """

    file_s: float = 0.0
    quick_files: int = 0
    fetched: Counter[str] = attrs.field(factory=Counter)

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[FileStream]:
        """Open a file."""
        self.fetched[url] += 1
        yield File(0.0 if self.fetched.total() <= self.quick_files else self.file_s)


def make_vendor(**options: Any) -> ScriptedVendor:
    """Return a vendor in real time whose tasks have ended at the first poll."""
    return ScriptedVendor(**({"polls": 1, "files": FileHost().open} | options))


def client_of(vendor: ScriptedVendor, *, in_flight: int = 100, submits: int = 10_000) -> FluxClient:
    limits = Limits(submits=submits, window_s=1.0, concurrent_submits=IN_AIR, in_flight=in_flight)
    return vendor.client(limits=limits, polling=POLLING, rng=random.Random(1))


async def collect(vendor: ScriptedVendor, inputs: Any, *, in_flight: int = 100, **options: Any) -> list[Any]:
    """Run a batch to its end."""
    async with (
        client_of(vendor, in_flight=in_flight) as client,
        run_batch(client, inputs, **options) as batch,
    ):
        return [outcome async for outcome in batch]


async def is_quiet(vendor: ScriptedVendor) -> bool:
    """Whether no coroutine is left and no POST starts any more."""
    posts = vendor.submits
    async with asyncio.timeout(60.0):  # a poll that was sent ends by itself
        while asyncio.all_tasks() != {asyncio.current_task()}:
            await asyncio.sleep(0.01)
    return vendor.in_flight == 0 and vendor.submits == posts


async def states(journal: Path) -> dict[JobState, int]:
    async with Journal(journal) as opened:
        return await opened.counts()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


# --- money ------------------------------------------------------------------------------------------------


async def test_empty_balance_halts_once_and_a_top_up_finishes(path: Path) -> None:
    """When the credits end the run ends with one error after its paid jobs; topped up, the rest is done."""
    count, affordable = 600, 150
    vendor = make_vendor(balance=affordable * PRICE, reply_s=0.001, polls=3)
    outcomes = []
    async with client_of(vendor) as client:
        async with run_batch(client, images(count), journal=path) as batch:
            with pytest.raises(InsufficientCreditsError):
                async for outcome in batch:
                    outcomes.append(outcome)
            assert [outcome async for outcome in batch] == []
        assert len(outcomes) == affordable
        assert 1 <= vendor.refused <= 1 + IN_AIR
        vendor.balance = 1e9
        async with run_batch(client, images(count), journal=path) as batch:
            outcomes += [outcome async for outcome in batch]
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert len({outcome.job for outcome in outcomes}) == len(outcomes) == count
    assert set(vendor.charged.values()) == {1}
    assert await states(path) == {JobState.DONE: count}


async def test_no_balance_at_all_costs_one_request() -> None:
    """A run on an empty account is refused once, not once per image."""
    vendor = make_vendor(balance=0.0, reply_s=0.005)
    with pytest.raises(InsufficientCreditsError):
        await collect(vendor, images(200))
    assert vendor.refused == 1


async def test_a_full_disk_halts_once_and_loses_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with one error; when there is space again, paid results are fetched and not paid again."""
    count, vendor = 300, make_vendor(reply_s=0.001)

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with client_of(vendor, in_flight=20) as client:
        with monkeypatch.context() as full:
            full.setattr(Path, "touch", no_room)
            async with run_batch(client, images(count), journal=path, directory=tmp_path / "out") as batch:
                with pytest.raises(DiskFull):
                    async for _ in batch:
                        pass
        assert vendor.charged.total() < count / 2
        async with run_batch(client, images(count), journal=path, directory=tmp_path / "out") as batch:
            outcomes = [outcome async for outcome in batch]
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert len(outcomes) == len(list((tmp_path / "out").iterdir())) == count
    assert set(vendor.charged.values()) == {1}


@pytest.mark.parametrize("budget", [1.0, PRICE, 37.0, 100.0])
async def test_budget_is_never_exceeded(budget: float, path: Path) -> None:
    """``max_credits`` is kept to the credit, however many submits are in flight; paid tasks finish."""
    vendor = make_vendor(reply_s=0.005)
    outcomes = []
    async with (
        client_of(vendor) as client,
        run_batch(client, images(60), journal=path, max_credits=budget) as batch,
    ):
        with pytest.raises(BudgetExhausted):
            async for outcome in batch:
                outcomes.append(outcome)
    assert vendor.charged.total() * PRICE <= budget
    assert len(outcomes) == budget // PRICE
    assert len(await collect(vendor, images(60), journal=path)) == 60 - len(outcomes)


async def test_finished_jobs_are_not_paid_again(path: Path) -> None:
    """The same call on a finished journal makes no request at all."""
    vendor = make_vendor()
    assert len(await collect(vendor, images(20), journal=path)) == 20
    assert await collect(vendor, images(20), journal=path) == []
    assert vendor.submits == 20


# --- in flight, memory ------------------------------------------------------------------------------------


async def test_in_flight_is_bounded() -> None:
    """Never more tasks are unfinished at the vendor than the limit allows."""
    vendor = make_vendor(polls=4)
    assert len(await collect(vendor, images(120), in_flight=7)) == 120
    assert vendor.most_unfinished <= 7


async def test_slow_consumer_holds_the_producer() -> None:
    """While no outcome is taken, submits stop at the limit in flight, and no more inputs are read."""
    vendor, read, in_flight = make_vendor(), [], 5

    def inputs() -> Iterator[str]:
        for n in range(5_000):
            read.append(n)
            yield image(n)

    async with client_of(vendor, in_flight=in_flight) as client, run_batch(client, inputs()) as batch:
        for taken in range(10):
            await asyncio.sleep(0.02)
            assert vendor.submits <= in_flight + taken
            assert len(read) <= 300
            await anext(batch)
    assert await is_quiet(vendor)


# --- consumers that leave ---------------------------------------------------------------------------------


class Rude(Exception):
    """The consumer's own error."""


@pytest.mark.parametrize("how", ["break", "raise", "never looked"])
async def test_consumer_that_leaves(how: str, path: Path) -> None:
    """Leaving the block, in whatever way, stops spending at once; what was paid for is on record."""
    vendor = make_vendor(reply_s=0.003, polls=3)

    async def consume(client: FluxClient) -> None:
        async with run_batch(client, images(500), journal=path) as batch:
            if how == "never looked":
                await asyncio.sleep(0.02)
                return
            async for _ in batch:
                if how == "raise":
                    raise Rude
                break

    async with client_of(vendor) as client:
        try:
            await consume(client)
        except Rude:
            assert how == "raise"
        assert await is_quiet(vendor)
    found = await states(path)
    known = sum(found.get(state, 0) for state in (JobState.SUBMITTED, JobState.GENERATED, JobState.DONE))
    assert known == vendor.submits < 500
    assert JobState.SUBMITTING not in found


@pytest.mark.parametrize("seed", range(25))
async def test_cancelled_at_random(seed: int, path: Path) -> None:
    """A run cancelled at any moment has recorded every paid task, leaves nothing running, and resumes."""
    await _cancel_and_resume(seed, path, impatient=False)


@pytest.mark.parametrize("seed", range(5))
async def test_cancelled_twice(seed: int, path: Path) -> None:
    """A second cancellation changes nothing: POSTs finish, the journal is closed."""
    await _cancel_and_resume(seed, path, impatient=True)


async def _cancel_and_resume(seed: int, path: Path, *, impatient: bool) -> None:
    rng, vendor, count = random.Random(seed), make_vendor(reply_s=0.004, polls=3), 40
    async with asyncio.TaskGroup() as group:
        running = group.create_task(collect(vendor, images(count), journal=path, in_flight=20))
        await asyncio.sleep(rng.uniform(0.0, 0.05))
        running.cancel()
        if impatient:
            await asyncio.sleep(0.001)
            running.cancel()
    assert await is_quiet(vendor)
    assert vendor.in_flight == 0
    found = await states(path)
    assert JobState.SUBMITTING not in found
    assert JobState.IN_DOUBT not in found
    await collect(vendor, images(count), journal=path)
    assert await states(path) == {JobState.DONE: count}
    assert set(vendor.charged.values()) == {1}


async def test_stop_lets_paid_jobs_finish() -> None:
    """``stop()`` submits nothing more and finishes paid jobs."""
    vendor = make_vendor(reply_s=0.002, polls=5)
    outcomes = []
    async with client_of(vendor, in_flight=20) as client, run_batch(client, images(300)) as batch:
        async for outcome in batch:
            batch.stop()
            outcomes.append(outcome)
    assert len(outcomes) == vendor.submits < 60
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)


# --- inputs -----------------------------------------------------------------------------------------------


async def test_duplicates_are_one_job() -> None:
    """The same input twice is one job, one task, one outcome, near or far from the first."""
    vendor = make_vendor(polls=2)
    inputs = [*images(30), image(3), *images(10), EditRequest.text_removal(image(5))]
    outcomes = await collect(vendor, inputs, in_flight=4)
    assert len(outcomes) == vendor.submits == 30


@pytest.mark.parametrize("in_flight", [1, 3, 50])
async def test_duplicates_across_chunks_are_one_job(in_flight: int) -> None:
    """A job is not driven a second time because its repetition was read while it was under way."""
    vendor = make_vendor(reply_s=0.001)
    inputs = [*images(100), image(200), image(99), *images(300), image(98)]
    outcomes = await collect(vendor, inputs, in_flight=in_flight)
    assert len(outcomes) == vendor.submits == 300


async def test_duplicates_of_a_resumed_run_are_one_job(path: Path) -> None:
    """A list that is resumed in another order, with repetitions, still drives every job once."""
    async with Journal(path) as journal:
        bodies = [store_request(EditRequest.text_removal(one)) for one in images(200)]
        keys = [Job(request=EditRequest.text_removal(one)).key for one in images(200)]
        await journal.add(list(zip(keys, bodies, strict=True)))
    vendor = make_vendor()
    inputs = [image(n) for n in range(100, 200)] + [image(n) for n in range(99)] + [image(199)]
    outcomes = await collect(vendor, inputs, journal=path, in_flight=1)
    assert len(outcomes) == vendor.submits == 199


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_inputs_of_every_kind(kind: str) -> None:
    """Lists, generators and async generators are read alike."""

    async def slowly() -> AsyncIterator[str]:
        for n in range(30):
            await asyncio.sleep(0)
            yield image(n)

    inputs = {"list": images(30), "generator": (image(n) for n in range(30)), "async generator": slowly()}
    assert len(await collect(make_vendor(), inputs[kind])) == 30


async def test_an_input_is_begun_when_it_comes() -> None:
    """An endless async source is worked on input by input: the next may depend on an outcome before it."""
    answered = asyncio.Event()

    async def conversation() -> AsyncIterator[str]:
        yield image(1)
        await answered.wait()
        yield image(2)

    vendor, outcomes = make_vendor(), []
    async with asyncio.timeout(60), client_of(vendor) as client, run_batch(client, conversation()) as batch:
        async for outcome in batch:
            outcomes.append(outcome)
            answered.set()
    assert len(outcomes) == 2


async def test_bad_input_fails_alone() -> None:
    """What is no request becomes a failed outcome without a job; the others go on."""
    outcomes = await collect(make_vendor(), [image(1), "not a url", 7, image(2)])
    bad = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert [type(outcome.error) for outcome in bad] == [InvalidInput, InvalidInput]
    assert len(outcomes) == 4


async def test_broken_source_is_the_callers_error(path: Path) -> None:
    """An error of the input iterator comes out as it is, nothing is left running, what is paid is known."""

    def inputs() -> Iterator[str]:
        yield from images(150)
        raise Rude

    vendor = make_vendor(reply_s=0.002)
    async with client_of(vendor, in_flight=20) as client:
        with pytest.raises(Rude):
            async with run_batch(client, inputs(), journal=path) as batch:
                async for _ in batch:
                    pass
        assert await is_quiet(vendor)
    assert JobState.SUBMITTING not in await states(path)


async def test_conflicting_keys_raise_one_error(path: Path) -> None:
    """One key for two requests is a JobConflictError, not a group of errors."""
    jobs = [Job(key=JobKey("a"), request=EditRequest.text_removal(image(n))) for n in (1, 2)]
    with pytest.raises(JobConflictError):
        await collect(make_vendor(), jobs, journal=path)


async def test_an_observer_cannot_break_the_run() -> None:
    """A progress observer that raises is logged; the batch goes on."""

    def broken(progress: object) -> None:
        raise Rude

    assert len(await collect(make_vendor(), images(5), on_progress=broken)) == 5


async def test_progress_adds_up() -> None:
    """Every count an observer sees is one it can add up: nothing negative, never more than was seen."""
    seen: list[Any] = []
    await collect(make_vendor(polls=2), images(50), in_flight=9, on_progress=seen.append)
    for progress in seen:
        parts = attrs.asdict(progress)
        assert parts.pop("pause_reason") == ""
        verdicts = parts.pop("verdicts")
        assert min(*parts.values(), *verdicts.values()) >= 0
        ended = progress.succeeded + progress.failed + progress.in_doubt
        assert ended + progress.generating + progress.fetching <= progress.seen
    assert (seen[-1].seen, seen[-1].succeeded, seen[-1].submits) == (50, 50, 50)
    assert seen[-1].credits == 50 * PRICE


# --- several runs -----------------------------------------------------------------------------------------


async def test_second_run_on_a_journal_touches_nothing(path: Path) -> None:
    """While one run holds a journal another one on it is refused before it reads an input or makes a POST."""
    vendor, other = make_vendor(polls=3), make_vendor()
    never: Callable[[], Any] = lambda: pytest.fail("read an input")  # noqa: E731
    async with client_of(vendor) as client, run_batch(client, images(20), journal=path) as batch:
        await anext(batch)
        with pytest.raises(JournalBusyError, match="process"):
            await collect(other, (never() for _ in range(1)), journal=path)
        rest = [outcome async for outcome in batch]
    assert len(rest) == 19
    assert other.submits == 0


async def test_second_run_on_an_open_journal_is_refused_too() -> None:
    """One open Journal object runs one batch at a time: two would take each other's submits for crashes."""
    vendor = make_vendor(reply_s=0.01)
    async with (
        Journal() as journal,
        client_of(vendor) as client,
        run_batch(client, images(20), journal=journal) as first,
    ):
        while not vendor.submits:
            await asyncio.sleep(0.001)
        with pytest.raises(JournalBusyError):
            async with run_batch(client, images(20), journal=journal) as second:
                await anext(second)
        assert all([isinstance(outcome, Succeeded) async for outcome in first])
    assert set(vendor.charged.values()) == {1}


@pytest.mark.parametrize("file_s", [0.0, 0.01])
async def test_resumed_downloads_happen_once(path: Path, tmp_path: Path, file_s: float) -> None:
    """Jobs submitted or generated before the restart are each downloaded and reported once."""
    host = FileHost(file_s=NEVER_S, quick_files=1)
    vendor = make_vendor(reply_s=0.002, polls=3, files=host.open)
    folder = tmp_path / "images"
    async with (
        client_of(vendor, in_flight=30) as client,
        run_batch(client, images(60), journal=path, directory=folder) as batch,
    ):
        await anext(batch)
    before = await states(path)
    assert before.get(JobState.SUBMITTED, 0) + before.get(JobState.GENERATED, 0) > 0
    host.fetched.clear()
    host.file_s = file_s
    outcomes = await collect(vendor, images(60), journal=path, directory=folder, in_flight=10)
    reported = Counter(outcome.job.key for outcome in outcomes)
    assert set(reported.values()) == {1}
    assert set(host.fetched.values()) == {1}
    assert len(list(folder.glob("*.png"))) == 60
    assert set(vendor.charged.values()) == {1}


async def test_a_task_that_fails_after_success_fails_one_job(path: Path, tmp_path: Path) -> None:
    """A task reported as done, and as failed after a restart, ends its own job, not the batch."""
    host = FileHost(file_s=NEVER_S)
    vendor = make_vendor(files=host.open)
    async with (
        client_of(vendor) as client,
        run_batch(client, images(3), journal=path, directory=tmp_path / "images"),
    ):
        while host.fetched.total() < 3:
            await asyncio.sleep(0.005)
    assert (await states(path)) == {JobState.GENERATED: 3}
    host.file_s = 0.0
    vendor.ends = lambda number: 3 if number == 1 else 1
    outcomes = await collect(vendor, images(3), journal=path, directory=tmp_path / "images")
    assert Counter(type(outcome) for outcome in outcomes) == {Succeeded: 2, Failed: 1}
