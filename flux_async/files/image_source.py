"""Opens local images, and other uploads, and reads them in pieces.

No file is in memory as a whole, and no disk is accessed on the event loop. A file that changes while it is
read is refused, because its job is named by its content.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, Self, TypeAlias, cast

import anyio.to_thread
import attrs

from flux_async.errors import FluxError, InvalidInput, shown
from flux_async.files.image_check import MAX_UPLOAD_BYTES, ImageInfo, check_size, read_image
from flux_async.files.object_store import read_object
from flux_async.images import LocalImage, check_http_url, is_object

Source: TypeAlias = str | os.PathLike[str] | LocalImage | bytes | AsyncIterable[bytes]
"""What can be uploaded: a file, bytes, or a stream of bytes."""

PIECE = 256 * 1024
_NEITHER = "Give an http(s) URL, or the path of a JPEG, PNG or WebP file. Nothing was sent."
_BYTES = "Upload it first, free of charge: uploaded = await client.upload(…); then give uploaded.url."
_STILL = "Wait until it is completely written, then try again. Nothing was charged."


async def choose(image: object) -> str | LocalImage:
    """Return an http(s) URL or the address of an object unchanged, or the local file that ``image`` names.

    Raises:
        InvalidInput: It is neither; nothing was sent.
    """
    if isinstance(image, str) and (image[:5].lower() == "data:" or "://" in image):
        return image if is_object(image) else check_http_url(image)
    if not isinstance(image, str | os.PathLike | LocalImage):
        raw = isinstance(image, bytes | bytearray | memoryview | AsyncIterable)
        what = f"{type(image).__name__} with the bytes of an image" if raw else shown(image)
        raise InvalidInput(
            f"{what} is neither an http(s) URL nor a file.", advice=_BYTES if raw else _NEITHER
        )
    local = image if isinstance(image, LocalImage) else LocalImage(path=image)
    await anyio.to_thread.run_sync(_check_file, local)
    return local


async def identify(image: LocalImage) -> LocalImage:
    """Return ``image`` with an absolute folder and the digest of its content, which is read if unknown.

    Raises:
        InvalidInput: It is no file, no image, or too large.
    """
    return await anyio.to_thread.run_sync(identify_now, image)


def identify_now(image: LocalImage) -> LocalImage:
    """Do the same as :func:`identify`, in the thread of the caller."""
    # A later run may start in another folder.
    image = attrs.evolve(image, folder=os.path.abspath(image.folder))  # noqa: PTH100 - resolve() follows links
    if image.sha256 is not None:
        return image
    content = Content.of_file(image, MAX_UPLOAD_BYTES)
    try:
        content.open()
        return attrs.evolve(image, sha256=content.digest())
    finally:
        content.close()


async def open_content(source: object, max_bytes: int = MAX_UPLOAD_BYTES) -> Content:
    """Open an upload, and check that it is an image of allowed size.

    Raises:
        InvalidInput: It is not, or ``source`` cannot be read.
    """
    if isinstance(source, str) and is_object(source):
        copy = await read_object(source, max_bytes)
        content = Content(open_file=lambda: copy, name=source, max_bytes=max_bytes)
        return await _opened(content)
    if isinstance(source, str) and "://" in source:
        raise InvalidInput(
            f"{shown(source)} is not a local file.",
            advice="Let the upload host fetch an address with client.upload_from_url. Nothing was sent.",
        )
    if isinstance(source, str | os.PathLike):
        source = LocalImage(path=source)
    if isinstance(source, LocalImage):
        content = Content.of_file(source, max_bytes)
    elif isinstance(source, bytes | bytearray | memoryview):
        content = Content(open_file=partial(io.BytesIO, source), max_bytes=max_bytes)
    elif isinstance(source, AsyncIterable):
        copy = await _spooled(source, max_bytes)
        content = Content(open_file=lambda: copy, max_bytes=max_bytes)
    else:
        raise InvalidInput(
            f"{shown(source)} cannot be uploaded.",
            advice="Give a path, bytes, or an async iterable of bytes. Nothing was sent.",
        )
    return await _opened(content)


async def _opened(content: Content) -> Content:
    try:
        await anyio.to_thread.run_sync(content.open)
    except BaseException:
        content.close()
        raise
    return content


class _Digest(Protocol):
    """The used part of a digest of ``hashlib``, whose own type has no public name."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@attrs.define(kw_only=True, eq=False)
