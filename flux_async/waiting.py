"""How an account waits for tasks: one look serves all who wait for a task, and a callback wakes them.

Whoever waits and is due starts a look, and all hear what it found. The look belongs to none of them: neither
the deadline of the one who started it nor his leaving cuts it short for the others.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

import attrs

from flux_async.account import Account
from flux_async.clock import Clock
from flux_async.errors import DeadlineExceeded, FluxError, TaskFailed
from flux_async.models import ImageResult, TaskId, TaskRecord
from flux_async.policy.learning import Trail
from flux_async.policy.polling import CallbackHealth, PollPolicy, Watch
from flux_async.protocol.envelope import WireResponse
from flux_async.protocol.wire import build_record_info, image_of, parse_look

logger: logging.Logger = logging.getLogger("flux_async")

LOOK_TIMEOUT_S = 30.0
SHORTEST_LOOK_S = 0.01
_MOST_EARLY_RINGS = 10_000
_MOST_COMPARED = 256


@attrs.define(eq=False)
class Nap:
    """A sleep that somebody may end."""

    _scope: asyncio.Timeout = attrs.field(factory=lambda: asyncio.timeout(None), init=False)

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Sleep, at most ``seconds``."""
        try:
            async with self._scope:
                await clock.sleep(seconds)
        except TimeoutError:
            if not self._scope.expired():
                raise

    def wake(self) -> None:
        """End the sleep, which has begun."""
        if not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())


@attrs.define(eq=False)
class _Turn:
    """One look that waits for its turn.

    Attributes:
        chance: How likely it is to find an end.
        deadline: When it is of no use any more.
        granted: Whether it may be made; None while that is open.
        called: Set when there is something to do: look, give up, or keep the time for the others.
    """

    chance: Callable[[], float]
    deadline: float
    granted: bool | None = None
    called: asyncio.Event = attrs.field(factory=asyncio.Event)


@attrs.define(eq=False)
class LookPace:
    """Lets an account's looks go one by one, evenly, those first that will most likely find an end.

    There is no coroutine of its own here either: the first of those who wait keeps the time for all, and when
    he leaves, the next does.
    """

    clock: Clock
    spacing_s: float
    _turns: dict[_Turn, None] = attrs.field(factory=dict, init=False, repr=False)
    _next_at: float = attrs.field(default=-math.inf, init=False)
    _nap: Nap | None = attrs.field(default=None, init=False)

    async def turn(self, chance: Callable[[], float], deadline: float) -> bool:
        """Wait for a turn; False where the deadline came first."""
        turn = _Turn(chance, deadline)
        self._turns[turn] = None
        if self._nap is not None and deadline < self._next_at:
            self._nap.wake()
        try:
            while turn.granted is None:
                if next(iter(self._turns)) is turn:
                    await self._keep_time()
                else:
                    await turn.called.wait()
                    turn.called.clear()
        finally:
            self._turns.pop(turn, None)
            if self._turns:
                next(iter(self._turns)).called.set()
        return turn.granted

    async def _keep_time(self) -> None:
        """Sleep until a look may go, or somebody's deadline has come; then say so."""
        until = min(self._next_at, *(turn.deadline for turn in self._turns))
        self._nap = Nap()
        try:
            await self._nap.sleep(self.clock, max(0.0, until - self.clock.monotonic()))
        finally:
            self._nap = None
        now = self.clock.monotonic()
        for turn in [turn for turn in self._turns if turn.deadline <= now]:
            self._answer(turn, granted=False)
        if self._next_at <= now and self._turns:
            # Only the longest waiting are compared: with more than that, all are late anyhow.
            best = max(islice(self._turns, _MOST_COMPARED), key=lambda turn: turn.chance())
            self._next_at = now + self.spacing_s
            self._answer(best, granted=True)

    def _answer(self, turn: _Turn, *, granted: bool) -> None:
        del self._turns[turn]
        turn.granted = granted
        turn.called.set()


