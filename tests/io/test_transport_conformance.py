"""Every transport against servers that misbehave, over real sockets: answered, not sent or unknown.

The same for all of them: over connections of our own with httpx, httpx2 and aiohttp, and over an httpx or
httpx2 client of the caller's. What only concerns httpx is in ``test_transport.py``.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import logging
import socket
import ssl
import threading
import time
import warnings
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async.api.envelope import Host, WireRequest
from flux_async.transport import Answered, NotSent, SendResult, Transport, Unknown
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import make_transport

KEY = "k-secret-0123456789"
GET = WireRequest(method="GET", path="/api/v1/flux/kontext/record-info", keep_alive=True)
POST = WireRequest(method="POST", path="/api/v1/flux/kontext/generate", body=b'{"prompt":"x"}')
OK = b'{"code":200,"data":1}'
OURS = ["httpx", "httpx2", "aiohttp"]
GIVEN = ["client of httpx", "client of httpx2"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's proxies: the tests set their own."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def _makers(stack: str) -> AsyncIterator[Callable[..., Transport]]:
    library = pytest.importorskip(stack.rpartition(" ")[2], reason=f"{stack} is not installed")
    made: list[Any] = []

    def make(url: str, upload_url: str | None = None) -> Transport:
        given = library.AsyncClient() if stack in GIVEN else None
        name: Any = None if given else stack
        origin = Credentials(KEY, url, upload_url)
        transport = make_transport(name, origin, version="1", client=given)
        made.extend([transport, given])
        return transport

    yield make
    for thing in made:
        if thing is not None:
            await thing.aclose()


@pytest.fixture(params=OURS + GIVEN)
async def transport_to(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Transport]]:
    """Return a factory of transports of every kind for a base URL."""
    async for make in _makers(request.param):
        yield make


@pytest.fixture(params=OURS)
async def own_transport_to(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Transport]]:
    """Return a factory of transports without a client of the caller's."""
    async for make in _makers(request.param):
        yield make


def server_side(certificate: Path) -> ssl.SSLContext:
    """Return the TLS context of a server with that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(connected: Connected, secure: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve connections on the yielded port; close all of them at the end."""
    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        serving.add(me)
        try:
            await connected(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=secure)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in serving:
            task.cancel()
        await asyncio.sleep(0.005)


async def until_timeout(transport: Transport, request: WireRequest, timeout_s: float) -> SendResult:
    """Make a request that ends by its timeout; repeat it with a longer one if no connection was made."""
    while isinstance(result := await transport.exchange(request, timeout_s=timeout_s), NotSent):
        timeout_s *= 4
        assert timeout_s < 100, result
    return result


async def works(transport: Transport, at_once: int = 3) -> None:
    """Check that several requests at once are answered."""
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        calls = [group.create_task(transport.exchange(GET, timeout_s=60)) for _ in range(at_once)]
    assert [type(call.result()) for call in calls] == [Answered] * at_once


# --- answered ---------------------------------------------------------------------------------------------


