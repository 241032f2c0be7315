"""What a run may spend: said, compared with the balance, and asked about, before it is spent.

Inputs are submitted while they are read, so that the cost grows. Whatever is known so far is judged before it
may be submitted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs

from flux_async import BudgetExhausted, FluxClient, Model
from flux_async.cli.credits import Balance, cost_in_words, in_credits
from flux_async.cli.selection import Selection
from flux_async.clock import Clock
from flux_async.journal.store import StoredJob

_READ_ON_S = 3.0
"""A question waits so long for the rest of a list, to name the whole cost."""

Ask = Callable[[str], Awaitable[bool]]


@attrs.define(kw_only=True, eq=False)
class Spending:
    """Judges what a run needs.

    Attributes:
        client: Is asked for the balance.
        prices: Credits per image, by model.
        max_credits: What the run may spend.
        confirm_above: Credits above which a person is asked, where there is one.
        ask: Asks, or None where nobody is to be asked.
        is_agreed: Whether the answer to every question is yes.
        note: Prints a message in a colour.
        clock: The reader of time.
    """

    client: FluxClient
    prices: Mapping[Model, float]
    max_credits: float | None
    confirm_above: float
    ask: Ask | None
    is_agreed: bool
    note: Callable[[str, str], None]
    clock: Clock
    balance: Balance = attrs.field(factory=Balance, init=False)
    _looked: bool = attrs.field(default=False, init=False)
    _asks_at: float | None = attrs.field(default=None, init=False)
    _confirmed: bool = attrs.field(default=False, init=False)
    _said_short: bool = attrs.field(default=False, init=False)

    def cost(self, selection: Selection) -> float:
        """Return the credits that the images read so far need."""
        return sum(self.prices[model] * count for model, count in selection.needs.items())

    async def may_submit(self, selection: Selection, *, is_last: bool) -> bool:
        """Say whether what has been read so far may be submitted.

        Raises:
            AuthenticationError: The key was refused.
            BudgetExhausted: The answer was no.
        """
        if not selection.needs:
            return True
        if not self._looked:
            self._looked = True
            await self._look(is_last=is_last)
        if not await self._is_confirmed(selection, is_last=is_last):
            return False
        self._say(selection, is_last=is_last)
        return True

    async def may_pay_again(self, count: int, place: str, paid_as: StoredJob) -> bool:
        """Say whether images are paid for that were submitted, perhaps under another signature."""
        words = _differing(count, "in the signature of the address", place, paid_as)
        if self.is_agreed:
            self.note(f"{words} They are paid for again.", "yellow")
            return True
        if self.ask is not None:
            return await self.ask(f"{words} Pay for such images again?")
        self.note(f"{words} Such images are not paid for again without --yes.", "yellow")
        return False

    async def may_pay_similar(self, count: int, place: str, similar: StoredJob) -> bool:
        """Say whether images are paid for whose address differs only in its query from a submitted one.

        They may well be others (``?id=17``, ``?id=18``): where there is nobody to ask, they are paid for.
        """
        words = _differing(count, "in the query of the address", place, similar)
        if self.ask is not None and not self.is_agreed:
            return await self.ask(f"{words} Are they other images, to be paid for?")
        self.note(f"{words} They are taken for other images and paid for.", "yellow")
        return True

    # --- how ----------------------------------------------------------------------------------------------

    async def _look(self, *, is_last: bool) -> None:
        trouble = await self.balance.look_before(self.client)
        if self.balance.before is None:
            self.note(trouble or "", "yellow")
        elif not is_last:
            have = in_credits(self.balance.before)
            self.note(f"The account has {have} credits. The inputs are submitted while they are read.", "")

    async def _is_confirmed(self, selection: Selection, *, is_last: bool) -> bool:
        cost = self.cost(selection)
        need = cost if self.max_credits is None else min(cost, self.max_credits)
        if self.ask is None or self.is_agreed or self._confirmed or need <= self.confirm_above:
            return True
        now = self.clock.monotonic()
        if self._asks_at is None:
            self._asks_at = now + _READ_ON_S
        if not is_last and now < self._asks_at:
            return False
        images = selection.needs.total()
        least = "" if is_last else "at least "
        words = f"{least}{images} images need about {least}{in_credits(cost)} credits"
        bounded = "" if need == cost else f", of which this run may spend {in_credits(need)}"
        have = self.balance.before
        known = "" if have is None else f"; the account has {in_credits(have)}"
        if not await self.ask(f"{words[0].upper()}{words[1:]}{bounded}{known}. Submit them?"):
            raise BudgetExhausted(
                f"More than {in_credits(self.confirm_above)} credits were not agreed to.",
                advice="Answer y the next time, or add --yes or --confirm-above.",
            )
        self._confirmed = True
        return True

    def _say(self, selection: Selection, *, is_last: bool) -> None:
        if self.balance.before is None:
            return
        words, is_short = cost_in_words(
            selection.needs, self.cost(selection), self.max_credits, self.balance.before
        )
        if is_last:
            self.note(words, "yellow" if is_short else "")
        elif is_short and not self._said_short:
            self._said_short = True
            self.note(f"So far: {words}", "yellow")


def _differing(count: int, where: str, place: str, other: StoredJob) -> str:
    images, differ = ("1 image", "differs") if count == 1 else (f"{count} images", "differ")
    return (
        f"{images} of the rows read so far {differ} only {where} from one that this folder has submitted "
        f"(first: {place}, job {other.job.key})."
    )
