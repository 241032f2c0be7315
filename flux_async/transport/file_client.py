"""Files from hosts nobody vouches for: without key, cookies or referrer, and from allowed addresses only.

This goes straight to httpcore, the layer below httpx, which comes with it: there a network backend of ours
makes every connection, so that none can go round the guard, a kept one belongs to one host name, and TLS
checks that name. And what httpx adds (cookies, passwords taken from an address, a line in the log with the
whole of it) is not there to be switched off.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread
import attrs
import httpcore
from anyio.lowlevel import checkpoint

from flux_async.errors import DownloadCutShort, DownloadError, DownloadTimedOut, FluxError
from flux_async.transport import FileStream
from flux_async.transport.deadline import Deadline
from flux_async.transport.http_settings import is_bypassed, proxy_named
from flux_async.transport.pools import Pool
from flux_async.transport.ssrf_guard import AddressGuard, ParsedUrl

MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECT_S = 10.0
_ONE_ADDRESS_S = 3.0
_MOST_ADDRESSES = 4
_HARD_STOP_S = 2.0
_KEEPALIVE_S = 60.0
_CONNECTIONS = 8
_MOST_BEFORE_ANSWER = 256 * 1024
_CHUNKS_PER_TURN = 64
_MANY_CHUNKS, _CRUMB = 8192, 16
"""A chunk costs some 50 µs whatever is in it: what comes in crumbs costs a thousand times what it should."""


@attrs.define(eq=False)
class _Wire(httpcore.AsyncNetworkStream):
    """A connection on which an answer must come to the point: interim ones (1xx) might go on for ever."""

    inner: httpcore.AsyncNetworkStream
    _before_answer: int | None = attrs.field(default=None, init=False)

    def answered(self) -> None:
        """Say that the head of the answer is there."""
        self._before_answer = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read, up to a bound while there is no answer."""
        if self._before_answer is not None and self._before_answer >= _MOST_BEFORE_ANSWER:
            raise httpcore.RemoteProtocolError("the answer does not begin")
        data = await self.inner.read(max_bytes, timeout)
        if self._before_answer is not None:
            self._before_answer += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write; from now on an answer is waited for."""
        self._before_answer = 0
        await self.inner.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close."""
        await self.inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Go on over TLS."""
        return _Wire(await self.inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Tell of the connection."""
        return self.inner.get_extra_info(info)


