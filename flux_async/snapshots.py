"""How a client is, as a frozen value for health checks; making it makes no request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from flux_async.poller import Poller
from flux_async.session import Session


@attrs.frozen(kw_only=True)
class PauseSnapshot:
    """Requests of one kind that pause.

    Attributes:
        what: The kind of request.
        until: When the next one is tried, in seconds since the epoch.
        error: The class of the error that the last one ended with.
        reason: Its message.
        tries: How many have failed in a row.
    """

    what: Literal["submits", "uploads", "polls"]
    until: float
    error: str
    reason: str
    tries: int


@attrs.frozen(kw_only=True)
class ClientSnapshot:
    """A client, with all that share its session, at one moment.

    Attributes:
        at: The moment, in seconds since the epoch.
        is_closed: Whether it was closed.
        submits_in_flight: Submits that were sent and not answered.
        tasks_in_flight: Tasks that are waited for.
        permit_in_s: Seconds until the rate limiter lets the next submit start, pauses included.
        submits_per_s: Submits that it lets start in a second.
        pauses: The pauses that are on.
        is_halted: Whether too many answers made no sense, so that nothing is submitted for some minutes.
        last_answer_s: Seconds since the vendor last answered anything; None before the first answer.
        last_success_at: When a poll last found a finished image, in seconds since the epoch; None before one.
        credits: The balance when it was last read, and ``credits_at`` when that was; None before.
        credits_at: See ``credits``.
        median_s: Median duration of a task in seconds, by model and mode, where that was learned.
        unclaimed: Submits whose callers were cancelled, which are kept in ``client.unclaimed``.
    """

    at: float
    is_closed: bool
    submits_in_flight: int
    tasks_in_flight: int
    permit_in_s: float
    submits_per_s: float
    pauses: tuple[PauseSnapshot, ...]
    is_halted: bool
    last_answer_s: float | None
    last_success_at: float | None
    credits: float | None
    credits_at: float | None
    median_s: Mapping[str, float]
    unclaimed: int


def no_client(at: float) -> ClientSnapshot:
    """Return what a process without a client has in its place: one that is closed and has done nothing."""
    return ClientSnapshot(
        at=at,
        is_closed=True,
        submits_in_flight=0,
        tasks_in_flight=0,
        permit_in_s=0.0,
        submits_per_s=0.0,
        pauses=(),
        is_halted=False,
        last_answer_s=None,
        last_success_at=None,
        credits=None,
        credits_at=None,
        median_s={},
        unclaimed=0,
    )


def client_snapshot(session: Session, poller: Poller) -> ClientSnapshot:
    """Return a session at this moment."""
    now, wall = session.clock.monotonic(), session.clock.wall()
    submitter, limiter, times = session.submitter, session.spacing, session.times
    credits_, credits_at = session.balance or (None, None)
    return ClientSnapshot(
        at=wall,
        is_closed=session.is_closed,
        submits_in_flight=submitter.in_flight,
        tasks_in_flight=poller.waiting,
        permit_in_s=max(limiter.delay(now), submitter.pause.delay(now) if submitter.pause.is_on else 0.0),
        submits_per_s=1.0 / limiter.spacing_s,
        pauses=_pauses(session, now, wall),
        is_halted=submitter.breaker.is_halted(now),
        last_answer_s=None if session.answered_at < 0.0 else now - session.answered_at,
        last_success_at=session.succeeded_at,
        credits=credits_,
        credits_at=credits_at,
        median_s={kind: table.median() for kind, table in times.kinds.items() if table.weight},
        unclaimed=len(session.unclaimed),
    )


def _pauses(session: Session, now: float, wall: float) -> tuple[PauseSnapshot, ...]:
    kinds: tuple[Literal["submits", "uploads", "polls"], ...] = ("submits", "uploads", "polls")
    return tuple(
        PauseSnapshot(
            what=what,
            until=wall + pause.delay(now),
            error=type(pause.error).__name__,
            reason=pause.error.message,
            tries=pause.tries,
        )
        for what, pause in zip(kinds, session.pauses, strict=True)
        if pause.error is not None and pause.is_on
    )
