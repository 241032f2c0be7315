"""Reads the rows of a report: from the journal, from the errors in ``results.jsonl``, and from the folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any, Self

import attrs

from flux_async.api.models_table import credits_of
from flux_async.cli.results import (
    ErrorNote,
    ResultFile,
    ResultRow,
    Status,
    is_address,
    row_of,
    with_earlier_result,
)
from flux_async.cli.run_folder import ORIGINALS
from flux_async.errors import Charge
from flux_async.images import is_object
from flux_async.job_state import JobSnapshot, JobState, verdict_in
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import StoredJob
from flux_async.models import CheckResult, Echo
from flux_async.report.holes import Holes
from flux_async.report.page import MOST_ROWS
from flux_async.report.rows import Kind, Picture, ReportRow
from flux_async.report.thumbnails import Thumbnails

NEED_ATTENTION = (JobState.FAILED, JobState.IN_DOUBT, JobState.SUBMITTING)
_STAGES = {
    JobState.PENDING: "not submitted yet",
    JobState.SUBMITTING: "being submitted",
    JobState.SUBMITTED: "submitted, not finished yet",
    JobState.GENERATED: "finished, not downloaded yet",
}


@attrs.define(kw_only=True, eq=False)
class RowMaker:
    """Makes the rows of a page from jobs.

    Attributes:
        folder: The folder of the page, as an absolute path, in which small copies of images are.
        is_running: Whether somebody works on the jobs; a submit without an answer is not in doubt then.
        problems: Errors of the last runs, by the keys of their jobs.
        originals: Downloaded inputs, by the name of the result without its ending.
        prices: Prices that runs have measured, by model.
        without_copy: Images of the rows made so far that have no small copy.
        without_hole: Originals and composed results of these whose outlines are not known yet.
    """

    folder: Path
    is_running: bool
    prices: Mapping[str, float]
    problems: Mapping[str, ErrorNote] = attrs.field(factory=dict)
    originals: Mapping[str, Path] = attrs.field(factory=dict)
    without_copy: list[Path] = attrs.field(factory=list, init=False)
    without_hole: list[tuple[Path, Path]] = attrs.field(factory=list, init=False)
    _copies: Thumbnails = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._copies = Thumbnails(self.folder)

    def row(self, stored: StoredJob, row: ResultRow) -> ReportRow:
        """Return the row of a job, of which ``row`` is the line in results.jsonl."""
        job, _ = with_earlier_result(stored.job)
        model = _model_of(stored)
        is_in_progress = job.state is JobState.SUBMITTING and self.is_running
        kind = Kind.PENDING if is_in_progress else Kind(row.status.value)
        error = self.problems.get(job.key) if kind is Kind.PENDING else row.error
        is_stored = row.file is not None and is_address(row.file)
        result = None if row.file is None or is_stored else self.folder / row.file
        checked = job.checked or CheckResult()
        original = self._original(stored, job)
        is_copy = row.saved_credits is not None
        vendor = None if is_copy else result
        if row.vendor_file is not None:
            vendor = self.folder / row.vendor_file
        return ReportRow(
            number=stored.number,
            key=job.key,
            image=row.image,
            title=_title(row.image),
            kind=kind,
            stage=_STAGES.get(job.state) if kind is Kind.PENDING else None,
            original=original,
            original_url=row.image if stored.source is None and not is_object(row.image) else None,
            vendor=self._picture(vendor),
            preserved=self._picture(result) if checked.is_preserved or is_copy else None,
            hole=self._hole(checked, original, result) if checked.is_preserved else (),
            stored_as=row.file if is_stored else None,
            result_url=job.result_url,
            is_unrecognised=job.echo is Echo.UNRECOGNISED,
            error_type=None if error is None else error.type,
            error=None if error is None else error.message,
            task_id=job.task_id,
            model=model,
            charge=job.charge,
            credits=self._cost(job, model),
            saved_credits=row.saved_credits,
            attempts=job.attempts,
            submitted_at=job.submitted_at,
            finished_at=job.finished_at,
            generation_s=job.generation_s,
            **_findings(checked),
        )

    def _cost(self, job: JobSnapshot, model: str) -> float | None:
        if job.credits is not None:
            return job.credits
        return self.prices.get(model, credits_of(model)) if job.charge is Charge.YES else None

    def _original(self, stored: StoredJob, job: JobSnapshot) -> Picture | None:
        if stored.source is not None:
            return self._picture(Path(stored.source_folder or "", stored.source).absolute())
        stem = None if job.file is None else PurePath(job.file).stem
        return None if stem is None else self._picture(self.originals.get(stem))

    def _picture(self, path: Path | None) -> Picture | None:
        """Return the picture of a file that is there, and note where its small copy is not."""
        copy = None if path is None else self._copies.path_of(path)
        if path is None or copy is None:
            return None
        if copy.exists():
            return Picture(file=path, thumbnail=copy)
        self.without_copy.append(path)
        return Picture(file=path)

    def _hole(
        self, checked: CheckResult, original: Picture | None, composed: Path | None
    ) -> Sequence[Sequence[int]]:
        """Return what was replaced in a composed result, and note where that is not known yet."""
        if checked.outlines is not None:
            return tuple(checked.outlines)
        if original is None or composed is None:
            return ()
        found = Holes(self._copies).of(composed)
        if found is None:
            self.without_hole.append((original.file, composed))
        return found or ()


@attrs.define(kw_only=True, eq=False)
class RowReader:
    """Reads the rows of one folder.

    Attributes:
        journal: Its journal.
        maker: Makes the rows.
        refused: Inputs of the last runs that never became a job.
    """

    journal: JournalReader
    maker: RowMaker
    refused: Sequence[ResultRow]

    @classmethod
    def of(cls, folder: Path, journal: JournalReader, *, is_running: bool) -> Self:
        """Return the reader of a folder; ``is_running`` says whether another process runs it."""
        problems, refused = {}, {}
        with contextlib.suppress(OSError):
            for row in ResultFile(folder).rows_with_errors():
                if row.error is not None:
                    problems[row.key] = row.error
                if row.status is Status.FAILED and not row.attempts and not journal.has(row.key):
                    refused[row.key] = row
        path = folder.absolute()
        maker = RowMaker(
            folder=path,
            is_running=is_running,
            problems=problems,
            originals=originals_in(path),
            prices={one.model: one.price for one in journal.spending() if one.price is not None},
        )
        return cls(journal=journal, maker=maker, refused=tuple(islice(refused.values(), MOST_ROWS)))

    @property
    def images(self) -> int:
        """How many images the run has, those included that are not on the page."""
        return sum(self.journal.counts().values()) + len(self.refused)

    def read(self) -> list[ReportRow]:
        """Return the rows in the order of the input; of a long run those that need a look and the first."""
        room = MOST_ROWS - len(self.refused)
        needed = self.journal.jobs(*NEED_ATTENTION)
        found: dict[int, StoredJob] = {}
        for stored in chain(needed, self.journal.with_echo(Echo.UNRECOGNISED), self.journal.jobs()):
            if len(found) >= room:
                break
            found.setdefault(stored.number, stored)
        jobs = [found.pop(number) for number in sorted(found)]
        folder = self.maker.folder
        return [
            *(self.maker.row(stored, row_of(stored, None, folder)) for stored in jobs),
            *self._refused_rows(),
        ]

    def _refused_rows(self) -> Iterator[ReportRow]:
        for number, row in enumerate(self.refused, start=self.journal.newest() + 1):
            yield ReportRow(
                number=number,
                key=row.key,
                image=row.image,
                title=_title(row.image),
                kind=Kind.REFUSED,
                error_type=None if row.error is None else row.error.type,
                error=None if row.error is None else row.error.message,
            )


def _findings(checked: CheckResult) -> dict[str, Any]:
    """Return the fields of a row that the checks of its result fill."""
    fields: dict[str, Any] = {"not_preserved": checked.not_preserved}
    if (found := checked.verdict) is not None:
        names = ("text_left", "background_kept", "changed_elsewhere")
        fields |= {"verdict": verdict_in(found), "reason": found.get("reason") or None}
        fields |= {"words_left": tuple(found.get("words", ()))} | {name: found.get(name) for name in names}
    elif checked.problem is not None:
        fields |= {"verdict": "unsure", "reason": checked.problem}
    return fields


def originals_in(folder: Path) -> dict[str, Path]:
    """Return the downloaded inputs in the folder of a run by their names without their endings."""
    try:
        paths = (folder / ORIGINALS).iterdir()
        return {path.stem: path for path in paths if not path.name.startswith(".")}
    except OSError:
        return {}


def _title(image: str) -> str:
    """Return the last part of a path or URL, without the query."""
    path = image.partition("?")[0].partition("#")[0] if "://" in image else image
    return path.rstrip("/").rpartition("/")[2] or image


def _model_of(stored: StoredJob) -> str:
    return str(json.loads(stored.submitted).get("model", ""))
