"""Reads lists: plain text, CSV as spreadsheets and shops write it, and JSON of any layout.

Whatever would be read wrongly is refused: a row alone where the next one can be trusted, else the rest.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import IO, Any

import attrs
import click

from flux_async.batch.columns import AT_THE_ENDS, OPTIONS, image_columns, normal
from flux_async.cli.input_rows import InputRow, ListOptions, differing, row_of
from flux_async.cli.list_files import Note
from flux_async.cli.terminal import printable

_PLAIN = re.compile(r"https?://[!-~]+")
_MARK = re.compile(r"(?:[-*+\u2022>]|[0-9]{1,7}[.)])[\s\u200b]+(?=[!\[<\"'`]|https?://)", re.IGNORECASE)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?(https?://\S*?)>?(?:\s+[\"'(].*)?\s*\)", re.IGNORECASE)
_WRAPPED = re.compile(r"[<\"'`](https?://[^\s<>\"'`]+)[>\"'`][,;]?", re.IGNORECASE)
_COMMENTED = re.compile(
    r"(https?://\S+?)[,;]?(?:[ \u00a0]*\t|(?<=\.jpg|\.png)\s+#|(?<=\.jpeg|\.webp)\s+#|\s+#(?=\s|$))(.*)",
    re.IGNORECASE | re.DOTALL,
)


def text_rows(source: str, lines: Iterable[str]) -> Iterator[InputRow]:
    """Yield the rows of a text file, without blank lines and comments."""
    for number, line in enumerate(lines, start=1):
        text = line.strip(AT_THE_ENDS)
        if text and not text.startswith("#"):
            yield InputRow(source=source, line=number, image=image_in(text))


def image_in(text: str) -> str:
    """Return the URL in a line, without list marks, link syntax and comments, or the line as it is.

    A line that is not certain stays whole and is refused later: a URL that contains a blank would be cut.
    """
    if _PLAIN.fullmatch(text):
        return text
    rest = text[found.end() :] if (found := _MARK.match(text)) else text
    for form in (_LINK, _WRAPPED):
        if (found := form.fullmatch(rest)) is not None:
            return found[1]
    if (found := _COMMENTED.fullmatch(rest)) is not None and "://" not in found[2]:
        return found[1]
    return rest


# --- CSV --------------------------------------------------------------------------------------------------
#
# Python's parser runs in strict mode: a quote that is not closed at the end of its cell is an error, not a
# cell that swallows the rows after it. A row with more cells than the header holds a separator without
# quotes; it is refused, because its URL may have been cut.


_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
_ADDRESS = re.compile(r"\s*https?://", re.IGNORECASE)
_CUT_END = re.compile(r"https?://\S*/[a-z]+[_=][\w.:-]+", re.IGNORECASE)
_CUT_REST = re.compile(r"(?:[a-z]+[_=][\w.:-]+,)*[a-z]+[_=][\w.:-]+/\S", re.IGNORECASE)
_SHOWN_COLUMNS = 30


@attrs.define
class _Lines:
    """The lines of a file, counted, and the line on which the open quote began."""

    rest: Iterator[str]
    number: int = 0
    opened_at: int = 0
    _open: bool = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.rest)
        self.number += 1
        if line.count('"') % 2:
            self._open = not self._open
            self.opened_at = self.number if self._open else self.opened_at
        return line

    def begin_row(self) -> int:
        """Return the number of the first line of the next row."""
        self._open, self.opened_at = False, self.number + 1
        return self.opened_at


def csv_header(line: str, options: ListOptions) -> bool:
    """Return whether a line is the header of a list: one of its cells names the column of images."""
    names = [normal(name) for name in _cells(line, _separator(line))]
    return _SEPARATOR_LINE.fullmatch(line) is not None or bool(image_columns(names, options.column))


def csv_rows(source: str, lines: Iterable[str], options: ListOptions, note: Note) -> Iterator[InputRow]:
    """Yield the rows of a CSV file.

    Raises:
        click.UsageError: No column of images was found.
    """
    counted = _Lines(iter(lines))
    header, separator = _header(counted, options)
    if header is None:
        return
    cells = _header_cells(source, header, counted, separator)
    names = [normal(name) for name in cells]
    columns = image_columns(names, options.column)
    if not columns:
        if options.column is None and len(cells) == 1 and _ADDRESS.match(cells[0]):
            yield InputRow(source=source, line=counted.number, image=cells[0])  # a list without a header
            columns = names = ["image"]
        else:
            raise _no_column(source, counted.number, cells, options)
    elif len(columns) > 1:
        others = ", ".join(cells[names.index(name)].strip() for name in columns[1:])
        taken = cells[names.index(columns[0])].strip()
        note(
            printable(
                f"{source}: the images are taken from column {taken}, not from {others} (--column chooses)."
            )
        )
    yield from _body(source, counted, separator, names, columns[0])


def _header(lines: _Lines, options: ListOptions) -> tuple[str | None, str]:
    """Return the header line, after blank lines and comments, and the separator."""
    separator = None
    for line in lines:
        if (found := _SEPARATOR_LINE.fullmatch(line)) is not None and lines.number == 1:
            separator = found[1]
        elif line.strip(AT_THE_ENDS) and (not line.startswith("#") or csv_header(line, options)):
            return line, separator or _separator(line)
    return None, ","


def _header_cells(source: str, header: str, lines: _Lines, separator: str) -> list[str]:
    """Return the cells of the header, which may span several lines."""
    try:
        return next(csv.reader(chain([header], lines), delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise click.UsageError(printable(f"The header of {source} is not CSV: {error}.")) from None


def _body(
    source: str, lines: _Lines, separator: str, names: Sequence[str], column: str
) -> Iterator[InputRow]:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    at, width = names.index(column), len(names)
    doubled = _doubled(names, column)
    while True:
        first = lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = InputRow(source=source, line=first, refusal=f"it is not CSV: {error}")
            if lines.number == first and "end of data" not in str(error):
                yield row
                continue
            yield attrs.evolve(row, line=lines.opened_at, refusal=_open_quote(lines.opened_at, lines.number))
            return
        image = cells[at] if at < len(cells) else ""
        if not any(map(str.strip, cells)) or (cells[0].startswith("#") and not _ADDRESS.match(image)):
            continue
        fields = dict(zip(names, cells, strict=False))
        fault = _settle(fields, cells, doubled) if doubled else None
        row = row_of(source, first, fields, [column])
        fault = fault or _fault(cells, at, width, separator)
        if fault is None and lines.number > first:
            fault = _swallowed_row(cells, at, width, separator, first)
        yield row if fault is None else attrs.evolve(row, refusal=fault)


def _doubled(names: Sequence[str], column: str) -> dict[str, list[int]]:
    """Return the names with a meaning that several columns have, each with the places of these."""
    found = {
        name: [at for at, other in enumerate(names) if other == name] for name in (column, "key", *OPTIONS)
    }
    return {name: places for name, places in found.items() if len(places) > 1}


def _settle(fields: dict[str, str], cells: Sequence[str], doubled: Mapping[str, Sequence[int]]) -> str | None:
    """Set the one value of each name that several columns have; return the fault where they differ."""
    for name, places in doubled.items():
        values = [cells[at] for at in places if at < len(cells)]
        if (fault := differing(name, values)) is not None:
            return fault
        fields[name] = next((value for value in values if value.strip(AT_THE_ENDS)), "")
    return None


def _open_quote(opened_at: int, last: int) -> str:
    rest = f"; nothing from line {opened_at + 1} on was read" if last > opened_at else ""
    return f"a quotation mark that is opened here is not closed{rest}"


def _fault(cells: Sequence[str], at: int, width: int, separator: str) -> str | None:
    """Return the fault of a row whose URL was cut at a separator without quotes, or None."""
    surplus = len(cells) > width and any(cell.strip() for cell in cells[width:])
    cut = (
        separator == ","
        and at + 1 < len(cells)
        and _CUT_END.fullmatch(cells[at]) is not None
        and _CUT_REST.match(",".join(cells[at + 1 :])) is not None
    )
    if not surplus and not cut:
        return None
    name = {"\t": "a tab"}.get(separator, repr(separator))
    what = f"it has {len(cells)} cells and the header {width}" if surplus else "its address seems to be cut"
    return f"{what}; put a cell that holds {name} into quotation marks"


def _swallowed_row(cells: Sequence[str], at: int, width: int, separator: str, first: int) -> str | None:
    """Return the fault of a row with another row in one of its cells, after a stray quote, or None."""
    for cell in cells:
        for text in cell.splitlines()[1:]:
            parts = text.split(separator)
            if width > 1 and len(parts) >= width and _ADDRESS.match(parts[at]):
                return f"a quotation mark opened in line {first} contains the rows after it"
    return None


def _no_column(source: str, line: int, cells: Sequence[str], options: ListOptions) -> click.UsageError:
    shown = ", ".join(cell.strip(AT_THE_ENDS) for cell in cells[:_SHOWN_COLUMNS] if cell.strip(AT_THE_ENDS))
    place = f"{source} line {line}"
    if any(_ADDRESS.match(cell) for cell in cells):
        words = f"{place} is no header: it holds an address. Put a line above it that names the columns"
        return click.UsageError(printable(f"{words}, such as: url,key. Nothing was sent."))
    if options.column is not None:
        words = f"{place} names no column {options.column!r}. Its columns: {shown}."
    else:
        words = f"{place} names no column of images, such as url or image. Its columns: {shown}."
    return click.UsageError(printable(f"{words} Choose one with --column NAME. Nothing was sent."))


def _separator(line: str) -> str:
    return max(_SEPARATORS, key=_QUOTED.sub("", line).count)


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


# --- JSON -------------------------------------------------------------------------------------------------
#
# Values are read one by one, so that memory is bounded by LONGEST_VALUE. Where each line holds one value, a
# damaged line is refused alone; elsewhere nothing after the damage can be trusted, and reading ends.


LONGEST_VALUE = 1_000_000
_PIECE = 65_536
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")


class _Repeated(dict[str, Any]):
    """An object with a repeated name: each name with all its values."""


def fields_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object; where a name is repeated, each with all its values."""
    fields = dict(pairs)
    if len(fields) == len(pairs) == len(set(map(normal, fields))):
        return fields
    repeated = _Repeated()
    for name, value in pairs:
        repeated.setdefault(normal(name), []).append(value)
    return repeated