@attrs.frozen
class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Makes connections, to addresses that the guard has judged."""

    guard: AddressGuard
    inner: httpcore.AsyncNetworkBackend = attrs.field(factory=httpcore.AnyIOBackend)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of the addresses of ``host``, in turn; each of them was judged."""
        timeout = _CONNECT_S if timeout is None else timeout
        try:
            with anyio.fail_after(timeout):
                addresses = await self.guard.addresses_of(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout("the name was not found in time") from None
        except OSError:
            raise httpcore.ConnectError("the name is not known") from None
        *others, last = addresses[:_MOST_ADDRESSES]
        for address in others:
            try:
                return _Wire(
                    await self.inner.connect_tcp(
                        address, port, min(timeout, _ONE_ADDRESS_S), local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return _Wire(await self.inner.connect_tcp(last, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self.inner.sleep(seconds)


@attrs.frozen
class _File:
    """An open answer of a file host."""

    host: str
    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    response: httpcore.Response = attrs.field(repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        count = size = 0
        try:
            async for chunk in self.response.aiter_stream():
                yield chunk
                count, size = count + 1, size + len(chunk)
                if count % _CHUNKS_PER_TURN == 0:
                    self._refuse_crumbs(count, size)
                    await checkpoint()  # what came in one packet would be handed out without a pause
        except FluxError:
            raise
        except httpcore.TimeoutException:
            raise DownloadCutShort(f"The download stalled: {self.host} fell silent.") from None
        except Exception as error:  # noqa: BLE001 - however it breaks, it is broken
            raise DownloadCutShort(
                f"The download from {self.host} broke off: {type(error).__name__}."
            ) from None

    def _refuse_crumbs(self, count: int, size: int) -> None:
        if count >= _MANY_CHUNKS and size < count * _CRUMB:
            raise DownloadError(f"{self.host} sends the file in crumbs of {size / count:.1f} bytes.")


@attrs.frozen(eq=False)
class _Carriers:
    """The connections to file hosts: direct ones, and those through each proxy."""

    make: Callable[[str | None], httpcore.AsyncConnectionPool]
    made: dict[str | None, httpcore.AsyncConnectionPool] = attrs.field(factory=dict)

    def through(self, proxy: str | None) -> httpcore.AsyncConnectionPool:
        """Return the connections through ``proxy``, or the direct ones."""
        if proxy not in self.made:
            self.made[proxy] = self.make(proxy)
        return self.made[proxy]

    async def aclose(self) -> None:
        """Close them all."""
        for pool in self.made.values():
            await pool.aclose()


@attrs.define(eq=False)
class FileClient:
    """Fetches files.

    Args:
        user_agent: What we call ourselves; some file hosts turn nameless visitors away.
        guard: Says where we may go.
        tls: Makes the TLS context.
        backend: Makes direct connections, once the guard has spoken.
    """

    user_agent: str
    guard: AddressGuard
    tls: Callable[[], ssl.SSLContext] = attrs.field(repr=False)
    backend: httpcore.AsyncNetworkBackend = attrs.field(factory=httpcore.AnyIOBackend, repr=False)
    _pool: Pool[_Carriers] | None = attrs.field(default=None, init=False, repr=False)

    @asynccontextmanager
    async def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[FileStream]:
        """Open a file; see :meth:`flux_async.transport.Transport.fetch`."""
        pool = self._pool = self._pool or Pool(_Carriers(self._make_pool))
        deadline = Deadline(timeout_s + _HARD_STOP_S)
        async with pool.used() as carriers:
            try:
                async with deadline:
                    file = await self._open(
                        carriers, ParsedUrl.read(url), dict(headers or {}), timeout_s, stall_s
                    )
                    try:
                        yield file
                    finally:
                        await file.response.aclose()
            except TimeoutError:
                if not deadline.expired():
                    raise
                self._retire(pool)
                raise DownloadTimedOut(f"The download took longer than {timeout_s:g} s.") from None

    def _retire(self, pool: Pool[_Carriers]) -> None:
        """Cancelling may have cost the pool a connection for ever: those that come get another."""
        pool.retire()
        if self._pool is pool:
            self._pool = None

    async def aclose(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def _open(
        self,
        carriers: _Carriers,
        parsed: ParsedUrl,
        headers: dict[str, str],
        timeout_s: float,
        stall_s: float,
    ) -> _File:
        """Follow redirects by hand: each leads to an address that is looked at like the first."""
        for _ in range(1 + MOST_REDIRECTS):
            file = await self._ask(carriers, parsed, headers, timeout_s, stall_s)
            if file.status not in _REDIRECTS or "location" not in file.headers:
                return file
            await file.response.aclose()
            parsed = parsed.follow(file.headers["location"])
        raise DownloadError(f"The download was redirected more than {MOST_REDIRECTS} times.")

    async def _ask(
        self,
        carriers: _Carriers,
        parsed: ParsedUrl,
        headers: dict[str, str],
        timeout_s: float,
        stall_s: float,
    ) -> _File:
        proxy = await _proxy_for(parsed)
        if proxy is not None:
            await self.guard.check_for_proxy(parsed.host)
        said = {
            "Host": parsed.authority,
            "User-Agent": self.user_agent,
            "Accept": "*/*",  # who asks for pictures only is sent another format by some hosts
            "Accept-Encoding": "identity",  # the size on the way is the size on the disk
        }
        request = httpcore.Request(
            "GET",
            httpcore.URL(
                scheme=parsed.scheme, host=parsed.host, port=parsed.given_port, target=parsed.target
            ),
            headers=list((said | headers).items()),
            extensions={
                "timeout": {
                    "connect": min(_CONNECT_S, timeout_s),
                    "read": min(stall_s, timeout_s),
                    "write": min(stall_s, timeout_s),
                    "pool": timeout_s,
                }
            },
        )
        try:
            response = await carriers.through(proxy).handle_async_request(request)
        except FluxError:
            raise
        except ImportError:
            raise DownloadError(
                f"{parsed.host} cannot be reached: the proxy of the environment is a SOCKS proxy.",
                advice="Run  pip install socksio  and download it again: the result is kept for 14 days.",
                retryable=False,
            ) from None
        except Exception as error:  # noqa: BLE001 - whatever the layers below raise, it is one thing to us
            if _broke_off(error):
                raise DownloadCutShort(
                    f"{parsed.host} broke off without an answer: {type(error).__name__}."
                ) from None
            raise DownloadError(f"{parsed.host} cannot be reached: {type(error).__name__}.") from None
        wire = response.extensions.get("network_stream")
        if isinstance(wire, _Wire):
            wire.answered()
        return _File(parsed.host, response.status, _in_lower_case(response.headers), response)

    def _make_pool(self, proxy: str | None) -> httpcore.AsyncConnectionPool:
        settings: dict[str, Any] = {
            "ssl_context": self.tls(),
            "max_connections": _CONNECTIONS,
            "max_keepalive_connections": _CONNECTIONS,
            "keepalive_expiry": _KEEPALIVE_S,
        }
        if proxy is None:
            backend = GuardedBackend(self.guard, self.backend)
            return httpcore.AsyncConnectionPool(network_backend=backend, **settings)
        return httpcore.AsyncConnectionPool(proxy=_read_proxy(proxy), **settings)


def _broke_off(error: Exception) -> bool:
    """Whether there was a connection, and it ended before anything came, as a kept one may at any moment."""
    if isinstance(error, httpcore.RemoteProtocolError):
        return "disconnected" in str(error)
    return isinstance(error, httpcore.ReadError | httpcore.WriteError)


def _in_lower_case(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): _text(value) for name, value in headers}


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


async def _proxy_for(parsed: ParsedUrl) -> str | None:
    """Return the proxy that the environment names for an address; this machine is never asked for by one."""
    proxy = proxy_named(parsed.scheme, parsed.host)
    if proxy is None:
        return None
    bypassed = await anyio.to_thread.run_sync(is_bypassed, parsed.host)  # may look names up
    return None if bypassed else proxy


def _read_proxy(address: str) -> httpcore.Proxy:
    """Return a proxy for its address as the environment has it, user and password included."""
    parts = urlsplit(address)
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username), unquote(parts.password or ""))
    url = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target="/")
    return httpcore.Proxy(url, auth=auth)
