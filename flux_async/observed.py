"""Calls and requests, each with its events.

A call without a journal (``client.submit``, ``client.run`` and its short forms) has a first event and a last
one; a request has one, if an observer wants it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlsplit

import attrs

from flux_async.api.envelope import WireRequest
from flux_async.api.models_table import ApiName
from flux_async.clock import Clock
from flux_async.errors import Charge, FluxError
from flux_async.events import CALL, EventStream, JobAdded, RequestEnded, Settled
from flux_async.images import without_query
from flux_async.models import EditRequest, ImageRequest, ImageResult, JobKey, TaskId
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


# --- calls ----------------------------------------------------------------------------------------------


@attrs.define(kw_only=True, eq=False)
class ObservedCall:
    """A call without a journal.

    Attributes:
        job: The key of its events.
        trace: The context of its trace.
        task_id: Its task, once it has one.
        image: Its result, once there is one.
    """

    job: JobKey
    trace: str | None = None
    task_id: TaskId | None = None
    image: ImageResult | None = None


@contextmanager
def observed(
    requester: Requester, request: ImageRequest, api: ApiName, *, waits: bool = True
) -> Iterator[ObservedCall]:
    """Emit the first event of a call, and the last one however it ends.

    A call that does not wait for its task has neither, unless it fails.
    """
    job = JobKey(CALL + secrets.token_hex(8))  # distinguishes its events from those of other calls
    events, wall = requester.events, requester.clock.wall
    at = wall()
    call = ObservedCall(job=job, trace=events.trace_context(at))
    about = event_fields(request, api, job, call.trace)
    with events.job(job, call.trace):
        if waits:
            events.emit(JobAdded(at=at, **about))
        about["added_at"] = at
        try:
            yield call
        except BaseException as error:
            events.emit(Settled(at=wall(), **about | _end_of_call(error, call.task_id)))
            raise
        if (image := call.image) is not None:
            took_s = None if image.record is None else image.record.generation_s
            end = {"outcome": "succeeded", "task_id": call.task_id, "charge": Charge.YES}
            events.emit(Settled(at=wall(), **about | end, generation_s=took_s, credits=image.credits))


def _end_of_call(error: BaseException, task_id: TaskId | None) -> dict[str, Any]:
    """Return the fields of the end by an error; a cancelled caller leaves a task that is paid."""
    end: dict[str, Any] = {"outcome": "failed", "error": type(error).__name__, "task_id": task_id}
    if not isinstance(error, FluxError):
        return end | {"charge": Charge.NO if task_id is None else Charge.YES, "is_final": task_id is None}
    outcome = "in_doubt" if error.charge is Charge.MAYBE and task_id is None else "failed"
    code = getattr(error, "code", None)
    return end | {"outcome": outcome, "charge": error.charge, "reason": error.message, "code": code}


def event_fields(request: ImageRequest, api: ApiName, job: JobKey, trace: str | None) -> dict[str, Any]:
    """Return the fields that the events of a call have in common."""
    image = without_query(str(request.input_image)) if isinstance(request, EditRequest) else None
    return {"job": job, "image": image, "model": str(request.model), "api": api, "trace": trace}


# --- requests -------------------------------------------------------------------------------------------


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
        about |= _end_of_request(result)
    finally:
        events.emit(RequestEnded(at=clock.wall(), seconds=clock.monotonic() - began, **about))
    return result


def fetch(
    requester: Requester, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str]
) -> AbstractAsyncContextManager[FileStream]:
    """Open a file; see :meth:`flux_async.transport.Transport.fetch`."""
    opened = requester.transport.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)
    return _observed_file(requester, url, opened) if requester.events.wants(RequestEnded) else opened


@asynccontextmanager
async def _observed_file(
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


@lru_cache(maxsize=256)
def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL: its path, too, can give access to a file."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _end_of_request(result: SendResult) -> dict[str, Any]:
    if isinstance(result, Answered):
        return {"status": int(result.response.status)}
    return {"error": "RequestNotSent" if isinstance(result, NotSent) else "ConnectionLost"}
