"""Standard output, messages that are safe for a terminal, and exit codes."""

from __future__ import annotations

import enum
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from flux_async import ConfigurationError, FluxError, InvalidInput, JournalError, MaintenanceError, Scope
from flux_async.cli.advice import error_text


def printable(text: str) -> str:
    """Return ``text`` with whatever would move a cursor, turn letters round or begin a line spelled out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Exit(enum.IntEnum):
    """What every command's exit code means."""

    SUCCEEDED = 0
    SOME_FAILED = 1
    USAGE = 2
    HALTED = 3
    INTERRUPTED = 130


def halts(error: FluxError) -> bool:
    """Say whether no further submit can succeed for now: key, credits, maintenance."""
    return error.scope is Scope.STOP or isinstance(error, MaintenanceError)


def exit_for(error: FluxError) -> Exit:
    """Return the exit code of a command that ended in ``error``."""
    full = isinstance(error, JournalError) and error.scope is Scope.STOP
    if isinstance(error, ConfigurationError | InvalidInput | JournalError) and not full:
        return Exit.USAGE
    return Exit.HALTED if halts(error) else Exit.SOME_FAILED


class Command(click.Command):
    """A command whose errors are shown with advice for its own folder."""

    def invoke(self, ctx: click.Context) -> object:
        """Run it.

        Raises:
            Ended: It ended in an error.
        """
        try:
            return super().invoke(ctx)
        except FluxError as error:
            raise Ended(error, ctx.params.get("folder")) from error


class Ended(Exception):  # no error of its own: what is shown of one
    """A command ended in an error: the words that are shown, and the exit code."""

    def __init__(self, error: FluxError, folder: Path | None) -> None:
        super().__init__(printable(error_text(error, folder)))
        self.code: Exit = exit_for(error)


class Commands(click.Group):
    """The commands."""

    command_class: type[click.Command] | None = Command


def run_command(cli: click.Group) -> int:
    """Run ``cli`` with the arguments of this process; return its exit code, show errors as a line or two."""
    _take_any_bytes()
    try:
        return int(cli.main(prog_name="flux-async", standalone_mode=False) or Exit.SUCCEEDED)
    except click.ClickException as mistake:
        mistake.show()
        return mistake.exit_code
    except Ended as ended:
        click.echo(f"Error: {ended}", err=True)
        return ended.code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.SOME_FAILED
    finally:
        flush_or_forget()


def _take_any_bytes() -> None:
    """Let input that is no text in this locale be named in a message instead of ending the command."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")


def flush_or_forget() -> None:
    """Flush what was printed; where nobody reads any more, point the stream at nothing.

    Otherwise the interpreter would complain about it on its way out.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue  # closed by the caller: there is nothing to flush
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class Output:
    """Prints results.

    Where the reader has gone away (``| head -1``), the rest is dropped and the command goes on: what it is
    doing costs money, and its files hold the results.
    """

    def __init__(self) -> None:
        self._closed = sys.stdout is None

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return not self._closed and sys.stdout.isatty()

    def line(self, text: str) -> None:
        """Print one line."""
        if self._closed:
            return
        try:
            sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._closed = True
            flush_or_forget()

    def json(self, value: Mapping[str, object]) -> None:
        """Print one JSON object on a line."""
        self.line(json.dumps(value, ensure_ascii=False))
