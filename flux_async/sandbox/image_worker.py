"""Makes one image in a worker process: reads the input, changes it, writes the result and two thumbnails.

Only paths and words travel between the processes. No model is at work: a prompt's digest picks palette,
hills, clouds and sun, a few of its words are understood ("night", "sea", "forest"), and the image says that
it is a placeholder.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flux_async.imaging import ImageError, ImageFormat, Quality, decode_image, encode_image, remove_text
from flux_async.imaging.arrays import to_pixels
from flux_async.sandbox.drawing import cloud_noise, ridge
from flux_async.sandbox.image_pipeline import ImageJob, UnusableInput
from flux_async.sandbox.requests import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flux_async.imaging import Floats, Pixels
    from flux_async.sandbox.drawing import Colour

    Reals = NDArray[np.floating]

MAX_PIXELS: Final = 40_000_000
JPEG_QUALITY: Final = 95
THUMBNAIL_QUALITY: Final = 82
THUMBNAIL_WIDTH: Final = 360
THUMBNAIL_HEIGHT: Final = 480
TINT_STRENGTH: Final = 0.16
EDIT_LABEL: Final = "sandbox edit"

_PARENT_CHECK_SECONDS: Final = 0.2


def make_image(job: ImageJob) -> UnusableInput | None:
    """Make one picture; runs in a worker process."""
    _settle_in(job.threads)

    try:
        before, alpha = _input(job)
        _write_thumbnail(before, alpha, job.before)  # first: it is shown while the work goes on
        after, alpha = _result(job, before, alpha)
    except ImageError as error:
        return UnusableInput(reason=str(error))
    _write(after, job.result, job.output_format, JPEG_QUALITY, alpha)
    _write_thumbnail(after, alpha, job.after)
    return None


def _input(job: ImageJob) -> tuple[Pixels, Pixels | None]:
    """Return the picture to begin with, and its opacity if it has any; a prompt alone is drawn."""
    if job.source is None:
        return draw_from_prompt(job.prompt, job.ratio or "1:1", seed=_digest(job.prompt)), None
    picture = decode_image(job.source.read_bytes(), max_pixels=MAX_PIXELS)
    return picture.pixels, picture.alpha


def _result(job: ImageJob, before: Pixels, alpha: Pixels | None) -> tuple[Pixels, Pixels | None]:
    """Return what becomes of the picture, and its opacity if it has any."""
    if job.source is None:
        return before, None
    after = before
    if job.kind is Kind.TEXT_REMOVAL:
        after = remove_text(after, quality=Quality[job.quality.upper()]).image
    if job.ratio is not None:
        after, alpha = fit_to_ratio(after, job.ratio), None
    if job.kind is Kind.EDIT:
        after = mark_edit(after, job.prompt)
    return after, alpha


def _digest(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")


def mark_edit(picture: Pixels, prompt: str) -> Pixels:
    """Return the picture with a tint drawn from the prompt and a label, so that an edit can be seen."""
    tint = np.array(colorsys.hsv_to_rgb(_digest(prompt) % 360 / 360, 0.7, 1.0)) * 255
    tinted = np.clip(picture * (1 - TINT_STRENGTH) + tint * TINT_STRENGTH + 0.5, 0, 255).astype(np.uint8)
    canvas = Image.fromarray(tinted)
    size = max(8, min(canvas.size) // 14)
    draw = ImageDraw.Draw(canvas, "RGBA")
    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((size, size), EDIT_LABEL, font=font)
    pad = size // 2
    draw.rounded_rectangle((left - pad, top - pad, right + pad, bottom + pad), pad, fill=(0, 0, 0, 150))
    draw.text((size, size), EDIT_LABEL, font=font, fill=(255, 255, 255, 255))
    return np.asarray(canvas, np.uint8)


def _write_thumbnail(picture: Pixels, alpha: Pixels | None, path: Path) -> None:
    """Write a small copy, which is under its name only when it is whole: a page may ask for it meanwhile."""
    part = path.with_name(f"{path.name}.part")
    _write(_small(picture), part, "jpeg", THUMBNAIL_QUALITY, None if alpha is None else _small(alpha))
    part.replace(path)


def _small(picture: Pixels) -> Pixels:

    small = Image.fromarray(picture)
    small.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT))
    return np.asarray(small, np.uint8)


def _write(
    picture: Pixels, path: Path, output_format: str, quality: int, alpha: Pixels | None = None
) -> None:

    path.write_bytes(encode_image(picture, ImageFormat[output_format.upper()], quality, alpha=alpha))


_settled: list[Any] = []


def _settle_in(threads: int) -> None:
    """Prepare this process once: few threads, low priority, and an end as soon as the parent is gone."""
    if _settled:
        return
    watch = threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="parent watch", daemon=True)
    watch.start()
    _settled.append(watch)
    if hasattr(os, "nice"):
        os.nice(5)  # polls are answered by the parent, before pictures are worked on
    # Nobody reads what native code writes to the error pipe; full, it would stop the worker for ever.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)

    cv2.setNumThreads(threads)


def _end_with_parent(parent: int) -> None:
    # An idle worker ends when its input closes; one in the middle of a picture would finish it first.
    if sys.platform == "win32":
        return
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


PIXELS = 1024 * 1024
STEP = 16
"""Both sides are multiples of this, as the vendor's are."""