@attrs.define(eq=False)
class _Board:
    """What those who wait for one task have in common.

    Attributes:
        trail: What is known of its age and its kind.
        looks: Looks that were made.
        last: What the last one found.
        rings: Callbacks that came for it.
        looking: Whether somebody is looking now.
        ended: Whether its end has been seen.
        warned: Whether an unknown flag has been told.
        waiters: How many wait.
        naps: Those of them who sleep.
    """

    trail: Trail
    looks: int = 0
    last: TaskRecord | FluxError | None = None
    rings: int = 0
    looking: bool = False
    ended: bool = False
    warned: bool = False
    waiters: int = 0
    naps: set[Nap] = attrs.field(factory=set)

    def wake(self) -> None:
        """Let everybody see what is new."""
        for nap in tuple(self.naps):
            nap.wake()


@attrs.define(eq=False)
class Waiting:
    """All waits of one account."""

    account: Account
    health: CallbackHealth
    pace: LookPace | None = attrs.field(init=False)
    _boards: dict[TaskId, _Board] = attrs.field(factory=dict, init=False, repr=False)
    _early: OrderedDict[TaskId, None] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _were_coming: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        most = self.account.admission.limits.looks_per_s
        self.pace = None if most is None else LookPace(self.account.clock, 1.0 / most)

    def ring(self, task_id: TaskId) -> None:
        """A callback came for a task: whoever waits for it looks now, whoever comes to wait looks at once."""
        if self.health.rang(task_id, self._now()):
            return  # its end is known already
        board = self._boards.get(task_id)
        if board is not None:
            board.rings += 1
            board.wake()
            return
        self._early[task_id] = None
        self._early.move_to_end(task_id)
        while len(self._early) > _MOST_EARLY_RINGS:
            self._early.popitem(last=False)

    async def wait(
        self,
        task_id: TaskId,
        *,
        policy: PollPolicy,
        timeout_s: float,
        deadline: float,
        kind: str | None = None,
        age: float | None = None,
        expects_callback: bool = False,
    ) -> ImageResult:
        """Wait for a task's picture; what it raises is told at :meth:`flux_async.FluxClient.wait`."""
        board = self._boards.get(task_id)
        if board is None:
            board = _Board(self.account.times.begin(self._now(), kind=kind, age=age))
            self._boards[task_id] = board
        if task_id in self._early:
            del self._early[task_id]
            board.rings += 1
        board.waiters += 1
        try:
            watch = Watch(
                policy=policy,
                task_id=task_id,
                started_at=self._now(),
                deadline=deadline,
                timeout_s=timeout_s,
                trail=board.trail,
            )
            return await _Wait(self, board, watch, expects_callback).run()
        finally:
            board.waiters -= 1
            if not board.waiters and self._boards.get(task_id) is board:
                del self._boards[task_id]
                board.trail.left()

    def ended(self, task_id: TaskId, board: _Board, *, expects_callback: bool) -> None:
        """Take note of a task's end, once; only tasks that expect a callback say whether callbacks come."""
        self.account.claim(task_id)
        if expects_callback and not board.ended:
            board.ended = True
            self.health.ended(task_id, self._now(), rung=board.rings > 0)

    def told(self) -> bool:
        """Say whether callbacks can be relied upon; when they no longer can, everybody reconsiders."""
        coming = self.health.are_coming(self._now())
        if self._were_coming and not coming:
            logger.warning("callbacks have stopped coming: tasks are looked at more often again")
            for board in self._boards.values():
                board.wake()
        self._were_coming = coming
        return coming

    def _now(self) -> float:
        return self.account.clock.monotonic()


