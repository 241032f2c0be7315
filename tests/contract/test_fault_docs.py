"""The page of the sandbox has one row for each fault; no other page has such a table."""

from __future__ import annotations

import re
from pathlib import Path

from flux_async.sandbox import Fault
from flux_async.sandbox.faults import ALWAYS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "sandbox.md"


def rows(page: Path) -> list[list[str]]:
    """Return the cells of the rows whose first cell is the name of a fault."""
    lines = re.findall(r"^\| (`[\w-]+` \|.*) \|$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return [row for row in cells if row[0].strip("`") in set(Fault)]


def test_every_fault_has_one_row() -> None:
    """In the order of the faults, so that a reader finds what ``--list-faults`` shows."""
    assert [row[0].strip("`") for row in rows(PAGE)] == [fault.value for fault in Fault]


def test_rows_match_the_faults() -> None:
    """The second cell is the fault's own sentence and its number; the three others are not empty."""
    for fault, row in zip(Fault, rows(PAGE), strict=True):
        number = "" if fault.number == ALWAYS else f" N is {fault.number:g} unless given."
        assert row[1] == fault.description + number
        assert len(row) == 5
        assert all(row)


def test_no_other_page_repeats_them() -> None:
    """The table exists once."""
    assert [page.name for page in DOCS.glob("*.md") if page != PAGE and rows(page)] == []
