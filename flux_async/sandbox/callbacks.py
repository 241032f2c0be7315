"""The vendor's callbacks: their content, time, retries and delivery.

`CallbackQueue` reads no clock and opens no socket; `CallbackSender` posts what is due. Times are vendor
seconds, as in the simulator, except for the timestamp of a signature: receivers compare it with a real clock
(API page, "Webhook Callback Mechanism").
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import hmac
import ipaddress
import itertools
import logging
import math
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import anyio
import attrs
import httpx
from anyio.abc import TaskGroup

from flux_async.sandbox import envelopes
from flux_async.sandbox.clock import VendorClock, holding
from flux_async.sandbox.envelopes import Reply
from flux_async.sandbox.faults import ActiveFaults, Fault
from flux_async.sandbox.files import MINUTE
from flux_async.sandbox.jobs_records import job_callback_of
from flux_async.sandbox.ledger import Attempt
from flux_async.sandbox.models import Api
from flux_async.sandbox.simulator import Task, Vendor

logger: logging.Logger = logging.getLogger(__name__)

RETRIES_AFTER: Final = (1 * MINUTE, 5 * MINUTE, 15 * MINUTE)  # each counts from the failure before it
TIME_LIMIT: Final = 15.0  # vendor seconds
ACCEPTED: Final = 200

DELIVERIES_AT_ONCE: Final = 64  # to one receiver
SHORTEST_LIMIT: Final = 1.0  # real seconds: however fast the vendor's clock, receivers need a moment
MAX_REPLY_BYTES: Final = 64 * 1024

_SHORTEST_SLEEP: Final = 0.001  # vendor seconds

STALE_BY: Final = 10 * 60.0  # real seconds

SUCCESS: Final = "BFL image generated successfully."
ATTACKER: Final = "https://attacker.example"

# A callback spells this message differently from a record.
_WORDING: Final = {envelopes.INTERNAL_AS_RECORDED: envelopes.INTERNAL}

_WRONG_KEY: Final = "not the key of this webhook"
# Sent once, whatever the answer; everything else is the true callback, which is retried.
_ONCE: Final = {
    Fault.CALLBACK_DUPLICATE,
    Fault.CALLBACK_EARLY,
    Fault.CALLBACK_FORGED,
    Fault.CALLBACK_REPLAYED,
    Fault.CALLBACK_STALE,
    Fault.CALLBACK_WRONG_ID,
}

_CLAIMS_SUCCESS: Final = {Fault.CALLBACK_EARLY, Fault.CALLBACK_FORGED, Fault.CALLBACK_REPLAYED}


@attrs.define(eq=False, kw_only=True)
class Callback:
    """The outstanding deliveries about one task.

    Attributes:
        left: The outstanding deliveries, in order: each as its fault, or None.
        failures: Failed attempts of the first of them.
        signature: The headers of the last delivery of the true callback.
    """

    task: Task
    url: str
    left: deque[Fault | None]
    failures: int = 0
    signature: Mapping[str, str] = attrs.Factory(dict)


@attrs.frozen(kw_only=True)
class CallbackRequest:
    """The request of one delivery."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class CallbackQueue:
    """The callbacks that are not yet delivered.

    Args:
        key: Signs them; None for callbacks without a signature.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key
        self._numbers = (
            itertools.count()
        )  # deliveries due at the same time leave in the order of their submits
        self._due: list[tuple[float, int, Callback]] = []
        self._pending: dict[str, tuple[float, Callback]] = {}
        self._changed: set[str] = set()

    def early(self, task: Task) -> Callback | None:
        """Return the callback that is due when a task is created, if there is one."""
        url = task.request.call_back_url
        if url is None or Fault.CALLBACK_EARLY not in task.faults or Fault.CALLBACK_MISSING in task.faults:
            return None
        return Callback(task=task, url=url, left=deque([Fault.CALLBACK_EARLY]))

    def expect(self, task: Task) -> None:
        """Schedule the callback of a task whose end is known."""
        url, deliveries = task.request.call_back_url, _deliveries(task.faults)
        if url is None or task.ends_at is None or not deliveries:
            return
        late = task.faults.get(Fault.CALLBACK_LATE, 0.0)
        self._put(Callback(task=task, url=url, left=deque(deliveries)), task.ends_at + late)

    @property
    def due_at(self) -> float | None:
        """When the next delivery is due."""
        return self._due[0][0] if self._due else None

    def take(self, now: float) -> Iterator[Callback]:
        """Yield the callbacks due by `now`, to which the vendor must have advanced; then `settle` each."""
        while self._due and self._due[0][0] <= now:
            yield heapq.heappop(self._due)[2]

    def write(self, callback: Callback, unix_time: float) -> CallbackRequest:
        """Return the request of the delivery that is due; `unix_time` is real."""
        task, fault = callback.task, callback.left[0]
        named = _unknown_id(task) if fault is Fault.CALLBACK_WRONG_ID else task.task_id
        signature: Mapping[str, str] = {}
        match fault:
            case Fault.CALLBACK_FORGED:
                signature = sign(_WRONG_KEY, named, int(unix_time))
            case Fault.CALLBACK_REPLAYED:
                signature = callback.signature
            case _ if self._key is not None and Fault.CALLBACK_UNSIGNED not in task.faults:
                age = STALE_BY if fault is Fault.CALLBACK_STALE else 0.0
                signature = callback.signature = sign(self._key, named, int(unix_time - age))
            case _:
                pass
        task.account.ledger.call(task.subject)
        headers = {"Content-Type": "application/json", **signature}
        return CallbackRequest(url=callback.url, headers=headers, body=_body(task, named, fault))

    def settle(self, callback: Callback, status: int | None, sent_at: float, now: float) -> bool:
        """Record the status of a delivery, None for no answer, and schedule the next one.

        Returns:
            True if the callback is given up.
        """
        fault, accepted = callback.left[0], status == ACCEPTED
        callback.task.callbacks.append(Attempt(at=sent_at, status=status, fault=fault))
        ledger = callback.task.account.ledger
        ledger.called(accepted=accepted)
        if accepted or fault in _ONCE:
            callback.left.popleft()
            if callback.left:
                self._put(callback, now)
            elif fault is not Fault.CALLBACK_EARLY:
                self._forget(callback)
            return False
        callback.failures += 1
        if callback.failures > len(RETRIES_AFTER):
            ledger.callbacks.given_up += 1
            self._forget(callback)
            return True
        self._put(callback, now + RETRIES_AFTER[callback.failures - 1])
        return False

    def restore(self, task: Task, left: Iterable[Fault | None], failures: int, at: float) -> None:
        """Schedule a callback that an earlier process had not delivered."""
        assert task.request.call_back_url is not None  # noqa: S101 - or there would be none
        url = task.request.call_back_url
        self._put(Callback(task=task, url=url, left=deque(left), failures=failures), at)

    def take_changed(self) -> list[tuple[str, tuple[float, Callback] | None]]:
        """Return the changed callbacks by task, each with its time; None for one that is over."""
        changed, self._changed = self._changed, set()
        return [(task_id, self._pending.get(task_id)) for task_id in changed]

    def _forget(self, callback: Callback) -> None:
        self._pending.pop(callback.task.task_id, None)
        self._changed.add(callback.task.task_id)

    def _put(self, callback: Callback, at: float) -> None:
        self._pending[callback.task.task_id] = (at, callback)
        self._changed.add(callback.task.task_id)
        heapq.heappush(self._due, (at, next(self._numbers), callback))


def sign(key: str, task_id: str, timestamp: int) -> dict[str, str]:
    """Return the signature headers: an HMAC over task id and time of sending, but not over the body."""
    message = f"{task_id}.{timestamp}".encode()
    digest = hmac.new(key.encode(), message, hashlib.sha256).digest()
    return {
        "X-Webhook-Timestamp": str(timestamp),
        "X-Webhook-Signature": base64.b64encode(digest).decode(),
    }


def _deliveries(faults: ActiveFaults) -> list[Fault | None]:
    """Return the deliveries about a task that has ended, in order."""
    if faults.keys() & {Fault.CALLBACK_MISSING, Fault.CALLBACK_EARLY}:
        return []
    for only in (Fault.CALLBACK_STALE, Fault.CALLBACK_WRONG_ID):
        if only in faults:
            return [only]
    forged = [Fault.CALLBACK_FORGED] if Fault.CALLBACK_FORGED in faults else []
    shown = (fault for fault in (Fault.CALLBACK_UNSIGNED, Fault.CALLBACK_LATE) if fault in faults)
    copies = [Fault.CALLBACK_DUPLICATE] * 2 if Fault.CALLBACK_DUPLICATE in faults else []
    replayed = [Fault.CALLBACK_REPLAYED] if Fault.CALLBACK_REPLAYED in faults else []
    return [*forged, next(shown, None), *copies, *replayed]


def _body(task: Task, named: str, fault: Fault | None) -> bytes:
    origin, result = (task.base_url + file.path if file else "" for file in (task.origin, task.result))
    code, message = ACCEPTED, SUCCESS
    match fault:
        case Fault.CALLBACK_EARLY:
            # There is no result yet: the links are of the right form and lead nowhere.
            origin, result = (
                f"{task.base_url}/files/{name}/{_unknown_id(task)}.jpg" for name in ("origin", "result")
            )
        case Fault.CALLBACK_FORGED | Fault.CALLBACK_REPLAYED:
            result = f"{ATTACKER}/{fault}/{task.task_id}.jpg"
        case _ if (failure := task.failure) is not None:
            # The API page shows a failure without ``info``, the vendor's current pages with empty strings.
            code, message = failure.code, _WORDING.get(failure.message, failure.message)
        case _:
            pass
    if task.request.api is Api.JOBS:
        failure = None if fault in _CLAIMS_SUCCESS else task.failure
        return Reply(job_callback_of(task, named, result, failure)).encode()
    info = {"originImageUrl": origin, "resultImageUrl": result}
    return Reply({"code": code, "msg": message, "data": {"taskId": named, "info": info}}).encode()


def _unknown_id(task: Task) -> str:
    """Return an id of the vendor's form that belongs to no task."""
    return hashlib.sha256(task.task_id.encode()).hexdigest()[:32]


