"""Copies files of this machine into an object store, where workers read them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import anyio
import attrs

from flux_async.engine.database import storable
from flux_async.errors import InvalidInput, shown
from flux_async.files.image_source import open_content
from flux_async.files.object_store import ObjectStoreSink
from flux_async.images import LocalImage, is_object
from flux_async.models import EditRequest, Job, JobKey

_AT_ONCE = 8


@attrs.frozen
class Staging:
    """A place in an object store for the files of jobs, each named by its content.

    Attributes:
        url: Its address, such as ``s3://bucket/inputs``.

    Raises:
        InvalidInput: It is no address that workers can read from.
        MissingExtra: The extra ``storage`` is not installed.
    """

    url: str
    _sink: ObjectStoreSink = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not is_object(f"{self.url}/name"):
            raise InvalidInput(
                f"{shown(self.url)} is no place for files that workers are to read.",
                advice="Write s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.",
            )
        object.__setattr__(self, "_sink", ObjectStoreSink(self.url.rstrip("/")))

    async def stage(self, jobs: Sequence[Job]) -> tuple[list[Job | InvalidInput], dict[JobKey, str]]:
        """Copy the files of jobs; return jobs with the addresses of the copies, and the paths by key.

        A job keeps its key. A file that is there already is not copied again. One that has changed since its
        job was made, or cannot be read, is refused: the error stands in place of the job.

        Raises:
            FluxError: The store cannot be written.
        """
        staged, paths = list[Job | InvalidInput](jobs), dict[JobKey, str]()
        slots = anyio.Semaphore(_AT_ONCE)

        async def copy(number: int, job: Job, request: EditRequest, image: LocalImage) -> None:
            async with slots:
                try:
                    address = await self._copied(image)
                except InvalidInput as refusal:
                    staged[number] = refusal
                    return
            staged[number] = Job(key=job.key, request=attrs.evolve(request, input_image=address))
            paths[job.key] = storable(str(image))

        try:
            async with anyio.create_task_group() as group:
                for number, job in enumerate(jobs):
                    request = job.request
                    if isinstance(request, EditRequest) and isinstance(request.input_image, LocalImage):
                        group.start_soon(copy, number, job, request, request.input_image)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return staged, paths

    async def _copied(self, image: LocalImage) -> str:
        content = await open_content(image)
        with contextlib.closing(content):
            pieces = [piece async for piece in content.pieces()]
            name = f"{content.sha256}{content.info.suffix}"
            return await self._sink.put(name, b"".join(pieces), content.info.content_type)
