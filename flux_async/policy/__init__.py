"""Decisions: facts, a time and a random draw in; a number of seconds or a yes or no out.

Nothing here sleeps, reads a clock or draws a random number: the caller brings all three. Below are the checks
of values and functions that a caller may set.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from flux_async.errors import InvalidInput, shown

T = TypeVar("T")

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


def check_whole_number(value: object, name: str, least: int, most: int) -> int:
    """Return ``value``.

    Raises:
        InvalidInput: It is not a whole number from ``least`` to ``most``.
    """
    kind = f"whole number from {least:,} to {most:,}"
    fits = _checked(value, name, kind, lambda number: isinstance(number, int) and least <= number <= most)
    return int(fits)


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


def check_kind(value: object, kind: type[T], name: str) -> T:
    """Return ``value``.

    Raises:
        InvalidInput: It is not a ``kind``.
    """
    if not isinstance(value, kind):
        raise InvalidInput(f"{name} must be a {kind.__name__}, not {shown(value)}.")
    return value


def of_kind(kind: type[object]) -> Callable[[object, attrs.Attribute[Any], object], object]:
    """Return a validator that accepts values of ``kind``."""
    return lambda _, attribute, value: check_kind(value, kind, attribute.name)


def check_function(value: object, words: str, *, takes: int, is_async: bool = False, advice: str) -> None:
    """Refuse a value that certainly cannot be called as it will be.

    A lambda or a callable object may return an awaitable, so they are accepted in place of an async function.

    Args:
        value: The value that the caller gave.
        words: The message, without its full stop.
        takes: Arguments it will be called with.
        is_async: Whether its result will be awaited; without it an async function is refused.
        advice: What to give instead.

    Raises:
        InvalidInput: It is no function, takes other arguments, or is asynchronous and must not be, or not and
            must be.
    """
    if callable(value) and not is_async and _is_certainly_async(value):
        raise InvalidInput(f"{words}: it is async.", advice=f"{advice} Nothing was sent.")
    if not callable(value) or not _takes(value, takes) or (is_async and _is_certainly_sync(value)):
        raise InvalidInput(f"{words}.", advice=f"{advice} Nothing was sent.")


def _takes(function: Callable[..., object], arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        return True
    return True


def _is_certainly_async(value: object) -> bool:
    return any(map(inspect.iscoroutinefunction, (value, type(value).__call__)))


def _is_certainly_sync(function: Callable[..., object]) -> bool:
    if inspect.isbuiltin(function):
        return True
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        return False
    inner = inspect.unwrap(function)
    return not inspect.iscoroutinefunction(inner) and inner.__name__ != "<lambda>"


def _checked(value: object, name: str, kind: str, fits: Callable[[int | float], bool]) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    is_usable = math.isfinite(number) if isinstance(number, float) else abs(number) < _LARGEST
    if not is_usable or not fits(number):
        raise InvalidInput(f"{name} must be a {kind}, not {shown(value)}.")
    return float(number)
