"""Operations on a journal that only the user can order: ``retry``, ``adopt``, ``rekey``.

A run never does these by itself. Each takes the journal's path, or a journal that is open and not being run.
Nothing here submits a request: what ``retry`` grants is submitted, and charged, by the next run.
"""

from __future__ import annotations

import contextlib
import enum
import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from flux_async.api.error_codes import PollMeaning, poll_meaning
from flux_async.api.models_table import RETENTION_S, AnyModel, ModelName
from flux_async.api.parsing import check_task_id
from flux_async.api.stored_requests import model_patch, read_model
from flux_async.api_errors import NotFoundError
from flux_async.batch.in_doubt import adoptable_echo
from flux_async.batch.job_store import OperationStore
from flux_async.batch.open_journal import check_key, open_journal, record_event
from flux_async.batch.options import BatchClient, check_client, check_flag, check_model
from flux_async.errors import FluxError, InvalidInput, JournalError, Scope
from flux_async.job_state import (
    JobSnapshot,
    JobState,
    ResubmitGranted,
    RetryGranted,
    TaskFound,
    verdict_of,
)
from flux_async.journal.ownership import PaidTask
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Echo, JobKey, TaskId, TaskRecord
from flux_async.policy.polling import PollPolicy

_MOST_TASKS = 3
_VISIBLE_WITHIN_S = PollPolicy().not_found_grace_s
_NOTHING_CHANGED = "Nothing was changed."
_NOTHING_TO_RETRY = "Give failed=True, in_doubt=True, text_left=True or damaged=True."


# --- retry ------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Retried:
    """Jobs that the next run of a journal takes up.

    Attributes:
        submits: Images that are submitted again, by model. Each of them is charged.
        to_submit: The jobs of these, as their numbers in the journal.
        to_fetch: Jobs that are paid and have no image yet, as their numbers: fetched free of charge.
    """

    submits: Mapping[AnyModel, int]
    to_submit: Sequence[int]
    to_fetch: Sequence[int]


async def retry(
    client: BatchClient,
    journal: str | os.PathLike[str] | Journal,
    *,
    failed: bool = False,
    in_doubt: bool = False,
    text_left: bool = False,
    damaged: bool = False,
    model: AnyModel | ModelName | None = None,
    dry_run: bool = False,
) -> Retried:
    """Let the next run submit jobs again that failed, are in doubt, or have no good image; return which.

    A job in doubt whose task was found is not submitted again: it is fetched.

    Args:
        client: Of the account that the journal belongs to.
        journal: The journal's file, or an open journal.
        failed: Submit jobs again that failed: each for one more charge.
        in_doubt: Submit jobs in doubt again. Their first submit may have been charged, too.
        text_left: Submit jobs again whose verdict is ``text_left``: each for one more charge.
        damaged: The same for the verdicts ``damaged`` and ``cropped``. The earlier image of either stays
            until the new one is verified, and the better one is the result. If the attempt fails, the
            earlier one is.
        model: The model of these attempts; left out, that of the request. A job keeps its key and request.
        dry_run: Return the same, and leave these jobs as they are.

    Raises:
        InvalidInput: Nothing to retry is given, an argument has a wrong type, or ``model`` does not take one
            of the requests; nothing was changed.
        JournalBusyError: A run is using the journal.
        JournalError: There is no journal, or it cannot be used.
    """
    check_client(client)
    given = (failed, in_doubt, text_left, damaged, dry_run)
    for name, flag in zip(("failed", "in_doubt", "text_left", "damaged", "dry_run"), given, strict=True):
        check_flag(flag, name)
    verdicts = ["text_left"] * text_left + ["damaged", "cropped"] * damaged
    states = [JobState.FAILED] * failed + [JobState.IN_DOUBT] * in_doubt + [JobState.DONE] * bool(verdicts)
    if not states:
        raise InvalidInput("There is nothing to retry.", advice=_NOTHING_TO_RETRY)
    other = _other_model(model, in_doubt=in_doubt)
    async with open_journal(client, journal) as opened:
        with opened.one_run():
            await opened.recover()
            grants = Grants(store=opened, at=client.session.clock.wall(), model=other)
            plan = await grants.make(states, verdicts, dry_run=dry_run)
            for state in (JobState.GENERATED, JobState.SUBMITTED):
                async for stored in opened.iter_jobs(state):
                    plan.to_fetch.append(stored.number)
    return plan.as_retried()


def _is_bad(job: JobSnapshot, verdicts: Sequence[str]) -> bool:
    """Return whether an image has one of the verdicts, and no other image that it is to be compared with."""
    return verdict_of(job) in verdicts and job.kept is None