async def test_a_whole_answer_is_answered(transport_to: Any, raw_server: Any, make: Any) -> None:
    """It has status, headers in lower case and body; key, User-Agent and content type were sent."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(OK, "200 OK", "X-Thing: a\r\nx-thing: b\r\n"))
        return True

    query = WireRequest(method="GET", path="/record-info", query={"taskId": "a b&c"}, keep_alive=True)
    async with raw_server(behave) as server:
        transport = transport_to(server.url + "/v0")
        for request in (GET, query, POST):
            result = await transport.exchange(request, timeout_s=60)
            assert isinstance(result, Answered)
            assert result.response.body == OK
            assert result.response.headers["x-thing"] == "a, b"
        assert server.connections == 2, "one that polls share, and one for the submit"
    (first, headers, _), (last, _, _), (_, closing, body) = server.requests
    assert first == f"GET /v0{GET.path} HTTP/1.1"
    assert headers.get("connection") in (None, "keep-alive")
    assert closing["connection"] == "close"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("flux-async/1 (Python ")
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == server.url.removeprefix("http://")
    assert body == POST.body
    assert last in (f"GET /v0/record-info?taskId=a{blank}b%26c HTTP/1.1" for blank in ("+", "%20"))


WHOLE = {
    "empty": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "without length, to its end": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "in chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "old": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "after hints": b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "gzip though not asked for": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b"{}"),
    "deflate": b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\n\r\n" + zlib.compress(b"{}"),
    "an error": b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("said", WHOLE.values(), ids=WHOLE)
async def test_an_unusual_but_whole_answer_is_answered(
    transport_to: Any, raw_server: Any, make: Any, said: bytes
) -> None:
    """A complete answer is accepted whatever its form, and the next request works."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        writer.write(said if first.startswith("POST") else make.http(OK))
        return False

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        for _ in range(3):
            result = await transport.exchange(POST, timeout_s=60)
            assert isinstance(result, Answered), result
            assert result.response.body in (b"{}", b"")
        await works(transport)


async def test_an_upgrade_to_another_protocol_occupies_no_connection(
    transport_to: Any, raw_server: Any, make: Any
) -> None:
    """The request was sent, so it is unknown; the next request works."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        hello = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello"
        writer.write(hello if first.startswith("POST") else make.http(OK))
        return True

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        for _ in range(3):
            assert isinstance(await until_timeout(transport, POST, 0.2), Answered | Unknown)
        await works(transport)


async def test_redirects_are_not_followed_with_the_key(transport_to: Any, raw_server: Any, make: Any) -> None:
    """A redirect is an answer; its target receives no request."""

    async def elsewhere(*args: Any) -> bool:
        return False

    async with raw_server(elsewhere) as thief:

        async def behave(*args: Any) -> bool:
            args[3].write(make.http(b"", "307 Temporary Redirect", f"location: {thief.url}/steal\r\n"))
            return True

        async with raw_server(behave) as server:
            result = await transport_to(server.url).exchange(POST, timeout_s=60)
    assert isinstance(result, Answered)
    assert result.response.status == 307
    assert thief.connections == 0
    assert len(server.requests) == 1


async def test_cookies_are_not_sent_back(own_transport_to: Any, raw_server: Any, make: Any) -> None:
    """The second request has no Cookie header."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(OK, "200 OK", "set-cookie: a=b; path=/\r\nset-cookie: c=d\r\n"))
        return True

    async with raw_server(behave) as server:
        # no library keeps cookies of hosts without a name
        transport = own_transport_to(server.url.replace("127.0.0.1", "localhost"))
        for request in (GET, POST, GET):
            assert isinstance(await transport.exchange(request, timeout_s=60), Answered)
    assert not any("cookie" in headers for _, headers, _ in server.requests)


async def test_an_echo_of_the_key_is_scrubbed(transport_to: Any, raw_server: Any, make: Any) -> None:
    """Neither an answer nor an error contains a key that the server repeats."""

    async def behave(first: str, headers: dict[str, str], body: bytes, writer: Any) -> bool:
        if first.startswith("GET"):
            writer.write(make.http(headers["authorization"].encode()))
        else:
            writer.write(f"HTTP/1.1 abc {headers['authorization']}\r\n{KEY}\r\n\r\n".encode())
        return False

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        reported = await transport.exchange(GET, timeout_s=60)
        untold = await transport.exchange(POST, timeout_s=60)
    assert reported.response.body == b"Bearer ***"
    assert isinstance(untold, Unknown)
    assert KEY not in untold.reason


