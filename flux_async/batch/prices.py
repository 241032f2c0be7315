"""The price list of a run. The vendor's prices are not part of its API, so the caller can set them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flux_async.api.models_table import Model
from flux_async.errors import InvalidInput, shown
from flux_async.policy import check_positive


def price_list(prices: Mapping[Model, float] | None) -> Mapping[Model, float]:
    """Return the price of every model: those given, and for the others the price of the table.

    Raises:
        InvalidInput: A model that does not exist, or a price that is none.
    """
    try:
        given = {Model(model): check_positive(price, "a price") for model, price in (prices or {}).items()}
    except (AttributeError, ValueError) as bad:
        if isinstance(bad, InvalidInput):
            raise
        raise InvalidInput(f"prices must give credits by model, not {shown(prices)}.") from None
    return MappingProxyType({model: given.get(model, model.row.credits) for model in Model})
