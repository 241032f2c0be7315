"""Writes images to disk: complete under their name, or not at all.

A download is written to a hidden part file beside its destination, ``.<12 digits>-<8 digits>.part``; the
first twelve digits identify the destination. Part files of a dead process are deleted after a day.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import anyio
import anyio.to_thread
import attrs

from flux_async.errors import (
    DiskFull,
    DownloadCutShort,
    DownloadError,
    FolderNotWritable,
    InvalidInput,
    shown,
)
from flux_async.files.image_header import ImageReader
from flux_async.policy.downloads import DownloadLimits

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
"""Suffixes that are replaced by the one of the content; any other is part of the name."""

_BUFFER = 256 * 1024
_STALE_S = 24 * 3600.0
_PART = re.compile(r"\.[0-9a-f]{12}-[0-9a-f]{8}\.part")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_PLACE = frozenset({errno.EEXIST, errno.ENOTDIR})


@attrs.frozen(kw_only=True)
class SavedFile:
    """A downloaded image.

    Attributes:
        path: Its path.
        sha256: Digest of its bytes, as 64 hex digits.
        size: Bytes.
        width: Width in pixels, from its header.
        height: Height in pixels.
    """

    path: Path
    sha256: str
    size: int
    width: int
    height: int


def check_destination(destination: object) -> Path:
    """Return the path of a download, else raise :class:`InvalidInput` before anything is fetched."""
    try:
        path = Path(destination)  # type: ignore[arg-type]
        os.fsencode(path)
        is_folder = path.is_dir()
    except (OSError, TypeError, ValueError) as bad:
        raise InvalidInput(f"{shown(destination)} is not a path for a file: {bad}.") from None
    if not path.name or is_folder or "\0" in str(path):
        raise InvalidInput(
            f"{shown(str(destination))} does not name a file.",
            advice="Give the file's name, for example clean.jpg.",
        )
    return path


class IncomingImage:
    """An image that is being downloaded: ``take`` its bytes, then ``whole``, and ``discard`` at the end.

    Each of them raises a :class:`DownloadError` if the bytes are no image, too many, or refused by the disk.

    Args:
        destination: The path beside which it is written; missing folders are made. None for a temporary file.
        limits: Largest file and dimensions.
        name: Name of the image, with ``/`` between folders.
        match_suffix: Give the name the suffix of the content.
    """

    def __init__(
        self, destination: Path | None, limits: DownloadLimits, *, name: str, match_suffix: bool = False
    ) -> None:
        self._name = PurePosixPath(name)
        self._limits = limits
        self._match_suffix = match_suffix
        self._part = _PartFile(destination, limits)
        self._destination: Path = destination or self._part.path
        self._buffer = bytearray()
        self.received: int = 0

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Write all chunks, off the event loop and in few steps; chunks before an error are kept."""
        async for chunk in chunks:
            self.received += len(chunk)
            self._limits.check_bytes(self.received)
            self._buffer += chunk
            # Until the image's dimensions are known every chunk is checked before the next is read.
            if len(self._buffer) >= _BUFFER or self._part.size is None:
                await self._flush()

    async def start_over(self) -> None:
        """Discard the received bytes: the host sends them again from the beginning."""
        self._buffer.clear()
        self.received = 0
        await self._in_thread(self._part.start_over)

    async def whole(self, given_up: Callable[[], bool]) -> ImageStream:
        """Return the complete image.

        Args:
            given_up: Returns whether the caller was cancelled; called just before the image gets its name.

        Raises:
            DownloadCutShort: The image's own end is missing.
        """
        await self._flush()
        suffix, (width, height) = self._part.check_whole()
        await self._in_thread(self._part.flush)
        name = with_suffix(self._name, suffix) if self._match_suffix else self._name
        return ImageStream(
            name=str(name),
            sha256=self._part.sha256,
            size=self.received,
            width=width,
            height=height,
            part=self._part,
            given_up=given_up,
        )

    async def discard(self) -> None:
        """Delete the part file, now or when it is made; after ``move_to`` there is none."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._part.discard)

    async def _flush(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        await self._in_thread(self._part.write, data)

    async def _in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            await anyio.to_thread.run_sync(work, *arguments)
        except OSError as error:
            raise disk_error(error, self._destination) from None


@attrs.frozen(kw_only=True, eq=False)
class ImageStream:
    """A complete and checked image: iterate over it for its bytes, any number of times.

    It is valid until the ``save`` that receives it returns.

    Attributes:
        name: Name for its file, with the suffix of its content, and ``/`` between folders.
        sha256: Digest of its bytes, as 64 hex digits.
        size: Bytes.
        width: Width in pixels.
        height: Height in pixels.
    """

    name: str
    sha256: str
    size: int
    width: int
    height: int
    _part: _PartFile = attrs.field(repr=False)
    _given_up: Callable[[], bool] = attrs.field(repr=False)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes in chunks of 256 KiB."""
        async with await anyio.open_file(self._part.path, "rb") as file:
            while chunk := await file.read(_BUFFER):
                yield chunk

    async def move_to(self, path: Path) -> None:
        """Rename it to ``path`` on the same disk; an existing file is replaced.

        Raises:
            DownloadError: The disk refused it, or the caller of the download was cancelled.
        """
        try:
            is_moved = await anyio.to_thread.run_sync(self._part.finish, path, self._given_up)
        except OSError as error:
            raise disk_error(error, path) from None
        if not is_moved:
            raise given_up_error()


