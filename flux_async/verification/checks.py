"""``ImageChecks``: verify, preserve and has_text in worker processes, for use from an event loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from flux_async.errors import CheckFailed, InvalidInput, shown
from flux_async.verification.image_files import MAX_PIXELS, ImageFile
from flux_async.verification.preserve import PreserveFormat, preserve
from flux_async.verification.preserved_file import PreservedFile, preserve_file
from flux_async.verification.verify import has_text, verify
from flux_async.verification.worker_pool import TRIES, WorkerEnded, WorkerPool

if TYPE_CHECKING:
    from types import TracebackType

    from flux_async.verification.report import Preserved
    from flux_async.verification.verdict import Verdict

P = ParamSpec("P")
T = TypeVar("T")


class ImageChecks:
    """Checks images in worker processes: the event loop goes on meanwhile.

    ``async with ImageChecks() as checks: verdict = await checks.verify("poster.jpg", "clean.jpg")``

    The processes start with the first check and end with the block. A cancelled check ends at once. If a
    process is killed, another one does its image again.

    Args:
        workers: The most processes; one for each core by default, as far as memory allows: each needs up to
            1.5 GB for an image of 12 megapixels.

    Raises:
        InvalidInput: ``workers`` is less than 1.
    """

    def __init__(self, *, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise InvalidInput(f"{shown(workers)} is no number of workers.", advice="Give at least 1.")
        self._pool = WorkerPool(workers)

    @property
    def workers(self) -> int:
        """The most processes that work at the same time."""
        return self._pool.workers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def verify(
        self, original: ImageFile, result: ImageFile, *, max_pixels: int = MAX_PIXELS
    ) -> Verdict:
        """Return what :func:`verify` returns, and raise its errors.

        Raises:
            CheckFailed: The process that did it ended, three times.
            ClientClosed: After ``aclose()``.
        """
        return await self._run(verify, _sent(original), _sent(result), max_pixels=max_pixels)

    async def preserve(
        self,
        original: ImageFile,
        result: ImageFile,
        *,
        format: PreserveFormat = "png",  # noqa: A002 - as in preserve
        max_pixels: int = MAX_PIXELS,
    ) -> Preserved:
        """Return what :func:`preserve` returns, and raise its errors.

        Raises:
            CheckFailed: The process that did it ended, three times.
            ClientClosed: After ``aclose()``.
        """
        return await self._run(preserve, _sent(original), _sent(result), format=format, max_pixels=max_pixels)

    async def preserve_file(
        self,
        original: ImageFile,
        result: ImageFile,
        destination: str | os.PathLike[str],
        *,
        format: PreserveFormat = "png",  # noqa: A002 - as in preserve
    ) -> PreservedFile:
        """Return what :func:`preserve_file` returns, and raise its errors.

        Raises:
            CheckFailed: The process that did it ended, three times.
            ClientClosed: After ``aclose()``.
        """
        files = _sent(original), _sent(result), _absolute(destination)
        return await self._run(preserve_file, *files, format=format)

    async def has_text(self, image: ImageFile, *, max_pixels: int = MAX_PIXELS) -> bool:
        """Return what :func:`has_text` returns, and raise its errors.

        Raises:
            CheckFailed: The process that did it ended, three times.
            ClientClosed: After ``aclose()``.
        """
        return await self._run(has_text, _sent(image), max_pixels=max_pixels)

    async def aclose(self) -> None:
        """End the processes; checks that are still running raise ``ClientClosed``."""
        await self._pool.aclose()

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._pool.run(function, *args, **kwargs)
        except WorkerEnded as ended:
            raise CheckFailed(
                f"An image could not be checked: its worker process ended {TRIES} times ({ended})."
            ) from None


def _sent(image: ImageFile) -> ImageFile:
    """Return an image as a worker can take it: its bytes, or an absolute path."""
    if isinstance(image, str | os.PathLike):
        return _absolute(image)
    return bytes(image) if isinstance(image, memoryview) else image


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - of str and bytes paths alike, without touching the disk
