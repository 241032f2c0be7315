"""Lag and polls per task: with polling only, with callbacks, and with all callbacks lost.

Three batches at the same time, each with a sandbox and a process of its own, at the vendor's own speed and
with learned polling: one that only polls, one whose callbacks come, and one whose callbacks are all lost. The
lag of a task is the time from its end by the vendor's clock to its commit in the journal. In the
long form it exits 1 where the median lag with callbacks is over 5 % of that of polling, a task costs more
than 1.2 polls, or the mean lag without any callback is more than 10 % over that of polling. Until three
callbacks have come tasks are polled as without, so a short run shows little of the polls per task: tasks
begun after 25 s are counted separately.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import statistics
import tempfile
import time
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from flux_async import CallbackEndpoint, FluxClient, Journal, run_batch
from flux_async.cli.run_options import ListenAddress
from flux_async.cli.webhook_server import bind, listening
from harness.processes import child, free_port, read_ledger, sandbox
from harness.report import exit_code, introduce, parser

KEY = "benchmark"
MODES = {"polling": "", "callbacks": "", "all callbacks lost": "callback-missing"}
PROVEN_AFTER_S = 25.0
CLOCK_READINGS = 5
MOST_LAG = 0.05
MOST_POLLS = 1.2
MOST_LAG_LOST = 1.10


# --- the worker -------------------------------------------------------------------------------------------


async def work(url: str, path: str, jobs: int, port: int) -> None:
    """Run one batch to its end, at the vendor's rate limit."""
    endpoint = CallbackEndpoint(f"http://127.0.0.1:{port}/", KEY) if port else None
    async with FluxClient("test", url) as client, Journal(path) as journal:
        images = [f"https://pictures.example/{n}.jpg" for n in range(jobs)]
        async with contextlib.AsyncExitStack() as stack:
            if endpoint is not None:
                listener = bind(ListenAddress("127.0.0.1", port))
                await stack.enter_async_context(listening(listener, endpoint, journal, client))
            async with run_batch(client, images, journal=journal, callbacks=endpoint) as batch:
                async for _ in batch:
                    pass


# --- the parent -------------------------------------------------------------------------------------------


def read_clock(url: str) -> tuple[dict[str, Any], float]:
    """Return the sandbox's book, and when on our clock its own was read, at the latest a moment later."""
    readings = []
    for _ in range(CLOCK_READINGS):
        before = time.time()
        book = read_ledger(url)
        readings.append((time.time() - before, before, book))
    _, before, book = min(readings, key=lambda reading: reading[0])
    return book, before  # not the middle: it takes longer to write the book than to ask for it


def measure(url: str, path: Path) -> dict[str, float]:
    """Hold the journal against the vendor's own times."""
    ledger, here = read_clock(url)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        seen = dict(connection.execute("SELECT task_id, generated_at FROM job").fetchall())
    tasks = ledger["tasks"]
    lags = [ledger["clock"]["now"] + seen[task["taskId"]] - here - task["endedAt"] for task in tasks]
    proven_at = min(task["createdAt"] for task in tasks) + PROVEN_AFTER_S
    later = [task["polls"] for task in tasks if task["createdAt"] >= proven_at]
    return {
        "tasks": len(lags),
        "median lag, s": statistics.median(lags),
        "mean lag, s": statistics.fmean(lags),
        "p95 lag, s": statistics.quantiles(lags, n=20)[18],
        "polls a task": ledger["polls"] / len(lags),
        "of later tasks": statistics.fmean(later),
    }


def run(jobs: int, folder: Path) -> dict[str, dict[str, float]]:
    """Run the three batches beside each other."""
    figures = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for number, (mode, faults) in enumerate(MODES.items()):
            vendor = sandbox(webhook_key=KEY, credits=1_000_000, seed=1, faults=faults)
            url = stack.enter_context(vendor)
            path = folder / f"{number}.sqlite3"
            port = free_port() if mode != "polling" else 0
            order = [__file__, "--work", url, path, "--port", port]
            worker = stack.enter_context(child(*order, "--jobs", jobs))
            workers[mode] = (worker, url, path)
        for mode, (worker, url, path) in workers.items():
            if worker.wait(600) != 0:
                raise SystemExit(f"callbacks: the batch {mode!r} failed")
            figures[mode] = measure(url, path)
    return figures


def main() -> int:
    """Print the figures and the ratios."""
    asked = parser(__doc__, short="100 tasks", long="600 tasks: six minutes")
    asked.add_argument("--jobs", type=int)
    asked.add_argument("--port", type=int, default=0, help=SUPPRESS)
    asked.add_argument("--work", nargs=2, metavar=("URL", "JOURNAL"), help=SUPPRESS)
    options = asked.parse_args()
    jobs = options.jobs or (600 if options.long else 100)
    if options.work:
        asyncio.run(work(*options.work, jobs, options.port))
        return 0
    introduce(f"one round of {jobs} tasks in each batch, at the vendor's speed")
    with tempfile.TemporaryDirectory(prefix="callbacks-") as folder:
        figures = run(jobs, Path(folder))
    print(f"{'':<16}" + "".join(f"{mode:>20}" for mode in figures))
    for name in figures["polling"]:
        print(f"{name:<16}" + "".join(f"{figures[mode][name]:>20,.3f}" for mode in figures))
    polling, with_callbacks, lost = (figures[mode] for mode in MODES)
    ratio = with_callbacks["median lag, s"] / polling["median lag, s"]
    ratio_lost = lost["mean lag, s"] / polling["mean lag, s"]
    print(
        f"median lag, with callbacks / polling: {ratio:.3f}; mean lag, all lost / polling: {ratio_lost:.3f}"
    )
    good = ratio <= MOST_LAG and with_callbacks["polls a task"] <= MOST_POLLS and ratio_lost <= MOST_LAG_LOST
    print(f"limits: {MOST_LAG}, {MOST_POLLS} polls a task, {MOST_LAG_LOST}")
    return exit_code(good=good, long=options.long)


if __name__ == "__main__":
    raise SystemExit(main())
