"""The inputs of a command: arguments, the files that they stand for, and lists.

An argument may be a URL, a file, a folder or a pattern. A folder is read one level deep, in order of name,
without hidden files, and only files with the ending of an image; ``**`` in a pattern goes deeper, into each
folder once. A row of a list is a file relative to the folder of the list, so that a list can be moved with
its images; on standard input, relative to the working directory.

A file that exists but cannot be read, such as a broken link, becomes an input that fails alone.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import attrs
import click

from flux_async import LocalImage
from flux_async.batch.columns import AT_THE_ENDS
from flux_async.cli.input_rows import InputRow, ListOptions, folder_of, one_by_one
from flux_async.cli.list_files import LONGEST_LINE, STDIN, LineTooLong, LiveInputs, Note, lines_of, open_list
from flux_async.cli.list_formats import csv_header, csv_rows, json_rows, text_rows
from flux_async.cli.parquet import PARQUET, parquet_files_in, parquet_rows
from flux_async.cli.terminal import printable
from flux_async.errors import shown
from flux_async.policy.image_urls import with_scheme

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LISTS = (".parquet", ".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".xlsx", ".xls", ".ods", ".gz")
_OTHER_FORMATS = {
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".svg": "SVG",
    ".psd": "Photoshop",
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".pdf": "PDF",
    ".dng": "raw",
    ".cr2": "raw",
    ".cr3": "raw",
    ".nef": "raw",
    ".arw": "raw",
}
"""Endings of images that the vendor does not accept, and the names of their formats."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_PATH_LIKE = ("/", "./", "../", ".\\", "..\\")


def files_of(argument: str, note: Callable[[str], None] = lambda _: None) -> list[str] | None:
    """Return the files that an argument stands for, or None where it is a URL.

    Args:
        argument: As it was typed.
        note: Receives a message about the other files of a folder.

    Raises:
        click.UsageError: It names no file, it is a list, or it is neither a path nor a URL.
    """
    if is_address(argument):
        return None
    path = os.path.expanduser(argument)  # noqa: PTH111 - Path() drops what was typed
    if _ask(os.path.isdir, path):
        return _files_in(path, note)
    if _ask(os.path.exists, path):
        if path.lower().endswith(LISTS):
            words = f"{argument} is no image. If it is a list of images, write --from {shlex.quote(argument)}"
            raise click.UsageError(printable(f"{words}. Nothing was sent."))
        return [path]
    if glob.has_magic(path):
        found = sorted({name for name in _matches(path) if not os.path.isdir(name)})  # noqa: PTH112
        if not found:
            raise click.UsageError(f"{printable(argument)} matches no file. Nothing was sent.")
        return found
    if _means_a_file(argument):
        raise click.UsageError(f"{printable(argument)}: {_why_not(path)}{_hint(argument)}. Nothing was sent.")
    raise click.UsageError(
        f"{printable(argument)} is neither an http(s) URL nor a file here{_hint(argument)}. Nothing was sent."
    )


def image_of(argument: str) -> str | LocalImage:
    """Return the one image that an argument names: a URL, or a file.

    Raises:
        click.UsageError: It names no file.
    """
    if is_address(argument):
        return argument
    path = os.path.expanduser(argument)  # noqa: PTH111 - as above
    if not _ask(os.path.isfile, path):
        why = "it is a folder" if _ask(os.path.isdir, path) else _why_not(path)
        raise click.UsageError(
            f"{printable(argument)} is neither an http(s) URL nor a file here: {why}{_hint(argument)}. "
            "Nothing was sent."
        )
    return LocalImage(path=path)


def row_fault(image: str, folder: str) -> str | None:
    """Return why a row that names a file cannot be used, or None."""
    path = os.path.join(folder, image)  # noqa: PTH118 - Path() may raise
    if _ask(os.path.isfile, path):
        return None
    if _ask(os.path.isdir, path):
        return f"{image} is a folder: give it as an argument"
    return f"{path}: {_why_not(path)}{_hint(image)}"


