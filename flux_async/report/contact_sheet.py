"""Draws images before and after, side by side, on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import attrs
from PIL import Image, ImageDraw, ImageFont

from flux_async.report.part_file import part_file

_PER_ROW = 3
_BOX = 330
_GAP = 8
_PAD = 18
_CARD_SPACE = 28
_MARGIN = 44
_HEADER = 128
_TITLE = 52
_LONGEST_TITLE = 50

_PAPER = (243, 244, 246)
_CARD = (255, 255, 255)
_EDGE = (222, 225, 230)
_MAT = (234, 236, 240)
_INK = (24, 28, 36)
_FAINT = (104, 112, 126)
_RED = (178, 34, 34)

_CARD_WIDTH = 2 * _PAD + 2 * _BOX + _GAP
_CARD_HEIGHT = 2 * _PAD + _BOX + _TITLE

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@attrs.frozen(kw_only=True)
class Pair:
    """One image before and after.

    Attributes:
        title: Its title.
        before: The original file, its bytes or its path, or None.
        after: The same of the file without text.
        remark: Why there is no file without text.
    """

    title: str
    before: bytes | Path | None = attrs.field(repr=False)
    after: bytes | Path | None = attrs.field(repr=False)
    remark: str = ""


def draw_contact_sheet(pairs: Sequence[Pair], path: Path) -> None:
    """Draw ``pairs``, three to a row, and write them as PNG; the file appears only when it is complete."""
    columns = max(1, min(_PER_ROW, len(pairs)))
    rows = -(-len(pairs) // columns)
    width = 2 * _MARGIN + columns * _CARD_WIDTH + (columns - 1) * _CARD_SPACE
    height = _HEADER + rows * (_CARD_HEIGHT + _CARD_SPACE) - _CARD_SPACE + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    _draw_header(sheet, pairs)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        x = _MARGIN + column * (_CARD_WIDTH + _CARD_SPACE)
        _draw_card(sheet, pair, (x, _HEADER + row * (_CARD_HEIGHT + _CARD_SPACE)))
    _write(sheet, path)


def _draw_header(sheet: Image.Image, pairs: Sequence[Pair]) -> None:
    pen = ImageDraw.Draw(sheet)
    done = sum(pair.after is not None for pair in pairs)
    pen.text((_MARGIN, 34), "Text removed", font=_font(42), fill=_INK)
    words = f"{done} of {len(pairs)} images, each before (left) and after (right)"
    pen.text((_MARGIN, 86), words, font=_font(22), fill=_FAINT)


def _draw_card(sheet: Image.Image, pair: Pair, corner: tuple[int, int]) -> None:
    x, y = corner
    pen = ImageDraw.Draw(sheet)
    pen.rounded_rectangle((x, y, x + _CARD_WIDTH, y + _CARD_HEIGHT), 12, fill=_CARD, outline=_EDGE)
    left, right, top = x + _PAD, x + _PAD + _BOX + _GAP, y + _PAD
    _place(sheet, pair.before, (left, top), "no original here")
    _place(sheet, pair.after, (right, top), pair.remark or "no result")
    pen.text((left, top + _BOX + 16), _shortened(pair.title), font=_font(24), fill=_INK)


def _shortened(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"


def _place(sheet: Image.Image, content: bytes | Path | None, corner: tuple[int, int], remark: str) -> None:
    """Draw an image, whole and centred, on its background; where there is none, the remark."""
    x, y = corner
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((x, y, x + _BOX - 1, y + _BOX - 1), fill=_MAT)
    try:
        image = None if content is None else _opened(content)
    except Exception:  # noqa: BLE001 - Pillow raises errors of many kinds for damaged files
        image, remark = None, "cannot be shown"
    if image is None:
        pen.text((x + _BOX // 2, y + _BOX // 2), remark, font=_font(20), fill=_RED, anchor="mm")
        return
    scale = min(_BOX / image.width, _BOX / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (_BOX - size[0]) // 2, y + (_BOX - size[1]) // 2))


def _opened(content: bytes | Path) -> Image.Image:
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as opened:
        opened.draft("RGB", (_BOX, _BOX))
        return opened.convert("RGB")


def _write(sheet: Image.Image, path: Path) -> None:
    with part_file(path) as part:
        sheet.save(part, "PNG")


def _font(size: int) -> Font:
    return ImageFont.load_default(size)
