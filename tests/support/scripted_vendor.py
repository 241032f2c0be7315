"""The vendor as a transport, for tests without a network: every submit makes a task, every poll reports it.

It speaks both APIs: answers are written in the shapes of the kontext API and translated for the other. A
task is known only to the API that it was submitted to.

Tests change its behaviour through its attributes. ``script`` overrides a whole path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import monotonic, time
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

import attrs

from flux_async import FluxClient, JournalError
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.api.models_table import ApiName
from flux_async.api.webhooks import attempt_in
from flux_async.models import CallbackEvent, TaskId
from flux_async.testing import VirtualClock
from flux_async.transport import Answered, FileStream, NotSent, SendResult, Unknown
from jobs_wire import api_of, as_jobs, flat, segment_of

KEY = "k-secret-0123456789"
"""API key of the tests."""

ADDRESS = "http://127.0.0.1:1"
"""Address of the API; nothing listens there."""

PRICE = 5.0
"""Credits of a task."""

Answer: TypeAlias = SendResult | Callable[[WireRequest], SendResult]


def answer(
    data: Any, code: int = 200, *, status: int = 200, msg: str = "success", **headers: str
) -> Answered:
    """Return an answer in the vendor's envelope."""
    body = json.dumps({"code": code, "msg": msg, "data": data}).encode()
    return Answered(WireResponse(status=status, headers=headers, body=body))


def task_record(flag: int | None = 0, task_id: str = "t1", **fields: Any) -> Answered:
    """Return an answer of record-info; flag 1 is success."""
    response = {"resultImageUrl": f"https://files.example/{task_id}.jpg"} if flag == 1 else None
    return answer({"taskId": task_id, "successFlag": flag, "response": response} | fields)


def echo(_number: int, sent: dict[str, Any]) -> str:
    """Return ``paramJson`` of a vendor that echoes requests."""
    return json.dumps(sent, sort_keys=True)


def one_task() -> dict[str, list[Answer]]:
    """Return a script with one task, ``t1``, that has ended at the third poll."""
    return {
        "generate": [answer({"taskId": "t1"})],
        "record-info": [task_record(0), task_record(0), task_record(1)],
        "credit": [answer(42.5)],
    }


@attrs.define(eq=False)
class VendorTask:
    """A task that was made, and charged.

    Attributes:
        api: The API that it was submitted to, which alone has its record.
        task_id: Its id: ``t`` and the number of its submit, from 0.
        number: That number; -1 of a task of another client.
        sent: The body of its submit.
        made_at: Creation time in seconds since the epoch.
        ready_at: Monotonic time from which it has ended, unless its polls decide.
        polls: Number of its polls.
        has_ended: Whether a poll has found it ended.
    """

    api: ApiName
    task_id: str
    number: int
    sent: dict[str, Any]
    made_at: float
    ready_at: float
    polls: int = 0
    has_ended: bool = False

    @property
    def attempt(self) -> str:
        """Id of the attempt in its callback address."""
        found = attempt_in(urlsplit(self.sent["callBackUrl"]).query)
        assert found is not None
        return found


