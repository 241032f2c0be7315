"""The callback server on an open port: silent and slow clients, invalid addresses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import attrs
import httpx
import pytest

from flux_async import CallbackEndpoint, ConfigurationError, FluxClient, Journal
from flux_async.api.webhooks import sign
from flux_async.cli import webhook_server as module
from flux_async.cli.run_options import ListenAddress
from flux_async.cli.webhook_server import Slots, bind, listening, most_connections

resource = pytest.importorskip("resource")

KEY = "hook-key"
IMAGES = [f"https://pictures.example/{number}.jpg" for number in range(30)]
SILENT = 450
DELIVERIES = 12
WAIT_S = 60
"""Real seconds: far more than anything here takes."""
HEAD = b"POST /hook HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def delivery(task_id: str) -> dict[str, Any]:
    """A signed callback, as arguments of httpx."""
    body = json.dumps({"code": 200, "msg": "ok", "data": {"taskId": task_id}}).encode()
    headers = {"content-type": "application/json"} | sign(task_id, KEY, at=time.time())
    return {"content": body, "headers": headers}


@contextmanager
def descriptors(soft: int) -> Iterator[None]:
    """Lower the limit of open files, for the processes that are started in the block."""
    was, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (was, hard))


# --- a run among foreign connections ----------------------------------------------------------------------


class Strangers:
    """Connections that say nothing, and are opened again and again."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._held: deque[socket.socket] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for held in self._held:
            held.close()

    def hold(self, count: int) -> None:
        """Open so many more, of which 450 are kept at most."""
        for _ in range(count):
            if len(self._held) == SILENT:
                self._held.popleft().close()
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(self._address)
            self._held.append(connection)


def wait_for_listener(port: int) -> None:
    """Wait until the port is open."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                probe.sendall(b"\0 this is no request\r\n\r\n")
                return
        time.sleep(0.02)
    pytest.fail("no server listens")


def answers_among(strangers: Strangers, url: str) -> list[int]:
    """Deliver callbacks, each after more foreign connections; return the statuses."""
    strangers.hold(SILENT)
    answers: list[int] = []
    for number in range(DELIVERIES):
        strangers.hold(50)
        answer = httpx.post(url, timeout=WAIT_S, trust_env=False, **delivery(f"stray{number}"))
        answers.append(answer.status_code)
    return answers


def test_silent_connections_do_not_end_a_run(start_sandbox: Any, reserved_port: int, cli: Any) -> None:
    """With 256 descriptors and 450 silent connections all images succeed, and callbacks are accepted.

    The list is written while the run reads it: the run lasts until the connections were made.
    """
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < SILENT + 150:
        pytest.skip("this process itself may not hold so many connections")
    sandbox = start_sandbox("--speed", "20", "--images", "none", "--webhook-key", KEY)
    command = attrs.evolve(cli, base_url=sandbox.url, more={"KIE_WEBHOOK_KEY": KEY})
    address = f"127.0.0.1:{reserved_port}"
    url = f"http://{address}/hook"
    options = ["--no-download", "--rate", "100/1", "--callback-url", url, "--listen", address]
    run = ["remove-text", "--from", "-", "-o", "out", *options]
    with ExitStack() as stack:
        with descriptors(256):
            process = stack.enter_context(command.start(*run, stdin=subprocess.PIPE))
        assert process.stdin is not None
        process.stdin.write("".join(f"{image}\n" for image in IMAGES[:15]))
        process.stdin.flush()
        wait_for_listener(reserved_port)
        answers = answers_among(stack.enter_context(Strangers(reserved_port)), url)
        _, stderr = process.communicate("".join(f"{image}\n" for image in IMAGES[15:]), timeout=WAIT_S)
    assert process.returncode == 0, stderr
    assert [row["status"] for row in command.rows()] == ["succeeded"] * len(IMAGES)
    assert answers == [200] * DELIVERIES
    assert not any(words in stderr for words in ("open files", "Invalid HTTP", "Traceback")), stderr
    assert command.ledger()["callbacks"]["accepted"] >= len(IMAGES)


# --- connections in this process --------------------------------------------------------------------------


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[int]:
    """Listen as a run does; the port."""
    listener = bind(ListenAddress("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    async with (
        Journal(folder / "run.sqlite3") as journal,
        FluxClient("test", "http://127.0.0.1:9") as client,
        listening(listener, CallbackEndpoint("http://a/hook", KEY), journal, client),
    ):
        yield port


@asynccontextmanager
async def stranger(port: int, *said: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Connect, say this, and then one letter after another, without end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def drip() -> None:
        for part in itertools.chain(said, itertools.repeat(b"x")):
            writer.write(part)
            await asyncio.sleep(0.05)

    try:
        async with asyncio.TaskGroup() as group:
            dripping = group.create_task(drip()) if said else None
            yield reader
            if dripping is not None:
                dripping.cancel()
    finally:
        writer.close()


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Read until the other end hangs up."""
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(WAIT_S):
            while await reader.read(1000):
                pass


