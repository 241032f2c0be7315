"""results.jsonl: exact keys, a row for every state of a job, all of a rewrite or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import Charge, EditRequest, JournalError, PollDeadlineExceeded
from flux_async.api.stored_requests import store_request
from flux_async.cli.results import FIELDS, ErrorNote, ResultFile, ResultRow, ResultsError, Status, row_of
from flux_async.job_state import JobSnapshot, JobState, Problem, RetryGranted, apply
from flux_async.journal.store import StoredJob
from flux_async.models import CheckResult, JobKey, TaskId

IMAGE = "https://host/a.png"
DONE = ResultRow(
    image="https://host/a.png",
    key="a" * 64,
    status=Status.SUCCEEDED,
    task_id="t1",
    result_url="https://host/r.png",
    file="images/a-aaaaaaaa.png",
    charge=Charge.YES,
    attempts=1,
    submitted_at="2026-08-01T12:00:00.000Z",
    finished_at="2026-08-01T12:00:09.000Z",
)
WAITING = ResultRow(image="https://host/b.png", key="b" * 64)


def stored(state: JobState, **fields: Any) -> StoredJob:
    job = JobSnapshot(
        key=JobKey("k"),
        state=state,
        attempts=2,
        task_id=TaskId("t1"),
        result_url="https://host/r.png",
        charge=Charge.YES,
        submitted_at=1_785_585_600.25,
        **fields,
    )
    request = store_request(EditRequest.text_removal(IMAGE))
    return StoredJob(number=1, request=request, job=job)


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


def test_a_missing_image_is_not_named() -> None:
    """A result that was delivered and moved away stays succeeded, with the reason for the missing file."""
    problem = Problem(type="ResultExpired", code=None, message="gone")
    here = {"file": "a.jpg", "sha256": "0" * 64}
    assert row_of(stored(JobState.DONE, **here)).file == "images/a.jpg"
    for row, status in (
        (row_of(stored(JobState.FAILED, problem=problem, **here)), Status.FAILED),
        (row_of(stored(JobState.DONE, **here), problem), Status.SUCCEEDED),
    ):
        assert (row.status, row.file, row.sha256, row.error) == (status, None, None, ErrorNote.of(problem))


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.GENERATED, JobState.DONE])
def test_a_paid_image_that_is_not_downloaded_is_pending(state: JobState) -> None:
    """A row "failed" would invite the user to pay again; the error has the obstacle of the run."""
    problem = Problem(type="DownloadCutShort", code=None, message="cut")
    row = row_of(stored(state), problem)
    assert (row.status, row.file, row.error) == (Status.PENDING, None, ErrorNote.of(problem))
    assert row_of(stored(JobState.PENDING), problem).status is Status.FAILED


def test_a_line_has_exactly_the_keys_of_the_design_in_their_order() -> None:
    """A line has exactly the keys of the design, in their order."""
    names = "image key status task_id api result_url file charge credits error attempts "
    names += "submitted_at finished_at sha256 verdict text_left words_left background_kept "
    names += "vendor_file not_preserved not_checked saved_credits"
    assert " ".join(json.loads(DONE.as_json())) == names == " ".join(FIELDS)


@pytest.mark.parametrize(
    ("state", "status", "says_why"),
    [
        (JobState.PENDING, "pending", False),
        (JobState.SUBMITTING, "in_doubt", True),
        (JobState.SUBMITTED, "pending", False),
        (JobState.GENERATED, "pending", False),
        (JobState.DONE, "succeeded", False),
        (JobState.FAILED, "failed", True),
        (JobState.IN_DOUBT, "in_doubt", True),
    ],
)
def test_every_state_of_a_job_has_its_status(state: JobState, status: str, says_why: bool) -> None:
    """An unfinished job is pending; a submit without an answer is in doubt."""
    row = row_of(stored(state))
    assert (row.status, row.error is not None) == (status, says_why)
    assert (row.image, row.key, row.task_id, row.charge, row.attempts) == (IMAGE, "k", "t1", "yes", 2)
    assert row.submitted_at == "2026-08-01T12:00:00.250Z"
    assert row.finished_at is None


def test_a_job_has_its_error_and_its_file() -> None:
    """The journal's problem becomes {type, code, message}; the file is relative to the folder."""
    problem = Problem(type="TaskFailed", code=501, message="It failed.")
    row = row_of(stored(JobState.FAILED, problem=problem))
    assert json.loads(row.as_json())["error"] == {
        "type": "TaskFailed",
        "code": 501,
        "message": "It failed.",
    }
    assert row_of(stored(JobState.DONE, file="a.png")).file == "images/a.png"


