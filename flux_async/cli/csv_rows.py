"""Reads CSV as spreadsheets and shops write it, and refuses what would be read wrongly.

Python's parser is used in its strict mode: a quote that is not closed where its cell ends is an error and not
a cell that swallows the rows behind it. A row that has more cells than the header holds a separator that is
not quoted; it is refused, because its address may have been cut.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import attrs
import click

from flux_async.cli.given import InputRow
from flux_async.cli.list_files import Note
from flux_async.cli.list_rows import (
    AT_THE_ENDS,
    OPTIONS,
    ListOptions,
    differing,
    image_columns,
    normal,
    row_of,
)
from flux_async.cli.printable import printable

_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
_ADDRESS = re.compile(r"\s*https?://", re.IGNORECASE)
_CUT_END = re.compile(r"https?://\S*/[a-z]+[_=][\w.:-]+", re.IGNORECASE)
_CUT_REST = re.compile(r"(?:[a-z]+[_=][\w.:-]+,)*[a-z]+[_=][\w.:-]+/\S", re.IGNORECASE)
_SHOWN_COLUMNS = 30


@attrs.define
class _Lines:
    """The lines of a file, counted; and where the quote was opened that is open now."""

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
        """Return the number of the line on which the next row begins."""
        self._open, self.opened_at = False, self.number + 1
        return self.opened_at


def csv_header(line: str, options: ListOptions) -> bool:
    """Whether a line is the header of a list: one of its cells names the column with the images."""
    names = [normal(name) for name in _cells(line, _separator(line))]
    return _SEPARATOR_LINE.fullmatch(line) is not None or bool(image_columns(names, options))


def csv_rows(source: str, lines: Iterable[str], options: ListOptions, note: Note) -> Iterator[InputRow]:
    """Yield the rows of a CSV file.

    Raises:
        click.UsageError: No column is known to hold the images.
    """
    counted = _Lines(iter(lines))
    header, separator = _header(counted, options)
    if header is None:
        return
    cells = _header_cells(source, header, counted, separator)
    names = [normal(name) for name in cells]
    columns = image_columns(names, options)
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
    """Return the header line and the separator; blank lines and comments before it are skipped."""
    separator = None
    for line in lines:
        if (found := _SEPARATOR_LINE.fullmatch(line)) is not None and lines.number == 1:
            separator = found[1]
        elif line.strip(AT_THE_ENDS) and (not line.startswith("#") or csv_header(line, options)):
            return line, separator or _separator(line)
    return None, ","


def _header_cells(source: str, header: str, lines: _Lines, separator: str) -> list[str]:
    """Return the cells of the header, which may go on over the next lines."""
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
    """Return the columns that have a name twice which means something here, each with its places."""
    found = {
        name: [at for at, other in enumerate(names) if other == name] for name in (column, "key", *OPTIONS)
    }
    return {name: places for name, places in found.items() if len(places) > 1}


def _settle(fields: dict[str, str], cells: Sequence[str], doubled: Mapping[str, Sequence[int]]) -> str | None:
    """Take the one value of each name that stands above several columns; say where they differ."""
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
    """Say whether an address was cut at a separator that is not quoted."""
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
    """Say whether a cell of several lines holds a row of its own: a quote was opened there by mistake."""
    for cell in cells:
        for text in cell.splitlines()[1:]:
            parts = text.split(separator)
            if width > 1 and len(parts) >= width and _ADDRESS.match(parts[at]):
                return f"a quotation mark opened in line {first} takes in the rows behind it"
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
