"""What all clients of one account share: its pace, its places, its connections, its loose ends."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import math
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import attrs

from flux_async.api import Api, load_api
from flux_async.api.echo import Comparison, SubmitLog, in_words, is_contradiction, mismatch, subject_of
from flux_async.api.envelope import READ_ADVICE, WireRequest, WireResponse
from flux_async.api.parsing import ids_in, kept_answer
from flux_async.api.stored_requests import store_request
from flux_async.clock import Clock, Signal
from flux_async.errors import (
    Charge,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    FluxError,
    InvalidInput,
    RequestNotSent,
    Scope,
    TaskMismatch,
    UnexpectedResponse,
    WrongEventLoop,
)
from flux_async.models import Echo, ImageRequest, JobKey, TaskId, TaskRecord, UnclaimedTask
from flux_async.policy.generation_times import GenerationTimes
from flux_async.policy.rate_limit import Pause, RateLimiter
from flux_async.submit_gate import SubmitGate, take
from flux_async.transport import Answered, NotSent, SendResult, Transport
from flux_async.transport.background import BackgroundTasks, Deadline

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

    session: Session
    halts: int
    posting: int = 0
    _scope: asyncio.Timeout = attrs.field(factory=lambda: asyncio.timeout(None))

    def end(self) -> None:
        """End whatever the call is waiting for."""
        if not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> Self:
        self.session.begin(self)
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
            self.session.finish(self)


@attrs.define(kw_only=True, eq=False)
class Session:
    """One account on one event loop.

    Attributes:
        transport: Makes the requests.
        rate_limiter: The pace of submits.
        clock: The reader of time.
        rng: The source of jitter.
        api: The API of the vendor that tasks are submitted to and polled at.
        scrub: Blots the key out of what a server said.
        times: What is known of how long tasks take.
        submits: The latest submits, and whether records are known to show what was sent.
        address: The API's origin, for messages.
        changed: Is set when pauses begin or end, and when a submit that waits should look again.
        gate: Lets submits start.
        polls: Whether polls get through: on while no connection can be made for them.
        upload_pause: The pause that uploads share while their host cannot be reached.
        contact_at: When the vendor last answered anything, in monotonic seconds.
    """

    transport: Transport = attrs.field(repr=False)
    rate_limiter: RateLimiter
    clock: Clock = attrs.field(repr=False)
    rng: random.Random = attrs.field(repr=False)
    api: Api = attrs.field(factory=load_api, repr=False)
    scrub: Callable[[bytes], bytes] = attrs.field(default=bytes, repr=False)
    times: GenerationTimes = attrs.field(factory=GenerationTimes, init=False, repr=False)
    submits: SubmitLog = attrs.field(factory=SubmitLog, init=False, repr=False)
    address: str = ""
    changed: Signal = attrs.field(factory=Signal, init=False, repr=False)
    gate: SubmitGate = attrs.field(init=False, repr=False)
    polls: Pause = attrs.field(factory=Pause, init=False, repr=False)
    upload_pause: Pause = attrs.field(factory=Pause, init=False, repr=False)
    contact_at: float = attrs.field(default=-math.inf, init=False)
    _exchanges: BackgroundTasks = attrs.field(factory=BackgroundTasks, init=False, repr=False)
    _calls: set[Call] = attrs.field(factory=set, init=False, repr=False)
    _unclaimed: OrderedDict[object, UnclaimedTask] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _in_flight: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _poll_slots: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _downloads: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, DOWNLOADS), init=False, repr=False
    )
    _uploads: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, UPLOADS), init=False, repr=False
    )
    _halts: int = attrs.field(default=0, init=False)
    _halted_by: FluxError | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        limits = self.rate_limiter.limits
        self.gate = SubmitGate(
            rate_limiter=self.rate_limiter, clock=self.clock, rng=self.rng, changed=self.changed
        )
        self._in_flight = asyncio.Semaphore(limits.in_flight)
        self._poll_slots = asyncio.Semaphore(limits.connections)

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
        words = "the caller of task %s has left; the task is paid and goes on"
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

    @property
    def pauses(self) -> tuple[Pause, Pause, Pause]:
        """The pauses of submits, uploads and polls."""
        return self.gate.pause, self.upload_pause, self.polls

    def current_pause(self) -> Pause | None:
        """Return the pause that is on, submits first."""
        return next((pause for pause in self.pauses if pause.is_on), None)

    # --- spending -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def task_in_flight(self, deadline: float) -> AsyncIterator[None]:
        """Hold one of the places for tasks that are submitted and not finished."""
        await take(self._in_flight, deadline, self.clock)
        try:
            yield
        finally:
            self._in_flight.release()

    async def take_task_slot(self) -> None:
        """Take one of those places for a job of a batch; it is given back with :meth:`release_task_slot`."""
        await self._in_flight.acquire()

    def release_task_slot(self) -> None:
        """Give back a place."""
        self._in_flight.release()

    async def submit(self, request: ImageRequest, *, deadline: float, call: Call) -> TaskId:
        """Make one POST and return the task it made. At the deadline the caller stops listening.

        Raises:
            FluxError: With the charge and the scope of what happened.
        """
        await self.take_submit_slot(deadline=deadline, call=call)
        call.posting += 1
        try:
            async with Deadline(deadline - self.clock.monotonic()):
                answer = await self._exchanges.run(
                    self.post(store_request(request)),
                    when_done=self.release_submit_slot,
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
            return await self._exchanges.run(
                work, when_done=self.release_submit_slot, when_abandoned=when_abandoned
            )
        finally:
            call.posting -= 1

    async def take_submit_slot(
        self,
        *,
        deadline: float,
        call: Call,
        wanted: Callable[[], bool] = lambda: True,
        waits_out_pauses: bool = False,
    ) -> bool:
        """Wait for a submit slot and a permit; then POST at once, and call :meth:`release_submit_slot`.

        A submit that was waiting here when the vendor turned the account away (401, 402 …) is not let in:
        it ends with that same error. Nor is one that is not ``wanted`` any more: then False. More of it is
        told at :class:`flux_async.submit_gate.SubmitGate`.
        """
        return await self.gate.enter(
            deadline,
            check=partial(self._check_open, call),
            wanted=wanted,
            waits_out_pauses=waits_out_pauses,
        )

    def release_submit_slot(self) -> None:
        """Give back the place of an admitted submit."""
        self.gate.leave()

    def _check_open(self, call: Call) -> None:
        """Refuse what was waiting here while the client was closed or the account turned away."""
        self.enter()
        if self._halts != call.halts and self._halted_by is not None:
            raise copy.copy(self._halted_by)

    async def post(self, body: str, callback_url: str | None = None) -> TaskId | FluxError:
        """Submit a stored request that was admitted, and return its task or the error: it may be charged."""
        try:
            wire = self.api.build_submit(body, callback_url)
        except InvalidInput as error:
            return error  # nothing was sent
        self.submits.sends(subject_of(json.loads(body)))
        began = self.clock.monotonic()
        result: SendResult | None = None
        try:
            result = await self.transport.exchange(wire, timeout_s=SUBMIT_TIMEOUT_S)
            task_id = self.api.parse_submit(self._answered(result))
        except FluxError as error:
            return self._with_answer(self._judged(error, began), wire, result)
        except asyncio.CancelledError:
            return ConnectionLost("The program ended the request before its answer came.")
        except Exception as failure:  # noqa: BLE001 - a transport of the caller's own
            return self._judged(
                ConnectionLost(f"The request failed in an unforeseen way: {type(failure).__name__}."), began
            )
        if not self.submits.is_new(task_id):
            return self._judged(_named_twice(task_id), began)
        self.contact_at = self.clock.monotonic()
        self.gate.saw_accepted(began)
        return task_id

    def _with_answer(self, error: FluxError, wire: WireRequest, result: SendResult | None) -> FluxError:
        """Keep with an error what came in answer to a submit that may be charged: it may name the task."""
        body = result.response.body if isinstance(result, Answered) else getattr(result, "body", b"")
        if error.charge is Charge.NO or not body:
            return error
        error.answer = kept_answer(self.scrub(body))
        sent = (wire.body or b"").decode()
        if ids := [found for found in ids_in(error.answer) if found not in sent]:
            error.args = (f"{error.message} The answer may name the task: {', '.join(ids)}.",)
        return error

    def saw_mismatch(self, error: TaskMismatch) -> TaskMismatch:
        """Return the error, counted with the unknown answers: too many of them halt."""
        self._judged(error, self.clock.monotonic())
        return error

    def judge_echo(
        self,
        task_id: TaskId,
        record: TaskRecord,
        seen: Comparison,
        *,
        is_anothers: bool = False,
        belongs_to: JobKey | None = None,
    ) -> Echo:
        """Return what the record of a task shows of its request.

        Args:
            task_id: What a submit was answered with.
            record: Its record.
            seen: The record against that submit.
            is_anothers: Whether the record shows the request, or the image, of another job.
            belongs_to: That job, where it is known which one it is.

        Raises:
            TaskMismatch: It is another task.
        """
        submits, subject = self.submits, subject_of(record.params or {})
        is_other_image = seen.is_same_image is False
        was_sent_here = submits.has_sent(subject) or (is_other_image and submits.has_sent_image(subject[0]))
        if is_contradiction(
            seen.echo,
            is_anothers=is_anothers or (seen.is_other_subject and was_sent_here),
            is_other_image=is_other_image,
            is_reworded=seen.is_reworded,
            confirmed=submits.confirmed,
            confirmed_images=submits.confirmed_images,
        ):
            raise self.saw_mismatch(mismatch(task_id, record, belongs_to=belongs_to))
        submits.confirmed += seen.echo is Echo.CONFIRMED
        submits.confirmed_images += seen.is_same_image is True
        if seen.echo is Echo.UNRECOGNISED:
            words = (
                "the record of task %s shows another request than was sent (%s); its result is kept and "
                "marked as unrecognised: compare it with the image (logged once, later ones at DEBUG)"
            )
            level = logging.DEBUG if submits.has_warned else logging.WARNING
            submits.has_warned = True
            log(level, words, task_id, in_words(record.params))
        return seen.echo

    def begin_batch(self) -> None:
        """End a halt for unknown answers: one submit of the batch that begins goes alone, and decides."""
        self.gate.breaker.release()

    def _judged(self, error: FluxError, began: float) -> FluxError:
        """Return it. What concerns everyone takes effect here, whether or not the caller is still there."""
        if isinstance(error, RequestNotSent):
            if not self._closed:
                level = logging.INFO if self.gate.pause.is_on else logging.WARNING
                pause = self.gate.saw_unreachable(error, began)
                log(level, "all submits pause for %.1f s: %s", pause, error.message)
            return error
        self.contact_at = self.clock.monotonic()
        if error.scope is Scope.STOP:
            if isinstance(error, UnexpectedResponse):
                error.advice = f"{error.advice} It is {self.address} now."
            self._halts += 1
            log(logging.WARNING, "all submits are halted: %s", error.message)
            self._halted_by = copy.copy(error)  # without traceback, which would keep the caller's data alive
            self.changed.set()
        elif error.scope is Scope.ACCOUNT_PAUSED:
            pause = self.gate.saw_request_to_wait(error, began)
            log(logging.WARNING, "all submits pause for %.1f s: %s", pause, error.message)
        elif error.charge is Charge.NO:
            self.gate.saw_rejected(began)
        elif (halt := self.gate.saw_unknown(error, began)) is not None:
            log(logging.WARNING, "all submits are halted: %s", halt.message)
        return error

    # --- looking ------------------------------------------------------------------------------------------

    async def read(self, wire: WireRequest, *, timeout_s: float, deadline: float) -> WireResponse:
        """Make one request that costs nothing.

        Raises:
            RequestNotSent, ConnectionLost: There is no whole answer; charge NO.
            DeadlineExceeded: No place was free before the deadline.
        """
        await take(self._poll_slots, deadline, self.clock)
        began = self.clock.monotonic()
        result = await self._run_here(
            lambda: self.transport.exchange(wire, timeout_s=timeout_s), self._poll_slots.release
        )
        return self._polled(result, began)

    async def take_poll_slot(self, deadline: float) -> None:
        """Take a place for a look, which :meth:`poll` gives back.

        Raises:
            DeadlineExceeded: None was free before the deadline.
        """
        await take(self._poll_slots, deadline, self.clock)

    async def poll(self, task_id: TaskId, *, timeout_s: float) -> WireResponse | FluxError:
        """Poll a task, with a place, and return what was answered, whatever it is. It must not be cancelled.

        The poll goes over a kept connection. Where the answer may belong to an earlier poll, the poll is made
        again over a fresh one.
        """
        began = self.clock.monotonic()
        try:
            poll = self.api.build_status(task_id, keep_alive=True)
            answer = self._polled(await self.transport.exchange(poll, timeout_s=timeout_s), began)
            if not self.api.is_for_task(answer, task_id):
                poll, began = self.api.build_status(task_id), self.clock.monotonic()
                answer = self._polled(await self.transport.exchange(poll, timeout_s=timeout_s), began)
        except FluxError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a transport of the caller's own
            return ConnectionLost(
                f"The look failed in an unforeseen way: {type(error).__name__}.", charge=Charge.NO
            )
        else:
            return answer
        finally:
            self._poll_slots.release()

    def _polled(self, result: SendResult, began: float) -> WireResponse:
        """Return the answer of a poll, or raise what its absence means; note whether polls get through."""
        try:
            answer = self._answered(result, looking=True)
        except RequestNotSent as error:
            self._note_unreachable(self.polls, error, began)
            raise
        except ConnectionLost:
            self._note_contact(self.polls, began)  # it was sent, so there was a connection
            raise
        self._note_contact(self.polls, began)
        return answer

    def _note_contact(self, pause: Pause, began: float) -> None:
        self.contact_at = self.clock.monotonic()
        if pause.saw_answer(began, self.contact_at):
            self.changed.set()

    def _note_unreachable(self, pause: Pause, error: RequestNotSent, began: float) -> None:
        if self._closed:
            return
        was_on = pause.is_on
        pause.saw_unreachable(error, began, self.clock.monotonic(), self.rng.random())
        if not was_on:
            self.changed.set()

    def _answered(self, result: SendResult, *, looking: bool = False) -> WireResponse:
        """Return the answer there is, or raise what its absence means."""
        if isinstance(result, Answered):
            return result.response
        if isinstance(result, NotSent):
            where = f"The API at {self.address}" if self.address else "The API"
            raise RequestNotSent(f"{where} could not be reached: {result.reason}.")
        fields: dict[str, Any] = {"charge": Charge.NO, "advice": READ_ADVICE} if looking else {}
        raise ConnectionLost(f"The request was sent, but no whole answer came: {result.reason}.", **fields)

    async def upload(self, wire: WireRequest, *, timeout_s: float, deadline: float) -> SendResult:
        """Make one request to the upload host when a place is free; it costs nothing.

        Raises:
            DeadlineExceeded: No place was free before the deadline.
        """
        await take(self._uploads, deadline, self.clock)
        began = self.clock.monotonic()
        timeout_s = min(timeout_s, max(_SHORTEST_S, deadline - began))
        result = await self._run_here(
            lambda: self.transport.exchange(wire, timeout_s=timeout_s), self._uploads.release
        )
        if isinstance(result, NotSent):
            self._note_unreachable(self.upload_pause, upload_host_unreachable(result.reason), began)
        else:
            self._note_contact(self.upload_pause, began)
        return result

    async def download(self, fetch: Callable[[], Coroutine[Any, Any, T]], *, deadline: float) -> T:
        """Run a download when a place is free, in a coroutine that no caller can cancel."""
        await take(self._downloads, deadline, self.clock)
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


def upload_host_unreachable(reason: str) -> RequestNotSent:
    """Return the error of an upload that never left."""
    return RequestNotSent(
        f"The upload host could not be reached: {reason}.",
        advice="Check the network and KIE_UPLOAD_URL; an upload is free and may be made again.",
    )


def _unanswered() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The deadline passed while the submit was on its way.",
        charge=Charge.MAYBE,
        advice="{unanswered_submit}",
    )


def _named_twice(task_id: TaskId) -> TaskMismatch:
    return TaskMismatch(
        f"The API answered the submit with task {task_id}, which another submit of this client has. "
        "The submit was probably charged, and its own task is not known.",
        refused_task_id=task_id,
    )


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
