"""Compares the cost of a batch with this package and without it.

Two parts, each of the clients in a process of its own, against a server in another (``harness/vendor.py``):

**cost**: 2,000 tasks, 100 in flight, on an account whose rate limit does not bind. The API page's own Python
sample in 100 threads; its ``Promise.all`` batch, in asyncio, with chunks of 100; ``asyncio.gather`` with a
semaphore, with httpx and, to measure aiohttp alone, with aiohttp; aiometer; all with the page's poll
every 3 s. Then ``run_batch`` with a journal on a file, through each transport. Clients take turns, and begin
in another order in every round.
``cpu`` is the CPU time of the whole client process, imports and journal included, per finished task;
``start`` is the part before the first task (imports, a client made), which is most of it for a short batch;
``makespan`` is a multiple of the least possible one, with all slots busy all the time: ``tasks x mean
generation time / slots``; the server counts ``requests`` and ``connections``. No client downloads an image.

**rate**: as many tasks at the vendor's 20 submits in 10 s, which aiometer can keep as well: all clients and
rounds at the same time, as none of them has much to do, and in the long form at the real speed. The makespan
is compared with ``tasks / rate + mean generation time``, and with the least that was possible with these
tasks, as the last of them may take long. Clients without a rate limiter are answered 429 and lose tasks, so
they are left out.

Time is scaled: everything the vendor measures is shorter by ``--speed``, and so is every client's poll
interval, our policy and limits, and the 0.1 s that a request travels. Not scaled are our first guess of how
long a task takes (8 s), the shortest gap between our polls (0.3 s) and their ticks (0.1 s), the width of our
bins at young ages, and the vendor's times, which are cut to the second: at high speed ours is at a
disadvantage. There is no TLS, which favours clients that open many connections. httpx runs as ``pip install
httpx`` leaves it, without sniffio (which would save it a failing search at every lock); the rows "with
sniffio" have it.

In the long form it exits 1 where ours takes more than 0.6 (httpx), or 0.4 (aiohttp), of the CPU per task of
``gather`` and a semaphore over httpx, start included, or more than 1.02 times the least makespan at the
vendor's rate limit. The short form compares the CPU without the start, and only reports.
With aiohttp the floor is not far below: ``gather`` over aiohttp has a row, without journal and learning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from harness.charts import Bar, draw_bars
from harness.processes import child, read_json, read_ledger, serving
from harness.report import exit_code, introduce, parser, spread

HERE = Path(__file__).parent / "harness"
LIBRARIES = ("httpx", "httpcore", "anyio", "sniffio", "httpx2", "aiohttp", "requests", "aiometer")
SUBMITS, WINDOW_S = 20, 10.0
LONGEST_S = 3_600.0


@attrs.frozen
class Client:
    """One of those that are compared.

    Attributes:
        title: What it is called in the table.
        name: What it is called in ``batch_clients.py``.
        sniffio: Whether it finds sniffio.
        most: The share of the CPU of ``BASE`` that it may take, where there is a limit.
    """

    title: str
    name: str
    sniffio: bool = False
    most: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this package."""
        return self.name.startswith("ours")


BASE = Client("gather + semaphore, httpx", "gather")
COST = (
    Client("page's sample, threads", "page"),
    Client("page's chunks, httpx", "chunks"),
    BASE,
    Client("  with sniffio", "gather", sniffio=True),
    Client("gather + semaphore, aiohttp", "gather-aiohttp"),
    Client("aiometer, httpx", "aiometer"),
    Client("run_batch, httpx", "ours-httpx", most=0.6),
    Client("  with sniffio", "ours-httpx", sniffio=True),
    Client("run_batch, httpx2", "ours-httpx2"),
    Client("run_batch, aiohttp", "ours-aiohttp", most=0.4),
)
RATE_LIMITED = (
    Client("aiometer, httpx", "aiometer"),
    Client("run_batch, httpx", "ours-httpx"),
    Client("run_batch, aiohttp", "ours-aiohttp"),
)
MOST_MAKESPAN = 1.02
MOST_BUSY = 1.4
"""Where the makespan of ``BASE`` is longer, its polls came late; on a quiet machine it is 1.25."""


# --- one run ----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Size:
    """What is asked of every client."""

    tasks: int
    slots: int
    speed: float
    trip_s: float

    @property
    def per_s(self) -> float:
        """The submits the account takes in a real second, where it is paced."""
        return SUBMITS / WINDOW_S * self.speed


