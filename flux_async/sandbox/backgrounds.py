"""What the samples are written on: photographs out of the scikit-image wheel, and drawn scenes.

The photographs are read as files from the wheel's data folder; scikit-image itself is not imported. Those
used are all in the public domain or CC0, by the notes that come with them: astronaut (NASA),
hubble_deep_field (NASA), rocket (SpaceX), brick, grass and gravel (CC0Textures, CC0), camera (Lav Varshney,
CC0), chelsea (Stefan van der Walt, CC0), coffee (Rachel Michetti, CC0).
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from flux_async.imaging.arrays import to_pixels

if TYPE_CHECKING:
    from flux_async.imaging import Floats, Pixels
    from flux_async.sandbox.lettering import Colour

Size = tuple[int, int]
"""Width and height, in pixels."""


def photo_file(name: str) -> Path | None:
    """Find a photograph of the scikit-image wheel; None where the wheel is not installed or lacks it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / name
    return path if path.is_file() else None


def photo(
    name: str,
    size: Size,
    *,
    crop: tuple[float, float, float, float] = (0, 0, 1, 1),
    tint: Colour = (255, 255, 255),
    grain: float = 2.0,
) -> Pixels:
    """Return a photograph, cropped (left, top, right, bottom as shares), enlarged to ``size`` and grained."""
    path = photo_file(name)
    if path is None:
        raise FileNotFoundError(
            f"{name} is not here: run  pip install 'flux-async[demo]'  (in a checkout: '.[demo]')"
        )
    with Image.open(path) as image:
        full = image.convert("RGB")
    left, top, right, bottom = (
        round(share * side) for share, side in zip(crop, (full.width, full.height) * 2, strict=True)
    )
    part = full.crop((left, top, right, bottom))
    scale = max(size[0] / part.width, size[1] / part.height)
    large = part.resize(
        (math.ceil(part.width * scale), math.ceil(part.height * scale)), Image.Resampling.LANCZOS
    )
    x, y = (large.width - size[0]) // 2, (large.height - size[1]) // 2
    values = np.asarray(large.crop((x, y, x + size[0], y + size[1])), np.float32)
    return to_pixels(values * (np.array(tint, np.float32) / 255) + _grain(size, grain))


def gradient(size: Size, start: Colour, end: Colour, *, degrees: float = 35) -> Pixels:
    """Return a straight gradient from one colour to another."""
    down, right = _grid(size)
    along = right * math.cos(math.radians(degrees)) + down * math.sin(math.radians(degrees))
    share = ((along - along.min()) / np.ptp(along))[..., None]
    return to_pixels(np.array(start, np.float32) * (1 - share) + np.array(end, np.float32) * share)


def poster(size: Size) -> Pixels:
    """Return a flat poster: cream, a sun, a coloured foot."""
    width, height = size
    image = Image.new("RGB", size, (242, 233, 220))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height * 0.84, width, height), fill=(214, 92, 64))
    pen.ellipse((width * 0.66, height * 0.56, width * 0.9, height * 0.56 + width * 0.24), fill=(250, 190, 60))
    for number in range(7):
        x = width * (0.08 + 0.08 * number)
        pen.polygon(
            [(x, height * 0.84), (x + 26, height * (0.7 - 0.02 * (number % 3))), (x + 52, height * 0.84)],
            fill=[(70, 120, 90), (94, 146, 104)][number % 2],
        )
    return np.asarray(image, np.uint8)


def paper(size: Size) -> Pixels:
    """Return old paper: blotchy and grained."""
    blotches = (
        cloud_noise(size, 2, roughness=2.6)[..., None] * 7
        + cloud_noise(size, 1, roughness=1.2)[..., None] * 5
    )
    return to_pixels(np.array([226, 214, 190], np.float32) + blotches)


def landscape(size: Size) -> Pixels:
    """Return three ranges of hills under an evening sky."""
    width, height = size
    down, _ = _grid(size)
    share = (down / height)[..., None]
    scene = np.array([70, 120, 200], np.float32) * (1 - share) + np.array([255, 200, 150], np.float32) * share
    hills: list[tuple[Colour, float]] = [
        ((120, 140, 180), 0.52),
        ((80, 110, 120), 0.64),
        ((40, 80, 60), 0.76),
    ]
    for number, (colour, base) in enumerate(hills):
        crest = (base + 0.05 * ridge(width, 20 + number)) * height
        leaves = cloud_noise(size, 30 + number, roughness=1.0)[..., None] * 4
        hill = np.array(colour, np.float32) * (1.05 - 0.3 * share) + leaves
        scene = np.where((down > crest[None])[..., None], hill, scene)
    return to_pixels(scene + _grain(size, 2.0))


def stripes(size: Size) -> Pixels:
    """Return slanted deck-chair stripes, smooth at their edges."""
    down, right = _grid(size)
    wave = np.clip(np.sin((right + down) * math.pi / 36) * 12 + 0.5, 0, 1)[..., None]
    return to_pixels(
        np.array([238, 240, 245], np.float32) * wave + np.array([120, 170, 215], np.float32) * (1 - wave)
    )


