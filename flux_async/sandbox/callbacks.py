"""The vendor's callbacks: what is sent about a task, when, when it is given up, and how it is posted.

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
from flux_async.sandbox.ledger import Attempt
from flux_async.sandbox.simulator import Task, Vendor

RETRIES_AFTER: Final = (1 * MINUTE, 5 * MINUTE, 15 * MINUTE)  # each counts from the failure before it
TIME_LIMIT: Final = 15.0  # vendor seconds
ACCEPTED: Final = 200

STALE_BY: Final = 10 * 60.0  # real seconds

SUCCESS: Final = "BFL image generated successfully."
ATTACKER: Final = "https://attacker.example"

# A record and a callback do not spell this one alike.
_WORDING: Final = {envelopes.INTERNAL_AS_RECORDED: envelopes.INTERNAL}

_WRONG_KEY: Final = "not the key of this webhook"
# Sent once whatever comes of it; everything else is the true callback, which is tried again.
_ONCE: Final = {
    Fault.CALLBACK_DUPLICATE,
    Fault.CALLBACK_EARLY,
    Fault.CALLBACK_FORGED,
    Fault.CALLBACK_REPLAYED,
    Fault.CALLBACK_STALE,
    Fault.CALLBACK_WRONG_ID,
}


@attrs.define(eq=False, kw_only=True)
class Callback:
    """What is still to be delivered about one task.

    Attributes:
        left: The deliveries to come, in order: each as the fault it shows, or None where it shows none.
        failures: How often the first of them has failed.
        signature: The headers of the last delivery of the true callback.
    """

    task: Task
    url: str
    left: deque[Fault | None]
    failures: int = 0
    signature: Mapping[str, str] = attrs.Factory(dict)


@attrs.frozen(kw_only=True)
class CallbackRequest:
    """One delivery, ready to be posted."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class CallbackQueue:
    """The callbacks that are still to be sent.

    Args:
        key: Signs all of them; without one they carry no signature.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key
        self._numbers = itertools.count()  # what is due at one moment leaves in the order it came
        self._due: list[tuple[float, int, Callback]] = []
        self._pending: dict[str, tuple[float, Callback]] = {}
        self._changed: set[str] = set()

    def early(self, task: Task) -> Callback | None:
        """Return what is to be sent the moment a task is created, if anything."""
        url = task.request.call_back_url
        if url is None or Fault.CALLBACK_EARLY not in task.faults or Fault.CALLBACK_MISSING in task.faults:
            return None
        return Callback(task=task, url=url, left=deque([Fault.CALLBACK_EARLY]))

    def expect(self, task: Task) -> None:
        """Take up a task whose end is known; its callback falls due when it ends."""
        url, deliveries = task.request.call_back_url, _deliveries(task.faults)
        if url is None or task.ends_at is None or not deliveries:
            return
        late = task.faults.get(Fault.CALLBACK_LATE, 0.0)
        self._put(Callback(task=task, url=url, left=deque(deliveries)), task.ends_at + late)

    @property
    def due_at(self) -> float | None:
        """When the next delivery falls due."""
        return self._due[0][0] if self._due else None

    def take(self, now: float) -> Iterator[Callback]:
        """Yield what is due by `now`, to which the vendor must have advanced; each comes back to `settle`."""
        while self._due and self._due[0][0] <= now:
            yield heapq.heappop(self._due)[2]

    def write(self, callback: Callback, unix_time: float) -> CallbackRequest:
        """Write the delivery that is to be posted now; `unix_time` is real."""
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
        """Write down what became of a delivery and decide what comes next; None is no answer at all.

        Returns:
            Whether the callback was given up.
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
        """Take up a callback that was still to be sent in an earlier life, or was on its way."""
        assert task.request.call_back_url is not None  # noqa: S101 - or there would be none
        url = task.request.call_back_url
        self._put(Callback(task=task, url=url, left=deque(left), failures=failures), at)

    def take_changed(self) -> list[tuple[str, tuple[float, Callback] | None]]:
        """Return by task what is to be sent, and when, where that changed; None where nothing is left."""
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
    """Return what is sent about a task once it has ended, in order."""
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
            # Nothing is made yet: the links look right and lead nowhere.
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
    info = {"originImageUrl": origin, "resultImageUrl": result}
    return Reply({"code": code, "msg": message, "data": {"taskId": named, "info": info}}).encode()


def _unknown_id(task: Task) -> str:
    """Return an id that looks like one of the vendor's and belongs to no task."""
    return hashlib.sha256(task.task_id.encode()).hexdigest()[:32]


logger: logging.Logger = logging.getLogger(__name__)

DELIVERIES_AT_ONCE: Final = 64  # to one receiver
SHORTEST_LIMIT: Final = 1.0  # real seconds: however fast the vendor's clock, receivers need a moment
MAX_REPLY_BYTES: Final = 64 * 1024

_SHORTEST_SLEEP: Final = 0.001  # vendor seconds


