"""One download, from a result's address to a whole image, checked and kept.

::

    fetch → is it a file? → take its bytes → is it whole? → keep
      │         └ 401, 403, 404, 410: once, ask the vendor for a fresh link and begin again
      └ broke off: go on where it stopped, if the host can send the rest of the same file;
                   begin again, if nothing of it had come

A whole image is given to ``DownloadOrder.keep``. What it comes to is what that returns, or one
:class:`DownloadError`. The coroutine cannot be cancelled by its caller;
when he has left, it ends at the next chunk and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Generic, TypeVar

import attrs

from flux_async.api.common_api import build_download_url, parse_download_url
from flux_async.api.envelope import retry_after_s
from flux_async.errors import (
    DeadlineExceeded,
    DownloadCutShort,
    DownloadError,
    DownloadTimedOut,
    FluxError,
)
from flux_async.files.image_writer import ImageStream, IncomingImage, SavedFile, given_up_error
from flux_async.policy.downloads import (
    REFRESHABLE,
    DownloadAgain,
    DownloadLimits,
    FileHead,
    NoDownload,
    after_failed_download,
    before_resume,
    continues,
    expired,
    headers_to_resume,
    read_head,
    refusal,
)
from flux_async.session import Session
from flux_async.submitter import log
from flux_async.transport import FileStream
from flux_async.transport.background import Deadline

logger: logging.Logger = logging.getLogger("flux_async")

T = TypeVar("T")

_OK = 200
_ABOUT_RANGES = frozenset({206, 416})
_SHORTEST_S = 0.01
_LAST_TRY = 0.1
"""Part of the time in which no other try begins: it would only be cut short."""


@attrs.frozen(kw_only=True)
class DownloadOrder(Generic[T]):
    """What to download, and what to do with it.

    Attributes:
        url: Address of the result.
        destination: The path beside which the image grows; None for a temporary file.
        keep: Receives the whole image; what it returns is what the download returns.
        limits: What is allowed.
        span_s: Seconds for all of it.
        name: What the image is called.
        match_suffix: Give the name the ending that the content has.
    """

    url: str = attrs.field(repr=False)
    destination: Path | None
    keep: Callable[[ImageStream], Awaitable[T]] = attrs.field(repr=False)
    limits: DownloadLimits
    span_s: float
    name: str
    match_suffix: bool = False


@attrs.define(kw_only=True, eq=False)
class Download(Generic[T]):
    """Downloads one result, in one try.

    Args:
        session: Whose transport and clock are used.
        order: What to bring where.
        deadline: When to stop, as monotonic seconds.
        given_up: Whether the caller has left.
    """

    session: Session
    order: DownloadOrder[T]
    deadline: float
    given_up: Callable[[], bool] = attrs.field(repr=False)
    _head: FileHead = attrs.field(factory=FileHead, init=False)
    _address: str = attrs.field(default="", init=False, repr=False)
    _refreshed: bool = attrs.field(default=False, init=False)

    async def run(self) -> T:
        """Fetch the file and have it kept, or leave nothing behind.

        Raises:
            DownloadError: What went wrong.
        """
        order, self._address = self.order, self.order.url
        picture = IncomingImage(
            order.destination, order.limits, name=order.name, match_suffix=order.match_suffix
        )
        try:
            await self._fetch(picture)
            stream = await picture.whole(self.given_up)
            if self.given_up():
                raise given_up_error()
            return await order.keep(stream)
        finally:
            await picture.discard()

    async def _fetch(self, picture: IncomingImage) -> None:
        """Try until all bytes are there; each turn either goes further or uses up one of a few tries."""
        resumes = 0
        while True:
            try:
                if await self._attempt(picture):
                    return
            except DownloadCutShort as cut:
                delay = before_resume(resumes, self.session.rng.random())
                can_go_on = not picture.received or headers_to_resume(self._head, picture.received)
                if delay is None or not can_go_on:
                    raise
                logger.info("a download broke off after %d bytes and is taken up again", picture.received)
                await self._pause(delay, cut)
                resumes += 1
            except DownloadError as refused:
                if refused.http_status not in REFRESHABLE or self._refreshed:
                    raise
                await self._refresh(refused)

    async def _attempt(self, picture: IncomingImage) -> bool:
        """Make one request; False where the host's rest of the file is not the rest of ours."""
        resuming = headers_to_resume(self._head, picture.received)
        async with self._open(resuming) as file:
            if resuming and file.status in _ABOUT_RANGES:
                if not continues(file.status, file.headers, self._head, picture.received):
                    await picture.start_over()
                    return False
            else:
                await self._begin(file, picture)
            await picture.take(self._wanted(file.chunks()))
        if self._head.length is not None and picture.received != self._head.length:
            came = f"{picture.received:,} of {self._head.length:,} bytes"
            raise DownloadCutShort(f"The download from {file.host} broke off: {came} came.")
        return True

    def _open(self, headers: dict[str, str]) -> AbstractAsyncContextManager[FileStream]:
        remaining = max(_SHORTEST_S, self.deadline - self.session.clock.monotonic())
        return self.session.transport.fetch(
            self._address, timeout_s=remaining, stall_s=self.order.limits.stall_s, headers=headers
        )

    async def _begin(self, file: FileStream, picture: IncomingImage) -> None:
        """Read what the host says of the file; what had come of another one is forgotten."""
        if file.status != _OK:
            raise refusal(file.status, file.host, retry_after_s=retry_after_s(file.headers))
        self._head = read_head(file.headers)
        if self._head.length is not None:
            self.order.limits.check_bytes(self._head.length, declared=True)
        if picture.received:
            await picture.start_over()

    async def _wanted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            if self.given_up():
                raise given_up_error()
            yield chunk

    async def _pause(self, delay: float, cut: DownloadCutShort) -> None:
        if self.given_up() or self.session.clock.monotonic() + delay >= self.deadline:
            raise cut
        await self.session.clock.sleep(delay)

    async def _refresh(self, refused: DownloadError) -> None:
        """Ask the vendor, once, for a fresh link; if that fails, what the file host said stands.

        The link lets anybody in: it is kept nowhere, and neither log nor error shows more than its host.
        """
        self._refreshed = True
        try:
            answer = await self.session.read(build_download_url(self.order.url), deadline=self.deadline)
            self._address = parse_download_url(answer)
        except FluxError as failed:
            logger.info("no fresh link for a refused picture: %s", type(failed).__name__)
            raise refused from None


