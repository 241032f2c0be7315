"""Runs the sandbox: ``python -m flux_async.sandbox``."""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def run() -> int:
    """Run the sandbox; return its exit code, also where Ctrl-C comes while modules are loaded."""
    try:
        from flux_async.sandbox.server import main  # noqa: PLC0415 - loaded where Ctrl-C is expected

        return main()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(run())
