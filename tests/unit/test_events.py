"""The event stream: each observer receives what it wants, and none can break anything."""

from __future__ import annotations

import functools
import logging
import typing

import attrs
import pytest

from flux_async import InvalidInput, events
from flux_async.errors import Charge, ConnectionLost
from flux_async.events import EventStream, FluxEvent, stream_of, why
from flux_async.models import JobKey, TaskId
from flux_async.telemetry.log_lines import LogLines, fields_of, level_of, line_of, name_of

POLLED = events.Polled(at=1.0, task_id=TaskId("t1"), status="SUCCESS")
JOB: dict[str, typing.Any] = {
    "at": 1.0,
    "job": JobKey("0123456789abcdef"),
    "image": "https://example.com/a.jpg",
    "task_id": TaskId("t1"),
    "api": "kontext",
    "attempt": 2,
}


@attrs.define(eq=False)
class Picky:
    """An observer of settlement that has a trace context."""

    seen: list[FluxEvent] = attrs.field(factory=list)
    context: str | None = "00-trace"

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Want settlement only."""
        return issubclass(kind, events.Settled)

    def trace_context(self, at: float) -> str | None:
        """Return the context."""
        return self.context

    def __call__(self, event: FluxEvent, /) -> None:
        """Keep the event."""
        self.seen.append(event)


def test_a_stream_without_observers_wants_nothing() -> None:
    """So no event is made for it."""
    stream = EventStream()
    assert not stream.wants(events.Polled)
    assert stream.trace_context(1.0) is None
    stream.emit(POLLED)


def test_an_observer_receives_events_until_it_is_detached() -> None:
    """Any function of one argument is one."""
    seen: list[FluxEvent] = []
    stream = stream_of([seen.append])
    assert stream.wants(events.Polled)
    assert not stream.wants(events.RequestEnded)  # ten for each job: an observer has to ask for it
    stream.emit(POLLED)
    stream.detach(stream_of([]).emit)  # one that is not attached
    observe = seen.append
    stream.attach(observe)
    stream.detach(observe)
    stream.emit(POLLED)
    assert seen == [POLLED, POLLED]


def test_an_observer_receives_only_what_it_wants() -> None:
    """Other events are not even made."""
    picky = Picky()
    stream = stream_of([picky])
    settled = events.Settled(at=2.0, outcome="succeeded", charge=Charge.YES)
    assert not stream.wants(events.Polled)
    stream.emit(POLLED)
    stream.emit(settled)
    assert picky.seen == [settled]


def test_the_first_trace_context_counts() -> None:
    """An observer outside of any span has none."""
    stream = stream_of([Picky(context=None), Picky(), Picky(context="00-other")])
    assert stream.trace_context(1.0) == "00-trace"


def test_an_observer_is_called_before_and_after_a_job_and_a_request(caplog: pytest.LogCaptureFixture) -> None:
    """The last to enter is the first to leave; one that fails there, too, is logged and breaks nothing."""
    calls: list[object] = []

    @attrs.define(eq=False)
    class Entered(Picky):
        def enter_job(self, *given: object) -> object:
            calls.append(given)
            return lambda: calls.append("left the job")

        def enter_request(self) -> object:
            return lambda: 1 / 0

    stream = stream_of([Picky(), Entered()])
    with pytest.raises(KeyError), stream.job(JobKey("k"), "00-trace"), stream.request():
        raise KeyError
    assert calls == [("k", "00-trace"), "left the job"]
    assert len(caplog.records) == 1


def test_an_observer_that_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The others receive the event all the same."""
    seen: list[FluxEvent] = []

    def broken(_: FluxEvent) -> None:
        raise OSError("no room")

    stream = stream_of([broken, seen.append])
    stream.emit(POLLED)
    stream.emit(POLLED)
    assert seen == [POLLED, POLLED]
    (record,) = caplog.records
    assert record.getMessage().startswith("an observer failed, which is reported once: ")
    assert record.exc_info is not None


async def _observe(event: FluxEvent) -> None:
    """Is never awaited."""


class _Awaited:
    """An observer whose call is never awaited."""

    async def __call__(self, event: FluxEvent, /) -> None:
        """Take an event."""


@pytest.mark.parametrize(
    "observer",
    [None, "file", lambda: None, _observe, functools.partial(_observe), _Awaited(), _Awaited().__call__],
    ids=["none", "text", "no_argument", "async", "async_partial", "async_object", "async_method"],
)
def test_only_functions_of_one_argument_observe(observer: typing.Any) -> None:
    """A mistake is found when the client is made."""
    with pytest.raises(InvalidInput, match="An observer must be a function of one argument"):
        stream_of([observer])


def test_every_event_is_frozen_and_documented() -> None:
    """Observers may keep them; each class says what happened."""
    kinds = FluxEvent.__subclasses__()
    assert {kind.__name__ for kind in kinds} == {
        *("JobAdded", "SubmitStarted", "Submitted", "Polled", "CallbackReceived", "RateLimited", "Paused"),
        *("Retried", "Downloaded", "Verified", "Preserved", "Settled", "Halted", "RequestEnded"),
    }
    assert all(kind.__doc__ for kind in kinds)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        POLLED.at = 2.0  # type: ignore[misc]


