"""The command line, ``flux-async``. It needs the extra ``cli``; this module itself does not."""

from __future__ import annotations

import importlib.util
import signal
import sys

_NEEDED = ("click", "rich")
_USAGE = 2
_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its exit code."""
    if sys.platform == "win32":
        sys.stderr.write("The command line runs on Linux and macOS. On Windows, run it inside WSL.\n")
        sys.exit(_USAGE)
    _interrupt_on_termination()
    try:
        code = _run()
    except KeyboardInterrupt:  # also while modules are loaded
        code = _INTERRUPTED
    sys.exit(code)


def _interrupt_on_termination() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C, until a command listens for them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, signal.default_int_handler)


def _run() -> int:
    from flux_async.errors import install_command  # noqa: PLC0415 - loaded where Ctrl-C is expected

    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        sys.stderr.write(f"The command line needs the extra cli. Run: {install_command('cli')}\n")
        return _USAGE
    from flux_async.cli.commands import cli  # noqa: PLC0415 - needs the extra
    from flux_async.cli.terminal import run_cli  # noqa: PLC0415 - needs the extra

    return run_cli(cli)