_SKIES: dict[str, tuple[Colour, Colour]] = {
    "sunset": ((90, 50, 120), (255, 120, 60)),
    "dusk": ((60, 50, 110), (240, 140, 110)),
    "sunrise": ((110, 140, 200), (255, 170, 110)),
    "night": ((14, 20, 50), (50, 60, 110)),
    "space": ((8, 8, 28), (90, 40, 120)),
    "ocean": ((120, 190, 225), (30, 110, 170)),
    "sea": ((120, 190, 225), (30, 110, 170)),
    "forest": ((190, 215, 170), (40, 90, 60)),
    "desert": ((200, 150, 110), (235, 190, 120)),
    "snow": ((120, 150, 190), (210, 225, 240)),
    "winter": ((120, 150, 190), (210, 225, 240)),
    "mountain": ((110, 150, 200), (240, 215, 190)),
    "city": ((60, 70, 100), (240, 170, 120)),
    "fire": ((70, 10, 20), (250, 90, 30)),
}
_WATERS = ("lake", "sea", "ocean", "river", "water", "harbour", "harbor")
_DARK = ("night", "space", "star")
_LIGHT = np.array([255, 240, 205], np.float32)
_MARK = "sandbox"


def draw_from_prompt(prompt: str, ratio: str, *, seed: int = 0) -> Pixels:
    """Draw a placeholder for a prompt: about one megapixel of the asked ratio ("16:9"), always the same.

    Raises:
        ValueError: ``ratio`` is not two positive whole numbers around a colon.
    """
    width, height = size_of(ratio)
    scene = _Scene.of(prompt, seed, width, height)
    picture = _sky(scene)
    if scene.dark:
        picture = _stars(picture, scene)
    picture = _hills(_clouds(_sun(picture, scene), scene), scene)
    if scene.water:
        picture = _water(picture)
    return _signed(_finished(picture, scene), prompt)


def size_of(ratio: str) -> tuple[int, int]:
    """Return the width and height, multiples of 16, that come nearest to a ratio at about one megapixel."""
    share = _share(ratio)

    def unlike(size: tuple[int, int]) -> float:
        off_ratio = abs(math.log(size[0] / size[1] / share))
        return 40 * off_ratio + abs(math.log(size[0] * size[1] / PIXELS))

    wide = math.sqrt(PIXELS * share)
    columns = range(max(1, int(wide / STEP) - 6), int(wide / STEP) + 7)
    sizes = [(column * STEP, max(STEP, round(column / share) * STEP)) for column in columns]
    return min(sizes, key=unlike)