def no_image(image: str) -> str:
    """Return the message that a row names neither a URL nor a file, with what may be meant."""
    return f"{shown(image)} is neither an http(s) URL nor a file here{_hint(image)}."


def names_a_file(image: str, folder: str) -> bool:
    """Return whether a row names a file, or is meant to, rather than a URL or a typing mistake."""
    if is_address(image, folder):
        return False
    return _means_a_file(image) or _ask(os.path.exists, os.path.join(folder, image))  # noqa: PTH118


def is_address(image: str, folder: str = "") -> bool:
    """Return whether ``image`` begins like a URL of any kind, and is no file like ``scan:1.jpg``."""
    if "://" in image or image[:5].lower() == "data:":
        return True
    return _SCHEME.match(image) is not None and not _ask(os.path.lexists, os.path.join(folder, image))  # noqa: PTH118


def _means_a_file(text: str) -> bool:
    return text.startswith(_PATH_LIKE) or text.lower().endswith(ENDINGS)


def _files_in(folder: str, note: Callable[[str], None]) -> list[str]:
    names: list[str] = []
    left_out: Counter[str] = Counter()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[:1] == ".":
                    continue
                if _is_folder(entry):
                    left_out["folder"] += 1
                elif entry.name.lower().endswith(ENDINGS):
                    names.append(entry.name)
                else:
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a name, not a path
                    left_out[_OTHER_FORMATS.get(suffix, "other file")] += 1
    except OSError as error:
        raise click.UsageError(f"{printable(folder)} cannot be read: {error.strerror or error}.") from None
    words = _left_out_in_words(left_out)
    if not names:
        besides = f", only {words}" if words else ""
        raise click.UsageError(
            f"{printable(folder)} holds no {', '.join(ENDINGS)}{besides}. Nothing was sent."
        )
    if words:
        note(f"{printable(folder)}: left out {words}. Taken are JPEG, PNG and WebP files.")
    return [os.path.join(folder, name) for name in sorted(names)]  # noqa: PTH118 - as typed


