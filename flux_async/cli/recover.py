"""``flux-async recover``: go on with a folder whose journal has lost records of submits."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio
import click

from flux_async.cli.advice import after_recovering, command
from flux_async.cli.display import MessageConsole
from flux_async.cli.exits import Exit
from flux_async.cli.printable import printable
from flux_async.cli.run_folder import JOURNAL
from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal.lost_records import LostRecords, find_lost_records
from flux_async.journal.store import Journal
from flux_async.journal.submit_log import log_of
from flux_async.models import JobKey

_MOST_LISTED = 50


def run_recover(folder: Path, *, yes: bool) -> Exit:
    """Put in doubt what may have been submitted without the journal's knowing; nothing is sent.

    Raises:
        JournalError: There is no journal, it is in use, or it cannot be written.
    """
    journal, console = folder / JOURNAL, MessageConsole()
    if not journal.exists() and not log_of(journal).exists():
        raise JournalError(f"There is no journal at {journal}.", advice="Check the folder's name.")
    lost = find_lost_records(journal.resolve())
    if lost is None:
        console.note(f"The journal in {folder} lacks no records. Nothing was changed.")
        return Exit.SUCCEEDED
    console.note(_in_words(lost), "yellow")
    if not yes and not _consents():
        console.note("Nothing was changed.")
        return Exit.USAGE
    in_doubt, unknown = anyio.run(_accept, journal, lost)
    console.note(f"Done. In doubt now: {in_doubt}. Look for them at kie.ai/logs.")
    if lost.log_is_lost:
        console.note("Any other image is in doubt, too, when it is given again.")
    elif unknown:
        console.note(f"In doubt when they are given again: {len(unknown)}. Their keys:")
        for key in unknown[:_MOST_LISTED]:
            console.note(f"  {printable(key)}")
        if len(unknown) > _MOST_LISTED:
            console.note(f"  and {len(unknown) - _MOST_LISTED} more: {log_of(journal)} holds them all")
    console.note(after_recovering(folder, needs_list=bool(unknown) or lost.log_is_lost))
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


def _consents() -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("Add --yes to put these images in doubt: there is no terminal to ask.")
    return click.confirm("Put them in doubt?", err=True)


async def _accept(journal: Path, lost: LostRecords) -> tuple[int, list[JobKey]]:
    """Return how many jobs are in doubt, and the keys of lost submits whose jobs are lost, too."""
    async with await Journal(journal).open(accept_lost_records=True) as opened:
        await opened.recover()
        unknown = [key for key in lost.submits if await opened.job(key) is None]
        return (await opened.counts()).get(JobState.IN_DOUBT, 0), unknown


def _in_words(lost: LostRecords) -> str:
    if lost.log_is_lost:
        return (
            "The journal was in use when it was copied or its process ended, and its list of submits is "
            "lost: every image that waits for its submit, or that the journal does not know, may have been "
            "submitted, and charged."
        )
    times = sorted(submit.at for submit in lost.submits.values())
    first, last = (datetime.fromtimestamp(at, UTC).isoformat(" ", "seconds") for at in (times[0], times[-1]))
    return (
        f"The journal lacks records of submits for {len(times)} images, made between {first} and {last}. "
        "They may have been charged."
    )
