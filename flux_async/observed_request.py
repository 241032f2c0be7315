"""HTTP requests, each followed by its event; without an observer of that, the transport's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from flux_async.api.envelope import WireRequest
from flux_async.clock import Clock
from flux_async.events import EventStream, RequestEnded
from flux_async.transport import Answered, FileStream, NotSent, SendResult, Transport


class Requester(Protocol):
    """What makes requests: a session, or its submitter."""

    @property
    def transport(self) -> Transport:
        """Makes the requests."""
        ...

    @property
    def events(self) -> EventStream:
        """Receives the events."""
        ...

    @property
    def clock(self) -> Clock:
        """Reads the time."""
        ...

    @property
    def address(self) -> str:
        """The API's origin."""
        ...


async def exchange(
    requester: Requester, wire: WireRequest, *, timeout_s: float, address: str | None = None, **about: Any
) -> SendResult:
    """Make a request; see :meth:`flux_async.transport.Transport.exchange`.

    Args:
        requester: Has the transport.
        wire: The request.
        timeout_s: Seconds it may take.
        address: Origin of the host, if it is not the API.
        about: Fields of its event.
    """
    transport, events, clock = requester.transport, requester.events, requester.clock
    if not events.wants(RequestEnded):
        return await transport.exchange(wire, timeout_s=timeout_s)
    about |= {"method": wire.method, "origin": origin_of(address or requester.address), "path": wire.path}
    began = clock.monotonic()
    try:
        with events.request():
            result = await transport.exchange(wire, timeout_s=timeout_s)
    except BaseException as error:
        about["error"] = type(error).__name__
        raise
    else:
        about |= _end_of(result)
    finally:
        events.emit(RequestEnded(at=clock.wall(), seconds=clock.monotonic() - began, **about))
    return result


def fetch(
    requester: Requester, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str]
) -> AbstractAsyncContextManager[FileStream]:
    """Open a file; see :meth:`flux_async.transport.Transport.fetch`."""
    opened = requester.transport.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)
    return _observed(requester, url, opened) if requester.events.wants(RequestEnded) else opened


@asynccontextmanager
async def _observed(
    requester: Requester, url: str, opened: AbstractAsyncContextManager[FileStream]
) -> AsyncIterator[FileStream]:
    clock, began = requester.clock, requester.clock.monotonic()
    about: dict[str, Any] = {"method": "GET", "origin": origin_of(url)}
    try:
        async with opened as file:
            about["status"] = int(file.status)
            yield file
    except BaseException as error:
        about["error"] = type(error).__name__
        raise
    finally:
        seconds = clock.monotonic() - began
        requester.events.emit(RequestEnded(at=clock.wall(), seconds=seconds, **about))


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL: its path, too, can give access to a file."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _end_of(result: SendResult) -> dict[str, Any]:
    if isinstance(result, Answered):
        return {"status": int(result.response.status)}
    return {"error": "RequestNotSent" if isinstance(result, NotSent) else "ConnectionLost"}
