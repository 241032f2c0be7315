"""Vendors for batches, on the scripted transport: one that is asked, and one that calls back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import attrs
import pytest

from flux_async import FluxClient, JournalError, Outcome
from flux_async.api.webhooks import CallbackEndpoint, attempt_in
from flux_async.batch.runner import run_batch
from flux_async.journal.store import Journal
from flux_async.models import CallbackEvent, TaskId
from flux_async.transport import Unknown

_ENDLESS_S = 3600.0


@pytest.fixture
def vendor(transport: Any, make: Any) -> Any:
    """A vendor that makes a new task for every submit and has its picture at the second look."""
    looks: Counter[str] = Counter()
    numbers = iter(range(10_000))

    def look(request: Any) -> Any:
        task = request.query["taskId"]
        looks[task] += 1
        return make.record(int(looks[task] > 1), task)

    transport.script["generate"] = [lambda request: make.answer({"taskId": f"t{next(numbers)}"})]
    transport.script["record-info"] = [look]
    return transport


@attrs.define
class Call:
    """One submit as the vendor saw it."""

    task_id: str
    sent: dict[str, Any]
    ready_at: float

    @property
    def attempt(self) -> str:
        """The id in the address it was given."""
        found = attempt_in(urlsplit(self.sent["callBackUrl"]).query)
        assert found is not None
        return found


@attrs.define(eq=False, slots=False)
class CallingVendor:
    """A vendor that calls back, through whatever inbox it is given; it may lose answers and calls."""

    transport: Any
    clock: Any
    make: Any
    inbox: Any = None
    calls: list[Call] = attrs.field(factory=list)
    loses_answer: Callable[[int], bool] = lambda _: False
    makes_task: Callable[[int], bool] = lambda _: True
    calls_after: Callable[[Call], float | None] = lambda _: 0.0
    signed: bool = True
    submits: int = 0
    generation_s: float = 12.0
    endpoint: CallbackEndpoint = attrs.field(
        factory=lambda: CallbackEndpoint("https://ours.example/flux-callback", key="hook")
    )
    images: list[str] = attrs.field(factory=lambda: [f"https://pictures.example/{n}.jpg" for n in range(12)])
    _group: asyncio.TaskGroup | None = None
    _deliveries: list[asyncio.Task[None]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.transport.script["generate"] = [self.generate]
        self.transport.script["record-info"] = [self.record]

    def generate(self, request: Any) -> Any:
        """Make a task, if it pleases; answer, if it pleases; call when it is done."""
        number, self.submits = self.submits, self.submits + 1
        if self.makes_task(number):
            call = Call(f"t{number}", json.loads(request.body), self.clock.now + self.generation_s)
            self.calls.append(call)
            if self._group is not None and "callBackUrl" in call.sent:
                self._deliveries.append(self._group.create_task(self.deliver(call)))
        if self.loses_answer(number) or not self.makes_task(number):
            return Unknown("dropped")
        return self.make.answer({"taskId": f"t{number}"})

    def record(self, request: Any) -> Any:
        """Tell how a task stands, with the echo of what was sent."""
        task = request.query["taskId"]
        call = next((c for c in self.calls if c.task_id == task), None)
        if call is None:
            return self.make.answer(None, 422, msg="The record does not exist")
        done = self.clock.now >= call.ready_at
        return self.make.record(int(done), task, paramJson=json.dumps(call.sent, sort_keys=True))

    async def deliver(self, call: Call) -> None:
        """Call back when the task has ended."""
        after = self.calls_after(call)
        if after is None:
            return
        await self.clock.sleep(max(0.0, call.ready_at - self.clock.now) + after)
        with contextlib.suppress(JournalError):  # nobody listens any more
            await self.tell(call, inbox=self.inbox)

    async def tell(self, call: Call, task_id: str | None = None, *, inbox: Any) -> None:
        """Say to an inbox that the attempt of a call has ended, in its own task or in another."""
        event = CallbackEvent(
            task_id=TaskId(task_id or call.task_id), code=200, attempt_id=call.attempt, signed=self.signed
        )
        await inbox.receive(event)

    def add_stranger(self, task_id: str) -> None:
        """Have a task of the same account that was made from another picture."""
        self.calls.append(Call(task_id, {"prompt": "p", "inputImage": "https://x.example/"}, 0.0))

    async def collect(
        self,
        client: FluxClient,
        path: Path | str,
        images: Iterable[Any] | AsyncIterable[Any] | None = None,
        **options: Any,
    ) -> list[Outcome]:
        """Run a batch whose callbacks arrive in the journal of the run."""
        options = {"callbacks": self.endpoint} | options
        async with Journal(path, clock=client.session.clock) as journal:
            await journal.aclose()
            await journal.open(account=client.fingerprint)
            self.inbox = journal
            wanted = self.images if images is None else images
            async with run_batch(client, wanted, journal=journal, **options) as batch:
                with self.patience():
                    return [outcome async for outcome in batch]

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Have a batch that would go on for ever fail its test."""
        waiter, was_late = asyncio.current_task(), False
        assert waiter is not None
        assert self._group is not None

        async def lose_it() -> None:
            nonlocal was_late
            await self.clock.sleep(_ENDLESS_S)
            was_late = waiter.cancel()

        losing = self._group.create_task(lose_it())
        try:
            yield
        except asyncio.CancelledError:
            if was_late:
                waiter.uncancel()
                pytest.fail("The batch does not end.")
            raise
        finally:
            losing.cancel()

    @staticmethod
    def kinds(outcomes: list[Outcome]) -> dict[type, int]:
        """Count outcomes by their class."""
        return dict(Counter(type(outcome) for outcome in outcomes))

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._group is not None
        for delivery in self._deliveries:
            delivery.cancel()
        await self._group.__aexit__(None, None, None)
        self._group = None

    def tasks_of(self, image: str) -> list[str]:
        """The tasks that were made, and paid, for a picture."""
        return [call.task_id for call in self.calls if call.sent["inputImage"] == image]


@pytest.fixture
def make_calling(transport: Any, clock: Any, make: Any) -> Callable[[], CallingVendor]:
    """Make vendors that call back, for tests that want several."""
    return lambda: CallingVendor(transport, clock, make)


@pytest.fixture
async def calling(make_calling: Callable[[], CallingVendor]) -> AsyncIterator[CallingVendor]:
    """A vendor that calls back."""
    async with make_calling() as vendor:
        yield vendor
