"""What a picture costs. The vendor's price list is not part of its API, so it can be set."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flux_async.errors import InvalidInput, shown
from flux_async.models import Model
from flux_async.policy.numbers import check_positive

PRICES: Mapping[Model, float] = MappingProxyType({Model.PRO: 5.0, Model.MAX: 10.0})
"""Credits per picture at the time of writing."""


def price_list(prices: Mapping[Model, float] | None) -> Mapping[Model, float]:
    """Return the price of every model: those given, and for the others the vendor's at the time of writing.

    Raises:
        InvalidInput: A model that does not exist, or a price that is none.
    """
    try:
        given = {Model(model): check_positive(price, "a price") for model, price in (prices or {}).items()}
    except (AttributeError, ValueError) as bad:
        if isinstance(bad, InvalidInput):
            raise
        raise InvalidInput(f"prices must give credits by model, not {shown(prices)}.") from None
    return MappingProxyType({**PRICES, **given})
