"""Downloads files from untrusted hosts: without key, cookies or referrer, from allowed addresses only.

It uses httpcore, the layer below httpx and installed with it: there a network backend of this module opens
every connection, so that none bypasses the address check, a kept connection belongs to one host name, and TLS
verifies that name. httpx would add cookies, passwords from URLs, and log lines with whole URLs.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread
import attrs
import httpcore
from anyio.lowlevel import checkpoint

from flux_async.errors import DownloadCutShort, DownloadError, DownloadTimedOut, FluxError
from flux_async.transport import FileStream
from flux_async.transport.background import Deadline
from flux_async.transport.http_settings import is_bypassed, proxy_named
from flux_async.transport.ssrf_guard import AddressGuard, ParsedUrl

MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECT_S = 10.0
_ONE_ADDRESS_S = 3.0
_MOST_ADDRESSES = 4
HARD_STOP_S = 2.0
_KEEPALIVE_S = 60.0
_CONNECTIONS = 8
_MOST_BEFORE_ANSWER = 256 * 1024
_CHUNKS_PER_TURN = 64
_MANY_CHUNKS, _SMALL_CHUNK = 8192, 16
"""A chunk costs about 50 µs of CPU whatever its size, so small chunks multiply the cost of a file."""


@attrs.define(eq=False)
class _LimitedStream(httpcore.AsyncNetworkStream):
    """A connection that limits the bytes before an answer: interim answers (1xx) could go on forever."""

    inner: httpcore.AsyncNetworkStream
    _before_answer: int | None = attrs.field(default=None, init=False)

    def answered(self) -> None:
        """Stop counting: the headers of the answer were received."""
        self._before_answer = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read; before the answer only up to a limit."""
        if self._before_answer is not None and self._before_answer >= _MOST_BEFORE_ANSWER:
            raise httpcore.RemoteProtocolError("too many bytes before the answer")
        data = await self.inner.read(max_bytes, timeout)
        if self._before_answer is not None:
            self._before_answer += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write, and count the bytes read from now on."""
        self._before_answer = 0
        await self.inner.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close."""
        await self.inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Switch to TLS."""
        return _LimitedStream(await self.inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return information about the connection."""
        return self.inner.get_extra_info(info)


@attrs.frozen
class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections, only to addresses that the guard allows."""

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
        """Connect to one of the addresses of ``host``, in turn; the guard has checked all of them."""
        timeout = _CONNECT_S if timeout is None else timeout
        try:
            with anyio.fail_after(timeout):
                addresses = await self.guard.addresses_of(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout("the name could not be resolved in time") from None
        except OSError:
            raise httpcore.ConnectError("the name cannot be resolved") from None
        *others, last = addresses[:_MOST_ADDRESSES]
        for address in others:
            try:
                return _LimitedStream(
                    await self.inner.connect_tcp(
                        address, port, min(timeout, _ONE_ADDRESS_S), local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return _LimitedStream(
            await self.inner.connect_tcp(last, port, timeout, local_address, socket_options)
        )

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await self.inner.sleep(seconds)


@attrs.frozen
class _File:
    """A response of a file host whose body is not read yet."""

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
                    self._refuse_small_chunks(count, size)
                    await checkpoint()  # chunks of one packet are yielded without a pause
        except FluxError:
            raise
        except httpcore.TimeoutException:
            raise DownloadCutShort(f"The download stalled: {self.host} sent nothing.") from None
        except Exception as error:  # noqa: BLE001 - every failure ends the download
            raise DownloadCutShort(
                f"The download from {self.host} broke off: {type(error).__name__}."
            ) from None

    def _refuse_small_chunks(self, count: int, size: int) -> None:
        if count >= _MANY_CHUNKS and size < count * _SMALL_CHUNK:
            raise DownloadError(f"{self.host} sends the file in chunks of {size / count:.1f} bytes.")


@attrs.define(eq=False)
class ConnectionPools:
    """httpcore's pools: one for direct connections, and one per proxy.

    A request that is cancelled inside httpcore 1.0 can occupy a place in its pool forever. After that the
    pools are retired: downloads in progress finish, new ones use other pools, and the last closes the old.
    """

    make: Callable[[str | None], httpcore.AsyncConnectionPool]
    _made: dict[str | None, httpcore.AsyncConnectionPool] = attrs.field(factory=dict, init=False)
    _users: int = attrs.field(default=0, init=False)
    _is_retired: bool = attrs.field(default=False, init=False)

    def through(self, proxy: str | None) -> httpcore.AsyncConnectionPool:
        """Return the pool for ``proxy``; None stands for direct connections."""
        if proxy not in self._made:
            self._made[proxy] = self.make(proxy)
        return self._made[proxy]

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Self]:
        """Keep the pools open during a download."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if self._is_retired and not self._users:
                await self.aclose()

    def retire(self) -> None:
        """Close the pools when the last download that uses them ends."""
        self._is_retired = True

    async def aclose(self) -> None:
        """Close all connections now, and one that is being opened when its download ends."""
        self._is_retired = True
        for pool in self._made.values():
            with contextlib.suppress(Exception):  # a downloaded file must not be lost
                await pool.aclose()


