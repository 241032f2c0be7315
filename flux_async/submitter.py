"""Makes the submits of one session: slot, permit, POST, and the consequences of the answer for later ones.

Rules:

1. A submit takes a slot (submits sent and not answered), then a permit of the rate limiter, then makes its
   POST at once: nothing waits between the permit and the POST.
2. No permit is given during a pause that the vendor asked for (429, 455), while the vendor cannot be reached,
   or after a halt by the circuit breaker (:class:`flux_async.policy.rate_limit.CircuitBreaker`).
3. Until the first submit has been accepted, during a pause, and after many unknown answers, submits go one at
   a time: a wrong key, an empty balance or an outage then costs one request, not one per waiting image.
4. After 401, 402, 433 or 505 every submit that was waiting ends with that same error.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import attrs

from flux_async.api import load_api
from flux_async.api.echo import (
    Comparison,
    SubmitLog,
    compare,
    in_words,
    is_contradiction,
    mismatch,
    subject_of,
)
from flux_async.api.envelope import READ_ADVICE, WireRequest, WireResponse
from flux_async.api.models_table import ApiName
from flux_async.api.parsing import ids_in, kept_answer
from flux_async.api.stored_requests import store_request
from flux_async.api_errors import RateLimitedError
from flux_async.clock import Clock, Signal
from flux_async.errors import (
    Charge,
    ConnectionLost,
    DeadlineExceeded,
    FluxError,
    InvalidInput,
    RequestNotSent,
    Scope,
    TaskMismatch,
    TooManyUnknownAnswers,
    UnexpectedResponse,
    shown,
)
from flux_async.events import EventStream, Halted, Paused, RateLimited, why
from flux_async.images import must_be_uploaded
from flux_async.models import Echo, EditRequest, ImageRequest, ImageResult, JobKey, TaskId, TaskRecord
from flux_async.observed import exchange
from flux_async.policy.rate_limit import CircuitBreaker, Pause, SubmitSpacing
from flux_async.policy.retry import RetryPolicy
from flux_async.rate_limiter import RateLimiter
from flux_async.transport import Answered, NotSent, SendResult, Transport

logger: logging.Logger = logging.getLogger("flux_async")

SUBMIT_TIMEOUT_S = 60.0


@attrs.define(kw_only=True, eq=False)
class Submitter:
    """The submits of one session.

    Attributes:
        transport: Makes the requests.
        spacing: Says when the next submit may start.
        rate_limiter: Gives its permit, where other processes submit on the same account, too.
        clock: The reader of time.
        rng: The source of jitter.
        changed: Set when a waiting submit should check again whether it may go.
        events: Receives pauses and halts.
        scrub: Removes the key from an answer.
        address: The API's origin.
        sent: The latest submits, and whether records are known to show what was sent.
        pause: The pause that all submits share.
        breaker: Counts unknown answers.
        halts: How many answers have stopped all submits (401, 402 …).
        may_be_charged: POSTs so far that were not certainly free of charge, those in flight included.
    """

    transport: Transport = attrs.field(repr=False)
    spacing: SubmitSpacing
    rate_limiter: RateLimiter | None
    clock: Clock = attrs.field(repr=False)
    rng: random.Random = attrs.field(repr=False)
    changed: Signal = attrs.field(repr=False)
    events: EventStream = attrs.field(repr=False)
    scrub: Callable[[bytes], bytes] = attrs.field(repr=False)
    address: str
    sent: SubmitLog = attrs.field(factory=SubmitLog, init=False, repr=False)
    pause: Pause = attrs.field(factory=Pause, init=False)
    breaker: CircuitBreaker = attrs.field(init=False)
    halts: int = attrs.field(default=0, init=False)
    may_be_charged: int = attrs.field(default=0, init=False)
    _halted_by: FluxError | None = attrs.field(default=None, init=False, repr=False)
    _waits: RetryPolicy = attrs.field(init=False, repr=False)
    _slots: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _permits: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False, repr=False)
    _in_flight: int = attrs.field(default=0, init=False)
    _last_went_alone: bool = attrs.field(default=False, init=False)
    _last_problem: str = attrs.field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        limits = self.spacing.limits
        self.breaker = CircuitBreaker(limits.unknown_answers)
        self._waits = RetryPolicy(window_s=limits.window_s)
        self._slots = asyncio.Semaphore(min(limits.concurrent_submits, limits.in_flight))

    # --- before the POST ----------------------------------------------------------------------------------

    async def acquire(
        self,
        *,
        deadline: float,
        check: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
        waits_out_pauses: bool = False,
    ) -> bool:
        """Wait for a slot and a permit; then POST at once, and call :meth:`release`.

        Args:
            deadline: When to stop waiting, in monotonic seconds.
            check: Raises if no submit of this call may start any more.
            wanted: Returns whether the submit is still wanted; if not, False is returned.
            waits_out_pauses: Whether the pause of all submits holds this one, too. A call with a deadline of
                its own makes its own tries.

        Raises:
            DeadlineExceeded: The deadline came first.
            TooManyUnknownAnswers: Submits are halted.
        """
        await take(self._slots, deadline, self.clock)
        acquired = False
        try:
            check()  # a call that was refused meanwhile waits no longer
            if wanted():
                await take(self._permits, deadline, self.clock)
                try:
                    acquired = await self._permitted(
                        deadline, check, wanted, waits_out_pauses=waits_out_pauses
                    )
                finally:
                    self._permits.release()
        finally:
            if not acquired:
                self._slots.release()
        return acquired

    async def _permitted(
        self,
        deadline: float,
        check: Callable[[], None],
        wanted: Callable[[], bool],
        *,
        waits_out_pauses: bool,
    ) -> bool:
        has_permit = self.rate_limiter is None
        while True:
            check()
            if not wanted():
                return False
            now = self.clock.monotonic()
            if self.breaker.is_halted(now):
                raise self._too_many_unknown()
            delay = self._delay(now, waits_out_pauses=waits_out_pauses)
            if delay <= 0 and has_permit:
                break
            if delay <= 0:
                delay = await self._shared_permit(waits_out_pauses=waits_out_pauses)
                has_permit = delay <= 0
                if has_permit:
                    continue  # that took time, and what was checked may have changed
            if now >= deadline or (math.isfinite(delay) and now + delay >= deadline):
                raise too_late()
            await self.changed.wait(self.clock, min(delay, deadline - now))
            has_permit = self.rate_limiter is None
        self.spacing.take(now)
        self._in_flight += 1
        self._last_went_alone = self.breaker.one_at_a_time
        return True

    async def _shared_permit(self, *, waits_out_pauses: bool) -> float:
        """Take a permit of the shared limiter and return 0, or return the seconds until the next try.

        A limiter that does not answer pauses all submits, as a vendor that cannot be reached does.

        Raises:
            RequestNotSent: It does not answer, and this call makes its own tries.
        """
        if self.rate_limiter is None:
            return 0.0
        began = self.clock.monotonic()
        try:
            return await self.rate_limiter.take()
        except Exception as failed:  # noqa: BLE001 - a limiter of the caller's own
            error = RequestNotSent(
                f"The shared rate limiter does not answer: {shown(failed)}. No submit is made without it.",
                advice="Check its server and its address; it is safe to try again.",
            )
            self._judged(error, began)
            if not waits_out_pauses:
                raise error from None
            return self.pause.delay(self.clock.monotonic())

    def _delay(self, now: float, *, waits_out_pauses: bool) -> float:
        """Return the seconds until the next permit; infinity until a submit in flight is answered."""
        paused = waits_out_pauses and self.pause.is_on
        if self._in_flight and (paused or self.breaker.one_at_a_time):
            return math.inf
        return max(self.spacing.delay(now), self.pause.delay(now) if paused else 0.0)

    def release(self) -> None:
        """Give back the slot of an acquired submit."""
        self._in_flight -= 1
        self._slots.release()
        self.changed.set()

    @property
    def in_flight(self) -> int:
        """Submits that were sent and not answered."""
        return self._in_flight

    def check_halts(self, halts: int) -> None:
        """Raise the error that has stopped all submits, unless it came before ``halts`` was read."""
        if self.halts != halts and self._halted_by is not None:
            raise copy.copy(self._halted_by)

    # --- the POST -----------------------------------------------------------------------------------------

    async def post(self, body: str, callback_url: str | None = None, *, api: ApiName) -> TaskId | FluxError:
        """Submit a stored request, with a slot, and return its task or the error: it may be charged."""
        wire_api = load_api(api)
        try:
            wire = wire_api.build_submit(body, callback_url)
        except InvalidInput as error:
            return error  # nothing was sent
        self.sent.record_submit(subject_of(json.loads(body)))
        self.may_be_charged += 1
        began = self.clock.monotonic()
        result: SendResult | None = None
        try:
            result = await exchange(self, wire, timeout_s=SUBMIT_TIMEOUT_S, api=api)
            task_id = wire_api.parse_submit(answer_of(result, self.address))
        except FluxError as error:
            return self._with_answer(self._judged(error, began), wire, result)
        except asyncio.CancelledError:
            return ConnectionLost("The program ended the request before its answer came.")
        except Exception as failure:  # noqa: BLE001 - a transport of the caller's own
            return self._judged(
                ConnectionLost(f"The request failed in an unforeseen way: {type(failure).__name__}."), began
            )
        if not self.sent.is_new(task_id, api):
            return self._judged(_named_twice(task_id), began)
        self.spacing.record_accepted()
        self.breaker.saw_accepted()
        self._saw_answer(began)
        return task_id

    def _with_answer(self, error: FluxError, wire: WireRequest, result: SendResult | None) -> FluxError:
        """Keep the answer to a submit that may be charged with its error: it may name the task."""
        self.may_be_charged -= error.charge is Charge.NO
        body = result.response.body if isinstance(result, Answered) else getattr(result, "body", b"")
        if error.charge is Charge.NO or not body:
            return error
        error.answer = kept_answer(self.scrub(body))
        sent = (wire.body or b"").decode()
        if ids := [found for found in ids_in(error.answer) if found not in sent]:
            error.args = (f"{error.message} The answer may name the task: {', '.join(ids)}.",)
        return error

    # --- what an answer means for the next submits --------------------------------------------------------

    def _judged(self, error: FluxError, began: float) -> FluxError:
        """Return it. If it concerns all submits it takes effect here, also if its caller was cancelled."""
        now = self.clock.monotonic()
        if isinstance(error, RequestNotSent):
            self.pause.saw_unreachable(error, began, now, self.rng.random())
            self.changed.set()
            self._emit_pause(error, self.pause.delay(now))
        elif error.scope is Scope.STOP:
            if isinstance(error, UnexpectedResponse):
                error.advice = f"{error.advice} It is {self.address} now."
            self.halts += 1
            self._emit_halt(error)
            self._halted_by = copy.copy(error)  # without traceback, which would keep the caller's data alive
            self.pause.answered_at = now
            self.changed.set()
        elif error.scope is Scope.ACCOUNT_PAUSED:
            self._emit_pause(error, self._pause_as_asked(error, began, now))
        elif error.charge is Charge.NO:
            self.breaker.saw_rejected()
            self._saw_answer(began)
        else:
            self._last_problem = f"{type(error).__name__}: {error.message.rstrip('.')}"
            halts = self.breaker.saw_unknown(now, alone=self._last_went_alone)
            self._saw_answer(began)  # it was sent, so there was a connection
            if halts:
                self._emit_halt(self._too_many_unknown())
        return error

    def _emit_pause(self, error: FluxError, seconds: float) -> None:
        at, tries = self.clock.wall(), self.pause.tries
        if isinstance(error, RateLimitedError):
            self.events.emit(RateLimited(at=at, seconds=seconds, reason=error.message))
        else:
            self.events.emit(Paused(at=at, what="submits", seconds=seconds, tries=tries, **why(error)))

    def _emit_halt(self, error: FluxError) -> None:
        self.events.emit(Halted(at=self.clock.wall(), what="submits", **why(error)))

    def _pause_as_asked(self, error: FluxError, began: float, now: float) -> float:
        """Pause all submits after 429 or 455; return for how many seconds."""
        if isinstance(error, RateLimitedError):
            self.spacing.record_rate_limited()
        seconds = self._waits.pause_for(error, self.rng.random())
        self.spacing.pause(now, seconds)
        seconds = max(seconds, float(getattr(error, "retry_after_s", None) or 0.0))
        self.pause.saw_request_to_wait(error, began, now, seconds)
        self.changed.set()
        return seconds

    def _saw_answer(self, began: float) -> None:
        self.pause.saw_answer(began, self.clock.monotonic())
        self.changed.set()

    def _too_many_unknown(self) -> TooManyUnknownAnswers:
        unknown, last = self.breaker.counts()
        return TooManyUnknownAnswers(
            f"{unknown} of the last {last} submits got an answer that makes no sense, or none (the last one: "
            f"{self._last_problem}). {self.breaker.unknown} submits may have been charged without a known "
            "task; nothing more is submitted.",
            unknown=self.breaker.unknown,
        )

    # --- whose task it is ---------------------------------------------------------------------------------

    def count_mismatch(self, error: TaskMismatch) -> TaskMismatch:
        """Return the error, counted with the unknown answers: too many of them halt."""
        self._judged(error, self.clock.monotonic())
        return error

    def check_echo(self, record: TaskRecord, request: ImageRequest) -> Echo | None:
        """Compare a record with a request; None for a file, whose address in the submit is not known here.

        Raises:
            TaskMismatch: The record is of another request.
        """
        if isinstance(request, EditRequest) and must_be_uploaded(request.input_image):
            return None
        return self.judge_echo(record, compare(record.params, store_request(request)))

    def with_echo(self, image: ImageResult, request: ImageRequest) -> ImageResult:
        """Return a result with the comparison of its record with the request."""
        echo = None if image.record is None else self.check_echo(image.record, request)
        return attrs.evolve(image, echo=echo)

    def judge_echo(
        self,
        record: TaskRecord,
        seen: Comparison,
        *,
        is_anothers: bool = False,
        belongs_to: JobKey | None = None,
    ) -> Echo:
        """Return what the record of a task shows of its request.

        Args:
            record: The record of the task that a submit was answered with.
            seen: The record compared with that submit.
            is_anothers: Whether the record shows the request, or the image, of another job.
            belongs_to: That job, if it is known.

        Raises:
            TaskMismatch: It is another task.
        """
        sent, api, subject = self.sent, record.api, subject_of(record.params or {})
        is_other_image = seen.is_same_image is False
        was_sent_here = sent.has_sent(subject) or (is_other_image and sent.has_sent_image(subject[0]))
        if is_contradiction(
            seen.echo,
            is_anothers=is_anothers or (seen.is_other_subject and was_sent_here),
            is_other_image=is_other_image,
            is_reworded=seen.is_reworded,
            confirmed=sent.confirmed[api],
            confirmed_images=sent.confirmed_images[api],
        ):
            raise self.count_mismatch(mismatch(record.task_id, record, belongs_to=belongs_to))
        sent.confirmed[api] += seen.echo is Echo.CONFIRMED
        sent.confirmed_images[api] += seen.is_same_image is True
        if seen.echo is Echo.UNRECOGNISED:
            words = (
                "the record of task %s shows another request than was sent (%s); its result is kept and "
                "marked as unrecognised: compare it with the image (logged once, later ones at DEBUG)"
            )
            level = logging.DEBUG if sent.has_warned else logging.WARNING
            sent.has_warned = True
            log(level, words, record.task_id, in_words(record.params))
        return seen.echo


def answer_of(result: SendResult, address: str, *, is_poll: bool = False) -> WireResponse:
    """Return the answer to a request.

    Raises:
        RequestNotSent, ConnectionLost: There is none.
    """
    if isinstance(result, Answered):
        return result.response
    if isinstance(result, NotSent):
        where = f"The API at {address}" if address else "The API"
        raise RequestNotSent(f"{where} could not be reached: {result.reason}.")
    fields: dict[str, Any] = {"charge": Charge.NO, "advice": READ_ADVICE} if is_poll else {}
    raise ConnectionLost(f"The request was sent, but no whole answer came: {result.reason}.", **fields)


def log(level: int, words: str, *details: object, to: logging.Logger = logger) -> None:
    """Write one log line. A handler of the caller's that fails must not lose a paid task."""
    with contextlib.suppress(Exception):
        to.log(level, words, *details)


async def take(slot: asyncio.Semaphore | asyncio.Lock, deadline: float, clock: Clock) -> None:
    """Take a slot, or a lock.

    Raises:
        DeadlineExceeded: None was free before the deadline.
    """
    # A lock that is free may still be promised to a coroutine that has waited for it.
    if isinstance(slot, asyncio.Semaphore) and not slot.locked():
        await slot.acquire()  # at once
        return
    try:
        async with asyncio.timeout(max(0.0, deadline - clock.monotonic())):
            await slot.acquire()
    except TimeoutError:
        raise too_late() from None


def too_late() -> DeadlineExceeded:
    """Return the error of a request that could not be sent before its deadline."""
    return DeadlineExceeded("The deadline passed before the request could be sent.")


def _named_twice(task_id: TaskId) -> TaskMismatch:
    return TaskMismatch(
        f"The API answered the submit with task {task_id}, which another submit of this client has. "
        "The submit was probably charged, and its own task is not known.",
        refused_task_id=task_id,
    )
