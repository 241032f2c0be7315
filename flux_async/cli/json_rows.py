"""Reads JSON of any layout, value by value: arrays, one value a line, objects spread over many lines.

Only one value is held at a time, of at most :data:`LONGEST_VALUE` characters. Where one value a line is the
layout, a damaged line is refused alone; elsewhere nothing behind the damage can be trusted, and reading ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

import attrs

from flux_async.cli.given import InputRow
from flux_async.cli.list_rows import OPTIONS, ListOptions, differing, image_columns, normal, row_of

LONGEST_VALUE = 1_000_000
_PIECE = 65_536
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")


class _Repeated(dict[str, Any]):
    """An object that has a name more than once: each name with all its values."""


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs) == len(set(map(normal, fields))):
        return fields
    repeated = _Repeated()
    for name, value in pairs:
        repeated.setdefault(normal(name), []).append(value)
    return repeated


_decode = json.JSONDecoder(object_pairs_hook=_fields).raw_decode


@attrs.define
class _Text:
    """The part of a file that is being looked at, and the number of the line it begins on.

    It is read line by line, so that what comes through a pipe is a row as soon as it is there.
    """

    file: IO[str]
    text: str = ""
    at: int = 0
    line: int = 1
    ended: bool = False

    def read_on(self) -> bool:
        """Read another piece; return whether there was one."""
        piece = "" if self.ended else self.file.readline(_PIECE)
        self.ended = not piece
        self.text, self.at = self.text[self.at :] + piece, 0
        return not self.ended

    def move_to(self, at: int) -> None:
        """Go on at ``at``."""
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def next_letter(self) -> str:
        """Skip white space; return the letter behind it, or "" at the end."""
        while True:
            self.move_to(_behind_blanks(self.text, self.at))
            if self.at < len(self.text) or not self.read_on():
                return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """Return the next value, and go behind it.

        Raises:
            ValueError: There is none, or it is too long.
        """
        while True:
            try:
                found, end = _decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.move_to(end)
                    return found
            except (ValueError, RecursionError):
                if self.ended or len(self.text) - self.at > LONGEST_VALUE:
                    raise ValueError("no JSON") from None
            self._read_more()

    def _read_more(self) -> None:
        """Read a line; of a long value twice as much, so that it is not parsed anew for every line."""
        length = len(self.text) - self.at
        most = length + 1 if length < _PIECE else 2 * length
        while self.read_on() and len(self.text) < most:
            pass

    def rest_of_line(self) -> str:
        """Return what is left of this line, and go behind it."""
        while (end := self.text.find("\n", self.at)) < 0 and len(self.text) - self.at < LONGEST_VALUE:
            if not self.read_on():
                break
        end = len(self.text) if end < 0 else end + 1
        found = self.text[self.at : end]
        self.move_to(end)
        return found


def _behind_blanks(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return at if found is None else found.end()


def json_rows(source: str, file: IO[str], options: ListOptions, begun: str = "") -> Iterator[InputRow]:
    """Yield a row for every string and object, also of an array at the top.

    Args:
        source: What the list is called.
        file: The list.
        options: How it is read.
        begun: What has been read of it already.
    """
    last, number = 0, 1
    for row in _values(source, _Text(file, begun), options):
        number = number + 1 if row.line == last else 1
        last = row.line
        yield row if number == 1 else attrs.evolve(row, item=str(number))


def _values(source: str, text: _Text, options: ListOptions) -> Iterator[InputRow]:
    in_array, one_a_line = False, None
    while letter := text.next_letter():
        line = text.line
        if letter in "],":
            text.move_to(text.at + 1)
            in_array = in_array and letter == ","
            continue
        if letter == "[" and not in_array and _is_list(text):
            text.move_to(text.at + 1)
            in_array = True
            continue
        try:
            value = text.value()
        except ValueError:
            text.rest_of_line()
            more = text.next_letter() != ""
            damaged = InputRow(source=source, line=line, refusal="it is not JSON")
            if more and (in_array or not _is_alone(text, letter, one_a_line)):
                words = "it is not JSON, or not closed; nothing behind this line was read"
                yield attrs.evolve(damaged, refusal=words)
                return
            yield damaged
            continue
        if one_a_line is None and not in_array:
            one_a_line = text.line == line
        yield _row(source, line, value, options)
    if in_array:
        yield InputRow(
            source=source, line=text.line, refusal="the array is not closed: the list may be cut off"
        )


def _is_list(text: _Text) -> bool:
    """Whether the array that begins here holds images, and not other arrays."""
    while (end := _behind_blanks(text.text, text.at + 1)) == len(text.text) and text.read_on():
        pass
    return text.text[end : end + 1] != "["


def _is_alone(text: _Text, letter: str, one_a_line: bool | None) -> bool:
    """Whether the damage ended with its line, so that what comes now can be read by itself."""
    if one_a_line is not None:
        return one_a_line
    if letter != "{":
        return True
    line = text.text[text.at :].partition("\n")[0]
    try:
        return isinstance(json.loads(line), str | dict)
    except (ValueError, RecursionError):
        return False


def _row(source: str, line: int, value: Any, options: ListOptions) -> InputRow:
    match value:
        case str() as image:
            return InputRow(source=source, line=line, image=image)
        case _Repeated() as repeated:
            return _row_of_repeated(source, line, repeated, options)
        case dict() as fields:
            named = {normal(name): value for name, value in fields.items()}
            return row_of(source, line, named, _columns(list(named), options))
        case _:
            return InputRow(source=source, line=line, refusal="neither a JSON string nor a JSON object")


def _row_of_repeated(source: str, line: int, repeated: _Repeated, options: ListOptions) -> InputRow:
    """Read an object with a name twice: harmless where the name means nothing or the values are equal."""
    columns = _columns(list(repeated), options)
    for name in (*columns[:1], "key", *OPTIONS):
        if (fault := differing(name, repeated.get(name, []))) is not None:
            return InputRow(source=source, line=line, refusal=fault)
    fields = {
        name: next((value for value in values if value not in (None, "")), None)
        for name, values in repeated.items()
    }
    return row_of(source, line, fields, columns)


def _columns(names: Sequence[str], options: ListOptions) -> Sequence[str]:
    found = image_columns(names, options)
    return found or ([normal(options.column)] if options.column is not None else ("url", "image"))
