"""How soon is the end of a task seen, and for how many looks: polling, told by callbacks, and told nothing?

Three batches at the same time, each with a sandbox and a process of its own: one that only polls, one whose
callbacks come, and one whose callbacks are all lost. The lag of a task is the time from its end by the
vendor's clock to its commit in the journal, in vendor seconds. Exits 1 where the median lag with callbacks is
over 5 % of that of polling, a task costs more than 1.2 looks with them, or the lag without any callback is
more than 10 % over that of polling.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import select
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flux_async import CallbackEndpoint, FluxClient, Journal, Limits, PollPolicy, run_batch
from flux_async.cli.listening import Place, bind, listening

KEY = "benchmark"
STOP_S = 10.0
MODES = {"polling": "", "callbacks": "", "all callbacks lost": "callback-missing"}
MOST_LAG = 0.05
MOST_LOOKS = 1.2
MOST_LAG_LOST = 1.10


# --- the worker -------------------------------------------------------------------------------------------


async def work(url: str, path: str, jobs: int, port: int, speed: float) -> None:
    """Run one batch to its end, at the vendor's pace."""
    standard = PollPolicy(interval_s=3.0)  # the API page's; a learned rhythm would blur the comparison
    polling = PollPolicy(
        interval_s=3.0 / speed,
        slow_after_s=standard.slow_after_s / speed,
        cap_s=standard.cap_s / speed,
        sweep_s=standard.sweep_s / speed,
        callback_within_s=standard.callback_within_s / speed,
    )
    limits = Limits(submits=20, window_s=10.0 / speed)
    endpoint = CallbackEndpoint(f"http://127.0.0.1:{port}/", KEY) if port else None
    async with FluxClient("test", url, limits=limits, polling=polling) as client, Journal(path) as journal:
        images = [f"https://pictures.example/{n}.jpg" for n in range(jobs)]
        async with contextlib.AsyncExitStack() as stack:
            if endpoint is not None:
                listener = bind(Place("127.0.0.1", port))
                await stack.enter_async_context(listening(listener, endpoint, journal, client))
            async with run_batch(client, images, journal=journal, callbacks=endpoint) as batch:
                async for _ in batch:
                    pass


# --- the parent -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python child and end it, by its pid, whatever happens."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def start_sandbox(stack: contextlib.ExitStack, faults: str, speed: float) -> str:
    """Start a sandbox and return its address."""
    options = (
        "--pictures",
        "none",
        "--webhook-key",
        KEY,
        "--speed",
        str(speed),
        "--credits",
        "1000000",
        "--seed",
        "1",
    )
    process = stack.enter_context(
        child("-m", "flux_async.sandbox", "--port", "0", *options, "--faults", faults)
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 30.0)
    line = process.stdout.readline().strip() if ready else ""
    return line.removeprefix("sandbox ready at ")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def measure(url: str, path: Path) -> dict[str, float]:
    """Hold the journal against the vendor's own times."""
    request = urllib.request.Request(f"{url}/__sandbox/ledger", headers={"User-Agent": "benchmark"})
    before = time.time()
    with urllib.request.urlopen(request, timeout=30) as answer:
        ledger: dict[str, Any] = json.load(answer)
    here, clock = (before + time.time()) / 2, ledger["clock"]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        seen = dict(connection.execute("SELECT task_id, generated_at FROM job").fetchall())
    lags = []
    for task in ledger["tasks"]:
        seen_at = clock["now"] + (seen[task["taskId"]] - here) * clock["speed"]
        lags.append(seen_at - task["endedAt"])
    cuts = statistics.quantiles(lags, n=20)
    return {
        "tasks": len(lags),
        "median lag, s": statistics.median(lags),
        "mean lag, s": statistics.fmean(lags),
        "p95 lag, s": cuts[18],
        "looks a task": ledger["polls"] / len(lags),
    }


def run(jobs: int, speed: float, folder: Path) -> dict[str, dict[str, float]]:
    """Run the three batches beside each other."""
    figures = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for number, (mode, faults) in enumerate(MODES.items()):
            url = start_sandbox(stack, faults, speed)
            path = folder / f"{number}.sqlite3"
            port = free_port() if mode != "polling" else 0
            order = [__file__, "--work", url, str(path), "--port", str(port)]
            worker = stack.enter_context(child(*order, "--jobs", str(jobs), "--speed", str(speed)))
            workers[mode] = (worker, url, path)
        for mode, (worker, url, path) in workers.items():
            if worker.wait(600) != 0:
                raise SystemExit(f"callbacks: the batch {mode!r} failed")
            figures[mode] = measure(url, path)
    return figures


def main() -> int:
    """Print the figures and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--short", action="store_true", help="300 tasks at four times the vendor's speed (the default)"
    )
    form.add_argument("--long", action="store_true", help="600 tasks at the vendor's own speed: five minutes")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--speed", type=float)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=2, metavar=("URL", "JOURNAL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    jobs = options.jobs or (600 if options.long else 300)
    speed = options.speed or (1.0 if options.long else 4.0)
    if options.work:
        asyncio.run(work(*options.work, jobs, options.port, speed))
        return 0
    with tempfile.TemporaryDirectory(prefix="callbacks-") as folder:
        figures = run(jobs, speed, Path(folder))
    print(f"{'':<16}" + "".join(f"{mode:>20}" for mode in figures))
    for name in figures["polling"]:
        print(f"{name:<16}" + "".join(f"{figures[mode][name]:>20,.3f}" for mode in figures))
    polling, told, lost = (figures[mode] for mode in MODES)
    ratio = told["median lag, s"] / polling["median lag, s"]
    ratio_lost = lost["mean lag, s"] / polling["mean lag, s"]
    print(f"median lag, told / polling: {ratio:.3f}; mean lag, all lost / polling: {ratio_lost:.3f}")
    good = ratio <= MOST_LAG and told["looks a task"] <= MOST_LOOKS and ratio_lost <= MOST_LAG_LOST
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
