"""``flux-async recover``: go on with a folder whose journal has lost records of submits."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio
import click

from flux_async.cli.advice import after_recovering
from flux_async.cli.display import MessageConsole
from flux_async.cli.exits import Exit
from flux_async.cli.run_folder import JOURNAL
from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal.lost_records import LostRecords
from flux_async.journal.schema import look_for_loss
from flux_async.journal.store import Journal
from flux_async.journal.submit_log import log_of


def run_recover(folder: Path, *, yes: bool) -> Exit:
    """Put in doubt what may have been submitted without the journal's knowing; nothing is sent.

    Raises:
        JournalError: There is no journal, it is in use, or it cannot be written.
    """
    journal, console = folder / JOURNAL, MessageConsole()
    if not journal.exists() and not log_of(journal).exists():
        raise JournalError(f"There is no journal at {journal}.", advice="Check the folder's name.")
    lost = look_for_loss(journal.resolve())
    if lost is None:
        console.note(f"The journal in {folder} lacks no records. Nothing was changed.")
        return Exit.SUCCEEDED
    console.note(_in_words(lost), "yellow")
    if not yes and not _consents():
        console.note("Nothing was changed.")
        return Exit.USAGE
    in_doubt = anyio.run(_accept, journal)
    console.note(f"Done. In doubt now: {in_doubt}. Look for them at kie.ai/logs. {after_recovering(folder)}")
    return Exit.SUCCEEDED


def _consents() -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("Add --yes to put these images in doubt: there is no terminal to ask.")
    return click.confirm("Put them in doubt?", err=True)


async def _accept(journal: Path) -> int:
    async with await Journal(journal).open(accept_lost_records=True) as opened:
        await opened.recover()
        return (await opened.counts()).get(JobState.IN_DOUBT, 0)


def _in_words(lost: LostRecords) -> str:
    if lost.log_is_missing:
        return (
            "The journal was in use when it was copied or its process ended, and its log of submits is gone: "
            "every image that waits for its submit may have been submitted, and charged."
        )
    times = sorted(submit.at for submit in lost.submits.values())
    first, last = (datetime.fromtimestamp(at, UTC).isoformat(" ", "seconds") for at in (times[0], times[-1]))
    return (
        f"The journal lacks records of submits for {len(times)} images, made between {first} and {last}. "
        "They may have been charged."
    )
