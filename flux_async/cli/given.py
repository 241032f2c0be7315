"""One input as the user gave it: an argument, or a row of a list."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class InputRow:
    """One input as given.

    Attributes:
        source: Where it stands: a file as typed, ``stdin``, or ``argument``.
        line: The number of its first line there; of an argument, its place.
        item: Which of several inputs it is that begin on this line; left empty, the first or only one.
        image: The address, or the path of a file.
        is_file: Whether it is the path of a file.
        folder: What that is relative to; left empty, the working directory.
        key: A name of the caller's own.
        options: Fields of the request that this row sets.
        refusal: Why it cannot be read, where it cannot.
    """

    source: str
    line: int
    item: str = ""
    image: str = ""
    is_file: bool = False
    folder: str = ""
    key: str | None = None
    options: Mapping[str, str] = attrs.field(factory=dict)
    refusal: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, for a person."""
        if self.source == "argument":
            return self.image if self.is_file else f"argument {self.line}"
        return f"{self.source} line {self.line}" + (f", item {self.item}" if self.item else "")

    @property
    def name(self) -> str:
        """What it is called where it has no key; one argument may stand for many files."""
        if self.source == "argument" and self.is_file:
            return self.image
        return f"{self.source}:{self.line}" + (f":{self.item}" if self.item else "")
