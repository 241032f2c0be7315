"""The loggers of the package, which a command sets up for its process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unchanged_loggers() -> Iterator[None]:
    """Undo what a command does to the loggers."""
    loggers = [logging.getLogger(name) for name in ("flux_async", "flux_async.jobs")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
