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
from flux_async.cli.given import Given
from flux_async.cli.json_rows import json_rows
from flux_async.cli.list_files import LONGEST_LINE, STDIN, LineTooLong, Note, lines_of, open_list
from flux_async.cli.list_rows import AT_THE_ENDS, ListOptions, folder_of, one_by_one
from flux_async.cli.local_inputs import files_of, names_a_file, row_fault
from flux_async.cli.text_rows import text_rows

_HEAD = 8192
_NOTHING_GIVEN = (
    "Give at least one image (URL, file or folder), --from with a list, or - to read from standard input."
)
_JSON_BEGINS = re.compile(r'(?:\[\s*[\[{"\]]|\{\s*["}])')
_JSON_STRING = re.compile(r'"[^"\s]*"\s*')


def gather_inputs(
    arguments: Iterable[str],
    lists: Iterable[str],
    stdin: IO[str] | None = None,
    *,
    options: ListOptions | None = None,
    note: Note = lambda _: None,
) -> Iterator[Given]:
    """Return everything that was given, in order, to be read row by row.

    Files are opened here and the first row of each list is read, so that what is no list is known before
    anything is sent. Standard input is read to its end, so that nothing waits for it later.

    Raises:
        click.UsageError: There is nothing, nothing where a path leads, or a list cannot be read.
    """
    options = options or ListOptions()
    parts: list[Iterable[Given]] = []
    empty: list[str] = []
    for number, argument in enumerate(arguments, start=1):
        if argument == STDIN:
            parts.append(_read(STDIN, stdin, options, note, empty))
            continue
        files = files_of(argument, note)
        names = [argument] if files is None else files
        made = Given(source="argument", line=number, is_file=files is not None)
        parts.append([attrs.evolve(made, image=name) for name in names])
    parts.extend(_read(name, stdin, options, note, empty) for name in lists)
    rows = chain.from_iterable(parts)
    for first in rows:
        for words in empty:
            note(words)
        return chain([first], rows)
    raise click.UsageError(" ".join([*empty, _NOTHING_GIVEN]))


def _read(
    name: str, stdin: IO[str] | None, options: ListOptions, note: Note, empty: list[str]
) -> Iterator[Given]:
    """Return the rows of one list, whose first one has been read."""
    source, folder = ("stdin", "") if name == STDIN else (name, folder_of(name))
    file = open_list(name, stdin, note)
    rows = _rows(source, file, options, note)
    for first in rows:
        return (_checked(given, folder) for given in chain([first], rows))
    empty.append(f"{source} holds no image: it is empty, or has only a header or comments.")
    return iter(())


def _rows(source: str, file: IO[str], options: ListOptions, note: Note) -> Iterator[Given]:
    try:
        for row in _reader_for(source, file, options, note):
            yield from one_by_one(row, options.split)
    except LineTooLong as long:
        words = f"it has more than {LONGEST_LINE:,} characters; nothing from here on was read"
        yield Given(source=source, line=long.number, refusal=words)


def _reader_for(source: str, file: IO[str], options: ListOptions, note: Note) -> Iterator[Given]:
    """Choose the format by the file's ending; where that does not tell, by how it begins."""
    head = file.read(_HEAD)
    file.seek(0)
    suffix = Path(source).suffix.lower()
    if suffix in {".json", ".jsonl", ".ndjson"} or (
        suffix not in {".csv", ".tsv"} and _looks_like_json(head)
    ):
        return json_rows(source, file, options)
    if suffix in {".csv", ".tsv"} or options.column is not None or _has_a_header(head, options):
        return csv_rows(source, lines_of(file), options, note)
    return text_rows(source, lines_of(file))


def _looks_like_json(head: str) -> bool:
    text = head.lstrip(AT_THE_ENDS)
    return bool(_JSON_BEGINS.match(text) or _JSON_STRING.fullmatch(text.partition("\n")[0]))


def _has_a_header(head: str, options: ListOptions) -> bool:
    """Whether the first line that is no comment names a column of images."""
    for line in head.splitlines():
        if csv_header(line, options):
            return True
        if line.strip(AT_THE_ENDS) and not line.startswith("#"):
            return False
    return False


def _checked(given: Given, folder: str) -> Given:
    """Notice a row that names a file, which is relative to the folder of its list."""
    if given.refusal is not None or not names_a_file(given.image, folder):
        return given
    return attrs.evolve(given, is_file=True, folder=folder, refusal=row_fault(given.image, folder))
