"""What may be brought to disk, and when a download goes on where it stopped."""

from __future__ import annotations

from typing import Any

import pytest

from flux_async import DownloadError, DownloadLimits, InvalidInput, NotAPicture, ResultExpired, ResultTooLarge
from flux_async.policy.downloads import (
    MOST_RESUMES,
    FileHead,
    before_resume,
    continues,
    headers_to_resume,
    is_lost,
    read_head,
    refusal,
)

LATER, EARLIER = "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:00:00 GMT"


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "stall_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "9", None])
def test_limits_are_checked_when_made(name: str, value: Any) -> None:
    """A limit that is none is refused at once."""
    with pytest.raises(InvalidInput, match=name):
        DownloadLimits(**{name: value})


def test_limits_are_inclusive() -> None:
    """What is exactly as large as allowed is allowed."""
    limits = DownloadLimits(max_bytes=10, max_pixels=20)
    limits.check_bytes(10)
    limits.check_pixels(4, 5)
    with pytest.raises(ResultTooLarge, match=r"goes on, and 10 are allowed"):
        limits.check_bytes(11)
    with pytest.raises(ResultTooLarge, match=r"has 11 bytes, and 10 are allowed"):
        limits.check_bytes(11, declared=True)
    with pytest.raises(ResultTooLarge, match=r"7 by 3 pixels, and 20 in all"):
        limits.check_pixels(7, 3)


@pytest.mark.parametrize(
    ("headers", "length"),
    [({}, None), ({"content-length": "12"}, 12), ({"content-length": "-1"}, None)]
    + [({"content-length": text}, None) for text in ("", "1e3", "12, 12", "\N{SUPERSCRIPT TWO}", "9" * 30)],
)
def test_the_length_is_a_number_or_unknown(headers: dict[str, str], length: int | None) -> None:
    """Nothing is guessed."""
    assert read_head(headers).length == length


def test_a_packed_file_is_refused() -> None:
    """Only the plain bytes were asked for."""
    assert read_head({"content-encoding": "identity"}) == FileHead()
    with pytest.raises(NotAPicture, match="packs"):
        read_head({"content-encoding": "gzip"})


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"etag": '"abc"'}, '"abc"'),
        ({"etag": '"abc"', "last-modified": EARLIER, "date": LATER}, '"abc"'),
        ({"etag": 'W/"abc"'}, None),
        ({"etag": 'W/"abc"', "last-modified": EARLIER, "date": LATER}, EARLIER),
        ({"etag": "abc"}, None),
        ({"etag": '"' + "x" * 300 + '"'}, None),
        ({"last-modified": EARLIER}, None),
        ({"last-modified": LATER, "date": LATER}, None),
        ({"last-modified": "yesterday", "date": LATER}, None),
        ({"last-modified": f"{EARLIER} (\N{SNOWMAN})", "date": LATER}, None),
        ({}, None),
    ],
)
def test_only_what_names_one_version_exactly_is_a_validator(
    headers: dict[str, str], validator: str | None
) -> None:
    """A weak tag and a date of this minute name too much; and ranges must be offered."""
    assert read_head({"accept-ranges": "bytes"} | headers).validator == validator
    assert read_head(headers).validator is None
    assert read_head({"accept-ranges": "none"} | headers).validator is None


def test_the_rest_is_asked_for_where_it_can_be_had() -> None:
    """From the first byte that is missing, if the file is still the same."""
    head = FileHead(length=100, validator='"v1"')
    assert headers_to_resume(head, 40) == {"Range": "bytes=40-", "If-Range": '"v1"'}
    assert headers_to_resume(head, 0) == {}
    assert headers_to_resume(FileHead(length=100), 40) == {}


DATED = FileHead(length=100, validator=EARLIER)


@pytest.mark.parametrize(
    ("status", "headers", "head", "expected"),
    [
        (206, {"content-range": "bytes 40-99/100"}, FileHead(length=100, validator='"v1"'), True),
        (206, {"content-range": "bytes 40-99/100", "etag": '"v1"'}, FileHead(validator='"v1"'), True),
        (206, {"content-range": "bytes 40-70/*"}, FileHead(length=100, validator='"v1"'), True),
        (206, {"content-range": "bytes 40-99/100", "etag": '"v9"'}, DATED, True),
        (206, {"content-range": "bytes 40-99/100", "etag": '"v2"'}, FileHead(validator='"v1"'), False),
        (206, {"content-range": "bytes 40-98/99"}, DATED, False),
        (206, {"content-range": "bytes 39-99/100"}, DATED, False),
        (206, {"content-range": "bytes forty-99/100"}, DATED, False),
        (206, {}, DATED, False),
        (200, {"content-range": "bytes 40-99/100"}, DATED, False),
    ],
)
def test_an_answer_is_the_rest_only_if_it_says_so(
    status: int, headers: dict[str, str], head: FileHead, *, expected: bool
) -> None:
    """Start, whole length and version must fit."""
    assert continues(status, headers, head, 40) is expected


def test_resumes_follow_at_once_then_later_then_not_at_all() -> None:
    """The waits grow and have an end."""
    assert [before_resume(n, 1.0) for n in range(MOST_RESUMES + 1)] == [0.0, 1.0, 2.0, None]
    assert before_resume(2, 0.25) == 0.5


@pytest.mark.parametrize(
    ("status", "refreshed", "kind"),
    [
        (404, False, ResultExpired),
        (410, False, ResultExpired),
        (403, False, DownloadError),
        (403, True, ResultExpired),
        (503, False, DownloadError),
        (503, True, DownloadError),
    ],
)
def test_a_refusal_says_who_refused(status: int, kind: type, *, refreshed: bool) -> None:
    """The host and the status, and whether a fresh link was refused, too."""
    error = refusal(status, "files.example", refreshed=refreshed)
    assert type(error) is kind
    assert error.http_status == status
    assert "files.example" in str(error)
    assert ("fresh" in str(error)) == (refreshed and status == 403)


@pytest.mark.parametrize(
    ("status", "age_days", "lost"),
    [
        (404, 0, True),
        (410, None, True),
        (403, 1, False),
        (403, None, False),
        (403, 13.9, False),
        (403, 14.1, True),
    ],
)
def test_a_paid_result_is_given_up_only_when_it_is_gone(
    status: int, age_days: float | None, lost: bool
) -> None:
    """404 and 410 are the end; a 403 is one only where the vendor keeps nothing that old."""
    now = 1_790_000_000.0
    submitted_at = None if age_days is None else now - age_days * 86_400
    assert is_lost(ResultExpired("refused", http_status=status), submitted_at, now) is lost