def badge(size: Size) -> Pixels:
    """Return a round coffee badge with a hill in its middle."""
    image = _enlarged(gradient(size, (235, 245, 250), (200, 220, 235)))
    pen, (width, height) = ImageDraw.Draw(image), image.size
    x, y, radius = width / 2, height / 2, width * 0.4
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(30, 90, 80))
    inner = radius * 0.42
    pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=(245, 240, 225))
    pen.polygon(
        [(x, y - inner * 0.6), (x + inner * 0.4, y + inner * 0.15), (x - inner * 0.4, y + inner * 0.15)],
        fill=(200, 120, 40),
    )
    return _reduced(image)


def dashboard(size: Size) -> Pixels:
    """Return the screen of a web application, without its words."""
    image = _enlarged(gradient(size, (244, 246, 250), (244, 246, 250)))
    pen, (width, height) = ImageDraw.Draw(image), image.size
    pen.rectangle((0, 0, width, 112), fill=(33, 41, 60))
    pen.rectangle((0, 112, 400, height), fill=(255, 255, 255))
    pen.ellipse((width - 120, 24, width - 56, 88), fill=(90, 160, 250))
    for row in range(5):
        pen.rounded_rectangle((44, 180 + row * 104, 80, 216 + row * 104), 8, fill=(180, 190, 210))
    card = (width - 400 - 160) / 3
    for number, colour in enumerate([(52, 120, 246), (40, 170, 100), (230, 90, 70)]):
        x = 440 + number * (card + 40)
        pen.rounded_rectangle(
            (x, 160, x + card, 540), 24, fill=(255, 255, 255), outline=(220, 225, 235), width=3
        )
        pen.rounded_rectangle((x + 44, 416, x + 284, 496), 16, fill=colour)
    pen.rounded_rectangle(
        (440, 580, width - 40, height - 40), 24, fill=(255, 255, 255), outline=(220, 225, 235), width=3
    )
    points = [
        (500 + q * (width - 620) / 20, height - 200 - 90 * math.sin(q * 0.7) - q * 6) for q in range(21)
    ]
    pen.line(points, fill=(52, 120, 246), width=7, joint="curve")
    return _reduced(image)


def slide(size: Size) -> Pixels:
    """Return a presentation slide with a bar chart and no words."""
    image = _enlarged(gradient(size, (252, 252, 254), (232, 238, 248), degrees=90))
    pen, (width, height) = ImageDraw.Draw(image), image.size
    pen.rectangle((0, 0, 36, height), fill=(20, 90, 160))
    for number, share in enumerate([0.3, 0.42, 0.4, 0.58, 0.7]):
        x = width * (0.56 + 0.08 * number)
        pen.rectangle((x, height * (0.82 - 0.6 * share), x + width * 0.05, height * 0.82), fill=(20, 90, 160))
    pen.line((width * 0.54, height * 0.82, width * 0.96, height * 0.82), fill=(90, 100, 120), width=4)
    return _reduced(image)


def shop_banner(size: Size) -> Pixels:
    """Return a red shop banner with a golden disc and waves along its foot."""
    down, right = _grid(size)
    away = np.hypot(down - size[1] * 0.5, right - size[0] * 0.78)
    scene = gradient(size, (196, 24, 40), (232, 66, 54)).astype(np.float32)
    for number in range(4):
        crest = size[1] * (0.8 + 0.06 * number) + 12 * np.sin(right / 46 + number * 1.9)
        wave = np.clip(down - crest + 0.5, 0, 1)[..., None]
        red = np.array([170 - 22 * number, 18, 30], np.float32)
        scene = np.asarray(scene * (1 - wave) + red * wave, np.float32)
    radius = size[1] * 0.3
    disc = np.clip(radius - away + 0.5, 0, 1)[..., None]
    fading = np.array([6, 40, 60], np.float32) * (away / radius)[..., None]
    gold = np.array([255, 214, 110], np.float32) - fading
    return to_pixels(scene * (1 - disc) + gold * disc)


def cloud_noise(size: Size, seed: int, *, roughness: float) -> Floats:
    """Return cloudy noise of mean 0 and deviation 1; the larger ``roughness``, the larger its blots."""
    random = np.random.default_rng(seed)
    across = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[0])[None])
    across[0, 0] = 1
    waves = random.normal(size=across.shape) + 1j * random.normal(size=across.shape)
    spectrum = waves / across ** (roughness / 2)
    noise = np.fft.irfft2(spectrum, (size[1], size[0]))
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def ridge(width: int, seed: int, *, roughness: float = 2.2) -> Floats:
    """Return the line of a mountain ridge: mean 0, deviation 1."""
    random, across = np.random.default_rng(seed), np.fft.rfftfreq(width)
    across[0] = 1
    waves = random.normal(size=across.size) + 1j * random.normal(size=across.size)
    spectrum = waves / across ** (roughness / 2)
    spectrum[0] = 0
    line = np.fft.irfft(spectrum, width)
    return np.asarray(line / line.std(), np.float32)


def _grid(size: Size) -> tuple[Floats, Floats]:
    down, right = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)
    return down, right


def _grain(size: Size, amount: float) -> Floats:
    random = np.random.default_rng(5)
    light, tint = (
        random.normal(0, amount, (size[1], size[0], 1)),
        random.normal(0, amount / 2, (size[1], size[0], 3)),
    )
    return (light + tint).astype(np.float32)


def _enlarged(picture: Pixels) -> Image.Image:
    """Return an image twice as large to draw on: made small again, its edges are smooth."""
    return Image.fromarray(picture).resize((picture.shape[1] * 2, picture.shape[0] * 2), Image.Resampling.BOX)


def _reduced(image: Image.Image) -> Pixels:
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX), np.uint8)