class Content:
    """An image that can be read any number of times between ``open`` and ``close``.

    It is read in worker threads. If the caller was cancelled, its thread may still run after ``close``: then
    the thread closes the file.

    Attributes:
        open_file: Opens the file.
        max_bytes: A larger file is refused.
        name: Its name in messages.
        expected: The digest it must have, if its job is named by one.
        watched: Whether the file may change, so that size and time are compared after each piece.
        size: Bytes.
        info: Its header.
        sha256: Its digest, after it was read to the end.
        trouble: Why it could not be read to the end.
    """

    open_file: Callable[[], BinaryIO] = attrs.field(repr=False)
    max_bytes: int
    name: str = "the image"
    expected: str | None = None
    watched: bool = False
    size: int = attrs.field(default=0, init=False)
    info: ImageInfo = attrs.field(init=False, repr=False)
    sha256: str | None = attrs.field(default=None, init=False)
    trouble: FluxError | None = attrs.field(default=None, init=False)
    _file: BinaryIO | None = attrs.field(default=None, init=False, repr=False)
    _stamp: tuple[int, int] | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)

    @classmethod
    def of_file(cls, image: LocalImage, max_bytes: int) -> Self:
        """Return the content of a file, not opened yet."""

        def open_file() -> BinaryIO:
            _check_file(image)  # before it is opened: opening a pipe would wait for a writer
            return _location(image).open("rb")

        return cls(
            open_file=open_file, name=str(image), max_bytes=max_bytes, expected=image.sha256, watched=True
        )

    def open(self) -> None:
        """Open it, in the thread of the caller, and check size and format.

        Raises:
            InvalidInput: It is no image of allowed size, or cannot be read.
        """
        try:
            with self._held():
                self._file = file = self.open_file()
                self._stamp = _stamp_of(file) if self.watched else None
                self.size = file.seek(0, os.SEEK_END)
                check_size(self.size, self.name, self.max_bytes)
                self.info = read_image(self._read, self.name)
        except OSError as error:
            raise _unreadable(self.name, error) from None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes; the last piece only if the file has not changed."""
        at, digest = 0, hashlib.sha256()
        try:
            while at < self.size:
                piece = await anyio.to_thread.run_sync(self._next, at, digest)
                at += len(piece)
                yield piece
        except InvalidInput as error:
            self.trouble = error
            raise

    def digest(self) -> str:
        """Read the whole file, in the thread of the caller, and return its digest."""
        at, digest = 0, hashlib.sha256()
        while at < self.size:
            at += len(self._next(at, digest))
        return digest.hexdigest()

    def close(self) -> None:
        """Close it without waiting; a reader gets an error at the next piece."""
        self._closed = True
        self._close_if_free()

    def _next(self, at: int, digest: _Digest) -> bytes:
        try:
            with self._held():
                piece = self._read(at, min(PIECE, self.size - at))
                stamp = _stamp_of(self._file) if self._file is not None and self.watched else None
        except OSError as error:
            raise _unreadable(self.name, error) from None
        digest.update(piece)
        if not piece or stamp != self._stamp:
            raise InvalidInput(f"{self.name} changed while it was being read.", advice=_STILL)
        if at + len(piece) == self.size:
            self._check_digest(digest.hexdigest())
        return piece

    def _check_digest(self, found: str) -> None:
        self.sha256 = found
        if self.expected not in {None, found}:
            raise InvalidInput(
                f"{self.name} has changed since its job was made.",
                advice="Give the file again: a changed image is a job of its own. Nothing was charged.",
            )

    def _read(self, offset: int, count: int) -> bytes:
        if self._file is None:
            raise InvalidInput(f"{self.name} is not open.")
        self._file.seek(offset)
        return self._file.read(count)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the file open; if ``close`` was called meanwhile, close it afterwards."""
        try:
            with self._lock:
                if self._closed:
                    raise InvalidInput(f"{self.name} was closed.", advice="Its upload was abandoned.")
                yield
        finally:
            if self._closed:
                self._close_if_free()

    def _close_if_free(self) -> None:
        """Close the file unless a thread is using it, which then does so itself."""
        if self._lock.acquire(blocking=False):
            try:
                if self._file is not None:
                    self._file.close()
            finally:
                self._lock.release()


def _check_file(image: LocalImage) -> None:
    """Raise if it is no regular file; it may still be removed before it is read."""
    try:
        mode = _location(image).stat().st_mode
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{shown(str(image))} is neither an http(s) URL nor a local file: {_why(error)}.", advice=_NEITHER
        ) from None
    if not stat.S_ISREG(mode):
        what = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
        raise InvalidInput(f"{shown(str(image))} {what}.", advice=_NEITHER)


def _location(image: LocalImage) -> Path:
    location = image.location
    if location is None:
        raise InvalidInput(
            f"No file with the content {image.reference} is known.",
            advice="Give the file itself again. Nothing was sent.",
        )
    return location


async def _spooled(stream: AsyncIterable[bytes], max_bytes: int) -> BinaryIO:
    """Copy a stream to disk: its size must be known before it is sent, and it may be sent again."""
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - its Content closes it
    try:
        size = 0
        async for piece in stream:
            size += _length(piece)
            check_size(max(1, size), "the image", max_bytes)
            await anyio.to_thread.run_sync(copy.write, piece)
    except OSError as error:
        copy.close()
        raise _unreadable("the image", error) from None
    except BaseException:
        copy.close()
        raise
    return copy


def _length(piece: object) -> int:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise InvalidInput(f"A stream of bytes yielded {shown(piece)}.")
    return len(piece)


def _stamp_of(file: BinaryIO) -> tuple[int, int]:
    now = os.fstat(file.fileno())
    return now.st_size, now.st_mtime_ns


def _unreadable(name: str, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"{shown(name)} cannot be read: {_why(error)}.", advice="Check that it exists and may be read."
    )


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
