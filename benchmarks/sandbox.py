"""How many requests a second does the sandbox answer on one core, with 2,000 tasks running?

The server is pinned to one core and the load generator, raw sockets without an HTTP library, to another.
Nine requests of ten poll one of the tasks, one makes a new one. In the same run the same load is put on a
server that says hello through uvicorn, and on one that writes fixed bytes: the floor, and mostly the load
generator's own speed. Rounds take turns, and the median counts. With --strict it exits 1 below 1,500 requests
a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterator

import uvicorn

from harness.processes import serving
from harness.report import introduce, parser

TASKS = 2_000
CONNECTIONS = 32
LEAST = 1_500.0
HEAD = (
    "Host: 127.0.0.1\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    "User-Agent: flux-async/0.1.0 (Python 3.11.7; httpx/0.28.1)\r\nContent-Type: application/json\r\n"
    "Authorization: Bearer test\r\n"
)
BODY = json.dumps(
    {
        "prompt": "Remove all text from this image while preserving the background",
        "inputImage": "https://pictures.example/poster.jpg",
        "enableTranslation": False,
    }
).encode()

Next = Callable[[], bytes]


# --- the servers ------------------------------------------------------------------------------------------


class Floor(asyncio.Protocol):
    """Answers every request with the same bytes, whatever it says."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self.transport = transport

    def data_received(self, _data: bytes) -> None:
        """Answer."""
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def serve_floor() -> None:
    """Serve fixed bytes."""
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", 0)
    print(f"ready at http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def hello(_scope: object, _receive: object, send: Callable[..., object]) -> None:
    """Say hello, as an ASGI application."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serve_hello() -> None:
    """Serve a bare application through uvicorn, with the same parser as the sandbox."""
    # Named as TCP, or asyncio would not switch Nagle's algorithm off, and every answer would wait 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        print(f"ready at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(hello, access_log=False, http="h11", log_level="error")).run([listener])


# --- the load ---------------------------------------------------------------------------------------------


class Caller(asyncio.Protocol):
    """One connection: asks, waits for the whole answer, asks again."""

    def __init__(self, ask: Next) -> None:
        self.ask = ask
        self.answers = 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.ask())

    def data_received(self, data: bytes) -> None:
        """Count what is complete."""
        self.buffer += data
        head, gap, body = self.buffer.partition(b"\r\n\r\n")
        if not gap:
            return
        at = head.lower().index(b"content-length:") + 15
        if len(body) < int(head[at:].split(b"\r\n", 1)[0]):
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self.answers += 1
        self.buffer = b""
        self.transport.write(self.ask())


def get(path: str) -> bytes:
    """Return the bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\n{HEAD}\r\n".encode()


def post(more: str = "") -> bytes:
    """Return the bytes of a submit."""
    head = f"POST /api/v1/flux/kontext/generate HTTP/1.1\r\n{HEAD}{more}Content-Length: {len(BODY)}\r\n\r\n"
    return head.encode() + BODY


async def load(url: str, seconds: float, ask: Next) -> float:
    """Put load on a server and return answers per second."""
    host, _, port = url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(ask), host, int(port)))[1] for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(0.3)
    before, begun = sum(caller.answers for caller in callers), time.perf_counter()
    await asyncio.sleep(seconds)
    after, ended = sum(caller.answers for caller in callers), time.perf_counter()
    for caller in callers:
        caller.transport.abort()
    return (after - before) / (ended - begun)


async def make_tasks(url: str, count: int) -> list[str]:
    """Make tasks that do not end meanwhile, and return their ids."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    ids = []
    for _ in range(count):
        writer.write(post("X-Sandbox-Fault: never-ends\r\n"))
        head = await reader.readuntil(b"\r\n\r\n")
        at = head.lower().index(b"content-length:") + 15
        answer = json.loads(await reader.readexactly(int(head[at:].split(b"\r\n", 1)[0])))
        ids.append(answer["data"]["taskId"])
    writer.close()
    return ids


def mixture(ids: list[str]) -> Next:
    """Nine polls, one submit."""
    polls = [get(f"/api/v1/flux/kontext/record-info?taskId={task_id}") for task_id in ids]
    asked = 0

    def ask() -> bytes:
        nonlocal asked
        asked += 1
        return post() if asked % 10 == 0 else polls[asked * 7 % len(polls)]

    return ask


# --- the measurement --------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(core: int, *command: str) -> Iterator[str]:
    """Run a server on one core and yield its address."""
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # what is started now stays there
    try:
        with serving(*command) as address:
            os.sched_setaffinity(0, here)
            yield address
    finally:
        os.sched_setaffinity(0, here)


async def measure(rounds: int, seconds: float, core: int) -> dict[str, list[float]]:
    """Return answers per second of each server, round by round."""
    # So fast a clock that the rate limit does not bind.
    options = ("--port", "0", "--images", "none", "--speed", "1e7", "--credits", "1e12")
    with contextlib.ExitStack() as stack:
        floor = stack.enter_context(running(core, __file__, "--serve", "floor"))
        bare = stack.enter_context(running(core, __file__, "--serve", "hello"))
        sandbox = stack.enter_context(running(core, "-m", "flux_async.sandbox", *options))
        ask = mixture(await make_tasks(sandbox, TASKS))
        found: dict[str, list[float]] = {"sandbox": [], "uvicorn hello": [], "floor": []}
        for _ in range(rounds):
            found["sandbox"].append(await load(sandbox, seconds, ask))
            found["uvicorn hello"].append(await load(bare, seconds, lambda: get("/")))
            found["floor"].append(await load(floor, seconds, lambda: get("/")))
    return found


def main() -> int:
    """Measure and print; see the module."""
    asked = parser(__doc__, short="3 rounds of 1.5 s", long="7 rounds of 4 s")
    asked.add_argument("--strict", action="store_true", help="exit 1 below the limit")
    asked.add_argument("--serve", choices=["floor", "hello"], help=SUPPRESS)
    options = asked.parse_args()
    if options.serve == "floor":
        asyncio.run(serve_floor())
    if options.serve == "hello":
        serve_hello()
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        print("needs two cores, and a system that can pin processes to them")
        return int(options.strict)
    rounds, seconds = (7, 4.0) if options.long else (3, 1.5)
    introduce(f"{rounds} rounds of {seconds:g} s; medians, and each round", ("uvicorn", "starlette"))
    ours, theirs, *_ = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {ours})
    found = asyncio.run(measure(rounds, seconds, theirs))
    rate = {name: statistics.median(rates) for name, rates in found.items()}
    print(f"answers per second on one core, {TASKS:,} tasks")
    for name, value in rate.items():
        print(f"  {name:<15}{value:>9,.0f}  ({', '.join(f'{each:,.0f}' for each in found[name])})")
    print(f"the sandbox reaches {rate['sandbox'] / rate['uvicorn hello']:.0%} of uvicorn's hello")
    missed = rate["sandbox"] < LEAST
    if missed:
        print(f"below {LEAST:,.0f} answers per second")
    return int(missed and options.strict)


if __name__ == "__main__":
    raise SystemExit(main())
