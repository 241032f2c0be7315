"""Where the files of results are: the image, the vendor's own, and those of other attempts.

::

    NAME.png                   the result; composed, or the vendor's
    vendor/NAME.jpg            the vendor's own, where results are composed
    earlier/NAME.1.png         the result of another attempt, by its number
    earlier/NAME.1.vendor.jpg  the vendor's own of that attempt

While an earlier result is kept, the next one is saved as that of another attempt. If it is better, it takes
the place of the earlier one: every file is copied before that is recorded, and deleted only after it. A crash
in between leaves copies.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import attrs

from flux_async.errors import InvalidInput
from flux_async.files.image_writer import (
    IMAGE_ENDINGS,
    copy_to_part,
    finish_part,
    sha256_of,
)
from flux_async.job_state import JobSnapshot

VENDOR = "vendor"
"""The folder, in that of the results, with the vendor's own images where they are composed."""

EARLIER = "earlier"
"""The folder, in that of the results, with the images of attempts that are not the result."""

RESERVED = {VENDOR: "the vendor's images", EARLIER: "the images of other attempts"}
"""What these folders hold, in words."""

_OF_VENDOR = ".vendor"


def result_name(name: str, job: JobSnapshot) -> str:
    """Return the name of a job's next file; ``name`` is that of its result."""
    return name if job.kept is None else f"{EARLIER}/{_stem(name)}.{job.attempts}"


def vendor_name(file: str) -> str:
    """Return the name of the vendor's own image by that of the image, or by its own."""
    if file.startswith(f"{VENDOR}/"):
        return file
    if not file.startswith(f"{EARLIER}/"):
        return f"{VENDOR}/{file}"
    return f"{_stem(file).removesuffix(_OF_VENDOR)}{_OF_VENDOR}{_suffix(file)}"


def composed_name(vendor_file: str) -> str:
    """Return the name of the image by that of the vendor's own; its ending is to follow its content."""
    if vendor_file.startswith(f"{EARLIER}/"):
        return f"{_stem(vendor_file).removesuffix(_OF_VENDOR)}{_suffix(vendor_file)}"
    return vendor_file.removeprefix(f"{VENDOR}/")


def _stem(name: str) -> str:
    """Return a name without the ending of an image."""
    path = PurePosixPath(name)
    return name.removesuffix(path.suffix) if path.suffix.lower() in IMAGE_ENDINGS else name


def keep_vendors(directory: Path, file: str, sha256: str | None) -> str:
    """Return the vendor's own image, relative to the folder; one at another place is copied to its own.

    Raises:
        InvalidInput: It is not in the folder.
        DownloadError: The disk refuses the copy.
    """
    kept = vendor_name(file)
    if _is_image(directory / kept, sha256):
        return kept
    if kept == file or not _is_image(directory / file, sha256):
        raise InvalidInput(f"The vendor's image {file} is not in {directory} any more, or it was changed.")
    _copy(directory / file, directory / kept)
    return kept


@attrs.frozen(kw_only=True)
class Promoted:
    """The files of a result that took the place of an earlier one.

    Attributes:
        file: The image.
        vendor_file: The vendor's own; None if there is none.
        leftover: Files to be deleted once this is recorded.
    """

    file: str
    vendor_file: str | None
    leftover: frozenset[str]


def promote(directory: Path, job: JobSnapshot) -> Promoted:
    """Copy the files of the latest result to the place of the earlier one, and its files to ``earlier/``.

    The first copy of an earlier file counts: after a crash the latest result may be in its place already. A
    file that is gone is left out; what is paid is fetched again by the next run.

    Raises:
        DownloadError: The disk refuses a copy.
    """
    kept, file = job.kept, job.file
    if kept is None or file is None:
        raise InvalidInput(f"Job {job.key} has no two results.")
    old_vendor = None if kept.checked is None else kept.checked.vendor_file
    new_vendor = None if job.checked is None else job.checked.vendor_file
    stem = _stem(kept.file)
    for old, mark in ((kept.file, ""), (old_vendor, _OF_VENDOR)):
        target = directory / f"{EARLIER}/{stem}.{kept.attempt}{mark}{_suffix(old)}"
        if old is not None and not target.exists() and (directory / old).is_file():
            _copy(directory / old, target)
    final = f"{stem}{_suffix(file)}"
    final_vendor = None if new_vendor is None else f"{VENDOR}/{stem}{_suffix(new_vendor)}"
    for new, final_name in ((file, final), (new_vendor, final_vendor)):
        if new is not None and final_name is not None and (directory / new).is_file():
            _copy(directory / new, directory / final_name)
    leftover = {kept.file, old_vendor, file, new_vendor} - {final, final_vendor, None}
    return Promoted(file=final, vendor_file=final_vendor, leftover=frozenset(filter(None, leftover)))


def _suffix(file: str | None) -> str:
    return "" if file is None else file.removeprefix(_stem(file))


def _copy(source: Path, target: Path) -> None:
    finish_part(copy_to_part(source, target), target)


def _is_image(path: Path, sha256: str | None) -> bool:
    digest = sha256_of(path)
    return digest is not None and digest == (sha256 or digest)


def unlink(path: Path) -> None:
    """Delete a file, if it is there."""
    path.unlink(missing_ok=True)
