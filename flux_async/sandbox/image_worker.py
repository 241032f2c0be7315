"""Makes one image in a worker process: reads the input, changes it, writes the result and two thumbnails.

Only paths and words travel between the processes. No model is at work: the image of a prompt is a placeholder
whose palette and hills are drawn from the prompt's digest and from a few words ("night", "sea", "forest").
"""

from __future__ import annotations

import colorsys
import hashlib
import math
import os
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flux_async.imaging import ImageError, ImageFormat, Quality, decode_image, encode_image, remove_text
from flux_async.imaging.arrays import to_pixels
from flux_async.sandbox.drawing import ridge
from flux_async.sandbox.faults import Fault
from flux_async.sandbox.image_pipeline import ImageJob, UnusableInput
from flux_async.sandbox.redrawing import cut_off, flatten, invent_object, redraw
from flux_async.sandbox.requests import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flux_async.imaging import Floats, Pixels
    from flux_async.sandbox.drawing import Colour

MAX_PIXELS: Final = 40_000_000
JPEG_QUALITY: Final = 95
REDRAWN_QUALITY: Final = 90
THUMBNAIL_QUALITY: Final = 82
THUMBNAIL_SIZE: Final = (360, 480)
TINT_STRENGTH: Final = 0.16
EDIT_LABEL: Final = "sandbox edit"

PIXELS: Final = 1024 * 1024
STEP: Final = 16
"""Both sides of a drawn image are multiples of this, as the vendor's are."""
WIDEST: Final = 21 / 9
"""The vendor's widest ratio, and turned its tallest: images beyond it are squeezed into it."""

