"""The commands retry, adopt and rekey: they act on the journal of a folder."""

from __future__ import annotations

from pathlib import Path

from flux_async import ConfigurationError, FluxClient, adopt, rekey, retry
from flux_async.api.echo import in_words
from flux_async.batch.operations import Rekeyed, RekeyEvidence
from flux_async.cli.advice import after_adopting, after_rekeying, command
from flux_async.cli.credits import in_credits
from flux_async.cli.display import message_console
from flux_async.cli.exits import Exit
from flux_async.cli.intake import Intake
from flux_async.cli.run_command import Select, run_selected
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.run_order import RunOptions
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.spending import Spending
from flux_async.journal.reader import JournalReader
from flux_async.models import Echo, JobKey
from flux_async.transport.factory import TransportName

_SHORTEST_NAME = 6


def run_retry(order: RunOptions, *, failed: bool, in_doubt: bool, as_json: bool) -> Exit:
    """Submit again what failed, what is in doubt, or both; without either, resume the run as it stands.

    Raises:
        JournalError: There is no journal, or it cannot be used.
    """
    JournalReader(order.folder / JOURNAL).close()  # retry makes no folder
    return run_selected(order, what_to_retry(failed=failed, in_doubt=in_doubt), as_json=as_json)


def what_to_retry(*, failed: bool, in_doubt: bool) -> Select:
    """Return what chooses the jobs of a retry."""

    async def select(intake: Intake, spending: Spending) -> None:
        if failed or in_doubt:
            await _retry(intake, spending, failed=failed, in_doubt=in_doubt)
        else:
            await intake.folder.journal.recover()
            await intake.choose(intake.folder.reader.jobs())

    return select


async def _retry(intake: Intake, spending: Spending, *, failed: bool, in_doubt: bool) -> None:
    """Say how many jobs there are and what they may cost; when that is agreed to, let them run."""
    client, journal, chosen = spending.client, intake.folder.journal, intake.selection
    plan = await retry(client, journal, failed=failed, in_doubt=in_doubt, dry_run=True)
    for number in (*plan.to_submit, *plan.to_fetch):
        chosen.jobs.add(number)
    chosen.needs.update(plan.submits)
    granted = len(plan.to_submit)
    plural = "image gets" if granted == 1 else "images get"
    cost = in_credits(spending.cost(chosen))
    message_console().note(f"{granted} {plural} another try, for up to {cost} credits.")
    await spending.may_submit(chosen, is_last=True)
    chosen.paid = len(plan.to_fetch)
    if chosen.paid:
        is_or_are = "image that is" if chosen.paid == 1 else "images that are"
        message_console().note(f"{chosen.paid} {is_or_are} paid and not here yet: fetched, free of charge.")
    await retry(client, journal, failed=failed, in_doubt=in_doubt)
    chosen.to_do.extend(plan.to_fetch)
    chosen.to_do.extend(plan.to_submit)
    chosen.release()


def run_adopt(folder: Path, name: str, task_id: str, *, transport: TransportName | None = None) -> Exit:
    """Record that ``task_id`` is the task of a job in doubt, if that can be.

    Raises:
        InvalidInput: It is not; nothing was changed.
        NotFoundError: The vendor has no such task; nothing was changed.
    """
    key = _key_of(folder, name)

    async def work(interruption: Interruption) -> Exit:
        async with FluxClient(transport=transport) as client:
            with interruption.scope():
                adopted = await adopt(client, folder / JOURNAL, key, task_id)
                if adopted.echo is Echo.UNRECOGNISED:
                    message_console().note(
                        f"Task {task_id} was made from another request ({in_words(adopted.record.params)}). "
                        "It is taken because the API named it in answer to a submit of this job: compare the "
                        "result with the image.",
                        "yellow",
                    )
                message_console().note(
                    f"Task {task_id} is now the task of job {key}. {after_adopting(folder)}"
                )
        return Exit.INTERRUPTED if interruption.happened else Exit.SUCCEEDED

    return run_interruptible(work)


def _key_of(folder: Path, name: str) -> JobKey:
    """Return the key of the job that is called ``name``, or whose key begins so."""
    with JournalReader(folder / JOURNAL) as reader:
        found = [stored.job.key for stored in reader.named(name)]
    if not found:
        raise ConfigurationError(
            f"No job here is called {name}.", advice=f"{command('status', folder)} lists those in doubt."
        )
    if len(found) > 1 or (found[0] != name and len(name) < _SHORTEST_NAME):
        raise ConfigurationError(f"{name} may be several jobs.", advice="Give more of its key.")
    return found[0]


_EVIDENCE = {
    RekeyEvidence.SAME_KEY: "The folder belongs to this key already.",
    RekeyEvidence.NOTHING_PAID: "Nothing was paid with the old key.",
    RekeyEvidence.TASK_SEEN: "The new key can read task {task}, which was paid with the old one: "
    "the account is the same.",
    RekeyEvidence.CALLER: "No task shows that the account is the same; you say that it is.",
}


def run_rekey(folder: Path, *, same_account: bool, transport: TransportName | None = None) -> Exit:
    """Let a folder go on with the key of the environment, if it is of the same account.

    Raises:
        AuthenticationError: The key was refused; nothing was changed.
        JournalError: It is of another account, or that is not proven; or a run uses the folder.
    """
    JournalReader(folder / JOURNAL).close()

    async def work(interruption: Interruption) -> Exit:
        async with FluxClient(transport=transport) as client:
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