async def test_debug_logs_contain_no_key(
    transport_to: Any, raw_server: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Logs of this package, of the library and of asyncio at level DEBUG."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(b"{}"))
        return True

    asyncio.get_running_loop().set_debug(True)
    with caplog.at_level(logging.DEBUG):
        async with raw_server(behave) as server:
            transport = transport_to(server.url)
            await transport.exchange(POST, timeout_s=60)
    assert KEY not in caplog.text
    assert KEY not in repr((transport, vars(transport)))


# --- not sent ---------------------------------------------------------------------------------------------


async def test_refused_connections_are_not_sent(transport_to: Any) -> None:
    """No server listens, so nothing is charged."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = await transport_to(url).exchange(POST, timeout_s=60)
    assert isinstance(result, NotSent)
    assert "Connect" in result.reason


@pytest.mark.parametrize("host", ["no-such-host.invalid", "xn--a", "x" * 64 + ".invalid"])
async def test_unknown_hosts_are_not_sent(transport_to: Any, host: str) -> None:
    """An unknown or invalid name, so nothing is charged."""
    result = await transport_to(f"http://{host}").exchange(POST, timeout_s=60)
    assert isinstance(result, NotSent)


async def test_a_connection_that_is_not_made_in_time_is_not_sent(transport_to: Any) -> None:
    """The accept queue of the server is full, so no connection is made and nothing is sent."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        result = await transport_to(f"http://127.0.0.1:{address[1]}").exchange(POST, timeout_s=0.2)
        for one in waiting:
            one.close()
    assert isinstance(result, NotSent)


@pytest.mark.parametrize(
    "said", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"]
)
async def test_a_failed_tls_handshake_is_not_sent(transport_to: Any, said: bytes | None) -> None:
    """Silence, a closed connection, plain HTTP, an alert: nothing is sent before the handshake."""
    seen = bytearray()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.read(65536))
        if said is None:
            await reader.read()
        else:
            writer.write(said)
        writer.close()

    async with listening(connected) as port:
        transport = transport_to(f"https://127.0.0.1:{port}")
        timeout_s = 0.3 if said is None else 60
        while not seen:  # a busy machine may need longer to connect
            assert isinstance(await transport.exchange(POST, timeout_s=timeout_s), NotSent)
            timeout_s *= 4
            assert timeout_s < 300
        await transport.aclose()
    assert b"prompt" not in seen


# --- unknown ----------------------------------------------------------------------------------------------

BROKEN = {
    "before any byte": b"",
    "within the status line": b"HTTP/1.1 20",
    "within the headers": b"HTTP/1.1 200 OK\r\ncontent-le",
    "within the body": b'HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"code":200,"da',
    "within a chunk": b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1f4\r\n{"code"',
    "without a last chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "with rubbish": b"\x00\x01\x02 no http at all\r\n\r\n",
    "with a rubbish status": b"HTTP/1.1 abc OK\r\ncontent-length: 2\r\n\r\n{}",
    "with a rubbish length": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}",
    "with two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
    "with a rubbish chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "with a huge header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000 + b"\r\ncontent-length: 2\r\n\r\n{}",
    "with rubbish as gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nnope",
    "with half a gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b"{}")[:-9],
    "packed twice": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b",
    "packed on two lines": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-encoding: br\r\n\r\n\x1f",
    "packed otherwise": b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}",
    "a gzip bomb": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(bytes(64_000_000)),
    "too long": b"HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\n" + bytes(5_000_000),
}


CUT = {
    "by its length": b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n%s",
    "within a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1f4\r\n%s",
    "without a last chunk": b"HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n3b\r\n%s\r\n",
}


@pytest.mark.parametrize("said", CUT.values(), ids=CUT)
async def test_the_received_part_of_a_broken_answer_is_kept(
    transport_to: Any, raw_server: Any, said: bytes
) -> None:
    """It can contain the task id; the key is removed from it."""
    part = b'{"code":200,"seen":"%s","data":{"taskId":"c0d0",' % KEY.encode()

    async def behave(*args: Any) -> bool:
        args[3].write(said.replace(b"3b", b"%x" % len(part)) % part)
        await args[3].drain()
        return False

    async with raw_server(behave) as server:
        result = await transport_to(server.url).exchange(POST, timeout_s=60)
    assert isinstance(result, Unknown)
    assert result.body == part.replace(KEY.encode(), b"***")
    assert "c0d0" not in repr(result)