_PARENT_CHECK_S: Final = 0.2
_MARK: Final = "sandbox"
_SKIES: Final[dict[str, tuple[Colour, Colour]]] = {
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


def make_image(job: ImageJob) -> UnusableInput | None:
    """Make one image; runs in a worker process."""
    _prepare_process(job.threads)
    try:
        before, alpha = _input(job)
        _write_thumbnail(before, alpha, job.before)  # first: the page shows it during the work
        after, alpha = make_result(job, before, alpha)
    except ImageError as error:
        return UnusableInput(reason=str(error))
    quality = JPEG_QUALITY if job.exact else REDRAWN_QUALITY
    _write(after, job.result, job.output_format, quality, alpha)
    _write_thumbnail(after, alpha, job.after)
    return None


def _input(job: ImageJob) -> tuple[Pixels, Pixels | None]:
    """Return the input and its opacity if it has any; without an input, the image of the prompt."""
    if job.source is None:
        return draw_from_prompt(job.prompt, job.ratio or "1:1"), None
    image = decode_image(job.source.read_bytes(), max_pixels=MAX_PIXELS)
    return image.pixels, image.alpha


def make_result(job: ImageJob, before: Pixels, alpha: Pixels | None) -> tuple[Pixels, Pixels | None]:
    """Return the result and its opacity if it has any."""
    if job.source is None:
        return before, None
    if not job.exact and alpha is not None:
        before, alpha = flatten(before, alpha), None
    random = _random(job.seed, job.source)
    after = _content(job, before, random)
    if Fault.CROP in job.faults:
        alpha = None
    if job.ratio is not None:
        after, alpha = fit_to_ratio(after, job.ratio), None
    if job.kind is Kind.EDIT:
        after = mark_edit(after, job.prompt)
    if not job.exact:
        after = redraw(after, size_of(job.ratio) if job.ratio else _size_like(after), random)
    return after, alpha


def _random(seed: int, source: Path) -> np.random.Generator:
    """Return random numbers that depend on the seed and the input's content."""
    return np.random.default_rng(_digest(f"{seed}|{hashlib.sha256(source.read_bytes()).hexdigest()}"))


def _content(job: ImageJob, before: Pixels, random: np.random.Generator) -> Pixels:
    """Return the input without its text, if that is asked for, and with the mistakes of the job's faults."""
    after, text = before, np.zeros(before.shape[:2], np.bool_)
    if job.kind is Kind.TEXT_REMOVAL and Fault.TEXT_LEFT not in job.faults:
        removal = remove_text(before, quality=Quality[job.quality.upper()])
        after, text = removal.image, removal.hole
    if Fault.HALLUCINATE in job.faults:
        after = invent_object(after, text, random)
    return cut_off(after, text) if Fault.CROP in job.faults else after


def _write_thumbnail(pixels: Pixels, alpha: Pixels | None, path: Path) -> None:
    """Write a small copy; its name appears only when it is whole, as the page may ask for it at any time."""
    part = path.with_name(f"{path.name}.part")
    _write(_small(pixels), part, "jpeg", THUMBNAIL_QUALITY, None if alpha is None else _small(alpha))
    part.replace(path)


def _small(pixels: Pixels) -> Pixels:
    small = Image.fromarray(pixels)
    small.thumbnail(THUMBNAIL_SIZE)
    return np.asarray(small, np.uint8)


def _write(pixels: Pixels, path: Path, output_format: str, quality: int, alpha: Pixels | None) -> None:
    path.write_bytes(encode_image(pixels, ImageFormat[output_format.upper()], quality, alpha=alpha))


@cache
def _prepare_process(threads: int) -> None:
    """Prepare this process once: few threads, low priority, and an end as soon as the parent has ended."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="parent watch", daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(5)  # the parent answers polls first
    # The error pipe is never read: full, it would block native code that writes to it.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    cv2.setNumThreads(threads)


def _end_with_parent(parent: int) -> None:
    # An idle worker ends when its input closes; one in the middle of an image would finish it first.
    if sys.platform == "win32":
        return
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def draw_from_prompt(prompt: str, ratio: str, *, seed: int = 0) -> Pixels:
    """Draw a placeholder for a prompt: about one megapixel of a ratio such as "16:9", always the same.

    Raises:
        ValueError: ``ratio`` is not two positive whole numbers around a colon.
    """
    width, height = size_of(ratio)
    words = prompt.lower()
    random = np.random.default_rng(_digest(f"{seed}|{words.strip()}"))
    hue = random.random()
    drawn = (_colour(hue, 0.55, 0.75), _colour(hue + 0.08 + 0.3 * random.random(), 0.38, 0.92))
    sky = next((colours for word, colours in _SKIES.items() if word in words), drawn)
    top, bottom, ground = (np.array(colour, np.float32) for colour in (*sky, _colour(hue + 0.45, 0.5, 0.26)))
    down = np.arange(height, dtype=np.float32)[:, None]
    scene = _mixed(top, np.clip(down / height / 0.72, 0, 1)[..., None], bottom)
    scene = np.repeat(scene, width, axis=1)
    x, y, radius = (
        random.uniform(0.2, 0.8) * width,
        random.uniform(0.22, 0.42) * height,
        0.08 * min(width, height),
    )
    away = np.hypot(np.arange(width)[None] - x, down - y)
    scene = _mixed(
        scene, np.clip(radius - away + 0.5, 0, 1)[..., None], np.array([255, 240, 205], np.float32)
    )
    for number, near in enumerate((0.25, 0.5, 0.75, 1.0)):
        crest = (
            0.46 + 0.38 * near + (0.055 - 0.02 * near) * ridge(width, number + int(1e6 * hue), roughness=3.4)
        ) * height
        hill = bottom * (1 - near) + ground * near
        scene = _mixed(scene, np.clip(down - crest[None] + 0.5, 0, 1)[..., None], hill)
    return _signed(to_pixels(scene), prompt)


def _mixed(below: Floats, share: NDArray[np.floating], above: Floats) -> Floats:
    return np.asarray(below * (1 - share) + above * share, np.float32)


def _colour(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big")


def _signed(pixels: Pixels, prompt: str) -> Pixels:
    """Write the beginning of the prompt and the mark of the sandbox along the foot."""
    image = Image.fromarray(pixels)
    size = max(13, round(min(image.size) / 44))
    font, pen = ImageFont.load_default(size), ImageDraw.Draw(image, "RGBA")
    top = image.height - 2 * size - size // 2
    pen.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 110))
    baseline, room = top + round(1.6 * size), image.width - 4 * size - pen.textlength(_MARK, font)
    words = " ".join(prompt.split())[:400]
    while words and font.getlength(words) > room:
        words = words[:-1]
    pen.text((size, baseline), words, (255, 255, 255, 225), font, anchor="ls")
    pen.text((image.width - size, baseline), _MARK, (255, 255, 255, 150), font, anchor="rs")
    return np.asarray(image, np.uint8)


def mark_edit(pixels: Pixels, prompt: str) -> Pixels:
    """Return the image with a tint drawn from the prompt and a label, so that an edit can be seen."""
    tint = np.array(_colour(_digest(prompt) % 360 / 360, 0.7, 1.0))
    image = Image.fromarray(to_pixels(pixels * (1 - TINT_STRENGTH) + tint * TINT_STRENGTH))
    size = max(8, min(image.size) // 14)
    draw, font, pad = ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(size), size // 2
    left, top, right, bottom = draw.textbbox((size, size), EDIT_LABEL, font=font)
    draw.rounded_rectangle((left - pad, top - pad, right + pad, bottom + pad), pad, fill=(0, 0, 0, 150))
    draw.text((size, size), EDIT_LABEL, font=font, fill=(255, 255, 255, 255))
    return np.asarray(image, np.uint8)


def size_of(ratio: str) -> tuple[int, int]:
    """Return the width and height, multiples of 16, that come nearest to a ratio at about one megapixel."""
    return _nearest_size(_share(ratio))


def _size_like(image: Pixels) -> tuple[int, int]:
    """Return the size of the redrawn image."""
    height, width = image.shape[:2]
    return _nearest_size(min(WIDEST, max(1 / WIDEST, width / height)))


def _nearest_size(share: float) -> tuple[int, int]:
    def error(size: tuple[int, int]) -> float:
        off_ratio = abs(math.log(size[0] / size[1] / share))
        return 40 * off_ratio + abs(math.log(size[0] * size[1] / PIXELS))

    middle = int(math.sqrt(PIXELS * share) / STEP)
    columns = range(max(1, middle - 6), middle + 7)
    sizes = [(column * STEP, max(STEP, round(column / share) * STEP)) for column in columns]
    return min(sizes, key=error)


def fit_to_ratio(pixels: Pixels, ratio: str) -> Pixels:
    """Cut the middle of an image to a ratio, as the vendor does for an edit with an aspect ratio.

    If that would lose more than half of the image, it is laid on a blurred copy of itself instead.
    """
    share = _share(ratio)
    height, width = pixels.shape[:2]
    cut = (min(width, max(1, round(height * share))), min(height, max(1, round(width / share))))
    if 2 * cut[0] * cut[1] >= width * height:
        left, top = (width - cut[0]) // 2, (height - cut[1]) // 2
        return np.ascontiguousarray(pixels[top : top + cut[1], left : left + cut[0]])
    size = (max(width, round(height * share)), max(height, round(width / share)))
    image = Image.fromarray(pixels)
    blurred = image.resize((max(1, size[0] // 40), max(1, size[1] // 40)), Image.Resampling.BOX)
    canvas = blurred.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
    return np.asarray(canvas, np.uint8)


def _share(ratio: str) -> float:
    width, _, height = ratio.partition(":")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"expected a ratio such as '16:9', got {ratio!r}")
    return int(width) / int(height)