class CallbackSender:
    """Delivers the callbacks of one sandbox.

    Args:
        vendor: The vendor, whose tasks the callbacks are about.
        queue: The callbacks.
        clock: The vendor's time; `speed` of its seconds pass in a real one.
        wall: Real seconds since the epoch, for signatures.
        anywhere: Whether callbacks go to other machines too. The program under test may send the address of a
            receiver in production.
    """

    def __init__(
        self,
        vendor: Vendor,
        queue: CallbackQueue,
        *,
        clock: VendorClock,
        speed: float,
        wall: Callable[[], float],
        anywhere: bool = False,
    ) -> None:
        self._vendor = vendor
        self._queue = queue
        self._now = clock
        self._wall = wall
        self._anywhere = anywhere
        self._limit = max(TIME_LIMIT / speed, SHORTEST_LIMIT)
        self._slots: dict[str, anyio.CapacityLimiter] = {}
        self._sleeps_until = -math.inf
        self._woken: anyio.Event | None = None
        self._web: httpx.AsyncClient | None = None

    def open(self, tasks: TaskGroup, web: httpx.AsyncClient) -> None:
        """Start to deliver, in `tasks`, until they are cancelled."""
        self._web = web
        tasks.start_soon(self._run, tasks)

    async def _run(self, tasks: TaskGroup) -> None:
        while True:
            now, self._woken = self._now(), anyio.Event()
            self._vendor.advance(now)
            for callback in self._queue.take(now):
                tasks.start_soon(self.deliver, callback)
            await self._sleep(self._woken)

    async def _sleep(self, woken: anyio.Event) -> None:
        """Sleep until the next delivery is due, or until `wake` announces an earlier one."""
        due = self._queue.due_at
        self._sleeps_until = math.inf if due is None else due
        async with anyio.create_task_group() as race:

            async def sleep() -> None:
                # Never less: a clock can wake a sleeper slightly early.
                await self._now.sleep(max(self._sleeps_until - self._now(), _SHORTEST_SLEEP))
                race.cancel_scope.cancel()

            if due is not None:
                race.start_soon(sleep)
            await woken.wait()
            race.cancel_scope.cancel()

    def wake(self) -> None:
        """Wake the sender if a delivery is due earlier than it expects."""
        due = self._queue.due_at
        if self._woken is not None and due is not None and due < self._sleeps_until:
            self._woken.set()

    async def deliver(self, callback: Callback) -> None:
        """Post one delivery and schedule the next one; without a running app, do nothing."""
        if self._web is None:
            return
        with holding(self._now):
            async with self._slot(callback.url):
                sent_at = self._now()
                request = self._queue.write(callback, self._wall())
                status = await self._post(self._web, request)
            if self._queue.settle(callback, status, sent_at, self._now()):
                logger.info("callback of task %s given up", callback.task.task_id)
            self._vendor.touch(callback.task)
            self.wake()

    @asynccontextmanager
    async def _slot(self, url: str) -> AsyncIterator[None]:
        """Hold one of the slots for deliveries to one receiver."""
        receiver = urlsplit(url).netloc.lower()
        slots = self._slots.setdefault(receiver, anyio.CapacityLimiter(DELIVERIES_AT_ONCE))
        try:
            async with slots:
                yield
        finally:
            if not slots.borrowed_tokens:
                self._slots.pop(receiver, None)

    async def _post(self, web: httpx.AsyncClient, callback: CallbackRequest) -> int | None:
        """Post a request and return the HTTP status, or None if no answer arrives in time."""
        if not self._anywhere and not await is_this_machine(callback.url):
            logger.warning(
                "callback to %s not sent: it leads to another machine; allow that with --callbacks-anywhere",
                urlsplit(callback.url).netloc,
            )
            return None
        try:
            # httpx bounds each read, not their sum; its own timeout comes first where that is enough.
            with anyio.fail_after(self._limit + 0.1):
                request = web.build_request(
                    "POST",
                    callback.url,
                    content=callback.body,
                    headers=callback.headers,
                    timeout=httpx.Timeout(self._limit, pool=None),
                    extensions=_as_written(callback.url),
                )
                response = await web.send(request, stream=True)
                try:
                    await _read_a_little(response)
                finally:
                    await response.aclose()
        # Invalid addresses raise more than InvalidURL.
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            logger.info("callback to %s failed: %s", callback.url, str(error) or type(error).__name__)
            return None
        except Exception:  # an error in one delivery must not end the sandbox
            logger.exception("callback to %s failed", callback.url)
            return None
        if response.status_code != ACCEPTED:
            logger.info("callback to %s failed: HTTP %s", callback.url, response.status_code)
        return response.status_code


async def is_this_machine(url: str) -> bool:
    """Return whether every address that a URL's host resolves to is one of this machine."""
    try:
        parts = urlsplit(url)
        found = await anyio.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(address[4][0].partition("%")[0]).is_loopback for address in found)
    except (OSError, ValueError):
        return False


async def _read_a_little(response: httpx.Response) -> None:
    """Read a short body, so that the connection can be reused."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            return


def _as_written(url: str) -> dict[str, bytes]:
    """Return the extension that sends a URL's path and query unchanged; httpx would normalize them."""
    if not all("!" <= letter <= "~" for letter in url):
        return {}  # cannot be sent as it is
    whole = url.partition("#")[0].partition("://")[2]
    start = min((whole.index(mark) for mark in "/?" if mark in whole), default=len(whole))
    target = whole[start:]
    return {"target": (target if target.startswith("/") else f"/{target}").encode()}