@attrs.define(eq=False)
class _Wait:
    """One caller's wait.

    Attributes:
        expects_callback: Whether the vendor was given an address to call for this task.
        due: When he looks next, or None: to be decided.
        told: What callbacks were worth when he decided.
    """

    waiting: Waiting
    board: _Board
    watch: Watch
    expects_callback: bool
    due: float | None = attrs.field(default=None, init=False)
    told: bool = attrs.field(default=False, init=False)
    _looks: int = attrs.field(init=False)
    _rings: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._looks = self.board.looks

    async def run(self) -> ImageResult:
        """Sleep, look, ask the watch what it means; whatever somebody else finds meanwhile counts as well."""
        clock, board, watch = self.waiting.account.clock, self.board, self.watch
        while True:
            if board.looks != self._looks:
                self._looks, self.due = board.looks, None
                found = self._judge()
                if found is not None:
                    return found
            if not self._decide(clock.monotonic()):
                raise watch.expired()
            if board.looking:  # it will wake us
                await self._nap(clock, max(0.0, watch.deadline - clock.monotonic()))
                if clock.monotonic() >= watch.deadline:
                    raise watch.expired()
            elif (delay := (self.due or 0.0) - clock.monotonic()) > 0:
                await self._nap(clock, delay)
            elif not await self._look():
                raise watch.expired()

    def _decide(self, now: float) -> bool:
        """Say when to look next, or False: the deadline is here."""
        told = self.waiting.told() and self.expects_callback
        # A look that is on its way began before the callback came: what it finds says nothing of it.
        rang = self.board.rings != self._rings and not self.board.looking
        if rang:
            self._rings = self.board.rings
            self.watch.rang(now)
        if self.due is None or rang or (self.told and not told):
            draw = self.waiting.account.rng.random()
            delay = self.watch.next_look(now, draw, told=told)
            if delay is None:
                return False
            self.due = now + delay if self.due is None else min(self.due, now + delay)
            self.told = told
        return True

    async def _nap(self, clock: Clock, seconds: float) -> None:
        nap = Nap()
        self.board.naps.add(nap)
        try:
            await nap.sleep(clock, seconds)
        finally:
            self.board.naps.discard(nap)

    async def _look(self) -> bool:
        """Start the look that is due, for everybody; False where its turn did not come in time."""
        board, task_id = self.board, self.watch.task_id

        def tell(answer: WireResponse | FluxError) -> None:
            board.last = _read(answer, task_id)
            board.looks += 1
            board.looking = False
            board.wake()

        board.looking, started = True, False
        try:
            pace = self.waiting.pace
            if pace is not None and not await pace.turn(self._chance, self.watch.deadline):
                return False
            await self.waiting.account.begin_look(
                build_record_info(task_id), timeout_s=LOOK_TIMEOUT_S, deadline=self.watch.deadline, tell=tell
            )
            started = True
        except DeadlineExceeded:
            return False
        finally:
            if not started:
                board.looking = False
                board.wake()  # the next takes over
        return True

    def _chance(self) -> float:
        """How likely a look is to find an end. What a callback told of, and last looks, come first of all."""
        now = self.waiting.account.clock.monotonic()
        if self.board.rings or self.watch.is_last_look(now):
            return 1.0
        return self.board.trail.chance(now)

    def _judge(self) -> ImageResult | None:
        """Ask the watch what the last look means: an end, or None to go on."""
        board, watch, now = self.board, self.watch, self.waiting.account.clock.monotonic()
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
            raise seen
        image = image_of(seen)
        self.waiting.ended(watch.task_id, board, expects_callback=self.expects_callback)
        return image

    def _note_age(self, record: TaskRecord, now: float) -> None:
        if record.created_at is not None:
            self.board.trail.age_is(self.waiting.account.clock.wall() - record.created_at.timestamp(), now)

    def _warn_of(self, record: TaskRecord) -> None:
        if record.unknown_flag is not None and not self.board.warned:
            self.board.warned = True
            logger.warning("task %s has an unknown successFlag: %r", record.task_id, record.unknown_flag)


def _read(answer: WireResponse | FluxError, task_id: TaskId) -> TaskRecord | FluxError:
    if isinstance(answer, FluxError):
        return answer
    try:
        return parse_look(answer, task_id)
    except FluxError as error:
        return error
