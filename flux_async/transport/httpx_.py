"""The adapter to httpx, and to httpx2, which has the same interface.

This is the one module that imports httpx, and it is imported when the first client is made: httpx loads the
whole of click and rich where they are installed.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any, Protocol

import httpx

from flux_async.errors import ConfigurationError
from flux_async.policy.admission import Limits
from flux_async.protocol.envelope import Host, WireRequest, WireResponse
from flux_async.transport import Answered, FileStream, NotSent, Truth, Unknown
from flux_async.transport.addresses import AddressGuard
from flux_async.transport.file_host import FileHost
from flux_async.transport.origin import ApiOrigin
from flux_async.transport.pools import Pool

NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
"""Exceptions that httpx's own transport raises only before the first byte of a request has left."""

_FAMILIES = ("httpx", "httpx2")
_CONNECT_S = 10.0
_HARD_STOP_S = 2.0
_KEEPALIVE_S = 60.0
_MAX_ANSWER = 4 * 1024 * 1024
_UPLOADS = 8


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


def user_agent(version: str, family: ModuleType) -> str:
    """Return our User-Agent. Cloudflare, in front of the API, turns away some libraries' own."""
    library = f"{family.__name__}/{getattr(family, '__version__', '?')}"
    return f"flux-async/{version} (Python {platform.python_version()}; {library})"


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


class HttpxTransport:
    """Requests through httpx or httpx2: a small pool, kept alive, without redirects, with an honest account.

    Args:
        origin: The API's address and key.
        limits: Sizes the pool: ``connections`` for looks and ``submits_in_air`` for submits.
        version: Ours, for the User-Agent.
        client: A client of the caller's, which stays his to close; None has one made.
        files: Fetches files; None has one made, which goes to public addresses and to the API's own kind.
    """

    def __init__(
        self,
        origin: ApiOrigin,
        limits: Limits,
        *,
        version: str,
        client: HttpClient | None = None,
        files: FileHost | None = None,
    ) -> None:
        self._family = httpx if client is None else family_of(client)
        self._origin = origin
        self._limits = limits
        self._headers = {"User-Agent": user_agent(version, self._family)}
        self._given = client
        self._own: Pool[HttpClient] | None = None
        self._for_uploads: Pool[HttpClient] | None = None
        self._tls: Any = None
        self._files = files or FileHost(
            self._headers["User-Agent"],
            AddressGuard(origin.host, is_public=origin.is_default),
            self._tls_context,
        )

    def __repr__(self) -> str:
        return f"<HttpxTransport {getattr(self, '_origin', '(not made)')!r}>"

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> Truth:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        if getattr(self._given, "is_closed", False):
            return NotSent("the http_client is closed")
        if self._given is not None:
            return await self._exchange(self._given, request, timeout_s)
        async with self._pool_for(request).used() as client:
            return await self._exchange(client, request, timeout_s)

    def _pool_for(self, request: WireRequest) -> Pool[HttpClient]:
        """Uploads have connections of their own: a slow one must not hold up a submit."""
        if request.host is Host.UPLOADS:
            self._for_uploads = self._for_uploads or Pool(self._make_upload_client())
            return self._for_uploads
        self._own = self._own or Pool(self._make_client())
        return self._own

    async def _exchange(self, client: HttpClient, request: WireRequest, timeout_s: float) -> Truth:
        try:
            wire = self._build(client, request, timeout_s)
        except Exception as error:  # noqa: BLE001 - nothing has left yet, whatever it is
            return NotSent(self._reason(error))
        believed = self._given is None or tells_the_truth(client, self._family)
        ends = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s + _HARD_STOP_S):
                return await self._send(client, wire, timeout_s, ends)
        except TimeoutError:
            # Only a server that drips gets here: cancelling may cost the pool a connection for ever.
            self._retire_pools()
            return Unknown(f"no whole answer within {timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - every failure is one of three truths
            names = {base.__name__ for base in type(error).__mro__}
            return (NotSent if believed and names & NEVER_SENT else Unknown)(self._reason(error))

    def _build(self, client: HttpClient, request: WireRequest, timeout_s: float) -> Any:
        url, stream = self._origin.url_for(request), request.stream
        headers = self._headers | {"Content-Type": request.content_type}
        if stream is not None:
            headers["Content-Length"] = str(stream.size)
        return client.build_request(
            request.method,
            url,
            params=dict(request.query),
            headers=headers | self._origin.authorization_for(url),
            content=request.body if stream is None else stream,
            timeout=self._family.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
        )

    async def _send(self, client: HttpClient, wire: Any, timeout_s: float, ends: float) -> Truth:
        response = await client.send(wire, stream=True, follow_redirects=False, auth=None)
        try:
            if "," in response.headers.get("content-encoding", ""):
                return Unknown("the answer is packed several times over")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_ANSWER:
                    return Unknown(f"the answer is longer than {_MAX_ANSWER} bytes")
                if asyncio.get_running_loop().time() > ends:
                    return Unknown(f"no whole answer within {timeout_s:g} s")
        finally:
            await response.aclose()
        headers = {name.lower(): value for name, value in response.headers.items()}
        clean = self._origin.scrub(bytes(body))
        return Answered(WireResponse(status=response.status_code, headers=headers, body=clean))

    def _reason(self, error: Exception) -> str:
        words = f"{type(error).__name__}: {error}".rstrip(": ")
        return self._origin.scrub(words.encode("utf-8", "replace")).decode()

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open a file without the key; see :class:`flux_async.transport.Transport`."""
        return self._files.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)

    async def aclose(self) -> None:
        """Close the connections that are ours; a client given by the caller stays open."""
        for pool in (self._own, self._for_uploads):
            if pool is not None:
                await pool.resource.aclose()
        self._own = self._for_uploads = None
        await self._files.aclose()

    def _make_client(self) -> HttpClient:
        connections = self._limits.connections + self._limits.submits_in_air
        return self._make_keyed_client(connections, here=self._origin.is_this_machine)

    def _make_upload_client(self) -> HttpClient:
        return self._make_keyed_client(_UPLOADS, here=self._origin.uploads_to_this_machine)

    def _make_keyed_client(self, connections: int, *, here: bool) -> HttpClient:
        return httpx.AsyncClient(
            verify=self._tls_context(),
            limits=httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=_KEEPALIVE_S,
            ),
            trust_env=not here,  # no proxy is to see the key on its way to ourselves
        )

    def _tls_context(self) -> Any:
        """One TLS context for the API and the files: reading the certificates takes tens of milliseconds."""
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        return self._tls

    def _retire_pools(self) -> None:
        for pool in (self._own, self._for_uploads):
            if pool is not None:
                pool.retire()
        self._own = self._for_uploads = None
