"""Transport over aiohttp: the same requests for a fraction of httpx's CPU.

Only this module imports aiohttp, and only when a client uses it.

The class of an exception does not prove that a request was not sent: aiohttp repeats a GET on another
connection if a kept one was closed, and the second attempt may fail to connect after the first was delivered.
The proof is that the connector returned no connection for this request: ``NotSent``. After it has, every
failure is ``Unknown``. aiohttp never repeats a POST; the conformance tests verify it.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp
import attrs
import yarl

from flux_async.api.envelope import Host, Stream, WireRequest, WireResponse
from flux_async.transport import Answered, FileStream, NotSent, SendResult, Unknown
from flux_async.transport.background import Deadline
from flux_async.transport.credentials import Credentials
from flux_async.transport.file_client import FileClient
from flux_async.transport.http_settings import (
    CONNECT_S,
    ENCODINGS,
    KEEPALIVE_S,
    Arriving,
    Unreadable,
    by_name,
    check_size,
    proxy_for,
    tls_context,
    unpacked,
    user_agent,
)
from flux_async.transport.ssrf_guard import AddressGuard

OLDEST: Final = (3, 13)
"""Oldest supported version. The next major version may have another interface."""

_MOST_HEAD_BYTES = 64 * 1024
_URLS_KEPT = 1024
_TURNS_TO_CLOSE = 10  # of the event loop; one is enough for asyncio
_JSON = WireRequest(method="GET", path="/").content_type
PROXIES: Final = ("http", "https")
"""Schemes of proxies that aiohttp supports."""


def is_supported() -> bool:
    """Return whether this adapter supports the installed version of aiohttp."""
    numbers = aiohttp.__version__.split(".")[:2]
    if not all(number.isdigit() for number in numbers):
        return False
    major, *_ = known = tuple(map(int, numbers))
    return major == OLDEST[0] and known >= OLDEST


@attrs.define
class _Attempt:
    """One request: whether it has a connection, and the received part of its answer."""

    connected: bool = False
    answer: Arriving = attrs.field(factory=Arriving)


_ATTEMPT: ContextVar[_Attempt] = ContextVar("flux_async_attempt")


class _Connector(aiohttp.TCPConnector):
    """Records which request got a connection, and checks kept connections before they are used.

    aiohttp reuses every kept connection that it has not seen closed. Bytes that the server sent without a
    request would be read as the answer to the next one.

    Attributes:
        opened: The connections that may still be open.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.opened: set[asyncio.Transport] = set()

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        """Return a free connection that is open and has received nothing."""
        while True:
            connection = await super().connect(*args, **kwargs)
            transport = connection.transport
            if transport not in self.opened:
                self.opened = set(filter(_is_open, self.opened))
                if transport is not None:
                    self.opened.add(transport)
                break
            if not _is_stale(connection):
                break
            connection.close()
        _ATTEMPT.get().connected = True
        return connection

    async def abort(self) -> None:
        """Close the connections that ``close`` leaves open.

        It forgets those that were released before. Over TLS they stay open until the server answers their
        shutdown, and after the end of the event loop they would never be closed.
        """
        for transport in self.opened:
            transport.abort()
        for _ in range(_TURNS_TO_CLOSE):
            if not any(map(_is_open, self.opened)):
                break
            await asyncio.sleep(0)


