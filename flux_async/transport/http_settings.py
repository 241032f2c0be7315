"""What all transports have in common: their patience, what they take in, whom they trust, their name."""

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
"""Longer than the pauses between two looks at a task, so that each finds its connection."""
MOST_BYTES = 4 * 1024 * 1024
"""Of an answer, unpacked; an envelope has a few hundred."""
ENCODINGS = "identity"
"""What we ask for. Packing spares nothing in answers this small, and costs both sides more than they do."""

_UNPACKED_BY_US = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class Unreadable(Exception):
    """An answer that is not read to its end, or cannot be unpacked."""


def user_agent(version: str, library: str, library_version: str) -> str:
    """Return our User-Agent. Cloudflare, in front of the API, turns away some libraries' own."""
    return f"flux-async/{version} (Python {platform.python_version()}; {library}/{library_version})"


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts whom httpx trusts: ``SSL_CERT_FILE``, ``SSL_CERT_DIR``, else certifi."""
    if file := os.environ.get("SSL_CERT_FILE"):
        return ssl.create_default_context(cafile=file)
    if folder := os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context(capath=folder)
    return ssl.create_default_context(cafile=certifi.where())


def by_name(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by their names in lower case; several of one name become one."""
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def unpacked(body: bytes, encoding: str) -> bytes:
    """Undo the content encoding of a whole body, up to ``MOST_BYTES``.

    Raises:
        Unreadable: It is packed several times over, in a way we did not ask for, wrongly, or too much.
    """
    if not encoding or not body:
        return body
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return body
    if "," in encoding:
        raise Unreadable("the answer is packed several times over")
    if encoding not in _UNPACKED_BY_US:
        raise Unreadable("the answer is packed in a way that was not asked for")
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        whole = unpacker.decompress(body, MOST_BYTES + 1)
    except zlib.error:
        raise Unreadable("the answer is packed wrongly") from None
    check_size(len(whole))
    if not unpacker.eof:
        raise Unreadable("the packed answer is cut short")
    return whole


@attrs.define
class Arriving:
    """The body of an answer while it is read.

    Attributes:
        packed: What has come so far.
        encoding: Its content encoding.
    """

    packed: bytearray = attrs.field(factory=bytearray)
    encoding: str = ""

    def part(self) -> bytes:
        """Return what came of a body that is not whole, or nothing where it cannot be unpacked."""
        try:
            return unpacked(bytes(self.packed), self.encoding)
        except Unreadable:
            return b""


def check_size(size: int) -> None:
    """Let in what an answer may have.

    Raises:
        Unreadable: It is more.
    """
    if size > MOST_BYTES:
        raise Unreadable(f"the answer is longer than {MOST_BYTES} bytes")


def proxy_named(scheme: str, host: str) -> str | None:
    """Return the proxy that the environment names for ``scheme``; exceptions are not looked at."""
    address = literal(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    if not named:
        return None
    return named if "://" in named else f"http://{named}"


def is_bypassed(host: str) -> bool:
    """Say whether the environment has ``host`` reached without a proxy; may look the name up."""
    return bool(urllib.request.proxy_bypass(host))


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy to go through to ``host``, or None where it is gone to directly."""
    named = proxy_named(scheme, host)
    return None if named is None or is_bypassed(host) else named
