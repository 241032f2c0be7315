"""The uvicorn servers of the sandbox, whose connections the application can close without an answer."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class AbortableProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it; ``request.state.close_connection`` closes the connection at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the method that closes the connection to the state of its requests."""
        super().connection_made(cast("Any", transport))
        self.app_state: dict[str, Any] = {**self.app_state, "close_connection": transport.close}


class EmbeddedServer(uvicorn.Server):
    """A server that installs no signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals of the process unchanged."""
        yield


class CommandServer(uvicorn.Server):
    """The server of the command: prints `greeting` when it is ready, and returns after a signal.

    uvicorn itself raises the signal again, which ends the process with another exit code than 0.
    """

    greeting: str = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print the greeting."""
        await super().startup(sockets)
        if self.started:
            print(self.greeting, flush=True)  # noqa: T201 - this is a command

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal, at once at the second."""

        def stop(_signal: int, _frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
