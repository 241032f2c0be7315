"""Decides how large a result may be, when a download is resumed, and when a failed one is repeated."""

from __future__ import annotations

import copy
import enum
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import attrs

from flux_async.errors import Charge, DownloadError, E, NotAnImage, ResultExpired, ResultTooLarge
from flux_async.models import TaskId
from flux_async.policy import positive_integer, positive_number

MOST_RESUMES = 3
"""Resumes of one download."""

REFRESHABLE = frozenset({401, 403, 404, 410})
"""HTTP statuses of a file host after which a fresh link may help: it refuses this address."""

_DAY_S = 86_400.0
_HOURS_BELOW_S = 3 * _DAY_S
_LONGEST_BACKOFF_S = 60.0
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_PARTIAL = 206
RESUME_BASE_S = 0.5
_LONGEST_ETAG = 200
_LONGEST_LENGTH = 18
_STRONG_AFTER_S = 60.0
_ETAG = re.compile(r'"[!#-~]*"')
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@attrs.frozen(kw_only=True)
class DownloadLimits:
    """How large a result may be, and how long its host may send nothing.

    The defaults are about ten times the models' results (1 to 2 megapixels, up to about 6 MB as PNG), so that
    a new model needs no new setting; decoded, 100 megapixels take 400 MB of memory.

    Attributes:
        max_bytes: Size of the file.
        max_pixels: Width times height, read from the start of the file before the rest is fetched.
        stall_s: Seconds without a byte after which the connection counts as broken.
    """

    max_bytes: int = attrs.field(default=64 * 1024 * 1024, validator=positive_integer)
    max_pixels: int = attrs.field(default=100_000_000, validator=positive_integer)
    stall_s: float = attrs.field(default=30.0, validator=positive_number)

    def check_bytes(self, count: int, *, declared: bool = False) -> None:
        """Raise :class:`ResultTooLarge` for more bytes than allowed, declared or received."""
        if count > self.max_bytes:
            size = f"{count:,} bytes" if declared else "too many bytes"
            raise ResultTooLarge(f"The file has {size}; at most {self.max_bytes:,} are allowed.")

    def check_pixels(self, width: int, height: int) -> None:
        """Raise :class:`ResultTooLarge` for more pixels than allowed."""
        if width * height > self.max_pixels:
            raise ResultTooLarge(
                f"The image has {width:,} by {height:,} pixels; at most {self.max_pixels:,} in all are "
                "allowed."
            )


@attrs.frozen(kw_only=True)
class FileHead:
    """Headers of a file.

    Attributes:
        length: Bytes of the whole file, if the host declares them.
        validator: ETag or date of this version of the file, if the host can send the rest of it later.
    """

    length: int | None = None
    validator: str | None = None