_decode = json.JSONDecoder(object_pairs_hook=fields_of).raw_decode


@attrs.define
class _Text:
    """The part of a file that is being read, and the number of the line on which it begins.

    It is read line by line, so that a line from a pipe becomes a row as soon as it arrives.
    """

    file: IO[str]
    text: str = ""
    at: int = 0
    line: int = 1
    ended: bool = False

    def read_on(self) -> bool:
        """Read another chunk; return whether there was one."""
        piece = "" if self.ended else self.file.readline(_PIECE)
        self.ended = not piece
        self.text, self.at = self.text[self.at :] + piece, 0
        return not self.ended

    def move_to(self, at: int) -> None:
        """Move to ``at``."""
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def next_letter(self) -> str:
        """Skip white space; return the next character, or "" at the end."""
        while True:
            self.move_to(_behind_blanks(self.text, self.at))
            if self.at < len(self.text) or not self.read_on():
                return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """Return the next value, and move past it.

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
        """Read a line; for a long value twice as much as before, because it is parsed again each time."""
        length = len(self.text) - self.at
        most = length + 1 if length < _PIECE else 2 * length
        while self.read_on() and len(self.text) < most:
            pass

    def rest_of_line(self) -> str:
        """Return the rest of this line, and move past it."""
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
    """Yield a row for every string and object, also in a top-level array.

    Args:
        source: The name of the list.
        file: The list.
        options: How it is read.
        begun: The part of it that has been read.
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
                words = "it is not JSON, or not closed; nothing after this line was read"
                yield attrs.evolve(damaged, refusal=words)
                return
            yield damaged
            continue
        if one_a_line is None and not in_array:
            one_a_line = text.line == line
        yield row_of_value(source, line, value, options)
    if in_array:
        yield InputRow(
            source=source, line=text.line, refusal="the array is not closed: the list may be cut off"
        )


def _is_list(text: _Text) -> bool:
    """Return whether the array that begins here holds no other arrays."""
    while (end := _behind_blanks(text.text, text.at + 1)) == len(text.text) and text.read_on():
        pass
    return text.text[end : end + 1] != "["


def _is_alone(text: _Text, letter: str, one_a_line: bool | None) -> bool:
    """Return whether the damage ended with its line, so that the next line can be trusted."""
    if one_a_line is not None:
        return one_a_line
    if letter != "{":
        return True
    line = text.text[text.at :].partition("\n")[0]
    try:
        return isinstance(json.loads(line), str | dict)
    except (ValueError, RecursionError):
        return False


def row_of_value(source: str, line: int, value: Any, options: ListOptions) -> InputRow:
    """Return the row of a JSON value: an image, or an object with names."""
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
    """Read an object with a repeated name; refused where the name has a meaning and the values differ."""
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
    found = image_columns(names, options.column)
    return found or ([normal(options.column)] if options.column is not None else ("url", "image"))
