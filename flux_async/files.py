"""Pictures on disk: whole under their name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from flux_async.errors import Charge, DownloadError, InvalidInput, shown

_BUFFER = 1024 * 1024
_HEAD = 16

_PICTURE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
)


def picture_suffix(head: bytes) -> str | None:
    """Return the file ending that the first bytes of a picture call for, or None if it is no picture."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _MAGIC if head.startswith(magic)), None)


def check_destination(destination: object) -> Path:
    """Return where a file is to go, else raise :class:`InvalidInput`: before anything is fetched."""
    try:
        path = Path(destination)  # type: ignore[arg-type]
        os.fsencode(path)
        is_folder = path.is_dir()
    except (OSError, TypeError, ValueError) as bad:
        raise InvalidInput(f"{shown(destination)} is no path for a file: {bad}.") from None
    if not path.name or is_folder or "\0" in str(path):
        raise InvalidInput(
            f"{shown(str(destination))} does not name a file.",
            advice="Give the file's name, for example clean.jpg.",
        )
    return path


async def write_picture(
    chunks: AsyncIterator[bytes],
    destination: Path,
    *,
    match_suffix: bool = False,
    given_up: Callable[[], bool] = lambda: False,
) -> Path:
    """Write a picture under ``destination``, which appears only when it is complete and on the disk.

    Args:
        chunks: The content.
        destination: Where to; missing folders are made, an existing file is replaced.
        match_suffix: Give the file the ending its content has.
        given_up: Asked just before the file gets its name: has everybody lost interest?

    Returns:
        The path written.

    Raises:
        DownloadError: The content is empty or no picture, or the disk refused it; nothing is left behind.
    """
    part = _PartFile(destination.with_name(f".{secrets.token_hex(6)}.part"))
    try:
        head = await _copy(chunks, part)
        suffix = picture_suffix(head)
        if suffix is None:
            raise _no_picture(head)
        final = _with_suffix(destination, suffix) if match_suffix else destination
        if not await anyio.to_thread.run_sync(part.finish, final, given_up):
            raise DownloadError("The download was given up by its caller.")
    except OSError as error:
        raise DownloadError(
            f"{destination} cannot be written: {error.strerror or error}.",
            advice="Check free space and permissions, then download again: the paid result is kept 14 days.",
            charge=Charge.YES,
        ) from None
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(part.discard)
    return final


def _with_suffix(path: Path, suffix: str) -> Path:
    """Exchange a picture's ending; any other, as in ``photo.1``, is part of the name."""
    known = path.suffix.lower() in _PICTURE_ENDINGS
    return path.with_suffix(suffix) if known else path.with_name(path.name + suffix)


class _PartFile:
    """The file while it grows. Used from worker threads, of which a cancelled caller may leave one behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._over = False
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append; the first write makes the file."""
        with self._lock:
            if self._over:
                return
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("xb")
            self._file.write(data)

    def finish(self, final: Path, given_up: Callable[[], bool]) -> bool:
        """Bytes first, then the name: a crash in between leaves no half file under the name."""
        with self._lock:
            if self._over or self._file is None:
                return False
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if given_up():
                return False
            self._path.replace(final)
            self._over = True
            return True

    def discard(self) -> None:
        """Leave nothing behind, now or later; after ``finish`` there is nothing to leave."""
        with self._lock:
            if self._over:
                return
            self._over = True
            with contextlib.suppress(OSError):
                if self._file is not None:
                    self._file.close()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


async def _copy(chunks: AsyncIterator[bytes], part: _PartFile) -> bytes:
    """Write all chunks, off the event loop and in few steps; return the first bytes."""
    head, buffer = b"", bytearray()
    async for chunk in chunks:
        if len(head) < _HEAD:
            head += chunk[: _HEAD - len(head)]
        buffer += chunk
        if len(buffer) >= _BUFFER:
            await anyio.to_thread.run_sync(part.write, bytes(buffer))
            buffer.clear()
    await anyio.to_thread.run_sync(part.write, bytes(buffer))
    return head


def _no_picture(head: bytes) -> DownloadError:
    if not head:
        return DownloadError("The file host sent an empty file.")
    return DownloadError(
        f"The file host sent something that is no JPEG, PNG, WebP or GIF: it begins with {head!r}."
    )
