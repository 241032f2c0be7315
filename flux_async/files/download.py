"""Downloads one result: requests, resumption, a fresh link, retries, and the check that the image is whole.

::

    fetch → is it a file? → take its bytes → is it whole? → keep
      │         └ 401, 403, 404, 410: once, ask the vendor for a fresh link and begin again
      └ broke off: continue where it stopped, if the host can send the rest of the same file;
                   begin again, if nothing of it was received

Rules:

1. A whole image is given to ``_Order.keep``, whose result is that of the download. Everything else is one
   :class:`DownloadError`.
2. A try runs in a background task of the session: a cancelled caller does not cut it, but ends it at the next
   chunk, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import anyio.to_thread
import attrs

from flux_async.api.common_api import build_download_url, parse_download_url
from flux_async.api.envelope import retry_after_s
from flux_async.api.models_table import RETENTION_S
from flux_async.api.parsing import encoded_as_by_a_browser
from flux_async.errors import (
    DeadlineExceeded,
    DownloadCutShort,
    DownloadError,
    DownloadTimedOut,
    FluxError,
)
from flux_async.files.image_source import PIECE
from flux_async.files.image_writer import (
    ImageStream,
    IncomingImage,
    SavedFile,
    check_destination,
    given_up_error,
)
from flux_async.files.object_store import read_object
from flux_async.files.sink import SavedResult, Sink, check_sink, path_in, save_in
from flux_async.images import check_http_url, is_object
from flux_async.models import ImageResult, Job
from flux_async.observed import fetch
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


async def download_file(
    session: Session,
    image: ImageResult | str,
    destination: str | os.PathLike[str],
    *,
    limits: DownloadLimits,
    span_s: float,
    match_suffix: bool,
    retry: bool,
) -> SavedFile:
    """Download an image into a file; see :meth:`flux_async.FluxClient.download`."""
    path = check_destination(destination)
    is_stored = is_object(image)
    order = _Order(
        url=str(image) if is_stored else _result_url(image),
        destination=path,
        name=path.name,
        keep=partial(_keep_as_file, path.parent),
        limits=limits,
        match_suffix=match_suffix,
    )
    async with session.call():
        if is_stored:
            return await _copy_object(order)
        if not retry:
            return await _download_once(session, order, span_s)
        kept_s = RETENTION_S[image.api if isinstance(image, ImageResult) else "kontext"]
        return await _download(session, order, span_s, _submitted_at(image), kept_s)


async def download_to_sink(
    session: Session,
    image: ImageResult,
    sink: Sink,
    *,
    job: Job,
    name: str,
    limits: DownloadLimits,
    span_s: float,
) -> SavedResult:
    """Download a result once into a sink; see :meth:`flux_async.FluxClient.save`."""
    check_sink(sink)
    order = _Order(
        url=_result_url(image),
        destination=path_in(sink, name),
        name=name,
        keep=partial(save_in, sink, job),
        limits=limits,
        match_suffix=True,
    )
    async with session.call():
        return await _download_once(session, order, span_s)


@attrs.frozen(kw_only=True)
class _Order(Generic[T]):
    """What to download, and what to do with it.

    Attributes:
        url: Address of the result.
        destination: The path beside which the image grows; None for a temporary file.
        name: What the image is called.
        keep: Receives the whole image; what it returns is what the download returns.
        limits: What is allowed.
        match_suffix: Give the name the ending that the content has.
    """

    url: str = attrs.field(repr=False)
    destination: Path | None
    name: str
    keep: Callable[[ImageStream], Awaitable[T]] = attrs.field(repr=False)
    limits: DownloadLimits
    match_suffix: bool


@attrs.define(kw_only=True, eq=False)
class _Try(Generic[T]):
    """One try of a download.

    Attributes:
        session: Has the transport and the clock.
        order: What to download.
        deadline: When to stop, in monotonic seconds.
        given_up: Returns whether the caller was cancelled.
    """

    session: Session
    order: _Order[T]
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
        image = IncomingImage(
            order.destination, order.limits, name=order.name, match_suffix=order.match_suffix
        )
        try:
            await self._fetch(image)
            stream = await image.whole(self.given_up)
            if self.given_up():
                raise given_up_error()
            return await order.keep(stream)
        finally:
            await image.discard()

    async def _fetch(self, image: IncomingImage) -> None:
        """Request until all bytes are there; each turn receives more, or uses up one of a few resumptions."""
        resumes = 0
        while True:
            try:
                if await self._request(image):
                    return
            except DownloadCutShort:
                delay = before_resume(resumes, self.session.rng.random())
                can_resume = not image.received or headers_to_resume(self._head, image.received)
                if delay is None or not can_resume:
                    raise
                logger.info("a download broke off after %d bytes and is resumed", image.received)
                if self.given_up() or self.session.clock.monotonic() + delay >= self.deadline:
                    raise
                await self.session.clock.sleep(delay)
                resumes += 1
            except DownloadError as refused:
                if refused.http_status not in REFRESHABLE or self._refreshed:
                    raise
                await self._refresh(refused)

    async def _request(self, image: IncomingImage) -> bool:
        """Make one request; False if the host's rest of the file is not the rest of ours."""
        resuming = headers_to_resume(self._head, image.received)
        async with self._open(resuming) as file:
            if resuming and file.status in _ABOUT_RANGES:
                if not continues(file.status, file.headers, self._head, image.received):
                    await image.start_over()
                    return False
            else:
                await self._begin(file, image)
            await image.take(self._chunks(file))
        if self._head.length is not None and image.received != self._head.length:
            came = f"{image.received:,} of {self._head.length:,} bytes"
            raise DownloadCutShort(f"The download from {file.host} broke off: {came} came.")
        return True

    def _open(self, headers: dict[str, str]) -> AbstractAsyncContextManager[FileStream]:
        remaining = max(_SHORTEST_S, self.deadline - self.session.clock.monotonic())
        stall_s = self.order.limits.stall_s
        return fetch(self.session, self._address, timeout_s=remaining, stall_s=stall_s, headers=headers)

    async def _begin(self, file: FileStream, image: IncomingImage) -> None:
        """Read the headers of the file; bytes of an earlier one are forgotten."""
        if file.status != _OK:
            raise refusal(file.status, file.host, retry_after_s=retry_after_s(file.headers))
        self._head = read_head(file.headers)
        if self._head.length is not None:
            self.order.limits.check_bytes(self._head.length, declared=True)
        if image.received:
            await image.start_over()

    async def _chunks(self, file: FileStream) -> AsyncIterator[bytes]:
        async for chunk in file.chunks():
            if self.given_up():
                raise given_up_error()
            yield chunk

    async def _refresh(self, refused: DownloadError) -> None:
        """Ask the vendor, once, for a fresh link; if that fails, the file host's refusal is raised.

        The link grants access to anyone: it is kept nowhere, and neither log nor error shows more than its
        host.
        """
        self._refreshed = True
        try:
            request = build_download_url(self.order.url)
            self._address = await self.session.read(request, parse_download_url, deadline=self.deadline)
        except FluxError as failed:
            logger.info("no fresh link for a refused image: %s", type(failed).__name__)
            raise refused from None


