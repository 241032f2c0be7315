"""``results.jsonl``: one JSON object per image.

It is output only: the state of a folder is in its journal. A line is appended when an image is settled. At
the end of a run the file is rewritten: one line per image, in the order of the input, then the images of
earlier runs that were not given this time.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, overload

import attrs
from attrs.validators import and_, deep_iterable, ge, instance_of, optional

from flux_async import Charge, FluxError
from flux_async.api.models_table import ApiName
from flux_async.api.stored_requests import read_image
from flux_async.cli.advice import command, with_commands
from flux_async.job_state import JobSnapshot, JobState, Problem, verdict_in, verdict_of
from flux_async.journal.store import StoredJob

IMAGES = "images"
FILE_NAME = "results.jsonl"
_PART = f".{FILE_NAME}."
_NO_ERROR = '"error": null'
_text = instance_of(str)
_text_or_none = optional(instance_of(str))
_number_or_none = optional(instance_of((int, float)))


class Status(enum.StrEnum):
    """The status of an image."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    PENDING = "pending"


class ResultsError(FluxError):
    """The results cannot be written."""

    default_advice = "Check free space and permissions: the journal is complete."


@attrs.frozen(kw_only=True)
class ErrorNote:
    """An error as data: the name of its class, the vendor's code where there is one, its words."""

    type: str = attrs.field(validator=_text)
    code: int | None = attrs.field(default=None, validator=optional(instance_of(int)))
    message: str = attrs.field(validator=_text)

    @classmethod
    def of(
        cls,
        problem: Problem,
        folder: Path | None = None,
        task_id: str | None = None,
        api: ApiName | None = None,
    ) -> Self:
        """Return an error of the journal, with advice for its folder, its task and the API that has it."""
        message = with_commands(problem.message, folder, task_id, api)
        return cls(type=problem.type, code=problem.code, message=message)


_STATUS = {
    JobState.PENDING: Status.PENDING,
    JobState.SUBMITTING: Status.IN_DOUBT,
    JobState.SUBMITTED: Status.PENDING,
    JobState.GENERATED: Status.PENDING,
    JobState.DONE: Status.SUCCEEDED,
    JobState.FAILED: Status.FAILED,
    JobState.IN_DOUBT: Status.IN_DOUBT,
}
_PAID = frozenset({JobState.SUBMITTED, JobState.GENERATED, JobState.DONE})
_UNANSWERED = Problem(type="ConnectionLost", message="The answer to its submit is not known.")


def _note(value: ErrorNote | dict[str, Any] | None) -> ErrorNote | None:
    return ErrorNote(**value) if isinstance(value, dict) else value


@attrs.frozen(kw_only=True)
class ResultRow:
    """One line.

    Attributes:
        image: The URL or path as given.
        key: The key of the job.
        status: The status of the image.
        task_id: The vendor's task, or None.
        api: The API that this task, or the latest submit, was sent to, or None.
        result_url: The address of the result at the vendor, for 14 days, of the jobs API for 24 hours.
        file: The image file, relative to the folder, with forward slashes; or the address of the object.
            With "pending" or "in_doubt": the earlier image, while another attempt is made for a better one.
        charge: Whether it was paid for; with "in_doubt", whether the submit in doubt was.
        credits: What its task has cost, or None where that was not measured.
        error: Why there is no file. With "pending": an error of this run; the image is not lost. With
            "succeeded": why an image that was moved away could not be downloaded again; where there is a
            file, why another attempt for a better image failed.
        attempts: Submits made.
        submitted_at: When the task was accepted, UTC.
        finished_at: When the image was settled, UTC.
        sha256: Digest of the file, as 64 hex digits.
        verdict: The finding of --verify about the file, or None: clean, text_left, damaged, cropped, unsure,
            or no_text for an original without text.
        text_left: Share of the original's text area that still reads as text.
        words_left: The words that can be read there.
        background_kept: Correlation of the details outside the text: 1 for the same content.
        vendor_file: The vendor's own image, with --preserve.
        not_preserved: Why it was not composed with the original, or None.
        not_checked: Why a check could not be made, or None.
        saved_credits: What its submit would have cost, where --skip-textless found no text: ``file`` is then
            a copy of the original, and ``verdict`` no_text. Else None.
    """

    image: str = attrs.field(validator=_text)
    key: str = attrs.field(validator=_text)
    status: Status = attrs.field(default=Status.PENDING, converter=Status)
    task_id: str | None = attrs.field(default=None, validator=_text_or_none)
    api: str | None = attrs.field(default=None, validator=_text_or_none)
    result_url: str | None = attrs.field(default=None, validator=_text_or_none)
    file: str | None = attrs.field(default=None, validator=_text_or_none)
    charge: Charge = attrs.field(default=Charge.NO, converter=Charge)
    credits: float | None = attrs.field(default=None, validator=_number_or_none)
    error: ErrorNote | None = attrs.field(
        default=None, converter=_note, validator=optional(instance_of(ErrorNote))
    )
    attempts: int = attrs.field(default=0, validator=and_(instance_of(int), ge(0)))
    submitted_at: str | None = attrs.field(default=None, validator=_text_or_none)
    finished_at: str | None = attrs.field(default=None, validator=_text_or_none)
    sha256: str | None = attrs.field(default=None, validator=_text_or_none)
    verdict: str | None = attrs.field(default=None, validator=_text_or_none)
    text_left: float | None = attrs.field(default=None, validator=_number_or_none)
    words_left: tuple[str, ...] = attrs.field(default=(), converter=tuple, validator=deep_iterable(_text))
    background_kept: float | None = attrs.field(default=None, validator=_number_or_none)
    vendor_file: str | None = attrs.field(default=None, validator=_text_or_none)
    not_preserved: str | None = attrs.field(default=None, validator=_text_or_none)
    not_checked: str | None = attrs.field(default=None, validator=_text_or_none)
    saved_credits: float | None = attrs.field(default=None, validator=_number_or_none)

    def __attrs_post_init__(self) -> None:
        has_result = self.saved_credits is not None or (self.task_id and self.result_url)
        if self.status is Status.SUCCEEDED and not has_result:
            raise ValueError("a row that succeeded names its task and its result, or what it has saved")
        if self.status in {Status.FAILED, Status.IN_DOUBT} and self.error is None:
            raise ValueError(f"a row that is {self.status} says why")

    def as_json(self) -> str:
        """Return the line, without its end."""
        return json.dumps(attrs.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read one line.

        Raises:
            ValueError: It is no such line.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict) or fields.keys() != set(FIELDS):
            raise ValueError("it does not have exactly the keys of a result")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(str(error.args[0])) from error


