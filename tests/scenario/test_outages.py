"""A service that cannot be reached or refuses all requests: one pause for all, and no image fails."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from PIL import Image

from flux_async import (
    BatchProgress,
    Charge,
    Failed,
    FluxClient,
    FluxError,
    Limits,
    LocalImage,
    MaintenanceError,
    RateLimitedError,
    RequestNotSent,
    Scope,
    Succeeded,
    run_batch,
)
from flux_async.job_state import JobState
from flux_async.journal.store import Journal
from flux_async.testing import VirtualClock
from flux_async.transport import NotSent
from scripted_vendor import ScriptedVendor

URLS = [f"https://pictures.example/{number}.jpg" for number in range(200)]


@attrs.define
class Outage:
    """A time in which no connection to the vendor can be made.

    Attributes:
        vendor: The vendor.
        begins_at: Monotonic time of its begin.
        ends_at: Monotonic time of its end.
    """

    vendor: ScriptedVendor
    begins_at: float
    ends_at: float

    def __attrs_post_init__(self) -> None:
        self.vendor.is_reachable = lambda now: not self.begins_at <= now < self.ends_at

    @property
    def refused(self) -> int:
        """Number of requests that could not connect."""
        return self.vendor.not_connected


@pytest.fixture
def cut(vendor: ScriptedVendor, clock: VirtualClock) -> Any:
    """Return a client whose vendor cannot be reached for a while."""

    def cut_off(after_s: float, seconds: float, **limits: Any) -> tuple[FluxClient, Outage]:
        outage = Outage(vendor, clock.now + after_s, clock.now + after_s + seconds)
        client = vendor.client(
            rng=random.Random(7),
            limits=Limits(**limits),
        )
        return client, outage

    return cut_off


async def collect(client: FluxClient, images: list[Any], **options: Any) -> list[Any]:
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


async def halted(client: FluxClient, images: list[Any], **options: Any) -> tuple[list[Any], FluxError]:
    """Run a batch that halts; return its outcomes and what halted it."""
    outcomes: list[Any] = []
    async with run_batch(client, images, **options) as batch:
        with pytest.raises(FluxError) as halt:
            async for outcome in batch:
                outcomes.append(outcome)
    return outcomes, halt.value


async def test_an_outage_in_the_middle_is_waited_out(cut: Any, vendor: Any) -> None:
    """Ten minutes without the service, tasks out: all 200 images arrive, each submitted once."""
    client, line = cut(20.0, 590.0)
    outcomes = await collect(client, URLS)
    assert len(outcomes) == 200
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert vendor.count("generate") == 200
    assert line.refused < 2 * 590 / 7.5 + 60  # one submit and one poll at a time, every 7.5 to 15 s


async def test_an_outage_longer_than_a_task_may_take_fails_no_task(cut: Any, vendor: Any) -> None:
    """The time in which nothing can be polled does not count against the timeout of a task."""
    client, _ = cut(2.0, 500.0)
    outcomes = await collect(client, URLS[:10], timeout=60.0)
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert vendor.count("generate") == 10


async def test_an_outage_longer_than_the_patience_halts(cut: Any, vendor: Any, tmp_path: Path) -> None:
    """Nothing fails: what is submitted stays submitted, the rest pending, and the same call finishes it."""
    client, line = cut(20.0, 1e6)
    began = vendor.clock.now
    async with Journal(tmp_path / "run.sqlite3", clock=vendor.clock) as journal:
        outcomes, halt = await halted(client, URLS, journal=journal, patience=90.0)
        assert isinstance(halt, RequestNotSent)
        assert (halt.scope, halt.charge) == (Scope.STOP, Charge.NO)
        assert "http://127.0.0.1:1" in str(halt)
        assert "waited 90 s" in str(halt)
        assert 110.0 <= vendor.clock.now - began <= 125.0
        assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
        paid, counts = vendor.count("generate"), await journal.counts()
        assert set(counts) <= {JobState.DONE, JobState.SUBMITTED, JobState.PENDING}
        assert counts[JobState.PENDING] == len(URLS) - paid
        line.ends_at = 0.0
        rest = await collect(client, URLS, journal=journal)
    assert len(outcomes) + len(rest) == 200
    assert all(isinstance(outcome, Succeeded) for outcome in rest)
    assert vendor.count("generate") == 200


async def test_a_service_that_is_never_reached_halts_within_thirty_seconds(cut: Any, vendor: Any) -> None:
    """300 images cost a few tries, not five each."""
    client, line = cut(0.0, 1e6)
    began = vendor.clock.now
    outcomes, halt = await halted(client, URLS)
    assert outcomes == []
    assert isinstance(halt, RequestNotSent)
    assert vendor.clock.now - began <= 30.0
    assert line.refused <= 8


async def test_only_polls_that_cannot_connect_halt_too(cut: Any, vendor: Any, tmp_path: Path) -> None:
    """All is submitted when the line is cut; the tasks are left to the next run, which fetches them."""
    vendor.script["record-info"].insert(0, vendor.script["record-info"][0])
    client, line = cut(1.5, 1e6, submits=100)
    async with Journal(tmp_path / "run.sqlite3", clock=vendor.clock) as journal:
        outcomes, halt = await halted(client, URLS[:8], journal=journal, patience=30.0, timeout=10.0)
        assert isinstance(halt, RequestNotSent)
        assert outcomes == []
        assert await journal.counts() == {JobState.SUBMITTED: 8}
        line.ends_at = 0.0
        assert len(await collect(client, URLS[:8], journal=journal)) == 8
    assert vendor.count("generate") == 8


async def test_a_pause_can_be_seen(cut: Any) -> None:
    """Progress names the reason and the seconds left, and nothing once the service is back."""
    client, _ = cut(10.0, 60.0)
    seen: list[BatchProgress] = []
    await collect(client, URLS[:60], on_progress=seen.append)
    paused = [progress for progress in seen if progress.pause_reason]
    assert paused[0].pause_reason == "The API at http://127.0.0.1:1 could not be reached: connection refused"
    assert 0 < max(progress.pause_left_s for progress in paused) <= 15.0
    assert (seen[-1].pause_reason, seen[-1].pause_left_s) == ("", 0.0)


async def test_an_upload_host_that_cannot_be_reached_halts(
    client: FluxClient, transport: Any, tmp_path: Path
) -> None:
    """Files cannot be uploaded: the batch halts within 30 s, no file has failed."""
    transport.script["file-stream-upload"] = [NotSent("connection refused")]
    files = []
    for number in range(40):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (number + 1, 1)).save(file)
        files.append(LocalImage(path=str(file)))
    began = client.session.clock.monotonic()
    async with Journal(clock=client.session.clock) as journal:
        outcomes, halt = await halted(client, files, journal=journal)
        assert await journal.counts() == {JobState.PENDING: 40}
    assert outcomes == []
    assert isinstance(halt, RequestNotSent)
    assert "upload host" in str(halt)
    assert client.session.clock.monotonic() - began <= 30.0
    assert transport.count("file-stream-upload") < 80


# --- every request is refused ------------------------------------------------------------------------------


async def test_a_long_retry_after_is_one_pause_for_all(client: FluxClient, vendor: Any, make: Any) -> None:
    """Retry-After of 300 s: no submit for so long, and no image fails."""
    task, numbers = vendor.script["generate"][0], iter(range(1000))
    vendor.script["generate"] = [
        lambda request: (
            make.answer(None, 429, msg="later", **{"retry-after": "300"})
            if next(numbers) == 20
            else task(request)
        )
    ]
    outcomes = await collect(client, URLS[:60])
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    posts = [at for at, request in vendor.seen if request.method == "POST"]
    assert max(b - a for a, b in pairwise(posts)) >= 300.0
    assert vendor.count("generate") == 61


@pytest.mark.parametrize(
    ("code", "retry_after", "kind"), [(429, "3600", RateLimitedError), (455, "", MaintenanceError)]
)
async def test_a_service_that_stays_unavailable_halts(
    client: FluxClient, vendor: Any, make: Any, code: int, retry_after: str, kind: type, tmp_path: Path
) -> None:
    """The run waits for the patience at most; tasks in flight finish, the rest stays pending."""
    task, numbers = vendor.script["generate"][0], iter(range(1000))
    away = make.answer(None, code, msg="later", **{"retry-after": retry_after})
    vendor.script["generate"] = [lambda request: away if next(numbers) >= 20 else task(request)]
    began = client.session.clock.monotonic()
    async with Journal(tmp_path / "run.sqlite3", clock=client.session.clock) as journal:
        outcomes, halt = await halted(client, URLS, journal=journal, patience=300.0)
        assert isinstance(halt, kind)
        assert (halt.scope, halt.charge) == (Scope.STOP, Charge.NO)
        assert len(outcomes) == 20
        assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
        assert (await journal.counts())[JobState.PENDING] >= 60
    assert client.session.clock.monotonic() - began <= 300.0 + 90.0
    assert not any(isinstance(outcome, Failed) for outcome in outcomes)


async def test_a_halt_ends_a_pause_at_once(client: FluxClient, vendor: Any, make: Any) -> None:
    """stop() during a pause of 300 s does not wait for its end."""
    vendor.script["generate"] = [make.answer(None, 429, msg="later", **{"retry-after": "300"})]
    began = client.session.clock.monotonic()
    async with run_batch(client, URLS[:5]) as batch:

        async def stop() -> None:
            await client.session.clock.sleep(30.0)
            batch.stop()

        stopping = client.session.background.start(stop())
        assert [outcome async for outcome in batch] == []
        await stopping
    assert client.session.clock.monotonic() - began < 40.0