def _left_out_in_words(left_out: Counter[str]) -> str:
    """Return counts as text, images first: ``3 HEIC, 1 TIFF, 2 folders``."""
    plain = {"other file", "folder"}
    kinds = sorted(left_out, key=lambda kind: (kind in plain, -left_out[kind], kind))
    return ", ".join(
        f"{left_out[kind]} {kind}{'s' if kind in plain and left_out[kind] > 1 else ''}" for kind in kinds
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _matches(pattern: str) -> Iterator[str]:
    """Yield what a pattern matches. ``**`` is walked here: glob follows links that lead back."""
    separators = f"[{re.escape(os.sep + (os.altsep or ''))}]"
    found = re.search(rf"(?:^|(?<={separators}))\*\*(?:{separators}+|$)", pattern)
    if found is None:
        yield from glob.iglob(pattern)  # noqa: PTH207 - as typed
        return
    before, after = pattern[: found.start()], pattern[found.end() :] or "*"
    for top in glob.iglob(before) if before else [""]:  # noqa: PTH207 - as above
        for folder in _folders_under(top):
            yield from _matches(os.path.join(glob.escape(folder), after))  # noqa: PTH118 - as above


def _folders_under(top: str) -> Iterator[str]:
    """Yield ``top`` and the folders in it that are not hidden, each once, however many links lead to it."""
    seen = set()
    for folder, within, _ in os.walk(top or ".", followlinks=True):
        here = os.stat(folder)  # noqa: PTH116 - as above
        if (here.st_dev, here.st_ino) in seen:
            within.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        within[:] = sorted(name for name in within if name[:1] != ".")
        yield folder if top else folder[2:]  # without the "./" that was not typed


def _hint(text: str) -> str:
    """Return the URL that may be meant by a text that is none, as a question."""
    meant = with_scheme(text)
    return "" if meant is None else f" (is {printable(meant)} meant?)"


def _why_not(path: str) -> str:
    """Return why ``path`` is no regular file."""
    try:
        os.stat(path)  # noqa: PTH116 - Path() may raise
    except FileNotFoundError:
        return "there is no such file or folder"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return "it is not a regular file"


def _ask(question: Callable[[str], bool], path: str) -> bool:
    """Return the answer of a function of :mod:`os.path`; False for a path that cannot exist."""
    try:
        return question(path)
    except ValueError:  # it contains a NUL
        return False


# --- all inputs of a command ------------------------------------------------------------------------------


_CSV_ENDINGS = {".csv", ".tsv"}
_JSON_ENDINGS = {".json", ".jsonl", ".ndjson"}
_NOTHING_GIVEN = (
    "Give at least one image (URL, file or folder), --from with a list, or - to read from standard input."
)
_JSON_BEGINS = re.compile(r'(?:\[\s*[\[{"\]]|\{\s*["}])')
_JSON_STRING = re.compile(r'"[^"\s]*"')


@attrs.define(eq=False)
class Inputs(Iterator[InputRow]):
    """All inputs in their order, read row by row as they are asked for.

    Attributes:
        rows: The rows.
        live: Pipes and terminals among them, which may be slow.
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
    on_close: Callable[[Callable[[], None]], object] = lambda _: None,
) -> Inputs:
    """Return all inputs.

    Files are opened here, and the first row of each is read, so that a list that cannot be used is refused
    before anything is sent. Standard input and pipes are read as their lines arrive. ``on_close`` receives
    functions to call when the command has ended, which close the files that were not read to their end.

    Raises:
        click.UsageError: There is no input, a path names no file, or a list cannot be read.
    """
    lists_read = _Lists(stdin=stdin, options=options or ListOptions(), note=note, on_close=on_close)
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
        stdin: Read for ``-``.
        options: How they are read.
        note: Receives messages for the user.
        on_close: Receives functions to call when the command has ended.
        live: Pipes and terminals among them.
        empty: Messages about those that hold no image.
    """

    stdin: IO[str] | None
    options: ListOptions
    note: Note
    on_close: Callable[[Callable[[], None]], object]
    live: LiveInputs = attrs.field(factory=LiveInputs)
    empty: list[str] = attrs.field(factory=list)

    def rows_of(self, name: str) -> Iterator[InputRow]:
        """Return the rows of a list; the first has been read."""
        source, folder = ("stdin", "") if name == STDIN else (name, folder_of(name))
        if Path(name).is_dir():
            return chain.from_iterable(map(self.rows_of, parquet_files_in(name)))
        if name.lower().endswith(PARQUET):
            rows = _each_image(parquet_rows(name, self.options, self.note), self.options)
        else:
            file = open_list(name, self.stdin, self.live, self.note)
            rows = _rows(source, file, self.options, self.note)
        self.on_close(partial(_close, rows))
        for first in rows:
            return (_checked(given, folder) for given in chain([first], rows))
        self.empty.append(f"{source} holds no image: it is empty, or has only a header or comments.")
        return iter(())


def _close(rows: Generator[InputRow, None, None]) -> None:
    with contextlib.suppress(ValueError):  # a thread that waits for a pipe still reads them
        rows.close()


def _each_image(rows: Iterator[InputRow], options: ListOptions) -> Generator[InputRow, None, None]:
    for row in rows:
        yield from one_by_one(row, options.split)


def _rows(source: str, file: IO[str], options: ListOptions, note: Note) -> Generator[InputRow, None, None]:
    with file:
        try:
            yield from _each_image(_reader_for(source, file, options, note), options)
        except LineTooLong as long:
            words = f"it has more than {LONGEST_LINE:,} characters; nothing from here on was read"
            yield InputRow(source=source, line=long.number, refusal=words)


def _reader_for(source: str, file: IO[str], options: ListOptions, note: Note) -> Iterator[InputRow]:
    """Choose the format by the file's ending, else by how it begins."""
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
    """Return the lines up to the first that is neither blank nor a comment; after a lone ``[``, one more."""
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
    """Return a row; one that names a file becomes a file relative to the folder of its list."""
    if given.refusal is not None or not names_a_file(given.image, folder):
        return given
    return attrs.evolve(given, is_file=True, folder=folder, refusal=row_fault(given.image, folder))
