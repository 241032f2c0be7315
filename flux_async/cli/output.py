"""Standard output: results and nothing else, as UTF-8, for as long as somebody reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from flux_async.cli.exits import flush_or_forget


class Output:
    """Prints results.

    Where the reader has gone away (``| head -1``), the rest is dropped and the command goes on: what it is
    doing costs money, and its files hold the results.
    """

    def __init__(self) -> None:
        self._closed = sys.stdout is None

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return not self._closed and sys.stdout.isatty()

    def line(self, text: str) -> None:
        """Print one line."""
        if self._closed:
            return
        try:
            sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._closed = True
            flush_or_forget()

    def json(self, value: Mapping[str, object]) -> None:
        """Print one JSON object on a line."""
        self.line(json.dumps(value, ensure_ascii=False))
