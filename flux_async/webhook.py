"""ASGI application that receives the vendor's callbacks, for any framework that can mount one.

Rules:

1. Anyone who has the address can call it. So no request costs more than a bounded time and a bounded amount
   of memory, and an answer is one of a few fixed texts.
2. A request is checked in one order: method, content type, declared length, body, shape, signature. The first
   failed check decides the answer.
3. 200 is sent after the commit. The vendor repeats a delivery without it, and a repeated delivery is answered
   200 again.
4. The vendor waits 15 s for an answer (API page, "Webhook Callback Mechanism"), so all work comes after it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import attrs

from flux_async.api.webhooks import Keys, check_keys, read_callback
from flux_async.clock import Clock, SystemClock
from flux_async.errors import CallbackRejected, FluxError, InvalidInput, WrongEventLoop, shown
from flux_async.journal.inbox import Inbox
from flux_async.models import CallbackEvent
from flux_async.transport.background import Deadline

logger: logging.Logger = logging.getLogger("flux_async")

LARGEST_BODY = 256 * 1024
"""Most bytes of a callback's body; the vendor's have less than one thousand."""
SMALL_BODY = 16 * 1024
"""Bytes of a body that is read whatever the memory of the others."""
MOST_HELD = 8 * 1024 * 1024
"""Most bytes of all bodies being read, without small ones."""
TIMEOUT_S = 10.0
"""Seconds for a body to arrive whole, and again for a commit; each may be set for a receiver."""

_RETRY_AFTER_S = 10
_LOG_EVERY_S = 1.0
_LENGTH = re.compile(rb"[0-9]{1,15}")
_REASONS = {
    400: "not a callback",
    401: "bad signature",
    405: "method not allowed",
    408: "too slow",
    413: "too large",
    415: "not application/json",
    503: "not now",
}
_RECEIVED = b'{"status":"received"}'

# As wide as any framework's own types, so that all of them can mount it without a cast.
Scope: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]


class CallbackStore(Protocol):
    """The part of a journal that a receiver uses."""

    async def receive(self, event: CallbackEvent) -> None:
        """Store a callback; return after the commit."""


class WebhookReceiver:
    """ASGI application that verifies the vendor's callbacks, stores them, and passes them on.

    It answers at every path it is mounted at. With ``async with``, or served by itself, it opens the journal
    of a path at once and closes it in the end; mounted in another application, it opens it when the first
    callback comes, and :meth:`aclose` closes it.

    Args:
        journal: Stores callbacks: an open :class:`Journal`, or the path of one, which another process may be
            running; None stores nothing, and only ``on_callback`` receives them.
        key: The webhook keys of kie.ai/settings: one, or several while one replaces another; None accepts
            unsigned callbacks.
        on_callback: Called with each callback after its commit, ``client.notify`` for instance. The vendor is
            waiting, so it must be quick, and no coroutine function; an exception of it is logged only.
        clock: The reader of time.
        body_timeout_s: Seconds in which a body must have arrived whole.
        commit_timeout_s: Seconds after which a commit counts as failed; it may still succeed.

    Raises:
        InvalidInput: One of the arguments cannot be used.
        JournalError: ``journal`` is no path of a journal.
    """

    def __init__(
        self,
        journal: CallbackStore | str | os.PathLike[str] | None,
        *,
        key: Keys = None,
        on_callback: Callable[[CallbackEvent], object] | None = None,
        clock: Clock | None = None,
        body_timeout_s: float = TIMEOUT_S,
        commit_timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._clock = clock or SystemClock()
        self._keys = check_keys(key)
        self._on_callback = _checked(on_callback)
        self._own = _OwnInbox(journal, self._clock) if isinstance(journal, str | os.PathLike) else None
        self._store_in: CallbackStore | None = self._own or _checked_store(journal)
        self._body_timeout_s = body_timeout_s
        self._commit_timeout_s = commit_timeout_s
        self._held = 0
        self._refusals = _Refusals(self._clock)
        if not self._keys:
            logger.warning("webhook: no key was given, so callbacks that are not signed are accepted")

    def __repr__(self) -> str:
        return f"<WebhookReceiver with {len(self._keys)} key(s) into {self._store_in!r}>"

    async def __aenter__(self) -> Self:
        if self._own is not None:
            await self._own.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the journal, if this receiver opened it; the next callback would open it again.

        Raises:
            WrongEventLoop: It was opened on another event loop.
        """
        self._refusals.log()
        if self._own is not None:
            await self._own.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await self._lifespan(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case other:
                raise InvalidInput(f"A webhook receiver cannot serve {shown(other)}, only http.")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = list(scope["headers"])
        try:
            _check_head(scope["method"], headers)
            event = self._verified(headers, await self._body(receive), scope.get("query_string", b""))
            await self._store(event)
        except _Gone:
            return
        except _Refused as refused:
            self._refusals.add(refused.reason)
            await _refuse(scope, send, refused)
            return
        self._notify(event)
        await _answer(send, 200, _RECEIVED)

    # --- the steps ----------------------------------------------------------------------------------------

    async def _body(self, receive: Receive) -> bytearray:
        """Read a body within the limits of time and memory."""
        body = bytearray()  # a list of small chunks would take far more memory than their bytes
        try:
            async with Deadline(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Gone
                    chunk, is_more = message.get("body", b""), message.get("more_body", False)
                    self._check_room(len(body) + len(chunk), len(chunk), is_more=is_more)
                    body += chunk
                    self._held += len(chunk)
                    if not is_more:
                        return body
        except TimeoutError:
            raise _Refused(408, is_unread=True) from None
        finally:
            self._held -= len(body)

    def _check_room(self, length: int, grown: int, *, is_more: bool) -> None:
        if length > LARGEST_BODY:
            raise _Refused(413, is_unread=is_more)
        if length > SMALL_BODY and self._held + grown > MOST_HELD:
            raise _Refused(503, is_unread=is_more)

    def _verified(self, headers: list[tuple[bytes, bytes]], body: bytearray, query: bytes) -> CallbackEvent:
        try:
            return read_callback(headers, bytes(body), query, self._keys, now=self._clock.wall())
        except CallbackRejected as error:
            raise _Refused(error.http_status) from None

    async def _store(self, event: CallbackEvent) -> None:
        if self._store_in is None:
            return
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                await self._store_in.receive(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, the vendor is to repeat the delivery
            why = f"nothing in {self._commit_timeout_s:g} s" if isinstance(error, TimeoutError) else error
            self._refusals.log_failure(f"webhook: a callback could not be stored: {why}")
            raise _Refused(503) from None

    def _notify(self, event: CallbackEvent) -> None:
        if self._on_callback is None:
            return
        try:
            self._on_callback(event)
        except Exception:
            logger.exception("webhook: on_callback failed for task %s", event.task_id)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            part = (await receive())["type"].removeprefix("lifespan.")
            try:
                await (self.__aenter__() if part == "startup" else self.aclose())
            except FluxError as error:
                await send({"type": f"lifespan.{part}.failed", "message": str(error)})
            else:
                await send({"type": f"lifespan.{part}.complete"})
            if part != "startup":
                return


# --- answers and log lines --------------------------------------------------------------------------------


class _Gone(Exception):
    """The client disconnected before its body was whole."""


class _Refused(Exception):
    """The answer to a refused request: a status and its fixed text."""

    def __init__(self, status: int, *, is_unread: bool = False) -> None:
        super().__init__(status)
        self.status = status
        self.reason = _REASONS[status]
        self.is_unread = is_unread


async def _refuse(scope: Scope, send: Send, refused: _Refused) -> None:
    headers = []
    if refused.status == 405:  # noqa: PLR2004 - the one status that must name the methods
        headers.append((b"allow", b"POST"))
    if refused.status == 503:  # noqa: PLR2004 - come again
        headers.append((b"retry-after", b"%d" % _RETRY_AFTER_S))
    if refused.is_unread and scope.get("http_version", "1.1").startswith("1"):
        headers.append((b"connection", b"close"))  # no other version of HTTP has this header
    body = json.dumps({"status": "rejected", "reason": refused.reason}, separators=(",", ":")).encode()
    await _answer(send, refused.status, body, *headers, is_head=scope["method"] == "HEAD")


async def _answer(
    send: Send, status: int, body: bytes, *more: tuple[bytes, bytes], is_head: bool = False
) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else body})


@attrs.define(eq=False)
class _Refusals:
    """Logs refused requests with their reasons, at most one line a second.

    The first bad signature is a warning: with a wrong key every callback is refused.
    """

    _clock: Clock
    _counts: Counter[str] = attrs.field(factory=Counter, init=False)
    _logged_at: float = attrs.field(default=-math.inf, init=False)
    _failed_at: float = attrs.field(default=-math.inf, init=False)
    _has_warned: bool = attrs.field(default=False, init=False)

    def add(self, reason: str) -> None:
        self._counts[reason] += 1
        if reason == _REASONS[401] and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "webhook: a callback was refused: not signed with our key, or more than 300 s from our "
                "clock. If it was the vendor's, compare the key with kie.ai/settings"
            )
        if self._clock.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self.log()

    def log(self) -> None:
        """Write the line, unless there is nothing to log."""
        if self._counts:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._counts.items())
            logger.info("webhook: refused: %s", reasons)
            self._counts.clear()
            self._logged_at = self._clock.monotonic()

    def log_failure(self, words: str) -> None:
        """Log that a callback was not stored, at most once a second."""
        now = self._clock.monotonic()
        if now - self._failed_at >= _LOG_EVERY_S:
            self._failed_at = now
            logger.error(words)