# --- log lines --------------------------------------------------------------------------------------------

WHY = why(ConnectionLost("The answer was lost."))
LINES: list[tuple[FluxEvent, int, str]] = [
    (POLLED, logging.DEBUG, "poll of task t1: SUCCESS"),
    (events.Polled(at=1.0, task_id=TaskId("t1"), error="ServerError"), 10, "poll of task t1: ServerError"),
    (
        events.RateLimited(at=1.0, seconds=10.0, reason="Too many."),
        logging.WARNING,
        "all submits pause for 10.0 s: Too many.",
    ),
    (
        events.Paused(at=1.0, what="polls", seconds=2.0, **WHY),
        logging.WARNING,
        "all polls pause for 2.0 s: The answer was lost.",
    ),
    (
        events.Paused(at=1.0, what="polls", seconds=2.0, tries=2, **WHY),
        logging.INFO,
        "all polls pause for 2.0 s: The answer was lost.",
    ),
    (events.Halted(at=1.0, what="submits", **WHY), 30, "all submits are halted: The answer was lost."),
    (events.Halted(at=1.0, what="run", **WHY), 30, "the batch is halted: The answer was lost."),
    (
        events.CallbackReceived(at=1.0, task_id=TaskId("t1")),
        logging.DEBUG,
        "no image: callback received (task t1 (None))",
    ),
    (
        events.Submitted(**JOB, is_found=True),
        logging.INFO,
        "job 0123456789ab https://example.com/a.jpg: task found (attempt 2, charge yes, task t1 (kontext))",
    ),
    (
        events.Submitted(**JOB | {"task_id": None}, charge=Charge.MAYBE, **WHY),
        logging.WARNING,
        (
            "job 0123456789ab https://example.com/a.jpg: submit unknown, now in doubt (attempt 2, "
            "charge maybe, ConnectionLost, The answer was lost.)"
        ),
    ),
    (
        events.Retried(at=1.0, what="download", seconds=4.0),
        logging.INFO,
        "no image: download made again in 4.0 s",
    ),
    (events.Retried(at=1.0, what="task"), logging.INFO, "no image: task made again"),
    (events.Downloaded(at=1.0, file="a.png"), logging.INFO, "no image: downloaded (file a.png)"),
    (events.Preserved(at=1.0), logging.INFO, "no image: preserved"),
    (events.Preserved(at=1.0, reason="moved"), logging.INFO, "no image: not preserved (moved)"),
    (events.Verified(at=1.0, verdict="clean"), logging.INFO, "no image: verified, clean"),
    (events.Verified(at=1.0, reason="It ended."), logging.INFO, "no image: not checked (It ended.)"),
    (
        events.Settled(at=1.0, outcome="in_doubt", charge=Charge.MAYBE),
        logging.WARNING,
        "no image: in doubt (charge maybe)",
    ),
    (
        events.Settled(
            at=1.0, outcome="failed", charge=Charge.YES, credits=5.0, code=501, error="TaskFailed"
        ),
        logging.INFO,
        "no image: failed (charge yes, 5 credits, TaskFailed 501)",
    ),
]


@pytest.mark.parametrize(
    ("event", "level", "line"), LINES, ids=[f"{n}-{name_of(row[0])}" for n, row in enumerate(LINES)]
)
def test_each_event_is_one_line(event: FluxEvent, level: int, line: str) -> None:
    """Its level says whether it needs attention."""
    assert (level_of(event), line_of(event)) == (level, line)


def test_records_carry_the_fields_for_structured_formatters(caplog: pytest.LogCaptureFixture) -> None:
    """They are attributes of the record, beside its text."""
    caplog.set_level(logging.INFO, "flux_async")
    lines = LogLines()
    lines(events.Submitted(**JOB, model="flux-kontext-pro"))
    lines(POLLED)  # below the level of the logger
    (record,) = caplog.records
    fields = fields_of(events.Submitted(**JOB, model="flux-kontext-pro"))
    assert fields.items() <= vars(record).items()
    assert fields["event"] == "submitted"
    assert "trace" not in fields  # what is not known is left out


@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        (logging.DEBUG, {"Polled", "Retried", "Submitted"}),
        (logging.INFO, {"Retried", "Submitted"}),
        (logging.WARNING, {"Submitted"}),
        (logging.ERROR, set()),
    ],
)
def test_an_event_is_made_only_for_a_logger_that_shows_it(level: int, wanted: set[str]) -> None:
    """One that may be a warning is made unless warnings are off."""
    for name in ("flux_async", "flux_async.jobs"):
        logging.getLogger(name).setLevel(level)
    kinds = (events.Polled, events.Retried, events.Submitted)
    assert {kind.__name__ for kind in kinds if LogLines().wants(kind)} == wanted
