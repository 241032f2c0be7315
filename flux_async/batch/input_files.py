"""Pictures of this machine in a batch: read when they are given, uploaded right before their submit.

A job is named by what its file holds. An upload costs nothing, so one that was made in vain (a crash, a run
that ended) is simply made again; one that is still young serves every submit of its job in this run.
"""

from __future__ import annotations

import os

import attrs

from flux_async.batch.client_protocol import BatchClient
from flux_async.batch.inputs import Input
from flux_async.files.image_source import choose, identify
from flux_async.models import EditRequest, ImageRequest, Job, LocalImage, UploadedFile

REUSE_S = 12 * 3600.0
"""An upload lives for 24 hours at worst, and the vendor may fetch it late."""

_QUEUED_S = 3600.0
"""Most of it may be spent waiting for the uploads of other jobs; each try has a bound of its own."""


async def with_file_read(given: Input) -> Input:
    """Return an input whose file, if it is about one, is known by its content.

    Raises:
        InvalidInput: It is no file, no picture, or too large.
    """
    if isinstance(given, str | os.PathLike | LocalImage | bytes | bytearray):  # of which the last are refused
        image = await choose(given)
        return EditRequest.text_removal(image if isinstance(image, str) else await identify(image))
    if isinstance(given, Job):
        request = await _with_file_read(given.request)
        return given if request is given.request else attrs.evolve(given, request=request)
    return await _with_file_read(given) if isinstance(given, EditRequest) else given


async def _with_file_read(request: ImageRequest) -> ImageRequest:
    if not isinstance(request, EditRequest) or not isinstance(request.input_image, LocalImage):
        return request
    return attrs.evolve(request, input_image=await identify(request.input_image))


@attrs.define(kw_only=True, eq=False)
class InputPlace:
    """Where the vendor is told to fetch the picture of one job.

    Attributes:
        client: Makes the upload.
        request: What the job asks for.
        via_upload: Whether a picture that has an address is put on the upload host, too.
    """

    client: BatchClient
    request: ImageRequest
    via_upload: bool = False
    _uploaded: UploadedFile | None = attrs.field(default=None, init=False)

    @property
    def is_ready(self) -> bool:
        """Whether a submit could be made now."""
        return self._image is None or self._is_young

    @property
    def url(self) -> str | None:
        """The address of the upload, or None where the request's own is sent."""
        return None if self._uploaded is None else self._uploaded.url

    async def prepare(self) -> None:
        """Upload, unless a submit could be made now.

        Raises:
            FluxError: It cannot be uploaded; nothing was charged.
        """
        if self.is_ready or self._image is None:
            return
        if isinstance(self._image, LocalImage):
            self._uploaded = await self.client.upload(self._image, timeout=_QUEUED_S)
        else:
            self._uploaded = await self.client.upload_from_url(self._image, timeout=_QUEUED_S)

    @property
    def _image(self) -> str | LocalImage | None:
        """What has to be uploaded, if anything."""
        image = self.request.input_image if isinstance(self.request, EditRequest) else None
        return image if self.via_upload or isinstance(image, LocalImage) else None

    @property
    def _is_young(self) -> bool:
        now = self.client.session.clock.wall()
        return self._uploaded is not None and now - self._uploaded.uploaded_at.timestamp() < REUSE_S
