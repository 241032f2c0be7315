"""The adapter to httpx, and to httpx2, which has the same interface.

This is the one module that imports httpx, and it is imported when the first client is made: httpx loads the
whole of click and rich where they are installed.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any, Protocol

import attrs
import httpx

from flux_async.errors import ConfigurationError, DownloadError
from flux_async.policy.admission import Limits
from flux_async.protocol.envelope import WireRequest, WireResponse
from flux_async.transport import Answered, FileStream, NotSent, Truth, Unknown
from flux_async.transport.origin import ApiOrigin

NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
"""Exceptions that httpx's own transport raises only before the first byte of a request has left."""

_FAMILIES = ("httpx", "httpx2")
_CONNECT_S = 10.0
_READ_FILE_S = 30.0
_HARD_STOP_S = 2.0
_KEEPALIVE_S = 60.0
_MAX_ANSWER = 4 * 1024 * 1024
_MAX_REDIRECTS = 5
_CHUNK = 256 * 1024


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


def tells_the_truth(client: object, family: ModuleType) -> bool:
    """Say whether the client's "could not connect" can be believed.

    Foreign transports have been seen to raise ``ConnectTimeout`` for a request that the server had read; with
    those, nothing counts as never sent.
    """
    carrier = getattr(client, "_transport", None)
    own = type(carrier).__module__.partition(".")[0] == family.__name__
    mounts = getattr(client, "_mounts", {}).values()
    return own and all(m is None or type(m).__module__.partition(".")[0] == family.__name__ for m in mounts)


@attrs.frozen
class _File:
    """An open answer of a file host."""

    _response: Any
    _host: str

    @property
    def status(self) -> int:
        return int(self._response.status_code)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_bytes(_CHUNK):
                yield chunk
        except Exception as error:  # noqa: BLE001 - the family's classes differ, the meaning does not
            raise DownloadError(
                f"The download from {self._host} broke off: {type(error).__name__}."
            ) from None


class HttpxTransport:
    """Requests through httpx or httpx2: a small pool, kept alive, without redirects, with an honest account.

    Args:
        origin: The API's address and key.
        limits: Sizes the pool: ``connections`` for looks and ``submits_in_air`` for submits.
        version: Ours, for the User-Agent.
        client: A client of the caller's, which stays his to close; None has one made.
    """

    def __init__(
        self, origin: ApiOrigin, limits: Limits, *, version: str, client: HttpClient | None = None
    ) -> None:
        self._family = httpx if client is None else family_of(client)
        self._origin = origin
        self._limits = limits
        self._trusted = client is None or tells_the_truth(client, self._family)
        self._headers = {"Content-Type": "application/json", "User-Agent": user_agent(version, self._family)}
        self._own: HttpClient | None = None
        self._given = client
        self._for_files: HttpClient | None = None
        self._retired: list[HttpClient] = []
        self._tls: Any = None

    def __repr__(self) -> str:
        return f"<HttpxTransport {getattr(self, '_origin', '(not made)')!r}>"

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> Truth:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        ends = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s + _HARD_STOP_S):
                return await self._send(request, timeout_s, ends)
        except TimeoutError:
            # Only a server that drips its headers gets here. Cancelling may have cost the pool a connection.
            self._retire_pool()
            return Unknown(f"no whole answer within {timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - every failure is one of three truths
            return self._truth_of(error)

    async def _send(self, request: WireRequest, timeout_s: float, ends: float) -> Truth:
        url = self._origin.url_for(request)
        client = self._client()
        response = await client.send(
            client.build_request(
                request.method,
                url,
                headers=self._headers | self._origin.authorization_for(url),
                content=request.body,
                timeout=self._family.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            ),
            stream=True,
            follow_redirects=False,
            auth=None,
        )
        try:
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
        clean = self._origin.scrub_bytes(bytes(body))
        return Answered(WireResponse(status=response.status_code, headers=headers, body=clean))

    def _truth_of(self, error: Exception) -> Truth:
        names = {base.__name__ for base in type(error).__mro__}
        reason = self._origin.scrub(f"{type(error).__name__}: {error}".rstrip(": "))
        return NotSent(reason) if self._trusted and names & NEVER_SENT else Unknown(reason)

    @asynccontextmanager
    async def fetch(self, url: str, *, timeout_s: float) -> AsyncIterator[FileStream]:
        """Open a file without the key; see :class:`flux_async.transport.Transport`."""
        client = self._file_client()
        host = httpx.URL(url).host
        timeout = self._family.Timeout(min(_READ_FILE_S, timeout_s), connect=min(_CONNECT_S, timeout_s))
        try:
            request = client.build_request("GET", url, timeout=timeout)
            response = await client.send(request, stream=True)
        except Exception as error:  # noqa: BLE001 - as above
            raise DownloadError(f"{host} cannot be reached: {type(error).__name__}.") from None
        try:
            yield _File(response, host)
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close the connections that are ours; a client given by the caller stays open."""
        for client in (self._own, self._for_files, *self._retired):
            if client is not None:
                await client.aclose()
        self._own = self._for_files = None
        self._retired.clear()

    def _client(self) -> HttpClient:
        if self._given is not None:
            return self._given
        if self._own is None:
            connections = self._limits.connections + self._limits.submits_in_air
            self._own = httpx.AsyncClient(
                verify=self._tls_context(),
                limits=httpx.Limits(
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=_KEEPALIVE_S,
                ),
            )
        return self._own

    def _file_client(self) -> HttpClient:
        """A second client that never sees the key."""
        if self._for_files is None:
            self._for_files = httpx.AsyncClient(
                verify=self._tls_context(),
                headers={"User-Agent": self._headers["User-Agent"]},
                limits=httpx.Limits(
                    max_connections=self._limits.connections,
                    max_keepalive_connections=self._limits.connections,
                ),
                follow_redirects=True,
                max_redirects=_MAX_REDIRECTS,
            )
        return self._for_files

    def _tls_context(self) -> Any:
        """One TLS context for both clients: reading the certificates takes tens of milliseconds."""
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        return self._tls

    def _retire_pool(self) -> None:
        if self._own is not None:
            self._retired.append(self._own)
            self._own = None
