"""Measures whether a batch uses the account's limit, and keeps it, also across restarts of its process.

The sandbox counts exactly: 20 submits in any sliding window, all others answered 429. A first batch runs
through; a second one is killed and resumed ten times. Quota use is measured between neighbouring submits, the
gaps in which no process ran left out. Then three processes, each with a journal of its own, share the limit
by ``RedisRateLimiter`` and a Redis server, which is started here. In the long form it exits 1 where more than
1 % of the submits are answered 429, or less than 95 % of the quota is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import tempfile
from argparse import SUPPRESS
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from flux_async import FluxClient, Limits, PollPolicy, RedisRateLimiter
from flux_async.batch.runner import run_batch
from harness.processes import child, first_line, free_port, read_ledger, sandbox
from harness.report import exit_code, introduce, parser

MOST_429 = 0.01
LEAST_USE = 0.95
SUBMITS, WINDOW = 20, 10.0
LATENCY = 0.4
"""Vendor seconds from a submit to its reply."""
RESTARTS = 10
PROCESSES = 3


async def work(url: str, journal: str, jobs: int, speed: float, redis: str) -> None:
    """Run the batch, or resume it; ``redis`` is the address of a shared limiter, or empty."""
    limits = Limits(submits=SUBMITS, window_s=WINDOW / speed)
    polling = PollPolicy(first_s=10.0 / speed, interval_s=4.0 / speed)
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(RedisRateLimiter(redis, limits=limits)) if redis else None
        made = FluxClient("test", url, limits=limits, polling=polling, timeout=60.0, rate_limiter=shared)
        client = await stack.enter_async_context(made)
        images = (f"https://pictures.example/{Path(journal).stem}-{n}.jpg" for n in range(jobs))
        async with run_batch(client, images, journal=journal) as batch:
            print("running", flush=True)
            async for _ in batch:
                pass


@attrs.frozen(kw_only=True)
class Use:
    """What one batch made of its quota. Gaps are in windows."""

    submits: int
    refused: int
    restarts: int
    most_in_window: int
    use: float
    longest_restart: float


def measure(jobs: int, restarts: int, speed: float, folder: Path) -> Use:
    """Run a batch on a sandbox of its own and read the ledger."""
    lifetime = jobs / (restarts + 1) * WINDOW / speed / SUBMITS
    with sandbox(speed=speed, credits=jobs * 20, latency=LATENCY) as url:
        command = (__file__, "--work", url, folder / "journal.sqlite3", jobs, speed, "")
        for left in range(restarts, -1, -1):
            with child(*command) as worker:
                if first_line(worker) != "running":
                    raise SystemExit("limiter: the worker did not start")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(lifetime if left else 600.0)
                if worker.returncode:
                    raise SystemExit(f"limiter: the worker ended with exit code {worker.returncode}")
                if left:
                    worker.kill()
        return read(read_ledger(url), restarts)


def measure_shared(jobs: int, speed: float, folder: Path) -> Use:
    """Run three batches at once, which share one limiter on a Redis server."""
    port = free_port()
    server = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    latency = {"speed": speed, "credits": jobs * 20, "latency": LATENCY}
    with subprocess.Popen(server, stdout=subprocess.DEVNULL) as redis, sandbox(**latency) as url:
        try:
            with contextlib.ExitStack() as stack:
                for number in range(PROCESSES):
                    each = (jobs // PROCESSES, speed, f"redis://127.0.0.1:{port}/0")
                    command = (__file__, "--work", url, folder / f"{number}.sqlite3", *each)
                    worker = stack.enter_context(child(*command))
                    stack.callback(worker.wait, 600.0)
        finally:
            redis.terminate()
        return read(read_ledger(url), 0)


def read(ledger: dict[str, Any], restarts: int) -> Use:
    """Make the figures from the ledger; the longest gaps are those of the restarts."""
    times = sorted(task["createdAt"] for task in ledger["tasks"])
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    alive = gaps[: len(gaps) - restarts]
    most = max(sum(at <= other < at + WINDOW for other in times) for at in times)
    return Use(
        submits=ledger["submits"],
        refused=ledger["refused"].get("429", 0),
        restarts=restarts,
        most_in_window=most,
        use=len(alive) * WINDOW / SUBMITS / sum(alive),
        longest_restart=gaps[-1] / WINDOW if restarts else 0.0,
    )


def main() -> int:
    """Measure and print."""
    asked = parser(__doc__, short="20 in 4 s, 100 submits", long="the real 20 in 10 s, 200 submits")
    asked.add_argument("--work", nargs=5, metavar=("URL", "JOURNAL", "JOBS", "SPEED", "REDIS"), help=SUPPRESS)
    options = asked.parse_args()
    if options.work:
        url, journal, jobs, speed, redis = options.work
        asyncio.run(work(url, journal, int(jobs), float(speed), redis))
        return 0
    speed, jobs = (1.0, 200) if options.long else (2.5, 100)
    introduce(f"one round; {SUBMITS} submits in any {WINDOW / speed:g} s")
    head = f"{'processes':>10}{'restarts':>10}{'submits':>9}{'429':>6}{'most in window':>16}"
    print(f"{head}{'quota use':>11}{'longest restart':>17}")
    good, runs = True, [(partial(measure, jobs, restarts, speed), restarts, 1) for restarts in (0, RESTARTS)]
    if shutil.which("redis-server") is None:
        print("three processes are left out: redis-server is not installed")
    else:
        runs.append((partial(measure_shared, jobs, speed), 0, PROCESSES))
    for run, restarts, processes in runs:
        with tempfile.TemporaryDirectory(prefix="limiter-") as folder:
            use = run(Path(folder))
        gap = f"{use.longest_restart:.2f} windows" if restarts else "-"
        row = f"{processes:>10}{use.restarts:>10}{use.submits:>9}{use.refused:>6}{use.most_in_window:>16}"
        print(f"{row}{use.use:>11.1%}{gap:>17}")
        good = good and use.refused <= MOST_429 * use.submits and use.use >= LEAST_USE
    print(f"limits: 429 <= {MOST_429:.0%} of submits, quota use >= {LEAST_USE:.0%}")
    return exit_code(good=good, long=options.long)


if __name__ == "__main__":
    raise SystemExit(main())