@pytest.mark.parametrize("said", BROKEN.values(), ids=BROKEN)
async def test_a_broken_answer_is_unknown(transport_to: Any, raw_server: Any, make: Any, said: bytes) -> None:
    """The server received the request and may have charged it. The next request works."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        writer.write(said if first.startswith("POST") else make.http(OK))
        await writer.drain()
        return first.startswith("GET")

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        result = await transport.exchange(POST, timeout_s=60)
        assert isinstance(result, Unknown), result
        assert len(server.requests) == 1, "and it was sent once"
        await works(transport)


async def test_a_connection_closed_before_the_request_was_read_is_unknown(transport_to: Any) -> None:
    """The connection was accepted, so bytes may have been sent. The request is not repeated."""
    accepted = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.transport.abort()

    async with listening(connected) as port:
        transport = transport_to(f"http://127.0.0.1:{port}")
        result = await transport.exchange(POST, timeout_s=60)
    assert isinstance(result, Unknown)
    assert accepted == 1


async def test_http_on_a_tls_port_is_unknown(transport_to: Any) -> None:
    """A server that expects TLS has received the request."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\x15\x03\x01\x00\x02\x02\x16")  # an alert: unexpected message
        writer.close()

    async with listening(connected) as port:
        transport = transport_to(f"http://127.0.0.1:{port}")
        assert isinstance(await transport.exchange(POST, timeout_s=60), Unknown)


async def test_a_silent_server_is_unknown_at_the_timeout(
    transport_to: Any, raw_server: Any, make: Any
) -> None:
    """It blocks neither the caller nor a connection."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if first.startswith("POST"):
            await asyncio.Event().wait()
        writer.write(make.http(OK))
        return True

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        for _ in range(3):
            assert isinstance(await until_timeout(transport, POST, 0.05), Unknown)
        await works(transport)
    assert [first[:4] for first, _, _ in server.requests].count("POST") == 3


DRIPS = {
    "body": (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b" ", 0.01),
    "chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.01),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.01),
    "one header": (b"HTTP/1.1 200 OK\r\nx: ", b"y", 0.01),
    "a flood of hints": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200, 0.001),
}


@pytest.mark.parametrize(("start", "drop", "pause_s"), DRIPS.values(), ids=DRIPS)
async def test_a_slow_answer_is_stopped_and_occupies_no_connection(
    transport_to: Any,
    raw_server: Any,
    make: Any,
    start: bytes,
    drop: bytes,
    pause_s: float,
) -> None:
    """Each byte arrives in time, the whole answer never does: the timeout holds for all of it."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if first.startswith("GET"):
            writer.write(make.http(OK))
            return True
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(pause_s)

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        for _ in range(3):
            result = await until_timeout(transport, POST, 0.1)
            assert isinstance(result, Unknown), result
        await works(transport)


async def test_an_endless_answer_is_cut_off(transport_to: Any, raw_server: Any, make: Any) -> None:
    """An answer far longer than an envelope is not read into memory."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if first.startswith("GET"):
            writer.write(make.http(OK))
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        result = await transport.exchange(POST, timeout_s=60)
        await works(transport)
    assert isinstance(result, Unknown)
    assert "longer than" in result.reason


# --- kept connections -------------------------------------------------------------------------------------


async def test_a_submit_does_not_use_the_connection_of_a_poll_nor_of_a_submit(
    transport_to: Any, raw_server: Any, make: Any
) -> None:
    """The server answers only the first request of each connection; every submit is answered."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        ports.append(writer.get_extra_info("peername")[1])
        writer.write(make.http(OK))
        return ports.count(ports[-1]) == 1

    ports: list[int] = []
    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        for request in (POST, GET, POST, POST):
            assert isinstance(await transport.exchange(request, timeout_s=60), Answered)
        async with asyncio.TaskGroup() as group:
            polls = [group.create_task(transport.exchange(GET, timeout_s=60)) for _ in range(4)]
        assert {type(poll.result()) for poll in polls} == {Answered}
        for _ in range(5):
            assert isinstance(await transport.exchange(POST, timeout_s=60), Answered)
        assert len(server.requests) == 13
        assert [first[:4] for first, _, _ in server.requests].count("POST") == 8