def _other_model(model: AnyModel | ModelName | None, *, in_doubt: bool) -> AnyModel | None:
    """Return the model that a caller named, if any.

    Raises:
        InvalidInput: There is none of that name, or submits in doubt are to be made with it.
    """
    if model is None:
        return None
    if in_doubt:
        raise InvalidInput(
            "A submit in doubt is submitted again as it was, not with another model.",
            advice="Give in_doubt=True and model= in two calls.",
        )
    return check_model(model)


@attrs.define
class RetryPlan:
    """What is to be submitted and fetched, as in :class:`Retried`."""

    submits: Counter[AnyModel] = attrs.field(factory=Counter)
    to_submit: array[int] = attrs.field(factory=lambda: array("q"))
    to_fetch: array[int] = attrs.field(factory=lambda: array("q"))

    def as_retried(self) -> Retried:
        """Return it as a frozen value."""
        return Retried(submits=self.submits, to_submit=self.to_submit, to_fetch=self.to_fetch)


@attrs.frozen(kw_only=True)
class Grants:
    """Records the user's permissions to submit jobs again, in a journal or in the engine's database.

    Attributes:
        store: Where they are recorded.
        at: When they were given.
        model: The model of these submits; None for that of each request.
    """

    store: OperationStore
    at: float
    model: AnyModel | None = None

    async def make(
        self, states: Sequence[JobState], verdicts: Sequence[str] = (), *, dry_run: bool
    ) -> RetryPlan:
        """Grant the jobs in these states another submit, those that are done by their verdicts.

        Raises:
            InvalidInput: The model does not take one of the requests; nothing was granted.
        """
        plan = await self._make(states, verdicts, is_rehearsal=True)
        return plan if dry_run else await self._make(states, verdicts, is_rehearsal=False)

    async def _make(
        self, states: Sequence[JobState], verdicts: Sequence[str], *, is_rehearsal: bool
    ) -> RetryPlan:
        plan = RetryPlan()
        for state in states:
            async for stored in self.store.iter_jobs(state):
                if state is JobState.DONE and not _is_bad(stored.job, verdicts):
                    continue
                if state is JobState.IN_DOUBT and await self.store.offers_to(stored.number):
                    plan.to_fetch.append(stored.number)
                    continue
                plan.to_submit.append(stored.number)
                grant, model = self._grant(stored)
                plan.submits[model] += 1
                if not is_rehearsal:
                    await record_event(self.store, stored, grant)
        return plan

    def _grant(self, stored: StoredJob) -> tuple[ResubmitGranted | RetryGranted, AnyModel]:
        """Return the permission for one job, and the model of the submit that it allows."""
        if stored.job.state is JobState.IN_DOUBT:
            return ResubmitGranted(at=self.at), stored.model
        if self.model is None:
            return RetryGranted(at=self.at), read_model(stored.request)
        return RetryGranted(at=self.at, other_model=model_patch(stored.request, self.model)), self.model


# --- adopt ------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Adopted:
    """The task that a job in doubt now has.

    Attributes:
        key: The job.
        record: The task's record.
        echo: What the record shows of the job's request. ``UNRECOGNISED`` means another request than was
            sent; the task was taken because the API named it for this job. Compare the result with the image.
    """

    key: JobKey
    record: TaskRecord
    echo: Echo


async def adopt(
    client: BatchClient, journal: str | os.PathLike[str] | Journal, job: JobKey | str, task_id: TaskId | str
) -> Adopted:
    """Record that a task is that of a job in doubt; the next run fetches its image without a charge.

    The task's record is compared with the job's request first, as a run compares it.

    Args:
        client: Of the account that paid.
        journal: The journal's file, or an open journal.
        job: The key of the job.
        task_id: The task.

    Raises:
        InvalidInput: The task belongs to another job or was made from another request, or the job is not in
            doubt; nothing was changed.
        NotFoundError: The vendor has no such task; nothing was changed.
        JournalBusyError: A run is using the journal.
        JournalError: There is no journal, or it cannot be used.
    """
    task = check_task_id(task_id)
    async with open_journal(client, journal) as opened:
        with opened.one_run():
            await opened.recover()
            return await adopt_in(opened, client, job, task)


async def adopt_in(store: OperationStore, client: BatchClient, job: JobKey | str, task: TaskId) -> Adopted:
    """Record that a task is that of a job in doubt, in a journal or in the engine's database.

    Raises:
        InvalidInput: As :func:`adopt`; nothing was changed.
        NotFoundError: The vendor has no such task; nothing was changed.
    """
    stored = await _job_in_doubt(store, job)
    owner = await store.owner_of(task)
    if owner not in {None, stored.job.key}:
        raise InvalidInput(f"Task {task} belongs to job {owner}.", advice=_NOTHING_CHANGED)
    record = await _record_of_doubt(client, store, stored, task)
    echo = await adoptable_echo(store, stored, record)
    at = client.session.clock.wall()
    await record_event(store, stored, TaskFound(at=at, task_id=task, api=record.api, echo=echo))
    return Adopted(key=stored.job.key, record=record, echo=echo)


