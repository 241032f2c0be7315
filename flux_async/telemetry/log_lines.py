"""Writes one log line per event: money and settlement at INFO, polls at DEBUG, possible charges at WARNING.

Lines go to ``flux_async``, those about one job through its child ``flux_async.jobs``. Each record carries the
event's fields as ``extra``, for structured formatters: ``event``, ``job``, ``task_id``, ``credits`` …
"""

from __future__ import annotations

import contextlib
import logging
import re

import attrs

from flux_async.errors import Charge
from flux_async.events import (
    CALL,
    CallbackReceived,
    FluxEvent,
    Halted,
    JobAdded,
    Paused,
    Polled,
    Preserved,
    RateLimited,
    RequestEnded,
    Retried,
    Settled,
    SubmitStarted,
    Submitted,
    Verified,
)

logger: logging.Logger = logging.getLogger("flux_async")
job_logger: logging.Logger = logging.getLogger("flux_async.jobs")

_DEBUG = frozenset({JobAdded, SubmitStarted, Polled, CallbackReceived})
_MAY_WARN = frozenset({Submitted, Settled, RateLimited, Paused, Halted})
_OF_NO_JOB = frozenset({Polled, RateLimited, Paused, Halted})
_SHOWN_OF_KEY = 12

_KINDS = tuple(FluxEvent.__subclasses__())
_NAMES = {kind: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower() for kind in _KINDS}
_FIELDS = {kind: tuple(field.name for field in attrs.fields(kind)) for kind in _KINDS}
_LOGGERS = {kind: logger if kind in _OF_NO_JOB else job_logger for kind in _KINDS}
_HIGHEST_LEVELS = {
    kind: logging.DEBUG if kind in _DEBUG else logging.WARNING if kind in _MAY_WARN else logging.INFO
    for kind in _KINDS
}


class LogLines:
    """The observer that every client has."""

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Return whether the logger shows events of this class, at their highest level."""
        if kind is RequestEnded:
            return False  # polls and submits have lines
        return _LOGGERS[kind].isEnabledFor(_HIGHEST_LEVELS[kind])

    def __call__(self, event: FluxEvent, /) -> None:
        """Write the line of an event. A handler of the caller's that fails loses nothing."""
        to, level = _LOGGERS[type(event)], level_of(event)
        if to.isEnabledFor(level):
            with contextlib.suppress(Exception):
                to.log(level, "%s", line_of(event), extra=fields_of(event))


def level_of(event: FluxEvent) -> int:
    """Return the level of an event's line."""
    match event:
        case Submitted(charge=Charge.MAYBE) | Settled(charge=Charge.MAYBE) | RateLimited() | Halted():
            return logging.WARNING
        case Paused(tries=1):
            return logging.WARNING  # the later tries of one outage are no news
        case _ if type(event) in _DEBUG:
            return logging.DEBUG
    return logging.INFO


def fields_of(event: FluxEvent) -> dict[str, object]:
    """Return the event's fields that are set, and its name: the ``extra`` of its record."""
    found = {name: getattr(event, name) for name in _FIELDS[type(event)]}
    return {"event": name_of(event)} | {name: value for name, value in found.items() if value is not None}


def name_of(event: FluxEvent) -> str:
    """Return the name of an event's class in words: ``submit_started``."""
    return _NAMES[type(event)]


def line_of(event: FluxEvent) -> str:
    """Return the line of an event: what it concerns, what happened, and the details."""
    match event:
        case Polled(task_id=task_id):
            return f"poll of task {task_id}: {event.status or event.error}"
        case RateLimited(seconds=seconds, reason=reason):
            return f"all submits pause for {seconds:.1f} s: {reason}"
        case Paused(what=what, seconds=seconds, reason=reason):
            return f"all {what} pause for {seconds:.1f} s: {reason}"
        case Halted(what="submits", reason=reason):
            return f"all submits are halted: {reason}"
        case Halted(reason=reason):
            return f"the batch is halted: {reason}"
    key = "" if event.job is None else f"{event.job[:_SHOWN_OF_KEY]} "
    if key and not key.startswith(CALL):
        key = f"job {key}"
    details = ", ".join(_details(event))
    return f"{key}{event.image or 'no image'}: {_words(event)}{details and f' ({details})'}"


def _words(event: FluxEvent) -> str:  # noqa: PLR0911 - one arm per event
    match event:
        case Settled(outcome=outcome):
            return outcome.replace("_", " ")
        case Submitted(charge=Charge.MAYBE):
            return "submit unknown, now in doubt"
        case Submitted(is_found=True):
            return "task found"
        case Retried(what=what, seconds=seconds):
            return f"{what} made again" + (f" in {seconds:.1f} s" if seconds else "")
        case Preserved(reason=reason) if reason is not None:
            return "not preserved"
        case Verified(verdict=verdict):
            return "not checked" if verdict is None else f"verified, {verdict}"
    return name_of(event).replace("_", " ")


def _details(event: FluxEvent) -> list[str]:
    """Return what a line says of attempt, charge, task, file and reason."""
    found = [f"attempt {event.attempt}"] if event.attempt else []
    charge = getattr(event, "charge", None)
    if charge is not None:
        found.append(f"charge {charge}")
    if event.task_id is not None:
        found.append(f"task {event.task_id} ({event.api})")
    file = getattr(event, "file", None)
    if file is not None:
        found.append(f"file {file}")
    if isinstance(event, Settled) and event.credits is not None:
        found.append(f"{event.credits:g} credits")
    error, reason = getattr(event, "error", None), getattr(event, "reason", None)
    if error is not None:
        code = getattr(event, "code", None)
        found.append(error if code is None else f"{error} {code}")
    if reason is not None:
        found.append(str(reason))
    return found
