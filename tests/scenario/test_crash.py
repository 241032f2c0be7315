"""Crash at every write: a run that ends at any commit or POST is resumed; nothing lost, nothing paid twice.

The crash is an exception that nothing in the package handles, raised at the n-th commit or POST; from then
on nothing reaches the journal's file or the vendor any more, as after ``kill -9``. The real thing, with
processes and signals, is ``test_torture.py``; here every single point is visited.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import pytest

from flux_async import InDoubt, Limits, PollPolicy, Succeeded
from flux_async.api.envelope import WireRequest
from flux_async.batch.runner import run_batch
from flux_async.job_state import JobState
from flux_async.journal.store import Journal
from flux_async.transport import SendResult
from scripted_vendor import ScriptedVendor

pytestmark = [pytest.mark.both_apis, pytest.mark.usefixtures("api")]

JOBS = 20
WRITES = 1 + 3 * JOBS
"""At least: one for the list, and three for each job: intent, task, result with the end."""

IMAGES = [f"https://pictures.example/{n}.jpg" for n in range(JOBS)]
FAST = Limits(submits=10_000, window_s=1.0, concurrent_submits=6)
POLLING = PollPolicy(first_s=0.0, interval_s=0.001, jitter=0.0)

Where = Literal["before commit", "after commit", "before POST", "after POST"]


class Crash(BaseException):
    """The process has ended."""


@attrs.define
class Fate:
    """The point where the process ends: the n-th write or POST of one kind."""

    where: Where | None = None
    number: int = 0
    seen: Counter[str] = attrs.field(factory=Counter)
    over: bool = False

    def reach(self, where: Where) -> None:
        """End the process here, if this is the point; after the end nothing continues."""
        if self.over:
            raise Crash
        self.seen[where] += 1
        if where == self.where and self.seen[where] == self.number:
            self.over = True
            raise Crash


class MortalJournal(Journal):
    """A journal whose process may end at any write."""

    def __init__(self, path: Path, fate: Fate) -> None:
        super().__init__(path)
        self.fate = fate

    async def add(self, entries: Any, **more: Any) -> Any:
        """Write, with a possible end before and after."""
        self.fate.reach("before commit")
        added = await super().add(entries, **more)
        self.fate.reach("after commit")
        return added

    async def record(self, *what: Any, **how: Any) -> None:
        """Write, with a possible end before and after."""
        self.fate.reach("before commit")
        await super().record(*what, **how)
        self.fate.reach("after commit")


@attrs.define(eq=False, slots=False)
class MortalVendor(ScriptedVendor):
    """A vendor that survives the crash. It charges each submit; the process may end before or after it."""

    fate: Fate = attrs.field(factory=Fate, kw_only=True)

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Answer a request, with a possible end before and after a submit."""
        if request.method != "POST":
            if self.fate.over:
                raise Crash
            return await super().exchange(request, timeout_s=timeout_s)
        self.fate.reach("before POST")
        answer = await super().exchange(request, timeout_s=timeout_s)
        self.fate.reach("after POST")
        return answer


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory if there is one: these tests do not cut the power."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="crash-", dir=shared if shared.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def _run(path: Path, vendor: MortalVendor, **options: Any) -> list[Any]:
    """Run the batch like a new process; return its outcomes."""
    outcomes = []
    client = vendor.client(limits=FAST, polling=POLLING, rng=random.Random(1))
    async with (
        client,
        await MortalJournal(path, vendor.fate).open(account="a") as journal,
        run_batch(client, IMAGES, journal=journal, **options) as batch,
    ):
        async for outcome in batch:
            outcomes.append(outcome)
    return outcomes


async def _die(path: Path, vendor: MortalVendor) -> bool:
    """Run until the crash; return whether it came."""
    try:
        await _run(path, vendor)
    except Crash:
        pass
    except BaseExceptionGroup as several:
        _, others = several.split(Crash)
        if others is not None:
            raise
    return vendor.fate.over


async def _states(path: Path) -> dict[JobState, int]:
    async with Journal(path) as journal:
        return await journal.counts()


@pytest.mark.parametrize("where", get_args(Where))
async def test_crash_at_every_point(disk: Path, where: Where) -> None:
    """After any last commit or POST the resumed run ends every job once and pays for none twice."""
    doubts_seen = 0
    for number in itertools.count(1):
        path = disk / f"{number}.sqlite3"
        vendor = MortalVendor(fate=Fate(where, number))
        if not await _die(path, vendor):
            break  # it ended before: every point was visited
        vendor.fate = Fate()

        outcomes = await _run(path, vendor)

        states = await _states(path)
        in_doubt = states.pop(JobState.IN_DOUBT, 0)
        assert states == {JobState.DONE: JOBS - in_doubt}
        assert in_doubt <= FAST.concurrent_submits
        assert max(vendor.charged.values()) == 1, "charged twice"
        assert vendor.charged.total() >= JOBS - in_doubt
        yielded = Counter(outcome.job.key for outcome in outcomes)
        assert not yielded or max(yielded.values()) == 1, "yielded twice"
        assert {type(outcome) for outcome in outcomes} <= {Succeeded, InDoubt}
        assert sum(isinstance(outcome, InDoubt) for outcome in outcomes) == in_doubt
        doubts_seen += in_doubt
        path.unlink()
    assert number > (WRITES if where.endswith("commit") else JOBS)
    assert doubts_seen > 0, "the crash never hit a submit in flight: this test tests nothing"


@pytest.mark.parametrize("where", ["before POST", "after POST"])
async def test_resubmit_pays_again_only_for_jobs_in_doubt(disk: Path, where: Where) -> None:
    """With permission jobs in doubt are resubmitted; no other job is."""
    path = disk / "run.sqlite3"
    vendor = MortalVendor(fate=Fate(where, 7))
    await _die(path, vendor)
    vendor.fate = Fate()
    await _run(path, vendor, in_doubt="resubmit")
    assert await _states(path) == {JobState.DONE: JOBS}
    twice = sum(count > 1 for count in vendor.charged.values())
    assert twice <= FAST.concurrent_submits
    assert len(vendor.charged) == JOBS


async def test_crashing_again_and_again(disk: Path) -> None:
    """A batch that crashes after every few writes still ends."""
    path, vendor = disk / "run.sqlite3", MortalVendor()
    for _ in range(WRITES):
        vendor.fate = Fate("after commit", 5)
        if not await _die(path, vendor):
            break
    states = await _states(path)
    assert sum(states.values()) == JOBS
    assert set(states) <= {JobState.DONE, JobState.IN_DOUBT}
    assert max(vendor.charged.values()) == 1