def fit_to_ratio(picture: Pixels, ratio: str) -> Pixels:
    """Cut the middle of a picture to a ratio, as the vendor does where an aspect ratio is set on an edit.

    Where that would lose more than half of the picture, it is laid on a blurred copy of itself instead.
    """
    share = _share(ratio)
    height, width = picture.shape[:2]
    cut = (min(width, max(1, round(height * share))), min(height, max(1, round(width / share))))
    if 2 * cut[0] * cut[1] >= width * height:
        left, top = (width - cut[0]) // 2, (height - cut[1]) // 2
        return np.ascontiguousarray(picture[top : top + cut[1], left : left + cut[0]])
    return _on_blurred_copy(picture, share)


@attrs.frozen(kw_only=True, eq=False)
class _Scene:
    """Everything that was decided before the first pixel is drawn."""

    width: int
    height: int
    random: np.random.Generator
    seed: int
    sky: tuple[Floats, Floats]
    ground: Floats
    sun: tuple[float, float, float]
    water: bool
    dark: bool

    @classmethod
    def of(cls, prompt: str, seed: int, width: int, height: int) -> _Scene:
        words = prompt.lower()
        digest = hashlib.sha256(f"{seed}|{words.strip()}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        hue = float(random.random())
        known = [colours for word, colours in _SKIES.items() if word in words]
        made_up = (_colour(hue, 0.55, 0.75), _colour(hue + 0.08 + 0.3 * float(random.random()), 0.38, 0.92))
        top, bottom = (np.array(colour, np.float32) for colour in (known[0] if known else made_up))
        sun = (
            random.uniform(0.2, 0.8) * width,
            random.uniform(0.22, 0.42) * height,
            0.08 * min(width, height),
        )
        return cls(
            width=width,
            height=height,
            random=random,
            seed=int.from_bytes(digest[8:12], "big"),
            sky=(top, bottom),
            ground=np.array(_colour(hue + 0.45, 0.5, 0.26), np.float32),
            sun=(float(sun[0]), float(sun[1]), float(sun[2])),
            water=any(word in words for word in _WATERS),
            dark=any(word in words for word in _DARK),
        )

    @property
    def down(self) -> Floats:
        """The row of every pixel, as a column: it spreads over the width."""
        return np.arange(self.height, dtype=np.float32)[:, None]

    @property
    def right(self) -> Floats:
        """The column of every pixel, as a row."""
        return np.arange(self.width, dtype=np.float32)[None]


def _share(ratio: str) -> float:
    width, _, height = ratio.partition(":")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"expected a ratio such as '16:9', got {ratio!r}")
    return int(width) / int(height)


def _mixed(below: Reals, share: Reals, above: Reals) -> Floats:
    return (below * (1 - share) + above * share).astype(np.float32)


def _sky(scene: _Scene) -> Floats:
    share = np.clip(scene.down / scene.height / 0.72, 0, 1)[..., None]
    sky = _mixed(scene.sky[0], share, scene.sky[1])
    return np.ascontiguousarray(np.broadcast_to(sky, (scene.height, scene.width, 3)))


def _stars(picture: Floats, scene: _Scene) -> Floats:
    light = np.zeros((scene.height, scene.width), np.float32)
    count = scene.width * scene.height // 3500
    rows, columns = (
        scene.random.integers(0, scene.height, count),
        scene.random.integers(0, scene.width, count),
    )
    light[rows, columns] = scene.random.uniform(60, 235, count)
    return picture + light[..., None]


def _sun(picture: Floats, scene: _Scene) -> Floats:
    x, y, radius = scene.sun
    away = np.hypot(scene.right - x, scene.down - y)
    glow = 0.45 * np.exp(-((away / (radius * 3.2)) ** 2))[..., None]
    disc = np.clip(radius - away + 0.5, 0, 1)[..., None]
    return _mixed(_mixed(picture, glow, _LIGHT), disc, _LIGHT)