def given_up_error() -> DownloadError:
    """Return the error of a download whose caller was cancelled."""
    return DownloadError("The caller of the download was cancelled.", retryable=False)


def disk_error(error: OSError, destination: Path) -> DownloadError:
    """Return the error of a file that could not be written."""
    of_folder = error.filename2 is None  # two names: an existing file is in the way
    why = error.strerror or str(error)
    if of_folder and error.errno in _NO_PLACE:
        why = "a file is where its folder should be"
    message = f"{destination} cannot be written: {why}."
    if error.errno in _NO_ROOM:
        return DiskFull(message)
    if of_folder and error.errno in _NO_PERMISSION | _NO_PLACE:
        return FolderNotWritable(message)
    return DownloadError(
        message,
        advice="Check the path and the disk, then download again: the paid result is kept for 14 days (jobs "
        "API: 24 hours).",
        retryable=False,
    )


def with_suffix(path: PurePosixPath, suffix: str) -> PurePosixPath:
    """Replace an image's suffix; any other, as in ``photo.1``, is part of the name."""
    known = path.suffix.lower() in IMAGE_ENDINGS
    return path.with_suffix(suffix) if known else path.with_name(path.name + suffix)


def find_image(folder: Path, name: PurePosixPath) -> Path | None:
    """Return the image of that name, whatever its ending, or None."""
    paths = (folder / with_suffix(name, ending) for ending in sorted(IMAGE_ENDINGS))
    return next((path for path in paths if path.is_file()), None)


