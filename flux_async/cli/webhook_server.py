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
from flux_async.cli.run_options import ListenAddress
from flux_async.webhook import CallbackStore

_BACKLOG = 512


def bind(address: ListenAddress) -> socket.socket:
    """Return a listening socket, so that a port in use is reported before anything is sent.

    Raises:
        ConfigurationError: The address cannot be used.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except UnicodeError:  # raised by the encoding of host names
        raise ConfigurationError(f"--listen {address}: the host's name is not one.") from None
    except OSError as error:
        raise ConfigurationError(f"--listen {address}: {error.strerror or error}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigurationError(
            f"--listen {address}: {why}.", advice="Choose another; nothing was sent."
        ) from None
    return listener


@asynccontextmanager
async def listening(
    listener: socket.socket,
    endpoint: CallbackEndpoint,
    store: CallbackStore,
    client: FluxClient | None = None,
) -> AsyncIterator[None]:
    """Receive callbacks on ``listener`` for as long as the block runs."""
    notify = None if client is None else client.notify
    server = make_server(WebhookReceiver(store, key=endpoint.keys, on_callback=notify), _BACKLOG)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        try:
            yield
        finally:
            server.should_exit = True


HEAD_TIMEOUT_S = 10.0
"""Seconds in which a connection must deliver the head of a request, and again after each answer."""
MOST_CHUNKS = 1_000
"""Most chunks of a body; the vendor's have less than a thousand bytes."""

_MOST_CONNECTIONS, _FEWEST_CONNECTIONS = 256, 8
_SHARE_OF_DESCRIPTORS = 4  # the rest is for the run: journal, requests, files
_ACCEPTS_AT_ONCE = 8  # the part of all connections that is accepted before the oldest are closed


class _Connection(Protocol):
    """What :class:`Slots` uses of a connection."""

    transport: asyncio.Transport

    def is_waiting(self) -> bool:
        """Return whether the client's next bytes are awaited."""
        ...


class Slots:
    """Bounds the open connections: a new one closes the oldest whose client sends nothing.

    So silent connections cannot keep the vendor's callbacks out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[_Connection, None] = {}  # oldest first

    def take(self, connection: _Connection) -> None:
        """Add a new connection; close it where all others are being answered."""
        self._open[connection] = None
        if len(self._open) > self._most:
            leaving = next((other for other in self._open if other.is_waiting()), connection)
            self.leave(leaving)
            leaving.transport.abort()

    def leave(self, connection: _Connection) -> None:
        """Remove a connection."""
        self._open.pop(connection, None)


def most_connections() -> int:
    """Return the most open connections: well below the file descriptors of this process."""
    try:
        import resource  # noqa: PLC0415 - not everywhere
    except ImportError:
        return _MOST_CONNECTIONS
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    share = _MOST_CONNECTIONS if descriptors < 0 else descriptors // _SHARE_OF_DESCRIPTORS  # -1: no limit
    return max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, share))


# --- connections ------------------------------------------------------------------------------------------


class Parser(h11.Connection):
    """Refuses a body in many small chunks: a quarter of a million would block the event loop for seconds."""

    _chunks = 0

    def next_event(self) -> Any:
        """Return the next event, and count the chunks of the body."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = 0
        elif isinstance(event, h11.Data):
            self._chunks += 1
            if self._chunks > MOST_CHUNKS:
                raise h11.RemoteProtocolError("The body has too many chunks.")
        return event


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, for a limited number of connections, with a time limit for silent ones."""

    def __init__(self, *, slots: Slots, **options: Any) -> None:
        super().__init__(**options)
        self.conn: h11.Connection = Parser(h11.SERVER)
        self._slots = slots

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a slot."""
        super().connection_made(cast("Any", transport))
        self._head_timer = self._start_head_timer()
        self._slots.take(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the slot."""
        self._head_timer.cancel()
        self._slots.leave(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Restart the time limit for the next request."""
        super().on_response_complete()
        self._head_timer.cancel()
        self._head_timer = self._start_head_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; the application's answer is dropped, or uvicorn would log an error."""
        if not self._has_no_request():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def is_waiting(self) -> bool:
        """Return whether the client's next bytes are awaited."""
        return self._has_no_request() or self.cycle.more_body or self.flow.write_paused

    def _has_no_request(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever its type says
        return cycle is None or bool(cycle.response_complete)

    def _start_head_timer(self) -> asyncio.TimerHandle:
        return self.loop.call_later(HEAD_TIMEOUT_S, self._check_head)

    def _check_head(self) -> None:
        if self._has_no_request():
            self.transport.abort()  # also a connection that was closed and is not read


# --- the server -------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the command.

    Args:
        config: The configuration.
        backlog: Most connections that wait to be accepted.
    """

    def __init__(self, config: uvicorn.Config, backlog: int) -> None:
        super().__init__(config)
        self._queue = backlog

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept; the queue may be long, though few connections are accepted at once."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(self._queue)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(app: Any, backlog: int) -> Server:
    """Return the server of an application; ``backlog`` connections may wait to be accepted."""
    most = most_connections()
    config = uvicorn.Config(
        app,
        http=cast("Any", partial(Connection, slots=Slots(most))),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",  # invalid requests must not fill the screen
        server_header=False,
        backlog=max(1, most // _ACCEPTS_AT_ONCE),  # asyncio accepts so many before it reads from one
        timeout_graceful_shutdown=1,
    )
    return Server(config, backlog)
