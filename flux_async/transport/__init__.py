"""HTTP requests whose result states whether the request was sent.

That decides about money, so it is a value and never an exception: a submit that was :class:`NotSent` may be
repeated, one whose result is :class:`Unknown` may not. ``httpx_`` and ``aiohttp_`` implement the protocol
:class:`Transport`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import attrs

from flux_async.api.envelope import WireRequest, WireResponse


@attrs.frozen
class Answered:
    """The server sent a whole answer, of whatever content."""

    response: WireResponse


@attrs.frozen
class NotSent:
    """No byte of the request left: the server certainly did not receive it."""

    reason: str


@attrs.frozen
class Unknown:
    """The request was sent in whole or in part, and no whole answer was received.

    Attributes:
        reason: Why, without the key.
        body: Received part of the answer, without the key.
    """

    reason: str
    body: bytes = attrs.field(default=b"", repr=False)


SendResult: TypeAlias = Answered | NotSent | Unknown


class FileStream(Protocol):
    """A file that is being downloaded."""

    @property
    def host(self) -> str:
        """Name of the host that sends the file, after redirects."""
        ...

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers by their names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it was sent; raises DownloadCutShort if it ends early."""
        ...


class Transport(Protocol):
    """HTTP requests of one session. The caller limits how many are in flight."""

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request to the API or its upload host, with the key, without following redirects.

        A request without ``keep_alive`` uses a connection that no other request uses, before or after it.
        Returns within about ``timeout_s`` seconds whatever the server does, and raises nothing.
        """
        ...

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open ``url`` on a file host, without the key, following a few redirects.

        Ends within about ``timeout_s`` seconds, and when nothing was received for ``stall_s``. ``headers``
        request a part of the file.

        Raises:
            AddressForbidden: The address, or a redirect, leads to a forbidden network.
            DownloadTimedOut: It took longer than ``timeout_s``.
            DownloadError: The host cannot be reached.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
