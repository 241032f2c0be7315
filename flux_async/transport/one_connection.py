"""What stands for httpcore's pool where there is one connection: the connection.

A pool of httpcore costs a request as much CPU as all the rest of it: locks, a queue, and a look at every
connection before and after. In a :class:`flux_async.transport.pools.Rack` nobody else can want the
connection, so there is nothing to lock and nothing to queue.
"""

from __future__ import annotations

import ssl
import sys
from typing import Any


class OneConnection:
    """A connection that is made with the first request, and made anew when the server has closed it.

    Args:
        core: httpcore, or the library of that interface which httpx2 stands on.
        tls: Whom to trust.
        keepalive_s: Seconds after which an idle connection is not used again.
    """

    def __init__(self, core: Any, tls: ssl.SSLContext, keepalive_s: float) -> None:
        self._core, self._tls, self._keepalive_s = core, tls, keepalive_s
        self._connection: Any = None

    async def handle_async_request(self, request: Any) -> Any:
        """Make a request, one at a time."""
        connection = self._connection
        if connection is None or not _is_fit(connection):
            await self.aclose()
            connection = self._connection = self._core.AsyncHTTPConnection(
                request.url.origin, ssl_context=self._tls, keepalive_expiry=self._keepalive_s
            )
        return await connection.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connection, if there is one; one that is just being made, when this is called again."""
        if self._connection is not None:
            await self._connection.aclose()


def _is_fit(connection: Any) -> bool:
    """Whether another request may go this way, and its answer would be its own.

    What the server said beyond its last answer lies with the parser, which would take it for the next one: a
    submit would go by the task of another, and its own, which is paid for, be lost.
    """
    parser = getattr(getattr(connection, "_connection", None), "_h11_state", None)
    left_over, _ = getattr(parser, "trailing_data", (b"", False))
    return connection.is_available() and not connection.has_expired() and not left_over


def drop_pool(carrier: Any, tls: ssl.SSLContext, keepalive_s: float) -> None:
    """Put the one connection of a library's carrier in the place of its pool.

    It is the library's own all the same, so whoever stands in for its ``handle_async_request`` in a test, or
    for httpcore's, stands in for ours. One that goes through a proxy, or is not built as it was known to us,
    stays as it is.
    """
    pool = getattr(carrier, "_pool", None)
    core = sys.modules[type(pool).__module__.partition(".")[0]]
    if type(pool) is getattr(core, "AsyncConnectionPool", None) and hasattr(core, "AsyncHTTPConnection"):
        carrier._pool = OneConnection(core, tls, keepalive_s)  # noqa: SLF001 - see above