async def download_once(session: Session, order: DownloadOrder[T]) -> T:
    """Try one download. Waiting for a place among the downloads counts as time.

    Raises:
        DownloadError: What went wrong.
    """
    caller_left = asyncio.Event()
    one = Download(
        session=session,
        order=order,
        deadline=session.clock.monotonic() + order.span_s,
        given_up=caller_left.is_set,
    )
    try:
        async with Deadline(order.span_s):
            return await session.download(one.run, deadline=one.deadline)
    except (TimeoutError, DeadlineExceeded):
        raise DownloadTimedOut(f"The download took longer than {order.span_s:g} s.") from None
    finally:
        caller_left.set()


async def download(session: Session, order: DownloadOrder[T], submitted_at: float | None) -> T:
    """Download, again and again within ``order.span_s`` where a failure may pass.

    Args:
        session: Whose transport and clock are used.
        order: What to bring where.
        submitted_at: When the task was submitted, in seconds since the epoch, where that is known.

    Raises:
        DownloadError: How the last try ended.
    """
    clock, tries = session.clock, 0
    deadline = clock.monotonic() + order.span_s
    while True:
        tries += 1
        left = deadline - clock.monotonic()
        try:
            return await download_once(session, attrs.evolve(order, span_s=max(_SHORTEST_S, left)))
        except DownloadError as error:
            what = after_failed_download(
                error,
                tries=tries,
                age_s=None if submitted_at is None else clock.wall() - submitted_at,
                left_s=deadline - _LAST_TRY * order.span_s - clock.monotonic(),
                draw=session.rng.random(),
            )
            if what is NoDownload.FOR_GOOD:
                raise expired(error) from None
            if not isinstance(what, DownloadAgain):
                raise
            log(logging.INFO, "download tried again in %.1f s: %s", what.delay_s, error.message)
            await clock.sleep(what.delay_s)


async def keep_as_file(folder: Path, stream: ImageStream) -> SavedFile:
    """Make an image a file of a folder, under its name."""
    path = folder / stream.name
    await stream.move_to(path)
    return SavedFile(
        path=path, sha256=stream.sha256, size=stream.size, width=stream.width, height=stream.height
    )