FIELDS = tuple(field.name for field in attrs.fields(ResultRow))
"""The keys of a line, in their order."""


def row_of(stored: StoredJob, obstacle: Problem | None = None, folder: Path | None = None) -> ResultRow:
    """Return the row of a job.

    Args:
        stored: The job as the journal has it.
        obstacle: An error of this run, where the job itself has not ended.
        folder: The folder of the run, for the advice of an error.
    """
    job, has_earlier = with_earlier_result(stored.job)
    status = _STATUS[job.state]
    problem = None if status is Status.PENDING else job.problem
    if status is Status.SUCCEEDED and problem is not None:
        problem = _of_another_attempt(problem, job, folder)
    if obstacle is not None and job.state not in {JobState.FAILED, JobState.IN_DOUBT}:
        status, problem = _status_behind(stored), obstacle
    if problem is None and status in {Status.FAILED, Status.IN_DOUBT}:
        problem = _UNANSWERED
    kept = has_earlier or (job.file is not None and obstacle is None and status is Status.SUCCEEDED)
    return ResultRow(
        image=image_of(stored),
        key=job.key,
        status=status,
        task_id=job.task_id,
        api=job.api,
        result_url=job.result_url,
        file=_place_of(job.file) if kept and job.file is not None else None,
        sha256=job.sha256 if kept else None,
        charge=job.charge,
        credits=job.credits,
        error=None if problem is None else ErrorNote.of(problem, folder, job.task_id, job.api),
        saved_credits=None if job.checked is None else job.checked.saved_credits,
        attempts=job.attempts,
        submitted_at=utc_text(job.submitted_at),
        finished_at=utc_text(job.finished_at),
        **_found_by_checks(job if kept else None),
    )


def with_earlier_result(job: JobSnapshot) -> tuple[JobSnapshot, bool]:
    """Return a job with the paid image that it has while another attempt is made for a better one, if it has.

    Its charge is that of the attempt in doubt, else that of the image.
    """
    kept = job.kept
    if kept is None or job.state is JobState.DONE:
        return job, False
    charge = Charge.MAYBE if job.charge is Charge.MAYBE else Charge.YES
    job = attrs.evolve(job, file=kept.file, sha256=kept.sha256, checked=kept.checked, charge=charge)
    if job.task_id is None or job.task_id == kept.task_id:
        job = attrs.evolve(job, task_id=kept.task_id, api=kept.api, result_url=kept.result_url)
        job = attrs.evolve(job, credits=kept.credits, submitted_at=kept.submitted_at)
    return job, True


