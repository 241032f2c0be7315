"""What only a person may decide about a journal: that it goes on with another key.

The rule: a record of one of the journal's tasks, read with the new key, proves that the key is of the account
that paid. "No such task" for a task that must exist proves the contrary. Anything else proves nothing, and
the caller has to say that the account is the same.
"""

from __future__ import annotations

import enum
import os

import attrs

from flux_async.api.error_codes import PollMeaning, poll_meaning
from flux_async.batch.options import BatchClient
from flux_async.errors import FluxError, JournalError, Scope
from flux_async.journal.ownership import PaidTask
from flux_async.journal.store import Journal
from flux_async.models import TaskId
from flux_async.policy.polling import PollPolicy

_KEPT_S = 14 * 86_400.0
"""How long the vendor keeps a task's result."""
_MOST_TASKS = 3
_VISIBLE_WITHIN_S = PollPolicy().not_found_grace_s
_NOTHING_CHANGED = "Nothing was changed."


class RekeyEvidence(enum.StrEnum):
    """Why a journal may go on with a key."""

    SAME_KEY = "same_key"
    """The journal belongs to this key already."""
    NOTHING_PAID = "nothing_paid"
    """Nothing was paid with the old key."""
    TASK_SEEN = "task_seen"
    """The key can read a task of this journal: it is of the same account."""
    CALLER = "caller"
    """The vendor's answers prove nothing; the caller says that the account is the same."""


@attrs.frozen(kw_only=True)
class Rekeyed:
    """A journal that goes on with another key.

    Attributes:
        evidence: Why it may.
        task_id: The task that was read, where one was.
    """

    evidence: RekeyEvidence
    task_id: TaskId | None = None


async def rekey_journal(
    client: BatchClient, journal: str | os.PathLike[str] | Journal, *, sure: bool = False
) -> Rekeyed:
    """Let a journal go on with the client's key, which is a new one of the account that it was made with.

    The balance is asked for first, so that a key which is refused changes nothing. Then up to three tasks of
    the journal are read with the key. Nothing is submitted or charged.

    Args:
        client: Made with the new key.
        journal: The journal's file, or a journal that was opened without an account.
        sure: The account is the same, where the vendor's answers cannot show it.

    Raises:
        AuthenticationError: The key was refused.
        JournalBusyError: A run is using the journal.
        JournalError: The key is of another account; or it cannot be told, and ``sure`` is False.
    """
    if isinstance(journal, Journal):
        return await _rekey(client, journal, sure=sure)
    if str(journal) != ":memory:" and not os.path.exists(journal):  # noqa: ASYNC240, PTH110 - any kind of path
        raise JournalError(f"There is no journal at {os.fspath(journal)}.", advice="Check the path.")
    async with Journal(journal, clock=client.session.clock) as opened:
        return await _rekey(client, opened, sure=sure)


async def _rekey(client: BatchClient, journal: Journal, *, sure: bool) -> Rekeyed:
    with journal.one_run():
        await client.credits()
        found = await _evidence(client, journal, sure=sure)
        await journal.rekey(client.fingerprint)
    return found


async def _evidence(client: BatchClient, journal: Journal, *, sure: bool) -> Rekeyed:
    if await journal.account() in {"", client.fingerprint}:
        return Rekeyed(evidence=RekeyEvidence.SAME_KEY)
    if not await journal.may_have_paid():
        return Rekeyed(evidence=RekeyEvidence.NOTHING_PAID)
    now = client.session.clock.wall()
    hidden: list[PaidTask] = []
    for task in await journal.paid_tasks(since=now - _KEPT_S, limit=_MOST_TASKS):
        if await _can_read(client, task.task_id):
            return Rekeyed(evidence=RekeyEvidence.TASK_SEEN, task_id=task.task_id)
        hidden.append(task)
    _refuse_another_account(hidden, now)
    if not sure:
        raise JournalError(
            f"Whether this key is of the account that paid cannot be told: {_why_not(hidden)}.",
            advice=f"{_NOTHING_CHANGED} If it is of the same account, {{sure}}.",
        )
    return Rekeyed(evidence=RekeyEvidence.CALLER)


async def _can_read(client: BatchClient, task_id: TaskId) -> bool:
    """Return whether the key can read a task; False where the vendor says that there is none."""
    try:
        await client.record(task_id)
    except FluxError as error:
        if poll_meaning(error) is PollMeaning.NOT_VISIBLE:
            return False
        if error.scope is not Scope.STOP:
            error.advice = f"{_NOTHING_CHANGED} Try again later."
        raise
    return True


def _refuse_another_account(hidden: list[PaidTask], now: float) -> None:
    """Raise where a task that must exist is none for this key."""
    for task in hidden:
        if task.is_live and now - task.submitted_at > _VISIBLE_WITHIN_S:
            raise JournalError(
                f"This key is of another account: for it there is no task {task.task_id}, which was paid and "
                "whose result is not fetched yet.",
                advice=f"{_NOTHING_CHANGED} Use a key of the account that paid.",
                task_id=task.task_id,
            )


def _why_not(hidden: list[PaidTask]) -> str:
    if not hidden:
        return "the journal has no task of the last 14 days to look at"
    return f"for this key there is no task {hidden[0].task_id}, which may be too new, or expired"
