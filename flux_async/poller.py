"""How an account waits for tasks: one look serves all who wait for a task, and a callback wakes them.

Whoever waits and is due starts a look, and all hear what it found. The look belongs to none of them: neither
the deadline of the one who started it nor his leaving cuts it short for the others.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

import attrs

from flux_async.api.envelope import WireResponse
from flux_async.api.kontext import image_of, parse_look
from flux_async.errors import ClientClosed, DeadlineExceeded, FluxError, TaskFailed
from flux_async.models import ImageResult, TaskId, TaskRecord
from flux_async.policy.generation_times import TaskObservation
from flux_async.policy.polling import CallbackHealth, PollPolicy, Watch
from flux_async.session import Session, log
from flux_async.timing import GAP_S, Alarm, LookPace

logger: logging.Logger = logging.getLogger("flux_async")

LOOK_TIMEOUT_S = 30.0
SHORTEST_LOOK_S = 0.01
_MOST_EARLY_RINGS = 10_000
_LEAST_AFTER_OUTAGE_S = 60.0
"""Twice the longest gap between polls that fail: one gets through before the deadline."""

Found: TypeAlias = ImageResult | Exception
"""What a wait ends with."""


@attrs.frozen(kw_only=True)
class Patience:
    """How one caller waits for a task.

    Attributes:
        policy: The rhythm of looking.
        timeout_s: What he asked for; it is only told to him again.
        deadline: When he waits no more, in monotonic seconds.
        kind: What the task is like, where that is known.
        age: Seconds since it was accepted, where that is known.
        expects_callback: Whether the vendor was given an address to call for it.
        waits_out_outages: Whether time in which no poll could connect does not count; whoever begins such a
            wait ends it.
    """

    policy: PollPolicy
    timeout_s: float
    deadline: float
    kind: str | None = None
    age: float | None = None
    expects_callback: bool = False
    waits_out_outages: bool = False


@attrs.define(eq=False)
class _Board:
    """What those who wait for one task have in common.

    Attributes:
        trail: What is known of its age and its kind.
        waits: Who waits.
        looks: Looks that were made.
        last: What the last one found.
        rings: Callbacks that came for it.
        looking: Whether somebody is looking now.
        queued: Whoever waits for his turn to look.
        ended: Whether its end has been seen.
        warned: Whether an unknown flag has been told.
    """

    trail: TaskObservation
    waits: list[Wait] = attrs.field(factory=list)
    looks: int = 0
    last: TaskRecord | FluxError | None = None
    rings: int = 0
    looking: bool = False
    queued: asyncio.Task[None] | None = None
    ended: bool = False
    warned: bool = False


@attrs.define(eq=False)
class Waiting:
    """All waits of one account. None of them has a coroutine: those whose hour has come are called."""

    session: Session
    health: CallbackHealth
    pace: LookPace | None = attrs.field(init=False)
    alarm: Alarm[Wait] = attrs.field(init=False, repr=False)
    _boards: dict[TaskId, _Board] = attrs.field(factory=dict, init=False, repr=False)
    _early: OrderedDict[TaskId, None] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _were_coming: bool = attrs.field(default=False, init=False)
    _ticks_from: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        most = self.session.admission.limits.polls_per_s
        self.pace = None if most is None else LookPace(self.session.clock, 1.0 / most)
        self.alarm = Alarm(
            self.session.clock,
            self.session.start,
            call=lambda wait: wait.go_on(),
            fail=lambda wait, error: wait.end(error),
        )

    def ring(self, task_id: TaskId) -> None:
        """A callback came for a task: whoever waits for it looks now, whoever comes to wait looks at once."""
        if self.session.is_closed:
            return  # nobody looks any more, and closing waits for whatever is begun now
        now = self.now()
        if self.health.rang(task_id, now):
            return  # its end is known already
        board = self._boards.get(task_id)
        if board is not None:
            board.rings += 1
            self._wake(board, now)
            return
        self._early[task_id] = None
        self._early.move_to_end(task_id)
        while len(self._early) > _MOST_EARLY_RINGS:
            self._early.popitem(last=False)

    async def wait(self, task_id: TaskId, patience: Patience) -> ImageResult:
        """Wait for a task's picture; what it raises is told at :meth:`flux_async.FluxClient.wait`."""
        ending: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

        def tell(found: Found) -> None:
            if not ending.done():  # else he was cancelled just now
                ending.set_result(found)

        wait = self.begin(task_id, tell, patience)
        try:
            found = await ending
        finally:
            wait.leave()
        if isinstance(found, Exception):
            raise found
        return found

    def begin(self, task_id: TaskId, tell: Callable[[Found], None], patience: Patience) -> Wait:
        """Begin to wait for a task; ``tell`` learns how it ended, once, unless the wait is left before."""
        now = self.now()
        if self._ticks_from is None:  # not sooner: a clock may need a running loop
            self._ticks_from = now
        board = self._boards.get(task_id)
        if board is None:
            board = self._boards[task_id] = _Board(
                self.session.times.begin(now, kind=patience.kind, age=patience.age)
            )
        if task_id in self._early:
            del self._early[task_id]
            board.rings += 1
        watch = Watch(
            policy=patience.policy,
            task_id=task_id,
            started_at=now,
            deadline=patience.deadline,
            timeout_s=patience.timeout_s,
            trail=board.trail,
            ticks_from=self._ticks_from,
        )
        wait = Wait(self, board, watch, tell, patience.expects_callback, patience.waits_out_outages)
        board.waits.append(wait)
        wait.go_on()
        return wait

    def forget(self, wait: Wait) -> None:
        """Keep nothing of a wait that is over; with the last one for its task, nothing of the task."""
        self.alarm.drop(wait)
        board, task_id = wait.board, wait.watch.task_id
        board.waits.remove(wait)
        if board.waits:
            return
        if self._boards.get(task_id) is board:
            del self._boards[task_id]
        board.trail.left()
        if board.queued is not None:
            board.queued.cancel()

    def ended(self, task_id: TaskId, board: _Board, *, expects_callback: bool) -> None:
        """Take note of a task's end, once; only tasks that expect a callback say whether callbacks come."""
        self.session.claim(task_id)
        if expects_callback and not board.ended:
            board.ended = True
            self.health.ended(task_id, self.now(), rung=board.rings > 0)

    def told(self) -> bool:
        """Say whether callbacks can be relied upon; when they no longer can, everybody reconsiders."""
        now = self.now()
        coming = self.health.are_coming(now)
        were_coming, self._were_coming = self._were_coming, coming
        if were_coming and not coming:
            logger.warning("callbacks have stopped coming: tasks are looked at more often again")
            for board in self._boards.values():
                self._wake(board, now)
        return coming

    def now(self) -> float:
        """Return monotonic seconds."""
        return self.session.clock.monotonic()

    def _wake(self, board: _Board, now: float) -> None:
        for wait in board.waits:
            self.alarm.set(wait, now)

    # --- looking ------------------------------------------------------------------------------------------

    def look(self, wait: Wait) -> None:
        """Look at a task, for all who wait for it; ``wait`` is the one whose turn it is."""
        wait.board.looking = True
        wait.board.queued = self.session.start(self._look(wait))

    async def _look(self, wait: Wait) -> None:
        board, task_id = wait.board, wait.watch.task_id
        answer: WireResponse | FluxError | None = None
        was_outage = self.session.polls.is_on
        try:
            if await self._has_turn(wait):
                answer = await self.session.make_look(task_id, timeout_s=LOOK_TIMEOUT_S)
        finally:
            board.looking, board.queued = False, None
            if answer is None:
                wait.missed = True
            else:
                board.last = _read(answer, task_id)
                _log_poll(task_id, board.last)
                board.looks += 1
            for each in tuple(board.waits):
                each.go_on()
            board.last = None  # all have heard, and whoever comes now asks anew
            if was_outage and not self.session.polls.is_on:
                for each_board in tuple(self._boards.values()):
                    self._wake(each_board, self.now())

    async def _has_turn(self, wait: Wait) -> bool:
        """Wait for a turn and a place until the deadline; nobody waits for them when all have left."""
        board, deadline = wait.board, wait.watch.deadline
        try:
            if self.pace is not None and not await self.pace.turn(wait.chance, deadline):
                return False
            await self.session.take_look(deadline)
        except DeadlineExceeded:
            return False
        board.queued = None  # from now on nobody stops it
        return True


