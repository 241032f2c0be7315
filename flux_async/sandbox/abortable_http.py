"""Connections that the application can close instead of sending an answer."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol


class AbortableProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it; ``request.state.close_connection`` closes the connection at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the method that closes the connection to the state of its requests."""
        super().connection_made(cast("Any", transport))
        self.app_state: dict[str, Any] = {**self.app_state, "close_connection": transport.close}
