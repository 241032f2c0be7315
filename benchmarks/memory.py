"""Does a longer batch need more memory? Peak of a short one against a long one with the same bound in flight.

Each batch runs in a process of its own, on a journal file, with inputs from a generator and a transport that
answers at once. Exits 1 where the long one peaks more than 40 MB above the short one.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from contextlib import AbstractAsyncContextManager

import attrs

from flux_async import FluxClient, Limits, PollPolicy
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.batch.runner import run_batch
from flux_async.transport import Answered, FileStream, SendResult
from harness.report import introduce, parser

GROWTH_MB = 40.0
IN_FLIGHT = 100
FEW = 1_000


@attrs.define
class Instant:
    """A transport whose tasks are done at the first poll."""

    tasks: int = 0

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:  # noqa: ARG002 - a Protocol
        """Make a task, or say that it is done."""
        await asyncio.sleep(0)
        data: dict[str, object]
        if request.method == "POST":
            self.tasks += 1
            data = {"taskId": f"{self.tasks:032x}"}
        else:
            task_id = request.query["taskId"]
            url = f"https://files.example/{task_id}.jpg"
            data = {"taskId": task_id, "successFlag": 1, "response": {"resultImageUrl": url}}
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        return Answered(WireResponse(status=200, headers={}, body=body))

    def fetch(self, url: str, **_: object) -> AbstractAsyncContextManager[FileStream]:
        """Not wanted."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing to close."""


async def work(jobs: int, journal: str) -> int:
    """Run a batch; return the number of its outcomes."""
    limits = Limits(submits=1_000_000, window_s=0.01, in_flight=IN_FLIGHT)
    polling = PollPolicy(first_s=0.0, interval_s=0.01)
    client = FluxClient("k", "http://127.0.0.1:1", transport=Instant(), limits=limits, polling=polling)
    images = (f"https://pictures.example/a/folder/of/many/{n}.jpg" for n in range(jobs))
    outcomes = 0
    async with client, run_batch(client, images, journal=journal) as batch:
        async for _ in batch:
            outcomes += 1
    return outcomes


def report(jobs: int, journal: str) -> None:
    """Run a batch in this process and print its figures as JSON."""
    begun = time.perf_counter()
    outcomes = asyncio.run(work(jobs, journal))
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    figures = {
        "outcomes": outcomes,
        "peak_mb": used.ru_maxrss * unit / 1e6,
        "seconds": time.perf_counter() - begun,
        "cpu_ms": (used.ru_utime + used.ru_stime) / jobs * 1000,
    }
    print(json.dumps(figures))


def measure(jobs: int, *, on_disk: bool = True) -> dict[str, float]:
    """Run a batch in a child and return its figures."""
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        journal = f"{folder}/journal.sqlite3" if on_disk else ":memory:"
        command = [sys.executable, __file__, "--work", str(jobs), journal]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    figures: dict[str, float] = json.loads(done.stdout)
    if figures["outcomes"] != jobs:
        raise SystemExit(f"memory: {figures['outcomes']} outcomes of {jobs} jobs")
    return figures


def main() -> int:
    """Measure and print."""
    asked = parser(__doc__, short="5,000 jobs against 1,000", long="100,000 jobs against 1,000")
    asked.add_argument("--work", nargs=2, metavar=("JOBS", "JOURNAL"), help=SUPPRESS)
    options = asked.parse_args()
    if options.work:
        report(int(options.work[0]), options.work[1])
        return 0
    many = 100_000 if options.long else 5_000
    introduce(f"one round; {IN_FLIGHT} in flight")
    print(f"{'jobs':>10}  {'journal':<10}{'peak MB':>9}{'seconds':>9}{'CPU ms/job':>12}")
    peaks: dict[tuple[int, bool], float] = {}
    for jobs, on_disk in ((FEW, True), (many, True), (FEW, False), (many, False)):
        figures = measure(jobs, on_disk=on_disk)
        peaks[jobs, on_disk] = figures["peak_mb"]
        peak, seconds, cpu = figures["peak_mb"], figures["seconds"], figures["cpu_ms"]
        where = "file" if on_disk else ":memory:"
        print(f"{jobs:>10,}  {where:<10}{peak:>9.1f}{seconds:>9.1f}{cpu:>12.2f}")
    growth = peaks[many, True] - peaks[FEW, True]
    print(f"growth with a journal on file {growth:.1f} MB, limit {GROWTH_MB:g} MB")
    return 0 if growth < GROWTH_MB else 1


if __name__ == "__main__":
    raise SystemExit(main())
