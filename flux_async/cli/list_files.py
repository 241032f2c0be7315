"""Opens lists: finds their encoding, refuses what is no list, and reads pipes as their lines arrive.

UTF-8 and UTF-16 (Excel's "Unicode text", PowerShell's ``>``) are read as such; other text is read as
Windows-1252, with a note. The length of a line is bounded, so that no file can fill the memory.

Pipes are read in a thread. A thread that blocks in ``read`` cannot be interrupted, so it waits for the pipe
and for a pipe of our own at once.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias, cast

import click

from flux_async.cli.terminal import printable
from flux_async.files.image_header import image_suffix


class InputStopped(Exception):
    """The run reads no more inputs."""


class LiveInputs:
    """The pipes and terminals that one run reads.

    Attributes:
        on_wait: Called by the reading thread before it waits for more.
    """

    def __init__(self) -> None:
        self.on_wait: Callable[[], None] = lambda: None
        self._stopped = False
        self._woken, self._wake = os.pipe()

    def __del__(self) -> None:
        os.close(self._woken)
        os.close(self._wake)

    def open(self, descriptor: int, *, closefd: bool) -> io.BufferedReader:
        """Return a reader of an open file's bytes, as they arrive."""
        return io.BufferedReader(_LiveFile(self, descriptor, closefd=closefd))

    def stop(self) -> None:
        """End all waiting, now and later: the reading thread receives :class:`InputStopped`."""
        if not self._stopped:
            self._stopped = True
            os.write(self._wake, b"x")

    def wait(self, descriptor: int) -> None:
        """Return when a file has something to read, or is at its end.

        Raises:
            InputStopped: The run reads no more.
        """
        ready, _, _ = select.select([descriptor, self._woken], [], [], 0)
        if not ready:
            self.on_wait()
            select.select([descriptor, self._woken], [], [])
        if self._stopped:
            raise InputStopped


class _LiveFile(io.RawIOBase):
    def __init__(self, inputs: LiveInputs, descriptor: int, *, closefd: bool) -> None:
        self._inputs, self._descriptor, self._closefd = inputs, descriptor, closefd

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._inputs.wait(self._descriptor)
        view = memoryview(buffer)
        content = os.read(self._descriptor, len(view))
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed and self._closefd:
            os.close(self._descriptor)
        super().close()


# --- lists ----------------------------------------------------------------------------------------------


STDIN = "-"
LONGEST_LINE = 1_000_000
"""Most characters of a line."""

Note: TypeAlias = Callable[[str], None]
"""Receives a message for the user about a list that is read nevertheless."""

_PIECE = 1 << 16
_HEAD = 4096
_EXPORT = "Export it as CSV (UTF-8) and give that file."
_UNPACK = "Unpack it first."
_NO_LISTS = (
    (b"PK\x03\x04", "an Excel workbook or another zip archive", _EXPORT),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook or another Office file", _EXPORT),
    (b"PAR1", "a Parquet file", "Give it as a file with the ending .parquet."),
    (b"SQLite format 3\0", "a database", _EXPORT),
    (b"%PDF", "a PDF", _EXPORT),
    (b"{\\rtf", "an RTF document", "Save it as plain text."),
    (b"<!doctype html", "a web page", "Save the addresses as plain text."),
    (b"<html", "a web page", "Save the addresses as plain text."),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (b"(\xb5/\xfd", "compressed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "compressed with 7-Zip", _UNPACK),
)
_IMAGES = ((0, b"II*\0"), (0, b"MM\0*"), (0, b"BM"), (4, b"ftyp"))
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_list(name: str, stdin: IO[str] | None, live: LiveInputs, note: Note) -> IO[str]:
    """Open the list ``name``, or standard input for ``-``, as text.

    A pipe is read as its lines arrive, in the encoding that its beginning shows; a row with bytes that are no
    text is refused.

    Raises:
        click.UsageError: It cannot be read, or is no text.
    """
    shown = "stdin" if name == STDIN else printable(name)
    file = _open_stdin(stdin, live) if name == STDIN else _open(name, live)
    try:
        if file.seekable():
            encoding = _encoding_of(file, shown, note)
            file.seek(0)
        else:
            encoding = _encoding_of_beginning(file.peek(_HEAD)[:_HEAD], shown)
    except BaseException:
        file.close()
        raise
    return io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="")


def lines_of(file: IO[str]) -> Iterator[str]:
    """Yield the lines of ``file``.

    Raises:
        LineTooLong: A line has more than :data:`LONGEST_LINE` characters.
    """
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise LineTooLong(number)
        yield line


class LineTooLong(Exception):
    """A line is too long for a row of a list; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _open(name: str, live: LiveInputs) -> io.BufferedReader:
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - read, and closed, as rows are asked for
    except OSError as error:
        raise click.UsageError(f"{printable(name)} cannot be read: {error.strerror or error}.") from None
    if _is_plain(file.fileno()):
        return file
    with file:
        return live.open(os.dup(file.fileno()), closefd=True)


def _open_stdin(stdin: IO[str] | None, live: LiveInputs) -> io.BufferedReader:
    if not isinstance(stdin, io.TextIOWrapper):
        content = "" if stdin is None else stdin.read()
        return io.BufferedReader(cast("io.RawIOBase", io.BytesIO(content.encode())))
    if _is_plain(stdin.fileno()):
        return os.fdopen(os.dup(stdin.fileno()), "rb")
    return live.open(stdin.fileno(), closefd=False)


def _is_plain(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


# --- encoding ---------------------------------------------------------------------------------------------


def _encoding_of(file: BinaryIO, shown: str, note: Note) -> str:
    head = file.read(_HEAD)
    encoding = _encoding_of_beginning(head, shown)
    if _decodes(file, encoding):
        return encoding
    if encoding != "utf-8" or b"\0" in head or not _decodes(file, "cp1252"):
        raise click.UsageError(
            f"{shown} is not text in UTF-8, UTF-16 or Windows-1252. Save it as UTF-8. Nothing was sent."
        )
    note(
        f"{shown} is not UTF-8: it is read as Windows-1252. Check that names with accents are right, "
        "or save it as UTF-8."
    )
    return "cp1252"


def _encoding_of_beginning(head: bytes, shown: str) -> str:
    _refuse_other_files(head, shown)
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
    return marked or _utf_16_without_mark(head) or "utf-8"


def _refuse_other_files(head: bytes, shown: str) -> None:
    if image_suffix(head) or any(head[at : at + len(magic)] == magic for at, magic in _IMAGES):
        raise click.UsageError(f"{shown} is an image, not a list: give it without --from. Nothing was sent.")
    lower = head.lower()
    for magic, what, advice in _NO_LISTS:
        if head.startswith(magic) or lower.startswith(magic):
            raise click.UsageError(f"{shown} is {what}, not a list. {advice} Nothing was sent.")


def _utf_16_without_mark(head: bytes) -> str | None:
    """Return UTF-16 where every second byte of the beginning is zero."""
    pairs = head[: min(len(head), 64) // 2 * 2]
    high, low = pairs[1::2], pairs[0::2]
    if not pairs or len(pairs) < 8:  # noqa: PLR2004 - four letters
        return None
    if not any(high) and all(low):
        return "utf-16-le"
    return "utf-16-be" if not any(low) and all(high) else None


def _decodes(file: BinaryIO, encoding: str) -> bool:
    """Return whether the whole file is text in ``encoding``; 100 MB take a tenth of a second."""
    decoder = codecs.getincrementaldecoder(encoding)()
    file.seek(0)
    try:
        while piece := file.read(_PIECE):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True