@attrs.define(eq=False)
class FileClient:
    """Downloads files.

    Args:
        user_agent: The User-Agent; some file hosts refuse requests without one.
        guard: Checks addresses.
        tls: Returns the TLS context.
        backend: Opens direct connections to addresses that the guard allows.
    """

    user_agent: str
    guard: AddressGuard
    tls: Callable[[], ssl.SSLContext] = attrs.field(repr=False)
    backend: httpcore.AsyncNetworkBackend = attrs.field(factory=httpcore.AnyIOBackend, repr=False)
    _pools: ConnectionPools | None = attrs.field(default=None, init=False, repr=False)

    @asynccontextmanager
    async def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[FileStream]:
        """Open a file; see :meth:`flux_async.transport.Transport.fetch`."""
        pools = self._pools = self._pools or ConnectionPools(self._make_pool)
        deadline = Deadline(timeout_s + HARD_STOP_S)
        async with pools.used():
            try:
                async with deadline:
                    file = await self._open(
                        pools, ParsedUrl.read(url), dict(headers or {}), timeout_s, stall_s
                    )
                    try:
                        yield file
                    finally:
                        await file.response.aclose()
            except TimeoutError:
                if not deadline.expired():
                    raise
                self._retire(pools)
                raise DownloadTimedOut(f"The download took longer than {timeout_s:g} s.") from None

    def _retire(self, pools: ConnectionPools) -> None:
        """Use other connections for the next downloads."""
        pools.retire()
        if self._pools is pools:
            self._pools = None

    async def aclose(self) -> None:
        """Close all connections."""
        pools, self._pools = self._pools, None
        if pools is not None:
            await pools.aclose()

    async def _open(
        self,
        pools: ConnectionPools,
        parsed: ParsedUrl,
        headers: dict[str, str],
        timeout_s: float,
        stall_s: float,
    ) -> _File:
        """Follow redirects; the address of each is checked like the first one."""
        for _ in range(1 + MOST_REDIRECTS):
            file = await self._send(pools, parsed, headers, timeout_s, stall_s)
            if file.status not in _REDIRECTS or "location" not in file.headers:
                return file
            await file.response.aclose()
            parsed = parsed.follow(file.headers["location"])
        raise DownloadError(f"The download was redirected more than {MOST_REDIRECTS} times.")

    async def _send(
        self,
        pools: ConnectionPools,
        parsed: ParsedUrl,
        headers: dict[str, str],
        timeout_s: float,
        stall_s: float,
    ) -> _File:
        proxy = await _proxy_for(parsed)
        if proxy is not None:
            await self.guard.check_for_proxy(parsed.host)
        own = {
            "Host": parsed.authority,
            "User-Agent": self.user_agent,
            "Accept": "*/*",  # for "image/*" some hosts send another format
            "Accept-Encoding": "identity",  # the sent size is the file size
        }
        request = httpcore.Request(
            "GET",
            httpcore.URL(
                scheme=parsed.scheme, host=parsed.host, port=parsed.given_port, target=parsed.target
            ),
            headers=list((own | headers).items()),
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
            response = await pools.through(proxy).handle_async_request(request)
        except FluxError:
            raise
        except ImportError:
            raise DownloadError(
                f"{parsed.host} cannot be reached: the proxy of the environment is a SOCKS proxy.",
                advice="Run  pip install socksio  and download it again: the result is kept for 14 days.",
                retryable=False,
            ) from None
        except Exception as error:  # noqa: BLE001 - any exception of httpcore
            if _broke_off(error):
                raise DownloadCutShort(
                    f"{parsed.host} closed the connection without an answer: {type(error).__name__}."
                ) from None
            raise DownloadError(f"{parsed.host} cannot be reached: {type(error).__name__}.") from None
        stream = response.extensions.get("network_stream")
        if isinstance(stream, _LimitedStream):
            stream.answered()
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
    """Return whether a connection ended before an answer, as a kept connection can at any time."""
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
    """Return the environment's proxy for a URL; None for this machine."""
    proxy = proxy_named(parsed.scheme, parsed.host)
    if proxy is None:
        return None
    bypassed = await anyio.to_thread.run_sync(is_bypassed, parsed.host)  # can resolve the name
    return None if bypassed else proxy


def _read_proxy(address: str) -> httpcore.Proxy:
    """Return the proxy at an address of the environment, with its user name and password."""
    parts = urlsplit(address)
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username), unquote(parts.password or ""))
    url = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target="/")
    return httpcore.Proxy(url, auth=auth)
