"""Addresses that a download may connect to. Result URLs come from outside; some lead into private networks.

Rules:

1. http and https only; a redirect from https to http is refused.
2. A name is resolved once. Every address is checked, and the connection uses a checked address: there is no
   second resolution with another answer (DNS rebinding).
3. Only public addresses are allowed. An address that embeds another one (IPv4-mapped, NAT64, 6to4) is checked
   by that one.
4. One exception: if the API itself is on this machine, in a private or in a shared network (10.0.0.0/8 …,
   100.64.0.0/10), addresses of the same kind are allowed. Link-local addresses and cloud metadata addresses
   never are. 198.18.0.0/15 is allowed only if the API's name resolves into it: some VPN programs resolve
   every name to an address in it.
5. With a proxy, the proxy resolves names. Then only literal addresses are checked, and names that exist only
   in private networks are refused.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeAlias
from urllib.parse import urljoin, urlsplit

import anyio
import attrs

from flux_async.api.parsing import encoded_as_by_a_browser
from flux_async.errors import AddressForbidden, DownloadError, InvalidInput
from flux_async.images import check_http_url
from flux_async.policy.hosts import INNER_NAMES, Address, AddressKind, kind_of, literal

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a name: host and port to IP addresses; raises OSError if there is none."""

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._-]{1,255}|[0-9a-f:.]{2,45}")
_READ_DIFFERENTLY = frozenset("\u00df\u1e9e\u03c2\u200c\u200d")
"""Sharp s, final sigma and the joiners: browsers resolve another host than Python's codec (IDNA 2003)."""


_EXEMPTIBLE_EVERYWHERE = frozenset({AddressKind.BENCHMARK})
_EXEMPTIBLE = _EXEMPTIBLE_EVERYWHERE | {AddressKind.LOOPBACK, AddressKind.PRIVATE, AddressKind.SHARED}


@attrs.frozen
class ParsedUrl:
    """URL of a file or redirect, parsed once, so that the check and the connection use the same parts.

    Attributes:
        url: The whole URL. It can contain a signature, so messages show the host only.
        scheme: ``http`` or ``https``.
        host: Name or IP address, in ASCII.
        port: TCP port.
        target: Path and query as they are sent.
    """

    url: str = attrs.field(repr=False)
    scheme: str
    host: str
    port: int
    target: bytes = attrs.field(repr=False)

    @classmethod
    def read(cls, url: str) -> Self:
        """Parse an http(s) URL, percent-encoded as by a browser. A user name or password is not sent.

        Raises:
            DownloadError: The host name is invalid.
        """
        url = check_http_url(encoded_as_by_a_browser(url))
        parts = urlsplit(url)
        host = _ascii(parts.hostname or "")
        if not _HOST.fullmatch(host):
            raise DownloadError("The address of the file has no valid host name.", retryable=False)
        target = parts.path or "/"
        if parts.query:
            target += "?" + parts.query
        scheme = parts.scheme.lower()
        return cls(url, scheme, host, parts.port or _PORTS[scheme], target.encode("ascii"))

    @property
    def given_port(self) -> int | None:
        """The port; None if it is the default of the scheme."""
        return None if self.port == _PORTS[self.scheme] else self.port

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.given_port is None else f"{host}:{self.port}"

    def follow(self, location: str) -> Self:
        """Return the target of a redirect.

        Raises:
            AddressForbidden: Its scheme is not http(s), or it leads from https to http.
        """
        try:
            url = urljoin(self.url, location)
            scheme = urlsplit(url).scheme.lower()
            if scheme not in _PORTS:
                raise AddressForbidden(
                    f"{self.host} redirects to {scheme[:20]!r}, which is neither http nor https."
                )
            if (self.scheme, scheme) == ("https", "http"):
                raise AddressForbidden(f"{self.host} redirects from https to http.")
            return self.read(url)
        except (InvalidInput, ValueError):
            raise AddressForbidden(f"{self.host} redirects to an invalid address.") from None


def _ascii(host: str) -> str:
    if host.isascii():
        return host.lower()
    if not _READ_DIFFERENTLY.isdisjoint(host):
        return ""
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return ""


async def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a name in the order of the system's resolver."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@attrs.frozen
class AddressGuard:
    """Checks the addresses of downloads.

    Attributes:
        api_host: Host of the API. If it is in a private network, results can be there, too.
        is_public: Whether the API is known to be public: then its address makes no exception.
        resolve: Resolves names.
    """

    api_host: str
    is_public: bool = False
    resolve: Resolver = look_up

    async def addresses_of(self, host: str, port: int) -> list[str]:
        """Resolve ``host`` and return its addresses, all of them allowed.

        Raises:
            AddressForbidden: One of them is not allowed.
            OSError: There is none.
        """
        addresses = [address_given] if (address_given := literal(host)) else await self._resolve(host, port)
        for address in addresses:
            await self._check(host, address)
        return [str(address) for address in addresses]

    async def check_for_proxy(self, host: str) -> None:
        """Check a host that a proxy will resolve, without resolving it.

        Raises:
            AddressForbidden: A forbidden address, or a name that exists only in private networks.
        """
        bare = host.rstrip(".")
        if (address_given := literal(bare)) is not None:
            await self._check(host, address_given)
        elif bare != self.api_host and ("." not in bare or bare.endswith(INNER_NAMES)):
            raise AddressForbidden(f"{host} is a name in a private network.")

    async def _check(self, host: str, address: Address) -> None:
        kind = kind_of(address)
        exemptible = _EXEMPTIBLE_EVERYWHERE if self.is_public else _EXEMPTIBLE
        if kind is None or (kind in exemptible and kind is await self._kind_of_api()):
            return
        where = (
            f"{host}, which {'is' if literal(host) else 'resolves to'} {address}"
            if host != str(address)
            else host
        )
        raise AddressForbidden(f"Not a public address: {where} ({kind}).")

    async def _kind_of_api(self) -> AddressKind | None:
        """Return the kind of the API's addresses, if all are of one kind."""
        if self.api_host == "localhost":
            return AddressKind.LOOPBACK
        address_given = literal(self.api_host)
        try:
            addresses = [address_given] if address_given else await self._resolve(self.api_host, 0)
        except OSError:
            return None
        kinds = {kind_of(address) for address in addresses}
        return kinds.pop() if len(kinds) == 1 else None

    async def _resolve(self, host: str, port: int) -> list[Address]:
        found = [ipaddress.ip_address(text) for text in await self.resolve(host, port)]
        if not found:
            raise OSError("no address")
        return found
