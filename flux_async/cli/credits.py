"""What a run may cost, and what the account has: told before anything is spent, and again at the end."""

from __future__ import annotations

from collections import Counter

import attrs

from flux_async import AuthenticationError, FluxClient, FluxError, Model, RetryPolicy

_TIMEOUT_S = 10.0


@attrs.define
class Balance:
    """The account's credits before and after a run.

    The difference is an estimate of what the run cost: other work may be going on, and refunds come late.

    Attributes:
        before: Credits before, or None where the vendor did not say.
        after: Credits after.
    """

    before: float | None = None
    after: float | None = None

    async def look_before(self, client: FluxClient) -> str | None:
        """Ask for the balance; return why it is not known, where it is not: that is no reason not to run.

        Raises:
            AuthenticationError: The key was refused, as every submit would be.
        """
        try:
            self.before = await _ask(client)
        except AuthenticationError:
            raise
        except FluxError as error:
            return f"The balance is not known ({type(error).__name__}); going on without."
        return None

    async def look_after(self, client: FluxClient) -> None:
        """Ask again, where there was an answer before; what it ends in is of no importance."""
        if self.before is None:
            return
        try:
            self.after = await _ask(client)
        except FluxError:
            self.after = None


async def _ask(client: FluxClient) -> float:
    return await client.with_options(retry=RetryPolicy(max_tries=1)).credits(timeout=_TIMEOUT_S)


def in_credits(amount: float) -> str:
    """Return an amount for a person: all of its digits, where it has no more than ten, and no others."""
    return f"{amount:.10g}"


def cost_in_words(counts: Counter[Model], cost: float, most: float | None, have: float) -> tuple[str, bool]:
    """Return what to say before a run, and whether it is a warning.

    Args:
        counts: Images to be paid for, by model.
        cost: What they cost by the price list.
        most: What the run may spend.
        have: What the account has.
    """
    images = sum(counts.values())
    need = cost if most is None else min(cost, most)
    plural = "1 image needs" if images == 1 else f"{images} images need"
    bounded = "" if need == cost else f", of which this run may spend {in_credits(need)}"
    words = f"{plural} about {in_credits(cost)} credits{bounded}; the account has {in_credits(have)}."
    if have >= need:
        return words, False
    return f"{words} It will stop when they are used up; the rest stays pending.", True