def _is_open(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.fileno() >= 0


def _is_stale(connection: aiohttp.connector.Connection) -> bool:
    """Return whether a kept connection was closed, or received anything, since its last answer.

    Bytes that the event loop has read already are seen only by the protocol's ``should_close``, which aiohttp
    does not document: without it no connection is used twice.
    """
    if getattr(connection.protocol, "should_close", True):
        return True
    transport = connection.transport
    return transport is None or not _is_open(transport) or _is_readable(transport)


def _is_readable(transport: asyncio.Transport) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def _checked(stream: Stream) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of a body. A size other than announced aborts the request: the host would wait."""
    left = stream.size
    async for piece in stream:
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise ValueError("the body does not have the announced size")


@attrs.define(eq=False)
class HostSession:
    """Connections to one host, kept alive or not, and the settings of their requests.

    Attributes:
        session: Sends the headers, key included.
        connector: Its connections.
        prefix: Address before the path of a request.
        scrub: Removes the key from an answer.
        reading: Answers that are being read.
    """

    session: aiohttp.ClientSession = attrs.field(repr=False)
    connector: _Connector = attrs.field(repr=False)
    prefix: str
    scrub: Callable[[bytes], bytes] = attrs.field(repr=False)
    reading: set[aiohttp.ClientResponse] = attrs.field(factory=set, repr=False)

    async def send(self, request: WireRequest, timeout_s: float, answer: Arriving) -> WireResponse:
        """Make one request and return its answer; ``answer`` holds the received part if it breaks off."""
        headers = {} if request.content_type == _JSON else {"Content-Type": request.content_type}
        if request.stream is not None:
            headers["Content-Length"] = str(request.stream.size)
        response = await self.session.request(
            request.method,
            _url(self.prefix + request.path, tuple(request.query.items())),
            data=request.body if request.stream is None else _checked(request.stream),
            headers=headers,
            allow_redirects=False,
            timeout=_timeout(timeout_s),
        )
        self.reading.add(response)
        received = by_name(response.headers.items())
        answer.encoding = received.get("content-encoding", "")
        try:
            packed = await _read(response, answer.packed)
        finally:
            self.reading.discard(response)
            if not response.closed:  # not read to its end: the connection cannot be reused
                response.close()
        whole = self.scrub(unpacked(packed, answer.encoding))
        return WireResponse(status=response.status, headers=received, body=whole)

    async def aclose(self) -> None:
        """Close the connections; reading an answer then raises."""
        for response in tuple(self.reading):
            response.close()
        await self.session.close()
        await self.connector.abort()


async def _read(response: aiohttp.ClientResponse, packed: bytearray) -> bytes:
    """Read a body as it was sent, up to the limit. Nearly always it was received with the headers."""
    content = response.content
    body = content.read_nowait()
    if content.at_eof():
        return body
    packed += body
    while not content.at_eof():
        check_size(len(packed))
        packed += await content.readany()
    check_size(len(packed))
    return bytes(packed)


@lru_cache(maxsize=_URLS_KEPT)
def _url(address: str, query: tuple[tuple[str, str], ...]) -> yarl.URL:
    """Return the parsed address. The cache saves parsing it for every poll of a task."""
    return yarl.URL(f"{address}?{urlencode(query)}" if query else address, encoded=True)


@lru_cache(maxsize=64)
def _timeout(timeout_s: float) -> aiohttp.ClientTimeout:
    """Limit the time to connect; a Deadline bounds the whole request."""
    return aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_S, timeout_s))


class AiohttpTransport:
    """Makes requests with aiohttp, without redirects or cookies, and reports whether they were sent.

    Polls share connections that are kept alive. Every other request uses a connection of its own, closed
    afterwards, so that no answer can belong to an earlier request. The caller limits the requests in flight,
    and so the connections.

    Args:
        credentials: API address and key.
        version: Version of this package, for the User-Agent.
        files: Downloads files. None makes one that reaches public addresses and the API's own network.
    """

    name = "aiohttp"

    def __init__(self, credentials: Credentials, *, version: str, files: FileClient | None = None) -> None:
        self._credentials = credentials
        self._user_agent = user_agent(version, "aiohttp", aiohttp.__version__)
        self._sessions: dict[tuple[Host, bool], HostSession] = {}
        self._closed = False
        self._tls_context = cache(tls_context)  # reading the certificates takes tens of milliseconds
        self._files = files or FileClient(
            self._user_agent,
            AddressGuard(credentials.host, is_public=credentials.is_default),
            self._tls_context,
        )

    def __repr__(self) -> str:
        return f"<AiohttpTransport {getattr(self, '_credentials', '(not made)')!r}>"

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        if self._closed:
            return NotSent("the connections are closed")
        attempt = _Attempt()
        _ATTEMPT.set(attempt)
        try:
            async with Deadline(timeout_s):
                response = await self._session_for(request).send(request, timeout_s, attempt.answer)
        except asyncio.CancelledError:
            if not self._closed or _is_cancelled():
                raise
            reason = "the connections were closed meanwhile"  # aiohttp cancels requests that wait for one
        except TimeoutError:
            reason = f"no {'whole answer' if attempt.connected else 'connection'} within {timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - every failure is one of three results
            reason = self._reason(error)
        else:
            return Answered(response)
        if not attempt.connected:
            return NotSent(reason)
        return Unknown(reason, self._credentials.scrub(attempt.answer.part()))

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open a file, without the key; see :class:`flux_async.transport.Transport`."""
        return self._files.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)

    async def aclose(self) -> None:
        """Close all connections, for good."""
        self._closed = True
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.aclose()
        await self._files.aclose()

    def _session_for(self, request: WireRequest) -> HostSession:
        """Return the session for polls, or the one whose connections serve one request each."""
        which = request.host, request.keep_alive
        session = self._sessions.get(which)
        if session is None:
            session = self._sessions[which] = self._make_session(*which)
        return session

    def _make_session(self, host: Host, keep_alive: bool) -> HostSession:  # noqa: FBT001
        base = self._credentials.upload_url if host is Host.UPLOADS else self._credentials.base_url
        scheme, name = urlsplit(base).scheme.lower(), urlsplit(base).hostname or ""
        prefix, proxy = str(yarl.URL(base)).rstrip("/"), proxy_for(scheme, name)
        if proxy is not None and urlsplit(proxy).scheme not in PROXIES:
            raise ValueError("aiohttp supports no SOCKS proxy, which the environment names; use httpx")
        kept: dict[str, Any] = {"keepalive_timeout": KEEPALIVE_S} if keep_alive else {"force_close": True}
        connector = _Connector(
            **kept,
            limit=0,  # the caller limits the requests in flight
            ssl=self._tls_context() if scheme == "https" else True,
            resolver=aiohttp.ThreadedResolver(),  # of the system, as for all other connections
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "Accept": "*/*",
                "Accept-Encoding": ENCODINGS,
                "Content-Type": _JSON,
                "User-Agent": self._user_agent,
            }
            | self._credentials.authorization_for(base),
            proxy=proxy,
            trust_env=False,  # else netrc is read for each request, and a proxy used for this machine
            auto_decompress=False,  # the limit of the decompressed size is ours
            max_line_size=_MOST_HEAD_BYTES,
            max_field_size=_MOST_HEAD_BYTES,
        )
        return HostSession(session, connector, prefix, self._credentials.scrub)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, Unreadable):
            message = str(error)
        elif isinstance(error, aiohttp.ClientHttpProxyError):  # its message can contain the proxy's password
            message = f"the proxy answered HTTP {error.status}"
        else:
            message = f"{type(error).__name__}: {error}".rstrip(": ")
        return self._credentials.scrub(message.encode("utf-8", "replace")).decode()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
