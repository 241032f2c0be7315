"""Creates the transport: by argument, else by ``KIE_TRANSPORT``, else with httpx.

The default never depends on what is installed: installing another library must not change which one makes
paid requests. Each library is imported only when it is chosen.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

from flux_async.errors import ConfigurationError, MissingExtra, shown
from flux_async.transport import Transport
from flux_async.transport.credentials import Credentials

if TYPE_CHECKING:
    from flux_async.transport.httpx_ import HttpClient

TransportName: TypeAlias = Literal["httpx", "httpx2", "aiohttp"]
"""Library that makes the requests."""

TRANSPORTS: Final[tuple[TransportName, ...]] = get_args(TransportName)
VARIABLE: Final = "KIE_TRANSPORT"
DEFAULT: Final[TransportName] = "httpx"


def make_transport(
    choice: TransportName | Transport | None,
    credentials: Credentials,
    *,
    version: str,
    client: HttpClient | None = None,
) -> Transport:
    """Return a transport.

    Args:
        choice: Name of a library, or a transport, which is returned. None stands for ``KIE_TRANSPORT``, else
            httpx.
        credentials: API address and key.
        version: Version of this package, for the User-Agent.
        client: The caller's client, which makes the requests. It excludes ``choice``.

    Raises:
        ConfigurationError: An unknown name, no transport, or ``choice`` and ``client`` together.
        MissingExtra: The library is not installed, or its version is not supported.
    """
    if client is not None:
        if choice is not None:
            raise ConfigurationError("Give either http_client or transport: both define who makes requests.")
        from flux_async.transport import httpx_  # noqa: PLC0415 - httpx is slow to import

        return httpx_.HttpxTransport(credentials, version=version, client=client)
    if callable(getattr(choice, "exchange", None)):
        return cast("Transport", choice)
    name = (os.environ.get(VARIABLE, "").strip() or DEFAULT) if choice is None else choice
    if name not in TRANSPORTS:
        names = f"{', '.join(TRANSPORTS[:-1])} or {TRANSPORTS[-1]}"
        expected = (
            f"{VARIABLE} must be {names}" if choice is None else f"transport must be {names}, or a Transport"
        )
        raise ConfigurationError(f"{expected}, not {shown(name)}.")
    if name == "aiohttp":
        return _over_aiohttp(credentials, version)
    from flux_async.transport import httpx_  # noqa: PLC0415 - httpx is slow to import

    return httpx_.HttpxTransport(credentials, version=version, family=cast("Any", name))


def name_of(transport: Transport) -> str:
    """Return the library of a transport, or the class name of a transport of the caller's."""
    name = getattr(transport, "name", None)
    return name if isinstance(name, str) else type(transport).__name__


def _over_aiohttp(credentials: Credentials, version: str) -> Transport:
    try:
        from flux_async.transport import aiohttp_  # noqa: PLC0415 - an extra
    except ImportError as missing:
        raise MissingExtra.for_extra(f"The transport aiohttp ({missing})", "aiohttp") from None
    if not aiohttp_.is_supported():
        raise MissingExtra(
            "The installed version of aiohttp is not supported.",
            advice="Run: pip install --upgrade 'flux-async[aiohttp]'",
        )
    return aiohttp_.AiohttpTransport(credentials, version=version)