async def _download_once(session: Session, order: _Order[T], span_s: float) -> T:
    """Try one download. Waiting for a download slot counts as time.

    Raises:
        DownloadError: What went wrong.
    """
    caller_left = asyncio.Event()
    one = _Try(
        session=session,
        order=order,
        deadline=session.clock.monotonic() + span_s,
        given_up=caller_left.is_set,
    )
    try:
        async with Deadline(span_s):
            return await session.download(one.run, deadline=one.deadline)
    except (TimeoutError, DeadlineExceeded):
        raise DownloadTimedOut(f"The download took longer than {span_s:g} s.") from None
    finally:
        caller_left.set()


async def _download(
    session: Session, order: _Order[T], span_s: float, submitted_at: float | None, kept_s: float
) -> T:
    """Download, with retries within ``span_s`` seconds after failures that may pass.

    Args:
        session: Has the transport and the clock.
        order: What to download.
        span_s: Seconds for all tries.
        submitted_at: When the task was submitted, in seconds since the epoch, if known.
        kept_s: Seconds for which the vendor keeps its result.

    Raises:
        DownloadError: How the last try ended.
    """
    clock, tries = session.clock, 0
    deadline = clock.monotonic() + span_s
    while True:
        tries += 1
        left = deadline - clock.monotonic()
        try:
            return await _download_once(session, order, max(_SHORTEST_S, left))
        except DownloadError as error:
            what = after_failed_download(
                error,
                tries=tries,
                age_s=None if submitted_at is None else clock.wall() - submitted_at,
                kept_s=kept_s,
                left_s=deadline - _LAST_TRY * span_s - clock.monotonic(),
                draw=session.rng.random(),
            )
            if what is NoDownload.FOR_GOOD:
                raise expired(error, kept_s) from None
            if not isinstance(what, DownloadAgain):
                raise
            log(logging.INFO, "download tried again in %.1f s: %s", what.delay_s, error.message)
            await clock.sleep(what.delay_s)


async def _copy_object(order: _Order[T]) -> T:
    """Copy an image out of an object store; see :func:`flux_async.files.object_store.read_object`."""
    image = IncomingImage(order.destination, order.limits, name=order.name, match_suffix=order.match_suffix)
    content = await read_object(order.url, order.limits.max_bytes)
    try:
        await image.take(_pieces_of(content))
        return await order.keep(await image.whole(lambda: False))
    finally:
        content.close()
        await image.discard()


async def _pieces_of(content: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await anyio.to_thread.run_sync(content.read, PIECE):
        yield piece


async def _keep_as_file(folder: Path, stream: ImageStream) -> SavedFile:
    path = folder / stream.name
    await stream.move_to(path)
    return SavedFile(
        path=path, sha256=stream.sha256, size=stream.size, width=stream.width, height=stream.height
    )


def _result_url(image: ImageResult | str) -> str:
    given: object = image.result_url if isinstance(image, ImageResult) else image
    return check_http_url(encoded_as_by_a_browser(given) if isinstance(given, str) else given)


def _submitted_at(image: ImageResult | str) -> float | None:
    """Return when the task of a result was made, in seconds since the epoch, if its record says so."""
    record = image.record if isinstance(image, ImageResult) else None
    return None if record is None or record.created_at is None else record.created_at.timestamp()