async def test_a_poll_on_a_connection_that_closes_gets_no_wrong_answer(
    transport_to: Any, raw_server: Any, make: Any
) -> None:
    """It is unknown or, because aiohttp repeats a GET, answered. The next requests work."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if len(server.requests) == 2:
            return False
        writer.write(make.http(OK))
        return True

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        assert isinstance(await transport.exchange(GET, timeout_s=60), Answered)
        assert isinstance(await transport.exchange(GET, timeout_s=60), Answered | Unknown)
        await works(transport)


@attrs.define
class Blocking:
    """A server in a thread, which works while the event loop is blocked."""

    url: str
    hang_up: threading.Event
    gone: threading.Event
    requests: list[bytes]


@asynccontextmanager
async def blocking_server(reset: bool) -> AsyncIterator[Blocking]:
    """Answer once on each connection and close it on demand."""
    listener = socket.create_server(("127.0.0.1", 0))
    made = Blocking(f"http://127.0.0.1:{listener.getsockname()[1]}", threading.Event(), threading.Event(), [])

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                made.requests.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                made.hang_up.wait(60)
                if reset and len(made.requests) == 1:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            made.gone.set()

    thread = threading.Thread(target=serve, name="blocking server")
    thread.start()
    try:
        yield made
    finally:
        made.hang_up.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("loop_saw_it", [False, True])
async def test_a_kept_connection_that_was_closed_is_not_used(
    transport_to: Any, reset: bool, loop_saw_it: bool
) -> None:
    """Also if the event loop was blocked and has not seen the end of the connection."""
    async with blocking_server(reset) as server:
        transport = transport_to(server.url)
        assert isinstance(await transport.exchange(GET, timeout_s=60), Answered)
        server.hang_up.set()
        assert server.gone.wait(60)  # blocks the loop, as a busy program does
        if loop_saw_it:
            await asyncio.sleep(0.02)
        assert isinstance(await transport.exchange(GET, timeout_s=60), Answered)
        assert len([request for request in server.requests if request]) == 2
        await transport.aclose()


# --- answers without a request ----------------------------------------------------------------------------


@asynccontextmanager
async def proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Run an HTTP proxy of the environment: a CONNECT to any host connects to ``port``."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"CONNECT ")
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass_on(reader, outer))
                group.create_task(_pass_on(inner, writer))
        except* OSError:
            pass
        finally:
            outer.close()

    async with listening(connected) as number:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{number}")
        yield


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
    writer.close()


Duplicates = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


async def _in_one_piece(writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer + answer)


async def _in_a_record_of_its_own(writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer)  # over TLS each write is a record; both go out before anything is read
    writer.write(answer)


async def _a_moment_later(writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer)
    await asyncio.sleep(0.005)
    writer.write(answer)


@attrs.define
class Duplicating:
    """A vendor that sends each answer twice: a new task for a submit, the named task for a poll."""

    twice: Duplicates
    submits: int = 0
    connections: int = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                self.submits += 1
                task = (await reader.readexactly(len(b'{"prompt":"000"}')))[11:14]
            else:
                task = head.partition(b"taskId=")[2][:3]
            body = b'{"code":200,"data":{"taskId":"%s"}}' % task
            answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            await self.twice(writer, answer)


@pytest.mark.parametrize("twice", [_in_one_piece, _in_a_record_of_its_own, _a_moment_later])
@pytest.mark.parametrize("way", ["plain", "TLS", "TLS through a proxy"])
async def test_twenty_submits_among_polls_each_get_their_own_task(
    transport_to: Any,
    monkeypatch: pytest.MonkeyPatch,
    certificate: Path,
    twice: Duplicates,
    way: str,
) -> None:
    """A duplicate of an answer is never read as the answer to another submit."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = Duplicating(twice)
    secure = None if way == "plain" else server_side(certificate)
    scheme = "http" if secure is None else "https"
    host = "vendor.example" if way.endswith("proxy") else "localhost"
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(listening(server.connected, secure))
        if way.endswith("proxy"):
            await stack.enter_async_context(proxy(port, monkeypatch))
        transport = transport_to(f"{scheme}://{host}:{port}")
        for number in range(20):
            poll = WireRequest(method="GET", path="/r", query={"taskId": f"{number:03}"}, keep_alive=True)
            await transport.exchange(poll, timeout_s=60)
            submit = WireRequest(method="POST", path="/g", body=b'{"prompt":"%03d"}' % number)
            result = await transport.exchange(submit, timeout_s=60)
            assert isinstance(result, Answered), result
            assert result.response.body == b'{"code":200,"data":{"taskId":"%03d"}}' % number
        await transport.aclose()
    assert server.submits == 20


