"""The sandbox's own HTTP requests: clients, and the download of files that callers name."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Final

import anyio
import httpx

USER_AGENT: Final = "flux-async-sandbox/1.0"
TIME_LIMIT: Final = 60.0  # real seconds, with redirects and body; a busy machine took 30 to draw a sample
REDIRECTS: Final = 5

# Below the 5 s of common servers, which might close the connection during a delivery.
_KEEP_ALIVE: Final = 2.0

# The addresses of this machine: no proxy leads there.
DIRECT: Final = ("all://127.0.0.1", "all://localhost", "all://[::1]")

_MAGIC: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
)


class UnreachableError(Exception):
    """The address did not answer with a file."""


class TooLargeError(Exception):
    """The file is larger than allowed."""


@lru_cache(maxsize=1)
def trust() -> ssl.SSLContext:
    """Return the trusted certificates; read once, as that dominates the start of a sandbox."""
    return httpx.create_ssl_context()


@asynccontextmanager
async def web_client(
    own: Mapping[str, httpx.AsyncBaseTransport] | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """Open the HTTP client for fetching; a proxy is never used for this machine's own addresses.

    Args:
        own: Transports for the addresses that begin with a prefix.
    """
    async with httpx.AsyncClient(
        verify=trust(),
        headers={"User-Agent": USER_AGENT},
        timeout=TIME_LIMIT,
        follow_redirects=True,
        max_redirects=REDIRECTS,
        mounts={**dict.fromkeys(DIRECT), **(own or {})},
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=16),
    ) as client:
        yield client


@asynccontextmanager
async def callback_client() -> AsyncIterator[httpx.AsyncClient]:
    """Open the HTTP client for callbacks: no redirects, no cookies."""
    async with httpx.AsyncClient(
        verify=trust(),
        headers={"User-Agent": USER_AGENT},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        mounts=dict.fromkeys(DIRECT),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_ALIVE),
    ) as client:
        yield client


async def fetch(client: httpx.AsyncClient, url: str, target: Path, max_bytes: int) -> str:
    """Stream the file at `url` into `target` and return its content type.

    Raises:
        UnreachableError: There is no usable answer within the time limit.
        TooLargeError: The file has more than `max_bytes`.
    """
    try:
        with anyio.fail_after(TIME_LIMIT):
            async with client.stream("GET", url) as response:
                if response.status_code != httpx.codes.OK:
                    raise UnreachableError(f"HTTP {response.status_code}")
                head = await _save(response, target, max_bytes)
                declared = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                return sniff(head) or declared or "application/octet-stream"
    # Invalid addresses raise more than InvalidURL.
    except (httpx.HTTPError, httpx.InvalidURL, ConnectionError, TimeoutError, ValueError) as error:
        raise UnreachableError(str(error) or type(error).__name__) from error


async def _save(response: httpx.Response, target: Path, max_bytes: int) -> bytes:
    size, head = 0, b""
    async with await anyio.open_file(target, "wb") as file:
        async for chunk in response.aiter_bytes():
            head = head or chunk[:16]
            size += len(chunk)
            if size > max_bytes:
                raise TooLargeError(f"more than {max_bytes} bytes")
            await file.write(chunk)
    return head


def sniff(head: bytes) -> str | None:
    """Return the content type of an image by its first bytes, or None."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((content_type for magic, content_type in _MAGIC if head.startswith(magic)), None)
