"""Decisions: facts, a time and a random draw in; a number of seconds or a yes or no out.

Nothing here sleeps, reads a clock or draws a random number: the caller brings all three. Below are the checks
of numbers that a caller may set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from flux_async.errors import InvalidInput, shown

_LARGEST = 10**15


def check_positive(value: object, name: str) -> float:
    """Return ``value`` as a float.

    Raises:
        InvalidInput: It is not a finite number above 0.
    """
    return _checked(value, name, "finite number above 0", lambda number: number > 0)


def check_not_negative(value: object, name: str) -> float:
    """Return ``value`` as a float.

    Raises:
        InvalidInput: It is not a finite number of at least 0.
    """
    return _checked(value, name, "finite number of at least 0", lambda number: number >= 0)


def positive_number(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept finite numbers above 0."""
    check_positive(value, attribute.name)


def not_negative(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept finite numbers of at least 0."""
    check_not_negative(value, attribute.name)


def positive_integer(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept whole numbers of at least 1."""
    kind = "whole number of at least 1"
    _checked(value, attribute.name, kind, lambda number: isinstance(number, int) and number >= 1)


def _checked(value: object, name: str, kind: str, fits: Callable[[int | float], bool]) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    is_usable = math.isfinite(number) if isinstance(number, float) else abs(number) < _LARGEST
    if not is_usable or not fits(number):
        raise InvalidInput(f"{name} must be a {kind}, not {shown(value)}.")
    return float(number)
