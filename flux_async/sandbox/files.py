"""Links with their lifetimes (API page, "Image Storage"), and the store of the bytes behind them."""

from __future__ import annotations

import enum
import heapq
import itertools
import random
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import attrs

from flux_async.sandbox.faults import ActiveFaults, Fault, Target

MINUTE: Final = 60.0
DAY: Final = 24 * 60 * MINUTE

EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
}


class Link(enum.Enum):
    """The kinds of links; the value is the lifetime in vendor seconds."""

    ORIGIN = 10 * MINUTE
    RESULT = 14 * DAY
    FRESH = 20 * MINUTE
    UPLOAD = 1 * DAY


@attrs.frozen(kw_only=True)
class Blob:
    """Stored bytes.

    Attributes:
        name: The name in the store.
        kept: Whether they stay when their link expires.
    """

    name: str
    content_type: str
    kept: bool = False


@attrs.frozen(kw_only=True)
class PublicFile:
    """A link: its path, its bytes and its end in vendor seconds.

    Attributes:
        faults: The faults of its downloads.
    """

    path: str
    link: Link
    blob: Blob
    expires_at: float
    faults: ActiveFaults = attrs.Factory(dict)


class LinkTable:
    """The links of one sandbox."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._files: dict[str, PublicFile] = {}
        self._expiries: list[tuple[float, str]] = []
        self._replaced: list[Blob] = []
        self._fetched: Counter[str] = Counter()
        self._changed: set[str] = set()

    def publish(
        self,
        link: Link,
        blob: Blob,
        now: float,
        *,
        path: str | None = None,
        faults: ActiveFaults | None = None,
        life: float | None = None,
    ) -> PublicFile:
        """Create a link, by default under a random path; a file at the same path is replaced.

        `life` is its lifetime in vendor seconds; left out, that of its kind.
        """
        faults = faults or {}
        if path is None:
            named_png = Fault.FILE_JPEG_AS_PNG in faults
            extension = "png" if named_png else EXTENSIONS.get(blob.content_type, "bin")
            path = f"/files/{link.name.lower()}/{self._rng.getrandbits(128):032x}.{extension}"
        life = link.value if life is None else life
        expires_at = now + (0.0 if Fault.EXPIRED_RESULT in faults else life)
        file = PublicFile(path=path, link=link, blob=blob, expires_at=expires_at, faults=faults)
        if (old := self._files.get(path)) is not None:
            self._replaced.append(old.blob)
        self._add(file)
        return file

    def _add(self, file: PublicFile) -> None:
        self._files[file.path] = file
        self._changed.add(file.path)
        heapq.heappush(self._expiries, (file.expires_at, file.path))

    def restore(self, files: Iterable[PublicFile]) -> None:
        """Add links of an earlier process."""
        for file in files:
            self._add(file)

    def take_changed(self) -> list[tuple[str, PublicFile | None]]:
        """Return the links that changed since the last call; None for removed ones."""
        changed, self._changed = self._changed, set()
        return [(path, self._files.get(path)) for path in changed]

    def names(self) -> Iterator[str]:
        """Yield the names of the stored bytes."""
        return (file.blob.name for file in self._files.values())

    def find(self, path: str, now: float) -> PublicFile | None:
        """Return the link of a path, or None if there is none or it has expired."""
        file = self._files.get(path)
        return file if file is not None and now < file.expires_at else None

    def fetch(self, file: PublicFile) -> Fault | None:
        """Count a download and return its fault, or None."""
        self._fetched[file.path] += 1
        count = self._fetched[file.path]
        faults = (f for f, most in file.faults.items() if f.target is Target.FILE and count <= most)
        return next(faults, None)

    def sweep(self, now: float) -> Iterator[Blob]:
        """Remove expired links and yield the bytes that no link leads to any more."""
        while self._replaced:
            yield self._replaced.pop()
        while self._expiries and self._expiries[0][0] <= now:
            _, path = heapq.heappop(self._expiries)
            file = self._files.get(path)
            if file is None or now < file.expires_at:
                continue  # replaced by a later one
            del self._files[path]
            self._changed.add(path)
            del self._fetched[path]
            # A fresh link shares the bytes of a result, which outlives it.
            if file.link is not Link.FRESH and not file.blob.kept:
                yield file.blob


class BlobStore:
    """The bytes of one sandbox, as files with numbers for names.

    Args:
        directory: Their folder, which stays; left out, a temporary one.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._stays = directory is not None
        self._directory = directory
        self._numbers = itertools.count(1)

    @property
    def directory(self) -> Path:
        """The directory, made when first needed and removed with the store or at exit."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="flux-sandbox-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        return self._directory

    def keep_only(self, names: Iterable[str]) -> None:
        """Delete all other files of an earlier process, and continue its numbers."""
        if self._directory is None or not self._directory.is_dir():
            return
        needed = set(names)
        for file in self._directory.iterdir():
            if file.name not in needed:
                file.unlink()
        highest = max((int(name) for name in needed if name.isdecimal()), default=0)
        self._numbers = itertools.count(highest + 1)

    def new_name(self) -> str:
        """Return an unused name."""
        self.directory.mkdir(mode=0o700, exist_ok=True)  # a cleaner of temporary files may have removed it
        return f"{next(self._numbers):08d}"

    def path(self, name: str) -> Path:
        """Return the path of a name."""
        return self.directory / name

    def put(self, content: bytes, content_type: str, *, kept: bool = False, name: str | None = None) -> Blob:
        """Store bytes."""
        blob = Blob(name=name or self.new_name(), content_type=content_type, kept=kept)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.path(blob.name).write_bytes(content)
        return blob

    def drop(self, name: str) -> None:
        """Delete the bytes of a name, if there are any."""
        self.path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete a temporary directory."""
        if self._directory is not None and not self._stays:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
