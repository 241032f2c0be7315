"""What is kept of an answer that names no task where it should: it may name one all the same.

Pure: bytes and text in, text and ids out. Ids are of two kinds: *named* ones stand beside a name such as
``task_id`` or ``recordId``; *shaped* ones look like an id (16 to 64 hex digits, a UUID, letters with digits).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from flux_async.api.parsing import task_id

KEPT_BYTES = 4096
"""Of an answer, as a journal and an error keep it."""

_MOST_IDS = 10
_READ_BYTES = 65_536
_CUT = "\n[cut here; ids found in what followed:]"

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
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in read)
    data = text.encode()
    if len(data) <= KEPT_BYTES:
        return text
    tail = _CUT + "".join(f'\n"taskId": "{found}"' for found in ids_in(text))
    return data[: KEPT_BYTES - len(tail.encode())].decode("utf-8", "ignore") + tail


def ids_in(text: str) -> list[str]:
    """Return what may be a task id in an answer, at most ten; named ones come first."""
    try:
        found = list(_in_json(json.loads(text), ""))
    except (ValueError, RecursionError):
        found = list(_in_text(text))
    named = [name for name, is_named in found if is_named]
    return list(dict.fromkeys(named + [name for name, _ in found]))[:_MOST_IDS]


def _in_json(value: object, name: str) -> Iterator[tuple[str, bool]]:
    """Yield the ids in a JSON value that stands under ``name``, each with whether it is named."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _in_json(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _in_json(inner, name)
    elif (found := task_id(value)) is not None:
        if _NAME.fullmatch(name) and " " not in found:
            yield found, True
        elif _SHAPE.fullmatch(found):
            yield found, False
        elif isinstance(value, str):
            yield from _in_text(value)
    elif isinstance(value, str):
        yield from _in_text(value)


def _in_text(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the ids in text: a page, a message, JSON that breaks off. One that breaks off itself is none."""
    for match in _NAMED_IN_TEXT.finditer(text):
        yield match["quoted"] or match["bare"], True
    for match in _SHAPE_IN_PAGE.finditer(text):
        if match.end() < len(text):
            yield match[0], False
