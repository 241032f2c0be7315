"""Values of an answer, read without coercion: a value of an unknown shape is None.

``null`` never becomes ``"None"``, ``"false"`` never becomes ``True``, and one invalid date cannot lose a paid
image. An answer that should name a task and does not is searched for ids (:func:`ids_in`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NewType
from urllib.parse import quote

from flux_async.errors import Charge, InvalidInput, UnexpectedResponse, shown
from flux_async.images import check_http_url
from flux_async.models import ImageResult, TaskId, TaskRecord

Text = NewType("Text", str)
WholeNumber = NewType("WholeNumber", int)
Moment = NewType("Moment", datetime)
JsonObject = NewType("JsonObject", dict[str, Any])
Link = NewType("Link", str)
Amount = NewType("Amount", float)
Raw = NewType("Raw", object)

EXCERPT = 200
"""Characters of an unexpected answer that an error quotes."""

_LARGEST_SECONDS = 1e11  # later than the year 5000: a larger number counts milliseconds
_MOST_DIGITS = 18
_MOST_CREDITS = 1e9
_LONGEST_TASK_ID = 200
_FIRST_TOO_LONG = 10**_LONGEST_TASK_ID
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def text(value: object) -> Text | None:
    """A string that is not blank; the literal ``"null"`` that some services send is None."""
    if not isinstance(value, str) or value.strip().lower() in {"", "null"}:
        return None
    return Text(value.strip())


def task_id(value: object) -> TaskId | None:
    """A task id: opaque, printable, of bounded length; of a whole number, its decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _FIRST_TOO_LONG:
        value = str(value)
    name = text(value)
    return TaskId(name) if name and len(name) <= _LONGEST_TASK_ID and name.isprintable() else None


def check_task_id(value: object) -> TaskId:
    """Return ``value`` if it can be a task id, else raise :class:`InvalidInput`."""
    clean = task_id(value) if isinstance(value, str) else None
    if clean is None:
        raise InvalidInput(f"{shown(value)} is not a task id.", advice="Give the id that submit returned.")
    return clean


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


