"""What callbacks and the polls of other jobs say of a job's submits, and whether the vendor confirms it."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from flux_async.api.echo import is_of_attempt
from flux_async.api.error_codes import PollMeaning, poll_meaning
from flux_async.api.stored_requests import with_input
from flux_async.client import FluxClient
from flux_async.errors import ConfigurationError, FluxError, Scope
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import TaskId
from flux_async.policy.polling import PollPolicy

_SOONEST_S, _LATEST_S = 5.0, 300.0
_VISIBLE_WITHIN_S = PollPolicy().not_found_grace_s


@attrs.define(kw_only=True, eq=False)
class Witness:
    """Finds the task of a submit whose answer was lost.

    A task counts whose record was seen to show this job's request, while it was polled for another job. A
    callback counts where it names an attempt of this job whose task is not known, was signed (or there is
    no key to sign with), and record-info shows the same picture, prompt and address.

    Attributes:
        client: Asks record-info.
        journal: Has the callbacks.
        stored: The job.
        keys: The webhook keys; with one, what nobody signed is a reason to look and no more.
    """

    client: FluxClient
    journal: Journal
    stored: StoredJob
    keys: Collection[bytes] = ()

    async def find_task(self) -> tuple[TaskId | None, float | None]:
        """Return the task, or else in how many seconds to ask once more, if asking again may help.

        While it may, a callback names a task that can be the one that was paid for: no time for another.
        """
        for task_id in await self.journal.offers_to(self.stored.number):
            return task_id, None
        again_s: float | None = None
        now = self.client.session.clock.wall()
        for entry in await self.journal.callbacks_for(self.stored.number):
            if self.keys and not entry.signed:
                continue
            confirmed = await self._confirms(entry)
            if confirmed:
                return entry.task_id, None
            if confirmed is None:  # ever more rarely: it may be a lie
                wait = min(_LATEST_S, max(_SOONEST_S, now - entry.at))
                again_s = wait if again_s is None else min(again_s, wait)
        return None, again_s

    async def _confirms(self, entry: InboxEntry) -> bool | None:
        """Ask record-info whether the task was made from that attempt; None where it cannot tell now."""
        if await self.journal.owner_of(entry.task_id) not in {None, self.stored.job.key}:
            return False
        try:
            record = await self.client.record(entry.task_id)
        except FluxError as error:
            if error.scope is Scope.STOP or isinstance(error, ConfigurationError):
                raise
            return False if self._is_of_nothing(error, entry) else None
        return is_of_attempt(
            record.params, with_input(self.stored.request, entry.input_url), entry.callback_id
        )

    def _is_of_nothing(self, error: FluxError, entry: InboxEntry) -> bool:
        """Say whether the vendor has no such task, long after it could not be visible yet."""
        age = self.client.session.clock.wall() - entry.at
        return poll_meaning(error) is PollMeaning.NOT_VISIBLE and age >= _VISIBLE_WITHIN_S
