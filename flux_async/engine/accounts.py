"""The rate limiter and the health of each key, shared by all workers of a database.

Rules:

1. A permit is one row update: the generic cell rate algorithm with a burst of one, on the clock of the
   database. So three workers of one account space their submits as one would.
2. A worker takes one permit at a time and submits at once: permits that wait would let a later job of higher
   priority wait for them.
3. While one worker measures a price by the balance, no other submits with that key.
4. A key that the vendor refuses, an empty balance, and answers that make no sense halt that key's submits for
   all workers, not those of other keys. After ten minutes one worker tries again; one that starts does so at
   once, but not after answers that make no sense.
"""

from __future__ import annotations

import attrs

from flux_async.engine.database import Database, to_json
from flux_async.errors import TooManyUnknownAnswers
from flux_async.job_state import Problem
from flux_async.policy.rate_limit import HALT_S, Limits, SubmitSpacing

_WIDER = 0.01
_TOLERATED_S, _MOST_LATE_S = 0.05, 5.0
_NOW = "extract(epoch FROM clock_timestamp())::float8"


@attrs.frozen(kw_only=True)
class Permit:
    """Permission for one submit.

    Attributes:
        account: The fingerprint of the key that makes it.
        wait_s: Seconds until it may start.
        idle_s: Seconds by then since the permit before it.
    """

    account: str
    wait_s: float
    idle_s: float


@attrs.frozen
class Accounts:
    """The accounts of a database."""

    database: Database

    async def register(self, account: str, limits: Limits) -> None:
        """Set the rate of an account, also while workers run, and end its halt.

        A halt by unknown answers goes on: a supervisor that starts workers again would pay for a few submits
        in doubt each time.
        """
        await self.database.execute(
            "INSERT INTO flux_async.account AS known (fingerprint, spacing_s, limit_s) "
            "VALUES (%(account)s, %(spacing_s)s, %(limit_s)s) ON CONFLICT (fingerprint) DO UPDATE SET "
            "spacing_s = CASE known.limit_s WHEN excluded.limit_s THEN known.spacing_s "
            "ELSE excluded.spacing_s END, limit_s = excluded.limit_s, "
            "halted_until = CASE known.problem->>'type' WHEN %(unknown)s THEN known.halted_until ELSE 0 END",
            account=account,
            unknown=TooManyUnknownAnswers.__name__,
            spacing_s=SubmitSpacing(limits).spacing_s,
            limit_s=limits.window_s / limits.submits,
        )

    async def permit(self, accounts: list[str]) -> Permit | None:
        """Take the earliest permit of several accounts; None if all of them are halted."""
        row = await self.database.row(
            "WITH first AS (SELECT fingerprint, next_at FROM flux_async.account "
            f"WHERE fingerprint = ANY(%(accounts)s) AND greatest(halted_until, measuring_until) <= {_NOW} "
            "ORDER BY next_at LIMIT 1 FOR UPDATE) "
            f"UPDATE flux_async.account SET next_at = greatest(account.next_at, {_NOW}) + spacing_s "
            "FROM first WHERE account.fingerprint = first.fingerprint "
            f"RETURNING account.fingerprint, account.next_at - spacing_s - {_NOW} AS wait_s, "
            "account.next_at - first.next_at AS idle_s",
            accounts=accounts,
        )
        if row is None:
            return None
        return Permit(account=row["fingerprint"], wait_s=max(0.0, row["wait_s"]), idle_s=row["idle_s"])

    async def was_late(self, account: str, seconds: float) -> None:
        """Move the next permits by the time that a submit came after its permit, if that is much.

        Otherwise those after it would be too close to it.
        """
        if seconds > _TOLERATED_S:
            await self.database.execute(
                "UPDATE flux_async.account SET next_at = next_at + %(seconds)s "
                "WHERE fingerprint = %(account)s",
                account=account,
                seconds=min(seconds, _MOST_LATE_S) - _TOLERATED_S,
            )

    async def is_paused(self, account: str) -> bool:
        """Return whether a permit that was taken counts no longer.

        The vendor has asked for a pause since then, or another worker measures a price.
        """
        row = await self.database.row(
            "SELECT FROM flux_async.account WHERE fingerprint = %(account)s "
            f"AND greatest(paused_until, measuring_until) > {_NOW}",
            account=account,
        )
        return row is not None

    async def pause(self, account: str, seconds: float, *, is_rate_limited: bool) -> None:
        """Give no permit for ``seconds``: the vendor asked all requests to wait (429, 455).

        After 429 permits are 1 % further apart from then on, up to 5 % more than the limit: requests travel
        less evenly than was assumed.
        """
        await self.database.execute(
            f"UPDATE flux_async.account SET paused_until = greatest(paused_until, {_NOW} + %(seconds)s), "
            f"next_at = greatest(next_at, {_NOW} + %(seconds)s), "
            "spacing_s = least(spacing_s + %(wider)s * limit_s, greatest(spacing_s, 1.05 * limit_s)) "
            "WHERE fingerprint = %(account)s",
            account=account,
            seconds=seconds,
            wider=_WIDER * is_rate_limited,
        )

    async def begin_measuring(self, account: str, seconds: float) -> bool:
        """Give no permit while a price is measured, at most for ``seconds``; False if another is measured."""
        changed = await self.database.execute(
            f"UPDATE flux_async.account SET measuring_until = {_NOW} + %(seconds)s "
            f"WHERE fingerprint = %(account)s AND measuring_until <= {_NOW}",
            account=account,
            seconds=seconds,
        )
        return changed == 1

    async def is_measuring(self, accounts: list[str]) -> bool:
        """Return whether a price is measured with one of several accounts."""
        row = await self.database.row(
            "SELECT FROM flux_async.account "
            f"WHERE fingerprint = ANY(%(accounts)s) AND measuring_until > {_NOW} LIMIT 1",
            accounts=accounts,
        )
        return row is not None

    async def end_measuring(self, account: str) -> None:
        """Give permits again."""
        await self.database.execute(
            "UPDATE flux_async.account SET measuring_until = 0 WHERE fingerprint = %(account)s",
            account=account,
        )

    async def halt(self, account: str, problem: Problem, seconds: float = HALT_S) -> None:
        """Give no permit until ``seconds`` have passed, or until :meth:`register` ends the halt."""
        await self.database.execute(
            f"UPDATE flux_async.account SET halted_until = {_NOW} + %(seconds)s, problem = %(problem)s "
            "WHERE fingerprint = %(account)s",
            account=account,
            seconds=seconds,
            problem=to_json(attrs.asdict(problem)),
        )

    async def halted(self, account: str | None) -> Problem | None:
        """Return why an account has no permits now; without one, why none of them has any."""
        row = await self.database.row(
            f"SELECT problem, halted_until > {_NOW} AS is_halted FROM flux_async.account "
            "WHERE fingerprint = coalesce(%(account)s, fingerprint) ORDER BY halted_until LIMIT 1",
            account=account,
        )
        is_halted = row is not None and row["is_halted"] and row["problem"] is not None
        return Problem(**row["problem"]) if row is not None and is_halted else None
