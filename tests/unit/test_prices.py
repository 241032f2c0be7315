"""The price list and its text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
import pytest

from flux_async import InvalidInput, Model
from flux_async.batch.options import price_list
from flux_async.cli.credits import cost_in_words
from flux_async.cli.option_values import read_prices


def test_prices_are_the_vendors_unless_given() -> None:
    """A model that is not named keeps its price."""
    assert price_list(None) == {model: model.row.credits for model in Model}
    assert price_list({Model.PRO: 6}) == {**price_list(None), Model.PRO: 6}


@pytest.mark.parametrize(
    "bad", [{"gpt": 1}, {Model.PRO: 0}, {Model.PRO: "5"}, [5], {Model.PRO: float("nan")}]
)
def test_what_is_no_price_list_is_refused(bad: Any) -> None:
    """With an error of ours."""
    with pytest.raises(InvalidInput):
        price_list(bad)


def test_prices_are_read_from_the_command_line() -> None:
    """MODEL=CREDITS, and nothing else."""
    parameter = click.Option(["--price"])
    context = click.Context(click.Command("x"))
    assert read_prices(context, parameter, ("flux-kontext-max=12.5",))[Model.MAX] == 12.5
    for bad in ("12", "flux-kontext-max=", "flux=3", "flux-kontext-pro=-1"):
        with pytest.raises(click.BadParameter):
            read_prices(context, parameter, (bad,))


@pytest.mark.parametrize(
    ("most", "have", "short"),
    [(None, 25, False), (None, 24.5, True), (10, 10, False), (10, 9, True), (99, 24, True)],
)
def test_a_shortage_is_a_warning(most: float | None, have: float, short: bool) -> None:
    """What counts is what the run may spend."""
    words, warns = cost_in_words(Counter({Model.PRO: 3, Model.MAX: 1}), 25, most, have)
    assert warns is short
    assert words.startswith("4 images need about 25 credits")