# --- uploads ----------------------------------------------------------------------------------------------


@attrs.frozen
class Pieces:
    """A body in chunks, announced with any size."""

    size: int
    pieces: int = 100
    piece: bytes = bytes(100_000)
    pause_s: float = 0.0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.pieces):
            yield self.piece
            await asyncio.sleep(self.pause_s)


def upload(stream: Pieces) -> WireRequest:
    return WireRequest(
        method="POST", path="/api/file-stream-upload", host=Host.UPLOADS, stream=stream, content_type="x/y"
    )


async def test_an_upload_arrives_whole_with_its_size(transport_to: Any, raw_server: Any, make: Any) -> None:
    """The upload host receives length, content type and key, without chunked encoding."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(OK))
        return True

    async with raw_server(behave) as api, raw_server(behave) as host:
        transport = transport_to(api.url, host.url)
        stream = Pieces(size=1_000_000, pieces=10)
        for number in range(2):
            assert isinstance(await transport.exchange(upload(stream), timeout_s=60), Answered)
            assert host.connections == 1 + number
    _, headers, body = host.requests[0]
    assert (headers["content-length"], headers["content-type"]) == ("1000000", "x/y")
    assert "transfer-encoding" not in headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert len(body) == 1_000_000
    assert api.requests == []


@pytest.mark.parametrize("size", [999_999, 1_000_001])
async def test_a_body_of_another_size_than_announced_is_never_answered(
    transport_to: Any, raw_server: Any, make: Any, size: int
) -> None:
    """The host receives no complete form, and the request ends before its timeout."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(OK))
        return True

    async with raw_server(behave) as server:
        transport = transport_to(server.url)
        begun = time.monotonic()
        result = await transport.exchange(upload(Pieces(size=size, pieces=10)), timeout_s=100)
        assert isinstance(result, Unknown)
        assert time.monotonic() - begun < 60
        assert not any(len(body) == size == 1_000_001 for _, _, body in server.requests)
        await works(transport)


async def test_an_answer_before_the_end_of_an_upload_is_answered(transport_to: Any, make: Any) -> None:
    """It is returned, at once or at the end; the rest of the upload is never read as another request."""
    heads: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(make.http(b"no", "401 Unauthorized"))
            await reader.readexactly(int(heads[-1].lower().partition(b"content-length: ")[2].split()[0]))

    async with listening(connected) as port:
        transport = transport_to(f"http://127.0.0.1:{port}")
        stream = Pieces(size=40_000, pieces=40, piece=b"x" * 1000, pause_s=0.005)
        for _ in range(3):
            result = await transport.exchange(upload(stream), timeout_s=60)
            assert isinstance(result, Answered)
            assert result.response.status == 401
        await transport.aclose()
    assert [head[:25] for head in heads] == [b"POST /api/file-stream-uplo"[:25]] * 3


