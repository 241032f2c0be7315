"""Where a composed result differs from its original, as boxes; found once, and kept with the small copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from itertools import product
from pathlib import Path

import attrs
from PIL import Image, ImageChops, ImageOps

from flux_async.report.part_file import part_file
from flux_async.report.rows import Box
from flux_async.report.thumbnails import Thumbnails, check_size, make_all

_CELLS = 64
"""Cells along the longer side of the grid on which changed pixels are joined to boxes."""


@attrs.frozen
class Holes:
    """The boxes of one folder's composed results, each in a file named after the small copy of the result."""

    copies: Thumbnails

    def path_of(self, composed: Path) -> Path | None:
        """Return where the boxes of a result are, or will be; None where there is no such result."""
        copy = self.copies.path_of(composed)
        return None if copy is None else copy.with_suffix(".json")

    def of(self, composed: Path) -> tuple[Box, ...] | None:
        """Return the boxes of a result, or None before they were found."""
        path = self.path_of(composed)
        try:
            return None if path is None else tuple(Box(*part) for part in json.loads(path.read_bytes()))
        except (OSError, TypeError, ValueError):
            return None

    def make(self, pairs: Iterable[tuple[Path, Path]], *, is_over: Callable[[], bool] = lambda: False) -> int:
        """Find the boxes of pairs of an original and its composed result; return how many were found."""
        jobs = (
            partial(_write, original, composed, path)
            for original, composed in pairs
            if (path := self.path_of(composed)) is not None
        )
        return make_all(self.copies.folder, jobs, is_over)


def _write(original: Path, composed: Path, path: Path) -> bool:
    try:
        with part_file(path) as part:
            part.write_text(json.dumps([attrs.astuple(box) for box in changed_boxes(original, composed)]))
    except Exception:  # noqa: BLE001 - Pillow raises errors of many kinds for damaged files
        return False
    return True


def changed_boxes(original: Path, composed: Path) -> tuple[Box, ...]:
    """Return the boxes around all pixels that differ; none where the images have not the same size.

    Changed pixels closer together than about 2 % of the longer side are in one box.
    """
    before, after = _upright(original), _upright(composed)
    if before.size != after.size:
        return ()
    changed = reduce(ImageChops.lighter, ImageChops.difference(before, after).split())
    scale = _CELLS / max(changed.size)
    size = (max(1, round(changed.width * scale)), max(1, round(changed.height * scale)))
    # A pixel of 255 in a cell of a million would be rounded away: 32-bit integers keep it.
    grid = changed.point([0] + [255] * 255).convert("F").resize(size, Image.Resampling.BOX)
    cells = {(x, y) for x, y in product(range(size[0]), range(size[1])) if grid.getpixel((x, y))}
    return tuple(_box_of(group, size) for group in _groups(cells))


def _upright(path: Path) -> Image.Image:
    check_size(path)
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _groups(cells: set[tuple[int, int]]) -> Iterator[set[tuple[int, int]]]:
    """Yield the cells that touch each other, also at a corner."""
    left = set(cells)
    while left:
        group, edge = set(), [min(left)]
        while edge:
            x, y = edge.pop()
            if (x, y) in left:
                left.remove((x, y))
                group.add((x, y))
                edge.extend(product((x - 1, x, x + 1), (y - 1, y, y + 1)))
        yield group


def _box_of(group: set[tuple[int, int]], size: tuple[int, int]) -> Box:
    (left, right), (top, bottom) = ((min(axis), max(axis) + 1) for axis in zip(*group, strict=True))
    width, height = size
    return Box(left / width, top / height, (right - left) / width, (bottom - top) / height)