def sha256_of(path: Path) -> str | None:
    """Return the digest of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


class _PartFile:
    """A part file. It is used in worker threads, which may outlive a cancelled caller."""

    def __init__(self, destination: Path | None, limits: DownloadLimits) -> None:
        self._mode = 0o600 if destination is None else 0o666  # other users can read the temporary folder
        destination = destination or Path(tempfile.gettempdir(), "image")
        self.path: Path = _part_path(destination)
        self._limits = limits
        self._file: BinaryIO | None = None
        self._reader = ImageReader()
        self._digest = hashlib.sha256()
        self._over = False
        self._lock = threading.Lock()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, as soon as they are known."""
        return self._reader.size

    @property
    def sha256(self) -> str:
        """Digest of the written bytes."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Check and append bytes; the first write creates the file."""
        with self._lock:
            if self._over or not data:
                return
            self._reader.feed(data)
            if self._reader.size is not None:
                self._limits.check_pixels(*self._reader.size)
            if self._file is None:
                self._file = _make_part(self.path, self._mode)
            self._digest.update(data)
            self._file.write(data)

    def start_over(self) -> None:
        """Empty the file."""
        with self._lock:
            self._reader, self._digest = ImageReader(), hashlib.sha256()
            if self._file is not None and not self._over:
                self._file.seek(0)
                self._file.truncate()

    def check_whole(self) -> tuple[str, tuple[int, int]]:
        """Return the suffix and the dimensions of a complete image.

        Raises:
            NotAnImage: It is no image.
            DownloadCutShort: Its end is missing.
        """
        self._reader.finish()
        suffix, size = self._reader.suffix, self._reader.size
        if suffix is None or size is None or not self._reader.complete:
            raise DownloadCutShort("The host sent an image without its end.")
        return suffix, size

    def flush(self) -> None:
        """Write buffered bytes to the file, so that they can be read."""
        with self._lock:
            if self._file is not None and not self._over:
                self._file.flush()

    def finish(self, final: Path, given_up: Callable[[], bool]) -> bool:
        """Sync the bytes, then rename: a crash in between leaves no incomplete file under the name."""
        with self._lock:
            if self._over or self._file is None:
                return False
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if given_up():
                return False
            self.path.replace(final)
            self._over = True
        _sync_folder(final.parent)
        return True

    def discard(self) -> None:
        """Delete the file, now or when it is made; after ``finish`` there is none."""
        with self._lock:
            if self._over:
                return
            self._over = True
            with contextlib.suppress(OSError):
                if self._file is not None:
                    self._file.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def part_beside(destination: Path) -> Path:
    """Return the path of a part file for an image that another process writes; missing folders are made.

    Raises:
        DownloadError: The disk refuses it.
    """
    part = _part_path(destination)
    try:
        _make_part(part, 0o666).close()
    except OSError as error:
        raise disk_error(error, destination) from None
    return part


def copy_to_part(source: Path, destination: Path) -> Path:
    """Copy a file to a part file beside ``destination`` and return its path.

    Raises:
        DownloadError: The disk refuses it.
    """
    part = part_beside(destination)
    try:
        shutil.copyfile(source, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise disk_error(error, destination) from None
    return part


def write_part(part: Path, content: bytes, destination: Path) -> None:
    """Write and sync a part file.

    Raises:
        DownloadError: The disk refuses it.
    """
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, destination) from None


def finish_part(part: Path, destination: Path) -> None:
    """Rename a complete and synced part file; an existing file is replaced.

    Raises:
        DownloadError: The disk refuses it.
    """
    try:
        part.replace(destination)
    except OSError as error:
        raise disk_error(error, destination) from None
    _sync_folder(destination.parent)


def _part_path(destination: Path) -> Path:
    digits = hashlib.sha256(os.fsencode(destination.name)).hexdigest()[:12]
    return destination.with_name(f".{digits}-{secrets.token_hex(4)}.part")


def _make_part(path: Path, mode: int) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_stale_parts(path.parent.absolute())
    path.touch(mode, exist_ok=False)
    return path.open("r+b")


def _sync_folder(folder: Path) -> None:
    """Sync the new name to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@lru_cache(maxsize=256)
def _delete_stale_parts(folder: Path) -> None:
    """Delete the part files of dead processes in ``folder``, once per folder and process.

    No download writes nothing for a day. The age of a file is measured by the file system's clock, which on a
    network disk can differ from ours.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        parts = [entry for entry in entries if _PART.fullmatch(entry.name)]
        if not parts:
            return
        now = _now_on(folder)
        for entry in parts:
            with contextlib.suppress(OSError):
                seen = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(seen.st_mode) and now - seen.st_mtime > _STALE_S:
                    Path(entry.path).unlink()


def _now_on(folder: Path) -> float:
    """Return the time of the file system's clock."""
    probe = folder / f".{secrets.token_hex(6)}-{secrets.token_hex(4)}.part"
    try:
        with probe.open("xb") as made:
            return os.fstat(made.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)
