"""A day of a job service in virtual time: is its memory flat? And how long does ``add`` take beside 100 jobs?

The day is 24 hours (short: 20 minutes) at 2 jobs a second through one JobService on a journal file, with
readers of results and of events; memory, descriptors and coroutines are read 24 times. The second part adds
300 jobs in real time while 100 tasks are in flight. Exits 1 where memory grows after the first of the 24
parts, or where descriptors or coroutines do; with ``--long`` also where the 95th percentile of ``add`` is
over 50 ms.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs

from flux_async import FluxClient, JobService, JobStatus, Limits, Succeeded
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.events import Settled
from flux_async.testing import VirtualClock
from flux_async.transport import Answered, FileStream, SendResult
from harness.report import introduce, parser

PARTS = 24
RATE = 2.0
GROWTH_MB = 8.0
ADDS, IN_FLIGHT = 300, 100
SLOWEST_ADD_MS = 50.0


@attrs.define
class Vendor:
    """A transport whose tasks take about ten seconds of the given clock."""

    now: Callable[[], float]
    longest_s: float = 15.0
    made: int = 0
    rng: random.Random = attrs.field(factory=lambda: random.Random(1))
    ends: dict[str, float] = attrs.field(factory=dict)

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:  # noqa: ARG002 - a Protocol
        """Make a task, report one, or the balance."""
        await asyncio.sleep(0)
        data: object
        if request.method == "POST":
            self.made += 1
            task_id = f"{self.made:032x}"
            self.ends[task_id] = self.now() + self.rng.uniform(5.0, self.longest_s)
            data = {"taskId": task_id}
        elif "taskId" in request.query:
            task_id = request.query["taskId"]
            is_over = self.ends.get(task_id, 0.0) <= self.now()
            if is_over:
                self.ends.pop(task_id, None)
            url = {"resultImageUrl": f"https://files.example/{task_id}.jpg"}
            data = {"taskId": task_id, "successFlag": int(is_over), "response": url if is_over else None}
        else:
            data = 1_000_000.0 - 5.0 * self.made
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        return Answered(WireResponse(status=200, headers={}, body=body))

    def fetch(self, url: str, **_: object) -> AbstractAsyncContextManager[FileStream]:
        """Not wanted."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing to close."""


@attrs.frozen
class Reading:
    """What a process needs at one moment."""

    jobs: int
    rss_mb: float
    descriptors: int
    coroutines: int

    @classmethod
    def take(cls, jobs: int) -> Reading:
        """Read the present values."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        rss_mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return cls(jobs, rss_mb, sum(1 for _ in Path("/proc/self/fd").iterdir()), len(asyncio.all_tasks()))


def fast_folder() -> str | None:
    """Return a folder in memory, if there is one: a million commits to a disk would take an hour."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


async def a_day(hours: float, journal: str) -> list[Reading]:
    """Add jobs at the rate of the day and read the process after each part."""
    clock = VirtualClock()
    vendor, readings, answered = Vendor(clock.monotonic), [], 0
    client = FluxClient("k", "http://127.0.0.1:1", transport=vendor, clock=clock, limits=Limits(submits=25))
    jobs = round(hours * 3600.0 * RATE)

    async def read_result(key: str) -> None:
        nonlocal answered
        outcome = await service.result(key, timeout=600.0)
        answered += isinstance(outcome, Succeeded)

    async def read_events(key: str) -> None:
        nonlocal answered
        seen = [event async for event in service.events(key)]
        answered += isinstance(seen[-1], Settled)

    async with JobService(client, journal=journal) as service, asyncio.TaskGroup() as group:
        for number in range(jobs):
            key = await service.add(f"https://pictures.example/of/many/{number}.jpg", priority=number % 3)
            if number % 10 == 0:
                group.create_task(read_result(key))
            elif number % 10 == 1:
                group.create_task(read_events(key))
            await clock.sleep(1.0 / RATE)
            if (number + 1) % (jobs // PARTS) == 0:
                clock.slept.clear()
                readings.append(Reading.take(number + 1))
                show(readings[-1], service.snapshot().waiting)
        last = key
        while isinstance(await service.get(last), JobStatus):
            await clock.sleep(1.0)
    wanted = 2 * len(range(0, jobs, 10))
    if vendor.made < jobs or answered != wanted:
        raise SystemExit(f"service: {vendor.made} of {jobs} submits, {answered} of {wanted} answers")
    return readings


def show(reading: Reading, waiting: int) -> None:
    """Print a reading."""
    print(
        f"{reading.jobs:>10,}{reading.rss_mb:>9.1f}{reading.descriptors:>13}{reading.coroutines:>12}"
        f"{waiting:>9}",
        flush=True,
    )


@asynccontextmanager
async def busy_service(journal: str) -> AsyncIterator[JobService]:
    """Open a service with tasks in flight, in real time."""
    limits = Limits(submits=1000, window_s=1.0, in_flight=IN_FLIGHT, concurrent_submits=20)
    vendor = Vendor(time.monotonic, longest_s=10.0)
    client = FluxClient("k", "http://127.0.0.1:1", transport=vendor, limits=limits)
    async with JobService(client, journal=journal) as service:
        for number in range(2 * IN_FLIGHT):
            await service.add(f"https://pictures.example/first/{number}.jpg")
        while service.snapshot().client.tasks_in_flight < IN_FLIGHT:  # noqa: ASYNC110 - it is a figure
            await asyncio.sleep(0.01)
        yield service


async def adds(journal: str) -> list[float]:
    """Return the milliseconds that each ``add`` took beside tasks in flight."""
    taken = []
    async with busy_service(journal) as service:
        for number in range(ADDS):
            begun = time.perf_counter()
            await service.add(f"https://pictures.example/later/{number}.jpg")
            taken.append((time.perf_counter() - begun) * 1000.0)
            await asyncio.sleep(0.01)
    return taken


def main() -> int:
    """Measure and print."""
    options = parser(__doc__, short="20 minutes", long="24 hours").parse_args()
    introduce(f"one round; {RATE:g} jobs a second")
    with tempfile.TemporaryDirectory(prefix="service-", dir=fast_folder()) as folder:
        print(f"{'jobs':>10}{'RSS MB':>9}{'descriptors':>13}{'coroutines':>12}{'waiting':>9}")
        readings = asyncio.run(a_day(24.0 if options.long else 1.0 / 3.0, f"{folder}/day.sqlite3"))
    first, last = readings[0], readings[-1]
    growth = last.rss_mb - first.rss_mb
    print(f"growth after the first of {PARTS} parts {growth:.1f} MB, limit {GROWTH_MB:g} MB")
    more = last.descriptors - first.descriptors
    print(f"descriptors {more:+d}, coroutines {last.coroutines - first.coroutines:+d}")
    with tempfile.TemporaryDirectory(prefix="service-") as folder:
        taken = asyncio.run(adds(f"{folder}/adds.sqlite3"))
    p95 = statistics.quantiles(taken, n=20)[-1]
    print(f"add beside {IN_FLIGHT} in flight: median {statistics.median(taken):.1f} ms, p95 {p95:.1f} ms")
    is_slow = options.long and p95 > SLOWEST_ADD_MS
    return int(growth > GROWTH_MB or more > 0 or last.coroutines > 2 * first.coroutines or is_slow)


if __name__ == "__main__":
    raise SystemExit(main())
