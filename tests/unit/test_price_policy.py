"""What the balance proves about a price, and what a run concludes from it."""

from __future__ import annotations

import pytest

from flux_async.policy.price import MOST_TRIES, Balances, PriceGuard, differs, drop

PRO, MAX = "pro", "max"


def guard(*given: str) -> PriceGuard:
    return PriceGuard(expected={PRO: 5.0, MAX: 10.0}, given=frozenset(given))


@pytest.mark.parametrize(
    ("price", "is_different"),
    [(5.0, False), (5.5, False), (5.51, True), (4.5, False), (4.49, True), (55.0, True), (0.0, True)],
)
def test_a_price_differs_by_more_than_ten_percent_in_either_direction(
    price: float, is_different: bool
) -> None:
    """Exactly 10 % is no difference."""
    assert differs(price, 5.0) is is_different


def test_balances_are_fractions() -> None:
    """60.62 - 55.62 is not quite 5 in binary."""
    assert drop(60.62, 55.62) == 5.0


@pytest.mark.parametrize(
    ("before", "after", "at_end", "has_image", "price", "cost"),
    [
        (100, 45, 45, True, 55, 55),
        (100, 100, 45, True, 55, 55),
        (100, 45, 100, False, 55, 0),
        (100, 45, 45, False, 55, 55),
        (100, 100, 100, True, None, None),
        (100, 100, 100, False, None, None),
        (100, 100, 45, False, None, None),
        (100, 45, 100, True, None, None),
        (100, 45, 40, True, None, None),
        (100, 45, 60, False, None, None),
        (100, 150, 150, True, None, None),
        (100, 100, 150, True, None, None),
    ],
    ids=[
        "charged at its submit",
        "charged at its end",
        "refunded",
        "failed and not refunded",
        "nothing moves",
        "a failed task that never was charged",
        "another charge after a failed task",
        "a refund of another task",
        "another charge",
        "a part is refunded",
        "topped up before",
        "topped up after",
    ],
)
def test_only_one_charge_and_its_refund_show_a_price(
    before: float, after: float, at_end: float, has_image: bool, price: float | None, cost: float | None
) -> None:
    """What one task does not explain was done by others as well."""
    balances = Balances(before=before, after=after, at_end=at_end)
    assert (balances.price(has_image=has_image), balances.cost(has_image=has_image)) == (price, cost)


def test_a_measured_price_replaces_the_expected_one() -> None:
    """The first figure of a run counts."""
    prices = guard()
    assert (prices.price(PRO), prices.is_settled(PRO), prices.measured(PRO)) == (5.0, False, None)
    prices.saw_price(PRO, 5.4)
    prices.saw_price(PRO, 7.0)
    assert (prices.price(PRO), prices.is_settled(PRO), prices.measured(PRO)) == (5.4, True, 5.4)
    assert prices.unexpected(PRO) is None
    assert not prices.is_settled(MAX)
    prices.saw_figure(PRO, 7.0)
    assert prices.unexpected(PRO) == 7.0
    prices.saw_price(MAX, 110.0)
    assert prices.unexpected(MAX) == 110.0


def test_the_same_amount_twice_in_a_row_is_the_price() -> None:
    """Something else may have moved the balance once, but hardly twice by the same amount."""
    prices = guard()
    assert not prices.saw_doubtful(PRO, 55.0)
    assert prices.saw_doubtful(PRO, 55.0)
    assert prices.unexpected(PRO) == 55.0


@pytest.mark.parametrize(
    "seen", [(55.0, None, 55.0), (None, None, None), (10.0, 15.0, 10.0)], ids=["gap", "nothing", "others"]
)
def test_a_price_that_three_images_do_not_show_stays_unknown(seen: tuple[float | None, ...]) -> None:
    """The run goes on at the expected price."""
    prices = guard()
    assert [prices.saw_doubtful(PRO, price) for price in seen] == [False] * (MOST_TRIES - 1) + [True]
    assert (prices.price(PRO), prices.measured(PRO), prices.unexpected(PRO)) == (5.0, None, None)


def test_only_an_unexpected_price_of_an_earlier_run_is_taken_over() -> None:
    """What was right, and what the caller has given a price for, is measured anew."""
    prices = guard(MAX)
    prices.load({PRO: 55.0, MAX: 110.0, "of another release": 3.0})
    assert (prices.unexpected(PRO), prices.is_settled(MAX)) == (55.0, False)
    prices = guard()
    prices.load({PRO: 5.2})
    assert not prices.is_settled(PRO)
