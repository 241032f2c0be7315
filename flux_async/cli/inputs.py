"""Which pictures are meant: what was typed, what is in lists, what came through standard input.

A list is text (one address a line), CSV (a column ``url`` or ``image``, optionally ``key``, ``prompt``,
``model``, ``output_format``) or JSON Lines (an address, or an object with those names). It is read row by
row; a row that cannot be read is passed on with what is wrong with it, and the others go on.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO

import attrs
import click

from flux_async.cli.live_input import LiveInputs
from flux_async.cli.local_inputs import files_of, names_a_file, row_fault

STDIN = "-"

_IMAGE_NAMES = ("url", "image")
_OPTIONS = ("prompt", "model", "output_format")


@attrs.frozen(kw_only=True)
class Given:
    """One input as given.

    Attributes:
        source: Where it stands: a file as typed, ``stdin``, or ``argument``.
        line: The number of its line there; of an argument, its place.
        image: The address, or the path of a file.
        is_file: Whether it is the path of a file.
        folder: What that is relative to; left empty, the working directory.
        key: A name of the caller's own.
        options: Fields of the request that this row sets.
        refusal: Why it cannot be read, where it cannot.
    """

    source: str
    line: int
    image: str = ""
    is_file: bool = False
    folder: str = ""
    key: str | None = None
    options: Mapping[str, str] = attrs.field(factory=dict)
    refusal: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, for a person."""
        if self.source == "argument":
            return self.image if self.is_file else f"argument {self.line}"
        return f"{self.source} line {self.line}"

    @property
    def name(self) -> str:
        """What it is called where it has no key; one argument may stand for many files."""
        return self.image if self.source == "argument" and self.is_file else f"{self.source}:{self.line}"


@attrs.define(eq=False)
class Inputs(Iterator[Given]):
    """All that was given, in order, read row by row as it is asked for.

    Attributes:
        rows: The rows.
        live: The inputs among them that may be slow to come.
    """

    rows: Iterator[Given]
    live: LiveInputs = attrs.field(factory=LiveInputs)

    def __next__(self) -> Given:
        return next(self.rows)


def gather_inputs(arguments: Iterable[str], lists: Iterable[str], stdin: IO[str] | None = None) -> Inputs:
    """Return everything that was given.

    Files are opened here, and the first row of each is read, so that a list that cannot be used is known
    before anything is sent. Standard input and pipes are read as they come.

    Raises:
        click.UsageError: There is nothing, nothing where a path leads, or a list cannot be read.
    """
    live = LiveInputs()
    parts: list[Iterable[Given]] = []
    for number, argument in enumerate(arguments, start=1):
        if argument == STDIN:
            parts.append(_read(STDIN, stdin, live))
            continue
        files = files_of(argument)
        names = [argument] if files is None else files
        made = Given(source="argument", line=number, is_file=files is not None)
        parts.append([attrs.evolve(made, image=name) for name in names])
    parts.extend(_read(name, stdin, live) for name in lists)
    rows = chain.from_iterable(parts)
    for first in rows:
        return Inputs(chain([first], rows), live)
    raise click.UsageError(
        "Give at least one image (URL, file or folder), --from with a list, or - to read from standard input."
    )


# --- opening ----------------------------------------------------------------------------------------------


def _read(name: str, stdin: IO[str] | None, live: LiveInputs) -> Iterator[Given]:
    source = "stdin" if name == STDIN else name
    lines = _lines_of(_open_stdin(stdin, live) if name == STDIN else _open(name, live))
    head = []
    for line in lines:
        head.append(line)
        if line.strip() and not line.startswith("#"):
            break
    if not head:
        return iter(())
    rows = chain(head[-1:], lines)
    read = _reader_for(source, head[-1])
    folder = "" if name == STDIN else os.path.dirname(name)  # noqa: PTH120 - as typed
    return (_checked(given, folder) for given in read(source, rows, len(head) - 1))


def _lines_of(file: IO[str]) -> Iterator[str]:
    with file:
        yield from file