def test_an_attempt_for_a_better_image_that_failed_is_told_with_the_earlier_image() -> None:
    """Its advice is the command for the verdict: the image did not fail."""
    problem = Problem(type="ResultExpired", message="It is gone. Make it again{pay_again}.")
    for kind, option in (("text_left", "--text-left"), ("damaged", "--damaged")):
        checked = CheckResult(verdict={"kind": kind})
        job = stored(JobState.DONE, problem=problem, file="a.png", checked=checked)
        row = row_of(job, folder=Path("out"))
        assert (row.status, row.file) == (Status.SUCCEEDED, "images/a.png")
        assert row.error is not None
        assert row.error.message == (
            "Another attempt failed, and the earlier image is kept. It is gone. Make it again: "
            f"`flux-async retry out {option}`."
        )


def test_a_retry_that_could_not_be_made_is_pending() -> None:
    """Not failed: the earlier image is here, and paid."""
    earlier = apply(
        JobSnapshot(key=JobKey("k"), state=JobState.DONE, task_id=TaskId("t"), file="a.png"),
        RetryGranted(at=1.0),
    )
    waits = attrs.evolve(stored(JobState.PENDING), job=earlier)
    problem = Problem(type="MissingExtra", message="It needs the extra verify.")
    assert row_of(waits, problem).status is Status.PENDING


def test_an_obstacle_of_a_run_is_reported_until_the_next() -> None:
    """It is the error of a job that has not ended, and leaves ended ones alone."""
    obstacle = Problem.of(PollDeadlineExceeded("Too late."))
    waiting = row_of(stored(JobState.SUBMITTED), obstacle)
    assert (waiting.status, waiting.charge) == ("pending", "yes")
    assert waiting.error is not None
    assert waiting.error.type == "PollDeadlineExceeded"
    assert row_of(stored(JobState.IN_DOUBT), obstacle).status == "in_doubt"


@pytest.mark.parametrize(
    "row",
    [
        DONE,
        WAITING,
        attrs.evolve(WAITING, image="https://host/плакат.png"),
        attrs.evolve(
            WAITING, image="not unicode: \udcff", status="failed", error=ErrorNote(type="E", message="\u2028")
        ),
    ],
)
def test_a_row_survives_being_written_and_read(tmp_path: Path, row: ResultRow) -> None:
    """What was appended can be read back, whatever characters it holds."""
    ResultFile(tmp_path).append(row)
    assert list(ResultFile(tmp_path).rows()) == [row]


def test_a_rewrite_replaces_everything(tmp_path: Path) -> None:
    """A rewrite holds exactly the rows it was given, in their order, and leaves no other file."""
    results = ResultFile(tmp_path)
    for row in (DONE, WAITING):
        results.append(row)
    results.rewrite(iter([WAITING, DONE]))
    assert [line["key"] for line in lines_of(tmp_path)] == [WAITING.key, DONE.key]
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_rewrite_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Rows that cannot be had end the rewrite, not the file."""
    results = ResultFile(tmp_path)
    results.append(DONE)

    def rows() -> Iterator[ResultRow]:
        yield WAITING
        raise JournalError("gone")

    with pytest.raises(JournalError):
        results.rewrite(rows())
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    assert list(results.rows()) == [DONE]


def test_a_last_line_without_an_end_is_not_run_into(tmp_path: Path) -> None:
    """Where a process was killed within a line, the next one is a line of its own."""
    (tmp_path / "results.jsonl").write_text(DONE.as_json())
    ResultFile(tmp_path).append(WAITING)
    assert [line["key"] for line in lines_of(tmp_path)] == [DONE.key, WAITING.key]


DAMAGED = {
    "torn": DONE.as_json()[:40],
    "no object": "[]",
    "too few keys": '{"image": "x"}',
    "one key more": DONE.as_json()[:-1] + ', "more": 1}',
    "unknown status": DONE.as_json().replace("succeeded", "great"),
    "wrong type": DONE.as_json().replace('"attempts": 1', '"attempts": "1"'),
    "success without a task": DONE.as_json().replace('"t1"', "null"),
    "failure without a reason": WAITING.as_json().replace("pending", "failed"),
    "error of another shape": WAITING.as_json().replace('"error": null', '"error": {"no": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    """A line that is no result is named when the rows are read back."""
    (tmp_path / "results.jsonl").write_text(f"{WAITING.as_json()}\n{damage}\n")
    with pytest.raises(ResultsError, match=r"results\.jsonl line 2 cannot be read"):
        list(ResultFile(tmp_path).rows())


def test_a_disk_that_refuses_is_a_results_error(tmp_path: Path) -> None:
    """A failed write raises it and leaves no temporary file behind."""
    results = ResultFile(tmp_path)
    results.path.mkdir()
    with pytest.raises(ResultsError, match="cannot be written"):
        results.append(DONE)
    with pytest.raises(ResultsError, match="cannot be written"):
        results.rewrite([])
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
