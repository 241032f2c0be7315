"""The commands on the journal of a folder: retry, adopt, rekey and recover."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, Unpack

import anyio
import attrs
import click

from flux_async import ConfigurationError, FluxClient, adopt, rekey, retry
from flux_async.api.echo import in_words
from flux_async.api.models_table import AnyModel, ApiName
from flux_async.api.stored_requests import read_model
from flux_async.batch.operations import Adopted, Rekeyed, RekeyEvidence
from flux_async.cli.advice import after_adopting, after_recovering, after_rekeying, command
from flux_async.cli.credits import Spending, in_credits
from flux_async.cli.display import MessageConsole, message_console
from flux_async.cli.input_reader import InputReader
from flux_async.cli.run_command import Select, run_selected
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, printable
from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal.lost_records import LostRecords, find_lost_records
from flux_async.journal.reader import JournalReader, read_at_rest
from flux_async.journal.store import Journal
from flux_async.journal.submit_log import log_of
from flux_async.models import Echo, JobKey
from flux_async.transport.factory import TransportName

_SHORTEST_NAME = 6


class Wanted(TypedDict, total=False):
    """What a retry submits again."""

    failed: bool
    in_doubt: bool
    text_left: bool
    damaged: bool
    model: AnyModel | None


def run_retry(options: RunOptions, *, as_json: bool, **wanted: Unpack[Wanted]) -> Exit:
    """Submit again what is wanted; where that is nothing, resume the run as it stands.

    New images are checked as those that they replace.

    Raises:
        JournalError: There is no journal, or it cannot be used.
    """
    found = read_at_rest(options.folder / JOURNAL, JournalReader.findings)  # retry makes no folder
    if wanted.get("text_left") or wanted.get("damaged"):
        preserve = options.checks.preserve or "preserved" in found
        options = attrs.evolve(options, checks=attrs.evolve(options.checks, preserve=preserve, verify=True))
    return run_selected(options, what_to_retry(**wanted), as_json=as_json)


def what_to_retry(**wanted: Unpack[Wanted]) -> Select:
    """Return the function that selects the jobs of a retry."""

    async def select(reader: InputReader, spending: Spending) -> None:
        if any(wanted.values()):
            await _retry(reader, spending, **wanted)
        else:
            await reader.folder.journal.recover()
            await reader.select(reader.folder.reader.jobs())

    return select


async def _retry(reader: InputReader, spending: Spending, **wanted: Unpack[Wanted]) -> None:
    """Print how many jobs there are and what they may cost; if that is agreed to, let the run submit them."""
    client, journal, selection = spending.client, reader.folder.journal, reader.selection
    plan = await retry(client, journal, **wanted, dry_run=True)
    for number in (*plan.to_submit, *plan.to_fetch):
        selection.jobs.add(number)
    selection.needs.update(plan.submits)
    granted = len(plan.to_submit)
    for stored in reader.folder.jobs_of(plan.to_submit):
        is_for_better = stored.job.state is JobState.DONE
        reader.add_further(read_model(stored.request), stored.job.redone + is_for_better)
    cost = in_credits(spending.cost(selection))
    tries = tries_in_words(granted, cost, in_doubt=wanted.get("in_doubt", False), model=wanted.get("model"))
    message_console().note(tries)
    await spending.may_submit(selection, is_last=True)
    selection.paid = len(plan.to_fetch)
    if selection.paid:
        is_or_are = "image that is" if selection.paid == 1 else "images that are"
        message_console().note(
            f"{selection.paid} {is_or_are} paid and not here yet: fetched, free of charge."
        )
    await retry(client, journal, **wanted)
    selection.to_do.extend(plan.to_fetch)
    selection.to_do.extend(plan.to_submit)
    if selection.to_do:  # else there is nothing to do, not even a check of other images
        selection.release()


def tries_in_words(count: int, cost: str, *, in_doubt: bool, model: AnyModel | None = None) -> str:
    """Return what a retry submits again, and that some of it may be paid already, as a sentence or two."""
    images = "1 image gets" if count == 1 else f"{count} images get"
    other = "" if model is None else f" with {model}"
    again = " Those in doubt may be paid already." if in_doubt and count else ""
    return f"{images} another try{other}, for up to {cost} credits.{again}"


def report_adopted(adopted: Adopted, then: str) -> None:
    """Print what was adopted, and what to do then."""
    task_id = adopted.record.task_id
    if adopted.echo is Echo.UNRECOGNISED:
        message_console().note(
            f"Task {task_id} was made from another request ({in_words(adopted.record.params)}). "
            "It is taken because the API named it in answer to a submit of this job: compare the "
            "result with the image.",
            "yellow",
        )
    message_console().note(f"Task {task_id} is now the task of job {adopted.key}. {then}")


def run_adopt(
    folder: Path,
    name: str,
    task_id: str,
    *,
    transport: TransportName | None = None,
    api: ApiName | None = None,
) -> Exit:
    """Record that ``task_id`` is the task of a job in doubt.

    Raises:
        InvalidInput: It cannot be that task; nothing was changed.
        NotFoundError: The vendor has no such task; nothing was changed.
    """
    key = _key_of(folder, name)

    async def work(interruption: Interruption) -> Exit:
        async with FluxClient(transport=transport, api=api) as client:
            with interruption.scope():
                adopted = await adopt(client, folder / JOURNAL, key, task_id)
                report_adopted(adopted, after_adopting(folder))
        return Exit.INTERRUPTED if interruption.happened else Exit.SUCCEEDED

    return run_interruptible(work)


def _key_of(folder: Path, name: str) -> JobKey:
    """Return the key of the job that is called ``name``, or whose key begins so."""
    found = [stored.job.key for stored in read_at_rest(folder / JOURNAL, lambda reader: reader.named(name))]
    return only_key(found, name, command("status", folder))


def only_key(found: Sequence[JobKey], name: str, lists: str) -> JobKey:
    """Return the key of the job that is called ``name``.

    Args:
        found: The key, or those that begin so.
        name: What the user calls it.
        lists: The command that lists the jobs in doubt.

    Raises:
        ConfigurationError: There is none, or more than one.
    """
    if not found:
        raise ConfigurationError(f"No job here is called {name}.", advice=f"{lists} lists those in doubt.")
    if found[0] != name and len(name) < _SHORTEST_NAME:
        raise ConfigurationError(
            f"{name} is too short for the beginning of a key.",
            advice=f"Give {_SHORTEST_NAME} characters or more.",
        )
    if len(found) > 1:
        raise ConfigurationError(f"{name} may be several jobs.", advice="Give more of its key.")
    return found[0]


_EVIDENCE = {
    RekeyEvidence.SAME_KEY: "The folder belongs to this key already.",
    RekeyEvidence.NOTHING_PAID: "Nothing was paid with the old key.",
    RekeyEvidence.TASK_SEEN: "The new key can read task {task}, which was paid with the old one: "
    "the account is the same.",
    RekeyEvidence.CALLER: "No task shows that the account is the same; you say that it is.",
}


def run_rekey(
    folder: Path,
    *,
    same_account: bool,
    transport: TransportName | None = None,
    api: ApiName | None = None,
) -> Exit:
    """Let a folder go on with the key of the environment, if it is of the same account.

    Raises:
        AuthenticationError: The key was refused; nothing was changed.
        JournalError: It is of another account, or that is not proven; or a run uses the folder.
    """
    read_at_rest(folder / JOURNAL, JournalReader.newest)

    async def work(interruption: Interruption) -> Exit:
        async with FluxClient(transport=transport, api=api) as client:
            with interruption.scope():
                found = await rekey(client, folder / JOURNAL, same_account=same_account)
                message_console().note(f"{_in_words(found)} {after_rekeying(folder)}")
        return Exit.INTERRUPTED if interruption.happened else Exit.SUCCEEDED

    return run_interruptible(work)


def _in_words(found: Rekeyed) -> str:
    words = _EVIDENCE[found.evidence].format(task=found.task_id)
    if found.evidence is RekeyEvidence.SAME_KEY:
        return words
    return f"{words} The folder now belongs to the new key."


# --- recover ----------------------------------------------------------------------------------------------


_MOST_LISTED = 50


def run_recover(folder: Path, *, yes: bool) -> Exit:
    """Put jobs in doubt that may have been submitted without a record in the journal; nothing is sent.

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
    console.note(loss_in_words(lost), "yellow")
    if not yes and not _confirm():
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


def _confirm() -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("Add --yes to put these images in doubt: there is no terminal to ask.")
    return click.confirm("Put them in doubt?", err=True)


async def _accept(journal: Path, lost: LostRecords) -> tuple[int, list[JobKey]]:
    """Return how many jobs are in doubt, and the keys of lost submits whose jobs are lost, too."""
    async with await Journal(journal).open(accept_lost_records=True) as opened:
        await opened.recover()
        unknown = [key for key in lost.submits if await opened.job(key) is None]
        return (await opened.counts()).get(JobState.IN_DOUBT, 0), unknown


def loss_in_words(lost: LostRecords) -> str:
    """Return the message about records that a journal lacks."""
    if lost.log_is_lost:
        return (
            "The journal was in use when it was copied or its process ended, and its list of submits is "
            "lost: every image that waits for its submit, or that is not in the journal, may have been "
            "submitted, and charged."
        )
    times = sorted(submit.at for submit in lost.submits.values())
    images = "1 image" if len(times) == 1 else f"{len(times)} images"
    first, last = (datetime.fromtimestamp(at, UTC).isoformat(" ", "seconds") for at in (times[0], times[-1]))
    return (
        f"The journal lacks records of submits for {images}, made between {first} and {last}. "
        "They may have been charged."
    )