# --- the head of a request --------------------------------------------------------------------------------


def _check_head(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse by method and headers alone, before anything of the body is read."""
    fields = [(name.lower(), value.strip()) for name, value in headers]
    lengths = [value for name, value in fields if name == b"content-length"]
    is_unread = lengths not in ([], [b"0"]) or any(name == b"transfer-encoding" for name, _ in fields)
    if method != "POST":
        raise _Refused(405, is_unread=is_unread)
    types = [value for name, value in fields if name == b"content-type"]
    if [kind.partition(b";")[0].strip().lower() for kind in types] != [b"application/json"]:
        raise _Refused(415, is_unread=is_unread)
    if not lengths:
        return
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise _Refused(400, is_unread=True)
    if int(lengths[0]) > LARGEST_BODY:
        raise _Refused(413, is_unread=True)


# --- arguments, and the inbox of a path -------------------------------------------------------------------


def _checked(
    on_callback: Callable[[CallbackEvent], object] | None,
) -> Callable[[CallbackEvent], object] | None:
    given: object = on_callback
    if given is not None and (not callable(given) or _is_coroutine_function(given)):
        raise InvalidInput(
            "on_callback must be a plain function that takes one CallbackEvent.",
            advice="Let it put the event into a queue, as asyncio.Queue.put_nowait does.",
        )
    return on_callback


def _is_coroutine_function(given: object) -> bool:
    return inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(type(given).__call__)


def _checked_store(journal: object) -> Any:
    if journal is not None and not callable(getattr(journal, "receive", None)):
        raise InvalidInput(
            f"journal must be an open Journal, its path or None, not {type(journal).__name__}."
        )
    return journal


class _OwnInbox:
    """An inbox that is opened when it is first needed, on the event loop of its first use."""

    def __init__(self, path: str | os.PathLike[str], clock: Clock) -> None:
        self._inbox = Inbox(path, clock=clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._is_open = False

    def __repr__(self) -> str:
        return repr(self._inbox)

    async def receive(self, event: CallbackEvent) -> None:
        await self.open()
        await self._inbox.receive(event)

    async def open(self) -> None:
        self._bind_to_loop()
        async with self._lock:
            if not self._is_open:
                await self._inbox.open()
                self._is_open = True

    async def aclose(self) -> None:
        self._bind_to_loop()
        async with self._lock:
            self._is_open = False
            await self._inbox.aclose()

    def _bind_to_loop(self) -> None:
        """Belong to the running loop, unless the inbox is open, being opened or being closed on another."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._is_open or self._lock.locked():
            raise WrongEventLoop(
                "The journal of this receiver was opened on another event loop.",
                advice="Make one receiver for each event loop, or close it before its loop ends.",
            )
        self._loop, self._lock = loop, asyncio.Lock()
