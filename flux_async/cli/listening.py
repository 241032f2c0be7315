"""The address at which a run listens for callbacks."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self

import anyio
import attrs

from flux_async import CallbackEndpoint, ConfigurationError, FluxClient, MissingExtra, WebhookReceiver
from flux_async.journal.store import Journal

KEY_VARIABLE = "KIE_WEBHOOK_KEY"

_PLACE = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65_535
_BACKLOG = 512


@attrs.frozen
class Place:
    """Where to listen: a host and a port of this machine."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read ``HOST:PORT``, or return None; an empty host is every address of this machine."""
        found = _PLACE.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"]) <= _LAST_PORT:  # nobody would be told which port 0 is
            return None
        return cls(found["six"] or found["host"] or "0.0.0.0", int(found["port"]))  # noqa: S104 - as asked

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def webhook_keys(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the webhook keys of the environment: one, or several with commas between them."""
    return tuple(filter(None, (key.strip() for key in environment.get(KEY_VARIABLE, "").split(","))))


def bind(place: Place) -> socket.socket:
    """Take the port, before anything is sent.

    Raises:
        ConfigurationError: It cannot be taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except UnicodeError:  # what a host's name becomes on its way to the resolver
        raise ConfigurationError(f"--listen {place}: the host's name is not one.") from None
    except OSError as error:
        raise ConfigurationError(f"--listen {place}: {error.strerror or error}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigurationError(
            f"--listen {place}: {why}.", advice="Choose another; nothing was sent."
        ) from None
    return listener


@asynccontextmanager
async def listening(
    listener: socket.socket | None, endpoint: CallbackEndpoint, journal: Journal, client: FluxClient
) -> AsyncIterator[None]:
    """Receive callbacks on ``listener`` for as long as the block runs.

    Raises:
        MissingExtra: There is no server to listen with.
    """
    if listener is None:
        yield
        return
    from flux_async.cli.webhook_server import make_server  # noqa: PLC0415 - loads uvicorn

    server = make_server(WebhookReceiver(journal, key=endpoint.keys, on_callback=client.notify), _BACKLOG)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        try:
            yield
        finally:
            server.should_exit = True


def check_server() -> None:
    """Check that there is a server to listen with.

    Raises:
        MissingExtra: There is none.
    """
    try:
        import uvicorn  # noqa: F401, PLC0415 - an extra; only those who listen need it
    except ImportError as missing:
        raise MissingExtra.for_extra("--listen", "webhook") from missing
