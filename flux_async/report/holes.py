"""Outlines of what was replaced, where the journal has none: found once, and kept with the small copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import attrs

from flux_async.report.part_file import part_file
from flux_async.report.thumbnails import Thumbnails, check_size, make_all

_LOSSLESS = frozenset({".png", ".tif", ".tiff", ".webp"})
"""Endings of files whose pixels differ from those of the original only where they were replaced."""


@attrs.frozen
class Holes:
    """The outlines of one folder's composed results, each in a file named after the small copy of the result.

    Results that were composed before journals had outlines are compared with their originals, which needs
    the extra ``verify``.
    """

    copies: Thumbnails

    def path_of(self, composed: Path) -> Path | None:
        """Return where the outlines of a result are, or will be; None where they cannot be found."""
        copy = self.copies.path_of(composed) if composed.suffix.lower() in _LOSSLESS else None
        return None if copy is None else copy.with_suffix(".outlines")

    def of(self, composed: Path) -> Sequence[Sequence[int]] | None:
        """Return the outlines of a result, or None before they were found."""
        path = self.path_of(composed)
        if path is None:
            return ()
        try:
            return tuple([int(value) for value in outline] for outline in json.loads(path.read_bytes()))
        except (OSError, TypeError, ValueError):
            return None

    def make(self, pairs: Iterable[tuple[Path, Path]], *, is_over: Callable[[], bool] = lambda: False) -> int:
        """Find the outlines for pairs of an original and its composed result; return how many were found."""
        jobs = (
            partial(_write, original, composed, path)
            for original, composed in pairs
            if (path := self.path_of(composed)) is not None
        )
        return make_all(self.copies.folder, jobs, is_over)


def _write(original: Path, composed: Path, path: Path) -> bool:
    try:
        from flux_async.verification.outlines import changed_outlines  # noqa: PLC0415 - needs an extra

        for image in (original, composed):
            check_size(image)
        with part_file(path) as part:
            part.write_text(json.dumps(changed_outlines(original, composed)))
    except Exception:  # noqa: BLE001 - Pillow raises errors of many kinds for damaged files
        return False
    return True