def amount(value: object) -> Amount | None:
    """A number of credits that is not negative, or a string of one: ``"5.6"``. None is absurdly large."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = float(value)
    number = finite(value)
    return Amount(number) if number is not None and 0 <= number <= _MOST_CREDITS else None


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
    """An http(s) URL, percent-encoded if the vendor did not do it; None for an empty string."""
    address = text(value)
    try:
        return None if address is None else Link(check_http_url(encoded_as_by_a_browser(address)))
    except InvalidInput:
        return None


def image_of(record: TaskRecord) -> ImageResult:
    """Return the image of a SUCCESS record.

    Raises:
        UnexpectedResponse: The record has no usable result URL; the task was paid.
    """
    if record.result_url is None:
        raise UnexpectedResponse(
            f"Task {record.task_id} reports success without a result URL.",
            advice="It is paid: find it at kie.ai/logs, or {wait}.",
            charge=Charge.YES,
            task_id=record.task_id,
            body_excerpt=str(record.raw)[:EXCERPT],
        )
    return ImageResult(
        task_id=record.task_id,
        result_url=record.result_url,
        origin_url=record.origin_url,
        credits=record.credits,
        api=record.api,
        record=record,
    )


# --- addresses --------------------------------------------------------------------------------------------

_URL = re.compile(r"([a-z][a-z0-9+.-]*:)[/\\]{2}([^/?#\\]*)([^?#]*)(\?[^#]*)?(#.*)?", re.IGNORECASE)
_DROPPED = str.maketrans("", "", "\t\n\r")
_STRIPPED = "".join(map(chr, range(0x21)))
_PATH = "!$%&'()*+,/:;=@[]|-._~"
_QUERY = "!$%&()*+,/:;=?@[]\\^_`{|}~-."
_FRAGMENT = "!#$%&'()*+,/:;=?@[\\]^_{|}~-."


def encoded_as_by_a_browser(url: str) -> str:
    """Return an http(s) address with everything escaped that a browser would escape; others unchanged.

    Rules: WHATWG URL Standard, "URL parsing" and "percent-encoded bytes". Existing escapes stay byte for
    byte, invalid ones such as ``%zz`` too: a signature may cover them. The host is not changed.
    ``https://h/a b/é.jpg?x="1"`` becomes ``https://h/a%20b/%C3%A9.jpg?x=%221%22``; ``%2F%27%7E`` stays.
    """
    bare = url.strip(_STRIPPED).translate(_DROPPED)
    match = _URL.fullmatch(bare)
    if match is None or match[1].lower() not in {"http:", "https:"}:
        return url
    scheme, authority, path, query, fragment = match.groups(default="")
    return (
        f"{scheme}//{authority}"
        + _quoted(path.replace("\\", "/"), _PATH)
        + _quoted(query[:1], "?")
        + _quoted(query[1:], _QUERY)
        + _quoted(fragment, _FRAGMENT)
    )


def _quoted(part: str, safe: str) -> str:
    """Escape all but letters, digits and ``safe``; a lone surrogate counts as U+FFFD, as in a browser."""
    whole = part.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return quote(whole, safe=safe)


# --- ids in an answer that names no task ------------------------------------------------------------------

KEPT_BYTES = 4096
"""Bytes of such an answer that a journal and an error keep."""

_MOST_IDS = 10
_READ_BYTES = 65_536
_CUT = "\n[cut here; ids found in the rest:]"

_NAME = re.compile(r"(?:\w*(?:task|record|job|request|generation))?[_-]?u?u?id|task", re.IGNORECASE)
_HEX_OR_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,64}"
_ALNUM = r"(?=[A-Za-z_-]*[0-9])(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]{16,64}"
_SHAPE = re.compile(rf"(?:{_HEX_OR_UUID})|{_ALNUM}", re.IGNORECASE)
_SHAPE_IN_PAGE = re.compile(rf"(?<![\w/.#-])(?:{_HEX_OR_UUID})(?![\w-])", re.IGNORECASE)
_NAMED_IN_TEXT = re.compile(
    r"\b\w*?(?:task|record|job|request|generation)[ _-]?u?u?id\\?[\"']?\s*[:=]\s*"
    r"(?:\\?[\"'](?P<quoted>[\w.:-]{3,200})\\?[\"']|(?P<bare>[A-Za-z0-9][\w-]{2,199})(?![\w-]))",
    re.IGNORECASE,
)


def kept_answer(body: bytes) -> str:
    """Return an answer as text to keep: all of it, or its beginning and the ids in its first 64 kB."""
    read = body[:_READ_BYTES].decode("utf-8", "replace")
    clean = "".join(c if c.isprintable() or c == "\n" else " " for c in read)
    data = clean.encode()
    if len(data) <= KEPT_BYTES:
        return clean
    tail = _CUT + "".join(f'\n"taskId": "{found}"' for found in ids_in(clean))
    return data[: KEPT_BYTES - len(tail.encode())].decode("utf-8", "ignore") + tail


def ids_in(answer: str) -> list[str]:
    """Return what may be a task id in an answer, at most ten.

    Ids that stand beside a name such as ``task_id`` or ``recordId`` come first, then those that have the
    shape of an id: 16 to 64 hex digits, a UUID, letters with digits.
    """
    try:
        found = list(_ids_in_json(json.loads(answer), ""))
    except (ValueError, RecursionError):
        found = list(_ids_in_text(answer))
    named = [name for name, is_named in found if is_named]
    return list(dict.fromkeys(named + [name for name, _ in found]))[:_MOST_IDS]


def _ids_in_json(value: object, name: str) -> Iterator[tuple[str, bool]]:
    """Yield the ids in a JSON value that stands under ``name``, each with whether it is named."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _ids_in_json(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _ids_in_json(inner, name)
    elif (found := task_id(value)) is not None and _NAME.fullmatch(name) and " " not in found:
        yield found, True
    elif found is not None and _SHAPE.fullmatch(found):
        yield found, False
    elif isinstance(value, str):
        yield from _ids_in_text(value)


def _ids_in_text(answer: str) -> Iterator[tuple[str, bool]]:
    """Yield the ids in text: a page, a message, truncated JSON. An id that is itself truncated is none."""
    for match in _NAMED_IN_TEXT.finditer(answer):
        yield match["quoted"] or match["bare"], True
    for match in _SHAPE_IN_PAGE.finditer(answer):
        if match.end() < len(answer):
            yield match[0], False
