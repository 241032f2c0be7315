"""What many tests need: virtual time, a scripted transport, a raw HTTP server over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest

from flux_async import FluxClient
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.testing import VirtualClock
from flux_async.transport import Answered, FileStream, SendResult

KEY = "k-secret-0123456789"
BEGIN = 1_790_001_000.0


@attrs.define
class ScriptedTransport:
    """Answers from a script: per path a list whose last entry is repeated."""

    clock: VirtualClock
    script: dict[str, list[SendResult | Callable[[WireRequest], SendResult]]] = attrs.field(factory=dict)
    seen: list[tuple[float, WireRequest]] = attrs.field(factory=list)
    in_the_air: int = 0
    most_in_the_air: int = 0
    latency_s: float = 0.1
    closed: bool = False
    files: Callable[[str], AbstractAsyncContextManager[FileStream]] | None = None

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Take the next answer of the path."""
        self.seen.append((self.clock.now, request))
        self.in_the_air += 1
        self.most_in_the_air = max(self.most_in_the_air, self.in_the_air)
        await self.clock.sleep(self.latency_s)
        self.in_the_air -= 1
        answers = self.script[request.path.rpartition("/")[2]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(request) if callable(answer) else answer

    def fetch(self, url: str, **_: object) -> AbstractAsyncContextManager[FileStream]:
        """Open a file, where a test has some."""
        if self.files is None:
            raise NotImplementedError
        return self.files(url)

    async def aclose(self) -> None:
        """Remember it."""
        self.closed = True

    def count(self, path: str) -> int:
        """How many requests went to a path that ends so."""
        return sum(request.path.endswith(path) for _, request in self.seen)


def answer(
    data: Any, code: int = 200, *, status: int = 200, msg: str = "success", **headers: str
) -> Answered:
    """Make an answer in the vendor's envelope."""
    body = json.dumps({"code": code, "msg": msg, "data": data}).encode()
    return Answered(WireResponse(status=status, headers=headers, body=body))


def task_record(flag: int | None = 0, task_id: str = "t1", **fields: Any) -> Answered:
    """Make an answer of record-info."""
    response = {"resultImageUrl": f"https://files.example/{task_id}.jpg"} if flag == 1 else None
    return answer({"taskId": task_id, "successFlag": flag, "response": response} | fields)


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time; it stands still while a worker thread or the journal is busy."""
    return VirtualClock(BEGIN)


@pytest.fixture
def transport(clock: VirtualClock) -> ScriptedTransport:
    """A scripted transport on the virtual clock; one task that is done at the third look."""
    script: dict[str, list[Any]] = {
        "generate": [answer({"taskId": "t1"})],
        "record-info": [task_record(0), task_record(0), task_record(1)],
        "credit": [answer(42.5)],
    }
    return ScriptedTransport(clock, script)


@pytest.fixture
async def client(clock: VirtualClock, transport: ScriptedTransport) -> AsyncIterator[FluxClient]:
    """A client over both."""
    async with FluxClient(
        KEY, "http://127.0.0.1:1", transport=transport, clock=clock, rng=random.Random(7)
    ) as made:
        yield made


@attrs.define
class RawServer:
    """An HTTP server that speaks bytes: what it does with a request is up to the test."""

    url: str
    requests: list[tuple[str, dict[str, str], bytes]] = attrs.field(factory=list)
    connections: int = 0
    open: int = 0


Behaviour = Callable[[str, dict[str, str], bytes, asyncio.StreamWriter], Awaitable[bool]]


async def _serve(
    server: RawServer, behave: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    server.connections += 1
    server.open += 1
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            server.requests.append((first, headers, body))
            if not await behave(first, headers, body, writer):
                break
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        server.open -= 1
        writer.close()


@pytest.fixture
def raw_server() -> Callable[[Behaviour], AbstractAsyncContextManager[RawServer]]:
    """Serve with a behaviour: it writes what it likes, and returns whether the connection goes on."""

    @asynccontextmanager
    async def run(behave: Behaviour) -> AsyncIterator[RawServer]:
        made = RawServer("")
        running: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            await _serve(made, behave, reader, writer)
            running.discard(task)

        listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        made.url = f"http://127.0.0.1:{port}"
        try:
            yield made
        finally:
            listener.close()
            for task in tuple(running):
                task.cancel()
            await asyncio.sleep(0)

    return run


def http(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Make the bytes of an HTTP answer."""
    head = (
        f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\ncontent-type: application/json\r\n{headers}\r\n"
    )
    return head.encode() + body


@pytest.fixture
def make() -> Any:
    """The makers of answers, for tests that cannot import this file."""
    return type(
        "Make",
        (),
        {
            "answer": staticmethod(answer),
            "record": staticmethod(task_record),
            "http": staticmethod(http),
            "key": KEY,
        },
    )
