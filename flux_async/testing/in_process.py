"""Requests to a sandbox without a socket: they are handed to the application, in its own thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlencode, urlsplit

import anyio
import attrs

from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.errors import DownloadCutShort, DownloadError
from flux_async.transport import Answered, FileStream, NotSent, SendResult, Transport, Unknown
from flux_async.transport.credentials import Credentials
from flux_async.transport.file_client import MOST_REDIRECTS
from flux_async.transport.ssrf_guard import ParsedUrl

URL: Final = "https://sandbox.test"
"""Where the sandbox is when it listens nowhere: a name that can never belong to anybody (RFC 6761)."""

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]

IN_REQUEST: Final[ContextVar[bool]] = ContextVar("flux_async_in_request", default=False)
"""Whether what runs here is answering a request, whose sender holds the clock meanwhile."""

_USER_AGENT: Final = "flux-async (in process)"
_CHUNK: Final = 64 * 1024
_DROPPED_STATUS: Final = 500


@attrs.frozen(kw_only=True)
class Heard:
    """What came back: everything, or what came before the line was cut."""

    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    is_whole: bool = True

    @property
    def by_name(self) -> dict[str, str]:
        """The headers, their names in lower case."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.headers}


def as_answering(app: App) -> App:
    """Wrap an application: while it answers a request, `IN_REQUEST` says so."""

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        token = IN_REQUEST.set(True)
        try:
            await app(scope, receive, send)
        finally:
            IN_REQUEST.reset(token)

    return answering


async def ask(app: App, method: str, url: str, headers: RawHeaders, body: bytes) -> Heard:
    """Have one request answered by an application, in this event loop."""
    said: dict[str, Any] = {}
    pieces: list[bytes] = []
    requests = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in requests:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            said.update(status=message["status"], headers=tuple(message.get("headers", ())))
        elif message["type"] == "http.response.body":
            pieces.append(message.get("body", b""))

    try:
        await as_answering(app)(_scope(method, url, headers), receive, send)
    except ConnectionResetError:  # a dropped connection; what Starlette says of it would not have arrived
        if said.get("status") == _DROPPED_STATUS:
            return Heard(is_whole=False)
        return Heard(**said, body=b"".join(pieces), is_whole=False)
    return Heard(**said, body=b"".join(pieces))


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


@attrs.frozen
class _HeardFile:
    """A file that came from the sandbox."""

    host: str
    heard: Heard

    @property
    def status(self) -> int:
        return self.heard.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self.heard.by_name

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.heard.body), _CHUNK):
            yield self.heard.body[start : start + _CHUNK]
        if not self.heard.is_whole:
            raise DownloadCutShort(f"The download from {self.host} broke off: the connection was closed.")


@attrs.define(eq=False)
class InProcess:
    """A client's way to a sandbox without a socket; files of other hosts go the usual way.

    Args:
        origin: The sandbox's address and the key.
        hand_over: Has a request answered: method, address, headers, body.
        elsewhere: Fetches files of other hosts.
    """

    origin: Credentials
    hand_over: Callable[[str, str, RawHeaders, bytes], Awaitable[Heard]] = attrs.field(repr=False)
    elsewhere: Transport = attrs.field(repr=False)
    name: str = "in process"

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        url = self.origin.url_for(request)
        said = {"Content-Type": request.content_type, "User-Agent": _USER_AGENT}
        said |= self.origin.authorization_for(url)
        headers = [(name.lower().encode(), value.encode()) for name, value in said.items()]
        if request.query:
            url = f"{url}?{urlencode(request.query)}"
        try:
            body = request.body or b""
            if request.stream is not None:
                body = b"".join([piece async for piece in request.stream])
        except Exception as error:  # noqa: BLE001 - nothing has left yet, whatever it is
            return NotSent(f"{type(error).__name__}: {error}")
        try:
            async with asyncio.timeout(timeout_s):
                heard = await self.hand_over(request.method, url, headers, body)
        except TimeoutError:
            return Unknown(f"no whole answer within {timeout_s:g} s")
        if not heard.is_whole:
            return Unknown("the connection was closed without a whole answer")
        return Answered(WireResponse(status=heard.status, headers=heard.by_name, body=heard.body))

    @asynccontextmanager
    async def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[FileStream]:
        """Open a file; see :class:`flux_async.transport.Transport`."""
        said = {"User-Agent": _USER_AGENT, **(headers or {})}
        raw = [(name.lower().encode(), value.encode()) for name, value in said.items()]
        parsed = ParsedUrl.read(url)
        for _ in range(1 + MOST_REDIRECTS):
            if parsed.host != self.origin.host:
                async with self.elsewhere.fetch(
                    parsed.url, timeout_s=timeout_s, stall_s=stall_s, headers=headers
                ) as file:
                    yield file
                return
            found = _HeardFile(parsed.host, await self.hand_over("GET", parsed.url, raw, b""))
            if not found.status:
                raise DownloadCutShort(
                    f"{parsed.host} broke off without an answer: the connection was closed."
                )
            if not 300 <= found.status < 400 or "location" not in found.headers:  # noqa: PLR2004 - as HTTP says
                yield found
                return
            parsed = parsed.follow(found.headers["location"])
        raise DownloadError(f"The download was redirected more than {MOST_REDIRECTS} times.")

    async def aclose(self) -> None:
        """Close what was opened to other hosts."""
        await self.elsewhere.aclose()