async def test_slow_uploads_do_not_delay_a_submit(own_transport_to: Any, raw_server: Any, make: Any) -> None:
    """Uploads use connections of their own."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if "upload" in first:
            await asyncio.Event().wait()
        writer.write(make.http(OK))
        return True

    async with raw_server(behave) as server:
        transport = own_transport_to(server.url)
        async with asyncio.TaskGroup() as group:
            slow = upload(Pieces(size=100_000, pieces=1))
            uploads = [group.create_task(transport.exchange(slow, timeout_s=60)) for _ in range(8)]
            while len(server.requests) < 8:
                await asyncio.sleep(0.001)
            assert isinstance(await transport.exchange(POST, timeout_s=60), Answered)
            for each in uploads:
                each.cancel()


# --- proxies ----------------------------------------------------------------------------------------------


async def test_no_proxy_is_used_for_this_machine(
    own_transport_to: Any, raw_server: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy of the environment does not receive the key of a local sandbox."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(b"{}"))
        return True

    async with raw_server(behave) as proxy, raw_server(behave) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        transport = own_transport_to(server.url)
        assert isinstance(await transport.exchange(GET, timeout_s=60), Answered)
        assert isinstance(await transport.exchange(upload(Pieces(size=0, pieces=0)), timeout_s=60), Answered)
    assert proxy.connections == 0


async def test_a_proxy_of_the_environment_is_used_for_requests(
    own_transport_to: Any, raw_server: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every other host, with the proxy's password; ``no_proxy`` is respected."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(OK))
        return True

    async with raw_server(behave) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:pass@"))
        transport = own_transport_to("http://api.example.test")
        for _ in range(2):
            assert isinstance(await transport.exchange(POST, timeout_s=60), Answered)
        monkeypatch.setenv("no_proxy", "example.test")
        assert isinstance(
            await own_transport_to("http://a.example.test").exchange(POST, timeout_s=60), NotSent
        )
    assert proxy.connections == 2
    first, headers, _ = proxy.requests[0]
    assert first == f"POST http://api.example.test{POST.path} HTTP/1.1"
    assert headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:pass").decode()


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden", "502 Bad Gateway"])
async def test_a_proxy_that_opens_no_tunnel_is_not_sent(
    own_transport_to: Any, raw_server: Any, make: Any, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """It receives the target host and not the key; its password is in no message."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(b"", status))
        return False

    async with raw_server(behave) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:hush-hush@"))
        result = await own_transport_to("https://api.example.test").exchange(POST, timeout_s=60)
    assert isinstance(result, NotSent)
    assert status[:3] in result.reason
    assert "hush-hush" not in result.reason
    assert proxy.requests[0][0] == "CONNECT api.example.test:443 HTTP/1.1"
    assert KEY not in str(proxy.requests)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "http://", "nonsense://x"])
