"""The command line, ``flux-async``: needs ``pip install 'flux-async[cli]'``, this module itself does not."""

from __future__ import annotations

import importlib.util
import sys

_NEEDED = ("click", "rich")
_USAGE = 2


def main() -> None:
    """Run the command line and end the process with its exit code."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        sys.stderr.write("The command line needs an extra: run  pip install 'flux-async[cli]'\n")
        sys.exit(_USAGE)
    try:
        from flux_async.cli.commands import cli  # noqa: PLC0415 - needs the extra
        from flux_async.cli.exits import run_command  # noqa: PLC0415 - needs the extra

        code = run_command(cli)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
