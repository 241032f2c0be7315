"""Decides whether a request is repeated and after how long: only if that cannot pay twice."""

from __future__ import annotations

import attrs

from flux_async.api_errors import MaintenanceError, RateLimitedError, ServerError
from flux_async.errors import Charge, ConnectionLost, FluxError, RequestNotSent, Scope, UnexpectedResponse
from flux_async.policy import not_negative, positive_integer, positive_number


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """When a request is repeated.

    A **submit** is repeated only if the failed one was certainly not charged and another may succeed: it was
    not sent (:class:`RequestNotSent`), or the vendor asked all requests to wait (429, 455). It is never
    repeated after an unknown answer. A **poll** (record-info, credits) costs nothing and is also repeated
    after a lost connection or a server error. So is an **upload**, under a new name.

    The wait before try ``n + 1`` is drawn from ``0 … min(cap_s, base_s · 2ⁿ⁻¹)`` (full jitter): with the
    defaults up to 0.5 s after the first, up to 8 s after the fifth. After 429 it is a full window, or
    Retry-After up to ``longest_retry_after_s``; after 455 it is ``maintenance_pause_s``.

    In a batch the tries of a job are not counted: all submits pause together, for as long as Retry-After
    asks, until the service is back or the batch halts (:class:`flux_async.policy.rate_limit.Pause`).

    Attributes:
        max_tries: Tries of one request.
        max_paid_attempts: Tasks that may be paid for one job.
        base_s: First upper bound of the wait, in seconds.
        cap_s: Largest upper bound of the wait, in seconds.
        window_s: The pause after 429, in seconds.
        maintenance_pause_s: The pause after 455, in seconds.
        longest_retry_after_s: A longer Retry-After ends the tries, in seconds.
    """

    max_tries: int = attrs.field(default=5, validator=positive_integer)
    max_paid_attempts: int = attrs.field(default=1, validator=positive_integer)
    base_s: float = attrs.field(default=0.5, validator=positive_number)
    cap_s: float = attrs.field(default=15.0, validator=positive_number)
    window_s: float = attrs.field(default=10.0, validator=positive_number)
    maintenance_pause_s: float = attrs.field(default=60.0, validator=positive_number)
    longest_retry_after_s: float = attrs.field(default=120.0, validator=not_negative)

    def before_next_submit(self, error: FluxError, tries: int, draw: float) -> float | None:
        """Return the seconds until the submit is repeated, or None: it is not.

        Args:
            error: How the last try ended.
            tries: Tries made so far, at least 1.
            draw: A random number from 0 to 1.
        """
        if error.charge is not Charge.NO or tries >= self.max_tries:
            return None
        if error.scope is Scope.ACCOUNT_PAUSED:
            return self._unless_too_long(error, draw)
        return self._backoff(tries, draw) if isinstance(error, RequestNotSent) else None

    def before_next_poll(self, error: FluxError, tries: int, draw: float) -> float | None:
        """Return the seconds to wait before reading again, or None: do not. Arguments as for a submit."""
        if tries >= self.max_tries:
            return None
        if isinstance(error, RateLimitedError):
            return self._unless_too_long(error, draw)
        transient = isinstance(error, RequestNotSent | ConnectionLost | ServerError)
        return self._backoff(tries, draw) if transient else None

    def before_next_upload(self, error: FluxError, tries: int, draw: float) -> float | None:
        """Return the seconds until an upload is repeated, or None. Arguments as for a submit."""
        if tries >= self.max_tries or error.scope is Scope.STOP:
            return None
        if error.scope is Scope.ACCOUNT_PAUSED:
            return self._unless_too_long(error, draw)
        lost = RequestNotSent | ConnectionLost | ServerError | UnexpectedResponse
        return self._backoff(tries, draw) if isinstance(error, lost) else None

    def _backoff(self, tries: int, draw: float) -> float:
        return draw * min(self.cap_s, self.base_s * 2.0 ** min(tries - 1, 32))

    def pause_for(self, error: FluxError, draw: float) -> float:
        """Return the seconds for which all submits pause after 429 or 455."""
        if isinstance(error, MaintenanceError):
            return self.maintenance_pause_s * (1.0 + 0.2 * draw)
        return max(self.window_s, min(_asked(error), self.longest_retry_after_s)) + draw

    def _unless_too_long(self, error: FluxError, draw: float) -> float | None:
        return None if _asked(error) > self.longest_retry_after_s else self.pause_for(error, draw)


def _asked(error: FluxError) -> float:
    """Return the seconds of Retry-After, 0 without it."""
    return float(getattr(error, "retry_after_s", None) or 0.0)
