"""Which files are accepted, when a download resumes, and when a failed one is retried."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flux_async import (
    AddressForbidden,
    DiskFull,
    DownloadCutShort,
    DownloadError,
    DownloadLimits,
    DownloadTimedOut,
    FolderNotWritable,
    InvalidInput,
    NotAnImage,
    ResultExpired,
    ResultTooLarge,
    TaskId,
)
from flux_async.policy.downloads import (
    MOST_RESUMES,
    DownloadAgain,
    FileHead,
    NoDownload,
    after_failed_download,
    before_resume,
    continues,
    expired,
    fetch_first_after_s,
    headers_to_resume,
    kept_until,
    read_head,
    refusal,
    unfetched,
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
    with pytest.raises(ResultTooLarge, match=r"too many bytes; at most 10 are allowed"):
        limits.check_bytes(11)
    with pytest.raises(ResultTooLarge, match=r"has 11 bytes; at most 10 are allowed"):
        limits.check_bytes(11, declared=True)
    with pytest.raises(ResultTooLarge, match=r"7 by 3 pixels; at most 20 in all"):
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
    with pytest.raises(NotAnImage, match="compresses"):
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
def test_an_answer_continues_a_file_only_if_its_headers_match(
    status: int, headers: dict[str, str], head: FileHead, *, expected: bool
) -> None:
    """Start, whole length and version must fit."""
    assert continues(status, headers, head, 40) is expected


def test_resumes_follow_at_once_then_later_then_not_at_all() -> None:
    """The waits grow and have an end."""
    assert [before_resume(n, 1.0) for n in range(MOST_RESUMES + 1)] == [0.0, 1.0, 2.0, None]
    assert before_resume(2, 0.25) == 0.5


@pytest.mark.parametrize("status", [401, 403, 404, 410, 500, 503])
def test_a_refusal_names_the_host_and_proves_nothing(status: int) -> None:
    """No status alone means that the result is gone."""
    error = refusal(status, "files.example", retry_after_s=7.0)
    assert type(error) is DownloadError
    assert (error.http_status, error.retry_after_s, error.retryable) == (status, 7.0, True)
    assert error.message == f"files.example answered HTTP {status}."


DAY_S = 86_400.0
KEPT_S = 14 * DAY_S
MAY_PASS: list[DownloadError] = [
    *(refusal(status, "h") for status in (400, 401, 403, 404, 408, 410, 418, 429, 500, 503)),
    DownloadError("h cannot be reached: ConnectError."),
    DownloadCutShort("cut"),
    DownloadTimedOut("late"),
    NotAnImage("a web page"),
]
IN_THE_WAY: list[DownloadError] = [
    ResultTooLarge("large"),
    AddressForbidden("private"),
    DiskFull("full"),
    FolderNotWritable("read-only"),
    ResultExpired("gone"),
    DownloadError("a folder is in the way", retryable=False),
]


def decide(error: DownloadError, **facts: Any) -> object:
    return after_failed_download(
        error, **{"tries": 1, "age_s": 5.0, "kept_s": KEPT_S, "left_s": 600.0, "draw": 1.0} | facts
    )


@pytest.mark.parametrize("error", MAY_PASS, ids=str)
@pytest.mark.parametrize("age_s", [None, 0.0, 13.9 * DAY_S])
def test_downloads_are_retried_while_the_vendor_keeps_results(
    error: DownloadError, age_s: float | None
) -> None:
    """With any status: a CDN that lags answers 404 and 410 for results that are seconds old."""
    assert decide(error, age_s=age_s) == DownloadAgain(1.0)
    assert decide(error, age_s=age_s, left_s=0.0) is NoDownload.FOR_NOW


@pytest.mark.parametrize("error", IN_THE_WAY, ids=str)
@pytest.mark.parametrize("age_s", [None, 0.0, 15 * DAY_S])
def test_limits_disks_and_forbidden_addresses_are_not_tried_again(
    error: DownloadError, age_s: float | None
) -> None:
    """Something has to be changed first; the result stays where it is."""
    assert decide(error, age_s=age_s) is NoDownload.FOR_NOW


@pytest.mark.parametrize("error", MAY_PASS, ids=str)
def test_a_result_is_expired_only_when_it_is_refused_after_14_days(error: DownloadError) -> None:
    """A host that is down proves nothing, however old the result is."""
    refused = error.http_status in {401, 403, 404, 410}
    assert decide(error, age_s=14.1 * DAY_S) == (NoDownload.FOR_GOOD if refused else DownloadAgain(1.0))


def test_the_waits_double_up_to_a_minute() -> None:
    """Half of each is jitter."""
    lost = DownloadCutShort("cut")
    waits = [decide(lost, tries=tries) for tries in range(1, 9)]
    assert waits == [DownloadAgain(float(s)) for s in (1, 2, 4, 8, 16, 32, 60, 60)]
    assert decide(lost, tries=3, draw=0.0) == DownloadAgain(2.0)
    assert decide(lost, tries=10**6) == DownloadAgain(60.0)


@pytest.mark.parametrize(
    ("asked_s", "left_s", "delay_s"),
    [(0.0, 600.0, 1.0), (30.0, 600.0, 30.0), (3600.0, 600.0, 600.0), (9, 0.2, 0.2)],
)
def test_a_host_that_asks_to_wait_is_obeyed_within_the_time_that_is_left(
    asked_s: float, left_s: float, delay_s: float
) -> None:
    """The last try comes when the time is up."""
    assert decide(refusal(503, "h", retry_after_s=asked_s), left_s=left_s) == DownloadAgain(delay_s)


@pytest.mark.parametrize(("kept_s", "words"), [(KEPT_S, "14 days"), (DAY_S, "24 hours")])
def test_the_error_of_an_expired_result_has_its_reason(kept_s: float, words: str) -> None:
    """How long results are kept, and what the host answered."""
    error = expired(refusal(404, "files.example"), kept_s)
    assert (type(error), error.http_status) == (ResultExpired, 404)
    assert error.message == (
        f"The vendor keeps results for {words}, and this one is older: files.example answered HTTP 404."
    )


def test_a_result_that_is_kept_for_a_day_expires_after_it_and_is_fetched_first_in_its_second_half() -> None:
    """A result of the jobs API; one of the kontext API comes first on its last day."""
    gone = refusal(404, "files.example")
    assert decide(gone, kept_s=DAY_S, age_s=0.9 * DAY_S) == DownloadAgain(1.0)
    assert decide(gone, kept_s=DAY_S, age_s=1.1 * DAY_S) is NoDownload.FOR_GOOD
    assert [fetch_first_after_s(kept_s) / DAY_S for kept_s in (KEPT_S, DAY_S)] == [13.0, 0.5]


@pytest.mark.parametrize(
    ("submitted_at", "words"),
    [
        (datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp(), "until 1 December, 23:59 UTC"),
        (None, "for 24 hours"),
    ],
    ids=["known", "unknown"],
)
def test_a_result_that_is_kept_for_a_day_has_an_hour(submitted_at: float | None, words: str) -> None:
    """The date alone would be up to a day off."""
    assert kept_until(submitted_at, DAY_S) == f"The result is paid and stays available {words}."


SUBMITTED = datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp()
FETCH = "Run the batch again on the same journal to fetch it."
UNTIL = (
    f"The result is paid and stays available until 14 December. {FETCH}",
    f"The result is paid and stays available for 14 days. {FETCH}",
)


@pytest.mark.parametrize(
    ("error", "tries", "submitted_at", "message", "advice"),
    [
        (
            DownloadCutShort("The download from files.example broke off: ReadError."),
            3,
            SUBMITTED,
            "the download from files.example broke off: ReadError (3 attempts)",
            UNTIL[0],
        ),
        (refusal(503, "h"), 1, None, "h answered HTTP 503 (1 attempt)", UNTIL[1]),
        (
            ResultTooLarge("The file has too many bytes; at most 10 are allowed.", advice="Raise max_bytes."),
            1,
            SUBMITTED,
            "the file has too many bytes; at most 10 are allowed (1 attempt)",
            f"Raise max_bytes. {UNTIL[0]}",
        ),
    ],
)
def test_the_final_error_has_cause_charge_and_advice(
    error: DownloadError, tries: int, submitted_at: float | None, message: str, advice: str
) -> None:
    """No message leads the user to pay again; the class and the fields of the error stay."""
    reported = unfetched(
        error, "poster.jpg", tries=tries, submitted_at=submitted_at, kept_s=KEPT_S, task_id=TaskId("t1")
    )
    assert str(reported) == f"Download failed for poster.jpg: {message}. {advice}"
    assert type(reported) is type(error)
    assert (reported.http_status, reported.charge) == (error.http_status, error.charge)
    assert (reported.task_id, error.task_id) == ("t1", None)
    assert "Download failed" not in str(error)
