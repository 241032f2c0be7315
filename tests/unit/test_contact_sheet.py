"""The contact sheet shows every pair, whatever its size and status."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from flux_async.report.contact_sheet import Pair, draw_contact_sheet


def make_image(size: tuple[int, int], colour: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


SIZES = [(800, 100), (100, 800), (1, 1), (300, 300)]


def sheet_of(count: int, folder: Path) -> Image.Image:
    pairs = [
        Pair(
            title=f"Image {number}",
            before=make_image(size, "red"),
            after=None if number == 3 else make_image(size, "blue"),
            remark="TaskFailed",
        )
        for number, size in enumerate(SIZES[:count])
    ]
    draw_contact_sheet(pairs, folder / "sheet.png")
    with Image.open(folder / "sheet.png") as sheet:
        return sheet.copy()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_every_pair_is_drawn(tmp_path: Path, count: int) -> None:
    """Wide, tall and tiny images are on the sheet, before and after, and no other file is left."""
    colours = {colour for _, colour in sheet_of(count, tmp_path).getcolors(1 << 24) or []}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_the_sheet_grows_by_rows_of_three(tmp_path: Path) -> None:
    """Up to three pairs stand in one row; the fourth, which has no result, begins the next."""
    one, three, four = (sheet_of(count, tmp_path) for count in (1, 3, 4))
    assert one.width < three.width == four.width
    assert one.height == three.height < four.height


def test_a_sheet_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    """No pair at all is no error."""
    assert sheet_of(0, tmp_path).width > 0
