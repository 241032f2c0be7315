"""One download, from a result's address to a whole file on disk.

::

    fetch → is it a file? → take its bytes → is it whole? → keep
      │         └ 403, 404, 410: once, ask the vendor for a fresh link and begin again
      └ broke off: go on where it stopped, if the host can send the rest of the same file;
                   begin again, if nothing of it had come

What it comes to is the file or one :class:`DownloadError`. The coroutine cannot be cancelled by its caller;
when he has left, it ends at the next chunk and leaves nothing behind.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import attrs

from flux_async.account import Account
from flux_async.errors import DownloadCutShort, DownloadError, DownloadTimedOut, FluxError
from flux_async.files import IncomingPicture, SavedFile, given_up_error
from flux_async.policy.downloads import (
    REFRESHABLE,
    DownloadLimits,
    FileHead,
    before_resume,
    continues,
    headers_to_resume,
    read_head,
    refusal,
)
from flux_async.protocol.wire import build_download_url, parse_download_url
from flux_async.transport import FileStream

logger: logging.Logger = logging.getLogger("flux_async")

_OK = 200
_ABOUT_RANGES = frozenset({206, 416})
_REFRESH_TIMEOUT_S = 30.0
_SHORTEST_S = 0.01


@attrs.define(kw_only=True, eq=False)
class Download:
    """Brings one result to disk.

    Args:
        account: Whose transport and clock are used.
        url: Address of the result.
        destination: Where to.
        limits: What is allowed.
        deadline: When to stop, as monotonic seconds.
        given_up: Whether the caller has left.
        match_suffix: Give the file the ending its content has.
    """

    account: Account
    url: str = attrs.field(repr=False)
    destination: Path
    limits: DownloadLimits
    deadline: float
    given_up: Callable[[], bool] = attrs.field(repr=False)
    match_suffix: bool = False
    _head: FileHead = attrs.field(factory=FileHead, init=False)
    _address: str = attrs.field(default="", init=False, repr=False)
    _refreshed: bool = attrs.field(default=False, init=False)

    async def run(self) -> SavedFile:
        """Fetch the file and keep it, or leave nothing behind.

        Raises:
            DownloadError: What went wrong.
        """
        self._address = self.url
        picture = IncomingPicture(self.destination, self.limits, match_suffix=self.match_suffix)
        try:
            await self._fetch(picture)
            return await picture.keep(self.given_up)
        finally:
            await picture.discard()

    async def _fetch(self, picture: IncomingPicture) -> None:
        """Try until all bytes are there; each turn either goes further or uses up one of a few tries."""
        resumes = 0
        while True:
            try:
                if await self._attempt(picture):
                    return
            except DownloadCutShort as cut:
                delay = before_resume(resumes, self.account.rng.random())
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

    async def _attempt(self, picture: IncomingPicture) -> bool:
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
        remaining = max(_SHORTEST_S, self.deadline - self.account.clock.monotonic())
        return self.account.transport.fetch(
            self._address, timeout_s=remaining, stall_s=self.limits.stall_s, headers=headers
        )

    async def _begin(self, file: FileStream, picture: IncomingPicture) -> None:
        """Read what the host says of the file; what had come of another one is forgotten."""
        if file.status != _OK:
            raise refusal(file.status, file.host, refreshed=self._refreshed)
        self._head = read_head(file.headers)
        if self._head.length is not None:
            self.limits.check_bytes(self._head.length, declared=True)
        if picture.received:
            await picture.start_over()

    async def _wanted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            if self.given_up():
                raise given_up_error()
            yield chunk

    async def _pause(self, delay: float, cut: DownloadCutShort) -> None:
        if self.given_up() or self.account.clock.monotonic() + delay >= self.deadline:
            raise cut
        await self.account.clock.sleep(delay)

    async def _refresh(self, refused: DownloadError) -> None:
        """Ask the vendor, once, for a fresh link; if that fails, what the file host said stands.

        The link lets anybody in: it is kept nowhere, and neither log nor error shows more than its host.
        """
        self._refreshed = True
        remaining = max(_SHORTEST_S, self.deadline - self.account.clock.monotonic())
        try:
            answer = await self.account.look(
                build_download_url(self.url),
                timeout_s=min(_REFRESH_TIMEOUT_S, remaining),
                deadline=self.deadline,
            )
            self._address = parse_download_url(answer)
        except FluxError as failed:
            logger.info("no fresh link for a refused picture: %s", type(failed).__name__)
            raise refused from None


def timed_out(seconds: float) -> DownloadTimedOut:
    """Return the error of a download whose deadline has passed."""
    return DownloadTimedOut(f"The download took longer than {seconds:g} s.")
