"""The command status: how a folder stands, also while it is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from flux_async import EditRequest, FluxError, UnclaimedTask
from flux_async.api.models_table import credits_of
from flux_async.cli.advice import after_adopting, command
from flux_async.cli.credits import in_credits
from flux_async.cli.display import MessageConsole
from flux_async.cli.results import ResultFile, ResultsError, Status, image_of, row_of, utc_text
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.terminal import Exit, Output, printable
from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal.lock import LockOwner, lock_owner_of
from flux_async.journal.lost_records import find_lost_records
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import StoredJob
from flux_async.models import Echo

_MOST_LISTED = 50


def show_status(folder: Path, *, as_json: bool) -> Exit:
    """Print how ``folder`` stands; it is not changed, and a run in it is not disturbed.

    Raises:
        JournalError: It has no journal, or one that cannot be read.
    """
    journal = folder / JOURNAL
    with JournalReader(journal) as reader:
        told = status_of(reader, lock_owner_of(journal)) | {
            "refused": refused_inputs(folder, reader),
            "folder": str(folder),
        }
    warning = warning_of_lost_records(folder)
    told["lacks_records"] = warning is not None
    output = Output()
    if warning is not None:
        MessageConsole().note(warning, "yellow")
    if as_json:
        output.json(told)
        return Exit.SUCCEEDED
    for line in _in_words(told):
        output.line(printable(line))
    return Exit.SUCCEEDED


def warning_of_lost_records(folder: Path) -> str | None:
    """Return what to say of a folder that a run would refuse; None where its journal lacks no records."""
    journal = folder / JOURNAL
    with contextlib.suppress(JournalError, OSError):  # whoever opens it says so
        if find_lost_records(journal.resolve()) is not None:
            return (
                f"The journal in {folder} lacks records of submits, which may be paid: these numbers are too "
                "low, and a run refuses the folder. Put the missing file back beside the journal. Otherwise "
                f"run {command('recover', folder)}."
            )
    return None


def refused_inputs(folder: Path, reader: JournalReader) -> int:
    """Return how many inputs of the last runs never became a job: only ``results.jsonl`` holds them.

    Rows that cannot be read count for nothing: the journal is what a folder remembers.
    """
    refused: set[str] = set()
    with contextlib.suppress(ResultsError, OSError):
        for row in ResultFile(folder).rows():
            if row.status is Status.FAILED and not row.attempts and not reader.has(row.key):
                refused.add(row.key)
    return len(refused)


def status_of(reader: JournalReader, holder: LockOwner | None) -> dict[str, Any]:
    """Return how a journal stands, as data.

    Args:
        reader: Reads it.
        holder: Who runs it; while nobody does, a submit without an answer is in doubt.
    """
    doubtful = [JobState.IN_DOUBT] if holder else [JobState.IN_DOUBT, JobState.SUBMITTING]
    spending = reader.spending()
    return {
        "holder": None if holder is None else {"pid": holder.pid, "since": utc_text(holder.since)},
        "counts": {state.value: count for state, count in reader.counts().items()},
        "in_doubt": [
            {
                "key": stored.job.key,
                "image": image_of(stored),
                "uploaded_as": reader.input_url(stored.number),
                "submitted_at": utc_text(reader.intended_at(stored.number)),
                "found_task": reader.found_task(stored.number),
                "candidates": reader.candidates(stored.number),
            }
            for stored in reader.jobs(*doubtful)
        ],
        "possible_duplicate_charges": [
            {
                "key": besides.stored.job.key,
                "image": image_of(besides.stored),
                "task_id": besides.task_id,
                "signed": besides.signed,
            }
            for besides in reader.possible_duplicate_charges()
        ],
        "unrecognised": [_result_of(stored) for stored in reader.with_echo(Echo.UNRECOGNISED)],
        "echoes": {echo.value: count for echo, count in reader.echoes().items()},
        "credits": {
            "spent": sum(credits_of(spent.model) * spent.tasks for spent in spending),
            "perhaps": sum(credits_of(spent.model) * spent.perhaps for spent in spending),
        },
        "generation_s": {"p50": reader.generation_s(0.5), "p95": reader.generation_s(0.95)},
        "last_activity": utc_text(reader.last_activity()),
    }


def _result_of(stored: StoredJob) -> dict[str, Any]:
    """Return where the result of a job is, as data."""
    row = row_of(stored)
    return {
        "key": row.key,
        "image": row.image,
        "file": row.file,
        "task_id": row.task_id,
        "result_url": row.result_url,
    }


def _in_words(told: dict[str, Any]) -> Iterator[str]:
    holder, spending = told["holder"], told["credits"]
    yield f"{told['folder']}: " + (
        f"run by process {holder['pid']} since {holder['since']}" if holder else "not running"
    )
    for state, count in told["counts"].items():
        yield f"  {state.replace('_', ' '):<12}{count:>8}"
    if told["refused"]:
        yield f"  {'refused':<12}{told['refused']:>8}  (never submitted; results.jsonl says why)"
    perhaps = (
        f", and perhaps {in_credits(spending['perhaps'])} for submits in doubt" if spending["perhaps"] else ""
    )
    yield f"credits spent: {in_credits(spending['spent'])}{perhaps}"
    if told["generation_s"]["p50"] is not None:
        yield "generation: p50 {p50:g} s, p95 {p95:g} s".format(**told["generation_s"])
    if strange := len(told["unrecognised"]):
        records = "record shows" if strange == 1 else "records show"
        yield (
            f"unrecognised: {strange} {records} another request than was sent; compare the results with "
            "their images"
        )
    yield f"last activity: {told['last_activity'] or 'none'}"
    folder = Path(told["folder"])
    yield from _listed("in doubt", (_doubt_in_words(doubt, folder) for doubt in told["in_doubt"]))
    yield from _listed("unrecognised", (_result_in_words(one, folder) for one in told["unrecognised"]))
    yield from _listed("perhaps paid twice", map(_besides_in_words, told["possible_duplicate_charges"]))


def _listed(title: str, entries: Iterable[str]) -> Iterator[str]:
    """Yield the first entries in full, and how many more there are."""
    lines = [f"{title}: {entry}" for entry in entries]
    yield from lines[:_MOST_LISTED]
    if len(lines) > _MOST_LISTED:
        yield f"{title}: {len(lines) - _MOST_LISTED} more: add --json"


def _doubt_in_words(doubt: dict[str, Any], folder: Path) -> str:
    uploaded = f" (uploaded as {doubt['uploaded_as']})" if doubt["uploaded_as"] else ""
    words = f"{doubt['submitted_at']} {doubt['image']} {doubt['key']}{uploaded}"
    if doubt["found_task"] is not None:
        return f"{words}: its task is {doubt['found_task']}. {after_adopting(folder)}"
    if not doubt["candidates"]:
        return words
    first, *more = doubt["candidates"]
    others = f" (or {', '.join(more)})" if more else ""
    adopt = command("adopt", folder, doubt["key"], first)
    return f"{words}: its task may be {first}{others}. If it is: {adopt}"


def _result_in_words(result: dict[str, Any], folder: Path) -> str:
    where = folder / result["file"] if result["file"] else result["result_url"] or "no result yet"
    return f"{result['image']} {result['key']}: {where}"


def _besides_in_words(besides: dict[str, Any]) -> str:
    how = "a callback" if besides["signed"] else "an unsigned callback"
    task = f"{how} names task {besides['task_id']} for a submit that was made again"
    return f"{besides['image']} {besides['key']}: {task}"


# --- paid tasks -----------------------------------------------------------------------------------------


_MOST = 50


def tasks_under_way(reader: JournalReader) -> Iterator[str]:
    """Yield a line for each paid task whose image is not here, as far as the journal can still be read."""
    try:
        under_way = reader.jobs(JobState.SUBMITTED, JobState.GENERATED)
        for stored in islice(under_way, _MOST):
            yield f"Task {stored.job.task_id} is paid: {image_of(stored)}"
        more = sum(1 for _ in under_way)
    except FluxError:
        return
    if more:
        yield f"{more} more tasks are paid; the journal has them."


def tasks_not_recorded(unclaimed: Iterable[UnclaimedTask]) -> Iterator[str]:
    """Yield a line for each submit whose answer could not be written to the journal."""
    for loose in unclaimed:
        request = loose.request
        image = str(request.input_image) if isinstance(request, EditRequest) else request.prompt
        if loose.task_id is None:
            yield f"A submit is perhaps paid, and could not be written down: {image}"
        else:
            yield f"Task {loose.task_id} is paid, and could not be written down: {image}"
