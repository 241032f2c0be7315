"""Polls every task of a session; one poll serves all callers that wait for the same task.

Rules:

1. Each waiter is a coroutine. The waiter that is due first starts a poll; all waiters of the task receive its
   result.
2. A poll runs in a background task of the session: neither the deadline of the waiter that started it nor its
   cancellation cuts the poll short for the others. A poll without a permit or slot is cancelled with its last
   waiter.
3. A notification (a webhook callback) only brings the next poll forward. A poll that began before it proves
   nothing, so another one follows.

When to poll next, and what a poll means, decides :mod:`flux_async.policy.polling`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import OrderedDict

import attrs

from flux_async.api import APIS
from flux_async.api.models_table import ApiName
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
from flux_async.events import CallbackReceived
from flux_async.models import ImageResult, JobKey, TaskId, TaskRecord
from flux_async.policy.generation_times import TaskObservation
from flux_async.policy.polling import CallbackHealth, PollPolicy, PollState
from flux_async.poll_rate import PollRate
from flux_async.session import POLL_TIMEOUT_S, Session

logger: logging.Logger = logging.getLogger("flux_async")

_MOST_EARLY_NOTIFICATIONS = 10_000
_LEAST_AFTER_OUTAGE_S = 60.0
"""Twice the longest gap between polls that fail: one gets through before the deadline."""


@attrs.define(eq=False)
class _Task:
    """What the waiters of one task share.

    Attributes:
        api: The API that it is polled at.
        observation: What is known of its age and kind.
        waiters: The waiters.
        notifications: Notifications received.
        poll: The poll in progress.
        queued: The same, while it waits for its permit and may be cancelled.
        has_ended: Whether its end was counted.
        has_warned: Whether an unknown flag was logged.
    """

    api: ApiName
    observation: TaskObservation
    waiters: list[_Waiter] = attrs.field(factory=list)
    notifications: int = 0
    poll: asyncio.Task[None] | None = None
    queued: asyncio.Task[None] | None = None
    has_ended: bool = False
    has_warned: bool = False

    def wake(self) -> None:
        """Let all waiters consider what to do next."""
        for waiter in self.waiters:
            waiter.wakeup.set()


@attrs.define(eq=False)
class _Waiter:
    """One caller that waits for a task.

    Attributes:
        task: What it shares with the others.
        state: What it has seen, and its deadline.
        expects_callback: Whether the vendor was given a callback address for the task.
        outage_s: Seconds of outages that its deadline was moved by; None if outages count as time.
        job: The key of the events of its polls.
        trace: The context of the job's trace.
        wakeup: Set when there is something to consider before the next poll is due.
        found: What the latest poll found, until it is read.
        missed: Whether a poll that it started got no permit before the deadline.
        due: When it polls next; None before that is decided.
        sweeps: Whether ``due`` relies on callbacks.
        notifications: Notifications that ``due`` takes into account.
    """

    task: _Task
    state: PollState
    expects_callback: bool
    outage_s: float | None
    job: JobKey | None = None
    trace: str | None = None
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
    # A caller who polls at the wrong API must not disturb those who wait at the right one.
    _tasks: dict[tuple[ApiName, TaskId], _Task] = attrs.field(factory=dict, init=False, repr=False)
    _early: OrderedDict[TaskId, None] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _were_coming: bool = attrs.field(default=False, init=False)
    _ticks_from: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        most = self.session.spacing.limits.polls_per_s
        self._rate = None if most is None else PollRate(self.session.clock, 1.0 / most)

    @property
    def waiting(self) -> int:
        """Number of tasks that callers wait for."""
        return len(self._tasks)

    @property
    def early(self) -> int:
        """Number of tasks with a notification that no caller has waited for yet."""
        return len(self._early)

    def notify(
        self,
        task_id: TaskId,
        *,
        job: JobKey | None = None,
        trace: str | None = None,
        is_signed: bool | None = None,
    ) -> None:
        """Poll a task now, because a callback came for it; without a waiter, as soon as there is one.

        Args:
            task_id: The task.
            job: The job that the callback named, if that is known.
            trace: The context of the job's trace.
            is_signed: Whether its signature was verified; None where that is not known.
        """
        waiting = [self._tasks[api, task_id] for api in APIS if (api, task_id) in self._tasks]
        if job is None and waiting:
            job, trace = waiting[0].waiters[0].job, waiting[0].waiters[0].trace
        self.session.events.emit(
            CallbackReceived(
                at=self.session.clock.wall(), task_id=task_id, job=job, trace=trace, is_signed=is_signed
            )
        )
        if self.session.is_closed or self.health.saw_callback(task_id, self._now()):
            return  # its end is known already
        for task in waiting:
            task.notifications += 1
            task.wake()
        if waiting:
            return
        self._early[task_id] = None
        self._early.move_to_end(task_id)
        if len(self._early) > _MOST_EARLY_NOTIFICATIONS:
            self._early.popitem(last=False)

    async def wait(
        self,
        task_id: TaskId,
        *,
        api: ApiName,
        policy: PollPolicy,
        timeout_s: float,
        deadline: float,
        kind: str | None = None,
        age: float | None = None,
        expects_callback: bool = False,
        waits_out_outages: bool = False,
        job: JobKey | None = None,
        trace: str | None = None,
    ) -> ImageResult:
        """Return a task's image when it has one.

        Args:
            task_id: The task.
            api: The API that it was submitted to.
            policy: When to poll.
            timeout_s: What the caller asked for; it only appears in the error.
            deadline: When the wait ends, in monotonic seconds.
            kind: Model and mode of the task, if known.
            age: Seconds since it was accepted, if known.
            expects_callback: Whether the vendor was given a callback address for it.
            waits_out_outages: Whether time without a connection does not count; the caller then ends the wait
                by cancelling it.
            job: The key of the events of its polls.
            trace: The context of the job's trace.

        Raises:
            TaskFailed: The task ended without an image.
            PollDeadlineExceeded: The deadline came first.
            FluxError: No later poll can help.
        """
        now = self._now()
        task, ticks_from = self._join(task_id, api, now, kind, age)
        state = PollState(
            policy=policy,
            task_id=task_id,
            started_at=now,
            deadline=deadline,
            timeout_s=timeout_s,
            observation=task.observation,
            ticks_from=ticks_from,
        )
        outage_s = self.session.polls.outage_s(now) if waits_out_outages else None
        waiter = _Waiter(task, state, expects_callback, outage_s, job, trace)
        task.waiters.append(waiter)
        try:
            while True:
                now = self._now()
                if self.session.is_closed:
                    raise ClientClosed("The client was closed during this call.")
                self._move_deadline(waiter, now)
                if (image := self._read_found(waiter, now)) is not None:
                    return image
                if now - state.deadline > SUSPENSION_S and state.postpone(now):
                    waiter.missed = False  # the poll that was due is still made
                await waiter.wakeup.wait(self.session.clock, self._next_at(waiter, now) - now)
        except FluxError as error:
            error.api = api  # its advice names the task
            raise
        finally:
            self._leave(waiter)

    def _join(
        self, task_id: TaskId, api: ApiName, now: float, kind: str | None, age: float | None
    ) -> tuple[_Task, float]:
        """Return what the waiters of a task share, and the time that all ticks are counted from."""
        if self._ticks_from is None:  # not sooner: a clock may need a running loop
            self._ticks_from = now
        if (task := self._tasks.get((api, task_id))) is None:
            task = self._tasks[api, task_id] = _Task(api, self.session.times.begin(now, kind=kind, age=age))
        if task_id in self._early:
            del self._early[task_id]
            task.notifications += 1
        return task, self._ticks_from

    def _leave(self, waiter: _Waiter) -> None:
        """Forget a waiter; with the last one, the task and a poll that was not sent."""
        task, task_id = waiter.task, waiter.state.task_id
        task.waiters.remove(waiter)
        if task.waiters:
            return
        if self._tasks.get((task.api, task_id)) is task:
            del self._tasks[task.api, task_id]
        task.observation.left()
        if task.queued is not None:
            task.queued.cancel()

    def _now(self) -> float:
        return self.session.clock.monotonic()

    # --- decisions ----------------------------------------------------------------------------------------

    def _next_at(self, waiter: _Waiter, now: float) -> float:
        """Start a poll if one is due; return when to consider again, unless woken before.

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
        if waiter.outage_s is not None and pause.is_on and pause.delay(now) > 0:
            return pause.until  # or sooner, when another poll gets through
        if pause.is_on:
            pause.hold(now, POLL_TIMEOUT_S)
        task.poll = task.queued = self.session.background.start(self._poll(waiter))
        return state.deadline

    def _due(self, waiter: _Waiter, now: float) -> float | None:
        """Return when to poll next, or None: the deadline is here."""
        task, state = waiter.task, waiter.state
        sweeps = self.are_callbacks_coming() and waiter.expects_callback
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

    def _move_deadline(self, waiter: _Waiter, now: float) -> None:
        """Move the deadline by the time in which no poll could connect; meanwhile it is never near."""
        if waiter.outage_s is None:
            return
        polls, state = self.session.polls, waiter.state
        outage_s = polls.outage_s(now)
        state.deadline += outage_s - waiter.outage_s
        waiter.outage_s = outage_s
        if polls.is_on:
            state.deadline = max(state.deadline, now + _LEAST_AFTER_OUTAGE_S)

    def _read_found(self, waiter: _Waiter, now: float) -> ImageResult | None:
        """Return the image that the latest poll found; None if the wait goes on. Raises its other ends."""
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
        if waiter.expects_callback and not task.has_ended:
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
            task.wake()

    # --- polls --------------------------------------------------------------------------------------------

    async def _poll(self, waiter: _Waiter) -> None:
        """Poll a task and hand the result to all its waiters; ``waiter`` is the one that is due."""
        task = waiter.task
        was_outage = self.session.polls.is_on
        found: TaskRecord | FluxError | None = None
        try:
            if await self._is_permitted(waiter):
                others = (each.trace for each in task.waiters if each is not waiter)
                found = await self.session.poll(
                    waiter.state.task_id,
                    task.api,
                    job=waiter.job,
                    trace=waiter.trace,
                    links=tuple(trace for trace in others if trace is not None),
                )
        finally:
            task.poll = task.queued = None
            waiter.missed = found is None
            if found is not None:
                for each in task.waiters:  # each raises an error of its own
                    each.found = copy.copy(found) if isinstance(found, FluxError) else found
            task.wake()
            if was_outage and not self.session.polls.is_on:
                self._wake_all()

    async def _is_permitted(self, waiter: _Waiter) -> bool:
        """Wait for a permit and a slot until the deadline; cancelled when all waiters have left."""
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
        """Return how likely a poll is to find an end. Notified tasks and last polls come first."""
        now = self._now()
        if waiter.task.notifications or waiter.state.is_last_poll(now):
            return 1.0
        return waiter.task.observation.chance(now)


def as_paid(error: FluxError, task_id: TaskId, api: ApiName) -> FluxError:
    """Return the error of a poll as the error of a call that has paid for a task."""
    error.task_id, error.api = task_id, api
    if error.charge is Charge.NO and not isinstance(error, TaskFailed):
        error.charge = Charge.YES
        # "Try again" was meant for the poll. For the call it would be advice to pay again.
        stays = error.scope is Scope.STOP or isinstance(error, ConfigurationError)
        first = f"{error.advice_template} " if stays else ""
        error.advice = first + PollDeadlineExceeded.default_advice
    return error
