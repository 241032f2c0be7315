"""The event stream: what happens to jobs, requests and limits, as frozen values for logs, traces and metrics.

Rules:

1. Each thing that happens is emitted once, by the session it happens in; logs, traces, metrics and live pages
   are observers of this one stream and read nothing else.
2. An event of a job is emitted when the journal has it: what an observer has seen survives a crash.
3. Addresses have no query and no event has the key: observers may write them anywhere.
4. An observer is called on the event loop, so it must be quick. What it raises is logged once and goes no
   further. An event that no observer wants is not made.

``match`` on the class, from the module: ``case events.Submitted(task_id=task_id): …``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import attrs

from flux_async.api.models_table import ApiName
from flux_async.errors import Charge, FluxError, shown
from flux_async.job_state import JobState
from flux_async.models import JobKey, TaskId
from flux_async.policy import check_function

logger: logging.Logger = logging.getLogger("flux_async")

CALL = "call-"
"""The keys begin with it by which calls without a journal are told from each other."""


@attrs.frozen(kw_only=True)
class FluxEvent:
    """Something that happened.

    Attributes:
        at: Seconds since the epoch (UTC).
        job: The job's key; a call without a journal has a key of its own, which begins with ``call-``. None
            if it concerns no job, or if the task was named by its id only.
        image: The image, its address without its query; None if the job has none.
        model: The model.
        api: The API of the task, or of the submit.
        task_id: The task.
        attempt: The number of the submit, from 1; 0 before the first.
        trace: The context of the job's trace, from an observer's ``trace_context``; the journal keeps it.
    """

    at: float
    job: JobKey | None = None
    image: str | None = None
    model: str | None = None
    api: ApiName | None = None
    task_id: TaskId | None = None
    attempt: int = 0
    trace: str | None = None


@attrs.frozen(kw_only=True)
class JobAdded(FluxEvent):
    """A run or a service has taken a job on; ``state`` is where earlier runs have left it."""

    state: JobState = JobState.PENDING


@attrs.frozen(kw_only=True)
class SubmitStarted(FluxEvent):
    """A submit is about to be sent: it has its permit, and the journal has the intent.

    One of these follows: ``Submitted``, ``Retried`` if it was not charged and is made again, or ``Settled``.

    Attributes:
        added_at: When the job was added to the journal, or the call was made; None if an earlier release has
            added it.
    """

    added_at: float | None = None


@attrs.frozen(kw_only=True)
class Submitted(FluxEvent):
    """A submit was charged, or may have been.

    Attributes:
        charge: YES if it has a task; MAYBE if its task is unknown.
        is_found: Whether the task of an earlier submit became known: by a callback, or by its record.
        credits: The price of its model, as measured, else as expected; None if an earlier event had it.
        error: The class of the error that leaves the task unknown, and ``reason`` its message.
        reason: See ``error``.
    """

    charge: Charge = Charge.YES
    is_found: bool = False
    credits: float | None = None
    error: str | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Polled(FluxEvent):
    """A poll of a task was answered, or failed. One poll serves all that wait for the task.

    Attributes:
        status: The status of the task; None if the poll failed.
        generation_s: Seconds that the task took by the vendor's clock, once it has ended.
        lag_s: Seconds from its end, by the vendor's clock, to this poll.
        error: The class of the error.
    """

    status: str | None = None
    generation_s: float | None = None
    lag_s: float | None = None
    error: str | None = None


@attrs.frozen(kw_only=True)
class CallbackReceived(FluxEvent):
    """A callback named a task, which is polled now; ``is_signed`` is None where that was not checked here."""

    is_signed: bool | None = None


@attrs.frozen(kw_only=True)
class RateLimited(FluxEvent):
    """The vendor answered 429: all submits pause for ``seconds``."""

    seconds: float
    reason: str


@attrs.frozen(kw_only=True)
class Paused(FluxEvent):
    """Requests of one kind pause: the service is under maintenance (455) or cannot be reached.

    Attributes:
        what: The kind of request.
        seconds: Seconds until the next try.
        tries: How many have failed in a row.
        error: The class of the error, and ``reason`` its message.
        reason: See ``error``.
    """

    what: Literal["submits", "uploads", "polls"]
    seconds: float
    tries: int = 1
    error: str
    reason: str


@attrs.frozen(kw_only=True)
class Retried(FluxEvent):
    """Something failed and is made again.

    Attributes:
        what: A submit that was not charged, or that the user lets be made again; a task that failed, in whose
            place another is paid for; or a download.
        seconds: Seconds until then; 0 as soon as the limits allow.
        error: The class of the error, and ``reason`` its message.
        reason: See ``error``.
    """

    what: Literal["submit", "task", "download"]
    seconds: float = 0.0
    error: str | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Downloaded(FluxEvent):
    """The result is saved.

    Attributes:
        file: The file, relative to the run's folder; or what a sink returned.
        sha256: Digest of its bytes.
    """

    file: str | None = None
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class Preserved(FluxEvent):
    """The result was composed with its original.

    Attributes:
        reason: Why it was not, and the vendor's image stays; None if it was.
        replaced: Share of the original's pixels that were replaced.
    """

    reason: str | None = None
    replaced: float | None = None


@attrs.frozen(kw_only=True)
class Verified(FluxEvent):
    """The result was verified; without a ``verdict`` a check could not be made, for ``reason``."""

    verdict: str | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Settled(FluxEvent):
    """A job has its outcome in this run, or a call has ended.

    Attributes:
        outcome: The outcome.
        is_final: Whether the journal keeps it as final; if not, a later run may still bring the image.
        added_at: See :class:`SubmitStarted`.
        charge: Whether the latest submit was charged.
        credits: What its task has cost; None if that is not known.
        submitted_at: When the task was accepted, in seconds since the epoch.
        generated_at: When a poll found the image.
        generation_s: Seconds that the task took by the vendor's clock.
        file: The image on disk, relative to the run's folder.
        verdict: What was found by ``verify``.
        error: The class of the error, ``code`` the vendor's code, and ``reason`` its message.
        code: See ``error``.
        reason: See ``error``.
    """

    outcome: Literal["succeeded", "failed", "in_doubt"]
    is_final: bool = True
    added_at: float | None = None
    charge: Charge
    credits: float | None = None
    submitted_at: float | None = None
    generated_at: float | None = None
    generation_s: float | None = None
    file: str | None = None
    verdict: str | None = None
    error: str | None = None
    code: int | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Halted(FluxEvent):
    """Nothing more is submitted.

    Attributes:
        what: All submits of the client's key, or one run, which ends once its tasks have.
        error: The class of the error, and ``reason`` its message.
        reason: See ``error``.
    """

    what: Literal["submits", "run"]
    error: str
    reason: str


@attrs.frozen(kw_only=True)
class RequestEnded(FluxEvent):
    """An HTTP request was answered, or has failed. Only observers whose ``wants`` asks for it receive it.

    Attributes:
        method: The HTTP method.
        origin: Scheme, host and port.
        path: The path of an address of the API or of its upload host; None for a file, whose path gives
            access to it.
        seconds: Seconds from the request to its answer; of a file, to its last byte.
        status: The HTTP status; None without a whole answer.
        error: The class of the error.
        links: The traces of other jobs that wait for the same poll.
    """

    method: str
    origin: str
    path: str | None = None
    seconds: float
    status: int | None = None
    error: str | None = None
    links: tuple[str, ...] = ()


def why(error: FluxError) -> dict[str, Any]:
    """Return the fields ``error`` and ``reason`` of an event."""
    return {"error": type(error).__name__, "reason": error.message}


# --- observers --------------------------------------------------------------------------------------------


class Observer(Protocol):
    """Called with each event: any function of one argument.

    It may have other methods besides:

    - ``wants(kind) -> bool`` says whether it wants events of a class now; without it, it receives all but
      :class:`RequestEnded`.
    - ``trace_context(at) -> str | None`` is called once for each job that was added ``at`` that time, before
      its first submit; what it returns is kept in the journal, and is the ``trace`` of the job's events.
    - ``enter_job(job, trace)`` is called in the coroutine that works on a job, before its first event, and
      ``enter_request()`` in one that makes an HTTP request. What they return, if it is not None, is called
      without arguments where that ends.
    """

    def __call__(self, event: FluxEvent, /) -> object:
        """Receive an event."""
        ...


_METHODS = ("wants", "trace_context", "enter_job", "enter_request")
_NOTHING = contextlib.nullcontext()


@attrs.define(eq=False)
class _Attached:
    """An observer, and whether it has raised before."""

    observer: Observer
    _methods: frozenset[str] = attrs.field(init=False, repr=False)
    _wants: Callable[[type[FluxEvent]], object] | None = attrs.field(init=False, repr=False)
    _has_failed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._methods = frozenset(name for name in _METHODS if hasattr(self.observer, name))
        self._wants = getattr(self.observer, "wants", None)

    def has(self, name: str) -> bool:
        """Return whether the observer has a method besides being called."""
        return name in self._methods

    def call(self, name: str, *given: object) -> object:
        """Return what a method of the observer returns; None if it has none, or if it raises."""
        return self.run(getattr(self.observer, name), *given) if name in self._methods else None

    def run(self, function: Callable[..., object], *given: object) -> object:
        """Return what a function of the observer's returns; None if it raises, which is logged once."""
        try:
            return function(*given)
        except Exception as error:  # noqa: BLE001 - any code of the caller's
            self._report(error)
            return None

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Return whether it wants events of a class."""
        if self._wants is None:
            return kind is not RequestEnded
        try:
            return bool(self._wants(kind))
        except Exception as error:  # noqa: BLE001 - as above
            self._report(error)
            return False

    def _report(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            with contextlib.suppress(Exception):
                words = "an observer failed, which is reported once: %r"
                logger.error(words, self.observer, exc_info=error)


@attrs.define(eq=False)
class EventStream:
    """The events of one session, and their observers."""

    _attached: tuple[_Attached, ...] = attrs.field(default=(), init=False)

    def attach(self, observer: Observer) -> None:
        """Call ``observer`` with each event from now on.

        Raises:
            InvalidInput: It is no function of one argument.
        """
        words = f"An observer must be a function of one argument, not {shown(observer)}"
        check_function(observer, words, takes=1, advice="Give such a function.")
        self._attached = (*self._attached, _Attached(observer))

    def detach(self, observer: Observer) -> None:
        """Call ``observer`` no more."""
        self._attached = tuple(each for each in self._attached if each.observer is not observer)

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Return whether an event of this class is to be made."""
        for each in self._attached:  # noqa: SIM110 - asked ten times a job: any() takes twice as long
            if each.wants(kind):
                return True
        return False

    def emit(self, event: FluxEvent) -> None:
        """Hand an event to the observers that want it; what one raises is logged once."""
        for each in self._attached:
            if each.wants(type(event)):
                each.run(each.observer, event)

    @property
    def has_traces(self) -> bool:
        """Whether an observer may have a trace context for a job."""
        return any(each.has("trace_context") for each in self._attached)

    def trace_context(self, at: float) -> str | None:
        """Return the trace context for a job that was added ``at``, from the first observer that has one."""
        found = (each.call("trace_context", at) for each in self._attached)
        return next((str(context) for context in found if context is not None), None)

    def job(self, job: JobKey, trace: str | None) -> AbstractContextManager[None]:
        """Enter the work of the running coroutine on a job, for ``with``."""
        return self._entered("enter_job", job, trace)

    def request(self) -> AbstractContextManager[None]:
        """Enter an HTTP request of the running coroutine, for ``with``."""
        return self._entered("enter_request")

    def _entered(self, method: str, *given: object) -> AbstractContextManager[None]:
        entered = [(each, each.call(method, *given)) for each in self._attached if each.has(method)]
        leaving = [(each, leave) for each, leave in entered if callable(leave)]
        return _Entered(leaving) if leaving else _NOTHING


@attrs.frozen(eq=False)
class _Entered:
    """Calls in the end what observers want to be called, the last one first."""

    _leaving: Sequence[tuple[_Attached, Callable[[], object]]]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for each, leave in reversed(self._leaving):
            each.run(leave)


def stream_of(observers: Iterable[Observer]) -> EventStream:
    """Return a stream with its observers."""
    stream = EventStream()
    for observer in observers:
        stream.attach(observer)
    return stream
