"""Which images are meant: what was typed, what is in lists, what came through standard input.

A list is text (one image a line), CSV or JSON. It is read row by row as the rows are asked for; a row that
cannot be read is passed on with what is wrong with it, and the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

import attrs
import click

from flux_async.cli.csv_rows import csv_header, csv_rows
from flux_async.cli.given import InputRow
from flux_async.cli.json_rows import json_rows
from flux_async.cli.list_files import LONGEST_LINE, STDIN, LineTooLong, Note, lines_of, open_list
from flux_async.cli.list_rows import AT_THE_ENDS, ListOptions, folder_of, one_by_one
from flux_async.cli.live_input import LiveInputs
from flux_async.cli.local_inputs import files_of, names_a_file, row_fault
from flux_async.cli.text_rows import text_rows

_CSV_ENDINGS = {".csv", ".tsv"}
_JSON_ENDINGS = {".json", ".jsonl", ".ndjson"}
_NOTHING_GIVEN = (
    "Give at least one image (URL, file or folder), --from with a list, or - to read from standard input."
)
_JSON_BEGINS = re.compile(r'(?:\[\s*[\[{"\]]|\{\s*["}])')
_JSON_STRING = re.compile(r'"[^"\s]*"')


@attrs.define(eq=False)
class Inputs(Iterator[InputRow]):
    """All that was given, in order, read row by row as it is asked for.

    Attributes:
        rows: The rows.
        live: The inputs among them that may be slow to come.
    """

    rows: Iterator[InputRow]
    live: LiveInputs = attrs.field(factory=LiveInputs)

    def __next__(self) -> InputRow:
        return next(self.rows)


def gather_inputs(
    arguments: Iterable[str],
    lists: Iterable[str],
    stdin: IO[str] | None = None,
    *,
    options: ListOptions | None = None,
    note: Note = lambda _: None,
) -> Inputs:
    """Return everything that was given.

    Files are opened here, and the first row of each is read, so that a list that cannot be used is known
    before anything is sent. Standard input and pipes are read as they come.

    Raises:
        click.UsageError: There is nothing, nothing where a path leads, or a list cannot be read.
    """
    lists_read = _Lists(stdin=stdin, options=options or ListOptions(), note=note)
    parts: list[Iterable[InputRow]] = []
    for number, argument in enumerate(arguments, start=1):
        if argument == STDIN:
            parts.append(lists_read.rows_of(STDIN))
            continue
        files = files_of(argument, note)
        names = [argument] if files is None else files
        made = InputRow(source="argument", line=number, is_file=files is not None)
        parts.append([attrs.evolve(made, image=name) for name in names])
    parts.extend(map(lists_read.rows_of, lists))
    rows = chain.from_iterable(parts)
    for first in rows:
        for words in lists_read.empty:
            note(words)
        return Inputs(chain([first], rows), lists_read.live)
    raise click.UsageError(" ".join([*lists_read.empty, _NOTHING_GIVEN]))


@attrs.define(kw_only=True, eq=False)
class _Lists:
    """The lists of one command.

    Attributes:
        stdin: What ``-`` stands for.
        options: How they are read.
        note: Receives what the user should know.
        live: Those that may be slow to come.
        empty: What to say of those that hold no image.
    """

    stdin: IO[str] | None
    options: ListOptions
    note: Note
    live: LiveInputs = attrs.field(factory=LiveInputs)
    empty: list[str] = attrs.field(factory=list)

    def rows_of(self, name: str) -> Iterator[InputRow]:
        """Return the rows of a list, whose first one has been read."""
        source, folder = ("stdin", "") if name == STDIN else (name, folder_of(name))
        file = open_list(name, self.stdin, self.live, self.note)
        rows = _rows(source, file, self.options, self.note)
        for first in rows:
            return (_checked(given, folder) for given in chain([first], rows))
        self.empty.append(f"{source} holds no image: it is empty, or has only a header or comments.")
        return iter(())


def _rows(source: str, file: IO[str], options: ListOptions, note: Note) -> Iterator[InputRow]:
    with file:
        try:
            for row in _reader_for(source, file, options, note):
                yield from one_by_one(row, options.split)
        except LineTooLong as long:
            words = f"it has more than {LONGEST_LINE:,} characters; nothing from here on was read"
            yield InputRow(source=source, line=long.number, refusal=words)


def _reader_for(source: str, file: IO[str], options: ListOptions, note: Note) -> Iterator[InputRow]:
    """Choose the format by the file's ending; where that does not tell, by how it begins."""
    suffix = Path(source).suffix.lower()
    if suffix in _JSON_ENDINGS:
        return json_rows(source, file, options)
    lines = lines_of(file)
    head = _head(lines, options)
    begin = head[-1] if head else ""
    if suffix not in _CSV_ENDINGS and _looks_like_json(begin):
        return json_rows(source, file, options, begun="".join(head))
    lines = chain(head, lines)
    if suffix in _CSV_ENDINGS or options.column is not None or csv_header(begin, options):
        return csv_rows(source, lines, options, note)
    return text_rows(source, lines)


def _head(lines: Iterator[str], options: ListOptions) -> list[str]:
    """Return the lines up to the first that is neither blank nor a comment; behind a lone ``[``, one more."""
    head: list[str] = []
    for line in lines:
        if head and head[-1].strip() in {"[", "{"}:
            head[-1] += line
        else:
            head.append(line)
        text = head[-1].strip(AT_THE_ENDS)
        if text not in {"", "[", "{"} and (not text.startswith("#") or csv_header(line, options)):
            break
    return head


def _looks_like_json(begin: str) -> bool:
    text = begin.strip(AT_THE_ENDS)
    return bool(_JSON_BEGINS.match(text) or _JSON_STRING.fullmatch(text))


def _checked(given: InputRow, folder: str) -> InputRow:
    """Notice a row that names a file, which is relative to the folder of its list."""
    if given.refusal is not None or not names_a_file(given.image, folder):
        return given
    return attrs.evolve(given, is_file=True, folder=folder, refusal=row_fault(given.image, folder))
