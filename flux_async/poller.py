"""Waits for tasks: every waiter is a coroutine, and one poll serves all who wait for the same task.

The waiter that is due first starts a poll, and all waiters of the task receive what it found. The poll runs
in a coroutine of the session: neither the deadline of the waiter that started it nor its cancellation cuts
the poll short for the others. A notification (a webhook callback) only brings the next poll forward.

When to poll next, and what a poll means, decides :mod:`flux_async.policy.polling`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import OrderedDict

import attrs

from flux_async.api import Api
from flux_async.api.envelope import WireResponse
from flux_async.api.parsing import image_of
from flux_async.clock import SUSPENSION_S, Wakeup
from flux_async.errors import (
    Charge,
    ClientClosed,
    ConfigurationError,
    DeadlineExceeded,
    FluxError,
    PollDeadlineExceeded,
    Scope,
    TaskFailed,
)
from flux_async.models import ImageResult, TaskId, TaskRecord
from flux_async.policy.generation_times import TaskObservation
from flux_async.policy.polling import CallbackHealth, PollPolicy, PollState
from flux_async.poll_rate import PollRate
from flux_async.session import Session
from flux_async.submitter import log

logger: logging.Logger = logging.getLogger("flux_async")

POLL_TIMEOUT_S = 30.0
SHORTEST_POLL_S = 0.01
_MOST_EARLY_NOTIFICATIONS = 10_000
_LEAST_AFTER_OUTAGE_S = 60.0
"""Twice the longest gap between polls that fail: one gets through before the deadline."""


@attrs.frozen(kw_only=True)
class WaitOptions:
    """How one caller waits for a task.

    Attributes:
        policy: When to poll.
        timeout_s: What the caller asked for; it only appears in the error.
        deadline: When the wait ends, in monotonic seconds.
        kind: What the task is like, where that is known.
        age: Seconds since it was accepted, where that is known.
        expects_callback: Whether the vendor was given a callback address for it.
        waits_out_outages: Whether time in which no poll could connect does not count; the caller then ends
            the wait by cancelling it.
    """

    policy: PollPolicy
    timeout_s: float
    deadline: float
    kind: str | None = None
    age: float | None = None
    expects_callback: bool = False
    waits_out_outages: bool = False


@attrs.define(eq=False)
class _Task:
    """What the waiters of one task share.

    Attributes:
        observation: What is known of its age and kind.
        waiters: The waiters.
        notifications: Notifications received.
        poll: The poll under way.
        queued: The same, while it still waits for its permit and may be cancelled.
        has_ended: Whether its end was counted.
        has_warned: Whether an unknown flag was logged.
    """

    observation: TaskObservation
    waiters: list[_Waiter] = attrs.field(factory=list)
    notifications: int = 0
    poll: asyncio.Task[None] | None = None
    queued: asyncio.Task[None] | None = None
    has_ended: bool = False
    has_warned: bool = False


@attrs.define(eq=False)
class _Waiter:
    """One caller that waits for a task.

    Attributes:
        task: What it shares with the others.
        state: What was seen so far.
        options: How it waits.
        outage_s: Seconds without a connection that its deadline was moved by.
        wakeup: Set when there is something to consider before the next poll is due.
        found: What the latest poll found, until it is read.
        missed: Whether a poll that it started got no permit before the deadline.
        due: When it polls next, or None: to be decided.
        sweeps: Whether ``due`` relies on callbacks.
        notifications: Notifications that ``due`` takes into account.
    """

    task: _Task
    state: PollState
    options: WaitOptions
    outage_s: float
    wakeup: Wakeup = attrs.field(factory=Wakeup)
    found: TaskRecord | FluxError | None = None
    missed: bool = False
    due: float | None = None
    sweeps: bool = False
    notifications: int = 0


@attrs.define(eq=False)
class Poller:
    """The waits of one session.

    Attributes:
        session: Makes the polls.
        health: Whether callbacks come.
    """

    session: Session
    health: CallbackHealth
    _rate: PollRate | None = attrs.field(init=False)
    _tasks: dict[TaskId, _Task] = attrs.field(factory=dict, init=False, repr=False)
    _early: OrderedDict[TaskId, None] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _were_coming: bool = attrs.field(default=False, init=False)
    _ticks_from: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        most = self.session.rate_limiter.limits.polls_per_s
        self._rate = None if most is None else PollRate(self.session.clock, 1.0 / most)

    @property
    def waiting(self) -> int:
        """How many tasks are waited for."""
        return len(self._tasks)

    @property
    def early(self) -> int:
        """How many tasks had a notification that nobody has waited for yet."""
        return len(self._early)

    def notify(self, task_id: TaskId) -> None:
        """Poll a task now, because a callback came for it; one that nobody waits for yet, at once later."""
        if self.session.is_closed:
            return
        if self.health.saw_callback(task_id, self._now()):
            return  # its end is known already
        task = self._tasks.get(task_id)
        if task is not None:
            task.notifications += 1
            _wake(task)
            return
        self._early[task_id] = None
        self._early.move_to_end(task_id)
        while len(self._early) > _MOST_EARLY_NOTIFICATIONS:
            self._early.popitem(last=False)

    async def wait(self, task_id: TaskId, options: WaitOptions) -> ImageResult:
        """Wait for a task's image.

        Raises:
            TaskFailed: The task ended without an image.
            PollDeadlineExceeded: The deadline came first.
            FluxError: No later poll can help.
        """
        waiter = self._join(task_id, options)
        try:
            while True:
                now = self._now()
                if self.session.is_closed:
                    raise ClientClosed("The client was closed during this call.")
                if options.waits_out_outages:
                    self._postpone(waiter, now)
                if (image := self._read_found(waiter, now)) is not None:
                    return image
                if now - waiter.state.deadline > SUSPENSION_S and waiter.state.postpone(now):
                    waiter.missed = False  # the poll that was due is still made
                await waiter.wakeup.wait(self.session.clock, self._next_at(waiter, now) - now)
        finally:
            self._leave(waiter)

    def _join(self, task_id: TaskId, options: WaitOptions) -> _Waiter:
        now = self._now()
        if self._ticks_from is None:  # not sooner: a clock may need a running loop
            self._ticks_from = now
        task = self._tasks.get(task_id)
        if task is None:
            observation = self.session.times.begin(now, kind=options.kind, age=options.age)
            task = self._tasks[task_id] = _Task(observation)
        if task_id in self._early:
            del self._early[task_id]
            task.notifications += 1
        state = PollState(
            policy=options.policy,
            task_id=task_id,
            started_at=now,
            deadline=options.deadline,
            timeout_s=options.timeout_s,
            observation=task.observation,
            ticks_from=self._ticks_from,
        )
        waiter = _Waiter(task, state, options, self.session.polls.outage_s(now))
        task.waiters.append(waiter)
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        """Forget a waiter; with the last one, the task and a poll that has not left."""
        task, task_id = waiter.task, waiter.state.task_id
        task.waiters.remove(waiter)
        if task.waiters:
            return
        if self._tasks.get(task_id) is task:
            del self._tasks[task_id]
        task.observation.left()
        if task.queued is not None:
            task.queued.cancel()

    def _now(self) -> float:
        return self.session.clock.monotonic()

    # --- decisions ----------------------------------------------------------------------------------------

    def _next_at(self, waiter: _Waiter, now: float) -> float:
        """Start a poll where one is due; return when to consider again, unless woken before.

        Raises:
            PollDeadlineExceeded: The deadline has come.
        """
        task, state, pause = waiter.task, waiter.state, self.session.polls
        is_late = task.poll is not None and now >= state.deadline
        due = None if waiter.missed or is_late else self._due(waiter, now)
        if due is None:
            raise state.expired()
        if task.poll is not None:
            return state.deadline
        if due > now:
            return due
        if waiter.options.waits_out_outages and pause.is_on and pause.delay(now) > 0:
            return pause.until  # or sooner, when another poll gets through
        if pause.is_on:
            pause.hold(now, POLL_TIMEOUT_S)
        task.poll = task.queued = self.session.background.start(self._poll(waiter))
        return state.deadline

    def _due(self, waiter: _Waiter, now: float) -> float | None:
        """Return when to poll next, or None: the deadline is here."""
        task, state = waiter.task, waiter.state
        sweeps = self.are_callbacks_coming() and waiter.options.expects_callback
        # A poll under way began before the notification: what it finds says nothing of it.
        is_notified = task.notifications != waiter.notifications and task.poll is None
        if is_notified:
            waiter.notifications = task.notifications
            state.saw_callback()
        if waiter.due is None or is_notified or (waiter.sweeps and not sweeps):
            delay = state.next_poll(now, self.session.rng.random(), sweeps=sweeps)
            if delay is None:
                return None
            waiter.due = now + delay if waiter.due is None else min(waiter.due, now + delay)
            waiter.sweeps = sweeps
        return waiter.due

    def _postpone(self, waiter: _Waiter, now: float) -> None:
        """Move the deadline by the time in which no poll could connect; meanwhile it is never near."""
        polls, state = self.session.polls, waiter.state
        outage_s = polls.outage_s(now)
        state.deadline += outage_s - waiter.outage_s
        waiter.outage_s = outage_s
        if polls.is_on:
            state.deadline = max(state.deadline, now + _LEAST_AFTER_OUTAGE_S)

    def _read_found(self, waiter: _Waiter, now: float) -> ImageResult | None:
        """Return the image that the latest poll found; None where the wait goes on. Raises its other ends."""
        found, waiter.found = waiter.found, None
        if found is None:
            return None
        waiter.due = None
        task, state = waiter.task, waiter.state
        end: TaskRecord | FluxError | None
        if isinstance(found, FluxError):
            end = state.saw_error(found, now)
        else:
            self._note_record(task, found, now)
            end = state.saw_record(found, now)
        if end is None:
            return None
        if isinstance(end, FluxError) and not isinstance(end, TaskFailed):
            raise end
        image = None if isinstance(end, FluxError) else image_of(end)
        self.session.claim(state.task_id)
        if waiter.options.expects_callback and not task.has_ended:
            task.has_ended = True
            self.health.ended(state.task_id, now, notified=task.notifications > 0)
        if isinstance(end, FluxError):
            raise end
        return image

    def _note_record(self, task: _Task, record: TaskRecord, now: float) -> None:
        if record.unknown_flag is not None and not task.has_warned:
            task.has_warned = True
            logger.warning("task %s has an unknown successFlag: %r", record.task_id, record.unknown_flag)
        if record.created_at is not None:
            task.observation.age_is(self.session.clock.wall() - record.created_at.timestamp(), now)

    def are_callbacks_coming(self) -> bool:
        """Whether callbacks can be relied upon; when they no longer can, all waiters are woken."""
        coming = self.health.are_coming(self._now())
        were_coming, self._were_coming = self._were_coming, coming
        if were_coming and not coming:
            logger.warning("callbacks have stopped coming: tasks are polled more often again")
            self._wake_all()
        return coming

    def _wake_all(self) -> None:
        for task in self._tasks.values():
            _wake(task)

    # --- polls --------------------------------------------------------------------------------------------

    async def _poll(self, waiter: _Waiter) -> None:
        """Poll a task and hand what was found to all its waiters; ``waiter`` is the one that is due."""
        task, task_id = waiter.task, waiter.state.task_id
        was_outage = self.session.polls.is_on
        answer: WireResponse | FluxError | None = None
        try:
            if await self._is_permitted(waiter):
                answer = await self.session.poll(task_id, timeout_s=POLL_TIMEOUT_S)
        finally:
            task.poll = task.queued = None
            if answer is None:
                waiter.missed = True
            else:
                found = _parsed(self.session.api, answer, task_id)
                for each in task.waiters:  # each raises an error of its own
                    each.found = copy.copy(found) if isinstance(found, FluxError) else found
            _wake(task)
            if was_outage and not self.session.polls.is_on:
                self._wake_all()

    async def _is_permitted(self, waiter: _Waiter) -> bool:
        """Wait for a permit and a slot until the deadline; cancelled where all waiters have left."""
        deadline = waiter.state.deadline
        try:
            if self._rate is not None and not await self._rate.permit(lambda: self._chance(waiter), deadline):
                return False
            await self.session.take_poll_slot(deadline)
        except DeadlineExceeded:
            return False
        waiter.task.queued = None
        return True

    def _chance(self, waiter: _Waiter) -> float:
        """How likely a poll is to find an end. Notified tasks and last polls come first of all."""
        now = self._now()
        if waiter.task.notifications or waiter.state.is_last_poll(now):
            return 1.0
        return waiter.task.observation.chance(now)


def _wake(task: _Task) -> None:
    for waiter in task.waiters:
        waiter.wakeup.set()


def _parsed(api: Api, answer: WireResponse | FluxError, task_id: TaskId) -> TaskRecord | FluxError:
    found: TaskRecord | FluxError
    try:
        found = answer if isinstance(answer, FluxError) else api.parse_poll(answer, task_id)
    except FluxError as error:
        found = error
    words = found.status.name if isinstance(found, TaskRecord) else type(found).__name__
    log(logging.DEBUG, "poll of task %s: %s", task_id, words)
    return found


def as_paid(error: FluxError, task_id: TaskId) -> FluxError:
    """Return the error of a poll as that of a call that has paid for a task."""
    error.task_id = task_id
    if error.charge is Charge.NO and not isinstance(error, TaskFailed):
        error.charge = Charge.YES
        # "Try again" was meant for the poll. Said of the call, it would pay again.
        stays = error.scope is Scope.STOP or isinstance(error, ConfigurationError)
        first = f"{error.advice_template} " if stays else ""
        error.advice = first + PollDeadlineExceeded.default_advice
    return error