@attrs.define(eq=False)
class Wait:
    """One caller's wait.

    Attributes:
        tell: Learns what it ended with.
        expects_callback: Whether the vendor was given an address to call for this task.
        waits_out_outages: Whether time in which no poll could connect moves the deadline.
        due: When he looks next, or None: to be decided.
        told: What callbacks were worth when he decided.
        missed: Whether a look of his got no turn before the deadline.
    """

    waiting: Waiting
    board: _Board
    watch: Watch
    tell: Callable[[Found], None]
    expects_callback: bool
    waits_out_outages: bool = False
    due: float | None = attrs.field(default=None, init=False)
    told: bool = attrs.field(default=False, init=False)
    missed: bool = attrs.field(default=False, init=False)
    _looks: int = attrs.field(init=False)
    _outage_s: float = attrs.field(init=False)
    _rings: int = attrs.field(default=0, init=False)
    _over: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._looks = self.board.looks
        self._outage_s = self.waiting.session.polls.outage_s(self.waiting.now())

    def leave(self) -> None:
        """Wait no more, and tell nobody."""
        if not self._over:
            self._over = True
            self.waiting.forget(self)

    def go_on(self) -> None:
        """See what is new, by whomever it was found, and decide: it is over, look, or be called again."""
        if self._over:
            return
        try:
            found = self._next()
        except Exception as error:  # noqa: BLE001 - a bug, or a clock of the caller's: he must hear of it
            found = error
        if found is not None:
            self.end(found)

    def end(self, found: Found) -> None:
        """Wait no more, and tell what it ended with. What that raises keeps nobody else from being told."""
        self.leave()
        try:
            self.tell(found)
        except Exception:
            logger.exception("whoever waited for task %s could not be told of its end", self.watch.task_id)

    def _next(self) -> Found | None:
        waiting, board, watch, now = self.waiting, self.board, self.watch, self.waiting.now()
        if waiting.session.is_closed:
            return ClientClosed("The client was closed during this call.")
        if self.waits_out_outages:
            self._postpone(now)
        if board.looks != self._looks:
            self._looks, self.due = board.looks, None
            found = self._judge(now)
            if found is not None:
                return found
        self._see_to_gap(now)
        if self.missed or not self._decide(now) or (board.looking and now >= watch.deadline):
            return watch.expired()
        if board.looking:  # he hears of it
            waiting.alarm.set(self, watch.deadline)
        elif self.due is not None and self.due > now:
            waiting.alarm.set(self, self.due)
        elif self.waits_out_outages and (pause := waiting.session.polls).is_on and pause.delay(now) > 0:
            waiting.alarm.set(self, pause.until)  # or sooner, when another's poll gets through
        else:
            if waiting.session.polls.is_on:
                waiting.session.polls.hold(now, LOOK_TIMEOUT_S)
            waiting.look(self)
            waiting.alarm.set(self, watch.deadline)
        return None

    def _postpone(self, now: float) -> None:
        """Move the deadline by the time in which no poll could connect; meanwhile it is never near."""
        polls, watch = self.waiting.session.polls, self.watch
        outage_s = polls.outage_s(now)
        watch.deadline += outage_s - self._outage_s
        self._outage_s = outage_s
        if polls.is_on:
            watch.deadline = max(watch.deadline, now + _LEAST_AFTER_OUTAGE_S)

    def _see_to_gap(self, now: float) -> None:
        """Put the deadline off where the process was stopped over it: the poll that was due is still made."""
        if now - self.watch.deadline > GAP_S and self.watch.put_off(now):
            self.missed = False

    def _decide(self, now: float) -> bool:
        """Say when to look next, or False: the deadline is here."""
        told = self.waiting.told() and self.expects_callback
        # A look that is on its way began before the callback came: what it finds says nothing of it.
        rang = self.board.rings != self._rings and not self.board.looking
        if rang:
            self._rings = self.board.rings
            self.watch.rang(now)
        if self.due is None or rang or (self.told and not told):
            draw = self.waiting.session.rng.random()
            delay = self.watch.next_look(now, draw, told=told)
            if delay is None:
                return False
            self.due = now + delay if self.due is None else min(self.due, now + delay)
            self.told = told
        return True

    def chance(self) -> float:
        """How likely a look is to find an end. What a callback told of, and last looks, come first of all."""
        now = self.waiting.now()
        if self.board.rings or self.watch.is_last_look(now):
            return 1.0
        return self.board.trail.chance(now)

    def _judge(self, now: float) -> Found | None:
        """Ask the watch what the last look means: an end, or None to go on."""
        board, watch = self.board, self.watch
        seen: TaskRecord | FluxError | None
        if isinstance(board.last, TaskRecord):
            self._warn_of(board.last)
            self._note_age(board.last, now)
            seen = watch.saw_record(board.last, now)
        else:
            assert board.last is not None  # noqa: S101 - a look leaves something
            seen = watch.saw_error(copy.copy(board.last), now)  # each waiter raises one of his own
        if seen is None:
            return None
        if isinstance(seen, FluxError):
            if isinstance(seen, TaskFailed):
                self.waiting.ended(watch.task_id, board, expects_callback=self.expects_callback)
            return seen
        try:
            image = image_of(seen)
        except FluxError as error:
            return error
        self.waiting.ended(watch.task_id, board, expects_callback=self.expects_callback)
        return image

    def _note_age(self, record: TaskRecord, now: float) -> None:
        if record.created_at is not None:
            self.board.trail.age_is(self.waiting.session.clock.wall() - record.created_at.timestamp(), now)

    def _warn_of(self, record: TaskRecord) -> None:
        if record.unknown_flag is not None and not self.board.warned:
            self.board.warned = True
            logger.warning("task %s has an unknown successFlag: %r", record.task_id, record.unknown_flag)


def _log_poll(task_id: TaskId, found: TaskRecord | FluxError) -> None:
    words = found.status.name if isinstance(found, TaskRecord) else type(found).__name__
    log(logging.DEBUG, "poll of task %s: %s", task_id, words)


def _read(answer: WireResponse | FluxError, task_id: TaskId) -> TaskRecord | FluxError:
    if isinstance(answer, FluxError):
        return answer
    try:
        return parse_look(answer, task_id)
    except FluxError as error:
        return error
