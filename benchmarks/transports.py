"""Measures the CPU of one poll through each transport, beside aiohttp itself and bare sockets.

A server in a process of its own answers every request with the same 382 bytes; here CPU time is counted
(``getrusage``), not the clock. The stacks take turns in every round, so that a machine that is busy for a
moment is busy for all, and only ratios are judged. As in the client, at most 16 polls are in flight at once
and the others wait before them, whatever the stack. "aiohttp itself" is the shortest loop one would write
with it, without an account of what was sent and without a limit to what is read. What is done with an answer
afterwards, reading it as a task that is still generating, is counted by itself, with orjson where that is
installed and without.

In the long form it exits 1 where our aiohttp transport takes more than 1.3 times the CPU of aiohttp itself.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import statistics
import timeit
from argparse import SUPPRESS
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from flux_async import Limits, TaskId
from flux_async.api import envelope
from flux_async.api.envelope import WireResponse
from flux_async.api.kontext import build_status, parse_poll
from flux_async.transport import Answered
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import make_transport
from harness.charts import Bar, draw_bars
from harness.processes import child, first_line
from harness.report import exit_code, introduce, parser

MOST = 1.3
AT_ONCE = (1, 10, 100)
SLOTS = Limits().connections
KEY = "benchmark-0123456789"
PATH = "/api/v1/flux/kontext/record-info"
TASK = "t" * 32
BODY = (
    b'{"code":200,"msg":"success","data":{"taskId":"%s","paramJson":"%s","successFlag":0,"response":null}}'
    % (TASK.encode(), b"p" * 256)
)
FLOOR, BARE, OURS = "bare sockets", "aiohttp itself", "transport aiohttp"

Poll = Callable[[str], Awaitable[None]]


# --- the server -------------------------------------------------------------------------------------------


class Answering(asyncio.Protocol):
    """Answers each request; it reads only its end."""

    answer = (
        b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\nServer: s\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Answer as many requests as ended."""
        self.transport.write(self.answer * data.count(b"\r\n\r\n"))


