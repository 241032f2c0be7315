"""Single values of an answer, read without coercion: what is not understood is None.

``null`` never becomes ``"None"``, ``"false"`` never becomes ``True``, and one odd date cannot lose a paid
picture.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, NewType

from flux_async.api.url_encoding import encoded_as_by_a_browser
from flux_async.errors import InvalidInput
from flux_async.models import TaskId, check_http_url

Text = NewType("Text", str)
WholeNumber = NewType("WholeNumber", int)
Moment = NewType("Moment", datetime)
JsonObject = NewType("JsonObject", dict[str, Any])
Link = NewType("Link", str)
Raw = NewType("Raw", object)

_LARGEST_SECONDS = 1e11  # later than the year 5000: a larger number counts milliseconds
_MOST_DIGITS = 18
_LONGEST_TASK_ID = 200
_FIRST_TOO_LONG = 10**_LONGEST_TASK_ID


def text(value: object) -> Text | None:
    """A string with something in it; the literal ``"null"`` some services send is nothing."""
    if not isinstance(value, str) or value.strip().lower() in {"", "null"}:
        return None
    return Text(value.strip())


def task_id(value: object) -> TaskId | None:
    """A name for a task: opaque, printable, of bounded length; of a whole number, its decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _FIRST_TOO_LONG:
        value = str(value)
    name = text(value)
    return TaskId(name) if name and len(name) <= _LONGEST_TASK_ID and name.isprintable() else None


def whole_number(value: object) -> WholeNumber | None:
    """An integer, an integral float or a string of digits; never a bool."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = float(value.strip()[:_MOST_DIGITS])
    number = finite(value)
    return WholeNumber(int(number)) if number is not None and number.is_integer() else None


def finite(value: object) -> float | None:
    """A number that is neither a bool nor infinite nor NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def moment(value: object) -> Moment | None:
    """Epoch milliseconds or seconds, ISO 8601, ``YYYY-MM-DD HH:MM:SS``; without offset it is UTC."""
    number = whole_number(value)
    try:
        if number is not None:
            seconds = number / 1000 if number >= _LARGEST_SECONDS else number
            return Moment(datetime.fromtimestamp(seconds, UTC))
        read = datetime.fromisoformat(text(value) or "")
        return Moment(read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC))
    except (OverflowError, OSError, ValueError):
        return None


def json_object(value: object) -> JsonObject | None:
    """A JSON object, or a string that holds one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return JsonObject(value) if isinstance(value, dict) else None


def link(value: object) -> Link | None:
    """An http(s) URL, percent-encoded where the vendor did not do it; an empty string is none."""
    address = text(value)
    try:
        return None if address is None else Link(check_http_url(encoded_as_by_a_browser(address)))
    except InvalidInput:
        return None
