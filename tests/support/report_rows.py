"""Rows and images for the tests and the benchmark of the report."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from flux_async import Charge
from flux_async.report.page import NextStep, ReportHead
from flux_async.report.rows import Filter, Kind, Picture, ReportRow
from flux_async.report.thumbnails import Thumbnails

HOSTILE_NAME = '"><script>alert(1)</script>.png'
HOSTILE_WORDS = '"><img src=x onerror=alert(2)></script><script>alert(3)</script>'
RETRY = "flux-async retry '/photos/my run' --failed"
RETRY_TEXT_LEFT = "flux-async retry '/photos/my run' --text-left"
_ABOVE = [(120 + 40 * step, 340 - 20 * (step % 3)) for step in range(20)]
_OUTLINE = tuple(value for x, y in [*_ABOVE, (880, 560), (120, 560)] for value in (x, y))
"""As many corners as the outlines of a usual image have."""
_WORDS = ("GRAND OPENING", "SUMMER SALE", "MENU", "LAST TICKETS")


def head_of(folder: Path, images: int, **more: Any) -> ReportHead:
    """Return the head of a report about this many images."""
    words = "Pays for another task for each of these images, up to 2,500 credits."
    steps = {
        Filter.FAILED: NextStep(words=words, command=RETRY),
        Filter.TEXT_LEFT: NextStep(words=words, command=RETRY_TEXT_LEFT),
    }
    fields: dict[str, Any] = {"credits": 5.0 * images, "next_steps": steps}
    return ReportHead(folder=folder, written_at=1_790_000_000.0, images=images, **fields | more)


def make_rows(folder: Path, count: int, *, images: int = 6, hostile: bool = True) -> list[ReportRow]:
    """Return rows of every kind that share some images, which are drawn in ``folder``.

    Of ten images one failed and one has text left; the rest is clean. The fourth has a hostile name, the
    original of each ninth is elsewhere, and the second of these at no valid address.
    """
    pictures = _draw(folder, images)
    chance = random.Random(7)
    return [
        _row(number, pictures[number % images], chance, hostile=hostile) for number in range(1, count + 1)
    ]


def _row(
    number: int, pictures: tuple[Picture, Picture, Picture], chance: random.Random, *, hostile: bool
) -> ReportRow:
    original, vendor, preserved = pictures
    title = HOSTILE_NAME if hostile and number == 4 else f"poster-{number:05d}.jpg"
    address = f"https://shop.example/{title}"
    fields: dict[str, Any] = {
        "number": number,
        "key": f"{chance.getrandbits(256):064x}",
        "image": address,
        "title": title,
        "original_url": "http://no host/" if hostile and number == 18 else address,
        "model": "flux-kontext-pro",
    }
    if number % 10 == 0:
        words = HOSTILE_WORDS if hostile else "Task 4711 ended in GENERATE_FAILED (errorCode 500)."
        failure = {"kind": Kind.FAILED, "error_type": "TaskFailed", "error": words, "attempts": 1}
        return ReportRow(**fields | failure)
    text_left = number % 10 == 5
    return ReportRow(
        **fields,
        kind=Kind.SUCCEEDED,
        original=None if number % 9 == 0 else original,
        vendor=vendor,
        preserved=None if number % 7 == 0 else preserved,
        hole=(_OUTLINE,),
        verdict="text_left" if text_left else "clean",
        text_left=number % 50 / 50 if text_left else 0.0,
        changed_elsewhere=0.001,
        background_kept=0.98,
        words_left=("SALE",) if text_left else (),
        result_url=f"https://files.example/{number}.png",
        task_id=f"{chance.getrandbits(128):032x}",
        charge=Charge.YES,
        credits=5.0,
        attempts=1,
        submitted_at=1_790_000_000.0 + number / 2,
        finished_at=1_790_000_012.0 + number / 2,
        generation_s=chance.lognormvariate(2.2, 0.4),
    )


def _draw(folder: Path, count: int) -> list[tuple[Picture, Picture, Picture]]:
    """Draw posters: the original, the result in the vendor's size, and the result at full size."""
    thumbnails, chance, drawn = Thumbnails(folder), random.Random(3), []
    for place in ("originals", "images/vendor"):
        (folder / place).mkdir(parents=True)
    for number in range(count):
        clean = _poster(chance)
        files = (
            folder / f"originals/{number}.jpg",
            folder / f"images/vendor/{number}.jpg",
            folder / f"images/{number}.png",
        )
        clean.resize((clean.width // 16 * 16, clean.height // 16 * 16)).save(files[1])
        clean.save(files[2])
        pen, middle = ImageDraw.Draw(clean), (clean.width // 2, round(clean.height * 0.45))
        pen.text(
            middle, chance.choice(_WORDS), "white", ImageFont.load_default(clean.width // 11), anchor="mm"
        )
        clean.save(files[0])
        drawn.append(files)
    thumbnails.make(file for files in drawn for file in files)
    pictures = [[Picture(file=file, thumbnail=thumbnails.path_of(file)) for file in files] for files in drawn]
    return [(before, vendor, preserved) for before, vendor, preserved in pictures]


def _poster(chance: random.Random) -> Image.Image:
    size = chance.choice([(500, 380), (360, 480), (600, 400)])
    poster = Image.new("RGB", size, tuple(chance.randrange(40, 150) for _ in range(3)))
    pen = ImageDraw.Draw(poster)
    for _ in range(14):
        x, y, radius = chance.randrange(size[0]), chance.randrange(size[1]), chance.randrange(20, 110)
        colour = tuple(chance.randrange(40, 220) for _ in range(3))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    return poster