@attrs.frozen(kw_only=True)
class Run:
    """What one run took: seconds are real ones.

    Attributes:
        finished: Tasks whose result the client has received.
        start_s: CPU before the first task, part of ``cpu_s``.
        refused: Submits that were answered 429.
        generation_s: Generation times of its tasks in the order of their submits, by the server's clock.
        seconds: From its first to its last instruction, imports left out.
    """

    finished: int
    refused: int
    requests: int
    connections: int
    generation_s: Sequence[float]
    seconds: float
    cpu_s: float
    start_s: float
    peak_mb: float

    @property
    def cpu_ms(self) -> float:
        """CPU of a finished task, with its share of the start."""
        return self.cpu_s / max(1, self.finished) * 1000

    @property
    def task_ms(self) -> float:
        """CPU of a finished task, without the start."""
        return (self.cpu_s - self.start_s) / max(1, self.finished) * 1000

    @property
    def mean_s(self) -> float:
        """Mean generation time."""
        return statistics.fmean(self.generation_s)

    def makespan(self, size: Size) -> float:
        """Return how much longer it took than with all slots busy all the time."""
        return self.seconds * size.slots / (size.tasks * self.mean_s)

    def least_s(self, per_s: float) -> float:
        """Return the shortest possible makespan for these tasks at that rate."""
        return max(number / per_s + seconds for number, seconds in enumerate(self.generation_s))


def run(client: Client, size: Size, *, seed: int, paced: bool) -> Run:
    """Run one client against a server of its own; with the same seed tasks take the same time."""
    rate = ("--submits", SUBMITS) if paced else ()
    order = ("--speed", size.speed, "--seed", seed, "--trip", size.trip_s, *rate)
    with (
        serving(HERE / "vendor.py", *order) as url,
        tempfile.TemporaryDirectory(prefix="batch-") as folder,
    ):
        flags = ["--paced"] * paced + ["--sniffio"] * client.sniffio
        figures = _told(
            HERE / "batch_clients.py",
            *(client.name, url, "--tasks", size.tasks, "--slots", size.slots, "--speed", size.speed),
            *("--journal", f"{folder}/journal.sqlite3", *flags),
        )
        counts, ledger = read_json(f"{url}/__counts"), read_ledger(url)
    tasks = sorted((task for task in ledger["tasks"] if task["endedAt"]), key=lambda task: task["createdAt"])
    generation_s = [task["endedAt"] - task["createdAt"] for task in tasks]
    return Run(generation_s=generation_s, refused=ledger["refused"].get("429", 0), **counts, **figures)


def _told(*arguments: object) -> dict[str, Any]:
    """Run a client and return what it says."""
    with child(*arguments) as process:
        said, _ = process.communicate(timeout=LONGEST_S)
        if process.returncode:
            raise SystemExit(f"batch: the client {arguments[1]} failed")
    figures: dict[str, Any] = json.loads(said)
    return figures


# --- the two parts ----------------------------------------------------------------------------------------


def measure_cost(size: Size, clients: Iterable[Client], rounds: int) -> dict[Client, list[Run]]:
    """Let the clients take turns."""
    runs: dict[Client, list[Run]] = {client: [] for client in clients}
    for number in range(rounds):
        turn = list(runs)
        first = number * 2 % len(turn)
        for client in turn[first:] + turn[:first]:
            runs[client].append(run(client, size, seed=number, paced=False))
            done = runs[client][-1]
            print(f"round {number + 1}, {client.title.strip()}: {done.cpu_ms:.1f} ms", file=sys.stderr)
            if client.is_ours and done.finished != size.tasks:
                raise SystemExit(f"batch: {client.title} finished {done.finished} of {size.tasks}")
    return runs


def show_cost(size: Size, runs: dict[Client, list[Run]], *, long: bool) -> bool:
    """Print the table; say whether the limits hold: in the long form with the start, else without it."""
    print(f"{'':<27}{'CPU, ms a task':>22}{'of gather':>19}{'start, s':>10}{'without start':>19}", end="")
    print(f"{'makespan':>20}{'requests':>10}{'connections':>13}{'peak MB':>9}{'finished':>10}")
    good = True
    for client, taken in runs.items():
        pairs = list(zip(taken, runs.get(BASE, []), strict=False))
        ratios = [mine.cpu_ms / base.cpu_ms for mine, base in pairs]
        later = [mine.task_ms / base.task_ms for mine, base in pairs]
        makespans = [each.makespan(size) for each in taken]
        requests = statistics.median(each.requests / size.tasks for each in taken)
        connections = statistics.median(each.connections for each in taken)
        print(f"{client.title:<27}{spread([each.cpu_ms for each in taken], '.1f'):>22}", end="")
        print(f"{spread(ratios) if ratios else '-':>19}", end="")
        print(f"{statistics.median(each.start_s for each in taken):>10.2f}", end="")
        print(f"{spread(later) if later else '-':>19}{spread(makespans):>20}{requests:>10.2f}", end="")
        peak = max(each.peak_mb for each in taken)
        print(f"{connections:>13,.0f}{peak:>9.0f}{min(each.finished for each in taken):>10,}")
        if client.most is not None and ratios:
            good = good and statistics.median(ratios if long else later) <= client.most
    slowest = max((each.makespan(size) for each in runs.get(BASE, [])), default=0.0)
    if long and slowest > MOST_BUSY:
        print(f"{BASE.title} had a makespan of {slowest:.2f}: the server could not keep up. ", end="")
        print("A client that polls every 3 s then polls less often, and the shares of its CPU are too high")
    print("limits, CPU of gather: " + ", ".join(f"{c.title} <= {c.most:.3f}" for c in COST if c.most))
    print("start: CPU before the first task; without start: of gather without its own; ", end="")
    print(f"requests: a task's; makespan: of {size.tasks:,} x mean generation time / {size.slots}; ", end="")
    print(f"times shortened {size.speed:g} times\n")
    return good


