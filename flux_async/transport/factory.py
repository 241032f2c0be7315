"""Which HTTP library makes the requests. Each is imported only where it is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from flux_async.errors import InvalidInput, MissingExtra, shown
from flux_async.transport import Transport
from flux_async.transport.credentials import Credentials, origin_of
from flux_async.transport.http_settings import proxy_for

if TYPE_CHECKING:
    from flux_async.transport.httpx_ import HttpClient

TransportName: TypeAlias = Literal["auto", "httpx", "httpx2", "aiohttp"]
"""``auto``: aiohttp where it is installed, else httpx."""

_NAMES: tuple[str, ...] = get_args(TransportName)


def check_choice(transport: object, client: object) -> None:
    """Accept the name of a transport, or a transport, but not together with a client.

    Raises:
        InvalidInput: No such name, no transport, or both were given.
    """
    if client is not None and transport != "auto":
        raise InvalidInput("http_client and transport exclude each other: both say how requests are made.")
    if isinstance(transport, str):
        known = transport in _NAMES
    else:
        known = callable(getattr(transport, "exchange", None))
    if not known:
        names = ", ".join(repr(name) for name in _NAMES)
        raise InvalidInput(f"transport must be one of {names}, or a Transport, not {shown(transport)}.")


def make_transport(
    name: TransportName,
    credentials: Credentials,
    *,
    version: str,
    client: HttpClient | None = None,
) -> Transport:
    """Make the transport of that name, or one over a client of the caller's.

    Raises:
        MissingExtra: Its library is not installed, or of another age.
        ConfigurationError: The client is none that can be used.
    """
    if client is None and (name == "aiohttp" or (name == "auto" and _suits_aiohttp(credentials))):
        return _over_aiohttp(credentials, version)
    from flux_async.transport import httpx_  # noqa: PLC0415 - httpx is slow to import

    if client is not None:
        return httpx_.HttpxTransport(credentials, version=version, client=client)
    return httpx_.HttpxTransport(
        credentials, version=version, family="httpx2" if name == "httpx2" else "httpx"
    )


def name_of(transport: Transport) -> str:
    """Return the library a transport uses; of one of the caller's own, the name of its class."""
    name = getattr(transport, "name", None)
    return name if isinstance(name, str) else type(transport).__name__


def _over_aiohttp(credentials: Credentials, version: str) -> Transport:
    try:
        from flux_async.transport import aiohttp_  # noqa: PLC0415 - an extra
    except ImportError as missing:
        raise MissingExtra.for_extra(f"transport='aiohttp' ({missing})", "aiohttp") from None
    if not aiohttp_.is_recent():
        raise MissingExtra(
            "The version of aiohttp that is installed is not supported.",
            advice="Run: pip install --upgrade 'flux-async[aiohttp]'",
        )
    return aiohttp_.AiohttpTransport(credentials, version=version)


def _suits_aiohttp(credentials: Credentials) -> bool:
    """Say whether aiohttp is installed, recent, and can use the proxies that the environment names."""
    try:
        from flux_async.transport import aiohttp_  # noqa: PLC0415 - an extra
    except Exception:  # noqa: BLE001 - an aiohttp of another age or a broken one: httpx is always there
        return False
    hosts = (origin_of(url)[:2] for url in (credentials.base_url, credentials.upload_url))
    proxies = {proxy_for(*host) for host in hosts} - {None}
    return aiohttp_.is_recent() and all(urlsplit(proxy).scheme in aiohttp_.PROXIES for proxy in proxies)
