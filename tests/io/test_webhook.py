"""The receiver under a real server: mounted in web frameworks, and under hostile requests."""

from __future__ import annotations

import asyncio
import json
import random
import select
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from flux_async import JobKey, Journal, WebhookReceiver
from flux_async.api.webhooks import SIGNATURE_HEADER, TIMESTAMP_HEADER, CallbackEndpoint, sign
from flux_async.job_state import SubmitIntended, apply

KEY = "test-webhook-key"
START_S = 120
JOBS = 300


def attempt_id(number: int) -> str:
    return f"{number:032x}"


def body_of(task_id: str) -> bytes:
    return json.dumps({"code": 200, "msg": "ok", "data": {"taskId": task_id}}).encode()


def kept(path: Path) -> list[tuple[str, str, int]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT callback_id, task_id, deliveries FROM inbox").fetchall()


async def _begin(path: Path) -> None:
    async with Journal(path) as journal:
        for stored in await journal.add([(JobKey(f"k{n}"), "{}") for n in range(1, JOBS + 1)]):
            intent = SubmitIntended(api="kontext", at=1.0, callback_id=attempt_id(stored.number))
            await journal.record(stored.number, apply(stored.job, intent), intent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal whose jobs have an attempt each, called as its number is."""
    made = tmp_path / "run.sqlite3"
    asyncio.run(_begin(made))
    return made


# --- frameworks -------------------------------------------------------------------------------------------


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on a free port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + START_S
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < end, "the server did not start in time"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_S)


def lifespan_of(receiver: WebhookReceiver) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """What every framework calls when it starts, and again when it stops."""

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        async with receiver:
            yield

    return lifespan


def alone(receiver: WebhookReceiver) -> Any:
    return receiver


def starlette_route(receiver: WebhookReceiver) -> Any:
    return Starlette(routes=[Route("/flux-callback", receiver)], lifespan=lifespan_of(receiver))


def starlette_mount(receiver: WebhookReceiver) -> Any:
    return Starlette(routes=[Mount("/flux-callback", receiver)], lifespan=lifespan_of(receiver))


def fastapi_mount(receiver: WebhookReceiver) -> Any:
    app = FastAPI(lifespan=lifespan_of(receiver))
    app.mount("/flux-callback", receiver)
    return app


def fastapi_route(receiver: WebhookReceiver) -> Any:
    app = FastAPI(lifespan=lifespan_of(receiver))
    app.router.routes.append(Route("/flux-callback", receiver))
    return app


def litestar_mount(receiver: WebhookReceiver) -> Any:
    handler = asgi("/flux-callback", is_mount=True, copy_scope=True)(receiver)
    return Litestar([handler], lifespan=[lifespan_of(receiver)], logging_config=None)


def litestar_handler(receiver: WebhookReceiver) -> Any:
    @asgi("/flux-callback", copy_scope=True)
    async def flux_callback(scope: Any, receive: Any, send: Any) -> None:
        await receiver(scope, receive, send)

    return Litestar([flux_callback], on_shutdown=[receiver.aclose], logging_config=None)


@pytest.mark.parametrize(
    ("mounted", "address"),
    [
        (alone, "/flux-callback"),
        (starlette_route, "/flux-callback"),
        (starlette_mount, "/flux-callback/"),
        (fastapi_mount, "/flux-callback/"),
        (fastapi_route, "/flux-callback"),
        (litestar_mount, "/flux-callback"),
        (litestar_handler, "/flux-callback"),
    ],
)
def test_mounted(path: Path, mounted: Callable[[WebhookReceiver], Any], address: str) -> None:
    """In every framework a callback reaches the journal with its attempt, and a forged one is refused."""
    received: list[Any] = []
    receiver = WebhookReceiver(path, key=KEY, on_callback=received.append)
    with served(mounted(receiver)) as url, httpx.Client(trust_env=False, timeout=60) as web:
        hook = CallbackEndpoint(f"{url}{address}?tenant=a", KEY).address_for(attempt_id(7))
        headers = {"Content-Type": "application/json"} | sign("t7", KEY, at=time.time())
        for _ in range(2):
            said = web.post(hook, content=body_of("t7"), headers=headers)
            assert (said.status_code, said.json()) == (200, {"status": "received"})
        assert web.post(hook, content=body_of("evil"), headers=headers).status_code == 401
        assert web.get(hook).status_code == 405
    assert kept(path) == [(attempt_id(7), "t7", 2)]
    assert [(event.task_id, event.signed, event.attempt_id) for event in received] == [
        ("t7", True, attempt_id(7))
    ] * 2


# --- hostile requests -------------------------------------------------------------------------------------

HOSTILE = 3_000
WARM_UP = 500
CONNECTIONS = 64
HOSTILE_TO_ONE_VALID = 50
MOST_GROWN = 6 * 1024 * 1024

_SERVER = """
import socket, sys, uvicorn
from flux_async import WebhookReceiver

sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen(2048)
receiver = WebhookReceiver(sys.argv[1], key=sys.argv[2], body_timeout_s=1.0)
server = uvicorn.Server(uvicorn.Config(receiver, log_level="critical", ws="none"))
print(sock.getsockname()[1], flush=True)
server.run(sockets=[sock])
"""


@contextmanager
def serving_child(path: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Serve a receiver in a process of its own; its port, and the process."""
    command = [sys.executable, "-c", _SERVER, str(path), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_S)
            assert ready, "the server did not start"
            yield int(process.stdout.readline()), process
        finally:
            process.terminate()
            try:
                process.wait(START_S)
            finally:
                process.kill()


def memory_of(pid: int) -> int:
    """Return the bytes a process has in memory now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(size) * 1024


@attrs.frozen
class Attack:
    """What one hostile request puts on the wire.

    Attributes:
        chunks: What is written, one after the other.
        pause_s: How long to wait after each chunk but the last.
        is_cut: Whether the attacker then leaves without waiting for an answer.
    """

    chunks: tuple[bytes, ...]
    pause_s: float = 0.0
    is_cut: bool = False


Fields = dict[str, str] | list[tuple[str, str]]


def request(
    body: bytes = b"", fields: Fields | None = None, *, line: str = "POST /hook", length: Any = None
) -> bytes:
    """Make the bytes of a request with a JSON body."""
    pairs = list(fields.items() if isinstance(fields, dict) else fields or [])
    names = {name.lower() for name, _ in pairs}
    if "content-type" not in names:
        pairs.append(("Content-Type", "application/json"))
    if "content-length" not in names and "transfer-encoding" not in names:
        pairs.append(("Content-Length", str(len(body) if length is None else length)))
    head = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "example.com"), *pairs])
    return f"{line} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def evil(rng: random.Random) -> tuple[str, bytes, str]:
    """Choose a task that must never be kept, its body, and a line that names a real attempt."""
    task_id = f"evil{rng.getrandbits(48):x}"
    return task_id, body_of(task_id), f"POST /hook?c={attempt_id(rng.randint(1, JOBS))}"


def wrong_key(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    key = rng.choice(["x", KEY.upper(), KEY + "\n\n1", "null"])
    return Attack((request(body, sign(task_id, key, at=time.time()), line=line),))


def too_old_or_too_new(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    at = time.time() + rng.choice([-1, 1]) * rng.choice([310, 3600, 1e6])
    return Attack((request(body, sign(task_id, KEY, at=at), line=line),))


def replayed(rng: random.Random) -> Attack:
    """Put a right signature, seen with another task, to a task of one's own."""
    _, body, line = evil(rng)
    return Attack((request(body, sign("seen", KEY, at=time.time()), line=line),))


def unsigned(rng: random.Random) -> Attack:
    _, body, line = evil(rng)
    junk = {
        rng.choice([TIMESTAMP_HEADER, SIGNATURE_HEADER]): rng.choice(["", "0", "=" * 44, "A" * 44, "\xff"])
    }
    return Attack((request(body, rng.choice([{}, junk]), line=line),))


def doubled_headers(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    pairs = [*sign(task_id, KEY, at=time.time()).items()]
    doubled = rng.choice(
        [
            (SIGNATURE_HEADER, "A" * 43 + "="),
            (TIMESTAMP_HEADER, str(int(time.time()))),
            ("content-type", "application/json"),
            ("content-length", str(len(body) + 1)),
        ]
    )
    pairs += [doubled] * 2 if doubled[0].startswith("content") else [doubled]
    return Attack((request(body, pairs, line=line),))


def two_tasks(rng: random.Random) -> Attack:
    task_id, _, line = evil(rng)
    body = json.dumps({"taskId": task_id, "data": {rng.choice(["taskId", "task_id"]): "evil"}}).encode()
    return Attack((request(body, sign(task_id, KEY, at=time.time()), line=line),))


def junk_body(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    bodies = [
        b"",
        rng.randbytes(rng.randint(1, 2000)),
        body[: rng.randrange(len(body))],
        b"[" * rng.choice([10, 100_000]),
        b'{"data":' * rng.choice([10, 20_000]),
        b'{"taskId":"' + rng.randbytes(20) + b'"}',
        b'{"taskId":' + b"9" * 5000 + b"}",
        b"[" + b"{}," * 60_000 + b"{}]",
        b'{"taskId":"evil\\ud800"}',
        b" " * rng.choice([1, 200_000]),
    ]
    return Attack((request(rng.choice(bodies), sign(task_id, KEY, at=time.time()), line=line),))


def other_method(rng: random.Random) -> Attack:
    task_id, body, _ = evil(rng)
    method = rng.choice(
        ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "FOO", "PROPFIND"]
    )
    return Attack((request(body, sign(task_id, KEY, at=time.time()), line=f"{method} /hook"),))


def other_type(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    kinds = ["text/plain", "", "application/jsonp", "multipart/form-data", "x" * 500, "\xff", ";", "*/*"]
    fields = {"Content-Type": rng.choice(kinds)} | sign(task_id, KEY, at=time.time())
    return Attack((request(body, fields, line=line),))


def odd_query(rng: random.Random) -> Attack:
    task_id, body, _ = evil(rng)
    query = "".join(rng.choice("c=&%;0aAz?#[]'+\xe9/") for _ in range(rng.randint(0, 400)))
    return Attack((request(body, sign(task_id, "wrong", at=time.time()), line=f"POST /hook?{query}"),))


def odd_length(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    length = rng.choice(["-1", "+5", "0x10", "5_0", "1e3", " ", "9" * 30, "5,5", "5, 6", "\xb2"])
    return Attack((request(body, sign(task_id, KEY, at=time.time()), line=line, length=length),))


def a_gigabyte(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    length = rng.choice([2**30, 262_145, 10**14])
    return Attack((request(body, sign(task_id, KEY, at=time.time()), line=line, length=length),))


def truncated(rng: random.Random) -> Attack:
    task_id, body, line = evil(rng)
    whole = request(body, sign(task_id, KEY, at=time.time()), line=line)
    return Attack((whole[: rng.randrange(1, len(whole))],), is_cut=True)


def chunked_without_end(rng: random.Random) -> Attack:
    task_id, _, line = evil(rng)
    fields = {"Transfer-Encoding": "chunked"} | sign(task_id, KEY, at=time.time())
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    return Attack((request(b"", fields, line=line), *[chunk] * rng.choice([2, 6]), b"zz\r\n\r\n"))


def dripping(rng: random.Random) -> Attack:
    task_id, _, line = evil(rng)
    drops = [b" "] * 100 if rng.random() < 0.5 else [b" " * 2000] * 100
    return Attack((request(b"", sign(task_id, KEY, at=time.time()), line=line, length=200_000), *drops), 0.05)


def broken_head(rng: random.Random) -> Attack:
    _, body, _ = evil(rng)
    heads = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200) + b"\r\n\r\n",
        b"POST /hook\r\n\r\n",
        b"POST  /hook HTTP/9.9\r\n\r\n",
        b"POST /hook HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /hook HTTP/1.1\r\nHost: a\r\nX: \x00\x01\r\n\r\n",
        b"POST /hook HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n",
        b"POST /hook HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /hook HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
        b"POST /hook HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n" + body,
        b"POST /hook HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n\r\n",
        request(body, {"Transfer-Encoding": "chunked", "Content-Length": "5"}),
        request(b"", {"Expect": "100-continue"}, length=50) + b"x" * 50,
        request(b"", {"Connection": "Upgrade", "Upgrade": "websocket"}, line="GET /hook"),
        request(b"", {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": ""}),
        rng.randbytes(300) + b"\r\n\r\n",
    ]
    return Attack((rng.choice(heads),))


ATTACKS: dict[Callable[[random.Random], Attack], int] = {
    # attack: how often, compared with the others
    wrong_key: 12,
    too_old_or_too_new: 10,
    replayed: 12,
    unsigned: 10,
    doubled_headers: 8,
    two_tasks: 5,
    junk_body: 10,
    other_method: 6,
    other_type: 6,
    odd_query: 8,
    odd_length: 5,
    a_gigabyte: 4,
    truncated: 4,
    chunked_without_end: 2,
    dripping: 1,
    broken_head: 6,
}


@attrs.define
class Wire:
    """A connection that is opened when it is needed."""

    port: int
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def ask(self, attack: Attack) -> int | None:
        """Make a request; return the status of its answer, or None where there was none."""
        status = None
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            if len(attack.chunks) == 1:
                self.writer.write(attack.chunks[0])
                if attack.is_cut:
                    self.close()
                    return None
                status = await self._answer()
            else:
                status = await self._dripping(attack, self.writer)
        except (OSError, EOFError):
            self.close()  # they may close before they have read what they do not want
        return status

    async def _dripping(self, attack: Attack, writer: asyncio.StreamWriter) -> int | None:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(self._answer_or_none())
            for chunk in attack.chunks:
                if answer.done():
                    break
                with suppress(OSError):
                    writer.write(chunk)
                    await writer.drain()
                await asyncio.sleep(attack.pause_s)
        self.close()
        return answer.result()

    async def _answer_or_none(self) -> int | None:
        with suppress(OSError, EOFError):
            return await self._answer()
        return None

    async def _answer(self) -> int:
        assert self.reader is not None
        status = 100
        while status == 100:
            async with asyncio.timeout(100):
                head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ", 2)[1])
        _, found, rest = head.partition(b"content-length: ")
        if found:
            await self.reader.readexactly(int(rest.partition(b"\r\n")[0]))
        if not found or b"connection: close" in head:
            self.close()
        return status

    def close(self) -> None:
        """Leave; the next request connects anew."""
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


@attrs.define
class Siege:
    """Many hostile requests at once, and valid callbacks among them."""

    port: int
    rng: random.Random
    answers: Counter[tuple[str, int | None]] = attrs.field(factory=Counter)
    valid: list[tuple[int | None, float]] = attrs.field(factory=list)
    sent: list[tuple[str, str]] = attrs.field(factory=list)

    async def lay(self, count: int) -> None:
        """Make ``count`` hostile requests, and a valid one for each fifty."""
        made = self.rng.choices(list(ATTACKS), weights=list(ATTACKS.values()), k=count)
        attacks = iter(list(enumerate(made, self.answers.total())))
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._attack(attacks))

    async def _attack(self, attacks: Iterator[tuple[int, Callable[[random.Random], Attack]]]) -> None:
        wire = Wire(self.port)
        for number, make in attacks:
            attack = make(random.Random(number))  # of its own, so that the order of answers changes nothing
            status = await wire.ask(attack)
            self.answers[make.__name__, status] += 1
            if attack.chunks[0].startswith(b"HEAD"):
                wire.close()  # its answer had no body
            if self.answers.total() % HOSTILE_TO_ONE_VALID == 0:
                await self._call_back()
        wire.close()

    async def _call_back(self) -> None:
        number = len(self.sent)
        task_id, attempt = f"t{number}", attempt_id(number % JOBS + 1)
        self.sent.append((attempt, task_id))
        headers = sign(task_id, KEY, at=time.time())
        whole = request(body_of(task_id), headers, line=f"POST /hook?c={attempt}")
        wire, begun = Wire(self.port), time.perf_counter()
        status = await wire.ask(Attack((whole,)))
        self.valid.append((status, time.perf_counter() - begun))
        wire.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_thousands_of_forged_requests_are_refused_and_cost_no_memory(
    path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Three thousand forged or broken requests are refused, valid callbacks among them are accepted."""
    with serving_child(path) as (port, server):
        siege = Siege(port, random.Random(20_260_101))
        asyncio.run(siege.lay(WARM_UP))
        before = memory_of(server.pid)
        begun = time.perf_counter()
        asyncio.run(siege.lay(HOSTILE))
        seconds = time.perf_counter() - begun
        grown = memory_of(server.pid) - before
        assert server.poll() is None
    slowest = max(taken for _, taken in siege.valid)
    figures = {"seconds": round(seconds, 1), "slowest_valid_s": round(slowest, 3), "grown_bytes": grown}
    for name, figure in figures.items():
        record_property(name, figure)
    assert siege.answers.total() == WARM_UP + HOSTILE
    assert {who: n for who, n in siege.answers.items() if who[1] is not None and 200 <= who[1] < 300} == {}
    assert {status for status, _ in siege.valid} == {200}
    assert sorted((attempt, task) for attempt, task, _ in kept(path)) == sorted(siege.sent)
    assert len(siege.sent) == (WARM_UP + HOSTILE) // HOSTILE_TO_ONE_VALID
    assert grown < MOST_GROWN, figures
