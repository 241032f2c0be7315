"""HTTP settings of all transports: timeouts, size limits, TLS, User-Agent, proxies of the environment."""

from __future__ import annotations

import os
import platform
import ssl
import urllib.request
import zlib
from collections.abc import Iterable

import attrs
import certifi

from flux_async.policy.hosts import literal

CONNECT_S = 10.0
KEEPALIVE_S = 60.0
"""Longer than the pause between two polls of a task, so that each finds an open connection."""
MOST_BYTES = 4 * 1024 * 1024
"""Largest answer, decompressed; an envelope has a few hundred bytes."""
ENCODINGS = "identity"
"""Accept-Encoding. Compression saves nothing in answers this small and costs CPU on both sides."""

_UNPACKED_BY_US = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class Unreadable(Exception):
    """An answer that is too large, or cannot be decompressed."""


def user_agent(version: str, library: str, library_version: str) -> str:
    """Return the User-Agent. Cloudflare, in front of the API, blocks the default of some libraries."""
    return f"flux-async/{version} (Python {platform.python_version()}; {library}/{library_version})"


def tls_context() -> ssl.SSLContext:
    """Return a TLS context with httpx's certificates: ``SSL_CERT_FILE``, ``SSL_CERT_DIR``, else certifi."""
    if file := os.environ.get("SSL_CERT_FILE"):
        return ssl.create_default_context(cafile=file)
    if folder := os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context(capath=folder)
    return ssl.create_default_context(cafile=certifi.where())


def by_name(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by their names in lower case; values of the same name are joined by commas."""
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def unpacked(body: bytes, encoding: str) -> bytes:
    """Return a whole body without its content encoding.

    Raises:
        Unreadable: Several encodings, an unsupported one, damaged data, or more than ``MOST_BYTES``.
    """
    if not encoding or not body:
        return body
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return body
    if "," in encoding:
        raise Unreadable("the answer has several content encodings")
    if encoding not in _UNPACKED_BY_US:
        raise Unreadable("the answer has an unsupported content encoding")
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        whole = unpacker.decompress(body, MOST_BYTES + 1)
    except zlib.error:
        raise Unreadable("the compressed answer is damaged") from None
    check_size(len(whole))
    if not unpacker.eof:
        raise Unreadable("the compressed answer is incomplete")
    return whole


@attrs.define
class Arriving:
    """The body of an answer while it is received.

    Attributes:
        packed: Bytes received so far.
        encoding: Their content encoding.
    """

    packed: bytearray = attrs.field(factory=bytearray)
    encoding: str = ""

    def part(self) -> bytes:
        """Return the received part, decompressed; nothing if it cannot be decompressed."""
        try:
            return unpacked(bytes(self.packed), self.encoding)
        except Unreadable:
            return b""


def check_size(size: int) -> None:
    """Check the size of an answer.

    Raises:
        Unreadable: It is larger than ``MOST_BYTES``.
    """
    if size > MOST_BYTES:
        raise Unreadable(f"the answer is longer than {MOST_BYTES} bytes")


def proxy_named(scheme: str, host: str) -> str | None:
    """Return the environment's proxy for ``scheme``; None for this machine. ``no_proxy`` is not applied."""
    address = literal(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    if not named:
        return None
    return named if "://" in named else f"http://{named}"


def is_bypassed(host: str) -> bool:
    """Return whether ``no_proxy`` excludes ``host``; this can look up the name."""
    return bool(urllib.request.proxy_bypass(host))


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the environment's proxy for ``host``; None for a direct connection."""
    named = proxy_named(scheme, host)
    return None if named is None or is_bypassed(host) else named
