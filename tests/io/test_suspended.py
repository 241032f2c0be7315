"""A process that was stopped during a request: received data is read before the timeout is applied.

The event loop of these tests can be suspended: while it stands still the server answers, and the loop's clock
goes on by more than every timeout. Then the answer in the socket and the timers are due in the same turn.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import httpx
import httpx2
import pytest

from flux_async import FluxClient
from flux_async.api.envelope import WireRequest
from flux_async.transport import Answered, Transport
from flux_async.transport.background import Deadline
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import make_transport

KEY = "k-secret-0123456789"
POST = WireRequest(method="POST", path="/api/v1/flux/kontext/generate", body=b'{"prompt":"x"}')
POLL = WireRequest(method="GET", path="/api/v1/flux/kontext/record-info", keep_alive=True)
LIBRARIES = ["httpx", "httpx2", "aiohttp", "client of httpx", "client of httpx2"]
PATIENCE_S = 60


class SuspendableLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be moved forward."""

    gap_s = 0.0

    def time(self) -> float:
        """Return the time of the system plus all gaps."""
        return super().time() + self.gap_s


def run(main: Callable[[SuspendableLoop], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on such a loop."""
    with asyncio.Runner(loop_factory=SuspendableLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SuspendableLoop)
        runner.run(main(loop))


@attrs.define
class SlowServer:
    """A server in a thread: it reads a request and sends an answer in parts on demand."""

    url: str
    asked: threading.Event = attrs.field(factory=threading.Event)
    answer: threading.Event = attrs.field(factory=threading.Event)
    answered: threading.Event = attrs.field(factory=threading.Event)

    def suspend(self, loop: SuspendableLoop, seconds: float) -> None:
        """Block the event loop until the answer is in the socket, then move the clock forward."""
        self.answer.set()
        assert self.answered.wait(PATIENCE_S)
        loop.gap_s += seconds


@contextmanager
def slow_server(pieces: list[bytes], secure: ssl.SSLContext | None = None) -> Iterator[SlowServer]:
    """Serve one connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    scheme = "http" if secure is None else "https"
    server = SlowServer(f"{scheme}://localhost:{listener.getsockname()[1]}")

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection if secure is None else secure.wrap_socket(connection, server_side=True) as wire:
            request = b""
            while b"\r\n\r\n" not in request or (request.startswith(b"POST") and b'"x"' not in request):
                request += wire.recv(65536)
            server.asked.set()
            server.answer.wait(PATIENCE_S)
            for piece in pieces:
                wire.sendall(piece)
            server.answered.set()
            wire.recv(1)  # until the client closes

    thread = threading.Thread(target=_quietly, args=[serve], name="slow server")
    thread.start()
    try:
        yield server
    finally:
        server.answer.set()
        thread.join()
        listener.close()


def _quietly(serve: Callable[[], None]) -> None:
    with suppress(OSError):
        serve()


def transport_to(url: str, library: str) -> tuple[Transport, Any]:
    """Return a transport of that kind, and its client if it has one."""
    given = None
    if library.startswith("client"):
        given = httpx.AsyncClient() if library.endswith("httpx") else httpx2.AsyncClient()
    name: Any = library if given is None else None
    return make_transport(name, Credentials(KEY, url), version="1", client=given), given


BODY = b'{"code":200,"data":{"taskId":"t1"}}' + b" " * 4000
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY)
CHUNKS = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:9], BODY[9:99], BODY[99:])]
ANSWERS = {
    "at once": [HEAD + BODY],
    "head, then body": [HEAD, BODY],
    "in small pieces": [HEAD[:5], HEAD[5:], *(BODY[at : at + 400] for at in range(0, len(BODY), 400))],
    "in chunks": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *CHUNKS, b"0\r\n\r\n"],
}


@pytest.mark.parametrize("pieces", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("request_", [POST, POLL], ids=["submit", "poll"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_answer_received_while_the_process_was_stopped_is_read(
    library: str,
    request_: WireRequest,
    secure: bool,
    pieces: list[bytes],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A submit whose answer is in the socket is not in doubt, whatever its timeout."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if secure else None
    if context is not None:
        context.load_cert_chain(certificate)

    async def main(loop: SuspendableLoop) -> None:
        transport, given = transport_to(server.url, library)
        exchange = loop.create_task(transport.exchange(request_, timeout_s=60.0))
        while not server.asked.is_set():
            await asyncio.sleep(0.001)
        server.suspend(loop, 65.0)
        result = await exchange
        assert isinstance(result, Answered), result
        assert result.response.body == BODY
        await transport.aclose()
        if given is not None:
            await given.aclose()

    with slow_server(pieces, context) as server:
        run(main)


@pytest.mark.parametrize("library", ["httpx", "aiohttp"])
def test_a_submit_of_a_client_survives_all_of_its_deadlines(library: Any) -> None:
    """It returns the task id although the caller's deadline has passed, too."""

    async def main(loop: SuspendableLoop) -> None:
        from flux_async import EditRequest  # noqa: PLC0415

        async with FluxClient(KEY, server.url, transport=library) as client:
            request = EditRequest(prompt="x", input_image="https://h.example/x.jpg")
            submit = loop.create_task(client.submit(request, timeout=300.0))
            while not server.asked.is_set():
                await asyncio.sleep(0.001)
            server.suspend(loop, 400.0)
            assert await submit == "t1"
            assert client.unclaimed == ()

    with slow_server(ANSWERS["head, then body"]) as server:
        run(main)


async def test_a_deadline_cancels_a_block_that_does_not_end() -> None:
    """It raises TimeoutError and has expired; a cancellation from outside stays a cancellation."""
    deadline = Deadline(0.0)
    with pytest.raises(TimeoutError):
        async with deadline:
            await asyncio.Event().wait()
    assert deadline.expired()
    with pytest.raises(ValueError, match="own"):
        async with Deadline(60.0):
            raise ValueError("its own")