async def deliver(port: int, client: httpx.AsyncClient, task_id: str = "stray") -> int:
    """Deliver a callback."""
    answer = await client.post(f"http://127.0.0.1:{port}/hook", **delivery(task_id))
    return answer.status_code


WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"  # is answered: it is no callback


SMALL_CHUNK = b"1\r\n \r\n"


async def test_a_body_in_small_chunks_is_refused(tmp_path: Path) -> None:
    """A body in pieces of one byte, each of which costs work, is refused before its end."""
    async with served(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + SMALL_CHUNK * 2_000)
        async with asyncio.timeout(WAIT_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()


@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_junk_in_a_body_writes_nothing_on_the_screen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: bytes
) -> None:
    """Whether or not its head alone would have had it turned away, it has one answer, and that is all."""
    head = HEAD.replace(b"POST", method) + b"Transfer-Encoding: chunked\r\n\r\n"
    async with served(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"no length\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            assert (await reader.read()).count(b"HTTP/1.1 400 ") == 1
        writer.close()
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


async def test_pieces_are_counted_by_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection in use may bring any number of bodies; each in as many pieces as a body may have."""
    monkeypatch.setattr(module, "MOST_CHUNKS", 3)
    sent = delivery("stray")
    body = sent["content"]

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (body[:5], body[5:20], body[20:]):
            yield piece

    async with served(tmp_path) as port, httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as client:
        for _ in range(5):
            answer = await client.post(f"http://127.0.0.1:{port}/hook", **sent | {"content": pieces()})
            assert answer.status_code == 200


@pytest.mark.parametrize(
    "said",
    [(), (HEAD,), (HEAD + b"X-Long: ",), (WHOLE, HEAD + b"X-Long: ")],
    ids=["", "head", "drip", "next"],
)
async def test_slow_heads_are_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: tuple[bytes, ...]
) -> None:
    """Who has not delivered the head of a request in time is hung up on, also after an answer."""
    monkeypatch.setattr(module, "HEAD_TIMEOUT_S", 0.2)
    async with served(tmp_path) as port, stranger(port, *said) as reader:
        await until_closed(reader)


async def test_the_time_of_a_head_counts_from_each_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer cancels the timer of the connection and starts that of its next request."""
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def recorded(delay: float, *arguments: Any) -> asyncio.TimerHandle:
        timer = call_later(delay, *arguments)
        if delay == module.HEAD_TIMEOUT_S:
            timers.append(timer)
        return timer

    monkeypatch.setattr(module, "HEAD_TIMEOUT_S", 20.0 * WAIT_S)  # no other timer is so long
    monkeypatch.setattr(loop, "call_later", recorded)
    async with served(tmp_path) as port, httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as vendor:
        for _ in range(5):
            assert await deliver(port, vendor) == 200
        assert [timer.cancelled() for timer in timers] == [True] * 5 + [False]
        assert timers[-1].when() > timers[0].when()


@pytest.mark.parametrize(
    "said", [b"", HEAD, HEAD + b"Content-Length: 900\r\n\r\n{"], ids=["", "head", "body"]
)
async def test_the_oldest_connections_are_closed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Silence, half heads and half bodies in all slots are ended at once when the vendor connects."""
    monkeypatch.setattr(module, "most_connections", lambda: 8)
    monkeypatch.setattr(module, "HEAD_TIMEOUT_S", 10.0 * WAIT_S)
    taken: list[Any] = []
    take = Slots.take
    monkeypatch.setattr(Slots, "take", lambda places, new: taken.append(new) or take(places, new))
    async with (
        served(tmp_path) as port,
        AsyncExitStack() as stack,
        httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as vendor,
    ):
        readers = [await stack.enter_async_context(stranger(port, *filter(None, [said]))) for _ in range(8)]
        while len(taken) < 8 or (b"Length" in said and any(one.cycle is None for one in taken)):
            await asyncio.sleep(0.005)
        assert await deliver(port, vendor) == 200
        await until_closed(readers[0])
        assert not any(reader.at_eof() for reader in readers[1:])


@attrs.define(eq=False)
class Connection:
    """A connection that is only counted."""

    waiting: bool
    ended: bool = False

    @property
    def transport(self) -> Any:
        """What is ended."""
        return self

    def is_waiting(self) -> bool:
        """As it was made, or set."""
        return self.waiting

    def abort(self) -> None:
        """Remember it."""
        self.ended = True


def test_a_request_being_answered_keeps_its_slot() -> None:
    """The oldest waiting connection is closed; if all others are being answered, the new one."""
    places = Slots(3)
    busy, first, second, third = (Connection(waiting) for waiting in (False, True, True, True))
    for connection in (busy, first, second, third):
        places.take(connection)
    assert [connection.ended for connection in (busy, first, second, third)] == [False, True, False, False]
    second.waiting = third.waiting = False
    late = Connection(waiting=True)
    places.take(late)
    assert late.ended
    places.leave(busy)
    places.leave(busy)
    places.take(another := Connection(waiting=True))
    assert not another.ended


@pytest.mark.parametrize(
    ("descriptors", "most"), [(16, 8), (64, 16), (256, 64), (1024, 256), (1_000_000, 256), (-1, 256)]
)
def test_connections_take_a_quarter_of_the_descriptors(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    """And no more than 256."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (descriptors, descriptors))
    assert most_connections() == most


def test_systems_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where descriptors are not limited, connections are."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert most_connections() == 256


# --- places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (":80", ("0.0.0.0", 80)),
        (" 127.0.0.1:65535 ", ("127.0.0.1", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("localhost:0", None),
        ("localhost:00000", None),
        (":65536", None),
        (":٣", None),
        ("localhost", None),
        ("::1:80", None),
    ],
)
def test_listen_addresses_have_a_host_and_a_port(text: str, place: tuple[str, int] | None) -> None:
    """The vendor must be able to reach both; port 0 would be any."""
    read = ListenAddress.read(text)
    assert (read and (read.host, read.port)) == place


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "\udcff", "no.such.host.invalid"])
def test_invalid_hosts_are_refused(host: str) -> None:
    """A malformed or unknown host cannot be listened at."""
    with pytest.raises(ConfigurationError, match="--listen"):
        bind(ListenAddress(host, 80))


@pytest.mark.parametrize("place", ["a..b:80", f"{'x' * 70}:80", "127.0.0.1:0"])
def test_an_invalid_listen_address_is_a_usage_error(offline: Any, place: str) -> None:
    """The message is one sentence."""
    ended = offline.run("remove-text", IMAGES[0], "--callback-url", "http://x/hook", "--listen", place)
    assert ended.code == 2
    assert place in ended.stderr
    assert "Traceback" not in ended.stderr
