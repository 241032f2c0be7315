"""Was it sent, not sent, maybe sent? One Protocol, thin adapters behind it.

The answer to that question decides about money, so it is a value, never an exception: a submit whose
:class:`NotSent` is certain may be made again, one whose fate is :class:`Unknown` may not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import attrs

from flux_async.api.envelope import WireRequest, WireResponse


@attrs.frozen
class Answered:
    """The server answered, in whole; what it said is another question."""

    response: WireResponse


@attrs.frozen
class NotSent:
    """No connection was made: the server certainly saw nothing."""

    reason: str


@attrs.frozen
class Unknown:
    """The request left in whole or in part, and no whole answer came back.

    Attributes:
        reason: Why, without the key.
        body: What came of the answer, without the key.
    """

    reason: str
    body: bytes = attrs.field(default=b"", repr=False)


SendResult: TypeAlias = Answered | NotSent | Unknown


class FileStream(Protocol):
    """A file being received."""

    @property
    def host(self) -> str:
        """Who sends it, after redirects: the name only."""
        ...

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers, their names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it was sent; raises DownloadCutShort where it ends early."""
        ...


class Transport(Protocol):
    """What the client needs of an HTTP library."""

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request to the API or its upload host, with the key, and without following redirects.

        A request without ``keep_alive`` goes over a connection that no other request uses, before or after.
        Returns within about ``timeout_s`` seconds whatever the server does, and raises nothing.
        """
        ...

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open ``url`` on a file host: without the key, following a few redirects.

        Ends within about ``timeout_s`` seconds, and when nothing has come for ``stall_s``. ``headers`` ask
        for a part of the file.

        Raises:
            AddressForbidden: It leads where a download must not go.
            DownloadTimedOut: It took longer than ``timeout_s``.
            DownloadError: It cannot be reached.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