def _of_another_attempt(problem: Problem, job: JobSnapshot, folder: Path | None) -> Problem:
    """Return the problem of an attempt for a better image, with the command that makes another one."""
    option = "--text-left" if verdict_of(job) == "text_left" else "--damaged"
    again = "" if folder is None else f": {command('retry', folder, option)}"
    words = problem.message.replace("{pay_again}", again)
    return attrs.evolve(problem, message=f"Another attempt failed, and the earlier image is kept. {words}")


def is_address(file: str) -> bool:
    """Return whether a result is in an object store: no file of a folder has ``://`` in its name."""
    return "://" in file


def _place_of(file: str) -> str:
    return file if is_address(file) else f"{IMAGES}/{file}"


def _found_by_checks(job: JobSnapshot | None) -> dict[str, Any]:
    """Return what the checks of the file found, by the names of a row."""
    if job is None or (checked := job.checked) is None:
        return {}
    verdict = checked.verdict or {}
    return {
        "verdict": None if checked.verdict is None else verdict_in(verdict),
        "text_left": verdict.get("text_left"),
        "words_left": verdict.get("words", ()),
        "background_kept": verdict.get("background_kept"),
        "vendor_file": None if checked.vendor_file is None else f"{IMAGES}/{checked.vendor_file}",
        "not_preserved": checked.not_preserved,
        "not_checked": checked.problem,
    }


def _status_behind(stored: StoredJob) -> Status:
    """Return the status of a job that a run could not finish.

    A paid job is pending, with its error: the same command fetches it, free. "failed" would invite the user
    to pay again. A job that was delivered once stays succeeded.
    """
    job = stored.job
    if job.state is JobState.DONE and job.file is not None:
        return Status.SUCCEEDED
    is_paid = job.state in _PAID or job.kept is not None
    return Status.PENDING if is_paid else Status.FAILED


def refused_row(image: str, key: str, error: FluxError) -> ResultRow:
    """Return the row of an input that cannot be a job; it cost nothing."""
    return ResultRow(image=image, key=key, status=Status.FAILED, error=ErrorNote.of(Problem.of(error)))


def image_of(stored: StoredJob) -> str:
    """Return the URL of a job's image, or the path of its file, as given."""
    return stored.source or read_image(stored.request)


@overload
def utc_text(seconds: float) -> str: ...
@overload
def utc_text(seconds: float | None) -> str | None: ...
def utc_text(seconds: float | None) -> str | None:
    """Return a wall-clock time as ISO 8601 in UTC: ``2026-08-01T12:00:00.250Z``."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@attrs.define
class ResultFile:
    """The results file of one folder."""

    folder: Path
    _line_open: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._line_open = self._ends_within_a_line()

    @property
    def path(self) -> Path:
        """Its path."""
        return self.folder / FILE_NAME

    def append(self, row: ResultRow) -> None:
        """Append the line of one image.

        Raises:
            ResultsError: The file cannot be written.
        """
        try:
            with self.path.open("ab") as file:
                file.write(b"\n" * self._line_open + _encode(row))
        except OSError as error:
            raise self._unwritable(error) from None
        self._line_open = False

    def rewrite(self, rows: Iterable[ResultRow]) -> None:
        """Write one line for each of ``rows``: all of them or none.

        Raises:
            ResultsError: The file cannot be written; the old one is as it was.
        """
        part = self.path.with_name(f"{_PART}{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                file.writelines(map(_encode, rows))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            part.unlink(missing_ok=True)

    def remove_parts(self) -> None:
        """Remove parts that a killed process left; no other process may be rewriting."""
        for part in self.folder.glob(f"{_PART}*.part"):
            with contextlib.suppress(OSError):
                part.unlink()

    def rows(self) -> Iterator[ResultRow]:
        """Read the rows back.

        Raises:
            ResultsError: A line is damaged.
        """
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield ResultRow.from_json(line)
                except ValueError as error:
                    raise ResultsError(f"{self.path} line {number} cannot be read: {error}.") from None

    def rows_with_errors(self) -> Iterator[ResultRow]:
        """Yield the rows that have an error, also during a run; damaged lines are left out.

        Raises:
            OSError: The file cannot be read.
        """
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if _NO_ERROR not in line:  # most lines of a long run need no parsing
                    with contextlib.suppress(ValueError):
                        yield ResultRow.from_json(line)

    def _ends_within_a_line(self) -> bool:
        """Return whether a process was killed while it wrote the last line."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) == 0:
                    return False
                file.seek(-1, os.SEEK_END)
                return file.read() != b"\n"
        except OSError:
            return False

    def _unwritable(self, error: OSError) -> ResultsError:
        return ResultsError(f"{self.path} cannot be written: {error.strerror or error}.")


def _encode(row: ResultRow) -> bytes:
    # A lone surrogate, from an argument that is no Unicode, becomes \udcXX, which is its escape in JSON.
    return row.as_json().encode("utf-8", "backslashreplace") + b"\n"
