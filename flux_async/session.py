"""Connections, limits and unclaimed tasks of one API key on one event loop.

Rules:

1. A session belongs to the event loop of its first use.
2. No cancellation of a caller reaches a request: each runs in a background task of its own.
3. A submit whose caller was cancelled is kept in ``unclaimed``, with its task id if one came.
4. ``aclose`` waits for submits in flight, ends all other calls with :class:`ClientClosed`, then closes the
   connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import random
import warnings
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import attrs

from flux_async.api import load_api
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.api.models_table import ApiName, api_for
from flux_async.api.stored_requests import store_request
from flux_async.clock import Clock, Signal
from flux_async.errors import (
    Charge,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    FluxError,
    RequestNotSent,
    WrongEventLoop,
)
from flux_async.events import EventStream, Paused, Polled, Retried, SubmitStarted, Submitted, why
from flux_async.models import ImageRequest, JobKey, TaskId, TaskRecord, TaskStatus, UnclaimedTask
from flux_async.observed import event_fields, exchange
from flux_async.policy.generation_times import GenerationTimes
from flux_async.policy.rate_limit import Pause, SubmitSpacing
from flux_async.policy.retry import RetryPolicy
from flux_async.rate_limiter import RateLimiter
from flux_async.submitter import Submitter, answer_of, log, take
from flux_async.transport import NotSent, SendResult, Transport
from flux_async.transport.background import BackgroundTasks, Deadline

T = TypeVar("T")

DOWNLOADS = 8
POLL_TIMEOUT_S = 30.0
UPLOADS = 8
_MOST_UNCLAIMED = 10_000
_SHORTEST_S = 0.01
_FORKED = (
    "Make one FluxClient in each process, after the fork: in the lifespan of the web application, not when a "
    "module is imported that a server loads before it forks (preload_app of gunicorn)."
)


def place_of_caller() -> str:
    """Return file and line of the code outside of this package that is running."""
    frame = inspect.currentframe()
    while frame is not None and f"{frame.f_globals.get('__name__', __name__)}.".startswith("flux_async."):
        frame = frame.f_back
    return "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


@attrs.define(eq=False)
class Call:
    """One call in progress on the session, from ``async with`` to its end.

    Attributes:
        session: Ends it when it is closed.
        halts: How many answers had stopped all submits when the call began.
        posting: POSTs of this call that are in flight.
    """

    session: Session
    halts: int
    posting: int = 0
    _scope: asyncio.Timeout = attrs.field(factory=lambda: asyncio.timeout(None))

    def end(self) -> None:
        """End whatever the call is waiting for."""
        if not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise if the client was closed, or all submits were stopped, since the call began."""
        self.session.enter()
        self.session.submitter.check_halts(self.halts)

    async def post(self, work: Coroutine[Any, Any, T], *, when_abandoned: Callable[[T], None]) -> T:
        """Run ``work``, which makes one POST with a slot of the submitter, where no caller can cancel it."""
        self.posting += 1
        try:
            return await self.session.background.run(
                work, when_done=self.session.submitter.release, when_abandoned=when_abandoned
            )
        finally:
            self.posting -= 1

    async def __aenter__(self) -> Self:
        self.session.enter()
        self.session.calls.add(self)
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
            self.session.calls.discard(self)


