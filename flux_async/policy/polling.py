"""When to look at a task next, and when a look that found nothing means something."""

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
    """The rhythm of looking at a task: learned, or one of your own.

    ``PollPolicy()`` learns: from how long tasks of the same kind took it knows when the next look is worth
    most (:mod:`flux_async.policy.generation_times`). With ``interval_s`` the rhythm is given: the first look
    comes ``first_s`` after the wait began, the next every ``interval_s``, and a task older than
    ``slow_after_s`` is a straggler, whose interval grows by ``growth`` at each look. :meth:`fixed` and
    :meth:`backoff` are its two plain forms. In all of them gaps are spread by ``± jitter``, so that tasks
    submitted together are not polled together, and end at ``cap_s``.

    Attributes:
        poll_cost_s: Of a learned rhythm: one look is worth so many seconds of seeing an end earlier.
        tick_s: Of a learned rhythm: looks are made at ticks so many seconds apart, rather a moment late than
            each for itself; to wake up for ten looks costs little more than for one. 0 has no ticks.
        interval_s: Seconds between looks; None learns.
        first_s: Seconds before the first look, where ``interval_s`` is given; left out, ``interval_s``.
        jitter: Share of a gap by which it is spread, 0 to 0.5.
        slow_after_s: Age in seconds from which looks grow rarer, where ``interval_s`` is given.
        growth: Factor by which they do, at least 1.
        cap_s: Longest gap between looks, in seconds, spread included; no tick is waited for beyond it.
        not_found_grace_s: For this long after the wait began "no such task" means "not visible yet".
        timeout_failure_grace_s: For this long a failure whose words speak of a time-out is polled again: such
            failures have been seen to turn into a success about a minute later.
        sweep_s: Seconds between looks while callbacks tell of the ends (:class:`CallbackHealth`): what they
            miss is found by these.
        callback_within_s: A callback is missing when it has not come this long after the end was seen.
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
            raise InvalidInput(
                "first_s belongs to a rhythm of your own.", advice="Give interval_s too, or leave both out."
            )
        shortest = self.interval_s or SHORTEST_GAP_S
        if self.cap_s < shortest:
            raise InvalidInput(f"cap_s ({self.cap_s!r}) must not be below {shortest!r}.")

    @classmethod
    def fixed(cls, every_s: float = 3.0, *, jitter: float = 0.25) -> PollPolicy:
        """Return the plain rhythm: a look every ``every_s`` seconds, whatever the task's age."""
        cap_s = 2.0 * check_positive(every_s, "every_s")
        return cls(interval_s=every_s, jitter=jitter, growth=1.0, cap_s=cap_s)

    @classmethod
    def backoff(
        cls, first_s: float = 1.0, *, growth: float = 1.5, cap_s: float = 10.0, jitter: float = 0.25
    ) -> PollPolicy:
        """Return the rhythm whose gaps grow from ``first_s`` by ``growth`` at each look, up to ``cap_s``."""
        first_s = check_positive(first_s, "first_s")
        return cls(interval_s=first_s, jitter=jitter, slow_after_s=0.0, growth=growth, cap_s=cap_s)

    def next_delay(self, *, polls: int, stragglers: int, draw: float) -> float:
        """Return the seconds to wait before the next poll, where ``interval_s`` is given.

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
        """Return the seconds from one look to the next, where the best gap and the one after it are known.

        Where ends are not expected yet the gap is long, and a share of it would be too much: it is spread by
        as much as a gap of twice the following one at most.
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
        """Say whether a failed record, first seen ``failed_for_s`` ago, may still turn into a success."""
        words = (record.error_message or "").lower()
        timed_out = "timeout" in words or "timed out" in words or "time out" in words
        return record.status.is_failure and timed_out and failed_for_s < self.timeout_failure_grace_s


@attrs.define(kw_only=True)
class CallbackHealth:
    """Do callbacks come? Learned from the ends of tasks, the last ten of them above all.

    A callback counts where the task's end was confirmed and the callback had come, or comes within
    ``within_s`` seconds. It takes three to be believed, and two or three that are missing to be doubted.
    """

    within_s: float
    _weight: float = attrs.field(default=0.0, init=False)
    _heard: float = attrs.field(default=0.0, init=False)
    _awaited: OrderedDict[TaskId, float] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def ended(self, task_id: TaskId, now: float, *, notified: bool) -> None:
        """Take note of a task's end, and whether its callback has come."""
        if notified:
            self._learn(came=True)
        else:
            self._awaited[task_id] = now + self.within_s

    def saw_callback(self, task_id: TaskId, now: float) -> bool:
        """Take note of a callback for a task; return whether its end was known already."""
        self.are_coming(now)
        if self._awaited.pop(task_id, None) is None:
            return False
        self._learn(came=True)
        return True

    def are_coming(self, now: float) -> bool:
        """Say whether callbacks can be relied upon to tell of ends."""
        while self._awaited and next(iter(self._awaited.values())) <= now:
            self._awaited.popitem(last=False)
            self._learn(came=False)
        return self._weight > _ENOUGH_ENDS and self._heard >= _HEALTHY * self._weight

    def _learn(self, *, came: bool) -> None:
        self._weight = self._weight * _MEMORY + 1.0
        self._heard = self._heard * _MEMORY + float(came)


