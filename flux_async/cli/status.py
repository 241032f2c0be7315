"""The command status: the state of a folder, also during a run, and its paid tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from flux_async import EditRequest, FluxError, UnclaimedTask
from flux_async.advice import must_be_named
from flux_async.api.models_table import credits_of
from flux_async.cli.advice import Cost, after_adopting, command
from flux_async.cli.credits import in_credits
from flux_async.cli.display import MessageConsole
from flux_async.cli.results import ResultFile, ResultsError, Status, image_of, row_of, utc_text
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.terminal import Exit, Output, printable
from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal.lock import LockOwner, lock_owner_of
from flux_async.journal.lost_records import find_lost_records
from flux_async.journal.reader import JournalReader, Spending, read_at_rest
from flux_async.journal.store import StoredJob
from flux_async.models import Echo

_MOST_LISTED = 50


def show_status(folder: Path, *, as_json: bool) -> Exit:
    """Print the state of ``folder``. It is not changed, and a run in it is not disturbed.

    Raises:
        JournalError: It has no journal, or the journal cannot be read.
    """
    journal = folder / JOURNAL

    def read(reader: JournalReader) -> dict[str, Any]:
        refused = refused_inputs(folder, reader)
        return status_of(reader, lock_owner_of(journal)) | {"refused": refused, "folder": str(folder)}

    state = read_at_rest(journal, read)
    warning = warning_of_lost_records(folder)
    state["lacks_records"] = warning is not None
    output = Output()
    if warning is not None:
        MessageConsole().note(warning, "yellow")
    if as_json:
        output.json(state)
        return Exit.SUCCEEDED
    for line in _in_words(state):
        output.line(printable(line))
    return Exit.SUCCEEDED


def warning_of_lost_records(folder: Path) -> str | None:
    """Return the warning about a journal that lost records, which a run would refuse; else None."""
    journal = folder / JOURNAL
    with contextlib.suppress(JournalError, OSError):  # reported where the journal is opened
        if find_lost_records(journal.resolve()) is not None:
            return (
                f"The journal in {folder} lacks records of submits, which may be paid: these numbers are too "
                "low, and a run refuses the folder. Put the missing file back beside the journal. Otherwise "
                f"run {command('recover', folder)}."
            )
    return None


def refused_inputs(folder: Path, reader: JournalReader) -> int:
    """Return how many inputs of the last runs never became a job; only ``results.jsonl`` names them.

    Rows that cannot be read do not count.
    """
    refused: set[str] = set()
    with contextlib.suppress(ResultsError, OSError):
        for row in ResultFile(folder).rows():
            if row.status is Status.FAILED and not row.attempts and not reader.has(row.key):
                refused.add(row.key)
    return len(refused)


def status_of(reader: JournalReader, owner: LockOwner | None) -> dict[str, Any]:
    """Return the state of a journal as data.

    Args:
        reader: Reads it.
        owner: The process that runs it. Without one, a submit without an answer is in doubt.
    """
    in_doubt = [JobState.IN_DOUBT] if owner else [JobState.IN_DOUBT, JobState.SUBMITTING]
    return {
        "holder": None if owner is None else {"pid": owner.pid, "since": utc_text(owner.since)},
        "counts": {state.value: count for state, count in reader.counts().items()},
        "checks": reader.findings(),
        "apis": reader.apis(),
        "fetch_by": utc_text(reader.fetch_by()),
        "in_doubt": [
            {
                "key": stored.job.key,
                "api": stored.job.api,
                "image": image_of(stored),
                "uploaded_as": reader.input_url(stored.number),
                "submitted_at": utc_text(reader.intended_at(stored.number)),
                "found_task": reader.found_task(stored.number),
                "candidates": reader.candidates(stored.number),
            }
            for stored in reader.jobs(*in_doubt)
        ],
        "possible_duplicate_charges": [
            {
                "key": charge.stored.job.key,
                "image": image_of(charge.stored),
                "task_id": charge.task_id,
                "signed": charge.signed,
            }
            for charge in reader.possible_duplicate_charges()
        ],
        "unrecognised": [_result_of(stored) for stored in reader.with_echo(Echo.UNRECOGNISED)],
        "echoes": {echo.value: count for echo, count in reader.echoes().items()},
        "credits": credits_in(reader.spending()) | {"saved": reader.saved_credits()},
        "generation_s": {"p50": reader.generation_s(0.5), "p95": reader.generation_s(0.95)},
        "last_activity": utc_text(reader.last_activity()),
    }


def credits_in(spending: Iterable[Spending]) -> dict[str, float]:
    """Return the credits of a folder: what was spent, the measured part of it, and what may have been spent.

    A task whose cost was not measured counts with the price that a run of the folder has measured, else with
    that of the price list.
    """
    spent = measured = perhaps = 0.0
    for one in spending:
        spent += one.spent
        measured += one.credits
        perhaps += one.unit * one.perhaps
    return {"spent": spent, "measured": measured, "perhaps": perhaps}


def costs_of_retry(reader: JournalReader) -> dict[str, Cost]:
    """Return what ``retry`` would pay for, by ``failed``, ``text_left`` and ``damaged``."""
    prices = {one.model: one.price for one in reader.spending() if one.price is not None}

    def cost(counts: Mapping[str, int]) -> Cost:
        credits_ = sum(count * prices.get(model, credits_of(model)) for model, count in counts.items())
        return Cost(sum(counts.values()), credits_)

    return {name: cost(counts) for name, counts in reader.to_retry().items()}


def _result_of(stored: StoredJob) -> dict[str, Any]:
    row = row_of(stored)
    return {name: getattr(row, name) for name in ("key", "image", "file", "task_id", "result_url")}


def _in_words(state: dict[str, Any]) -> Iterator[str]:
    holder, spending = state["holder"], state["credits"]
    yield f"{state['folder']}: " + (
        f"run by process {holder['pid']} since {holder['since']}" if holder else "not running"
    )
    for name, count in state["counts"].items():
        yield f"  {name.replace('_', ' '):<12}{count:>8}"
    if state["refused"]:
        yield f"  {'refused':<12}{state['refused']:>8}  (never submitted; results.jsonl says why)"
    if state["checks"]:
        yield f"checks: {findings_in_words(state['checks'])}"
    if state["apis"].keys() - {"kontext"}:
        yield "submitted to: " + ", ".join(f"{api} {count}" for api, count in state["apis"].items())
    if state["fetch_by"] is not None:
        yield f"paid and not here yet: fetch by {state['fetch_by']}"
    perhaps = (
        f", and perhaps {in_credits(spending['perhaps'])} for submits in doubt" if spending["perhaps"] else ""
    )
    measured = f" ({in_credits(spending['measured'])} measured)" if spending["measured"] else ""
    yield f"credits spent: {in_credits(spending['spent'])}{measured}{perhaps}"
    if spending["saved"]:
        yield f"credits saved on images without text: {in_credits(spending['saved'])}"
    if state["generation_s"]["p50"] is not None:
        yield "generation: p50 {p50:g} s, p95 {p95:g} s".format(**state["generation_s"])
    if strange := len(state["unrecognised"]):
        records = "record shows" if strange == 1 else "records show"
        yield (
            f"unrecognised: {strange} {records} another request than was sent; compare the results with "
            "their images"
        )
    yield f"last activity: {state['last_activity'] or 'none'}"
    folder = Path(state["folder"])
    yield from _listed("in doubt", (_doubt_in_words(doubt, folder) for doubt in state["in_doubt"]))
    yield from _listed("unrecognised", (_result_in_words(one, folder) for one in state["unrecognised"]))
    yield from _listed("perhaps paid twice", map(_charge_in_words, state["possible_duplicate_charges"]))


def findings_in_words(checks: Mapping[str, int]) -> str:
    """Return what the checks found as words: ``12 clean, 1 text left``."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in checks.items())


