"""Decides when a task is polled next, and what the answer to a poll means."""

from __future__ import annotations

import math
from collections import OrderedDict

import attrs
from attrs.validators import optional

from flux_async.api.error_codes import PollMeaning, poll_meaning
from flux_async.errors import Charge, FluxError, InvalidInput, PollDeadlineExceeded, TaskFailed
from flux_async.models import TaskId, TaskRecord, TaskStatus
from flux_async.policy import check_positive, not_negative, positive_number
from flux_async.policy.generation_times import SHORTEST_GAP_S, GenerationTimes, TaskObservation

_LAST_POLL_S = 2.0
_POSTPONED_S = 5.0
_LAST_POLL_SHARE = 0.1
_TROUBLE_CAP_S = 30.0
_FASTEST_GROWTH = 10.0
_CALLBACK_GAP_S = 1.0
_MEMORY = 0.9
_ENOUGH_ENDS = 2.5
_HEALTHY = 0.8
_POLLS_AFTER_CALLBACK = 6
_SOON_S = 3.0
_OVERDUE_S = 1.0
_WIDEST = 2.0
_MOST_TICKS = 2.0**52  # beyond that they are finer than any clock


@attrs.frozen(kw_only=True)
class PollPolicy:
    """When a task is polled: at learned times, or at intervals of your own.

    ``PollPolicy()`` learns from how long tasks of the same kind took
    (:mod:`flux_async.policy.generation_times`). With ``interval_s`` the first poll comes ``first_s`` after
    the wait began and the next every ``interval_s``; from the age ``slow_after_s`` on the interval grows by
    ``growth`` at each poll. :meth:`fixed` and :meth:`backoff` are its two plain forms. Every gap is spread by
    ``± jitter``, so that tasks submitted together are not polled together, and is at most ``cap_s``.

    Attributes:
        poll_cost_s: Learned polling: one poll is worth so many seconds of finding the end earlier.
        tick_s: Learned polling: polls start at ticks so many seconds apart, because waking up for ten polls
            costs little more than for one. 0 switches ticks off.
        interval_s: Seconds between polls; None learns.
        first_s: Seconds before the first poll, with ``interval_s``; left out, ``interval_s``.
        jitter: Share of a gap by which it is spread, 0 to 0.5.
        slow_after_s: Age in seconds from which the interval grows, with ``interval_s``.
        growth: Factor by which it grows, at least 1.
        cap_s: Longest gap between polls, in seconds, jitter and tick included.
        not_found_grace_s: For this long after the wait began "no such task" means "not visible yet".
        timeout_failure_grace_s: For this long a failure whose message names a timeout is polled again: such
            failures have turned into a success about a minute later.
        sweep_s: Seconds between polls while callbacks report the ends (:class:`CallbackHealth`); these polls
            find what callbacks miss.
        callback_within_s: A callback is missing if it has not come this long after the end was seen.
    """

    poll_cost_s: float = attrs.field(default=0.5, validator=positive_number)
    tick_s: float = attrs.field(default=0.1, validator=not_negative)
    interval_s: float | None = attrs.field(default=None, validator=optional(positive_number))
    first_s: float | None = attrs.field(default=None, validator=optional(not_negative))
    jitter: float = attrs.field(default=0.25, validator=not_negative)
    slow_after_s: float = attrs.field(default=60.0, validator=not_negative)
    growth: float = attrs.field(default=1.4, validator=positive_number)
    cap_s: float = attrs.field(default=30.0, validator=positive_number)
    not_found_grace_s: float = attrs.field(default=90.0, validator=not_negative)
    timeout_failure_grace_s: float = attrs.field(default=120.0, validator=not_negative)
    sweep_s: float = attrs.field(default=30.0, validator=positive_number)
    callback_within_s: float = attrs.field(default=5.0, validator=positive_number)

    def __attrs_post_init__(self) -> None:
        if self.jitter > 0.5:  # noqa: PLR2004
            raise InvalidInput(f"jitter must be from 0 to 0.5, not {self.jitter!r}.")
        if not 1 <= self.growth <= _FASTEST_GROWTH:
            raise InvalidInput(f"growth must be from 1 to {_FASTEST_GROWTH:g}, not {self.growth!r}.")
        if self.interval_s is None and self.first_s is not None:
            raise InvalidInput("first_s needs interval_s.", advice="Give interval_s too, or leave both out.")
        shortest = self.interval_s or SHORTEST_GAP_S
        if self.cap_s < shortest:
            raise InvalidInput(f"cap_s ({self.cap_s!r}) must not be below {shortest!r}.")

    @classmethod
    def fixed(cls, every_s: float = 3.0, *, jitter: float = 0.25) -> PollPolicy:
        """Return a policy with one poll every ``every_s`` seconds, whatever the task's age."""
        cap_s = 2.0 * check_positive(every_s, "every_s")
        return cls(interval_s=every_s, jitter=jitter, growth=1.0, cap_s=cap_s)

    @classmethod
    def backoff(
        cls, first_s: float = 1.0, *, growth: float = 1.5, cap_s: float = 10.0, jitter: float = 0.25
    ) -> PollPolicy:
        """Return a policy whose gaps grow from ``first_s`` by ``growth`` at each poll, up to ``cap_s``."""
        first_s = check_positive(first_s, "first_s")
        return cls(interval_s=first_s, jitter=jitter, slow_after_s=0.0, growth=growth, cap_s=cap_s)

    def next_delay(self, *, polls: int, stragglers: int, draw: float) -> float:
        """Return the seconds until the next poll, with ``interval_s``.

        Args:
            polls: Polls made so far.
            stragglers: How many of them were made past ``slow_after_s``.
            draw: A random number from 0 to 1.
        """
        interval_s = self.interval_s or SHORTEST_GAP_S
        first_s = interval_s if self.first_s is None else self.first_s
        gap_s = first_s if polls == 0 else interval_s * self.growth ** min(stragglers, 64)
        return min(self.cap_s, self.spread(gap_s, gap_s, draw))

    def learned_delay(self, best_s: float, following_s: float, draw: float) -> float:
        """Return the seconds from one poll to the next, from the best gap and the one after it.

        Before the first ends are expected the gap is long, and a share of it would be too much: it is spread
        by at most as much as a gap of twice the following one.
        """
        delay_s = self.spread(best_s, min(best_s, _WIDEST * following_s), draw)
        return min(self.cap_s, max(SHORTEST_GAP_S, delay_s))

    def on_tick(self, at: float, ticks_from: float) -> float:
        """Return the first tick from the moment ``at`` on; ``ticks_from`` is one of them."""
        ticks = (at - ticks_from) / self.tick_s if self.tick_s else math.inf
        if abs(ticks) > _MOST_TICKS:
            return at
        return max(at, ticks_from + math.ceil(ticks) * self.tick_s)

    def spread(self, gap_s: float, width_s: float, draw: float) -> float:
        """Return a gap made longer or shorter by up to ``jitter`` of ``width_s``."""
        return gap_s + width_s * self.jitter * (2.0 * draw - 1.0)

    def may_flip(self, record: TaskRecord, failed_for_s: float) -> bool:
        """Return whether a failed record, first seen ``failed_for_s`` ago, may still turn into a success."""
        message = (record.error_message or "").lower()
        timed_out = any(part in message for part in ("timeout", "timed out", "time out"))
        return record.status.is_failure and timed_out and failed_for_s < self.timeout_failure_grace_s


