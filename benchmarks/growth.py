"""Measures what grows with a batch: CPU per task and memory of the whole batch path.

Each batch runs in a process of its own: ``run_batch``, a journal on disk, and a server in another process
that makes tasks, keeps each generating for a while and then has its image. (The sandbox would take more CPU
than the client: this one only answers.) Submits go at the same rate
throughout, and tasks take as long as it takes to have so many in flight: with 100 times as many, each takes
100 times as long and is polled 100 times as rarely, so that a task has the same requests. CPU time is
counted (``getrusage``, the journal's thread included), not the clock. Sizes take turns in every round.

- *in flight*: CPU per finished task with ever more tasks in flight.
- *tasks*: CPU per finished task and peak memory of ever longer batches, with 500 in flight, in the learned
  rhythm.
- *waiting*: memory per task that is waited for, beyond the first 1,000, each polled once: a job of a
  batch, a ``client.wait`` alone, and for comparison a coroutine that only sleeps.

With ``--long``, exits 1 where a task with 5,000 in flight takes more than 1.3 times the CPU it takes with 50,
or a waiting job of a batch holds more than 12 kB. The short form judges nothing: it shows that all this runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from argparse import SUPPRESS, Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import attrs

from flux_async import FluxClient, Limits, Model, PollPolicy, TaskId
from flux_async.api.envelope import WireRequest
from flux_async.batch.runner import run_batch
from flux_async.transport import FileStream, SendResult, Transport
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import make_transport
from harness.charts import Bar, draw_bars
from harness.processes import child, first_line
from harness.report import exit_code, introduce, parser, spread

MOST_GROWTH, MOST_BYTES = 1.3, 12_000.0
FEW, MANY = 50, 5_000
BASELINE = 1_000
RATE = 100.0
LOOKS_PER_TASK = 2.5
LEARNING = 500
MOST_REPEATED = 50_000
"""A longer batch takes a quarter of an hour: one round of it."""
ENDLESS_S = 1e6
CREDITS = 1e9
KEY = "benchmark-0123456789"
FOLDER = "https://pictures.example/of/a/customer/"

Figures = dict[str, float]


# --- the server -------------------------------------------------------------------------------------------


class Vendor(asyncio.Protocol):
    """Makes tasks that take as long as the name of their image says, and answers polls and the balance."""

    def __init__(self, numbers: itertools.count[int], ends: dict[str, float], rng: random.Random) -> None:
        self.numbers, self.ends, self.rng = numbers, ends, rng
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end]
            _, _, size = head.lower().partition(b"content-length:")
            whole = end + 4 + int(size.split(b"\r\n", 1)[0] or 0)
            if len(self.received) < whole:
                return
            body, self.received = self.received[end + 4 : whole], self.received[whole:]
            query = head.split(b" ", 2)[1].partition(b"?")[2].decode()
            self.answer(self.submit(body) if body else self.poll(query) if query else self.balance())

    def submit(self, body: bytes) -> object:
        """Make a task."""
        name = json.loads(body)["inputImage"].rpartition("/")[2]
        task_id = f"{next(self.numbers):032x}"
        seconds = float(name.partition("-")[0]) * self.rng.uniform(0.9, 1.1)
        self.ends[task_id] = asyncio.get_running_loop().time() + seconds
        return {"taskId": task_id}

    def balance(self) -> float:
        """Return the credits that are left: a batch measures its price with them."""
        return CREDITS - Model.PRO.row.credits * len(self.ends)

    def poll(self, query: str) -> object:
        """Return the record of a task; an unknown one is generating for ever."""
        task_id = parse_qs(query)["taskId"][0]
        done = asyncio.get_running_loop().time() >= self.ends.get(task_id, math.inf)
        image = {"resultImageUrl": f"https://files.example/{task_id}.jpg"} if done else None
        return {"taskId": task_id, "paramJson": "{}", "successFlag": int(done), "response": image}

    def answer(self, data: object) -> None:
        """Answer in the vendor's envelope."""
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve() -> None:
    """Serve on a free port, and say which."""
    shared: Any = (itertools.count(), {}, random.Random(1))
    server = await asyncio.get_running_loop().create_server(lambda: Vendor(*shared), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- one process ------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Order:
    """What one process does.

    Attributes:
        what: ``run`` a batch to its end, or hold what waits: ``batch``, ``wait`` or ``sleep``.
        tasks: How many.
        in_flight: How many of them at once.
        transport: Through which library.
        learns: In the learned rhythm; else in a fixed one.
    """

    what: str
    tasks: int
    in_flight: int
    transport: str = "httpx"
    learns: bool = False


@attrs.define
class Counting:
    """A transport that counts requests, and sets an event after a number of polls."""

    inner: Transport
    wanted: int
    polls: int = 0
    submits: int = 0
    all_seen: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make a request."""
        truth = await self.inner.exchange(request, timeout_s=timeout_s)
        if request.method == "GET":
            self.polls += 1
            if self.polls == self.wanted:
                self.all_seen.set()
        else:
            self.submits += 1
        return truth

    def fetch(self, url: str, **_: object) -> AbstractAsyncContextManager[FileStream]:
        """Not wanted."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close the connections."""
        await self.inner.aclose()


def client_of(order: Order, port: int, polling: PollPolicy, rate: float) -> tuple[FluxClient, Counting]:
    """Make a client that submits at a rate, and the count of its requests."""
    limits = Limits(submits=round(rate), window_s=1.0, in_flight=order.in_flight, concurrent_submits=16)
    url, name = f"http://127.0.0.1:{port}", order.transport
    inner = make_transport(name, Credentials(KEY, url), version="benchmark")  # type: ignore[arg-type]
    counting = Counting(inner, order.tasks)
    return FluxClient(KEY, url, limits=limits, polling=polling, timeout=1e7, transport=counting), counting


def cpu_s() -> float:
    """Return the CPU seconds of this process, of all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> float:
    """Return the most memory this process had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def memory_bytes() -> float:
    """Return the present memory of this process; if the system does not report it, its peak."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return peak_bytes()
    return float(int(pages) * os.sysconf("SC_PAGE_SIZE"))


async def run(order: Order, port: int, journal: str) -> Figures:
    """Run a batch to its end."""
    seconds = order.in_flight / RATE * 1.05
    fixed = PollPolicy.fixed(seconds / LOOKS_PER_TASK)
    polling = PollPolicy(poll_cost_s=seconds / 24) if order.learns else fixed
    client, counting = client_of(order, port, polling, RATE * 1.1)
    images = (f"{FOLDER}{seconds:.3f}-{number}.jpg" for number in range(order.tasks))
    outcomes, most = 0, 0
    gc.collect()
    before = cpu_s()
    async with client, run_batch(client, images, journal=journal) as batch:
        async for _ in batch:
            outcomes += 1
            if outcomes % 50 == 1:
                most = max(most, batch.progress.generating)
    used = cpu_s() - before
    if outcomes != order.tasks:
        raise SystemExit(f"growth: {outcomes} outcomes of {order.tasks} tasks")
    return {
        "cpu_ms": used / outcomes * 1e3,
        "requests": (counting.polls + counting.submits) / outcomes,
        "in_flight": most,
        "peak_mb": peak_bytes() / 1e6,
    }


async def hold(order: Order, port: int, journal: str) -> Figures:
    """Wait for so many tasks, each polled once, and return the memory of this process then."""
    once = PollPolicy(first_s=0.1, interval_s=ENDLESS_S, cap_s=ENDLESS_S)
    client, counting = client_of(order, port, once, 1e6)
    async with client, waiting(order, client, journal):
        if order.what != "sleep":
            await counting.all_seen.wait()
        await asyncio.sleep(0.5)
        gc.collect()
        return {"bytes": memory_bytes()}


@asynccontextmanager
async def waiting(order: Order, client: FluxClient, journal: str) -> AsyncIterator[None]:
    """Have so many waited for."""
    if order.what == "batch":
        images = (f"{FOLDER}{ENDLESS_S:.0f}-{number}.jpg" for number in range(order.tasks))
        async with run_batch(client, images, journal=journal):
            yield
        return
    coroutines = (
        asyncio.sleep(ENDLESS_S) if order.what == "sleep" else client.wait(TaskId(f"none-{number:027}"))
        for number in range(order.tasks)
    )
    loop = asyncio.get_running_loop()
    held = [loop.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in held:
            task.cancel()
        await asyncio.wait(held)


def work(order: Order, port: int) -> None:
    """Do it, and print its figures as JSON."""
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        doing = (run if order.what == "run" else hold)(order, port, f"{folder}/journal.sqlite3")
        print(json.dumps(asyncio.run(doing)))


# --- all of them ------------------------------------------------------------------------------------------


@attrs.define
class Bench:
    """Runs one process after the other against one server."""

    port: int
    rounds: int

    def measure(self, orders: Sequence[Order]) -> list[list[Figures]]:
        """Return the figures of each order, one of each round; the orders take turns."""
        found: list[list[Figures]] = [[] for _ in orders]
        rounds = 1 if max(order.tasks for order in orders) > MOST_REPEATED else self.rounds
        for _ in range(rounds):
            for order, taken in zip(orders, found, strict=True):
                command = [sys.executable, __file__, "--work", json.dumps(attrs.asdict(order))]
                done = subprocess.run(
                    [*command, str(self.port)], stdout=subprocess.PIPE, text=True, check=True
                )
                taken.append(json.loads(done.stdout))
        return found


def values(taken: Sequence[Figures], name: str) -> list[float]:
    """Return one figure of all rounds."""
    return [figures[name] for figures in taken]


def median(taken: Sequence[Figures], name: str) -> float:
    """Return the median of one figure over all rounds."""
    return statistics.median(values(taken, name))


def ratio(taken: Sequence[Figures], base: Sequence[Figures], name: str) -> float:
    """Return the median of the ratios of each round."""
    return statistics.median(a[name] / b[name] for a, b in zip(taken, base, strict=True))


def runs(bench: Bench, title: str, orders: Sequence[Order], base: Order) -> dict[str, list[float]]:
    """Measure batches, print a table, and return the CPU per task of each, one figure of each round."""
    found = bench.measure(orders)
    reference, costs = found[orders.index(base)], {}
    print(f"\n{title:<34}{'requests':>9}{'seen':>7}{'CPU, ms a task':>22}{'ratio':>7}{'peak MB':>9}")
    for order, taken in zip(orders, found, strict=True):
        name = f"{order.tasks:,} tasks, {order.in_flight:,} in flight"
        costs[name] = values(taken, "cpu_ms")
        print(
            f"  {name:<32}{median(taken, 'requests'):>9.2f}{median(taken, 'in_flight'):>7,.0f}"
            f"{spread(costs[name]):>22}{ratio(taken, reference, 'cpu_ms'):>7.2f}"
            f"{median(taken, 'peak_mb'):>9.1f}"
        )
    return costs


def held(bench: Bench, sizes: Sequence[int]) -> dict[str, float]:
    """Measure what waits, print a table, and return the most bytes of each."""
    print(f"\nwaiting{'':>27}{'tasks':>9}{'MB':>9}{'bytes each beyond ' + format(BASELINE, ','):>28}")
    most: dict[str, float] = {}
    for what in ("batch", "wait", "sleep"):
        orders = [Order(what=what, tasks=size, in_flight=size) for size in (BASELINE, *sizes)]
        found = bench.measure(orders)
        base = median(found[0], "bytes")
        print(f"  {what:<32}{BASELINE:>9,}{base / 1e6:>9.1f}")
        for size, taken in zip(sizes, found[1:], strict=True):
            now = median(taken, "bytes")
            each = (now - base) / (size - BASELINE)
            most[what] = max(most.get(what, 0.0), each)
            print(f"  {what:<32}{size:>9,}{now / 1e6:>9.1f}{each:>28,.0f}")
    return most


def plot(path: Path, tables: dict[str, dict[str, list[float]]]) -> None:
    """Write CPU per task as bars."""
    bars = [
        Bar(name=name, values=taken, ours=True, opens=not place, form=".2f")
        for table in tables.values()
        for place, (name, taken) in enumerate(table.items())
    ]
    draw_bars(path, "CPU of one task of a batch, milliseconds", bars)


def orders_of(*, long: bool) -> tuple[list[Order], list[Order]]:
    """Return what is run: with ever more in flight, and with ever more tasks."""
    sizes = (
        ((10, 1_000), (FEW, 2_000), (500, 4_000), (MANY, 15_000))
        if long
        else ((10, 200), (FEW, 400), (500, 1_000))
    )
    lengths = (1_000, 10_000, 100_000) if long else (1_000, 3_000)
    return (
        [Order(what="run", tasks=tasks, in_flight=in_flight) for in_flight, tasks in sizes],
        [Order(what="run", tasks=tasks, in_flight=LEARNING, learns=True) for tasks in lengths],
    )


def main() -> int:
    """Measure, print, judge."""
    asked = parser(
        __doc__,
        short="one round, up to 500 in flight",
        long="three rounds, up to 5,000 in flight and 100,000 tasks",
    )
    asked.add_argument("--only", choices=["in-flight", "tasks", "waiting"], help="only one of the three")
    asked.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a chart, too")
    asked.add_argument("--serve", action="store_true", help=SUPPRESS)
    asked.add_argument("--work", nargs=2, metavar=("ORDER", "PORT"), help=SUPPRESS)
    options = asked.parse_args()
    if options.serve:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve())
        return 0
    if options.work:
        work(Order(**json.loads(options.work[0])), int(options.work[1]))
        return 0
    with child(__file__, "--serve") as server:
        return judge(int(first_line(server)), options)


def judge(port: int, options: Namespace) -> int:
    """Measure what was asked for; return the exit code."""
    bench = Bench(port, 3 if options.long else 1)
    rounds = f"{bench.rounds} rounds (over {MOST_REPEATED:,} tasks: one); medians; {RATE:g} submits a second"
    introduce(rounds, ("aiohttp", "orjson"))
    in_flight, tasks = orders_of(long=options.long)
    tables: dict[str, dict[str, list[float]]] = {}
    good = True
    if options.only in (None, "in-flight"):
        tables["in flight"] = costs = runs(bench, "in flight, fixed rhythm", in_flight, in_flight[1])
        _, few, *_, most = costs.values()
        grown = statistics.median(a / b for a, b in zip(most, few, strict=True))
        good = good and grown <= MOST_GROWTH
        print(f"  the most in flight take {grown:.2f} times the CPU of {FEW}, limit {MOST_GROWTH}")
    if options.only in (None, "tasks"):
        tables["tasks"] = runs(bench, "tasks, learned rhythm", tasks, tasks[0])
    if options.only in (None, "waiting"):
        each = held(bench, (5_000, 10_000) if options.long else (3_000,))
        good = good and each["batch"] <= MOST_BYTES
        print(f"  a waiting job of a batch: {each['batch']:,.0f} bytes, limit {MOST_BYTES:,.0f}")
    if options.plot and tables:
        plot(options.plot, tables)
    return exit_code(good=good, long=options.long)


if __name__ == "__main__":
    raise SystemExit(main())