def _clouds(picture: Floats, scene: _Scene) -> Floats:
    # Noise drawn at half the height and stretched: clouds are wider than they are tall.
    tall = cloud_noise((scene.width // 2, scene.height), scene.seed, roughness=2.7)
    noise = np.repeat(tall, 2, axis=1)[:, : scene.width]
    fading = np.clip(1 - scene.down / scene.height / 0.6, 0, 1)
    share = (0.45 * np.clip(noise * 0.5 - 0.15, 0, 1) * fading)[..., None]
    return _mixed(picture, share.astype(np.float32), np.array([255, 252, 248], np.float32))


def _hills(picture: Floats, scene: _Scene) -> Floats:
    count = int(scene.random.integers(3, 6))
    start = float(scene.random.uniform(0.5, 0.6))
    for number in range(count):
        near = (number + 1) / count
        base = start + 0.34 * (number / (count - 1)) * (0.75 if scene.water else 1.0)
        crest = (
            base + (0.055 - 0.02 * near) * ridge(scene.width, scene.seed + number, roughness=3.4)
        ) * scene.height
        inside = scene.down - crest[None]
        colour = scene.sky[1] * (1 - near) + scene.ground * near
        shade = 1.03 - 0.25 * np.clip(inside / (0.4 * scene.height), 0, 1)
        picture = _mixed(picture, np.clip(inside + 0.5, 0, 1)[..., None], colour * shade[..., None])
    return picture


def _water(picture: Floats) -> Floats:
    """Mirror the scene in the lowest fifth, in waves."""
    height = picture.shape[0]
    shore = int(height * 0.8)
    rows = np.arange(height - shore)
    sway = (np.sin(rows * 0.55) + np.sin(rows * 0.21 + 1)) * (1 + rows * 0.05)
    mirrored = picture[shore - 1 - rows]
    waves = np.stack([np.roll(row, int(shift), 0) for row, shift in zip(mirrored, sway, strict=True)])
    picture[shore:] = waves * 0.72 + np.array([40, 70, 100], np.float32) * 0.28
    return picture


def _finished(picture: Floats, scene: _Scene) -> Floats:
    """Add film grain and darker corners."""
    grain = scene.random.normal(0, 1.8, (scene.height, scene.width, 1)).astype(np.float32)
    off_centre = (scene.right / scene.width - 0.5) ** 2 + (scene.down / scene.height - 0.5) ** 2
    return np.asarray((picture + grain) * (1 - 0.44 * off_centre[..., None]), np.float32)


def _signed(picture: Floats, prompt: str) -> Pixels:
    """Write the prompt along the foot, as far as it goes, and the mark in the corner."""
    image = Image.fromarray(to_pixels(picture))
    size = max(13, round(min(image.size) / 44))
    font, pen = ImageFont.load_default(size), ImageDraw.Draw(image, "RGBA")
    top = image.height - 2 * size - size // 2
    pen.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 110))
    baseline, room = top + round(1.6 * size), image.width - 3 * size - pen.textlength(_MARK, font)
    words = " ".join(prompt.split())
    pen.text((size, baseline), _shortened(words, font, room - size), (255, 255, 255, 225), font, anchor="ls")
    pen.text((image.width - size, baseline), _MARK, (255, 255, 255, 150), font, anchor="rs")
    return np.asarray(image, np.uint8)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    text = text[:400]
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text.rstrip() + "..."


def _on_blurred_copy(picture: Pixels, share: float) -> Pixels:
    height, width = picture.shape[:2]
    size = (max(width, round(height * share)), max(height, round(width / share)))
    image = Image.fromarray(picture)
    wash = image.resize((max(1, size[0] // 40), max(1, size[1] // 40)), Image.Resampling.BOX)
    canvas = wash.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
    return np.asarray(canvas, np.uint8)


def _colour(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    """Convert hue, saturation and value (0 to 1) to RGB (0 to 255)."""
    turns = (hue % 1 * 6 + np.array([5, 3, 1])) % 6
    strength = np.clip(np.minimum(turns, 4 - turns), 0, 1)
    return (255 * value * (1 - saturation * strength)).astype(np.float32)
