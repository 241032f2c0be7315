"""Transports to the sandbox of a test: without a socket, on virtual time, closed with their event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlencode, urlsplit

import anyio
import attrs

from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.errors import DownloadCutShort, DownloadError
from flux_async.testing.clock import VirtualClock
from flux_async.transport import Answered, FileStream, NotSent, SendResult, Transport, Unknown
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import name_of
from flux_async.transport.file_client import MOST_REDIRECTS
from flux_async.transport.ssrf_guard import ParsedUrl

URL: Final = "https://sandbox.test"
"""Address of a sandbox without a socket: a name that is never registered (RFC 6761)."""

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]

IN_REQUEST: Final[ContextVar[bool]] = ContextVar("flux_async_in_request", default=False)
"""Whether the running code answers a request, whose sender holds the clock meanwhile."""

_USER_AGENT: Final = "flux-async (in process)"
_CHUNK: Final = 64 * 1024
_DROPPED_STATUS: Final = 500


@attrs.frozen(kw_only=True)
class AppResponse:
    """Response of an ASGI application, or the part of it that preceded the end of the connection."""

    host: str
    status: int = 0
    raw_headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    is_whole: bool = True

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by their names in lower case."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.raw_headers}

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces; see :class:`flux_async.transport.FileStream`."""
        for start in range(0, len(self.body), _CHUNK):
            yield self.body[start : start + _CHUNK]
        if not self.is_whole:
            raise DownloadCutShort(f"The download from {self.host} broke off: the connection was closed.")


def marking_requests(app: App) -> App:
    """Wrap an application so that `IN_REQUEST` is true while it answers a request."""

    async def marked(scope: Any, receive: Any, send: Any) -> None:
        token = IN_REQUEST.set(True)
        try:
            await app(scope, receive, send)
        finally:
            IN_REQUEST.reset(token)

    return marked


async def call_app(app: App, method: str, url: str, headers: RawHeaders, body: bytes) -> AppResponse:
    """Make one request to an application, in this event loop."""
    parts, start, pieces = urlsplit(url), dict[str, Any](), list[bytes]()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            start.update(status=message["status"], raw_headers=tuple(message.get("headers", ())))
        elif message["type"] == "http.response.body":
            pieces.append(message.get("body", b""))

    is_whole = True
    try:
        await marking_requests(app)(_scope(method, url, headers), receive, send)
    except ConnectionResetError:
        is_whole = False
        if start.get("status") == _DROPPED_STATUS:  # Starlette's answer to the exception, which is not sent
            start.clear()
            pieces.clear()
    return AppResponse(host=parts.hostname or "", **start, body=b"".join(pieces), is_whole=is_whole)