@attrs.define(kw_only=True)
class CallbackHealth:
    """Whether callbacks can be relied on, learned from the ends of tasks, mostly of the last ten.

    A callback counts as received if it came before the task's end was confirmed, or within ``within_s``
    seconds after. Three received ones make callbacks reliable; two or three missing ones end that.
    """

    within_s: float
    _weight: float = attrs.field(default=0.0, init=False)
    _received: float = attrs.field(default=0.0, init=False)
    _awaited: OrderedDict[TaskId, float] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def ended(self, task_id: TaskId, now: float, *, notified: bool) -> None:
        """Record a task's end, and whether its callback has come."""
        if notified:
            self._learn(came=True)
        else:
            self._awaited[task_id] = now + self.within_s

    def saw_callback(self, task_id: TaskId, now: float) -> bool:
        """Record a callback for a task; return whether its end was known already."""
        self.are_coming(now)
        if self._awaited.pop(task_id, None) is None:
            return False
        self._learn(came=True)
        return True

    def are_coming(self, now: float) -> bool:
        """Return whether callbacks report ends reliably."""
        while self._awaited and next(iter(self._awaited.values())) <= now:
            self._awaited.popitem(last=False)
            self._learn(came=False)
        return self._weight > _ENOUGH_ENDS and self._received >= _HEALTHY * self._weight

    def _learn(self, *, came: bool) -> None:
        self._weight = self._weight * _MEMORY + 1.0
        self._received = self._received * _MEMORY + float(came)


