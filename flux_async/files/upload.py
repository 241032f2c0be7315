"""Uploads one image within one deadline; a lost upload is repeated under a new name."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import attrs

from flux_async.api.envelope import WireRequest
from flux_async.api.uploads import (
    LIFETIME_S,
    Stored,
    build_stream_upload,
    build_url_upload,
    form_around,
    parse_upload,
    upload_name,
)
from flux_async.errors import (
    Charge,
    ConnectionLost,
    DeadlineExceeded,
    FluxError,
    UnexpectedResponse,
    shown,
)
from flux_async.files.image_check import LARGE_UPLOAD_BYTES, MAX_UPLOAD_BYTES
from flux_async.files.image_source import Content, open_content
from flux_async.models import UploadedFile
from flux_async.policy.retry import RetryPolicy
from flux_async.session import Session, upload_host_unreachable
from flux_async.transport import Answered, NotSent
from flux_async.transport.background import Deadline

logger: logging.Logger = logging.getLogger("flux_async")

_SECRET_BYTES = 16
_TRY_S = 60.0
_SLOWEST = 16 * 1024  # bytes a second, while others upload too
_NO_ANSWER = "Check the network and KIE_UPLOAD_URL; an upload is free and may be made again."


@attrs.frozen(kw_only=True)
class _Form:
    """A multipart form around a file, in chunks."""

    before: bytes
    content: Content
    after: bytes
    on_progress: Callable[[int, int], None] | None

    @property
    def size(self) -> int:
        return len(self.before) + self.content.size + len(self.after)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent = 0
        yield self.before
        async for piece in self.content.pieces():
            yield piece
            sent += len(piece)
            self._report(sent)
        yield self.after

    def _report(self, sent: int) -> None:
        if self.on_progress is None:
            return
        try:
            self.on_progress(sent, self.content.size)
        except Exception:
            logger.exception("a progress observer failed")


@attrs.frozen(kw_only=True)
class Uploads:
    """Makes the uploads of one client.

    Attributes:
        session: Has the key and the connections.
        retry: When an upload is repeated.
    """

    session: Session
    retry: RetryPolicy

    async def send(
        self,
        source: object,
        *,
        deadline: float,
        max_bytes: int = MAX_UPLOAD_BYTES,
        name: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> UploadedFile:
        """Upload an image; see :meth:`flux_async.FluxClient.upload`."""
        upload_name("", "", name)  # an invalid name is refused before anything is read
        async with self._call(deadline):
            content = await open_content(source, max_bytes)
            try:
                if content.size > LARGE_UPLOAD_BYTES:
                    words = "%s has %d bytes: the vendor may refuse it"
                    logger.warning(words, shown(content.name), content.size)
                return await self._send(content, name, deadline, on_progress)
            finally:
                content.close()  # a request whose caller was cancelled ends at its next chunk

    async def _send(
        self,
        content: Content,
        name: str | None,
        deadline: float,
        on_progress: Callable[[int, int], None] | None,
    ) -> UploadedFile:
        kind = content.info

        def build() -> WireRequest:
            boundary = secrets.token_hex(_SECRET_BYTES)
            file_name = upload_name(secrets.token_hex(_SECRET_BYTES), kind.suffix, name)
            before, after = form_around(
                file_name=file_name, content_type=kind.content_type, boundary=boundary
            )
            form = _Form(before=before, content=content, after=after, on_progress=on_progress)
            return build_stream_upload(form, boundary)

        stored, at = await self._until_stored(build, deadline, content)
        return _uploaded(stored, at, size=content.size, content_type=kind.content_type, sha256=content.sha256)

    async def send_url(self, url: str, *, deadline: float, name: str | None = None) -> UploadedFile:
        """Have the upload host fetch ``url``; see :meth:`flux_async.FluxClient.upload_from_url`."""

        def build() -> WireRequest:
            return build_url_upload(url, secret=secrets.token_hex(_SECRET_BYTES), name=name)

        async with self._call(deadline):
            stored, at = await self._until_stored(build, deadline)
        kind = stored.content_type or "application/octet-stream"
        return _uploaded(stored, at, size=stored.size or 0, content_type=kind, sha256=None)

    @asynccontextmanager
    async def _call(self, deadline: float) -> AsyncIterator[None]:
        async with self.session.call():
            try:
                async with Deadline(deadline - self.session.clock.monotonic()):
                    yield
            except TimeoutError:
                raise DeadlineExceeded("The deadline passed during the upload.") from None

    async def _until_stored(
        self, build: Callable[[], WireRequest], deadline: float, content: Content | None = None
    ) -> tuple[Stored, datetime]:
        """Upload, with retries under new names as the retry policy allows."""
        session, tries = self.session, 0
        while True:
            tries += 1
            at = datetime.fromtimestamp(session.clock.wall(), UTC)
            try:
                return await self._once(build(), deadline, content), at
            except FluxError as error:
                if content is not None and content.trouble is not None:
                    raise content.trouble from None
                # Tries that could not connect count for all uploads together.
                counted = max(tries, session.uploads.tries)
                delay = self.retry.before_next_upload(error, counted, session.rng.random())
                if delay is None or session.clock.monotonic() + delay >= deadline:
                    raise
                logger.info("upload failed (%s), again in %.1f s", type(error).__name__, delay)
                await session.clock.sleep(delay)

    async def _once(self, wire: WireRequest, deadline: float, content: Content | None) -> Stored:
        size = 0 if content is None else content.size
        result = await self.session.upload(wire, timeout_s=_TRY_S + size / _SLOWEST, deadline=deadline)
        if isinstance(result, NotSent):
            raise upload_host_unreachable(result.reason)
        if not isinstance(result, Answered):
            raise ConnectionLost(
                f"The upload was not answered: {result.reason}.", charge=Charge.NO, advice=_NO_ANSWER
            )
        stored = parse_upload(result.response)
        if content is not None and stored.size not in (None, content.size):
            raise UnexpectedResponse(
                f"The upload host has {stored.size} bytes of {content.size}.",
                charge=Charge.NO,
                advice=_NO_ANSWER,
            )
        return stored


def _uploaded(
    stored: Stored, at: datetime, *, size: int, content_type: str, sha256: str | None
) -> UploadedFile:
    return UploadedFile(
        url=stored.url,
        size=size,
        content_type=content_type,
        sha256=sha256,
        uploaded_at=at,
        expires_at=at + timedelta(seconds=LIFETIME_S),
    )
