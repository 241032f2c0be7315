"""What only a person may say: pay for a job again; this is its task; this key is of the same account."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from flux_async import (
    ConfigurationError,
    FluxClient,
    InvalidInput,
    NotFoundError,
    TaskRecord,
)
from flux_async.api.echo import in_words
from flux_async.api.parsing import check_task_id
from flux_async.api.stored_requests import read_model
from flux_async.batch.in_doubt import adoptable_echo
from flux_async.batch.operations import Rekeyed, RekeyEvidence, rekey_journal
from flux_async.cli.advice import after_adopting, after_rekeying, command
from flux_async.cli.credits import in_credits
from flux_async.cli.display import message_console
from flux_async.cli.exits import Exit
from flux_async.cli.intake import Intake
from flux_async.cli.run_command import Select, run_selected
from flux_async.cli.run_folder import JOURNAL, RunFolder
from flux_async.cli.run_order import RunOptions
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.spending import Spending
from flux_async.clock import SystemClock
from flux_async.job_state import Event, JobState, ResubmitGranted, RetryGranted, TaskFound, apply
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Echo, TaskId
from flux_async.transport.factory import TransportName

_SHORTEST_NAME = 6


# --- retry ------------------------------------------------------------------------------------------------


def run_retry(order: RunOptions, *, failed: bool, in_doubt: bool, as_json: bool) -> Exit:
    """Grant another try to what failed, to what is in doubt, or to both, and run those jobs; or resume.

    Without either, all that the folder has is taken up as it stands: nothing is paid twice.

    Raises:
        JournalError: There is no journal, or it cannot be used.
    """
    JournalReader(order.folder / JOURNAL).close()  # retry makes no folder
    return run_selected(order, what_to_retry(failed=failed, in_doubt=in_doubt), as_json=as_json)


def what_to_retry(*, failed: bool, in_doubt: bool) -> Select:
    """Return what chooses the jobs of a retry."""
    states = [JobState.FAILED] * failed + [JobState.IN_DOUBT] * in_doubt

    async def select(intake: Intake, spending: Spending) -> None:
        if states:
            await _grant(intake, spending, states)
        else:
            await intake.folder.journal.recover()
            await intake.choose(intake.folder.reader.jobs())

    return select


async def _grant(intake: Intake, spending: Spending, states: list[JobState]) -> None:
    """Choose the jobs, say how many they are and what they may cost, and write the grants.

    A job in doubt whose task was found is fetched: it needs no grant.
    """
    journal, chosen, at = intake.folder.journal, intake.selection, SystemClock().wall()
    found: set[int] = set()
    await journal.recover()
    for state in states:
        async for stored in _pages(journal, state):
            chosen.jobs.add(stored.number)
            if state is JobState.IN_DOUBT and await journal.offers_to(stored.number):
                found.add(stored.number)
            else:
                chosen.needs[read_model(stored.request)] += 1
    granted, cost = chosen.needs.total(), spending.cost(chosen)
    plural = "image gets" if granted == 1 else "images get"
    message_console().note(f"{granted} {plural} another try, for up to {in_credits(cost)} credits.")
    await spending.may_submit(chosen, is_last=True)
    chosen.to_do.extend(sorted(found))
    chosen.paid += len(found)
    async for stored in _paid_and_unfinished(journal):  # they are fetched, not paid for again
        chosen.jobs.add(stored.number)
        chosen.to_do.append(stored.number)
        chosen.paid += 1
    if chosen.paid:
        is_or_are = "image that is" if chosen.paid == 1 else "images that are"
        message_console().note(f"{chosen.paid} {is_or_are} paid and not here yet: fetched, free of charge.")
    for state in states:
        grant = RetryGranted(at=at) if state is JobState.FAILED else ResubmitGranted(at=at)
        async for stored in _pages(journal, state):
            if stored.number in found:
                continue
            event: Event = grant
            await journal.record(stored.number, apply(stored.job, event), event, before=stored.job)
            chosen.to_do.append(stored.number)
    chosen.release()


async def _paid_and_unfinished(journal: Journal) -> AsyncIterator[StoredJob]:
    for state in (JobState.GENERATED, JobState.SUBMITTED):
        async for stored in _pages(journal, state):
            yield stored


async def _pages(journal: Journal, state: JobState) -> AsyncIterator[StoredJob]:
    after = 0
    while page := await journal.jobs(state, after=after):
        for stored in page:
            yield stored
        after = page[-1].number


# --- adopt ------------------------------------------------------------------------------------------------


def run_adopt(folder: Path, name: str, task_id: str, *, transport: TransportName | None = None) -> Exit:
    """Note down that ``task_id`` is the task of a job in doubt, after looking whether that can be.

    Raises:
        InvalidInput: It is not; nothing was changed.
        NotFoundError: The vendor knows no such task; nothing was changed.
    """
    JournalReader(folder / JOURNAL).close()
    task = check_task_id(task_id)

    async def work(interruption: Interruption) -> Exit:
        async with FluxClient(transport=transport) as client:
            opened = await RunFolder.open(folder, account=client.fingerprint)
            try:
                with interruption.scope():
                    await _adopt(client, opened, name, task)
            finally:
                await opened.aclose()
        return Exit.INTERRUPTED if interruption.happened else Exit.SUCCEEDED

    return run_interruptible(work)


async def _adopt(client: FluxClient, folder: RunFolder, name: str, task: TaskId) -> None:
    at = SystemClock().wall()
    await folder.journal.recover()
    stored = _job_in_doubt(folder, name)
    owner = folder.reader.owner_of(task)
    if owner not in (None, stored.job.key):
        raise InvalidInput(f"Task {task} belongs to job {owner}.", advice="Nothing was changed.")
    record = await _record(client, task)
    echo = await adoptable_echo(folder.journal, stored, record)
    if echo is Echo.UNRECOGNISED:
        message_console().note(
            f"Task {task} was made from another request ({in_words(record.params)}). It is taken because the "
            "API named it in answer to a submit of this job: compare the result with the image.",
            "yellow",
        )
    event = TaskFound(at=at, task_id=task, echo=echo)
    await folder.journal.record(stored.number, apply(stored.job, event), event, before=stored.job)
    message_console().note(
        f"Task {task} is now the task of job {stored.job.key}. {after_adopting(folder.path)}"
    )


async def _record(client: FluxClient, task: TaskId) -> TaskRecord:
    try:
        return await client.record(task)
    except NotFoundError as error:
        error.advice = "Nothing was changed. Check the task id at kie.ai/logs."
        raise


def _job_in_doubt(folder: RunFolder, name: str) -> StoredJob:
    found = folder.reader.named(name)
    if not found:
        raise ConfigurationError(
            f"No job here is called {name}.", advice=f"{command('status', folder.path)} lists those in doubt."
        )
    if len(found) > 1 or (found[0].job.key != name and len(name) < _SHORTEST_NAME):
        raise ConfigurationError(f"{name} may be several jobs.", advice="Give more of its key.")
    (stored,) = found
    if stored.job.state is not JobState.IN_DOUBT:
        raise InvalidInput(
            f"Job {stored.job.key} is {stored.job.state}, not in doubt.", advice="Nothing was changed."
        )
    return stored


# --- rekey ------------------------------------------------------------------------------------------------

_FOUND = {
    RekeyEvidence.SAME_KEY: "The folder belongs to this key already.",
    RekeyEvidence.NOTHING_PAID: "Nothing was paid with the old key.",
    RekeyEvidence.TASK_SEEN: "The new key can read task {task}, which was paid with the old one: "
    "the account is the same.",
    RekeyEvidence.CALLER: "Whether the account is the same cannot be told; you say that it is.",
}


def run_rekey(folder: Path, *, sure: bool, transport: TransportName | None = None) -> Exit:
    """Let a folder go on with the key of the environment, after looking whether the account is the same.

    Raises:
        AuthenticationError: The key was refused; nothing was changed.
        JournalError: It is of another account, or that cannot be told; or a run uses the folder.
    """
    JournalReader(folder / JOURNAL).close()

    async def work(interruption: Interruption) -> Exit:
        async with FluxClient(transport=transport) as client:
            with interruption.scope():
                found = await rekey_journal(client, folder / JOURNAL, sure=sure)
                message_console().note(f"{_in_words(found)} {after_rekeying(folder)}")
        return Exit.INTERRUPTED if interruption.happened else Exit.SUCCEEDED

    return run_interruptible(work)


def _in_words(found: Rekeyed) -> str:
    told = _FOUND[found.evidence].format(task=found.task_id)
    if found.evidence is RekeyEvidence.SAME_KEY:
        return told
    return f"{told} The folder now belongs to the new key."
