"""Downloads files from untrusted hosts: without key, cookies or referrer, from allowed addresses only.

It uses httpcore, the layer below httpx and installed with it: there a network backend of this module opens
every connection, so that none bypasses the address check, and TLS verifies the host name. httpx would add
cookies, passwords from URLs, and log lines with whole URLs. Each request has a connection of its own: at two
downloads a second the handshake is nothing, and a request that is cancelled inside httpcore 1.0 can occupy a
slot of its pool for good.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
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

    async def aclose(self) -> None:
        with contextlib.suppress(Exception):  # a downloaded file must not be lost
            await self.response.aclose()

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
    _pools: set[httpcore.AsyncConnectionPool] = attrs.field(factory=set, init=False, repr=False)

    @asynccontextmanager
    async def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[FileStream]:
        """Open a file; see :meth:`flux_async.transport.Transport.fetch`."""
        deadline = Deadline(timeout_s + HARD_STOP_S)
        async with AsyncExitStack() as connections:
            try:
                async with deadline:
                    file = await self._open(
                        connections, ParsedUrl.read(url), dict(headers or {}), timeout_s, stall_s
                    )
                    try:
                        yield file
                    finally:
                        await file.aclose()
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise DownloadTimedOut(f"The download took longer than {timeout_s:g} s.") from None

    async def aclose(self) -> None:
        """Close the connections of downloads in progress."""
        for pool in tuple(self._pools):
            await self._close(pool)

    async def _close(self, pool: httpcore.AsyncConnectionPool) -> None:
        self._pools.discard(pool)
        with contextlib.suppress(Exception):
            await pool.aclose()

    async def _open(
        self,
        connections: AsyncExitStack,
        parsed: ParsedUrl,
        headers: dict[str, str],
        timeout_s: float,
        stall_s: float,
    ) -> _File:
        """Follow redirects; the address of each is checked like the first one."""
        for _ in range(1 + MOST_REDIRECTS):
            file = await self._send(connections, parsed, headers, timeout_s, stall_s)
            if file.status not in _REDIRECTS or "location" not in file.headers:
                return file
            await file.aclose()
            parsed = parsed.follow(file.headers["location"])
        raise DownloadError(f"The download was redirected more than {MOST_REDIRECTS} times.")

    async def _send(
        self,
        connections: AsyncExitStack,
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
            response = await self._pool(proxy, connections).handle_async_request(request)
        except FluxError:
            raise
        except ImportError:
            raise DownloadError(
                f"{parsed.host} cannot be reached: the proxy of the environment is a SOCKS proxy.",
                advice="Run  pip install socksio  and download it again: the result is kept for 14 days "
                "(jobs API: 24 hours).",
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

    def _pool(self, proxy: str | None, connections: AsyncExitStack) -> httpcore.AsyncConnectionPool:
        """Return a pool for one request; httpcore has no connection that sets up proxy and TLS itself."""
        settings: dict[str, Any] = {
            "ssl_context": self.tls(),
            "max_connections": 1,
            "max_keepalive_connections": 0,
        }
        if proxy is None:
            settings["network_backend"] = GuardedBackend(self.guard, self.backend)
        else:
            settings["proxy"] = _read_proxy(proxy)
        pool = httpcore.AsyncConnectionPool(**settings)
        self._pools.add(pool)
        connections.push_async_callback(self._close, pool)
        return pool


def _broke_off(error: Exception) -> bool:
    """Return whether the server closed the connection before an answer; the next try may succeed."""
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
