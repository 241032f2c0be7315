"""Runs the command line: ``python -m flux_async``."""

from __future__ import annotations

from flux_async.cli import main

if __name__ == "__main__":
    main()
