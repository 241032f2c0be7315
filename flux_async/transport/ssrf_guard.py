"""Where a download may go. Addresses of results come from outside; some lead into the caller's own network.

Rules:

1. http and https only; a redirect from https to http is refused.
2. A name is looked up once. Every address it has is judged, and the connection goes to one that was judged:
   there is no second look-up that could have another answer (DNS rebinding).
3. Only public addresses are gone to. What hides another address (IPv4-mapped, NAT64, 6to4) is judged by that.
4. One exception: where the API itself is on this machine, in a private or in a shared network (10.0.0.0/8 …,
   100.64.0.0/10), addresses of that same kind are gone to. Link-local ones and the addresses where clouds
   keep their machines' credentials never are. 198.18.0.0/15 is gone to only where the API's own name leads
   there: some VPN programs answer every look-up with an address out of it.
5. Through a proxy it is the proxy that looks names up. Then addresses are judged only where they are spelled
   out, and names that only mean something inside a network are refused.
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

from flux_async.api.url_encoding import encoded_as_by_a_browser
from flux_async.errors import AddressForbidden, DownloadError, InvalidInput
from flux_async.models import check_http_url
from flux_async.policy.hosts import INNER_NAMES, Address, AddressKind, kind_of, literal

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks a name up: host and port to numeric addresses; raises OSError where there is none."""

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._-]{1,255}|[0-9a-f:.]{2,45}")
_READ_DIFFERENTLY = frozenset("\u00df\u1e9e\u03c2\u200c\u200d")
"""Sharp s, final sigma and the joiners: a browser asks for another host than Python's codec (IDNA 2003)."""


_EXEMPTIBLE_EVERYWHERE = frozenset({AddressKind.BENCHMARK})
_EXEMPTIBLE = _EXEMPTIBLE_EVERYWHERE | {AddressKind.LOOPBACK, AddressKind.PRIVATE, AddressKind.SHARED}


@attrs.frozen
class ParsedUrl:
    """One address on the way to a file, taken apart once, so that all who look at it see the same.

    Attributes:
        url: The whole address. It may let anybody in, so messages show the host only.
        scheme: ``http`` or ``https``.
        host: Name or number, in ASCII.
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
        """Take an http(s) address apart, percent-encoded as a browser does. A user or password is not sent.

        Raises:
            DownloadError: Its host is none.
        """
        url = check_http_url(encoded_as_by_a_browser(url))
        parts = urlsplit(url)
        host = _ascii(parts.hostname or "")
        if not _HOST.fullmatch(host):
            raise DownloadError(
                "The address of the file names no host that could be looked up.", retryable=False
            )
        target = parts.path or "/"
        if parts.query:
            target += "?" + parts.query
        scheme = parts.scheme.lower()
        return cls(url, scheme, host, parts.port or _PORTS[scheme], target.encode("ascii"))

    @property
    def given_port(self) -> int | None:
        """The port, where it is not the scheme's own."""
        return None if self.port == _PORTS[self.scheme] else self.port

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.given_port is None else f"{host}:{self.port}"

    def follow(self, location: str) -> Self:
        """Return where a redirect leads.

        Raises:
            AddressForbidden: Not to http(s), or from https down to http.
        """
        try:
            url = urljoin(self.url, location)
            scheme = urlsplit(url).scheme.lower()
            if scheme not in _PORTS:
                raise AddressForbidden(
                    f"{self.host} redirects to {scheme[:20]!r}, which is neither http nor https."
                )
            if (self.scheme, scheme) == ("https", "http"):
                raise AddressForbidden(f"{self.host} redirects from https down to http.")
            return self.read(url)
        except (InvalidInput, ValueError):
            raise AddressForbidden(f"{self.host} redirects to something that is no address.") from None


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
    """Ask the system for the addresses of a name, in the order it recommends."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@attrs.frozen
class AddressGuard:
    """Says where a download may go.

    Attributes:
        api_host: Host of the API, which may be in the caller's own network, with what it sends us to.
        is_public: Whether it is known not to be: then nothing its name leads to opens a network.
        resolve: Looks names up.
    """

    api_host: str
    is_public: bool = False
    resolve: Resolver = look_up

    async def addresses_of(self, host: str, port: int) -> list[str]:
        """Look ``host`` up and return its addresses, all of which may be gone to.

        Raises:
            AddressForbidden: One of them may not.
            OSError: It has none.
        """
        addresses = [spelled] if (spelled := literal(host)) else await self._look_up(host, port)
        for address in addresses:
            await self._check(host, address)
        return [str(address) for address in addresses]

    async def check_for_proxy(self, host: str) -> None:
        """Refuse what a proxy should not be asked for, as far as can be told without looking it up.

        Raises:
            AddressForbidden: An address that may not be gone to, or a name that only an inner network knows.
        """
        bare = host.rstrip(".")
        if (spelled := literal(bare)) is not None:
            await self._check(host, spelled)
        elif bare != self.api_host and ("." not in bare or bare.endswith(INNER_NAMES)):
            raise AddressForbidden(f"{host} is a name of an inner network.")

    async def _check(self, host: str, address: Address) -> None:
        kind = kind_of(address)
        exemptible = _EXEMPTIBLE_EVERYWHERE if self.is_public else _EXEMPTIBLE
        if kind is None or (kind in exemptible and kind is await self._kind_of_api()):
            return
        where = (
            f"{host}, which {'is' if literal(host) else 'leads to'} {address}"
            if host != str(address)
            else host
        )
        raise AddressForbidden(f"Not a public address: {where} ({kind}).")

    async def _kind_of_api(self) -> AddressKind | None:
        """Return what all addresses of the API are, if it is one thing."""
        if self.api_host == "localhost":
            return AddressKind.LOOPBACK
        spelled = literal(self.api_host)
        try:
            addresses = [spelled] if spelled else await self._look_up(self.api_host, 0)
        except OSError:
            return None
        kinds = {kind_of(address) for address in addresses}
        return kinds.pop() if len(kinds) == 1 else None

    async def _look_up(self, host: str, port: int) -> list[Address]:
        found = [ipaddress.ip_address(text) for text in await self.resolve(host, port)]
        if not found:
            raise OSError("no address")
        return found
