"""What all clients of one account share: its pace, its places, its connections, its loose ends.

A submit goes through these gates, in this order: a submit in the air less than the limit → a permit of the
pace → POST at once. Nothing waits between the permit and the POST.

Until the first submit has been accepted, submits go one at a time: a wrong key or an empty balance then costs
one request, not one for every picture that was waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import attrs

from flux_async.clock import Clock
from flux_async.errors import (
    Charge,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    FluxError,
    RateLimitedError,
    RequestNotSent,
    Scope,
    TaskMismatch,
    WrongEventLoop,
)
from flux_async.models import Echo, ImageRequest, JobKey, TaskId, TaskRecord, UnclaimedTask
from flux_async.policy.admission import Admission
from flux_async.policy.echo import SubmitLog, is_contradiction
from flux_async.policy.learning import GenerationTimes
from flux_async.policy.retry import RetryPolicy
from flux_async.protocol.echo import Comparison, in_words, mismatch, subject_of
from flux_async.protocol.envelope import READ_ADVICE, WireRequest, WireResponse
from flux_async.protocol.wire import build_record_info, build_submit, is_for_task, parse_submit
from flux_async.transport import Answered, NotSent, Transport, Truth
from flux_async.transport.deadline import Deadline
from flux_async.transport.shielded import ExchangeHost

logger: logging.Logger = logging.getLogger("flux_async")

T = TypeVar("T")

SUBMIT_TIMEOUT_S = 60.0
DOWNLOADS = 8
UPLOADS = 8
_MOST_UNCLAIMED = 10_000
_SHORTEST_S = 0.01


@attrs.define(eq=False)
class Call:
    """One call under way on the account, from ``async with`` to its end.

    Attributes:
        account: Ends it when it is closed.
        halts: How often the account had been turned away when the call began.
        posting: How many POSTs of this call are in the air.
    """

    account: Account
    halts: int
    posting: int = 0
    _scope: asyncio.Timeout = attrs.field(factory=lambda: asyncio.timeout(None))

    def end(self) -> None:
        """End whatever the call is waiting for."""
        if not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> Self:
        self.account.begin(self)
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            raise ClientClosed("The client was closed during this call.") from None
        finally:
            self.account.finish(self)


@attrs.define(kw_only=True, eq=False)
class Account:
    """One account on one event loop.

    Attributes:
        transport: Makes the requests.
        admission: The pace of submits.
        clock: The reader of time.
        rng: The source of jitter.
        times: What is known of how long tasks take.
        submits: The latest submits, and whether records are known to show what was sent.
    """

    transport: Transport = attrs.field(repr=False)
    admission: Admission
    clock: Clock = attrs.field(repr=False)
    rng: random.Random = attrs.field(repr=False)
    times: GenerationTimes = attrs.field(factory=GenerationTimes, init=False, repr=False)
    submits: SubmitLog = attrs.field(factory=SubmitLog, init=False, repr=False)
    _pauses: RetryPolicy = attrs.field(init=False, repr=False)
    _exchanges: ExchangeHost = attrs.field(factory=ExchangeHost, init=False, repr=False)
    _calls: set[Call] = attrs.field(factory=set, init=False, repr=False)
    _unclaimed: OrderedDict[object, UnclaimedTask] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _in_flight: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _submits: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _looks: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _downloads: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, DOWNLOADS), init=False, repr=False
    )
    _uploads: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, UPLOADS), init=False, repr=False
    )
    _pace: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False, repr=False)
    _proven: bool = attrs.field(default=False, init=False)
    _halts: int = attrs.field(default=0, init=False)
    _halted_by: FluxError | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        limits = self.admission.limits
        self._pauses = RetryPolicy(window_s=limits.window_s)
        self._in_flight = asyncio.Semaphore(limits.in_flight)
        self._looks = asyncio.Semaphore(limits.connections)
        self._submits = asyncio.Semaphore(1)  # widened when the first submit is accepted

    # --- coming and going ---------------------------------------------------------------------------------

    def enter(self) -> None:
        """Check that this account may be used here and now; the first use binds it to the running loop.

        Raises:
            ClientClosed: After ``aclose``.
            WrongEventLoop: On another loop than the first.
        """
        if self._closed:
            raise ClientClosed("This client is closed.")
        self._check_loop()

    def _check_loop(self) -> None:
        loop = _loop_here()
        if loop is None:
            raise WrongEventLoop(
                "flux_async needs a running asyncio event loop.",
                advice="Call it from a coroutine that asyncio runs, as in asyncio.run(main()); "
                "trio is not supported.",
            )
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise WrongEventLoop("This client belongs to another event loop.")

    def on_its_loop(self, work: Callable[[], None]) -> None:
        """Do ``work`` on this account's event loop: now, or soon where it is asked from elsewhere."""
        loop = self._loop
        if loop is None or loop is _loop_here():
            work()
            return
        with contextlib.suppress(RuntimeError):  # a closed loop: nobody waits there any more
            loop.call_soon_threadsafe(work)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, or is being closed."""
        return self._closed

    def call(self) -> Call:
        """Return a call on the account; closing the account ends it, with :class:`ClientClosed`."""
        self._check_loop()  # the call's timeout needs the loop
        return Call(self, self._halts)

    def begin(self, call: Call) -> None:
        """Take note of a call."""
        self.enter()
        self._calls.add(call)

    def finish(self, call: Call) -> None:
        """Take note of its end."""
        self._calls.discard(call)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what belongs to no call, and handles its own errors; closing the account ends it."""
        return self._exchanges.start(work)

    async def aclose(self) -> None:
        """Let submits in the air come home, end everything else, close the connections.

        Closing twice does nothing more; who is cancelled while closing leaves when it is done.
        """
        self._check_loop()
        await self._exchanges.close_once(self._close)

    async def _close(self) -> None:
        self._closed = True
        for call in self._calls:
            if not call.posting:
                call.end()
        await self._exchanges.settle()
        await asyncio.sleep(0)  # those whose submit came home take their task id with them
        for call in self._calls:
            call.end()
        await self.transport.aclose()

    # --- loose ends ---------------------------------------------------------------------------------------

    @property
    def unclaimed(self) -> tuple[UnclaimedTask, ...]:
        """Submits whose callers left before they could be told the task id."""
        return tuple(self._unclaimed.values())

    def leave(self, request: ImageRequest, task_id: TaskId) -> None:
        """Remember a paid task whose caller has gone."""
        self._keep_loose(UnclaimedTask(request=request, task_id=task_id))
        words = "the caller of task %s has left; it is paid: take it up with wait()"
        log(logging.WARNING, words, task_id)

    def claim(self, task_id: TaskId) -> None:
        """Forget an unclaimed task: somebody knows how it ended."""
        self._unclaimed.pop(task_id, None)

    def _keep_loose(self, loose: UnclaimedTask) -> None:
        """Keep it under its task, or as one of those whose task is not known."""
        self._unclaimed[loose.task_id or object()] = loose
        if len(self._unclaimed) > _MOST_UNCLAIMED:
            self._unclaimed.popitem(last=False)

    def _abandoned(self, request: ImageRequest, answer: TaskId | FluxError) -> None:
        if not isinstance(answer, FluxError):
            self.leave(request, answer)
        elif answer.charge is not Charge.NO:
            self._keep_loose(UnclaimedTask(request=request, error=answer, task_id=answer.task_id))
            log(logging.WARNING, "a submit whose caller has left is in doubt: %s", answer)

    # --- spending -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def task_in_flight(self, deadline: float) -> AsyncIterator[None]:
        """Hold one of the places for tasks that are submitted and not finished."""
        await self._take(self._in_flight, deadline)
        try:
            yield
        finally:
            self._in_flight.release()

    async def take_place(self) -> None:
        """Take one of those places for a job of a batch; it is given back with :meth:`give_place`."""
        await self._in_flight.acquire()

    def give_place(self) -> None:
        """Give back a place."""
        self._in_flight.release()

    async def submit(self, request: ImageRequest, *, deadline: float, call: Call) -> TaskId:
        """Make one POST and return the task it made. At the deadline the caller stops listening.

        Raises:
            FluxError: With the charge and the scope of what happened.
        """
        await self.admit(deadline=deadline, call=call)
        call.posting += 1
        try:
            async with Deadline(deadline - self.clock.monotonic()):
                answer = await self._exchanges.run(
                    self.post(build_submit(request)),
                    when_done=self.leave_air,
                    when_abandoned=partial(self._abandoned, request),
                )
        except TimeoutError:
            raise _unanswered() from None
        finally:
            call.posting -= 1
        if isinstance(answer, FluxError):
            raise answer
        return answer

    async def spend(
        self,
        work: Coroutine[Any, Any, T],
        *,
        call: Call,
        when_abandoned: Callable[[T], None],
    ) -> T:
        """Run ``work``, which makes one admitted POST, where no caller can cancel it."""
        call.posting += 1
        try:
            return await self._exchanges.run(work, when_done=self.leave_air, when_abandoned=when_abandoned)
        finally:
            call.posting -= 1

    async def admit(self, *, deadline: float, call: Call, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Wait for a place in the air and a permit of the pace; then POST at once, and ``leave_air``.

        A submit that was waiting here when the vendor turned the account away (401, 402 …) is not let in:
        it ends with that same error. Nor is one that is not ``wanted`` any more: then False.
        """
        await self._take(self._submits, deadline)
        admitted = False
        try:
            self._check_open(call)  # no permit for those who were turned away while they waited
            if wanted():
                await self._await_permit(deadline)
                self._check_open(call)
                admitted = wanted()
        finally:
            if not admitted:
                self._submits.release()
        return admitted

    def leave_air(self) -> None:
        """Give back the place of an admitted submit."""
        self._submits.release()

    def _check_open(self, call: Call) -> None:
        """Refuse what was waiting here while the client was closed or the account turned away."""
        self.enter()
        if self._halts != call.halts and self._halted_by is not None:
            raise copy.copy(self._halted_by)

    async def post(self, wire: WireRequest) -> TaskId | FluxError:
        """Make an admitted POST and judge its answer. Returns whatever happens: money may be gone."""
        self.submits.sends(subject_of(json.loads(wire.body or b"{}")))
        try:
            truth = await self.transport.exchange(wire, timeout_s=SUBMIT_TIMEOUT_S)
            task_id = parse_submit(_answered(truth))
        except FluxError as error:
            self._note_refusal(error)
            return error
        except asyncio.CancelledError:
            return ConnectionLost("The program ended the request before its answer came.")
        except Exception as error:  # noqa: BLE001 - a transport of the caller's own
            return ConnectionLost(f"The request failed in an unforeseen way: {type(error).__name__}.")
        if not self.submits.is_new(task_id):
            return _named_twice(task_id)
        self._note_success()
        return task_id

    def judge_echo(
        self, task_id: TaskId, record: TaskRecord, seen: Comparison, *, belongs_to: JobKey | None = None
    ) -> Echo:
        """Return what the record of a task shows of its request.

        Args:
            task_id: What a submit was answered with.
            record: Its record.
            seen: The record against that submit.
            belongs_to: Another job whose request the record shows, where one is known.

        Raises:
            TaskMismatch: It is another task.
        """
        submits = self.submits
        is_anothers = seen.is_other_subject and submits.has_sent(subject_of(record.params or {}))
        if is_contradiction(
            seen.echo,
            is_anothers=is_anothers or belongs_to is not None,
            is_reworded=seen.is_reworded,
            confirmed=submits.confirmed,
        ):
            raise mismatch(task_id, record, belongs_to=belongs_to)
        submits.confirmed += seen.echo is Echo.CONFIRMED
        if seen.echo is Echo.UNRECOGNISED:
            words = (
                "the record of task %s shows another request than was sent (%s); its result is kept and "
                "marked as unrecognised: compare it with the image (logged once, later ones at DEBUG)"
            )
            level = logging.DEBUG if submits.has_warned else logging.WARNING
            submits.has_warned = True
            log(level, words, task_id, in_words(record.params))
        return seen.echo

    def _note_refusal(self, error: FluxError) -> None:
        """What concerns everyone takes effect here, whether or not the caller is still there."""
        if error.scope is Scope.STOP:
            self._halts += 1
            log(logging.WARNING, "all submits are halted: %s", error.message)
            self._halted_by = copy.copy(error)  # without traceback, which would keep the caller's data alive
        elif error.scope is Scope.EVERYONE_FOR_NOW:
            if isinstance(error, RateLimitedError):
                self.admission.turned_away()
            pause = self._pauses.pause_for(error, self.rng.random())
            log(logging.WARNING, "all submits pause for %.1f s: %s", pause, error.message)
            self.admission.pause(self.clock.monotonic(), pause)

    def _note_success(self) -> None:
        self.admission.let_in()
        if not self._proven:
            self._proven = True
            limits = self.admission.limits
            for _ in range(min(limits.submits_in_air, limits.in_flight) - 1):
                self._submits.release()

    async def _await_permit(self, deadline: float) -> None:
        """Wait for the pace, first come first served."""
        await self._take(self._pace, deadline)
        try:
            while (delay := self.admission.delay(now := self.clock.monotonic())) > 0:
                if now + delay >= deadline:
                    raise _too_late()
                await self.clock.sleep(delay)
            self.admission.take(now)
        finally:
            self._pace.release()

    async def _take(self, place: asyncio.Semaphore | asyncio.Lock, deadline: float) -> None:
        # A lock that is free may still be promised to somebody who has waited for it.
        if isinstance(place, asyncio.Semaphore) and not place.locked():
            await place.acquire()  # at once
            return
        try:
            async with asyncio.timeout(max(0.0, deadline - self.clock.monotonic())):
                await place.acquire()
        except TimeoutError:
            raise _too_late() from None

    # --- looking ------------------------------------------------------------------------------------------

    async def look(self, wire: WireRequest, *, timeout_s: float, deadline: float) -> WireResponse:
        """Make one request that costs nothing.

        Raises:
            RequestNotSent, ConnectionLost: There is no whole answer; charge NO.
            DeadlineExceeded: No place was free before the deadline.
        """
        await self._take(self._looks, deadline)
        truth = await self._run_here(
            lambda: self.transport.exchange(wire, timeout_s=timeout_s), self._looks.release
        )
        return _answered(truth, looking=True)

    async def take_look(self, deadline: float) -> None:
        """Take a place for a look, which :meth:`make_look` gives back.

        Raises:
            DeadlineExceeded: None was free before the deadline.
        """
        await self._take(self._looks, deadline)

    async def make_look(self, task_id: TaskId, *, timeout_s: float) -> WireResponse | FluxError:
        """Poll a task, with a place, and return what was answered, whatever it is. It must not be cancelled.

        The poll goes over a kept connection. Where the answer may belong to an earlier poll, the poll is made
        again over a fresh one.
        """
        try:
            poll = build_record_info(task_id, keep_alive=True)
            answer = _answered(await self.transport.exchange(poll, timeout_s=timeout_s), looking=True)
            if not is_for_task(answer, task_id):
                poll = build_record_info(task_id)
                answer = _answered(await self.transport.exchange(poll, timeout_s=timeout_s), looking=True)
        except FluxError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a transport of the caller's own
            return ConnectionLost(
                f"The look failed in an unforeseen way: {type(error).__name__}.", charge=Charge.NO
            )
        else:
            return answer
        finally:
            self._looks.release()

    async def upload(self, wire: WireRequest, *, timeout_s: float, deadline: float) -> Truth:
        """Make one request to the upload host when a place is free; it costs nothing.

        Raises:
            DeadlineExceeded: No place was free before the deadline.
        """
        await self._take(self._uploads, deadline)
        timeout_s = min(timeout_s, max(_SHORTEST_S, deadline - self.clock.monotonic()))
        return await self._run_here(
            lambda: self.transport.exchange(wire, timeout_s=timeout_s), self._uploads.release
        )

    async def download(self, fetch: Callable[[], Coroutine[Any, Any, T]], *, deadline: float) -> T:
        """Run a download when a place is free, in a coroutine that no caller can cancel."""
        await self._take(self._downloads, deadline)
        return await self._run_here(fetch, self._downloads.release)

    async def _run_here(self, start: Callable[[], Coroutine[Any, Any, T]], release: Callable[[], None]) -> T:
        if self._closed:
            release()
        self.enter()
        return await self._exchanges.run(start(), when_done=release)


def log(level: int, words: str, *details: object, to: logging.Logger = logger) -> None:
    """Write one log line. A handler of the caller's that fails must not lose what was paid for."""
    with contextlib.suppress(Exception):
        to.log(level, words, *details)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed before the request could be sent.")


def _unanswered() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The deadline passed while the submit was on its way.",
        charge=Charge.MAYBE,
        advice="Its answer is still awaited: {task_of_lost_answer} before you submit again.",
    )


def _named_twice(task_id: TaskId) -> TaskMismatch:
    return TaskMismatch(
        f"The API answered the submit with task {task_id}, which another submit of this client has. "
        "The submit was probably charged, and its own task is not known.",
        refused_task_id=task_id,
    )


def _answered(truth: Truth, *, looking: bool = False) -> WireResponse:
    """Return the answer there is, or raise what its absence means."""
    if isinstance(truth, Answered):
        return truth.response
    if isinstance(truth, NotSent):
        raise RequestNotSent(f"The API could not be reached: {truth.reason}.")
    fields: dict[str, Any] = {"charge": Charge.NO, "advice": READ_ADVICE} if looking else {}
    raise ConnectionLost(f"The request was sent, but no whole answer came: {truth.reason}.", **fields)


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
