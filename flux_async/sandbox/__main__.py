"""Runs the sandbox: ``python -m flux_async.sandbox``."""

from __future__ import annotations

from flux_async.sandbox.server import main

if __name__ == "__main__":
    raise SystemExit(main())