@attrs.define(kw_only=True)
class PollState:
    """The state of one wait for one task. All times are monotonic seconds.

    ``next_poll`` returns how long to sleep; then ``saw_record`` or ``saw_error`` takes the answer and returns
    what ends the wait, or None to continue.

    Rules:

    1. Only the vendor ends a wait early: by a finished record, or a refusal that no later poll can change.
    2. "No such task" within ``not_found_grace_s`` means "not visible yet"; once seen, a task exists.
    3. After lost connections, 429, 455 and server errors the task is polled again, at growing intervals.
    4. The deadline ends the wait. The last poll is made just before, so that no finished task is missed. If
       the process was stopped over the deadline, it is postponed once, for a last poll.
    5. A callback moves the next poll to now. If that poll finds nothing, the next ones follow a second, two,
       four later; after six the callback counts as a mistake. Callbacks meanwhile add no polls. After a
       mistake, a callback is followed up when the last poll is a second old.
    6. With learned polling a gap starts at the previous poll, the first one at the task's beginning, and ends
       at a tick. A task of unknown age is polled soon; its record may contain the age.

    Attributes:
        policy: When to poll.
        task_id: The task.
        started_at: When the wait began.
        deadline: When it ends.
        timeout_s: The caller's timeout, for the message.
        observation: The task as all waits for it have seen it, and its age.
        ticks_from: One of the ticks, which all waits of a client share.
    """

    policy: PollPolicy
    task_id: TaskId
    started_at: float
    deadline: float
    timeout_s: float
    observation: TaskObservation = attrs.field(
        default=attrs.Factory(lambda self: GenerationTimes().begin(self.started_at), takes_self=True)
    )
    ticks_from: float = 0.0
    _polls: int = attrs.field(default=0, init=False)
    _stragglers: int = attrs.field(default=0, init=False)
    _troubles: int = attrs.field(default=0, init=False)
    _seen: bool = attrs.field(default=False, init=False)
    _failed_at: float | None = attrs.field(default=None, init=False)
    _failure: TaskFailed | None = attrs.field(default=None, init=False)
    _last_error: FluxError | None = attrs.field(default=None, init=False)
    _polled_at: float | None = attrs.field(default=None, init=False)
    _since_callback: int | None = attrs.field(default=None, init=False)
    _was_misled: bool = attrs.field(default=False, init=False)
    _is_postponed: bool = attrs.field(default=False, init=False)

    def saw_callback(self) -> None:
        """Record a callback for this task."""
        if self._since_callback is None:
            self._since_callback = 0

    def next_poll(self, now: float, draw: float, *, sweeps: bool = False) -> float | None:
        """Return the seconds until the next poll, or None at the deadline.

        Args:
            now: Monotonic seconds.
            draw: A random number from 0 to 1.
            sweeps: Whether callbacks report ends, so that a poll every ``sweep_s`` is enough.
        """
        last_poll_at = self._last_poll_at()
        if now >= last_poll_at and (self._polls or now >= self.deadline):
            return None
        delay = self._rhythm(now, draw, sweeps=sweeps and not self._troubles)
        if self._since_callback is not None:
            delay = min(delay, self._after_callback(now))
        if self._troubles:
            delay = max(
                delay, self._asked_to_wait(), min(_TROUBLE_CAP_S, 2.0 ** min(self._troubles, 16) * draw)
            )
        return max(0.0, min(delay, last_poll_at - now))

    def postpone(self, now: float) -> bool:
        """Postpone the deadline to five seconds from now, for a last poll; return False the second time.

        The deadline passed while the process was stopped.
        """
        if self._is_postponed:
            return False
        self._is_postponed = True
        self.deadline = now + _POSTPONED_S
        return True

    def is_last_poll(self, now: float) -> bool:
        """Return whether a poll made now is the last before the deadline."""
        return now >= self._last_poll_at()

    def saw_record(self, record: TaskRecord, now: float) -> TaskRecord | FluxError | None:
        """Return the record if it has the image, the error if the task failed, None to poll again."""
        self._count(now)
        self._seen, self._troubles = True, 0
        if record.status is TaskStatus.SUCCESS:
            self.observation.ended(now, record.generation_s)
            return record
        if not record.status.is_failure:
            self._failed_at = self._failure = None
            self.observation.generating(now)
            return None
        self._failed_at = now if self._failed_at is None else self._failed_at
        self._failure = _failure_of(record)
        if self.policy.may_flip(record, now - self._failed_at):
            return None
        self.observation.ended(now, record.generation_s)
        return self._failure

    def saw_error(self, error: FluxError, now: float) -> FluxError | None:
        """Return the error that ends the wait, or None to poll again."""
        self._count(now)
        meaning = poll_meaning(error)
        if meaning is PollMeaning.NOT_VISIBLE:
            visible_by = self.started_at + self.policy.not_found_grace_s
            gone = not self._seen and now >= visible_by
            return self._with_task(error) if gone else None
        if meaning is PollMeaning.FATAL:
            return self._with_task(error)
        self._troubles += 1
        self._last_error = error
        return None

    def expired(self) -> FluxError:
        """Return the error of a wait whose deadline has passed."""
        if self._failure is not None:
            return self._failure
        last = (
            f" The last poll failed: {self._last_error.message}"
            if self._troubles and self._last_error
            else ""
        )
        return PollDeadlineExceeded(
            f"Task {self.task_id} has not finished within {self.timeout_s:g} s.{last}", task_id=self.task_id
        )

    def _last_poll_at(self) -> float:
        span = max(0.0, self.deadline - self.started_at)
        return self.deadline - min(_LAST_POLL_S, _LAST_POLL_SHARE * span)

    def _rhythm(self, now: float, draw: float, *, sweeps: bool) -> float:
        policy = self.policy
        if sweeps:
            return policy.spread(policy.sweep_s, policy.sweep_s, draw)
        if policy.interval_s is not None:
            return policy.next_delay(polls=self._polls, stragglers=self._stragglers, draw=draw)
        return self._learned(now, draw)

    def _learned(self, now: float, draw: float) -> float:
        """Return the learned delay, counted from the last poll of the task, by this wait or another."""
        policy, observation, before = self.policy, self.observation, self._polled_at
        if before is None or before < observation.seen_at:
            before = observation.seen_at
        best_s = observation.gap(before, policy.poll_cost_s, policy.cap_s)
        if not observation.age_is_known and not self._polls:
            best_s = min(best_s, _SOON_S)
        following_s = observation.gap(before + best_s, policy.poll_cost_s, policy.cap_s)
        at = before + policy.learned_delay(best_s, following_s, draw)
        if at <= now:
            before, at = now, now + _OVERDUE_S * draw  # so that thousands resumed together are spread
        return min(policy.on_tick(at, self.ticks_from), max(at, before + policy.cap_s)) - now

    def _after_callback(self, now: float) -> float:
        """Return the seconds until the poll that a callback calls for: 0, later 1, 2, 4 after the last."""
        if self._since_callback:
            return float(_CALLBACK_GAP_S * 2 ** (self._since_callback - 1))
        if self._polled_at is None or not self._was_misled:
            return 0.0
        return max(0.0, self._polled_at + _CALLBACK_GAP_S - now)

    def _count(self, now: float) -> None:
        self._polls += 1
        self._polled_at = now
        if self._since_callback is not None:
            self._since_callback = (
                self._since_callback + 1 if self._since_callback < _POLLS_AFTER_CALLBACK else None
            )
            self._was_misled = True  # unless this poll ends the wait
        if now - self.started_at >= self.policy.slow_after_s:
            self._stragglers += 1

    def _asked_to_wait(self) -> float:
        asked = getattr(self._last_error, "retry_after_s", None) or 0.0
        return min(float(asked), _TROUBLE_CAP_S)

    def _with_task(self, error: FluxError) -> FluxError:
        error.task_id = self.task_id
        return error


def _failure_of(record: TaskRecord) -> TaskFailed:
    why = (record.error_message or "no reason given").rstrip(".")
    code = f" (errorCode {record.error_code})" if record.error_code is not None else ""
    created = record.status is not TaskStatus.CREATE_TASK_FAILED
    return TaskFailed(
        f"Task {record.task_id} ended in {record.status.name}{code}: {why}.",
        record=record,
        task_id=record.task_id,
        charge=Charge.MAYBE if created else Charge.NO,
    )