def _scope(method: str, url: str, headers: RawHeaders) -> dict[str, Any]:
    parts = urlsplit(url)
    given = [(name.lower(), value) for name, value in headers]
    if not any(name == b"host" for name, _ in given):
        given.append((b"host", parts.netloc.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": parts.scheme,
        "path": unquote(parts.path),
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": given,
        "server": (parts.hostname, parts.port or 443),
        "client": ("127.0.0.1", 0),
        "state": {},
    }


@attrs.define(eq=False)
class AppTransport:
    """Requests to a sandbox without a socket; files of other hosts are fetched over the network.

    Args:
        credentials: Address of the sandbox, and the key.
        call: Makes a request to the sandbox: method, address, headers, body.
        elsewhere: Fetches files of other hosts.
    """

    credentials: Credentials
    call: Callable[[str, str, RawHeaders, bytes], Awaitable[AppResponse]] = attrs.field(repr=False)
    elsewhere: Transport = attrs.field(repr=False)
    name: str = "in process"

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        url = self.credentials.url_for(request)
        named = {"Content-Type": request.content_type} | self.credentials.authorization_for(url)
        if request.query:
            url = f"{url}?{urlencode(request.query)}"
        try:
            body = request.body or b""
            if request.stream is not None:
                body = b"".join([piece async for piece in request.stream])
        except Exception as error:  # noqa: BLE001 - nothing was sent yet
            return NotSent(f"{type(error).__name__}: {error}")
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.call(request.method, url, _raw(named), body)
        except TimeoutError:
            return Unknown(f"no whole answer within {timeout_s:g} s")
        if not response.is_whole:
            return Unknown("the connection was closed without a whole answer")
        return Answered(
            WireResponse(status=response.status, headers=dict(response.headers), body=response.body)
        )

    @asynccontextmanager
    async def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[FileStream]:
        """Open a file; see :class:`flux_async.transport.Transport`."""
        parsed = ParsedUrl.read(url)
        for _ in range(1 + MOST_REDIRECTS):
            if parsed.host != self.credentials.host:
                async with self.elsewhere.fetch(
                    parsed.url, timeout_s=timeout_s, stall_s=stall_s, headers=headers
                ) as file:
                    yield file
                return
            found = await self.call("GET", parsed.url, _raw(headers or {}), b"")
            if not found.status:
                raise DownloadCutShort(
                    f"{parsed.host} broke off without an answer: the connection was closed."
                )
            if not 300 <= found.status < 400 or "location" not in found.headers:  # noqa: PLR2004 - HTTP's redirects
                yield found
                return
            parsed = parsed.follow(found.headers["location"])
        raise DownloadError(f"The download was redirected more than {MOST_REDIRECTS} times.")

    async def aclose(self) -> None:
        """Close the connections to other hosts."""
        await self.elsewhere.aclose()


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    named = {"User-Agent": _USER_AGENT, **headers}
    return [(name.lower().encode(), value.encode()) for name, value in named.items()]


@attrs.define(eq=False)
class ManagedTransport:
    """Wraps a transport: virtual time stands still during a request, whose timeout is in virtual seconds.

    Connections belong to the event loop that first used them. They are closed with it, also if the client is
    never closed: fixtures are often torn down after their loop.

    Args:
        inner: Makes the requests.
        clock: Virtual time; None for real time.
    """

    inner: Transport
    clock: VirtualClock | None = None
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    _late: set[asyncio.Future[SendResult]] = attrs.field(factory=set, init=False, repr=False)
    _closing: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)
    _closer: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        """The library."""
        return name_of(self.inner)

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        self._start_closer()
        if self.clock is None:
            return await self.inner.exchange(request, timeout_s=timeout_s)
        with self.clock.hold():
            return await self._in_virtual_time(self.clock, request, timeout_s)

    async def _in_virtual_time(
        self, clock: VirtualClock, request: WireRequest, timeout_s: float
    ) -> SendResult:
        # Both are tasks of their own: cancelling a request can cost its pool a connection.
        exchange = asyncio.ensure_future(self.inner.exchange(request, timeout_s=timeout_s))  # noqa: TID251
        timeout = asyncio.ensure_future(clock.sleep(timeout_s))  # noqa: TID251
        try:
            await asyncio.wait({exchange, timeout}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timeout.cancel()
            if not exchange.done():
                self._late.add(exchange)
                exchange.add_done_callback(self._late.discard)
        return exchange.result() if exchange.done() else Unknown(f"no whole answer within {timeout_s:g} s")

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open a file; see :class:`flux_async.transport.Transport`."""
        self._start_closer()
        opened = self.inner.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)
        return opened if self.clock is None else _held(self.clock, opened)

    async def aclose(self) -> None:
        """Close all connections."""
        self._closing.set()
        if self._closer is None:
            await self._close()
        else:
            await self._closer

    def run_in_its_loop(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``close`` in the event loop of the connections, from outside of it, unless that is closed."""
        if self._loop is not None and not self._loop.is_closed() and not self._loop.is_running():
            self._loop.run_until_complete(close())

    def _start_closer(self) -> None:
        if self._closer is None:
            self._loop = asyncio.get_running_loop()
            self._closer = asyncio.create_task(self._close_at_the_end())  # noqa: TID251 - ends with the loop

    async def _close_at_the_end(self) -> None:
        try:
            await self._closing.wait()
        finally:
            await self._close()

    async def _close(self) -> None:
        late = tuple(self._late)
        for exchange in late:
            exchange.cancel()
        if late:
            await asyncio.wait(late)
        await self.inner.aclose()


@asynccontextmanager
async def _held(
    clock: VirtualClock, opened: AbstractAsyncContextManager[FileStream]
) -> AsyncIterator[FileStream]:
    with clock.hold():
        async with opened as file:
            yield file
