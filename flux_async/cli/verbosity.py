"""Shows the log of the library on standard error: warnings always, money with -v, polls with -vv."""

from __future__ import annotations

import logging
from typing import Final

from flux_async.cli.display import message_console

LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)


class _ConsoleHandler(logging.Handler):
    """Prints each line above the progress display, which other writers would draw over."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        try:
            message_console().note(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler of the standard library does
            self.handleError(record)


def show_log(verbosity: int) -> None:
    """Show the log: at verbosity 0 warnings, at 1 money and settlement, at 2 polls as well."""
    handler = _ConsoleHandler()
    level = LEVELS[min(verbosity, len(LEVELS) - 1)]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("flux_async")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
    if not verbosity:  # the outcome of each image is printed anyway
        logging.getLogger("flux_async.jobs").setLevel(logging.ERROR)