def _open(name: str, live: LiveInputs) -> IO[str]:
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - read, and closed, as the rows are asked for
    except OSError as error:
        raise click.UsageError(f"{name} cannot be read: {error.strerror or error}.") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        with file:
            return _as_text(live.open(os.dup(file.fileno()), closefd=True))
    return _as_text(file)


def _open_stdin(stdin: IO[str] | None, live: LiveInputs) -> IO[str]:
    if isinstance(stdin, io.TextIOWrapper):
        return _as_text(live.open(stdin.fileno(), closefd=False))
    return io.StringIO("" if stdin is None else stdin.read())


def _as_text(file: BinaryIO) -> IO[str]:
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


# --- the three formats ------------------------------------------------------------------------------------


def _reader_for(source: str, first: str) -> Any:
    """Choose the format by the file's ending; where that does not tell, by its first row."""
    match Path(source).suffix.lower():
        case ".txt":
            return _text_rows
        case ".csv" | ".tsv":
            return _csv_rows
        case ".jsonl" | ".ndjson":
            return _json_rows
    if first.lstrip()[:1] in {"{", '"'} and _json_value(first) is not None:
        return _json_rows
    names = next(csv.reader([first], delimiter=_delimiter(first)), [])
    return _csv_rows if set(map(_name, names)) & set(_IMAGE_NAMES) else _text_rows


def _text_rows(source: str, lines: Iterable[str], before: int) -> Iterator[Given]:
    for number, line in enumerate(lines, start=before + 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield Given(source=source, line=number, image=text)


def _csv_rows(source: str, lines: Iterable[str], before: int) -> Iterator[Given]:
    rows = iter(lines)
    header = next(rows, "")
    names = [_name(name) for name in next(csv.reader([header], delimiter=_delimiter(header)), [])]
    if not set(names) & set(_IMAGE_NAMES):
        raise click.UsageError(f"{source} line {before + 1} names no column 'url' or 'image'.")
    reader = csv.reader(rows, delimiter=_delimiter(header))
    return _csv_body(source, reader, names, before + 1)


def _csv_body(source: str, reader: Any, names: list[str], before: int) -> Iterator[Given]:
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Given(source=source, line=before + reader.line_num, refusal=f"not CSV: {error}")
            continue
        if any(cell.strip() for cell in cells):
            yield _row(source, before + reader.line_num, dict(zip(names, cells, strict=False)))


def _json_rows(source: str, lines: Iterable[str], before: int) -> Iterator[Given]:
    for number, line in enumerate(lines, start=before + 1):
        if not line.strip():
            continue
        match _json_value(line):
            case str() as image:
                yield Given(source=source, line=number, image=image)
            case dict() as fields:
                yield _row(source, number, fields)
            case _:
                yield Given(source=source, line=number, refusal="neither a JSON string nor a JSON object")


def _row(source: str, line: int, fields: Mapping[str, Any]) -> Given:
    """Read a row of named fields; names that mean nothing here are the caller's own affair."""
    image = next((fields[name] for name in _IMAGE_NAMES if fields.get(name)), "")
    key = fields.get("key")
    options = {name: fields[name] for name in _OPTIONS if fields.get(name) not in (None, "")}
    given = Given(source=source, line=line, image=image if isinstance(image, str) else "")
    if not image:
        return attrs.evolve(given, refusal="no 'url' and no 'image'")
    for name, value in {"url": image, **options}.items():
        if not isinstance(value, str):
            return attrs.evolve(given, refusal=f"{name!r} is not a string")
    if isinstance(key, bool) or not isinstance(key, str | int | None):
        return attrs.evolve(given, refusal="'key' is not a string")
    stripped = {name: value.strip() for name, value in options.items()}
    return attrs.evolve(
        given,
        image=image.strip(),
        key=str(key).strip() or None if key is not None else None,
        options={name: value for name, value in stripped.items() if value},
    )


def _checked(given: Given, folder: str) -> Given:
    """Notice a row that names a file, which is relative to the folder of its list."""
    if given.refusal is not None or not names_a_file(given.image, folder):
        return given
    return attrs.evolve(given, is_file=True, folder=folder, refusal=row_fault(given.image, folder))


def _json_value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _name(cell: str) -> str:
    return cell.strip().lower().replace(" ", "_")
