"""Where the bytes of files lie: a temporary directory that goes when the sandbox goes."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

from flux_async.sandbox.links import Blob


class Shelf:
    """Files under names of its own making; memory holds none of them.

    Args:
        directory: Where they lie and stay; left out, a temporary one is made when it is needed.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._stays = directory is not None
        self._directory = directory
        self._numbers = itertools.count(1)

    @property
    def directory(self) -> Path:
        """The directory, made when first needed and removed with the shelf or at exit."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="flux-sandbox-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        return self._directory

    def keep_only(self, names: Iterable[str]) -> None:
        """Delete what an earlier life left behind and nobody needs, and number on from the rest."""
        if self._directory is None or not self._directory.is_dir():
            return
        needed = set(names)
        for file in self._directory.iterdir():
            if file.name not in needed:
                file.unlink()
        highest = max((int(name) for name in needed if name.isdecimal()), default=0)
        self._numbers = itertools.count(highest + 1)

    def new_name(self) -> str:
        """Return a name that was not used before."""
        self.directory.mkdir(mode=0o700, exist_ok=True)  # cleaners of temporary files know no mercy
        return f"{next(self._numbers):08d}"

    def path(self, name: str) -> Path:
        """Return where the bytes of a name lie."""
        return self.directory / name

    def put(self, content: bytes, content_type: str, *, kept: bool = False, name: str | None = None) -> Blob:
        """Store bytes that are small."""
        blob = Blob(name=name or self.new_name(), content_type=content_type, kept=kept)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.path(blob.name).write_bytes(content)
        return blob

    def drop(self, name: str) -> None:
        """Delete the bytes of a name, if they are there."""
        self.path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything, unless it is to stay."""
        if self._directory is not None and not self._stays:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