async def test_an_unsupported_proxy_is_not_sent(
    own_transport_to: Any, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """No server listens, or the library does not support its scheme: nothing is sent."""
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    for scheme in ("http", "https"):
        transport = own_transport_to(f"{scheme}://api.example.test")
        assert isinstance(await transport.exchange(POST, timeout_s=60), NotSent)


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_certificates_are_verified(
    own_transport_to: Any, make: Any, monkeypatch: pytest.MonkeyPatch, certificate: Path, trusted: bool
) -> None:
    """A certificate in SSL_CERT_FILE is accepted; with any other the request is not sent."""
    requests: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            requests.append(head + await reader.readexactly(len(POST.body or b"")))
            writer.write(make.http(OK))

    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with listening(connected, server_side(certificate)) as port:
        transport = own_transport_to(f"https://localhost:{port}")
        results = [await transport.exchange(POST, timeout_s=60) for _ in range(2)]
        await transport.aclose()
    assert {type(result) for result in results} == {Answered if trusted else NotSent}
    assert len(requests) == (2 if trusted else 0)


# --- many, and the end ------------------------------------------------------------------------------------


async def test_two_hundred_requests_at_once_leave_no_connection(
    own_transport_to: Any, raw_server: Any, make: Any
) -> None:
    """Some are answered, dropped, cut or timed out; then 40 more are answered, and all connections close."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        number = int(first.partition("n=")[2].split()[0] or 0) % 5
        if number == 1:
            return False
        if number == 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}")
            return False
        if number == 3:
            await late.wait()
            return False
        writer.write(make.http(OK))
        return True

    late = asyncio.Event()

    def request(number: int) -> WireRequest:
        return WireRequest(method="POST", path="/p", query={"n": str(number)}, body=b"{}")

    async with raw_server(behave) as server:
        transport = own_transport_to(server.url)
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(transport.exchange(request(n), timeout_s=0.2 if n % 5 == 3 else 60))
                for n in range(200)
            ]
        late.set()
        kinds = [type(call.result()) for call in calls]
        assert all(kind is Answered for n, kind in enumerate(kinds) if n % 5 in (0, 4))
        assert all(kind is Unknown for n, kind in enumerate(kinds) if n % 5 in (1, 2))
        assert all(kind in (Unknown, NotSent) for n, kind in enumerate(kinds) if n % 5 == 3)
        sent = [first.partition("n=")[2].split()[0] for first, _, _ in server.requests]
        assert len(sent) == len(set(sent)), "no POST was sent twice"
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            again = [group.create_task(transport.exchange(request(0), timeout_s=60)) for _ in range(40)]
        assert {type(call.result()) for call in again} == {Answered}
        async with asyncio.timeout(60):
            while server.open > 8:
                await asyncio.sleep(0.005)
        await transport.aclose()
        async with asyncio.timeout(60):
            while server.open:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("begun", [True, False])
async def test_closing_ends_requests_in_flight(own_transport_to: Any, raw_server: Any, begun: bool) -> None:
    """Requests that wait for headers or for a body end within their time; so do later ones.

    With aiohttp at once. (The client ends its exchanges before it closes the transport.)
    """

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if begun and len(server.requests) % 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
        await asyncio.Event().wait()
        return False

    async with raw_server(behave) as server:
        for patience_s in (0.3, 3.0, 30.0):  # a busy machine may need longer to connect
            server.requests.clear()
            transport = own_transport_to(server.url)
            timeout_s = 60 if transport.name == "aiohttp" else patience_s
            async with asyncio.timeout(100), asyncio.TaskGroup() as group:
                calls = [group.create_task(transport.exchange(POST, timeout_s=timeout_s)) for _ in range(6)]
                while len(server.requests) < 6 and not any(call.done() for call in calls):
                    await asyncio.sleep(0.005)
                was_in_time = not any(call.done() for call in calls)
                await transport.aclose()
            if was_in_time:
                break
        assert [type(call.result()) for call in calls] == [Unknown] * 6
        asked = len(server.requests)
        assert isinstance(await transport.exchange(POST, timeout_s=60), NotSent)
        assert len(server.requests) == asked
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("library", OURS)
@pytest.mark.parametrize("request_", [GET, POST], ids=["poll", "submit"])
def test_closing_waits_for_no_tls_shutdown_and_leaves_no_socket_open(
    library: Any, request_: WireRequest, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers the request and never the shutdown; the event loop ends at once after ``aclose``."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context, over = server_side(certificate), threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as wire:
            wire.recv(65536)
            wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(OK), OK))
            over.wait(60)

    async def main() -> None:
        origin = Credentials(KEY, f"https://localhost:{listener.getsockname()[1]}")
        transport = make_transport(library, origin, version="1")
        assert isinstance(await transport.exchange(request_, timeout_s=60), Answered)
        await transport.aclose()

    with socket.create_server(("127.0.0.1", 0)) as listener, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            asyncio.run(main())
            gc.collect()
        finally:
            over.set()
            thread.join()
    assert [str(warning.message) for warning in warned] == []
