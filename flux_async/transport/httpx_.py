"""The adapter to httpx, and to httpx2, which has the same interface.

This is the one module that imports httpx, and only when a client is made that uses it: httpx loads the whole
of click and rich where they are installed.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, Protocol
from urllib.parse import urlencode, urlsplit

from flux_async.errors import ConfigurationError, MissingExtra
from flux_async.policy.admission import Limits
from flux_async.protocol.envelope import Host, WireRequest, WireResponse
from flux_async.transport import Answered, FileStream, NotSent, Truth, Unknown
from flux_async.transport.addresses import AddressGuard
from flux_async.transport.conduct import (
    CONNECT_S,
    ENCODINGS,
    KEEPALIVE_S,
    UPLOADS,
    Unreadable,
    by_name,
    check_size,
    tls_context,
    unpacked,
    user_agent,
)
from flux_async.transport.file_host import FileHost
from flux_async.transport.one_connection import drop_pool
from flux_async.transport.origin import ApiOrigin
from flux_async.transport.pools import Rack
from flux_async.transport.proxies import proxy_for

NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
"""Exceptions that httpx's own transport raises only before the first byte of a request has left."""

_FAMILIES = ("httpx", "httpx2")
_HARD_STOP_S = 2.0
_URLS_KEPT = 1024