@attrs.define(kw_only=True)
class PollState:
    """One wait for one task: what was seen so far, and what follows from it.

    ``next_poll`` says how long to sleep; then give it what the look found, with ``saw_record`` or
    ``saw_error``: each returns what ends the wait, or None to go on. All times are monotonic seconds;
    ``timeout_s`` is what the caller asked for, and is only told to him again.

    Rules:

    1. Only the vendor's word ends a wait early: a finished record, or a refusal no later look can mend.
    2. "No such task" within ``not_found_grace_s`` means "not visible yet"; once seen, a task exists.
    3. Lost connections, 429, 455 and server errors mean "look again", ever more rarely.
    4. The deadline ends it. The last look is made just before, so that nothing finished is missed. Where the
       process was stopped over the deadline, that is put off once, for a last look.
    5. A callback moves the next look to now. Where that look finds nothing the next follow soon, a second,
       two, four later, and after six the callback is held for a mistake; one that comes meanwhile adds none.
       One that comes after a mistake waits until the last look is a second old.
    6. In a learned rhythm gaps are counted from the look before, and from the task's beginning to the first
       look, and end at a tick. A task of unknown age is looked at soon; its record may tell the age.

    Attributes:
        policy: The rhythm.
        task_id: The task.
        started_at: When the wait began.
        deadline: When it ends.
        timeout_s: What the caller asked for.
        observation: What is seen of the task, by whoever waits for it, and how old it is.
        ticks_from: One of the ticks, which all waits of a client have in common.
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
        """Take note of a callback for this task."""
        if self._since_callback is None:
            self._since_callback = 0

    def next_poll(self, now: float, draw: float, *, sweeps: bool = False) -> float | None:
        """Return the seconds to sleep before the next look, or None: the deadline is here.

        Args:
            now: Monotonic seconds.
            draw: A random number from 0 to 1.
            sweeps: Callbacks come: only sweep.
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
        """Put the deadline off to five seconds from now, for a last look; False where it was put off before.

        For a deadline that passed while the process was stopped.
        """
        if self._is_postponed:
            return False
        self._is_postponed = True
        self.deadline = now + _POSTPONED_S
        return True

    def is_last_poll(self, now: float) -> bool:
        """Say whether a look made now is the last before the deadline."""
        return now >= self._last_poll_at()

    def saw_record(self, record: TaskRecord, now: float) -> TaskRecord | FluxError | None:
        """Return the record if it holds the picture, the error if the task failed, None to look again."""
        self._count(now)
        self._seen, self._troubles = True, 0
        if record.status is TaskStatus.SUCCESS:
            self.observation.ended(now, record.generation_s)
            return record
        if not record.status.is_failure:
            self._failed_at = self._failure = None
            self.observation.at_work(now)
            return None
        self._failed_at = now if self._failed_at is None else self._failed_at
        self._failure = _failure_of(record)
        if self.policy.may_flip(record, now - self._failed_at):
            return None
        self.observation.ended(now, record.generation_s)
        return self._failure

    def saw_error(self, error: FluxError, now: float) -> FluxError | None:
        """Return the error that ends the wait, or None to look again."""
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
        """Return what to raise when ``next_poll`` found no time left."""
        if self._failure is not None:
            return self._failure
        last = (
            f" The last look failed: {self._last_error.message}"
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
        """What has been learned to be best, from the look before, be it ours or another waiter's."""
        policy, observation, before = self.policy, self.observation, self._polled_at
        if before is None or before < observation.seen_at:
            before = observation.seen_at
        best_s = observation.gap(before, policy.poll_cost_s, policy.cap_s)
        if not observation.age_is_known and not self._polls:
            best_s = min(best_s, _SOON_S)
        following_s = observation.gap(before + best_s, policy.poll_cost_s, policy.cap_s)
        at = before + policy.learned_delay(best_s, following_s, draw)
        if at <= now:
            before, at = now, now + _OVERDUE_S * draw  # as where thousands are taken up together
        return min(policy.on_tick(at, self.ticks_from), max(at, before + policy.cap_s)) - now

    def _after_callback(self, now: float) -> float:
        """At once, the first time; then a second, two, four after the look before."""
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
            self._was_misled = True  # or this was the last look
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
