"""What is still to be done for each image of a run, given what earlier runs in the folder left.

Rules, so that running the same command again never pays twice unasked:

1. A picture that is there is done. One that was made but is not here is only downloaded.
2. A task that may still finish is only waited for.
3. In doubt stays in doubt, until a person removes the line.
4. A failure that certainly cost nothing is tried again; one that was, or may have been, charged is not.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs

from flux_async import Charge, EditRequest, InvalidInput, Job
from flux_async.cli.names import file_stem
from flux_async.cli.results import ResultRow, Status


class Step(enum.Enum):
    """What comes next for an image."""

    KEEP = "as it is"
    REFUSE = "cannot be submitted"
    SUBMIT = "submit, wait, download"
    WAIT = "wait, download"
    DOWNLOAD = "download"


@attrs.frozen(kw_only=True)
class Item:
    """One image of a run.

    Attributes:
        row: How it stands; pending where something is to be done.
        step: What comes next.
        request: What to submit, or why that cannot be.
        stem: Name of its file, without the ending.
    """

    row: ResultRow
    step: Step
    request: EditRequest | InvalidInput
    stem: str

    @property
    def key(self) -> str:
        """Its key."""
        return self.row.key


def plan(
    images: Iterable[str],
    known: dict[str, ResultRow],
    make_request: Callable[[str], EditRequest],
    *,
    folder: Path,
    download: bool,
) -> list[Item]:
    """Return one item per different image, in the order of the input."""
    items: dict[str, Item] = {}
    taken: set[str] = set()
    for image in images:
        request = _request(image, make_request)
        key = _key(image, request)
        if key in items:
            continue
        row = known.get(key) or ResultRow(image=image, key=key)
        step = next_step(row, has_file=_has_file(row, folder), download=download)
        if step is Step.SUBMIT and isinstance(request, InvalidInput):
            step = Step.REFUSE
        items[key] = Item(
            row=_opened(row, step), step=step, request=request, stem=file_stem(image, key, taken)
        )
    return list(items.values())


def next_step(row: ResultRow, *, has_file: bool, download: bool) -> Step:
    """Say what comes next for an image that stands as ``row`` says."""
    match row.status:
        case Status.IN_DOUBT:
            return Step.KEEP
        case Status.SUCCEEDED:
            return Step.DOWNLOAD if download and not has_file else Step.KEEP
        case Status.PENDING:
            return _take_up(row) or Step.SUBMIT
        case Status.FAILED:
            ended = row.error is not None and row.error.type == "TaskFailed"
            again = Step.SUBMIT if row.charge is Charge.NO else Step.KEEP
            return again if ended else _take_up(row) or again


def _take_up(row: ResultRow) -> Step | None:
    """Return how a task that was paid for goes on, if there is one."""
    expired = row.error is not None and row.error.type == "ResultExpired"
    if row.result_url and not expired:
        return Step.DOWNLOAD
    return Step.WAIT if row.task_id else None


def _opened(row: ResultRow, step: Step) -> ResultRow:
    """Return the row as it is while it is worked on: pending, with what was paid for so far."""
    match step:
        case Step.KEEP | Step.REFUSE:
            return row
        case Step.SUBMIT:
            return ResultRow(image=row.image, key=row.key, attempts=row.attempts)
        case Step.WAIT | Step.DOWNLOAD:
            return attrs.evolve(row, status=Status.PENDING, file=None, error=None, finished_at=None)


def _request(image: str, make_request: Callable[[str], EditRequest]) -> EditRequest | InvalidInput:
    try:
        return make_request(image)
    except InvalidInput as refusal:
        return refusal


def _key(image: str, request: EditRequest | InvalidInput) -> str:
    if isinstance(request, EditRequest):
        return str(Job(request=request).key)
    return hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()


def _has_file(row: ResultRow, folder: Path) -> bool:
    return row.file is not None and (folder / row.file).is_file()
