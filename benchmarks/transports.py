"""The CPU of one look at a task, through each transport, beside aiohttp itself and beside bare sockets.

A server in a process of its own answers every request with the same 382 bytes; here CPU time is counted
(``getrusage``), not the clock. The stacks take turns in every round, so that a machine that is busy for a
moment is busy for all, and only ratios are judged. As in the client, at most 16 looks are on the wire at once
and the others wait before them, whatever the stack. "aiohttp itself" is the shortest loop one would write
with it, without an account of what was sent and without a limit to what is read.

Exits 1 where our aiohttp transport takes more than 1.3 times the CPU of aiohttp itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from flux_async import Limits, TaskId
from flux_async.protocol.wire import build_record_info
from flux_async.transport import Answered
from flux_async.transport.choice import make_transport
from flux_async.transport.origin import ApiOrigin

MOST = 1.3
AT_ONCE = (1, 10, 100)
PLACES = Limits().connections
KEY = "benchmark-0123456789"
PATH = "/api/v1/flux/kontext/record-info"
BODY = b'{"code":200,"msg":"success","data":{"taskId":"%s","successFlag":0,"response":null}}' % (b"t" * 302)
FLOOR, BARE, OURS = "bare sockets", "aiohttp itself", "transport aiohttp"

Look = Callable[[str], Awaitable[None]]


# --- the server -------------------------------------------------------------------------------------------


class Answering(asyncio.Protocol):
    """Answers each request, of which it only looks for the end."""

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
async def bare_sockets(port: int) -> AsyncIterator[Look]:
    """Look without any library."""
    loop = asyncio.get_running_loop()
    free = [(await loop.create_connection(Asking, "127.0.0.1", port))[1] for _ in range(PLACES)]
    head = f" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {KEY}\r\n\r\n"

    async def look(task_id: str) -> None:
        connection = free.pop()
        connection.received = loop.create_future()
        connection.transport.write(f"GET {PATH}?taskId={task_id}{head}".encode())
        if await connection.received != BODY:
            raise SystemExit("transports: the floor got no answer")
        free.append(connection)

    yield look
    for connection in free:
        connection.transport.close()


@asynccontextmanager
async def bare_aiohttp(port: int) -> AsyncIterator[Look]:
    """Look with aiohttp as its own documentation does."""
    connector = aiohttp.TCPConnector(limit=PLACES)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def look(task_id: str) -> None:
            async with session.get(f"http://127.0.0.1:{port}{PATH}?taskId={task_id}") as response:
                if await response.read() != BODY:
                    raise SystemExit("transports: aiohttp got no answer")

        yield look


def ours(name: Any) -> Callable[[int], Any]:
    """Look through one of our transports."""

    @asynccontextmanager
    async def stack(port: int) -> AsyncIterator[Look]:
        origin = ApiOrigin(KEY, f"http://127.0.0.1:{port}")
        transport = make_transport(name, origin, Limits(), version="benchmark")

        async def look(task_id: str) -> None:
            truth = await transport.exchange(build_record_info(TaskId(task_id)), timeout_s=30.0)
            if not isinstance(truth, Answered) or truth.response.body != BODY:
                raise SystemExit(f"transports: {name} got {truth}")

        yield look
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


async def cost_us(look: Look, looks: int, at_once: int) -> float:
    """Make ``looks`` looks, ``at_once`` under way, at tasks that are looked at a few times each."""
    left = iter(range(looks))
    places = asyncio.Semaphore(PLACES)

    async def worker(number: int) -> None:
        for turn in left:
            async with places:
                await look(f"task{number:08}{turn % 20:024}")

    gc.collect()
    before = cpu_s()
    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(worker(number))
    return (cpu_s() - before) / looks * 1e6


async def measure(port: int, at_once: int, looks: int, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of each stack, one figure a round."""
    costs: dict[str, list[float]] = {name: [] for name in STACKS}
    async with AsyncExitStack() as stack:
        looking = {name: await stack.enter_async_context(make(port)) for name, make in STACKS.items()}
        for look in looking.values():
            await cost_us(look, max(at_once, looks // 5), at_once)  # connections, caches
        for _ in range(rounds):
            for name, look in looking.items():
                costs[name].append(await cost_us(look, looks, at_once))
    return costs


def show(at_once: int, costs: dict[str, list[float]]) -> float:
    """Print one table; return the ratio that is judged."""
    medians = {name: statistics.median(taken) for name, taken in costs.items()}
    pairs = zip(costs[OURS], costs[BARE], strict=True)
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    print(f"\n{at_once} in flight{'µs per look':>24}{'lowest':>9}{'highest':>9}{'of aiohttp':>12}")
    for name, taken in costs.items():
        share = f"{medians[name] / medians[BARE]:.2f}"
        print(f"  {name:<22}{medians[name]:>12.0f}{min(taken):>9.0f}{max(taken):>9.0f}{share:>12}")
    return ratio


def plot(path: Path, found: dict[int, dict[str, list[float]]]) -> None:
    """Write the medians as bars, with the spread as lines."""
    rows = [(at_once, name, taken) for at_once, costs in found.items() for name, taken in costs.items()]
    scale = 520 / max(max(taken) for _, _, taken in rows)
    height = 30 + 20 * len(rows) + 14 * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{height}" font-size="12">',
        f'<rect width="860" height="{height}" fill="white"/>',
        '<text x="10" y="18">CPU of one look, microseconds; bar: median, line: lowest to highest</text>',
    ]
    y = 30
    for at_once, name, taken in rows:
        y += 14 if name == FLOOR else 0
        median, low, high = statistics.median(taken), min(taken) * scale, max(taken) * scale
        colour = "#2a78b5" if name.startswith("transport") else "#9aa5b1"
        parts += [
            f'<text x="10" y="{y + 11}">{at_once} in flight, {name}</text>',
            f'<rect x="230" y="{y}" width="{median * scale:.1f}" height="14" fill="{colour}"/>',
            f'<path d="M{230 + low:.1f} {y + 7}H{230 + high:.1f}" stroke="black"/>',
            f'<text x="{236 + high:.1f}" y="{y + 11}">{median:.0f}</text>',
        ]
        y += 20
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help="5 rounds of 600 looks (the default)")
    form.add_argument("--long", action="store_true", help="15 rounds of 3,000 looks")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a chart, too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    looks, rounds = (3000, 15) if options.long else (600, 5)
    print(f"{rounds} rounds of {looks} looks; Python {sys.version.split()[0]}, aiohttp {aiohttp.__version__}")
    command = [sys.executable, __file__, "--serve"]
    found: dict[int, dict[str, list[float]]] = {}
    good = True
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            for at_once in AT_ONCE:
                found[at_once] = asyncio.run(measure(port, at_once, looks, rounds))
                ratio = show(at_once, found[at_once])
                good = good and ratio <= MOST
                print(f"  {OURS} takes {ratio:.2f} times what {BARE} takes, limit {MOST}")
        finally:
            server.terminate()
    if options.plot:
        plot(options.plot, found)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
