"""What a batch is given, and the names of its files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import PurePosixPath
from typing import TypeAlias

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from flux_async.errors import InvalidInput, shown
from flux_async.files.image_writer import PICTURE_ENDINGS
from flux_async.models import EditRequest, GenerateRequest, InputImage, Job, LocalImage, check_request

Input: TypeAlias = InputImage | GenerateRequest | EditRequest | Job
"""A picture to remove text from (its URL, or a file), a request, or a job with a key of its own."""

_PLAIN = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,98}[a-z0-9_-])?")
_REFUSED_SOMEWHERE = frozenset('<>:"|?*\\')
_DEVICE = re.compile(
    r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])", re.IGNORECASE
)
_LONGEST_NAME = 180


def as_job(given: object) -> Job:
    """Return the job that an input stands for.

    Raises:
        InvalidInput: It stands for none.
    """
    if isinstance(given, Job):
        return given
    if isinstance(given, str | os.PathLike | LocalImage):
        return Job(request=EditRequest.text_removal(given))
    return Job(request=check_request(given))


def safe_name(key: str) -> str:
    """Return a file name for a key: the key itself where that is one, else a part of it and its digest.

    No two keys have one name, also on disks that take ``A`` for ``a``, and also once the ending follows the
    content: ``a.png`` and ``a.jpg`` would both become ``a.jpg``.
    """
    has_ending = PurePosixPath(key).suffix in PICTURE_ENDINGS
    if _PLAIN.fullmatch(key) and not has_ending and not _is_device(key):
        return key
    words = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[:60]
    return f"{words or 'job'}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def is_safe_name(name: object) -> bool:
    """Whether ``name`` names a file inside the folder it is put in: no way out, nothing a disk refuses.

    What some systems refuse (``a:b``, ``con.txt``, a dot or a space at the end) is refused on all of them:
    folders of pictures travel.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.encode()) <= _LONGEST_NAME:
        return False
    parts = name.split("/")
    return all(_is_safe_part(part) for part in parts)


def _is_safe_part(part: str) -> bool:
    return bool(part) and part[-1] not in ". " and not _REFUSED_SOMEWHERE & set(part) and not _is_device(part)


def _is_device(part: str) -> bool:
    """Whether Windows takes a name for a device, whatever its ending: ``NUL``, ``aux.txt``."""
    return bool(_DEVICE.fullmatch(part.partition(".")[0].rstrip()))


def check_images(images: object) -> None:
    """Refuse one image in place of a list of them: a string would be read letter by letter.

    Raises:
        InvalidInput: ``images`` is one image, or nothing that can be iterated over.
    """
    if isinstance(images, str | bytes) or not isinstance(images, Iterable | AsyncIterable):
        raise InvalidInput(
            f"images must be a list or a stream of images, not {shown(images)}.",
            advice="Put a single image into a list: [image]. Nothing was sent.",
        )


async def each(images: Iterable[Input] | AsyncIterable[Input]) -> AsyncIterator[Input]:
    """Yield the inputs, whichever kind of iterable holds them."""
    if isinstance(images, AsyncIterable):
        async for given in images:
            yield given
    else:
        for given in images:
            yield given


async def read_into(
    give: MemoryObjectSendStream[Input],
    images: Iterable[Input] | AsyncIterable[Input],
    scope: anyio.CancelScope,
) -> None:
    """Read the inputs into a stream, as far as there is room, until ``scope`` is cancelled."""
    async with give:
        with scope:
            if isinstance(images, AsyncIterable):
                async for given in images:
                    await give.send(given)
            else:
                for given in images:
                    try:
                        give.send_nowait(given)
                    except anyio.WouldBlock:
                        await give.send(given)


async def drain(take: MemoryObjectReceiveStream[Input], most: int) -> AsyncIterator[list[Input]]:
    """Yield what has arrived, in lists of at most ``most``: nothing waits for a list to be full."""
    async for first in take:
        chunk = [first]
        while len(chunk) < most:
            try:
                chunk.append(take.receive_nowait())
            except (anyio.WouldBlock, anyio.EndOfStream):
                break
        yield chunk
