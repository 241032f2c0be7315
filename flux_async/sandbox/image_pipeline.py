"""Makes the images of tasks in the background: fetches inputs, runs worker processes, reports results."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_process
import attrs
import httpx
from anyio.abc import TaskGroup

from flux_async.sandbox import envelopes
from flux_async.sandbox.clock import VendorClock, holding
from flux_async.sandbox.faults import Fault
from flux_async.sandbox.files import Blob, BlobStore
from flux_async.sandbox.http_client import TooLargeError, UnreachableError, fetch
from flux_async.sandbox.requests import Kind
from flux_async.sandbox.settings import SandboxSettings
from flux_async.sandbox.simulator import Failure, Task, TaskImages

logger: logging.Logger = logging.getLogger(__name__)

MAX_INPUT_BYTES: Final = 20 * 1024 * 1024
FETCHES_AT_ONCE: Final = 8

# Messages of the vendor's other image API; for this one none are documented.
UNREACHABLE: Final = Failure(
    code=400,
    message="Failed to fetch the image. Kindly verify any access limits set by you or your service provider",
)
TOO_LARGE: Final = Failure(code=400, message=f"Image size exceeds maximum of {MAX_INPUT_BYTES} bytes")
NOT_AN_IMAGE: Final = Failure(
    code=400, message="We couldn't process the provided image file (code=invalid_image_format)"
)
BROKEN: Final = Failure(code=500, message=envelopes.INTERNAL)

ONE_PIXEL: Final = {
    "png": base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNoaGgAAAMEAYF1LgG8AAAAAElFTkSuQmCC"
    ),
    "jpeg": base64.b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1R"
        "V19iZ2hnPk1xeXBkeFxlZ2P/wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAAAAAAAAAAAAAAAAAA"
        "AAD/2gAIAQEAAD8AP//Z"
    ),
}


@attrs.frozen(kw_only=True)
class Thumbnails:
    """The paths of the thumbnails of a task."""

    before: Path
    after: Path


@attrs.frozen(kw_only=True)
class ImageJob:
    """The order to a worker process to make one image.

    Attributes:
        source: The input; None to draw the prompt.
        exact: Whether the result keeps the input's size and its pixels outside the text.
        seed: Decides, with the input, how it is redrawn otherwise.
        faults: What is wrong with the result.
        result: Path of the result; `before` and `after` are those of the thumbnails.
    """

    kind: Kind
    prompt: str
    source: Path | None
    ratio: str | None
    output_format: str
    quality: str
    exact: bool
    seed: int
    faults: frozenset[Fault]
    threads: int
    result: Path
    before: Path
    after: Path


@attrs.frozen(kw_only=True)
class UnusableInput:
    """The input is not an image that the sandbox can read."""

    reason: str


def make_image_in_worker(job: ImageJob) -> UnusableInput | None:
    """Make one image; runs in a worker process."""
    from flux_async.sandbox.image_worker import make_image  # noqa: PLC0415 - loads numpy and OpenCV

    return make_image(job)


class ImagePipeline:
    """Makes the images of one sandbox.

    Args:
        complete: Called with the images of a task, or its failure.
        clock: Held during the work, which takes real time.
    """

    def __init__(
        self,
        settings: SandboxSettings,
        blobs: BlobStore,
        complete: Callable[[Task, TaskImages | Failure], None],
        clock: VendorClock,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._blobs = blobs
        self._complete = complete
        self._threads = max(1, (os.cpu_count() or 1) // settings.workers)
        self._fetching = anyio.CapacityLimiter(FETCHES_AT_ONCE)
        self._workers = anyio.CapacityLimiter(settings.workers)
        self._pixels: dict[str, Blob] = {}
        self._tasks: TaskGroup | None = None
        self.web: httpx.AsyncClient | None = None
        self.thumbnails: dict[str, Thumbnails] = {}

    def open(self, tasks: TaskGroup, web: httpx.AsyncClient) -> None:
        """Set the task group and the HTTP client of the work."""
        self._tasks, self.web = tasks, web

    def start(self, task: Task) -> None:
        """Start to make the images of a task; with ``images="none"`` complete it with one pixel."""
        if task.forced_failure is not None:
            self._complete(task, task.forced_failure)
            return
        if self._settings.images == "none":
            pixel = self._pixel(_format(task))
            self._complete(task, TaskImages(origin=pixel, result=pixel))
            return
        if self._tasks is None or self.web is None:
            raise RuntimeError(
                "images are made only during the lifespan of the app: enter it, or set images='none'"
            )
        self._tasks.start_soon(self._work, task, self.web)

    def _pixel(self, output_format: str) -> Blob:
        if output_format not in self._pixels:
            content, name = ONE_PIXEL[output_format], f"pixel.{output_format}"
            pixel = self._blobs.put(content, f"image/{output_format}", kept=True, name=name)
            self._pixels[output_format] = pixel
        return self._pixels[output_format]

    async def _work(self, task: Task, web: httpx.AsyncClient) -> None:
        with holding(self._clock):
            made = await self._fetch_and_make(task, web)
            self._complete(task, made)

    async def _fetch_and_make(self, task: Task, web: httpx.AsyncClient) -> TaskImages | Failure:
        request, blobs = task.request, self._blobs
        origin = Blob(name=blobs.new_name(), content_type="") if request.input_image else None
        made: TaskImages | Failure
        try:
            if request.input_image and origin:
                async with self._fetching:
                    path = blobs.path(origin.name)
                    content_type = await fetch(web, request.input_image, path, MAX_INPUT_BYTES)
                origin = attrs.evolve(origin, content_type=content_type)
            made = await self._make(task, origin)
        except UnreachableError as error:
            logger.info("task %s: input not fetched: %s", task.task_id, error)
            made = UNREACHABLE
        except TooLargeError as error:
            logger.info("task %s: input refused: %s", task.task_id, error)
            made = TOO_LARGE
        except Exception:  # an error in one image must not end the sandbox
            logger.exception("task %s: its image failed", task.task_id)
            made = BROKEN
        if isinstance(made, Failure) and origin:
            blobs.drop(origin.name)
        return made

    async def _make(self, task: Task, origin: Blob | None) -> TaskImages | Failure:
        request, blobs = task.request, self._blobs
        result = Blob(name=blobs.new_name(), content_type=f"image/{_format(task)}")
        thumbnails = Thumbnails(before=blobs.path(blobs.new_name()), after=blobs.path(blobs.new_name()))
        job = ImageJob(
            kind=request.kind,
            prompt=request.prompt,
            source=blobs.path(origin.name) if origin else None,
            ratio=request.aspect_ratio,
            output_format=_format(task),
            quality=self._settings.quality,
            exact=self._settings.exact,
            seed=self._settings.seed or 0,
            faults=frozenset(task.faults),
            threads=self._threads,
            result=blobs.path(result.name),
            before=thumbnails.before,
            after=thumbnails.after,
        )
        self.thumbnails[task.task_id] = thumbnails  # the one before exists long before the result
        unusable = await anyio.to_process.run_sync(
            make_image_in_worker, job, cancellable=True, limiter=self._workers
        )
        if isinstance(unusable, UnusableInput):
            logger.info("task %s: %s", task.task_id, unusable.reason)
            return NOT_AN_IMAGE
        # A generated image is its own origin.
        return TaskImages(origin=origin or attrs.evolve(result, kept=True), result=result)


def _format(task: Task) -> str:
    return "jpeg" if Fault.FILE_JPEG_AS_PNG in task.faults else task.request.output_format
