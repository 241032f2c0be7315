"""Posts the callbacks: sleeps until one is due, and lets no receiver hold up another."""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx
from anyio.abc import TaskGroup

from flux_async.sandbox.callbacks import ACCEPTED, TIME_LIMIT, Callback, CallbackBook, Letter
from flux_async.sandbox.clock import VendorClock, work_on
from flux_async.sandbox.fetcher import DIRECT, USER_AGENT, trust
from flux_async.sandbox.simulator import Vendor

logger: logging.Logger = logging.getLogger(__name__)

DELIVERIES_AT_ONCE: Final = 64  # to one receiver
SHORTEST_LIMIT: Final = 1.0  # real seconds: however fast the vendor's clock, receivers need a moment
MAX_REPLY_BYTES: Final = 64 * 1024

# Below what servers commonly allow (5 s): a connection they close under a delivery would fail it.
_KEEP_ALIVE: Final = 2.0
_SHORTEST_SLEEP: Final = 0.001  # vendor seconds


@asynccontextmanager
async def callback_client() -> AsyncIterator[httpx.AsyncClient]:
    """Open the HTTP client for callbacks: no redirects, no cookies, nothing kept but connections."""
    async with httpx.AsyncClient(
        verify=trust(),
        headers={"User-Agent": USER_AGENT},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        mounts=dict.fromkeys(DIRECT),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_ALIVE),
    ) as client:
        yield client


class Courier:
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
        book: CallbackBook,
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
        with work_on(self._now):
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
        """Wait for a place among the deliveries to one receiver; the others have places of their own."""
        receiver = urlsplit(url).netloc.lower()
        lane = self._lanes.setdefault(receiver, anyio.CapacityLimiter(DELIVERIES_AT_ONCE))
        try:
            async with lane:
                yield
        finally:
            if not lane.borrowed_tokens:
                self._lanes.pop(receiver, None)

    async def _post(self, web: httpx.AsyncClient, letter: Letter) -> int | None:
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
