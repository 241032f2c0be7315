"""An HTTP server over a real socket whose answers are bytes that the test writes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import attrs

Behaviour: TypeAlias = Callable[[str, dict[str, str], bytes, asyncio.StreamWriter], Awaitable[bool]]
"""Answers a request (first line, headers, body, connection); returns whether the connection stays open."""


@attrs.define
class RawServer:
    """A running server.

    Attributes:
        url: Its address.
        requests: First line, headers and body of each request.
        connections: Number of connections since the start.
        open: Number of connections open now.
    """

    url: str
    requests: list[tuple[str, dict[str, str], bytes]] = attrs.field(factory=list)
    connections: int = 0
    open: int = 0

    async def serve(
        self, behave: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection."""
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((first, headers, body))
                if not await behave(first, headers, body, writer):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def raw_server(behave: Behaviour, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Serve on a free port of this machine."""
    server = RawServer("")
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        await server.serve(behave, reader, writer)
        running.discard(task)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    scheme, port = "http" if tls is None else "https", listener.sockets[0].getsockname()[1]
    server.url = f"{scheme}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.sleep(0)


def http_response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Return the bytes of an HTTP answer."""
    head = (
        f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\ncontent-type: application/json\r\n{headers}\r\n"
    )
    return head.encode() + body