@attrs.define(kw_only=True, eq=False)
class Session:
    """Connections, limits and unclaimed tasks of one API key on one event loop.

    Attributes:
        transport: Makes the requests.
        spacing: Says when the next submit may start.
        rate_limiter: Gives its permit, where other processes submit on the same account, too.
        clock: The reader of time.
        rng: The source of jitter.
        api: The API that requests are submitted to, where it has their model.
        scrub: Removes the key from an answer.
        address: The API's origin.
        upload_address: That of its upload host.
        events: What happens on the session.
        times: What is known of how long tasks take.
        changed: Set when pauses begin or end, and when a waiting submit should check again.
        submitter: Makes the submits.
        polls: The pause of polls: on while no connection can be made for them.
        uploads: The pause that uploads share while their host cannot be reached.
        task_slots: Bounds the tasks that are submitted and not finished.
        background: Runs requests that outlive their callers.
        calls: The calls in progress.
        made_at: Where it was made, for messages: file and line.
        succeeded_at: When a poll last found a finished image, in seconds since the epoch.
        balance: The balance when it was last read, and when that was in seconds since the epoch.
    """

    transport: Transport = attrs.field(repr=False)
    spacing: SubmitSpacing
    clock: Clock = attrs.field(repr=False)
    rng: random.Random = attrs.field(repr=False)
    api: ApiName = "kontext"
    scrub: Callable[[bytes], bytes] = attrs.field(default=bytes, repr=False)
    address: str = ""
    rate_limiter: RateLimiter | None = None
    upload_address: str = ""
    events: EventStream = attrs.field(factory=EventStream, repr=False)
    times: GenerationTimes = attrs.field(factory=GenerationTimes, init=False, repr=False)
    changed: Signal = attrs.field(factory=Signal, init=False, repr=False)
    submitter: Submitter = attrs.field(init=False, repr=False)
    polls: Pause = attrs.field(factory=Pause, init=False, repr=False)
    uploads: Pause = attrs.field(factory=Pause, init=False, repr=False)
    task_slots: asyncio.Semaphore = attrs.field(init=False, repr=False)
    background: BackgroundTasks = attrs.field(factory=BackgroundTasks, init=False, repr=False)
    calls: set[Call] = attrs.field(factory=set, init=False, repr=False)
    made_at: str = attrs.field(factory=place_of_caller, init=False)
    succeeded_at: float | None = attrs.field(default=None, init=False)
    balance: tuple[float, float] | None = attrs.field(default=None, init=False)
    _unclaimed: OrderedDict[object, UnclaimedTask] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _poll_slots: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _download_slots: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, DOWNLOADS), init=False, repr=False
    )
    _upload_slots: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, UPLOADS), init=False, repr=False
    )
    _closed: bool = attrs.field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False, repr=False)
    _process: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        limits = self.spacing.limits
        self.submitter = Submitter(
            transport=self.transport,
            spacing=self.spacing,
            rate_limiter=self.rate_limiter,
            clock=self.clock,
            rng=self.rng,
            changed=self.changed,
            events=self.events,
            scrub=self.scrub,
            address=self.address,
        )
        self.task_slots = asyncio.Semaphore(limits.in_flight)
        self._poll_slots = asyncio.Semaphore(limits.connections)

    # --- opening and closing ------------------------------------------------------------------------------

    def enter(self) -> None:
        """Check that the session may be used here and now; the first use binds it to the running loop.

        Raises:
            ClientClosed: After ``aclose``.
            WrongEventLoop: On another loop than the first.
        """
        if self._closed:
            raise ClientClosed("This client is closed.")
        self._check_loop()

    def _check_loop(self) -> None:
        if self._loop is not None and self._process != os.getpid():
            words = f"This client, made at {self.made_at}, was in use when this process was forked."
            raise WrongEventLoop(words, advice=_FORKED)
        loop = _loop_here()
        if loop is None:
            raise WrongEventLoop(
                "flux_async needs a running asyncio event loop.",
                advice="Call it from a coroutine that asyncio runs, as in asyncio.run(main()); "
                "trio is not supported.",
            )
        if self._loop is None:
            self._loop, self._process = loop, os.getpid()
        if self._loop is not loop:
            raise WrongEventLoop(f"This client, made at {self.made_at}, belongs to another event loop.")

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        """Warn of a client that was used and never closed; nothing can be closed here."""
        if getattr(self, "_loop", None) is not None and not self._closed and self._process == os.getpid():
            words = f"A FluxClient was never closed; it was made at {self.made_at}. Use `async with`."
            warn(words, ResourceWarning, source=self)

    def mark_closed(self) -> None:
        """Count it as closed: its event loop has ended, and its transport has closed the connections."""
        self._closed = True

    def run_on_loop(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the session's event loop: now, or soon if called from elsewhere."""
        loop = self._loop
        if loop is None or loop is _loop_here():
            work()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no coroutine waits any more
            loop.call_soon_threadsafe(work)

    @property
    def is_in_use(self) -> bool:
        """Whether it was used before."""
        return self._loop is not None

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, or is being closed."""
        return self._closed

    def call(self) -> Call:
        """Return a call on the session. Closing the session ends it with :class:`ClientClosed`."""
        self._check_loop()  # the call's timeout needs the loop
        return Call(self, self.submitter.halts)

    async def aclose(self) -> None:
        """Wait for submits in flight, end everything else, close the connections.

        A second call does nothing more. A caller cancelled meanwhile waits until all is closed.
        """
        self._check_loop()
        await self.background.close_once(self._close)

    async def _close(self) -> None:
        self._closed = True
        for call in self.calls:
            if not call.posting:
                call.end()
        await self.background.settle()
        await asyncio.sleep(0)  # calls whose submit was answered take their task id first
        for call in self.calls:
            call.end()
        await self.transport.aclose()

    # --- unclaimed tasks ----------------------------------------------------------------------------------

    @property
    def unclaimed(self) -> tuple[UnclaimedTask, ...]:
        """Submits whose callers were cancelled before they received the task id, oldest first."""
        return tuple(self._unclaimed.values())

    def keep_unclaimed(self, request: ImageRequest, api: ApiName, answer: TaskId | FluxError) -> None:
        """Keep the answer to a submit whose caller was cancelled, unless it was certainly not charged."""
        if not isinstance(answer, FluxError):
            unclaimed = UnclaimedTask(request=request, api=api, task_id=answer)
            log(
                logging.WARNING, "the caller of task %s was cancelled; the task is paid and continues", answer
            )
        elif answer.charge is not Charge.NO:
            unclaimed = UnclaimedTask(request=request, api=api, error=answer, task_id=answer.task_id)
            log(logging.WARNING, "a submit whose caller was cancelled is in doubt: %s", answer)
        else:
            return
        self._unclaimed[unclaimed.task_id or object()] = unclaimed
        if len(self._unclaimed) > _MOST_UNCLAIMED:
            self._unclaimed.popitem(last=False)

    def claim(self, task_id: TaskId) -> None:
        """Remove an unclaimed task: a caller has received its end."""
        self._unclaimed.pop(task_id, None)

    # --- pauses -------------------------------------------------------------------------------------------

    @property
    def pauses(self) -> tuple[Pause, Pause, Pause]:
        """The pauses of submits, uploads and polls."""
        return self.submitter.pause, self.uploads, self.polls

    def current_pause(self) -> Pause | None:
        """Return the pause that is on, submits first."""
        return next((pause for pause in self.pauses if pause.is_on), None)

    @property
    def answered_at(self) -> float:
        """When the vendor last answered anything, in monotonic seconds."""
        return max(pause.answered_at for pause in self.pauses)

    # --- submits ------------------------------------------------------------------------------------------

    def api_of(self, task_id: TaskId, request: ImageRequest | None = None) -> ApiName:
        """Return the API that a task was submitted to, as far as that is known; else the session's own.

        A task whose model only the other API has is there: it may be paid, so that is no error here.
        """
        if (known := self.submitter.sent.api_of(task_id)) is not None:
            return known
        apis = [self.api] if request is None else list(request.model.row.apis)
        return self.api if self.api in apis else apis[0]

    @asynccontextmanager
    async def task_in_flight(self, deadline: float) -> AsyncIterator[None]:
        """Hold a slot for a task that is submitted and not finished."""
        await take(self.task_slots, deadline, self.clock)
        try:
            yield
        finally:
            self.task_slots.release()

    async def submit(
        self,
        request: ImageRequest,
        *,
        deadline: float,
        call: Call,
        retry: RetryPolicy,
        job: JobKey,
        trace: str | None,
    ) -> TaskId:
        """Submit, and again only if that cannot pay twice; return the task.

        ``job`` and ``trace`` are those of its events.

        Raises:
            InvalidInput: The API does not have the model, or not in that aspect ratio.
            FluxError: With the charge and the scope of what happened.
        """
        api = api_for(request.model, self.api, request.aspect_ratio)
        about, added_at = event_fields(request, api, job, trace), self.clock.wall()
        tries = 0
        while True:
            tries += 1
            about["attempt"] = tries
            try:
                await self.submitter.acquire(deadline=deadline, check=call.check)
                self.events.emit(SubmitStarted(at=self.clock.wall(), **about, added_at=added_at))
                task_id = await self._submit_once(request, api, deadline, call)
            except FluxError as error:
                delay = retry.before_next_submit(error, tries, self.rng.random())
                at = self.clock.wall()
                if delay is None or self.clock.monotonic() + delay >= deadline:
                    if error.charge is not Charge.NO:
                        about["credits"] = request.model.row.credits
                        self.events.emit(Submitted(at=at, **about, charge=error.charge, **why(error)))
                    raise
                self.events.emit(Retried(at=at, **about, what="submit", seconds=delay, **why(error)))
                await self.clock.sleep(delay)
            else:
                about |= {"task_id": task_id, "credits": request.model.row.credits}
                self.events.emit(Submitted(at=self.clock.wall(), **about))
                return task_id

    async def _submit_once(self, request: ImageRequest, api: ApiName, deadline: float, call: Call) -> TaskId:
        """Make one POST, with a slot. At the deadline the caller stops waiting for the answer."""
        try:
            async with Deadline(deadline - self.clock.monotonic()):
                answer = await call.post(
                    self.submitter.post(store_request(request), api=api),
                    when_abandoned=partial(self.keep_unclaimed, request, api),
                )
        except TimeoutError:
            raise _unanswered() from None
        if isinstance(answer, FluxError):
            raise answer
        return answer

    # --- requests that cost nothing -----------------------------------------------------------------------

    async def read(
        self,
        wire: WireRequest,
        parse: Callable[[WireResponse], T],
        *,
        deadline: float,
        retry: RetryPolicy | None = None,
    ) -> T:
        """Make a request that costs nothing, with the retries of ``retry``, and return its parsed answer.

        Raises:
            FluxError: What ``parse`` raises, or there is no whole answer; charge NO.
            DeadlineExceeded: No slot was free before the deadline.
        """
        tries = 0
        while True:
            tries += 1
            try:
                return parse(await self._read_once(wire, deadline))
            except FluxError as error:
                delay = None if retry is None else retry.before_next_poll(error, tries, self.rng.random())
                if delay is None or self.clock.monotonic() + delay >= deadline:
                    raise
                await self.clock.sleep(delay)

    async def _read_once(self, wire: WireRequest, deadline: float) -> WireResponse:
        await take(self._poll_slots, deadline, self.clock)
        began = self.clock.monotonic()
        timeout_s = min(POLL_TIMEOUT_S, max(_SHORTEST_S, deadline - began))
        result = await self._run(lambda: exchange(self, wire, timeout_s=timeout_s), self._poll_slots.release)
        return self._polled(result, began)

    async def take_poll_slot(self, deadline: float) -> None:
        """Take a slot for a poll, which :meth:`poll` gives back.

        Raises:
            DeadlineExceeded: None was free before the deadline.
        """
        await take(self._poll_slots, deadline, self.clock)

    async def poll(
        self,
        task_id: TaskId,
        name: ApiName,
        *,
        job: JobKey | None = None,
        trace: str | None = None,
        links: tuple[str, ...] = (),
    ) -> TaskRecord | FluxError:
        """Poll a task with a slot and return what was found, whatever it is. It must not be cancelled.

        The poll uses a kept connection. If its answer may belong to an earlier poll, it is repeated on a
        fresh one. ``job`` and ``trace`` are those of its event, ``links`` the traces of others that wait.
        """
        found: TaskRecord | FluxError
        api = load_api(name)
        about: dict[str, Any] = {"task_id": task_id, "api": name, "links": links}
        try:
            answer = await self._exchange_poll(api.build_status(task_id, keep_alive=True), **about)
            if not api.is_for_task(answer, task_id):
                answer = await self._exchange_poll(api.build_status(task_id), **about)
            found = api.parse_poll(answer, task_id)
        except FluxError as error:
            found = error
        except Exception as error:  # noqa: BLE001 - a transport of the caller's own
            found = ConnectionLost(
                f"The poll failed in an unforeseen way: {type(error).__name__}.", charge=Charge.NO
            )
        finally:
            self._poll_slots.release()
        if isinstance(found, TaskRecord) and found.status is TaskStatus.SUCCESS:
            self.succeeded_at = self.clock.wall()
        if self.events.wants(Polled):
            about = {"job": job, "task_id": task_id, "api": name, "trace": trace}
            self.events.emit(self._polled_event(found, about | {"at": self.clock.wall()}))
        return found

    @staticmethod
    def _polled_event(found: TaskRecord | FluxError, about: dict[str, Any]) -> Polled:
        if isinstance(found, FluxError):
            return Polled(**about, error=type(found).__name__)
        ended = found.completed_at
        lag_s = None if ended is None else max(0.0, about["at"] - ended.timestamp())
        return Polled(**about, status=found.status.name, generation_s=found.generation_s, lag_s=lag_s)

    async def _exchange_poll(self, wire: WireRequest, **about: Any) -> WireResponse:
        began = self.clock.monotonic()
        result = await exchange(self, wire, timeout_s=POLL_TIMEOUT_S, **about)
        return self._polled(result, began)

    def _polled(self, result: SendResult, began: float) -> WireResponse:
        """Return the answer to a poll, or raise the error of a missing one; update the pause of polls."""
        try:
            answer = answer_of(result, self.address, is_poll=True)
        except FluxError as error:
            self._update("polls", began, error)
            raise
        self._update("polls", began)
        return answer

    async def upload(self, wire: WireRequest, *, timeout_s: float, deadline: float) -> SendResult:
        """Make one request to the upload host when a slot is free; it costs nothing.

        Raises:
            DeadlineExceeded: No slot was free before the deadline.
        """
        await take(self._upload_slots, deadline, self.clock)
        began = self.clock.monotonic()
        timeout_s = min(timeout_s, max(_SHORTEST_S, deadline - began))
        result = await self._run(
            lambda: exchange(self, wire, timeout_s=timeout_s, address=self.upload_address),
            self._upload_slots.release,
        )
        error = upload_host_unreachable(result.reason) if isinstance(result, NotSent) else None
        self._update("uploads", began, error)
        return result

    async def download(self, fetch: Callable[[], Coroutine[Any, Any, T]], *, deadline: float) -> T:
        """Run a download when a slot is free, where no caller can cancel it."""
        await take(self._download_slots, deadline, self.clock)
        return await self._run(fetch, self._download_slots.release)

    async def _run(self, start: Callable[[], Coroutine[Any, Any, T]], release: Callable[[], None]) -> T:
        if self._closed:
            release()
        self.enter()
        return await self.background.run(start(), when_done=release)

    def _update(
        self, what: Literal["polls", "uploads"], began: float, error: FluxError | None = None
    ) -> None:
        """Begin or end a pause by what became of a request."""
        pause = self.polls if what == "polls" else self.uploads
        now, was_on = self.clock.monotonic(), pause.is_on
        if not isinstance(error, RequestNotSent):
            pause.saw_answer(began, now)  # if its answer was lost, too: there was a connection
        elif not self._closed:
            pause.saw_unreachable(error, began, now, self.rng.random())
            at, seconds, tries = self.clock.wall(), pause.delay(now), pause.tries
            self.events.emit(Paused(at=at, what=what, seconds=seconds, tries=tries, **why(error)))
        if pause.is_on != was_on:
            self.changed.set()


def upload_host_unreachable(reason: str) -> RequestNotSent:
    """Return the error of an upload that was not sent."""
    return RequestNotSent(
        f"The upload host could not be reached: {reason}.",
        advice="Check the network and KIE_UPLOAD_URL; an upload is free and may be made again.",
    )


def _unanswered() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The deadline passed while the submit was in flight.",
        charge=Charge.MAYBE,
        advice="{unanswered_submit}",
    )


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
