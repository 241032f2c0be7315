"""Measures what a task costs, from the vendor's own figure or from the balance, and compares it. Pure.

Rules:

1. The price of a model is measured once in a run, with its first image. It is the task's own figure where the
   vendor gives one, else the difference that one submit, alone in flight, makes to the balance.
2. A task is charged at its submit and refunded when it fails. The balance right after the submit therefore
   shows the price. If it shows another amount than expected, a third reading at the end of the task confirms
   it: nothing but this task may have moved the balance meanwhile.
3. Others use the account as well. A change that one task does not explain proves nothing, and the next image
   measures again. An amount that two images in a row have shown is the price all the same.
4. The task's own figure may come after the balance has shown the expected price. It counts all the same, and
   the run halts before its next submit.
5. A price that is still unknown after :data:`MOST_TRIES` images stays unknown: the run goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import attrs

TOLERANCE = 0.1
"""A price may differ from the expected one by this part of it."""

MOST_TRIES = 3
_DIGITS = 6
"""The vendor's balance is a binary fraction: 60.62 - 55.62 is not quite 5."""


def differs(credits_: float, expected: float) -> bool:
    """Return whether a price differs from the expected one, in either direction, by more than 10 %."""
    return round(abs(credits_ - expected), _DIGITS) > round(TOLERANCE * expected, _DIGITS)


@attrs.frozen(kw_only=True)
class Balances:
    """The balance around one task.

    Attributes:
        before: Right before its submit.
        after: Right after the submit was accepted.
        at_end: After its end.
    """

    before: float
    after: float
    at_end: float

    def price(self, *, has_image: bool) -> float | None:
        """Return what the task was charged; None if one charge, or one with its refund, does not explain it.

        Args:
            has_image: Whether the task made an image; one that failed is usually refunded.
        """
        first, second = drop(self.before, self.after), drop(self.after, self.at_end)
        if first > 0 and (second == 0 or (second == -first and not has_image)):
            return first
        if first == 0 and second > 0 and has_image:  # charged at its end
            return second
        return None

    def cost(self, *, has_image: bool) -> float | None:
        """Return what the task has cost in the end: 0 if it was refunded, None if that cannot be told."""
        return None if self.price(has_image=has_image) is None else drop(self.before, self.at_end)


def drop(before: float, after: float) -> float:
    """Return the credits by which a balance fell."""
    return round(before - after, _DIGITS)


@attrs.define(kw_only=True)
class PriceGuard:
    """The prices of one run: expected, measured, or unknown.

    Attributes:
        expected: The expected price of an image, by model.
        given: The models whose price the caller has given.
    """

    expected: Mapping[Any, float] = attrs.field(repr=False)
    given: Collection[Hashable] = ()
    _measured: dict[Hashable, float] = attrs.field(factory=dict, init=False)
    _earlier: Mapping[str, float] = attrs.field(factory=dict, init=False)
    _unknown: set[Hashable] = attrs.field(factory=set, init=False)
    _tries: dict[Hashable, list[float | None]] = attrs.field(factory=dict, init=False)

    def price(self, model: Hashable) -> float:
        """Return what an image costs: as measured, else as expected."""
        return self._measured.get(model, self.expected[model])

    def measured(self, model: Hashable) -> float | None:
        """Return the price that this run has measured, if it has."""
        return self._measured.get(model)

    def is_settled(self, model: Hashable) -> bool:
        """Return whether nothing is left to measure: the price is known, or stays unknown."""
        return model in self._measured or model in self._unknown

    def unexpected(self, model: Hashable) -> float | None:
        """Return the price if it differs from the expected one.

        The price that an earlier run has measured counts, too, unless the caller has given one: the run then
        halts before its first submit and pays nothing to measure the same again.
        """
        earlier = None if model in self.given else self._earlier.get(str(model))
        price = self._measured.get(model, earlier)
        return None if price is None or not differs(price, self.expected[model]) else price

    def load(self, measured: Mapping[str, float]) -> None:
        """Take over the prices that earlier runs have measured, by the models' names."""
        self._earlier = measured

    def saw_price(self, model: Hashable, credits_: float) -> None:
        """Record a price that is certain."""
        self._measured.setdefault(model, credits_)

    def saw_figure(self, model: Hashable, credits_: float) -> None:
        """Record the vendor's own figure for an image: it outweighs what the balance has shown."""
        self._measured[model] = credits_

    def saw_doubtful(self, model: Hashable, credits_: float | None) -> bool:
        """Record a try that proves nothing by itself; return whether the price is settled now.

        Args:
            model: The model.
            credits_: The charge that the balance shows, if something else may have moved it; None if no
                single charge explains it.
        """
        tries = self._tries.setdefault(model, [])
        if credits_ is not None and tries and tries[-1] == credits_:
            self.saw_price(model, credits_)
        elif len(tries) + 1 >= MOST_TRIES:
            self.give_up(model)
        tries.append(credits_)
        return self.is_settled(model)

    def give_up(self, model: Hashable) -> None:
        """Record that the price stays unknown, as the balance cannot be read or proves nothing."""
        self._unknown.add(model)
