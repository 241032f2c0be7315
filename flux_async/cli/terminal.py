"""Standard output, exit codes, and text that is safe to print."""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from flux_async import ConfigurationError, FluxError, InvalidInput, JournalError, MaintenanceError, Scope
from flux_async.api.models_table import ApiName
from flux_async.cli.advice import error_text, unprinted_result


def printable(text: str) -> str:
    """Return ``text`` with control and formatting characters escaped.

    Names of files and words of servers come into messages, and a terminal obeys what it is sent.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def can_ask() -> bool:
    """Return whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


# --- exit codes -------------------------------------------------------------------------------------------


class Exit(enum.IntEnum):
    """The exit codes of all commands."""

    SUCCEEDED = 0
    SOME_FAILED = 1
    USAGE = 2
    HALTED = 3
    INTERRUPTED = 130


def halts(error: FluxError) -> bool:
    """Return whether no further submit can succeed for now: key, credits, maintenance."""
    return error.scope is Scope.STOP or isinstance(error, MaintenanceError)


def exit_for(error: FluxError) -> Exit:
    """Return the exit code of a command that ended in ``error``."""
    is_full = isinstance(error, JournalError) and error.scope is Scope.STOP
    if isinstance(error, ConfigurationError | InvalidInput | JournalError) and not is_full:
        return Exit.USAGE
    return Exit.HALTED if halts(error) else Exit.SOME_FAILED


class CommandFailed(Exception):
    """A command ended in an error: its message, with advice for the command's folder, and the exit code."""

    def __init__(self, error: FluxError, folder: Path | None) -> None:
        super().__init__(printable(error_text(error, folder)))
        self.code: Exit = exit_for(error)


class CannotPrint(click.ClickException):
    """Standard output cannot be written; the exit code is 1."""

    def __init__(self, reason: str, what: str = "Standard output cannot be written", then: str = "") -> None:
        super().__init__(f"{what}: {reason}{then}.")
        self.reason: str = reason


class Command(click.Command):
    """A command that raises :class:`CommandFailed` for every error of the library."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; some of them print a text and end the command."""
        with _printing():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except FluxError as error:
            raise CommandFailed(error, ctx.params.get("folder")) from error


class Commands(click.Group):
    """The group of all commands."""

    command_class: type[click.Command] | None = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; some of them print a text and end the command."""
        with _printing():
            return super().parse_args(ctx, args)


def run_cli(cli: click.Group) -> int:
    """Run ``cli`` with the arguments of this process and return its exit code; print errors on stderr."""
    _accept_any_bytes()
    try:
        code = int(cli.main(prog_name="flux-async", standalone_mode=False) or Exit.SUCCEEDED)
        if (reason := _flush()) is not None:
            raise CannotPrint(reason)
    except click.ClickException as mistake:
        mistake.show()
        return mistake.exit_code
    except CommandFailed as failure:
        click.echo(f"Error: {failure}", err=True)
        return failure.code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.SOME_FAILED
    finally:
        _flush()
    return code


def _accept_any_bytes() -> None:
    """Let a message name input that is no text in this locale; otherwise it would end the command."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")


# --- standard output --------------------------------------------------------------------------------------


_CLOSED = "standard output is closed"


class Output:
    """Prints results to standard output, as UTF-8.

    Where the reader has closed the pipe (``| head -1``), or there is no standard output, lines are dropped
    and the command goes on, except for a paid result: its line is the only place that names it.
    """

    def __init__(self) -> None:
        self._closed = sys.stdout is None

    @property
    def is_terminal(self) -> bool:
        """Whether standard output is a terminal."""
        return not self._closed and sys.stdout.isatty()

    def line(self, text: str) -> None:
        """Print one line.

        Raises:
            CannotPrint: Standard output cannot be written, for another reason than a closed pipe.
        """
        with contextlib.suppress(_ClosedPipe):
            self._write(text)

    def paid_result(self, text: str, task_id: str, api: ApiName, where: str) -> None:
        """Print the line of a paid result, which is at the address or in the file ``where``.

        Raises:
            CannotPrint: Standard output is closed or cannot be written; the message names the result.
        """
        try:
            self._write(text)
        except CannotPrint as lost:
            what, then = unprinted_result(task_id, api, where)
            raise CannotPrint(lost.reason, what, then) from None

    def _write(self, text: str) -> None:
        if self._closed:
            raise _ClosedPipe(_CLOSED)
        try:
            sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._closed = True
            _flush()
            raise _ClosedPipe(_CLOSED) from None
        except OSError as error:
            _flush()
            raise CannotPrint(_reason(error)) from None

    def json(self, value: Mapping[str, object]) -> None:
        """Print one JSON object on a line."""
        self.line(as_json(value))


class _ClosedPipe(CannotPrint):
    """The reader of standard output has closed it: no error, but for a paid result."""


def as_json(value: Mapping[str, object]) -> str:
    """Return one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Raise :class:`CannotPrint` where click cannot print; a closed pipe it handles itself."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotPrint(_reason(error)) from None


def _flush() -> str | None:
    """Flush standard output and error; replace one that cannot be written by the null device.

    Otherwise the interpreter would print an error when it exits. Return why standard output could not be
    written, or None; a closed pipe is no failure.
    """
    reason = None
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        try:
            stream.flush()
        except OSError as error:
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                reason = _reason(error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    return reason