class CallbackSender:
    """Delivers the callbacks of one sandbox.

    Args:
        vendor: Whose tasks they are about.
        book: Decides what is due.
        clock: The vendor's time; `speed` of its seconds pass in a real one.
        wall: Real seconds since the epoch, for signatures.
        anywhere: Whether callbacks go to other machines, too. A sandbox is given whatever address a program
            under test knows, and that may be a receiver in production.
    """

    def __init__(
        self,
        vendor: Vendor,
        book: CallbackQueue,
        *,
        clock: VendorClock,
        speed: float,
        wall: Callable[[], float],
        anywhere: bool = False,
    ) -> None:
        self._vendor = vendor
        self._book = book
        self._now = clock
        self._wall = wall
        self._anywhere = anywhere
        self._limit = max(TIME_LIMIT / speed, SHORTEST_LIMIT)
        self._lanes: dict[str, anyio.CapacityLimiter] = {}
        self._sleeps_until = -math.inf
        self._woken: anyio.Event | None = None
        self._web: httpx.AsyncClient | None = None

    def open(self, tasks: TaskGroup, web: httpx.AsyncClient) -> None:
        """Begin to deliver; all of it runs in `tasks`, until they are cancelled."""
        self._web = web
        tasks.start_soon(self._run, tasks)

    async def _run(self, tasks: TaskGroup) -> None:
        while True:
            now, self._woken = self._now(), anyio.Event()
            self._vendor.advance(now)
            for callback in self._book.take(now):
                tasks.start_soon(self.deliver, callback)
            await self._sleep(self._woken)

    async def _sleep(self, woken: anyio.Event) -> None:
        """Sleep until the next delivery is due, or until an earlier one turns up."""
        due = self._book.due_at
        self._sleeps_until = math.inf if due is None else due
        async with anyio.create_task_group() as race:

            async def sleep() -> None:
                # Never less: a clock may be read a moment before what it slept for.
                await self._now.sleep(max(self._sleeps_until - self._now(), _SHORTEST_SLEEP))
                race.cancel_scope.cancel()

            if due is not None:
                race.start_soon(sleep)
            await woken.wait()
            race.cancel_scope.cancel()

    def wake(self) -> None:
        """Say that something new may be due."""
        due = self._book.due_at
        if self._woken is not None and due is not None and due < self._sleeps_until:
            self._woken.set()

    async def deliver(self, callback: Callback) -> None:
        """Post one delivery and have the next one planned; nothing is posted while the app does not run."""
        if self._web is None:
            return
        with holding(self._now):
            async with self._lane(callback.url):
                sent_at = self._now()
                letter = self._book.write(callback, self._wall())
                status = await self._post(self._web, letter)
            if self._book.settle(callback, status, sent_at, self._now()):
                logger.info("callback of task %s given up", callback.task.task_id)
            self._vendor.touch(callback.task)
            self.wake()

    @asynccontextmanager
    async def _lane(self, url: str) -> AsyncIterator[None]:
        """Wait for a slot among the deliveries to one receiver; the others have places of their own."""
        receiver = urlsplit(url).netloc.lower()
        lane = self._lanes.setdefault(receiver, anyio.CapacityLimiter(DELIVERIES_AT_ONCE))
        try:
            async with lane:
                yield
        finally:
            if not lane.borrowed_tokens:
                self._lanes.pop(receiver, None)

    async def _post(self, web: httpx.AsyncClient, letter: CallbackRequest) -> int | None:
        """Post a letter and return the HTTP status, or None where no answer came in time."""
        if not self._anywhere and not await is_this_machine(letter.url):
            logger.warning(
                "callback to %s not sent: it leads to another machine; allow that with --callbacks-anywhere",
                urlsplit(letter.url).netloc,
            )
            return None
        try:
            # httpx bounds each read, not all of them; it ends by itself first wherever that is enough.
            with anyio.fail_after(self._limit + 0.1):
                request = web.build_request(
                    "POST",
                    letter.url,
                    content=letter.body,
                    headers=letter.headers,
                    timeout=httpx.Timeout(self._limit, pool=None),
                    extensions=_as_written(letter.url),
                )
                response = await web.send(request, stream=True)
                try:
                    await _read_a_little(response)
                finally:
                    await response.aclose()
        # Addresses come from outside: what a broken one makes of the URL parser is not only InvalidURL.
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            logger.info("callback to %s failed: %s", letter.url, str(error) or type(error).__name__)
            return None
        except Exception:  # a mistake in one delivery must not end the sandbox
            logger.exception("callback to %s failed", letter.url)
            return None
        if response.status_code != ACCEPTED:
            logger.info("callback to %s failed: HTTP %s", letter.url, response.status_code)
        return response.status_code


async def is_this_machine(url: str) -> bool:
    """Say whether an address leads to this machine, by all that its name resolves to."""
    try:
        parts = urlsplit(url)
        found = await anyio.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(address[4][0].partition("%")[0]).is_loopback for address in found)
    except (OSError, ValueError):
        return False


async def _read_a_little(response: httpx.Response) -> None:
    """Read the body, so that the connection can be used again, but only if it is short."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            return


def _as_written(url: str) -> dict[str, bytes]:
    """Return the extension that asks for a URL's path and query byte for byte; httpx would tidy them."""
    if not all("!" <= letter <= "~" for letter in url):
        return {}  # cannot be sent as it is
    whole = url.partition("#")[0].partition("://")[2]
    start = min((whole.index(mark) for mark in "/?" if mark in whole), default=len(whole))
    target = whole[start:]
    return {"target": (target if target.startswith("/") else f"/{target}").encode()}
