"""Since when do requests wait for the service, and when is waiting given up? Facts in, decisions out.

Requests of one kind (submits, polls, uploads) share one pause, so that an outage costs one try now and then,
and not several per image. All times are monotonic seconds.
"""

from __future__ import annotations

import copy
import math

import attrs

from flux_async.errors import FluxError, RequestNotSent, Scope

_FIRST_S, _LONGEST_S = 1.0, 15.0
_AT_START_S = 20.0
"""A run that has reached nothing has nothing to lose: it halts within 30 s, its last try included."""
_TRIES_COUNTED = 16
_COME_BACK = "Do so when the service takes submits again."


@attrs.define
class Pause:
    """The pause of one kind of request: on from its first refusal until one of them gets through.

    Attributes:
        since: When the first of the requests that failed in a row began; None while there is no pause.
        until: When the next one may be made.
        error: Why the last one failed.
        tries: How many have failed in a row.
    """

    since: float | None = attrs.field(default=None, init=False)
    until: float = attrs.field(default=-math.inf, init=False)
    error: FluxError | None = attrs.field(default=None, init=False)
    tries: int = attrs.field(default=0, init=False)
    _asked_s: float = attrs.field(default=0.0, init=False)
    _took: float = attrs.field(default=0.0, init=False)
    _failed_at: float = attrs.field(default=0.0, init=False)
    _earlier_s: float = attrs.field(default=0.0, init=False)

    @property
    def is_on(self) -> bool:
        """Whether requests pause."""
        return self.since is not None

    @property
    def is_outage(self) -> bool:
        """Whether they pause because no connection can be made."""
        return isinstance(self.error, RequestNotSent)

    def saw_unreachable(self, error: RequestNotSent, began: float, now: float, draw: float) -> None:
        """Take note that no connection could be made. Next try after 1, 2, 4, 8, then 15 s, less up to half.

        Args:
            error: What happened.
            began: When the request began.
            now: When it failed.
            draw: A random number from 0 to 1.
        """
        self._begin(error, began, now)
        delay = min(_LONGEST_S, _FIRST_S * 2.0 ** min(self.tries - 1, _TRIES_COUNTED))
        self.until = now + delay * (1.0 - draw / 2.0)

    def saw_request_to_wait(self, error: FluxError, began: float, now: float, seconds: float) -> None:
        """Take note that the vendor sends everybody away for ``seconds`` (429, 455)."""
        if self.is_outage:
            self._end(now)
        self._begin(error, began, now)
        self.until = max(self.until, now + seconds)
        self._asked_s = seconds

    def saw_answer(self, began: float, now: float) -> bool:
        """Take note that a request got through; return whether that ended a pause.

        One that began before the last failure was on its way already, and says nothing.
        """
        if self.since is None or began < self._failed_at:
            return False
        self._end(now)
        return True

    def hold(self, now: float, seconds: float) -> None:
        """Have nobody else try while one does, which takes at most ``seconds``."""
        self.until = max(self.until, now + seconds)

    def delay(self, now: float) -> float:
        """Return the seconds to wait before the next request; 0 means go."""
        return max(0.0, self.until - now)

    def outage_s(self, now: float) -> float:
        """Return for how many seconds no connection could be made, in all outages so far."""
        return self._earlier_s + (now - self.since if self.since is not None and self.is_outage else 0.0)

    def gives_up_at(self, run_began: float, patience_s: float, *, reached: bool) -> float:
        """Return when a run halts because of this pause; infinity where there is none.

        A vendor that asks for more time than there is left is not waited for at all. Where the run has
        reached nothing yet, no try is begun that would probably end too late.

        Args:
            run_began: When the run began; what came before is not its own waiting.
            patience_s: Seconds the run waits.
            reached: Whether anything was answered since then.
        """
        if self.since is None:
            return math.inf
        start = max(self.since, run_began)
        if self.is_outage:
            return start + (patience_s if reached else min(patience_s, _AT_START_S - self._took))
        return start + patience_s if self.until <= start + patience_s else start

    def as_halt(self, waited_s: float) -> FluxError:
        """Return the error that halts a run because of this pause."""
        assert self.error is not None  # noqa: S101 - there is a pause
        error = copy.copy(self.error)
        error.scope = Scope.STOP
        asked = "" if self.is_outage else f"The service asked for a pause of {self._asked_s:.0f} s. "
        error.advice = (
            f"{asked}The run waited {waited_s:.0f} s and halted. The images that are left were not submitted "
            "and cost nothing; running the same again submits them, and fetches what is already paid. "
            f"{self.error.advice_template if self.is_outage else _COME_BACK}"
        )
        return error

    def _end(self, now: float) -> None:
        self._earlier_s = self.outage_s(now)
        self.since, self.error, self.tries, self.until = None, None, 0, -math.inf

    def _begin(self, error: FluxError, began: float, now: float) -> None:
        if self.since is None:
            self.since = began
        self.error = copy.copy(error)  # without traceback, which would keep the caller's data alive
        self.tries += 1
        self._took = now - began
        self._failed_at = now
