"""The events of one call without a journal: ``client.submit``, ``client.run`` and its short forms."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from flux_async.api.models_table import ApiName
from flux_async.errors import Charge, FluxError
from flux_async.events import CALL, JobAdded, Settled
from flux_async.models import ImageRequest, ImageResult, JobKey, TaskId
from flux_async.session import Session, event_fields


@attrs.define(kw_only=True, eq=False)
class ObservedCall:
    """One such call.

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
    session: Session, request: ImageRequest, api: ApiName, *, waits: bool = True
) -> Iterator[ObservedCall]:
    """Emit the first event of a call, and the last one however it ends.

    A call that does not wait for its task has neither, unless it fails.
    """
    job = JobKey(CALL + secrets.token_hex(8))  # distinguishes its events from those of other calls
    emit, wall, at = session.events.emit, session.clock.wall, session.clock.wall()
    call = ObservedCall(job=job, trace=session.events.trace_context(at))
    about = event_fields(request, api, job, call.trace)
    with session.events.job(job, call.trace):
        if waits:
            emit(JobAdded(at=at, **about))
        about["added_at"] = at
        try:
            yield call
        except BaseException as error:
            emit(Settled(at=wall(), **about | _end_of(error, call.task_id)))
            raise
        if (image := call.image) is not None:
            took_s = None if image.record is None else image.record.generation_s
            end = {"outcome": "succeeded", "task_id": call.task_id, "charge": Charge.YES}
            emit(Settled(at=wall(), **about | end, generation_s=took_s, credits=image.credits))


def _end_of(error: BaseException, task_id: TaskId | None) -> dict[str, Any]:
    """Return the fields of the end by an error; a cancelled caller leaves a task that is paid."""
    end: dict[str, Any] = {"outcome": "failed", "error": type(error).__name__, "task_id": task_id}
    if not isinstance(error, FluxError):
        return end | {"charge": Charge.NO if task_id is None else Charge.YES, "is_final": task_id is None}
    outcome = "in_doubt" if error.charge is Charge.MAYBE and task_id is None else "failed"
    code = getattr(error, "code", None)
    return end | {"outcome": outcome, "charge": error.charge, "reason": error.message, "code": code}
