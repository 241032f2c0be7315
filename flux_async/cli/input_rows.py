"""One input as given, and how the cells of a list become inputs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from flux_async.batch.columns import AT_THE_ENDS, OPTIONS


@attrs.frozen(kw_only=True)
class InputRow:
    """One input as given.

    Attributes:
        source: The list as typed, ``stdin``, or ``argument``.
        line: The number of its first line in the list, or of the argument.
        item: Its number among several inputs that begin on this line; empty for the first.
        image: The URL, or the path of a file.
        is_file: Whether it is the path of a file.
        folder: The folder that the path is relative to; empty for the working directory.
        key: The user's own key.
        options: Fields of the request that this row sets.
        refusal: Why it cannot be read, or None.
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
        """Its place, for messages."""
        if self.source == "argument":
            return self.image if self.is_file else f"argument {self.line}"
        return f"{self.source} line {self.line}" + (f", item {self.item}" if self.item else "")

    @property
    def name(self) -> str:
        """Its key in results where it has none; one argument may stand for many files."""
        if self.source == "argument" and self.is_file:
            return self.image
        return f"{self.source}:{self.line}" + (f":{self.item}" if self.item else "")


_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_NEXT_ADDRESS = re.compile(r"\s*([|,;]|\s)[\s|,;]*(?=https?://)", re.IGNORECASE)
_UNREADABLE = "\ufffd"


@attrs.frozen(kw_only=True)
class ListOptions:
    """How lists are read.

    Attributes:
        column: The name of the column of images, or None to find it.
        split: The separator of several images in one cell, or None where a cell is one image. A blank stands
            for any white space.
    """

    column: str | None = None
    split: str | None = None


def row_of(source: str, line: int, fields: Mapping[str, Any], columns: Sequence[str]) -> InputRow:
    """Read a row of named fields; other names are ignored."""
    column = next((name for name in columns if fields.get(name)), None)
    image = "" if column is None else fields[column]
    key = fields.get("key")
    options = {name: fields[name] for name in OPTIONS if fields.get(name) not in (None, "")}
    refusal = None
    if not image:
        refusal = " and ".join(f"no {name!r}" for name in columns[:2])
    elif not isinstance(image, str):
        several = "; give each image a row of its own" if isinstance(image, list) else ""
        refusal = f"{column!r} is not a string{several}"
    elif name := next((name for name, value in options.items() if not isinstance(value, str)), None):
        refusal = f"{name!r} is not a string"
    elif isinstance(key, bool) or not isinstance(key, str | int | None):
        refusal = "'key' is not a string"
    if refusal is not None:
        return InputRow(
            source=source, line=line, image=image if isinstance(image, str) else "", refusal=refusal
        )
    stripped = {name: value.strip() for name, value in options.items()} if options else options
    return InputRow(
        source=source,
        line=line,
        image=image,
        key=str(key).strip() or None if key is not None else None,
        options={name: value for name, value in stripped.items() if value},
    )


def differing(name: str, values: Iterable[object]) -> str | None:
    """Return the fault of a row that has different values under one name, or None."""
    found = {str(value).strip(AT_THE_ENDS) for value in values if value is not None} - {""}
    if len(found) < 2:  # noqa: PLR2004 - one is what there should be
        return None
    return f"it has {len(found)} different values under {name!r}: rename all of these columns but one"


def one_by_one(given: InputRow, split: str | None) -> Iterator[InputRow]:
    """Yield the images of a row: one, or with ``--split`` several. Several without it are refused."""
    image = given.image.strip(AT_THE_ENDS)
    if given.refusal is not None or (split is None and image == given.image and _fault(given, image) is None):
        yield given  # as nearly all are
        return
    parts = [image] if split is None else _parts(image, split)
    for number, part in enumerate(parts, start=1):
        key = given.key if given.key is None or len(parts) == 1 else f"{given.key}-{number}"
        item = given.item if number == 1 else f"{given.item}-{number}".lstrip("-")
        yield attrs.evolve(given, image=part, key=key, item=item, refusal=_fault(given, part))


def _parts(image: str, split: str) -> list[str]:
    """Split a cell. A URL is split only where another begins: it may contain the separator."""
    separator = r"\s+" if split.isspace() else re.escape(split)
    if _ADDRESS.match(image):
        separator += r"\s*(?=https?://)"
    image = image.removesuffix(split)
    parts = [part.strip(AT_THE_ENDS) for part in re.split(separator, image, flags=re.IGNORECASE)]
    return [part for part in parts if part] or [""]


def _fault(given: InputRow, image: str) -> str | None:
    if _UNREADABLE in image or _UNREADABLE in (given.key or ""):
        return "it holds bytes that are no text"
    if image.count("://") > 1 and _ADDRESS.match(image) and (found := _NEXT_ADDRESS.search(image)):
        separator = " " if found[1].isspace() else found[1]
        count = 1 + len(_NEXT_ADDRESS.findall(image))
        return f'it holds {count} addresses: --split "{separator}" makes one job of each'
    return None


def folder_of(name: str) -> str:
    """Return the folder of a list, as typed."""
    return os.path.dirname(name)  # noqa: PTH120
