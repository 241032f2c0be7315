"""Which file is behind which link, and for how long (API page, "Image Storage").

Knows addresses and times only; the bytes lie elsewhere, under the name in `Blob`.
"""

from __future__ import annotations

import enum
import heapq
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from flux_async.sandbox.faults import Fault, Place, Struck

MINUTE: Final = 60.0
DAY: Final = 24 * 60 * MINUTE

EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
}


class Link(enum.Enum):
    """What a link leads to; the value is how long it lives, in vendor seconds."""

    ORIGIN = 10 * MINUTE
    RESULT = 14 * DAY
    FRESH = 20 * MINUTE
    UPLOAD = 1 * DAY


@attrs.frozen(kw_only=True)
class Blob:
    """Bytes that are stored somewhere.

    Attributes:
        name: Under which the bytes were stored.
        content_type: What they are.
        kept: Whether they are needed after the link to them has expired.
    """

    name: str
    content_type: str
    kept: bool = False


@attrs.frozen(kw_only=True)
class PublicFile:
    """A link that was given out: its path, what is behind it, and when it ends (vendor seconds).

    Attributes:
        faults: What goes wrong when it is followed.
    """

    path: str
    link: Link
    blob: Blob
    expires_at: float
    faults: Struck = attrs.Factory(dict)


class FileBook:
    """The links of one sandbox."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._files: dict[str, PublicFile] = {}
        self._expiries: list[tuple[float, str]] = []
        self._replaced: list[Blob] = []
        self._fetched: Counter[str] = Counter()
        self._changed: set[str] = set()

    def publish(
        self, link: Link, blob: Blob, now: float, *, path: str | None = None, faults: Struck | None = None
    ) -> PublicFile:
        """Give out a link; without a path it gets one nobody can guess. A file at the path is replaced."""
        faults = faults or {}
        if path is None:
            named_png = Fault.FILE_JPEG_AS_PNG in faults
            extension = "png" if named_png else EXTENSIONS.get(blob.content_type, "bin")
            path = f"/files/{link.name.lower()}/{self._rng.getrandbits(128):032x}.{extension}"
        expires_at = now + (0.0 if Fault.EXPIRED_RESULT in faults else link.value)
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
        """Take up links that were given out in an earlier life."""
        for file in files:
            self._add(file)

    def take_changed(self) -> list[tuple[str, PublicFile | None]]:
        """Return the links that changed since the last time; None for those that are gone."""
        changed, self._changed = self._changed, set()
        return [(path, self._files.get(path)) for path in changed]

    def names(self) -> Iterator[str]:
        """Yield under which names the bytes lie."""
        return (file.blob.name for file in self._files.values())

    def find(self, path: str, now: float) -> PublicFile | None:
        """Return the file behind a path, or None where there never was one or it has expired."""
        file = self._files.get(path)
        return file if file is not None and now < file.expires_at else None

    def fetch(self, file: PublicFile) -> Fault | None:
        """Write down that a link is followed, and return what goes wrong with that, if anything."""
        self._fetched[file.path] += 1
        count = self._fetched[file.path]
        faults = (f for f, most in file.faults.items() if f.place is Place.FILE and count <= most)
        return next(faults, None)

    def sweep(self, now: float) -> Iterator[Blob]:
        """Forget what has expired and yield the blobs nothing leads to any more."""
        while self._replaced:
            yield self._replaced.pop()
        while self._expiries and self._expiries[0][0] <= now:
            _, path = heapq.heappop(self._expiries)
            file = self._files.get(path)
            if file is None or now < file.expires_at:
                continue  # replaced by a younger one
            del self._files[path]
            self._changed.add(path)
            del self._fetched[path]
            # A fresh link shares the bytes of a result, which outlives it.
            if file.link is not Link.FRESH and not file.blob.kept:
                yield file.blob
