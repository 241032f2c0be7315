"""How numbers a caller may set are checked: one wording for every policy."""

from __future__ import annotations

import math
from typing import Any

import attrs

from flux_async.errors import InvalidInput, shown

_LARGEST = 10**15


def positive_number(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept finite numbers above zero."""
    check_positive(value, attribute.name)


def not_negative(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept finite numbers from zero up."""
    check_not_negative(value, attribute.name)


def positive_integer(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept whole numbers from one up."""
    if not isinstance(value, int) or not _is_finite(value) or value < 1:
        raise InvalidInput(f"{attribute.name} must be a whole number of at least 1, not {shown(value)}.")


def check_positive(value: object, name: str) -> float:
    """Return ``value`` as seconds (or another quantity) if it is finite and above zero."""
    if not _is_finite(value) or value <= 0:  # type: ignore[operator]
        raise InvalidInput(f"{name} must be a finite number above 0, not {shown(value)}.")
    return float(value)  # type: ignore[arg-type]


def check_not_negative(value: object, name: str) -> float:
    """Return ``value`` as seconds (or another quantity) if it is finite and not below zero."""
    if not _is_finite(value) or value < 0:  # type: ignore[operator]
        raise InvalidInput(f"{name} must be a finite number of at least 0, not {shown(value)}.")
    return float(value)  # type: ignore[arg-type]


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < _LARGEST