async def _record_of_doubt(
    client: BatchClient, store: OperationStore, stored: StoredJob, task: TaskId
) -> TaskRecord:
    """Return a task's record from an API that the job was submitted to; the client's, if none is known."""
    apis = await store.apis_of(stored.number)
    for api in apis[:-1]:
        with contextlib.suppress(NotFoundError):
            return await client.record(task, api=api)
    try:
        return await client.record(task, api=apis[-1] if apis else None)
    except NotFoundError as error:
        hint = "" if apis else " {other_api}"
        error.advice = f"{_NOTHING_CHANGED} Check the task id at kie.ai/logs.{hint}"
        raise


async def _job_in_doubt(store: OperationStore, key: str) -> StoredJob:
    check_key(key)
    stored = await store.job(key)
    if stored is None:
        raise InvalidInput(f"There is no job {key}.", advice=_NOTHING_CHANGED)
    if stored.job.state is not JobState.IN_DOUBT:
        raise InvalidInput(f"Job {key} is {stored.job.state}, not in doubt.", advice=_NOTHING_CHANGED)
    return stored


# --- rekey ------------------------------------------------------------------------------------------------


class RekeyEvidence(enum.StrEnum):
    """Why a journal may go on with a key."""

    SAME_KEY = "same_key"
    """The journal belongs to this key already."""
    NOTHING_PAID = "nothing_paid"
    """Nothing was paid with the old key."""
    TASK_SEEN = "task_seen"
    """The key can read a task of this journal: it is of the same account."""
    CALLER = "caller"
    """The vendor's answers prove nothing; the caller states that the account is the same."""


@attrs.frozen(kw_only=True)
class Rekeyed:
    """A journal that goes on with another key.

    Attributes:
        evidence: Why it may.
        task_id: The task that was read, where one was.
    """

    evidence: RekeyEvidence
    task_id: TaskId | None = None


async def rekey(
    client: BatchClient, journal: str | os.PathLike[str] | Journal, *, same_account: bool = False
) -> Rekeyed:
    """Let a journal go on with the client's key, which is a new one of the account that it was made with.

    The balance is read first, so that a key which is refused changes nothing. Then up to three tasks of the
    journal are read with the key: a record proves that the key is of the account that paid. "No such task",
    for a task that must exist, proves the contrary. Anything else proves nothing.

    Args:
        client: Made with the new key.
        journal: The journal's file, or a journal that was opened without an account.
        same_account: The caller states that the account is the same. It counts where the vendor's answers
            prove nothing.

    Raises:
        AuthenticationError: The key was refused.
        JournalBusyError: A run is using the journal.
        JournalError: The key is of another account; or its account is not proven, and ``same_account`` is
            False.
    """
    check_flag(same_account, "same_account")
    async with open_journal(client, journal, checks_account=False) as opened:
        with opened.one_run():
            try:
                await client.credits()
                found = await _evidence(client, opened, same_account=same_account)
            except FluxError as error:  # its advice may be to call this function
                error.advice = error.advice_template.replace("{new_key}", _NOTHING_CHANGED)
                raise
            await opened.rekey(client.fingerprint)
    return found


async def _evidence(client: BatchClient, journal: Journal, *, same_account: bool) -> Rekeyed:
    if await journal.account() in {"", client.fingerprint}:
        return Rekeyed(evidence=RekeyEvidence.SAME_KEY)
    if not await journal.may_have_paid():
        return Rekeyed(evidence=RekeyEvidence.NOTHING_PAID)
    now = client.session.clock.wall()
    hidden: list[PaidTask] = []
    for task in await journal.paid_tasks(since=now - max(RETENTION_S.values()), limit=_MOST_TASKS):
        if await _can_read(client, task):
            return Rekeyed(evidence=RekeyEvidence.TASK_SEEN, task_id=task.task_id)
        hidden.append(task)
    _refuse_another_account(hidden, now)
    if not same_account:
        raise JournalError(
            f"Nothing shows that this key is of the account that paid: {_why_not(hidden)}.",
            advice=f"{_NOTHING_CHANGED} If it is of the same account, {{sure}}.",
        )
    return Rekeyed(evidence=RekeyEvidence.CALLER)


async def _can_read(client: BatchClient, task: PaidTask) -> bool:
    """Return whether the key can read a task; False where the vendor says that there is none."""
    try:
        await client.record(task.task_id, api=task.api)
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
        return "the journal has no task of the last 14 days to read"
    return f"for this key there is no task {hidden[0].task_id}, which may be too new, or expired"