def measure_pace(size: Size, clients: Iterable[Client], rounds: int) -> dict[Client, list[Run]]:
    """Let all run at the same time, each against a server of its own."""
    asked = list(clients)
    with ThreadPoolExecutor(max(1, len(asked) * rounds)) as threads:
        begun = {
            client: [threads.submit(run, client, size, seed=seed, paced=True) for seed in range(rounds)]
            for client in asked
        }
        return {client: [each.result() for each in futures] for client, futures in begun.items()}


def show_pace(size: Size, runs: dict[Client, list[Run]]) -> bool:
    """Print the table; say whether the limit holds."""
    print(f"{'':<27}{'makespan, s':>26}{'of N/rate + mean':>21}{'of the least':>21}", end="")
    print(f"{'requests':>10}{'429':>6}{'finished':>10}")
    good = True
    for client, taken in runs.items():
        ratios = [each.seconds / (size.tasks / size.per_s + each.mean_s) for each in taken]
        leasts = [each.seconds / each.least_s(size.per_s) for each in taken]
        print(f"{client.title:<27}{spread([each.seconds for each in taken], '.1f'):>26}", end="")
        print(f"{spread(ratios, '.3f'):>21}{spread(leasts, '.3f'):>21}", end="")
        requests = statistics.median(each.requests / size.tasks for each in taken)
        refused, finished = max(each.refused for each in taken), min(each.finished for each in taken)
        print(f"{requests:>10.2f}{refused:>6}{finished:>10,}")
        good = good and (not client.is_ours or statistics.median(ratios) <= MOST_MAKESPAN)
    print(f"{size.tasks:,} tasks at {size.per_s:g} a second, times shortened {size.speed:g} times; ", end="")
    print(f"limit for run_batch: {MOST_MAKESPAN} of N/rate + mean")
    return good


def plot(path: Path, runs: dict[Client, list[Run]]) -> None:
    """Write the CPU per finished task as bars."""
    bars = [
        Bar(name=client.title, values=[each.cpu_ms for each in taken], ours=client.is_ours, form=".1f")
        for client, taken in runs.items()
    ]
    draw_bars(path, "CPU of a finished task, milliseconds", bars)


def main() -> int:
    """Measure, print, judge."""
    options = _options()
    long = options.long
    rounds = options.rounds or (3 if long else 1)
    chosen = options.only or {client.name for client in COST}
    size = Size(
        tasks=options.tasks or (2_000 if long else 100),
        slots=options.slots or (100 if long else 50),
        speed=options.speed or (4.0 if long else 10.0),
        trip_s=options.trip,
    )
    introduce(
        f"{rounds} rounds of {size.tasks:,} tasks, {size.slots} in flight, {size.trip_s:g} s a trip; "
        "medians (lowest-highest)",
        LIBRARIES,
    )
    good = True
    if options.part != "rate":
        runs = measure_cost(size, [client for client in COST if client.name in chosen], rounds)
        good = show_cost(size, runs, long=long)
        if options.plot:
            plot(options.plot, runs)
    if options.part != "cost":
        paced = attrs.evolve(size, speed=options.speed or (1.0 if long else 4.0))
        clients = [client for client in RATE_LIMITED if client.name in chosen]
        good = show_pace(paced, measure_pace(paced, clients, rounds)) and good
    return exit_code(good=good, long=long)


def _options() -> argparse.Namespace:
    options = parser(
        __doc__,
        short="one round of 100 tasks, 50 in flight, times shortened 10 and 4 times",
        long="3 rounds of 2,000 tasks, 100 in flight, times shortened 4 times and not at all: an hour",
    )
    options.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a chart of the cost, too")
    options.add_argument("--part", choices=("cost", "rate"), help="only this one")
    options.add_argument("--only", nargs="+", metavar="CLIENT", help="only these clients, by process name")
    options.add_argument("--tasks", type=int, help="how many")
    options.add_argument("--slots", type=int, help="how many in flight")
    options.add_argument("--speed", type=float, help="by how much times are shortened")
    options.add_argument("--rounds", type=int, help="how often each client has its turn")
    options.add_argument("--trip", type=float, default=0.1, help="seconds there and back (default: 0.1)")
    return options.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
