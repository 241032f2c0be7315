"""Transport over httpx, or httpx2, which has the same interface.

Only this module imports httpx, and only when a client uses it: httpx imports click and rich if they are
installed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, Protocol
from urllib.parse import urlencode, urlsplit

import attrs

from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.errors import ConfigurationError, MissingExtra
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

NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
"""Exceptions that httpx's own transport raises only before the first byte of a request was sent."""

_FAMILIES = ("httpx", "httpx2")
_URLS_KEPT = 1024
_HEADERS_KEPT = 16
_MOST_RETRIES = 1000
"""Kept connections that one request may reject: more than any pool has."""


class HttpClient(Protocol):
    """Methods used of an ``httpx.AsyncClient`` or ``httpx2.AsyncClient``."""

    def build_request(self, *args: Any, **kwargs: Any) -> Any:
        """Make a request."""
        ...

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send it."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def library_named(name: Literal["httpx", "httpx2"]) -> ModuleType:
    """Return one of the two libraries.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as missing:
        raise MissingExtra.for_extra(f"The transport {name} ({missing})", name) from None


def family_of(client: object) -> ModuleType:
    """Return the library of a client given by the caller.

    Raises:
        ConfigurationError: It is neither an ``httpx.AsyncClient`` nor an ``httpx2.AsyncClient``.
    """
    for base in type(client).__mro__:
        root = base.__module__.partition(".")[0]
        if root in _FAMILIES and base.__name__ == "AsyncClient":
            return import_module(root)
    raise ConfigurationError(
        f"http_client must be an httpx.AsyncClient or an httpx2.AsyncClient, not {type(client).__name__}.",
        advice="Synchronous clients are not supported. Leave http_client out to use connections of its own.",
    )


class _UsedConnection(Exception):
    """The pool chose a connection that was used before; nothing was sent."""


def _connect_s(timeout_s: float) -> float:
    """Seconds for TCP, and again for TLS, so that both time out before the request is cancelled.

    Cancelling a TLS handshake inside httpcore 1.0 leaves its socket open.
    """
    return min(CONNECT_S, timeout_s / 2)


@attrs.define
class _Steps:
    """Progress of one request: a ``trace`` extension, as httpx documents it.

    Attributes:
        only_new: Use no connection that was used before. httpx has no such setting for a request, but it
            calls the extension before each step, and skips a step whose call raises: httpcore then closes
            the connection.
        reported: Whether any step was reported; a foreign transport reports none.
        connected: Whether a connection was opened for this request.
        sent: Whether its first byte may have been sent.
    """

    only_new: bool = False
    reported: bool = attrs.field(default=False, init=False)
    connected: bool = attrs.field(default=False, init=False)
    sent: bool = attrs.field(default=False, init=False)

    async def __call__(self, event: str, facts: dict[str, Any]) -> None:
        """Record a step; raise before the request is written to a used connection."""
        self.reported = True
        if event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete")):
            self.connected = True
        elif event.endswith(".send_request_headers.started"):
            if self.only_new and not self.connected and event.startswith("http11."):
                raise _UsedConnection
            request = facts.get("request")
            self.sent = self.sent or getattr(request, "method", None) != b"CONNECT"


class HttpxTransport:
    """Makes requests with httpx or httpx2, without redirects or cookies, and reports whether they were sent.

    A poll uses a connection that an earlier poll left open, if there is one. Every other request uses a
    connection of its own, closed afterwards, so that no answer can belong to an earlier request. The caller
    limits the requests in flight, and so the connections.

    Without a client of the caller's, each connection is one ``AsyncHTTPTransport``. httpcore's pool inspects
    all its connections before and after each request: with 16 in one pool a poll took 1.9 ms of CPU, with one
    in each 0.6 ms (``benchmarks/transports.py``). A request stopped in the middle can occupy a slot in its
    pool forever; here that is the connection that is closed anyway. The ``AsyncClient`` is left out because
    its cookies, redirects and log lines cost CPU and are not wanted.

    Args:
        credentials: API address and key.
        version: Version of this package, for the User-Agent.
        client: The caller's client, which the caller closes. None makes connections of its own.
        family: Library to make them with.
        files: Downloads files. None makes one that reaches public addresses and the API's own network.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        version: str,
        client: HttpClient | None = None,
        family: Literal["httpx", "httpx2"] = "httpx",
        files: FileClient | None = None,
    ) -> None:
        self._family = library_named(family) if client is None else family_of(client)
        self._credentials = credentials
        self._user_agent = user_agent(version, self.name, getattr(self._family, "__version__", "?"))
        self._given = client
        self._kept: deque[tuple[Any, float]] = deque()
        self._open: set[Any] = set()
        self._closed = False
        self._reports = False
        self._read_url = lru_cache(maxsize=_URLS_KEPT)(self._family.URL)
        self._made_headers = lru_cache(maxsize=_HEADERS_KEPT)(self._make_headers)
        self._tls_context = cache(tls_context)  # reading the certificates takes tens of milliseconds
        self._files = files or FileClient(
            self._user_agent,
            AddressGuard(credentials.host, is_public=credentials.is_default),
            self._tls_context,
        )

    def __repr__(self) -> str:
        return f"<HttpxTransport {getattr(self, '_credentials', '(not made)')!r}>"

    @property
    def name(self) -> str:
        """The library."""
        return self._family.__name__

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        if self._closed or getattr(self._given, "is_closed", False):
            return NotSent("the connections are closed" if self._closed else "the http_client is closed")
        if self._given is not None:
            return await self._exchange_through_client(self._given, request, timeout_s)
        steps, result = _Steps(), None
        try:
            wire = self._build(request, timeout_s, steps)
            connection = self._connection_for(request)
        except Exception as error:  # noqa: BLE001 - nothing was sent yet
            return NotSent(self._reason(error))
        try:
            sending = connection.handle_async_request(wire)
            result = await self._result_of(sending, timeout_s, steps, own=True)
        finally:
            if not isinstance(result, Answered) or self._closed:
                await self._close(connection)
            elif request.keep_alive:
                await self._keep(connection)
            else:
                self._open.discard(connection)  # it was closed with the answer: its pool keeps none
        return result

    async def _exchange_through_client(
        self, client: HttpClient, request: WireRequest, timeout_s: float
    ) -> SendResult:
        """Make a request with the caller's client; without ``keep_alive`` on a new connection."""
        for _ in range(_MOST_RETRIES):
            steps = _Steps(only_new=not request.keep_alive)
            try:
                url = self._credentials.url_for(request)
                wire = client.build_request(
                    request.method,
                    url,
                    params=dict(request.query),
                    headers=self._headers(request, url),
                    content=request.body if request.stream is None else request.stream,
                    timeout=self._family.Timeout(None, connect=_connect_s(timeout_s), pool=timeout_s / 2),
                    extensions={"trace": steps},
                )
            except Exception as error:  # noqa: BLE001 - nothing was sent yet
                return NotSent(self._reason(error))
            sending = client.send(wire, stream=True, follow_redirects=False, auth=None)
            try:
                return await self._result_of(sending, timeout_s, steps, own=False)
            except _UsedConnection:
                continue
        return NotSent("the http_client opens no new connection")

    async def _result_of(
        self, sending: Coroutine[Any, Any, Any], timeout_s: float, steps: _Steps, *, own: bool
    ) -> SendResult:
        """Make a request and return its result.

        An exception of the caller's client proves ``NotSent`` only if httpcore reported the steps of the
        request: a foreign transport has raised ConnectTimeout for a request that the server had received. A
        request that waits for a slot in a pool has no steps; then steps of earlier requests prove that there
        is a pool. It waits for half of the time only: a slot at the last moment would leave none for the
        answer, and a cancelled wait would prove nothing.

        Raises:
            _UsedConnection: It was not sent.
        """
        answer = Arriving()
        try:
            async with Deadline(timeout_s):
                return Answered(await self._read(await sending, answer))
        except _UsedConnection:
            raise
        except Unreadable as error:
            reason = str(error)
        except TimeoutError:
            if steps.reported and not steps.sent:
                return NotSent(f"no connection within {timeout_s:g} s")
            reason = f"no whole answer within {timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - every failure is one of three results
            reason, names = self._reason(error), {base.__name__ for base in type(error).__mro__}
            proves = own or steps.reported or (self._reports and "PoolTimeout" in names)
            if proves and not steps.sent and names & NEVER_SENT:
                return NotSent(reason)
        finally:
            self._reports = self._reports or steps.reported
        return Unknown(reason, self._credentials.scrub(answer.part()))

    def _connection_for(self, request: WireRequest) -> Any:
        """Return the connection that was used last, so that the others can expire, or a new one."""
        if request.keep_alive and self._kept:
            return self._kept.pop()[0]
        parts = urlsplit(self._credentials.url_for(request))
        connection = self._family.AsyncHTTPTransport(
            verify=self._tls_context(),
            limits=self._family.Limits(
                max_connections=1,
                max_keepalive_connections=int(request.keep_alive),
                keepalive_expiry=KEEPALIVE_S,
            ),
            proxy=proxy_for(parts.scheme.lower(), parts.hostname or ""),
        )
        self._open.add(connection)
        return connection

    async def _keep(self, connection: Any) -> None:
        """Keep a connection for the next poll; close those that no poll has used for ``KEEPALIVE_S``."""
        now = asyncio.get_running_loop().time()
        self._kept.append((connection, now))
        while self._kept and self._kept[0][1] < now - KEEPALIVE_S:
            await self._close(self._kept.popleft()[0])

    async def _close(self, connection: Any) -> None:
        self._open.discard(connection)
        with contextlib.suppress(Exception):  # the received answer must not be lost
            await connection.aclose()

    def _headers(self, request: WireRequest, url: str) -> Any:
        """Return the headers of a request. Those of all polls are made once, which saves 6 % of a poll."""
        headers = self._made_headers(url, request.content_type, request.keep_alive)
        if request.stream is not None:
            headers = headers.copy()
            headers["Content-Length"] = str(request.stream.size)
        return headers

    def _make_headers(self, url: str, content_type: str, keep_alive: bool) -> Any:  # noqa: FBT001
        headers = {
            "Accept": "*/*",
            "Accept-Encoding": ENCODINGS,
            "Content-Type": content_type,
            "User-Agent": self._user_agent,
        }
        if not keep_alive:
            headers["Connection"] = "close"
        return self._family.Headers(headers | self._credentials.authorization_for(url))

    def _build(self, request: WireRequest, timeout_s: float, steps: _Steps) -> Any:
        url = self._credentials.url_for(request)
        headers = self._headers(request, url)
        if request.query:
            url = f"{url}?{urlencode(request.query)}"
        times = {"connect": _connect_s(timeout_s), "pool": timeout_s}  # a Deadline bounds the whole request
        return self._family.Request(
            request.method,
            self._read_url(url),
            headers=headers,
            content=request.body if request.stream is None else request.stream,
            extensions={"timeout": times, "trace": steps},
        )

    async def _read(self, response: Any, answer: Arriving) -> WireResponse:
        try:
            headers = by_name(
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw
            )
            answer.encoding = headers.get("content-encoding", "")
            async for chunk in response.aiter_raw():
                answer.packed += chunk
                check_size(len(answer.packed))
        finally:
            await response.aclose()
        clean = self._credentials.scrub(unpacked(bytes(answer.packed), answer.encoding))
        return WireResponse(status=response.status_code, headers=headers, body=clean)

    def _reason(self, error: Exception) -> str:
        message = f"{type(error).__name__}: {error}".rstrip(": ")
        return self._credentials.scrub(message.encode("utf-8", "replace")).decode()

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open a file, without the key; see :class:`flux_async.transport.Transport`."""
        return self._files.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)

    async def aclose(self) -> None:
        """Close all connections for good, but not a client given by the caller.

        A connection that is being opened is closed when its request ends.
        """
        self._closed = True
        self._kept.clear()
        for connection in tuple(self._open):
            await self._close(connection)
        await self._files.aclose()
