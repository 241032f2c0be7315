"""Runs the sandbox: ``python -m flux_async.sandbox``."""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def run() -> int:
    """Run the sandbox; return its exit code, also if Ctrl-C arrives during the imports."""
    try:
        from flux_async.sandbox.server import main  # noqa: PLC0415 - imported where Ctrl-C is handled

        return main()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(run())