def read_head(headers: Mapping[str, str]) -> FileHead:
    """Read the headers (names in lower case) of a whole file.

    Raises:
        NotAnImage: The file is compressed although that was not accepted: its size would be unknown.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise NotAnImage("The file host compresses the image although it was asked not to.")
    length = headers.get("content-length", "")
    known = length.isascii() and length.isdigit() and len(length) <= _LONGEST_LENGTH
    resumable = headers.get("accept-ranges", "").strip().lower() == "bytes"
    return FileHead(length=int(length) if known else None, validator=_strong(headers) if resumable else None)


def _strong(headers: Mapping[str, str]) -> str | None:
    """Return the strong validator of a file (RFC 9110, section 8.8): its ETag, else its date."""
    etag = headers.get("etag", "")
    if len(etag) <= _LONGEST_ETAG and _ETAG.fullmatch(etag):
        return etag
    changed = headers.get("last-modified", "")
    try:
        age = parsedate_to_datetime(headers["date"]) - parsedate_to_datetime(changed)
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    # A date is strong only if it is old: a file may change twice within one second.
    return changed if changed.isascii() and age.total_seconds() >= _STRONG_AFTER_S else None


def headers_to_resume(head: FileHead, received: int) -> dict[str, str]:
    """Return the headers that request the rest of a file; none if the host cannot send it."""
    if not received or head.validator is None:
        return {}
    return {"Range": f"bytes={received}-", "If-Range": head.validator}


def continues(status: int, headers: Mapping[str, str], head: FileHead, received: int) -> bool:
    """Return whether an answer is the rest of the file described by ``head``, from byte ``received`` on."""
    match = _RANGE.fullmatch(headers.get("content-range", "").strip())
    if status != _PARTIAL or match is None or int(match[1]) != received:
        return False
    if match[3] != "*" and head.length is not None and int(match[3]) != head.length:
        return False
    return headers.get("etag", head.validator) == head.validator or not _is_etag(head.validator)


def _is_etag(validator: str | None) -> bool:
    return validator is not None and validator.startswith('"')


def before_resume(resumes: int, draw: float) -> float | None:
    """Return the seconds until a download is resumed, or None: it is not.

    Args:
        resumes: Resumes so far; the first follows at once.
        draw: A random number from 0 to 1.
    """
    if resumes >= MOST_RESUMES:
        return None
    return draw * RESUME_BASE_S * 2.0**resumes if resumes else 0.0


def refusal(status: int, host: str, *, retry_after_s: float | None = None) -> DownloadError:
    """Return the error for an answer that is no file. No status alone proves that a result is lost.

    Args:
        status: HTTP status.
        host: The file host. The whole address of a fresh link grants access, so it is never shown.
        retry_after_s: Seconds the host asked to wait.
    """
    return DownloadError(f"{host} answered HTTP {status}.", http_status=status, retry_after_s=retry_after_s)


# --- repeating a failed download --------------------------------------------------------------------------


@attrs.frozen
class DownloadAgain:
    """Download once more after ``delay_s`` seconds; that is free."""

    delay_s: float


class NoDownload(enum.Enum):
    """Why a download is not repeated."""

    FOR_NOW = enum.auto()
    """The result stays available for another run or call."""
    FOR_GOOD = enum.auto()
    """The vendor no longer keeps it."""


def after_failed_download(
    error: DownloadError, *, tries: int, age_s: float | None, kept_s: float, left_s: float, draw: float
) -> DownloadAgain | NoDownload:
    """Return what follows a failed download of a paid result.

    Every transient failure is tried again: half to all of 1 s later, then 2 s, 4 s … up to 60 s, or after
    Retry-After. The last try comes at the end of the time: with 10 s left and a Retry-After of an hour, in
    10 s.

    Args:
        error: How the last try ended.
        tries: Downloads tried so far, at least 1.
        age_s: Seconds since the task was submitted, or None if unknown.
        kept_s: Seconds for which the vendor keeps its result.
        left_s: Seconds for which further tries may begin.
        draw: A random number from 0 to 1.
    """
    if is_expired(error, age_s, kept_s):
        return NoDownload.FOR_GOOD
    if not error.retryable or left_s <= 0:
        return NoDownload.FOR_NOW
    backoff = min(_LONGEST_BACKOFF_S, 2.0 ** min(tries - 1, 32)) * (0.5 + 0.5 * draw)
    return DownloadAgain(min(max(backoff, error.retry_after_s or 0.0), left_s))


def is_expired(error: DownloadError, age_s: float | None, kept_s: float) -> bool:
    """Return whether a result is gone for good: refused, and older than the vendor keeps results.

    Before that even 404 and 410 may be transient: a CDN answers so for results that are seconds old. After it
    a host that cannot be reached proves nothing.
    """
    return age_s is not None and age_s > kept_s and error.http_status in REFRESHABLE


def expired(error: DownloadError, kept_s: float) -> ResultExpired:
    """Return the error of a result that is gone for good."""
    return ResultExpired(
        f"The vendor keeps results for {_span(kept_s)}, and this one is older: {error.message}",
        http_status=error.http_status,
    )


def unfetched(
    error: E, name: str, *, tries: int, submitted_at: float | None, kept_s: float, task_id: TaskId | None
) -> E:
    """Return ``error`` as the end of all tries of a run, with charge, task, date and advice in its message.

    ``Download failed for poster.jpg: files.example answered HTTP 503 (3 attempts). The result is paid and
    stays available until 14 December. Run the batch again on the same journal to fetch it.``

    Args:
        error: How the last try ended.
        name: What the image is called.
        tries: Downloads tried.
        submitted_at: When the task was submitted, in seconds since the epoch, if known.
        kept_s: Seconds for which the vendor keeps its result.
        task_id: The task.
    """
    attempts = f"{tries} {'attempt' if tries == 1 else 'attempts'}"
    reason = error.message.removesuffix(".")
    if reason.startswith("The "):
        reason = reason.replace("T", "t", 1)
    last = copy.copy(error)
    last.args = (f"Download failed for {name}: {reason} ({attempts}).",)
    last.task_id, last.charge = task_id, Charge.YES
    is_curable = isinstance(error, DownloadError) and not error.retryable
    cure = f"{error.advice_template} " if is_curable else ""
    last.advice = f"{cure}{kept_until(submitted_at, kept_s)} {{fetch}}"
    return last


def kept_until(submitted_at: float | None, kept_s: float) -> str:
    """Return the sentence that says how long a paid result can be fetched."""
    if submitted_at is None:
        return f"The result is paid and stays available for {_span(kept_s)}."
    end = datetime.fromtimestamp(submitted_at + kept_s, UTC)
    hour = f", {end:%H:%M} UTC" if kept_s < _HOURS_BELOW_S else ""
    return f"The result is paid and stays available until {end.day} {_MONTHS[end.month - 1]}{hour}."


def fetch_first_after_s(kept_s: float) -> float:
    """Return the age in seconds from which a result is fetched before others.

    Its last day begins then, or the second half of its life: 13 days for 14, 12 hours for 24.
    """
    return kept_s - min(_DAY_S, kept_s / 2)


def _span(kept_s: float) -> str:
    return f"{kept_s / 3600:.0f} hours" if kept_s < _HOURS_BELOW_S else f"{kept_s / _DAY_S:.0f} days"