def _listed(title: str, entries: Iterable[str]) -> Iterator[str]:
    """Yield the first entries, and how many more there are."""
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


def _charge_in_words(charge: dict[str, Any]) -> str:
    how = "a callback" if charge["signed"] else "an unsigned callback"
    task = f"{how} names task {charge['task_id']} for a submit that was made again"
    return f"{charge['image']} {charge['key']}: {task}"


# --- paid tasks -------------------------------------------------------------------------------------------


def unfinished_tasks(reader: JournalReader) -> Iterator[str]:
    """Yield a line for each paid task without an image, as far as the journal can still be read."""
    try:
        unfinished = reader.jobs(JobState.SUBMITTED, JobState.GENERATED)
        for stored in islice(unfinished, _MOST_LISTED):
            yield f"Task {_named(stored.job.task_id, stored.job.api)} is paid: {image_of(stored)}"
        more = sum(1 for _ in unfinished)
    except FluxError:
        return
    if more:
        yield f"Paid tasks that are not listed here: {more}; the journal has them."


def tasks_not_recorded(unclaimed: Iterable[UnclaimedTask]) -> Iterator[str]:
    """Yield a line for each submit whose answer could not be written to the journal."""
    for task in unclaimed:
        request = task.request
        image = str(request.input_image) if isinstance(request, EditRequest) else request.prompt
        if task.task_id is None:
            yield f"A submit is perhaps paid, and could not be written down: {image}"
        else:
            yield f"Task {_named(task.task_id, task.api)} is paid, and could not be written down: {image}"


def _named(task_id: str | None, api: str | None) -> str:
    """Return a task by its id, and by its API where that is not the default."""
    return f"{task_id} of the API {api}" if must_be_named(api) else str(task_id)
