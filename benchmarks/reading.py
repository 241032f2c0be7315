"""How soon a long list is submitted, how fast it is read, and how much memory it takes.

Each list is run in a process of its own, by what ``flux-async remove-text --from`` runs, against a transport
that answers at once. The budget is one image: the run submits it, is halted, reads the list to its end into
the journal, and writes results.jsonl and the report.

- *first submit*: seconds from the opening of the list to the first POST.
- *rows a second*: reading, checking and adding to the journal, submits beside it included.
- *floor*: rows a second of what cannot be spared: the csv module, a digest, JSON, and a row in SQLite.

With ``--long``, exits 1 where the first submit of the longest list takes more than 1.5 s or rows are read at
less than 20,000 a second. Exits 1 where a list takes more than 100 MB, in the short form too.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import attrs

from flux_async import FluxClient, Limits, PollPolicy
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.cli.credits import Spending
from flux_async.cli.display import MessageConsole, RunDisplay
from flux_async.cli.input_reader import InputReader
from flux_async.cli.inputs import gather_inputs
from flux_async.cli.run_command import RunCommand
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption
from flux_async.cli.terminal import Output
from flux_async.transport import Answered, FileStream, SendResult
from harness.report import exit_code, introduce, parser

MOST_MB, MOST_S, LEAST_ROWS = 100.0, 1.5, 20_000.0
CHUNK = 500


@attrs.define
class Instant:
    """A transport whose tasks are done at the first poll; notes when the first submit came."""

    submitted_at: float | None = None
    body: str = ""

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:  # noqa: ARG002 - a Protocol
        """Answer a request."""
        await asyncio.sleep(0)
        data: object = 1e6
        if request.method == "POST":
            self.submitted_at = self.submitted_at or time.perf_counter()
            self.body = request.body.decode()
            data = {"taskId": "1" * 32}
        elif "taskId" in request.query:
            response = {"resultImageUrl": "https://files.example/1.jpg"}
            task_id = request.query["taskId"]
            data = {"taskId": task_id, "paramJson": self.body, "successFlag": 1, "response": response}
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        return Answered(WireResponse(status=200, headers={}, body=body))

    def fetch(self, url: str, **_: object) -> AbstractAsyncContextManager[FileStream]:
        """Not wanted."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing to close."""


async def work(path: str, folder: Path) -> dict[str, float]:
    """Run a list and return its figures."""
    vendor, begun, read_at = Instant(), time.perf_counter(), 0.0
    inputs = gather_inputs([], [path])
    limits, polling = Limits(submits=1000, window_s=0.01), PollPolicy(first_s=0.0, interval_s=0.01)

    async def select(reader: InputReader, _: Spending) -> None:
        nonlocal read_at
        await reader.read(inputs)
        read_at = time.perf_counter()

    console = MessageConsole()
    console.quiet = True
    await RunCommand(
        options=RunOptions(folder=folder, limits=limits, max_credits=5.0, download=False, report=True),
        select=select,
        make_client=lambda: FluxClient(
            "k", "http://127.0.0.1:1", transport=vendor, limits=limits, polling=polling
        ),
        display=RunDisplay(output=Output(), prints_results=False, console=console),
        interruption=Interruption(),
    ).run()
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "first_s": (vendor.submitted_at or float("inf")) - begun,
        "read_s": read_at - begun,
        "total_s": time.perf_counter() - begun,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
    }


def floor(path: str, folder: Path) -> float:
    """Return the rows a second of the least work there is."""
    begun, count = time.perf_counter(), 0
    connection = sqlite3.connect(folder / "floor.sqlite3", isolation_level=None)
    connection.execute("CREATE TABLE job (number INTEGER PRIMARY KEY, key TEXT UNIQUE, request TEXT)")
    with Path(path).open(encoding="utf-8", newline="") as file:
        for count, (url, _) in enumerate(csv.reader(file), start=1):
            request = json.dumps({"prompt": "p", "inputImage": url})
            key = hashlib.sha256(request.encode()).hexdigest()
            if count % CHUNK == 1:
                connection.execute("BEGIN")
            connection.execute("INSERT OR IGNORE INTO job (key, request) VALUES (?, ?)", (key, request))
            if count % CHUNK == 0:
                connection.execute("COMMIT")
    connection.close()
    return count / (time.perf_counter() - begun)


def measure(rows: int) -> dict[str, float]:
    """Write a list, run it in a child, and return its figures."""
    with tempfile.TemporaryDirectory(prefix="reading-") as name:
        folder = Path(name)
        path = folder / "list.csv"
        with path.open("w", encoding="utf-8") as file:
            file.write("url,key\n")
            file.writelines(f"https://pictures.example/of/a/customer/{n}.jpg,\n" for n in range(rows))
        command = [sys.executable, __file__, "--work", str(path), str(folder / "out")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
        written = sum(1 for _ in (folder / "out" / "results.jsonl").open(encoding="utf-8"))
        if written != rows:
            raise SystemExit(f"reading: {written} results of {rows} rows")
        figures: dict[str, float] = json.loads(done.stdout)
        return figures | {"floor": floor(str(path), folder)}


def main() -> int:
    """Measure, print, judge."""
    asked = parser(__doc__, short="up to 20,000 rows", long="up to 1,000,000 rows")
    asked.add_argument("--work", nargs=2, metavar=("LIST", "FOLDER"), help=SUPPRESS)
    options = asked.parse_args()
    if options.work:
        print(json.dumps(asyncio.run(work(options.work[0], Path(options.work[1])))))
        return 0
    introduce("one round")
    title = ("first submit, s", "rows a second", "of the floor", "with results, s", "peak MB")
    print(f"{'rows':>10}" + "".join(f"{name:>17}" for name in title))
    good = small = True
    for rows in (100, 200_000, 1_000_000) if options.long else (100, 20_000):
        figures = measure(rows)
        rate = rows / figures["read_s"]
        print(
            f"{rows:>10,}{figures['first_s']:>17.2f}{rate:>17,.0f}{rate / figures['floor']:>17.2f}"
            f"{figures['total_s']:>17.1f}{figures['peak_mb']:>17.1f}",
            flush=True,
        )
        small = small and figures["peak_mb"] < MOST_MB
        good = figures["first_s"] < MOST_S and rate >= LEAST_ROWS
    print(f"limits: {MOST_S:g} s, {LEAST_ROWS:,.0f} rows a second, {MOST_MB:g} MB")
    return exit_code(good=good, long=options.long) if small else 1


if __name__ == "__main__":
    raise SystemExit(main())
