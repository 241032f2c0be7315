"""The command line, ``flux-async``: needs the extra ``cli``; this module itself does not."""

from __future__ import annotations

import importlib.util
import sys

from flux_async.errors import install_command

_NEEDED = ("click", "rich")
_USAGE = 2
_INTERRUPTED = 130


def main() -> None:
    """Run the command line and end the process with its exit code."""
    if sys.platform == "win32":
        sys.stderr.write("The command line runs on Linux and macOS. On Windows, run it inside WSL.\n")
        sys.exit(_USAGE)
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        sys.stderr.write(f"The command line needs the extra cli. Run: {install_command('cli')}\n")
        sys.exit(_USAGE)
    try:
        from flux_async.cli.commands import cli  # noqa: PLC0415 - needs the extra
        from flux_async.cli.exits import run_command  # noqa: PLC0415 - needs the extra

        code = run_command(cli)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)
