"""What all clients of one account share: its pace, its places, its connections, its loose ends.

A submit goes through these gates, in this order: a task in flight less than the limit → a submit in the air
less than the limit → a permit of the pace → POST at once. Nothing waits between the permit and the POST.

Until the first submit has been accepted, submits go one at a time: a wrong key or an empty balance then costs
one request, not one for every picture that was waiting.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import attrs

from flux_async.clock import Clock
from flux_async.errors import (
    Charge,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    FluxError,
    RequestNotSent,
    Scope,
    WrongEventLoop,
)
from flux_async.models import ImageRequest, TaskId, UnclaimedTask
from flux_async.policy.admission import Admission
from flux_async.protocol.envelope import READ_ADVICE, WireRequest, WireResponse
from flux_async.protocol.wire import build_submit, parse_submit
from flux_async.transport import Answered, NotSent, Transport, Truth
from flux_async.transport.shielded import ExchangeHost

logger = logging.getLogger("flux_async")

T = TypeVar("T")

SUBMIT_TIMEOUT_S = 60.0
_MOST_UNCLAIMED = 10_000


@attrs.define(kw_only=True, eq=False)
class Account:
    """One account on one event loop.

    Attributes:
        transport: Makes the requests.
        admission: The pace of submits.
        clock: The reader of time.
        rng: The source of jitter.
    """

    transport: Transport = attrs.field(repr=False)
    admission: Admission
    clock: Clock = attrs.field(repr=False)
    rng: random.Random = attrs.field(repr=False)
    _exchanges: ExchangeHost = attrs.field(factory=ExchangeHost, init=False, repr=False)
    _unclaimed: deque[UnclaimedTask] = attrs.field(
        factory=partial(deque, maxlen=_MOST_UNCLAIMED), init=False, repr=False
    )
    _in_flight: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _submits: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _looks: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _pace: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False, repr=False)
    _proven: bool = attrs.field(default=False, init=False)
    _halts: int = attrs.field(default=0, init=False)
    _halted_by: FluxError | None = attrs.field(default=None, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        limits = self.admission.limits
        self._in_flight = asyncio.Semaphore(limits.in_flight)
        self._looks = asyncio.Semaphore(limits.connections)
        self._submits = asyncio.Semaphore(1)  # widened when the first submit is accepted

    def enter(self) -> None:
        """Check that this account may be used here and now; the first use binds it to the running loop.

        Raises:
            ClientClosed: After ``aclose``.
            WrongEventLoop: On another loop than the first.
        """
        if self._closed:
            raise ClientClosed("This client is closed.")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise WrongEventLoop("This client belongs to another event loop.")

    async def aclose(self) -> None:
        """Let submits in the air come home, end everything else, close the connections."""
        if self._closed:
            return
        self.enter()
        self._closed = True
        await self._exchanges.aclose()
        await self.transport.aclose()

    # --- loose ends ---------------------------------------------------------------------------------------

    @property
    def unclaimed(self) -> tuple[UnclaimedTask, ...]:
        """Submits whose callers left before they could be told the task id."""
        return tuple(self._unclaimed)

    def leave(self, request: ImageRequest, task_id: TaskId) -> None:
        """Remember a paid task whose caller has gone."""
        logger.warning("the caller of task %s has left; it is paid: take it up with wait()", task_id)
        self._unclaimed.append(UnclaimedTask(request=request, task_id=task_id))

    def claim(self, task_id: TaskId) -> None:
        """Forget an unclaimed task: somebody has its picture."""
        self._unclaimed = deque(
            (loose for loose in self._unclaimed if loose.task_id != task_id), maxlen=_MOST_UNCLAIMED
        )

    def _abandoned(self, request: ImageRequest, answer: TaskId | FluxError) -> None:
        if not isinstance(answer, FluxError):
            self.leave(request, answer)
        elif answer.charge is not Charge.NO:
            logger.warning("a submit whose caller has left is in doubt: %s", answer)
            self._unclaimed.append(UnclaimedTask(request=request, error=answer))

    # --- spending -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def task_in_flight(self, deadline: float) -> AsyncIterator[None]:
        """Hold one of the places for tasks that are submitted and not finished."""
        await self._take(self._in_flight, deadline)
        try:
            yield
        finally:
            self._in_flight.release()

    @property
    def halts(self) -> int:
        """How often the vendor has said that no submit can succeed; give it to :meth:`submit`."""
        return self._halts

    async def submit(self, request: ImageRequest, *, deadline: float, halts: int) -> TaskId:
        """Make one POST and return the task it made.

        A submit that was waiting here when the vendor turned the account away (401, 402 …) is not sent: it
        ends with that same error.

        Raises:
            FluxError: With the charge and the scope of what happened.
        """
        await self._take(self._submits, deadline)
        try:
            await self._await_permit(deadline)
            self._check_open(halts)
        except BaseException:
            self._submits.release()
            raise
        answer = await self._exchanges.run(
            self._post(build_submit(request)),
            when_done=self._submits.release,
            when_abandoned=partial(self._abandoned, request),
        )
        if isinstance(answer, FluxError):
            raise answer
        return answer

    def _check_open(self, halts: int) -> None:
        """Refuse what was waiting here while the client was closed or the account turned away."""
        self.enter()
        if self._halts != halts and self._halted_by is not None:
            raise copy.copy(self._halted_by)

    async def _post(self, wire: WireRequest) -> TaskId | FluxError:
        truth = await self.transport.exchange(wire, timeout_s=SUBMIT_TIMEOUT_S)
        try:
            task_id = parse_submit(_answered(truth))
        except FluxError as error:
            if error.scope is Scope.STOP:
                self._halts += 1
                self._halted_by = error
            return error
        if not self._proven:
            self._proven = True
            for _ in range(self.admission.limits.submits_in_air - 1):
                self._submits.release()
        return task_id

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
        try:
            async with asyncio.timeout(max(0.0, deadline - self.clock.monotonic())):
                await place.acquire()
        except TimeoutError:
            raise _too_late() from None

    # --- looking ------------------------------------------------------------------------------------------

    async def look(self, wire: WireRequest, *, timeout_s: float) -> WireResponse:
        """Make one request that costs nothing.

        Raises:
            RequestNotSent, ConnectionLost: There is no whole answer; charge NO.
        """
        truth = await self.aside(lambda: self.transport.exchange(wire, timeout_s=timeout_s))
        return _answered(truth, looking=True)

    async def aside(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what may be given up, when a place is free, in a coroutine that no caller can cancel."""
        await self._looks.acquire()
        if self._closed:
            self._looks.release()
        self.enter()
        return await self._exchanges.run(start(), when_done=self._looks.release)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed before the request could be sent.")


def _answered(truth: Truth, *, looking: bool = False) -> WireResponse:
    """Return the answer there is, or raise what its absence means."""
    if isinstance(truth, Answered):
        return truth.response
    if isinstance(truth, NotSent):
        raise RequestNotSent(f"The API could not be reached: {truth.reason}.")
    fields: dict[str, Any] = {"charge": Charge.NO, "advice": READ_ADVICE} if looking else {}
    raise ConnectionLost(f"The request was sent, but no whole answer came: {truth.reason}.", **fields)
