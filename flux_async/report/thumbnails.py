"""Small copies of images, made once and kept beside the report; a file is whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from pathlib import Path

import attrs
from PIL import Image, ImageOps

from flux_async.files.image_header import ImageReader
from flux_async.report.part_file import part_file

FOLDER = "thumbnails"
_LONGEST_SIDE = 480
_MOST_PIXELS = 50_000_000
"""A larger image is shown without a small copy: decoding it takes more than 200 MB."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_QUALITY = 78
_FIRST_BYTES = 1 << 20
_WORKERS = min(4, os.cpu_count() or 1)


@attrs.frozen
class Thumbnails:
    """The small copies of one folder's images, in its folder ``thumbnails``.

    A name is a digest of the image's path, size and time of change: a new result gets a new copy.
    """

    folder: Path

    def path_of(self, source: Path) -> Path | None:
        """Return where the copy of an image is, or will be; None where there is no such image."""
        try:
            found = source.stat()
        except (OSError, ValueError):
            return None
        # Relative, so that the copies stay valid when the folder is moved.
        name = os.path.relpath(source, self.folder) if source.is_relative_to(self.folder) else source
        identity = b"%s %d %d" % (os.fsencode(name), found.st_size, found.st_mtime_ns)
        return self.folder / FOLDER / f"{hashlib.blake2b(identity, digest_size=12).hexdigest()}.webp"

    def missing(self, sources: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
        """Yield each image without a copy, and the path of its copy."""
        for source in sources:
            copy = self.path_of(source)
            if copy is not None and not copy.exists():
                yield source, copy

    def make(self, sources: Iterable[Path], *, is_over: Callable[[], bool] = lambda: False) -> int:
        """Make the copies that are missing, several at once, and return how many were made.

        An image that cannot be read gets none.

        Args:
            sources: The images.
            is_over: Returns whether to stop; copies that are begun are finished.
        """
        return make_all(self.folder, (partial(_make, *pair) for pair in self.missing(sources)), is_over)


def make_all(folder: Path, jobs: Iterator[Callable[[], bool]], is_over: Callable[[], bool]) -> int:
    """Do the jobs in threads until they are done or ``is_over``; return how many made their file."""
    made, running = 0, set[Future[bool]]()
    (folder / FOLDER).mkdir(exist_ok=True)
    with ThreadPoolExecutor(_WORKERS, "report") as pool:
        while True:
            room = 0 if is_over() else 2 * _WORKERS - len(running)
            running |= {pool.submit(job) for job in islice(jobs, room)}
            if not running:
                return made
            done, running = wait(running, return_when=FIRST_COMPLETED)
            made += sum(each.result() for each in done)


def _make(source: Path, copy: Path) -> bool:
    try:
        with part_file(copy) as part:
            _draw(source).save(part, "WEBP", quality=_QUALITY, method=2)
    except Exception:  # noqa: BLE001 - Pillow raises errors of many kinds for damaged files
        return False
    return True


def _draw(source: Path) -> Image.Image:
    """Return the first frame of an image, upright and small."""
    check_size(source)
    with Image.open(source, formats=_FORMATS) as opened:
        scale = _LONGEST_SIDE / max(opened.size)
        wanted = (round(opened.width * scale), round(opened.height * scale))
        opened.draft("RGB", wanted)  # decodes a JPEG at a half to an eighth, where that is still as large
        image = ImageOps.exif_transpose(opened)
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return image


def check_size(source: Path) -> None:
    """Raise an error for an image that is too large to decode, or none; Pillow would only warn."""
    reader = ImageReader()
    with source.open("rb") as file:
        while reader.size is None and (piece := file.read(_FIRST_BYTES)):
            reader.feed(piece)
    if reader.size is None or reader.size[0] * reader.size[1] > _MOST_PIXELS:
        raise ValueError(f"{source} is no image, or too large to decode")