@attrs.define(kw_only=True, eq=False, slots=False, repr=False)
class ScriptedVendor:
    """Makes tasks, ends them after some polls or seconds, echoes requests, calls back, loses answers.

    Hooks are called with the number of the submit, from 0. It calls back while it is entered
    (``async with``).

    Attributes:
        clock: Virtual time; None for real time.
        api: The API of tasks that are not submitted.
        script: Answers by the last segment of a path, such as ``"generate"``: in turn, the last one repeated.
            Paths that are left out are answered by the methods ``generate`` and ``record`` and the balance.
        files: Opens downloads.
        latency_s: Seconds until a request arrives.
        reply_s: Seconds from there until its answer arrives.
        is_reachable: Returns whether connections can be made at a monotonic time.
        balance: Credits; without enough of them a submit is refused with 402.
        price: Returns the credits of a task.
        charges_at_end: Whether tasks are charged when a poll finds them ended, not at their submit.
        refunds: Whether a task that a poll finds failed is refunded.
        polls: Number of polls at which a task has ended.
        generation_s: Seconds after which it has ended, in place of ``polls``; also a function of the number.
        makes_task: Returns whether a submit makes a task; one that makes none is not answered.
        loses_answer: Returns whether the answer to a submit is lost.
        answers_with: Returns the number of the task whose id answers a submit, or another answer.
        ends: Returns the flag of an ended task.
        shows: Returns ``paramJson`` of a task's record; None leaves it out.
        has_times: Whether records contain when a task began and ended.
        inbox: Receives callbacks; any object with ``receive(event)``.
        calls_after: Returns the seconds from the end of a task to its callback; None sends none.
        signed: Whether callbacks are signed.
        seen: Requests with their monotonic time of arrival.
        sent: Bodies of all submits.
        tasks: Tasks in the order of their submits.
        refused: Number of submits refused with 402.
        not_connected: Number of requests for which no connection could be made.
        in_flight: Requests being answered.
        most_in_flight: The most at once.
        most_unfinished: The most tasks at once that no poll had found ended.
        closed: Whether it was closed.
    """

    clock: VirtualClock | None = None
    api: ApiName = "kontext"
    script: dict[str, list[Answer]] = attrs.field(factory=dict)
    files: Callable[[str], AbstractAsyncContextManager[FileStream]] | None = None
    latency_s: float = 0.0
    reply_s: float = 0.0
    is_reachable: Callable[[float], bool] = lambda _: True
    balance: float = 1e9
    price: Callable[[int], float] = lambda _: PRICE
    charges_at_end: bool = False
    refunds: bool = False
    polls: int = 2
    generation_s: float | Callable[[int], float] | None = None
    makes_task: Callable[[int], bool] = lambda _: True
    loses_answer: Callable[[int], bool] = lambda _: False
    answers_with: Callable[[int], int | SendResult] = lambda number: number
    ends: Callable[[int], int] = lambda _: 1
    shows: Callable[[int, dict[str, Any]], str | None] = lambda _number, _sent: None
    has_times: bool = False
    inbox: Any = None
    calls_after: Callable[[VendorTask], float | None] = lambda _: 0.0
    signed: bool = True
    seen: list[tuple[float, WireRequest]] = attrs.field(factory=list)
    sent: list[dict[str, Any]] = attrs.field(factory=list)
    tasks: list[VendorTask] = attrs.field(factory=list)
    refused: int = 0
    not_connected: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    most_unfinished: int = 0
    closed: bool = False
    _by_id: dict[str, VendorTask] = attrs.field(factory=dict)
    _unfinished: int = 0
    _arrival: asyncio.Event = attrs.field(factory=asyncio.Event)
    _group: asyncio.TaskGroup | None = None
    _deliveries: list[asyncio.Task[None]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.script.setdefault("generate", [self.generate])
        self.script.setdefault("record-info", [self.record])
        self.script.setdefault("credit", [lambda _: answer(self.balance)])

    # --- time ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return monotonic seconds."""
        return monotonic() if self.clock is None else self.clock.now

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return time() if self.clock is None else self.clock.wall()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await (asyncio.sleep if self.clock is None else self.clock.sleep)(seconds)

    def client(self, **options: Any) -> FluxClient:
        """Return a client of this vendor on its clock."""
        return FluxClient(KEY, ADDRESS, **({"transport": self, "clock": self.clock} | options))

    # --- the transport ------------------------------------------------------------------------------------

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Answer a request; see :class:`flux_async.transport.Transport`."""
        if not self.is_reachable(self.now()):
            self.not_connected += 1
            return NotSent("connection refused")
        self.seen.append((self.now(), request))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.sleep(self.latency_s)
            answers = self.script[segment_of(request.path)]
            following = answers.pop(0) if len(answers) > 1 else answers[0]
            found = following(request) if callable(following) else following
            if self.reply_s:
                await self.sleep(self.reply_s)
        finally:
            self.in_flight -= 1
        return as_jobs(found) if api_of(request.path) == "jobs" else found

    def fetch(self, url: str, **_: object) -> AbstractAsyncContextManager[FileStream]:
        """Open a file."""
        if self.files is None:
            raise NotImplementedError
        return self.files(url)

    async def aclose(self) -> None:
        """Record that it was closed."""
        self.closed = True

    def generate(self, request: WireRequest) -> SendResult:
        """Make a task and answer with its id, unless a hook decides otherwise."""
        number, api = len(self.sent), api_of(request.path)
        body = json.loads(request.body or b"")
        self.sent.append(flat(body) if api == "jobs" else body)
        self._arrival.set()
        if self.balance < self.price(number):
            self.refused += 1
            return answer(None, 402, msg="insufficient credits")
        if not self.makes_task(number):
            return Unknown("dropped")
        self.balance -= 0.0 if self.charges_at_end else self.price(number)
        seconds = self.generation_s(number) if callable(self.generation_s) else self.generation_s or 0.0
        self.add_task(f"t{number}", self.sent[number], api=api, number=number, seconds=seconds)
        if self.loses_answer(number):
            return Unknown("dropped")
        found = self.answers_with(number)
        return answer({"taskId": f"t{found}"}) if isinstance(found, int) else found

    def add_task(
        self,
        task_id: str,
        sent: dict[str, Any],
        *,
        api: ApiName | None = None,
        number: int = -1,
        seconds: float = 0.0,
    ) -> None:
        """Make a task that ends after ``seconds``; left out, one of another client that has ended."""
        task = VendorTask(api or self.api, task_id, number, sent, self.wall(), self.now() + seconds)
        self.tasks.append(task)
        self._by_id[task_id] = task
        self._unfinished += 1
        self.most_unfinished = max(self.most_unfinished, self._unfinished)
        if self._group is not None and "callBackUrl" in sent:
            self._deliveries.append(self._group.create_task(self.deliver(task)))

    def record(self, request: WireRequest) -> SendResult:
        """Report a task."""
        task = self._by_id.get(str(request.query["taskId"]))
        if task is None or task.api != api_of(request.path):
            return answer(None, 422, msg="The record does not exist")
        task.polls += 1
        is_over = task.polls >= self.polls if self.generation_s is None else self.now() >= task.ready_at
        if is_over and not task.has_ended:
            task.has_ended = True
            self._unfinished -= 1
            self._settle(task)
        fields: dict[str, Any] = {}
        shown = self.shows(task.number, task.sent)
        if shown is not None:
            fields["paramJson"] = shown
        if self.has_times:
            fields["createTime"] = int(task.made_at) * 1000
            if is_over:
                fields["completeTime"] = int(self.wall() - self.now() + task.ready_at) * 1000
        return task_record(self.ends(task.number) if is_over else 0, task.task_id, **fields)

    def _settle(self, task: VendorTask) -> None:
        price, has_image = self.price(task.number), self.ends(task.number) == 1
        if self.charges_at_end and has_image:
            self.balance -= price
        if self.refunds and not has_image:
            self.balance += price

    # --- callbacks ----------------------------------------------------------------------------------------

    async def deliver(self, task: VendorTask) -> None:
        """Call back when a task has ended."""
        after = self.calls_after(task)
        if after is None:
            return
        await self.sleep(max(0.0, task.ready_at - self.now()) + after)
        with contextlib.suppress(JournalError):  # the inbox is closed
            await self.call_back(task, inbox=self.inbox)

    async def call_back(self, task: VendorTask, task_id: str | None = None, *, inbox: Any) -> None:
        """Notify an inbox that the attempt of a task has ended, under its own task id or another."""
        event = CallbackEvent(
            task_id=TaskId(task_id or task.task_id), code=200, attempt_id=task.attempt, signed=self.signed
        )
        await inbox.receive(event)

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._group is not None
        for delivery in self._deliveries:
            delivery.cancel()
        await self._group.__aexit__(None, None, None)
        self._group = None

    # --- what it has seen ---------------------------------------------------------------------------------

    @property
    def submits(self) -> int:
        """Number of submits that arrived."""
        return len(self.sent)

    @property
    def submitted(self) -> list[str]:
        """Images of all submits, in order."""
        return [sent["inputImage"] for sent in self.sent]

    @property
    def charged(self) -> Counter[str]:
        """Number of charges of each image."""
        return Counter(task.sent["inputImage"] for task in self.tasks)

    @property
    def polled(self) -> list[tuple[float, str]]:
        """Polls: time and task id."""
        return [(at, str(request.query["taskId"])) for at, request in self.seen if "taskId" in request.query]

    def tasks_of(self, image: str) -> list[str]:
        """Return the ids of the tasks that were made of an image."""
        return [task.task_id for task in self.tasks if task.sent.get("inputImage") == image]

    def count(self, path: str) -> int:
        """Return the number of requests to a path that ends so, by its name in the kontext API."""
        return sum(segment_of(request.path) == path for _, request in self.seen)

    async def wait_for_submits(self, count: int, *, within_s: float = 60.0) -> None:
        """Wait until so many submits have arrived."""
        async with asyncio.timeout(within_s):
            while len(self.sent) < count:
                self._arrival.clear()
                await self._arrival.wait()
