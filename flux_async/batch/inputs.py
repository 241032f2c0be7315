"""The inputs of a batch, read as a stream; files are named by content and uploaded right before their submit.

An upload costs nothing. One that was made in vain (a crash, a run that ended) is made again; a recent one
serves every submit of its job in this run.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TypeAlias, TypeVar

import anyio
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from flux_async.batch.options import BatchClient
from flux_async.errors import InvalidInput, shown
from flux_async.files.image_source import choose, identify
from flux_async.images import InputImage, LocalImage, must_be_uploaded
from flux_async.models import EditRequest, GenerateRequest, ImageRequest, Job, UploadedFile, check_request

T = TypeVar("T")

Input: TypeAlias = InputImage | GenerateRequest | EditRequest | Job
"""An image to remove text from (its URL, or a file), a request, or a job with a key of its own."""

REUSE_S = 12 * 3600.0
"""Seconds for which an upload is used: it may live for only 24 hours, and the vendor may fetch it late."""
_UPLOAD_TIMEOUT_S = 3600.0
"""Most of it may be spent waiting for the uploads of other jobs; each try has a limit of its own."""


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


async def read_job(given: Input) -> Job:
    """Return the job of an input; a file is read, so that the job is named by its content.

    Raises:
        InvalidInput: It is no request, or its file is no image, is too large or cannot be read.
    """
    if isinstance(given, str | os.PathLike | LocalImage | bytes | bytearray):  # of which the last are refused
        image = await choose(given)
        return as_job(image if isinstance(image, str) else await identify(image))
    if isinstance(given, Job):
        request = await _with_file_read(given.request)
        return given if request is given.request else attrs.evolve(given, request=request)
    return as_job(await _with_file_read(given) if isinstance(given, EditRequest) else given)


async def _with_file_read(request: ImageRequest) -> ImageRequest:
    if not isinstance(request, EditRequest) or not isinstance(request.input_image, LocalImage):
        return request
    return attrs.evolve(request, input_image=await identify(request.input_image))


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


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Yield the items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def read_into(
    give: MemoryObjectSendStream[Input],
    images: Iterable[Input] | AsyncIterable[Input],
    scope: anyio.CancelScope,
) -> None:
    """Read the inputs into a stream, as far as there is room, until ``scope`` is cancelled."""
    async with give:
        with scope:
            async for given in each(images):
                try:
                    give.send_nowait(given)
                except anyio.WouldBlock:
                    await give.send(given)


async def drain(take: MemoryObjectReceiveStream[Input], most: int) -> AsyncIterator[list[Input]]:
    """Yield the inputs that have arrived, in lists of at most ``most``, without waiting for full lists."""
    async for first in take:
        chunk = [first]
        while len(chunk) < most:
            try:
                chunk.append(take.receive_nowait())
            except (anyio.WouldBlock, anyio.EndOfStream):
                break
        yield chunk


@attrs.define(kw_only=True, eq=False)
class InputUpload:
    """The upload of one job's image, and its address.

    Attributes:
        client: Makes the upload.
        request: What the job asks for.
        via_upload: Whether an image that has an address is uploaded, too.
    """

    client: BatchClient
    request: ImageRequest
    via_upload: bool = False
    _uploaded: UploadedFile | None = attrs.field(default=None, init=False)

    @property
    def is_ready(self) -> bool:
        """Whether a submit could be made now."""
        if self._image is None:
            return True
        now = self.client.session.clock.wall()
        return self._uploaded is not None and now - self._uploaded.uploaded_at.timestamp() < REUSE_S

    @property
    def url(self) -> str | None:
        """The address of the upload, or None if the request's own is sent."""
        return None if self._uploaded is None else self._uploaded.url

    async def prepare(self) -> None:
        """Upload, unless a submit could be made now.

        Raises:
            FluxError: It cannot be uploaded; nothing was charged.
        """
        image = self._image
        if image is None or self.is_ready:
            return
        if isinstance(image, LocalImage) or must_be_uploaded(image):
            self._uploaded = await self.client.upload(image, timeout=_UPLOAD_TIMEOUT_S)
        else:
            self._uploaded = await self.client.upload_from_url(image, timeout=_UPLOAD_TIMEOUT_S)

    @property
    def _image(self) -> str | LocalImage | None:
        """The image that has to be uploaded, if any."""
        image = self.request.input_image if isinstance(self.request, EditRequest) else None
        return image if self.via_upload or must_be_uploaded(image) else None
