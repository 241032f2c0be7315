"""Receives callbacks during a run: uvicorn, protected from clients that waste connections and time.

It runs on the run's own event loop, so whatever holds it up holds up the run. Needs the extra ``webhook``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, cast

import anyio
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flux_async import CallbackEndpoint, ConfigurationError, FluxClient, WebhookReceiver
from flux_async.cli.run_options import Place
from flux_async.journal.store import Journal

_BACKLOG = 512


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
    listener: socket.socket, endpoint: CallbackEndpoint, journal: Journal, client: FluxClient
) -> AsyncIterator[None]:
    """Receive callbacks on ``listener`` for as long as the block runs."""
    server = make_server(WebhookReceiver(journal, key=endpoint.keys, on_callback=client.notify), _BACKLOG)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        try:
            yield
        finally:
            server.should_exit = True


# --- the server -----------------------------------------------------------------------------------------


HEAD_TIMEOUT_S = 10.0
"""Seconds in which a connection must deliver the head of a request, and again after each answer."""
MOST_PIECES = 1_000
"""Pieces in which a body may come; one of the vendor's has less than a thousand bytes."""

_MOST_CONNECTIONS, _FEWEST_CONNECTIONS = 256, 8
_SHARE_OF_DESCRIPTORS = 4  # the rest is for the run: its journal, its exchanges, its files
_ACCEPTS_AT_ONCE = 8  # of all connections, the part that may be accepted before the oldest have gone


# --- places -----------------------------------------------------------------------------------------------


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


# --- connections ------------------------------------------------------------------------------------------


class Parser(h11.Connection):
    """Reads no body in crumbs: a quarter of a million pieces would hold all others up for seconds."""

    _pieces = 0

    def next_event(self) -> Any:
        """Return what comes next, and count the pieces of the body."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            if self._pieces > MOST_PIECES:
                raise h11.RemoteProtocolError("The body comes in too many pieces.")
        return event


class Connection(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, for a limited number of connections and not for silent ones."""

    def __init__(self, *, places: Places, **options: Any) -> None:
        super().__init__(**options)
        self.conn: h11.Connection = Parser(h11.SERVER)
        self._places = places

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place."""
        super().connection_made(cast("Any", transport))
        self._head_timer = self._start_head_timer()
        self._places.take(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._head_timer.cancel()
        self._places.leave(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Give the next request its time."""
        super().on_response_complete()
        self._head_timer.cancel()
        self._head_timer = self._start_head_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; no other answer follows, for it would be an error on the screen."""
        if not self._has_no_request():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def is_waiting(self) -> bool:
        """Return whether it is the other end's turn."""
        return self._has_no_request() or self.cycle.more_body or self.flow.write_paused

    def _has_no_request(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever its type says
        return cycle is None or bool(cycle.response_complete)

    def _start_head_timer(self) -> asyncio.TimerHandle:
        return self.loop.call_later(HEAD_TIMEOUT_S, self._check_head)

    def _check_head(self) -> None:
        if self._has_no_request():
            self.transport.abort()  # also what was closed, and is not read


# --- the server -------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """Leaves the signals to the command, and lets connections queue.

    Args:
        config: What uvicorn is told.
        line: How many connections may wait to be accepted.
    """

    def __init__(self, config: uvicorn.Config, line: int) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept; a long line is no harm: only accepting is done in small parts."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(self._line)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(app: Any, line: int) -> Server:
    """Return the server of an application; ``line`` connections may wait to be accepted."""
    most = most_connections()
    config = uvicorn.Config(
        app,
        http=cast("Any", partial(Connection, places=Places(most))),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",  # no stranger is to write on the screen with requests that are none
        server_header=False,
        backlog=max(1, most // _ACCEPTS_AT_ONCE),  # asyncio accepts so many before it lets one speak
        timeout_graceful_shutdown=1,
    )
    return Server(config, line)