async def serve() -> None:
    """Serve on a free port, and say which."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- the stacks -------------------------------------------------------------------------------------------


class Asking(asyncio.Protocol):
    """The least that can be done: one write, one read, the head cut off."""

    def __init__(self) -> None:
        self.received = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to ask."""
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Hand over an answer; it comes in one piece."""
        self.received.set_result(data.partition(b"\r\n\r\n")[2])


@asynccontextmanager
async def bare_sockets(port: int) -> AsyncIterator[Poll]:
    """Poll without any library."""
    loop = asyncio.get_running_loop()
    free = [(await loop.create_connection(Asking, "127.0.0.1", port))[1] for _ in range(SLOTS)]
    head = f" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {KEY}\r\n\r\n"

    async def poll(task_id: str) -> None:
        connection = free.pop()
        connection.received = loop.create_future()
        connection.transport.write(f"GET {PATH}?taskId={task_id}{head}".encode())
        if await connection.received != BODY:
            raise SystemExit("transports: the floor got no answer")
        free.append(connection)

    yield poll
    for connection in free:
        connection.transport.close()


@asynccontextmanager
async def bare_aiohttp(port: int) -> AsyncIterator[Poll]:
    """Poll with aiohttp as its own documentation does."""
    connector = aiohttp.TCPConnector(limit=SLOTS)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def poll(task_id: str) -> None:
            async with session.get(f"http://127.0.0.1:{port}{PATH}?taskId={task_id}") as response:
                if await response.read() != BODY:
                    raise SystemExit("transports: aiohttp got no answer")

        yield poll


def ours(name: Any) -> Callable[[int], Any]:
    """Poll through one of our transports."""

    @asynccontextmanager
    async def stack(port: int) -> AsyncIterator[Poll]:
        origin = Credentials(KEY, f"http://127.0.0.1:{port}")
        transport = make_transport(name, origin, version="benchmark")

        async def poll(task_id: str) -> None:
            poll = build_status(TaskId(task_id), keep_alive=True)
            result = await transport.exchange(poll, timeout_s=30.0)
            if not isinstance(result, Answered) or result.response.body != BODY:
                raise SystemExit(f"transports: {name} got {result}")

        yield poll
        await transport.aclose()

    return stack


STACKS: dict[str, Callable[[int], Any]] = {
    FLOOR: bare_sockets,
    BARE: bare_aiohttp,
    OURS: ours("aiohttp"),
    "transport httpx2": ours("httpx2"),
    "transport httpx": ours("httpx"),
}


# --- the measurement --------------------------------------------------------------------------------------


def cpu_s() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def cost_us(poll: Poll, polls: int, at_once: int) -> float:
    """Make ``polls`` polls, ``at_once`` in flight, at tasks that are polled a few times each."""
    left = iter(range(polls))
    slots = asyncio.Semaphore(SLOTS)

    async def worker(number: int) -> None:
        for turn in left:
            async with slots:
                await poll(f"task{number:08}{turn % 20:024}")

    gc.collect()
    before = cpu_s()
    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(worker(number))
    return (cpu_s() - before) / polls * 1e6


async def measure(port: int, at_once: int, polls: int, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of each stack, one figure a round."""
    costs: dict[str, list[float]] = {name: [] for name in STACKS}
    async with AsyncExitStack() as stack:
        polling = {name: await stack.enter_async_context(make(port)) for name, make in STACKS.items()}
        for poll in polling.values():
            await cost_us(poll, max(at_once, polls // 5), at_once)  # connections, caches
        for _ in range(rounds):
            for name, poll in polling.items():
                costs[name].append(await cost_us(poll, polls, at_once))
    return costs


def reading_us(polls: int) -> dict[str, float]:
    """Return the microseconds of reading one answer, by parser; the least of some rounds."""
    answer, task_id = WireResponse(status=200, body=BODY), TaskId(TASK)
    fast, found = envelope.fast_parser, {}
    parsers = {"json": lambda: None} if fast() is None else {"json": lambda: None, "orjson": fast}
    for name, fast_parser in parsers.items():
        envelope.fast_parser = fast_parser  # type: ignore[assignment]
        rounds = timeit.repeat(lambda: parse_poll(answer, task_id), number=polls, repeat=5)
        found[name] = min(rounds) / polls * 1e6
    envelope.fast_parser = fast
    return found


def show(at_once: int, costs: dict[str, list[float]]) -> float:
    """Print one table; return the ratio that is judged."""
    medians = {name: statistics.median(taken) for name, taken in costs.items()}
    pairs = zip(costs[OURS], costs[BARE], strict=True)
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    print(f"\n{at_once} in flight{'µs per poll':>24}{'lowest':>9}{'highest':>9}{'of aiohttp':>12}")
    for name, taken in costs.items():
        share = f"{medians[name] / medians[BARE]:.2f}"
        print(f"  {name:<22}{medians[name]:>12.0f}{min(taken):>9.0f}{max(taken):>9.0f}{share:>12}")
    return ratio


def plot(path: Path, found: dict[int, dict[str, list[float]]]) -> None:
    """Write the medians as bars, with the spread as lines."""
    bars = [
        Bar(
            name=f"{at_once} in flight, {name}",
            values=taken,
            ours=name.startswith("transport"),
            opens=name == FLOOR,
        )
        for at_once, costs in found.items()
        for name, taken in costs.items()
    ]
    draw_bars(path, "CPU of one poll, microseconds", bars)


def main() -> int:
    """Measure, print, judge."""
    asked = parser(__doc__, short="5 rounds of 300 polls", long="15 rounds of 3,000 polls")
    asked.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a chart, too")
    asked.add_argument("--serve", action="store_true", help=SUPPRESS)
    options = asked.parse_args()
    if options.serve:
        asyncio.run(serve())
    polls, rounds = (3000, 15) if options.long else (300, 5)
    introduce(
        f"{rounds} rounds of {polls} polls; medians", ("httpx", "sniffio", "httpx2", "aiohttp", "orjson")
    )
    found: dict[int, dict[str, list[float]]] = {}
    good = True
    with child(__file__, "--serve") as server:
        port = int(first_line(server))
        for at_once in AT_ONCE:
            found[at_once] = asyncio.run(measure(port, at_once, polls, rounds))
            ratio = show(at_once, found[at_once])
            good = good and ratio <= MOST
            print(f"  {OURS} takes {ratio:.2f} times what {BARE} takes, limit {MOST}")
    poll = statistics.median(found[AT_ONCE[-1]][OURS])
    print(f"\nreading the answer{'µs':>18}{f'of a poll through {OURS}':>38}")
    for name, taken in reading_us(polls).items():
        print(f"  {name:<22}{taken:>12.1f}{taken / poll:>38.1%}")
    if options.plot:
        plot(options.plot, found)
    return exit_code(good=good, long=options.long)


if __name__ == "__main__":
    raise SystemExit(main())
