"""Pictures on disk: whole under their name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread

from flux_async.errors import Charge, DownloadError

_BUFFER = 1024 * 1024
_HEAD = 16

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


async def write_picture(
    chunks: AsyncIterator[bytes], destination: Path, *, match_suffix: bool = False
) -> Path:
    """Write a picture under ``destination``, which appears only when it is complete and on the disk.

    Args:
        chunks: The content.
        destination: Where to; missing folders are made, an existing file is replaced.
        match_suffix: Change the ending to what the content is: a JPEG may arrive where PNG was asked for.

    Returns:
        The path written.

    Raises:
        DownloadError: The content is empty or no picture, or the disk refused it; nothing is left behind.
    """
    part = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.part")
    try:
        file = await anyio.to_thread.run_sync(_open, part)
        try:
            head = await _copy(chunks, file)
            suffix = picture_suffix(head)
            if suffix is None:
                raise _no_picture(head)
            final = destination.with_suffix(suffix) if match_suffix else destination
            await anyio.to_thread.run_sync(_finish, file, part, final)
        finally:
            file.close()
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(
            f"{destination} cannot be written: {error.strerror or error}.",
            advice="Check free space and permissions, then download again: the paid result is kept 14 days.",
            charge=Charge.YES,
        ) from None
    return final


def _open(part: Path) -> BinaryIO:
    part.parent.mkdir(parents=True, exist_ok=True)
    return part.open("xb")


def _finish(file: BinaryIO, part: Path, final: Path) -> None:
    """Bytes first, then the name: a crash in between leaves no half file under the name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    part.replace(final)


async def _copy(chunks: AsyncIterator[bytes], file: BinaryIO) -> bytes:
    """Write all chunks, off the event loop and in few steps; return the first bytes."""
    head, buffer = b"", bytearray()
    async for chunk in chunks:
        if len(head) < _HEAD:
            head += chunk[: _HEAD - len(head)]
        buffer += chunk
        if len(buffer) >= _BUFFER:
            await anyio.to_thread.run_sync(file.write, bytes(buffer))
            buffer.clear()
    await anyio.to_thread.run_sync(file.write, bytes(buffer))
    return head


def _no_picture(head: bytes) -> DownloadError:
    if not head:
        return DownloadError("The file host sent an empty file.")
    return DownloadError(
        f"The file host sent something that is no JPEG, PNG, WebP or GIF: it begins with {head!r}."
    )
