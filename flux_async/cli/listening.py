"""The address at which a run listens for callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, Self, cast

import anyio
import attrs

from flux_async import CallbackEndpoint, ConfigurationError, FluxClient, MissingExtra, WebhookReceiver
from flux_async.journal.store import Journal

KEY_VARIABLE = "KIE_WEBHOOK_KEY"
HEAD_TIMEOUT_S = 10.0
"""Seconds in which a connection must deliver the head of a request, and again after each answer."""

_PLACE = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65_535
_BACKLOG = 512
_MOST_CONNECTIONS, _FEWEST_CONNECTIONS = 256, 8
_SHARE_OF_DESCRIPTORS = 4  # the rest is for the run: its journal, its exchanges, its files
_ACCEPTS_AT_ONCE = 8  # of all connections, the part that may be accepted before the oldest have gone


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
    server = _server(WebhookReceiver(journal, key=endpoint.keys, on_callback=client.ring))
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
        raise MissingExtra(
            "--listen needs a web server.", advice="Install it:  pip install 'flux-async[webhook]'"
        ) from missing


# --- the server -------------------------------------------------------------------------------------------


class _Connection(Protocol):
    """What the places need of a connection."""

    transport: asyncio.Transport

    def is_waiting(self) -> bool:
        """Return whether it is the other end's turn."""
        ...


class Places:
    """The connections there may be at once; the oldest that waits for its other end gives way to a new one.

    So nobody can hold all places in silence and lock the vendor out: silence is what is ended first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[_Connection, None] = {}  # oldest first

    def take(self, connection: _Connection) -> None:
        """Give a place to a new connection, or end it where all others are being answered."""
        self._taken[connection] = None
        if len(self._taken) > self._most:
            leaving = next((taken for taken in self._taken if taken.is_waiting()), connection)
            self.leave(leaving)
            leaving.transport.abort()

    def leave(self, connection: _Connection) -> None:
        """Take back a place, if there is one to take back."""
        self._taken.pop(connection, None)


def most_connections() -> int:
    """Return how many connections strangers may have with us: well below the descriptors of this process."""
    try:
        import resource  # noqa: PLC0415 - not everywhere
    except ImportError:
        return _MOST_CONNECTIONS
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    share = _MOST_CONNECTIONS if descriptors < 0 else descriptors // _SHARE_OF_DESCRIPTORS  # -1: no limit
    return max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, share))


def _connection_class(places: Places) -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: PLC0415 - as above

    class Connection(H11Protocol):
        """HTTP/1.1 as uvicorn speaks it, for a limited number of connections and not for silent ones."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(cast("Any", transport))
            self._head_timer = self._start_head_timer()
            places.take(self)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_timer.cancel()
            places.leave(self)
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._head_timer.cancel()
            self._head_timer = self._start_head_timer()

        def is_waiting(self) -> bool:
            return self._has_no_request() or self.cycle.more_body or self.flow.write_paused

        def _has_no_request(self) -> bool:
            cycle: Any = self.cycle  # None before the first request, whatever its type says
            return cycle is None or bool(cycle.response_complete)

        def _start_head_timer(self) -> asyncio.TimerHandle:
            return self.loop.call_later(HEAD_TIMEOUT_S, self._check_head)

        def _check_head(self) -> None:
            if self._has_no_request():
                self.transport.abort()  # also what was closed, and is not read

    return Connection


def _server(app: Any) -> Any:
    import uvicorn  # noqa: PLC0415 - as above

    class Server(uvicorn.Server):
        """Leaves the signals to the command."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listener in sockets or ():
                listener.listen(_BACKLOG)  # a long line is no harm: only accepting is done in small parts

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    most = most_connections()
    return Server(
        uvicorn.Config(
            app,
            http=_connection_class(Places(most)),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="error",  # no stranger is to write on the screen with requests that are none
            server_header=False,
            backlog=max(1, most // _ACCEPTS_AT_ONCE),  # asyncio accepts so many before it lets one speak
            timeout_graceful_shutdown=1,
        )
    )