class HttpClient(Protocol):
    """What is used of an ``httpx.AsyncClient`` or ``httpx2.AsyncClient``."""

    def build_request(self, *args: Any, **kwargs: Any) -> Any:
        """Make a request."""
        ...

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send it."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class Carrier(Protocol):
    """What is used of the library's own ``AsyncHTTPTransport``."""

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request; its answer has a head, and a body to be read."""
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
        raise MissingExtra.for_extra(f"transport={name!r} ({missing})", name) from None


def family_of(client: object) -> ModuleType:
    """Return the library an injected client belongs to.

    Raises:
        ConfigurationError: It is neither an ``httpx.AsyncClient`` nor an ``httpx2.AsyncClient``.
    """
    for base in type(client).__mro__:
        root = base.__module__.partition(".")[0]
        if root in _FAMILIES and base.__name__ == "AsyncClient":
            return sys.modules[root]
    raise ConfigurationError(
        f"http_client must be an httpx.AsyncClient or an httpx2.AsyncClient, not {type(client).__name__}.",
        advice="Synchronous clients cannot be used; leave http_client out to have one made.",
    )


def tells_the_truth(client: Any, family: ModuleType) -> bool:
    """Say whether the client's "could not connect" can be believed.

    Foreign carriers have been seen to raise ``ConnectTimeout`` for a request that the server had read, and a
    response hook may fail to connect somewhere else after the answer has come. With those, and with
    subclasses, nothing counts as never sent. (``MockTransport`` is the library's own stand-in for a carrier.)
    """
    if type(client) is not family.AsyncClient or any(client.event_hooks.values()):
        return False
    carriers = [getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()]
    own = (family.AsyncHTTPTransport, family.MockTransport)
    return all(carrier is None or type(carrier) in own for carrier in carriers)


def _note_what_is_not_installed() -> None:
    """Have Python remember that there is no sniffio, where there is none.

    httpcore tries to import it at every lock, a few times a request, and what is not found is looked for anew
    on the whole path each time. None in ``sys.modules`` is Python's own way to say that there is no such
    module.
    """
    if "sniffio" not in sys.modules and find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment]


class _TooLate(Exception):
    """The time is over, and nobody had to be cancelled for it."""


class HttpxTransport:
    """Requests through httpx or httpx2: few connections, kept alive, without redirects, an honest account.

    Where no client is given, requests go straight to the library's carrier: what its client adds to each
    (cookies, redirects, a line in the log) costs CPU, and is not wanted.

    Args:
        origin: The API's address and key.
        limits: Bounds the connections: ``connections`` for looks and ``submits_in_air`` for submits.
        version: Ours, for the User-Agent.
        client: A client of the caller's, which stays his to close; None has connections made.
        family: The library to make them with.
        files: Fetches files; None has one made, which goes to public addresses and to the API's own kind.
    """

    def __init__(
        self,
        origin: ApiOrigin,
        limits: Limits,
        *,
        version: str,
        client: HttpClient | None = None,
        family: Literal["httpx", "httpx2"] = "httpx",
        files: FileHost | None = None,
    ) -> None:
        self._family = library_named(family) if client is None else family_of(client)
        self._origin = origin
        self._limits = limits
        self._user_agent = user_agent(version, self.name, getattr(self._family, "__version__", "?"))
        self._given = client
        self._own: Rack[Carrier] | None = None
        self._for_uploads: Rack[Carrier] | None = None
        self._closed = False
        self._read_url = lru_cache(maxsize=_URLS_KEPT)(self._family.URL)
        self._tls: ssl.SSLContext | None = None
        _note_what_is_not_installed()
        self._files = files or FileHost(
            self._user_agent, AddressGuard(origin.host, is_public=origin.is_default), self._tls_context
        )

    def __repr__(self) -> str:
        return f"<HttpxTransport {getattr(self, '_origin', '(not made)')!r}>"

    @property
    def name(self) -> str:
        """The library."""
        return self._family.__name__

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> Truth:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        if self._closed or getattr(self._given, "is_closed", False):
            return NotSent("the connections are closed" if self._closed else "the http_client is closed")
        if self._given is not None:
            return await self._exchange_through_client(self._given, request, timeout_s)
        rack = self._rack_for(request)
        try:
            wire = self._build(request, timeout_s)
            carrier = await rack.take(timeout_s)
        except Exception as error:  # noqa: BLE001 - nothing has left yet, whatever it is
            return NotSent(self._reason(error))
        truth: Truth | None = None
        try:
            truth = await self._told(carrier.handle_async_request(wire), timeout_s, believed=True)
        finally:
            await rack.give(carrier, is_sound=isinstance(truth, Answered))
        return truth

    async def _exchange_through_client(
        self, client: HttpClient, request: WireRequest, timeout_s: float
    ) -> Truth:
        try:
            wire = client.build_request(
                request.method,
                self._origin.url_for(request),
                params=dict(request.query),
                headers=self._headers(request),
                content=request.body if request.stream is None else request.stream,
                timeout=self._family.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            )
        except Exception as error:  # noqa: BLE001 - nothing has left yet, whatever it is
            return NotSent(self._reason(error))
        sending = client.send(wire, stream=True, follow_redirects=False, auth=None)
        return await self._told(sending, timeout_s, believed=tells_the_truth(client, self._family))

    async def _told(self, sending: Coroutine[Any, Any, Any], timeout_s: float, *, believed: bool) -> Truth:
        """Make a request and say what became of it."""
        ends = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s + _HARD_STOP_S):
                return Answered(await self._read(await sending, ends))
        except Unreadable as error:
            return Unknown(str(error))
        except (TimeoutError, _TooLate):
            return Unknown(f"no whole answer within {timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - every failure is one of three truths
            names = {base.__name__ for base in type(error).__mro__}
            return (NotSent if believed and names & NEVER_SENT else Unknown)(self._reason(error))

    def _rack_for(self, request: WireRequest) -> Rack[Carrier]:
        """Uploads have connections of their own: a slow one must not hold up a submit."""
        if request.host is Host.UPLOADS:
            self._for_uploads = self._for_uploads or self._make_rack(self._origin.upload_url, UPLOADS)
            return self._for_uploads
        most = self._limits.connections + self._limits.submits_in_air
        self._own = self._own or self._make_rack(self._origin.base_url, most)
        return self._own

    def _headers(self, request: WireRequest) -> dict[str, str]:
        headers = {
            "Accept": "*/*",
            "Accept-Encoding": ENCODINGS,
            "Content-Type": request.content_type,
            "User-Agent": self._user_agent,
        }
        if request.stream is not None:
            headers["Content-Length"] = str(request.stream.size)
        return headers | self._origin.authorization_for(self._origin.url_for(request))

    def _build(self, request: WireRequest, timeout_s: float) -> Any:
        url = self._origin.url_for(request)
        if request.query:
            url = f"{url}?{urlencode(request.query)}"
        times = dict.fromkeys(("read", "write", "pool"), timeout_s)
        return self._family.Request(
            request.method,
            self._read_url(url),
            headers=self._headers(request),
            content=request.body if request.stream is None else request.stream,
            extensions={"timeout": {"connect": min(CONNECT_S, timeout_s), **times}},
        )

    async def _read(self, response: Any, ends: float) -> WireResponse:
        try:
            said = by_name(response.headers.items())
            packed = bytearray()
            async for chunk in response.aiter_raw():
                packed += chunk
                check_size(len(packed))
                if asyncio.get_running_loop().time() > ends:
                    raise _TooLate
        finally:
            await response.aclose()
        clean = self._origin.scrub(unpacked(bytes(packed), said.get("content-encoding", "")))
        return WireResponse(status=response.status_code, headers=said, body=clean)

    def _reason(self, error: Exception) -> str:
        words = f"{type(error).__name__}: {error}".rstrip(": ")
        return self._origin.scrub(words.encode("utf-8", "replace")).decode()

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open a file without the key; see :class:`flux_async.transport.Transport`."""
        return self._files.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)

    async def aclose(self) -> None:
        """Close the connections that are ours, for good; a client given by the caller stays open."""
        self._closed = True
        for rack in (self._own, self._for_uploads):
            if rack is not None:
                await rack.aclose()
        await self._files.aclose()

    def _make_rack(self, base: str, most: int) -> Rack[Carrier]:
        return Rack(lambda: self._make_carrier(base), most, KEEPALIVE_S)

    def _make_carrier(self, base: str) -> Carrier:
        """Make a carrier of one connection."""
        parts = urlsplit(base)
        tls = self._tls_context()
        carrier: Carrier = self._family.AsyncHTTPTransport(
            verify=tls,
            limits=self._family.Limits(
                max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_S
            ),
            proxy=proxy_for(parts.scheme.lower(), parts.hostname or ""),
        )
        drop_pool(carrier, tls, KEEPALIVE_S)
        return carrier

    def _tls_context(self) -> ssl.SSLContext:
        """One TLS context for the API and the files: reading the certificates takes tens of milliseconds."""
        self._tls = self._tls or tls_context()
        return self._tls
