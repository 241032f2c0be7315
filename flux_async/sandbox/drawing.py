"""Backgrounds and letters for sample images.

The photographs are read as files from the scikit-image wheel; scikit-image itself is not imported. Those
used are all in the public domain or CC0, by the notes that come with them: astronaut (NASA),
hubble_deep_field (NASA), rocket (SpaceX), brick, grass and gravel (CC0Textures, CC0), camera (Lav Varshney,
CC0), chelsea (Stefan van der Walt, CC0), coffee (Rachel Michetti, CC0).

The fonts come with wheels that the sandbox needs anyway, as a fresh machine may have none. OpenCV 5 carries
Rubik (SIL Open Font License; upright and italic, any weight) and, for every other script, WenQuanYi Micro
Hei (Apache-2.0); Pillow carries Aileron (CC0). Date stamps are drawn in seven segments without a font.
"""

from __future__ import annotations

import enum
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flux_async.imaging.arrays import to_pixels

if TYPE_CHECKING:
    from flux_async.imaging import Floats, Pixels

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


class Face(enum.Enum):
    """The typefaces; the values are OpenCV's names, but for Aileron."""

    RUBIK = "sans"
    RUBIK_ITALIC = "italic"
    MICRO_HEI = "uni"
    AILERON = "aileron"


class Anchor(enum.Enum):
    """The point of the baseline that is at the given place."""

    LEFT = 0.0
    MIDDLE = 0.5
    RIGHT = 1.0


@attrs.frozen(kw_only=True)
class Style:
    """How letters look: ``size`` in pixels, ``weight`` 300 to 900 (Rubik only), ``turn`` in degrees."""

    size: int
    face: Face = Face.RUBIK
    weight: int = 400
    colour: Colour = WHITE
    opacity: float = 1.0
    turn: float = 0.0
    outline: int = 0
    outline_colour: Colour = BLACK
    shadow: float = 0.0


@attrs.define(eq=False)
class Sheet:
    """An image under work; `texts` holds what was written on it."""

    values: Floats
    texts: list[str] = attrs.field(factory=list)

    @classmethod
    def over(cls, image: Pixels) -> Sheet:
        """Start with a clean image."""
        return cls(image.astype(np.float32))

    @property
    def pixels(self) -> Pixels:
        """The image with all that was written."""
        return to_pixels(self.values)

    def write(self, text: str, at: tuple[float, float], style: Style, anchor: Anchor = Anchor.LEFT) -> None:
        """Write one line; ``at`` is (x, y) of the anchor on the baseline, around which the line is turned."""
        self.texts.append(text)
        self.stamp(text, at, style, anchor)

    def stamp(self, text: str, at: tuple[float, float], style: Style, anchor: Anchor = Anchor.LEFT) -> None:
        """Write one letter of a longer text; `texts` stays as it is."""
        self.ink(drawn_letters(self.values.shape, text, at, style, anchor), style)

    def write_lines(self, lines: str, at: tuple[float, float], style: Style, *, spacing: float = 1.4) -> None:
        """Write several lines, left aligned, downwards from ``at``."""
        for number, line in enumerate(lines.split("\n")):
            self.write(line, (at[0], at[1] + number * spacing * style.size), style)

    def write_on_circle(
        self, text: str, centre: tuple[float, float], radius: float, style: Style, *, arc: float
    ) -> None:
        """Write along the top of a circle, over ``arc`` degrees."""
        self.texts.append(text)
        for number, letter in enumerate(text):
            degrees = arc * (number / (len(text) - 1) - 0.5)
            angle = math.radians(degrees)
            place = (centre[0] + radius * math.sin(angle), centre[1] - radius * math.cos(angle))
            self.stamp(letter, place, attrs.evolve(style, turn=-degrees), Anchor.MIDDLE)

    def write_dancing(self, text: str, at: tuple[float, float], style: Style, *, seed: int) -> None:
        """Write letter by letter, each a little turned, raised and larger, as sprayed on a wall."""
        self.texts.append(text)
        random, x = np.random.default_rng(seed), at[0]
        for letter in text:
            size = int(style.size * random.uniform(0.88, 1.14))
            loose = attrs.evolve(style, size=size, turn=float(random.uniform(-11, 11)))
            self.stamp(letter, (x, at[1] + float(random.uniform(-0.07, 0.07)) * style.size), loose)
            x += advance(letter, loose) * 0.97

    def write_digits(self, text: str, at: tuple[float, float], style: Style) -> None:
        """Write digits in seven slanted segments with a glow, as old cameras stamp the date."""
        self.texts.append(text)
        letters = seven_segments(self.values.shape, text, at, style.size)
        self.ink(cv2_blur(letters, style.size * 0.12) * np.float32(0.6), attrs.evolve(style, opacity=0.6))
        self.ink(letters, style)

    def ink(self, letters: Floats, style: Style) -> None:
        """Lay ink (0 to 1) on the image: shadow first, then outline, then the letters."""
        body = _thicker(letters, style.outline) if style.outline else letters
        if style.shadow:
            reach = max(2, style.size // 18)
            soft = cv2_blur(np.roll(body, (reach, reach), (0, 1)), reach * 0.6)
            self._blend(soft * np.float32(style.shadow), BLACK)
        if style.outline:
            self._blend(body * np.float32(style.opacity), style.outline_colour)
        self._blend(letters * np.float32(style.opacity), style.colour)

    def _blend(self, share: Floats, colour: Colour) -> None:
        part = share[..., None]
        self.values = self.values * (1 - part) + np.array(colour, np.float32) * part


def drawn_letters(
    shape: tuple[int, ...], text: str, at: tuple[float, float], style: Style, anchor: Anchor
) -> Floats:
    """Return the ink (0 to 1) of one line of text on a canvas of the given shape."""
    strip, baseline = _strip(text, style)
    angle, (x, y) = math.radians(style.turn), at
    start = (anchor.value * advance(text, style) + style.size, baseline)
    cosine, sine = math.cos(angle), math.sin(angle)
    placed = np.array(
        [
            [cosine, sine, x - cosine * start[0] - sine * start[1]],
            [-sine, cosine, y + sine * start[0] - cosine * start[1]],
        ],
        np.float32,
    )
    canvas = cv2.warpAffine(strip, placed, (shape[1], shape[0]), flags=cv2.INTER_LINEAR)
    return np.asarray(canvas, np.float32)


def advance(text: str, style: Style) -> float:
    """Return how far a line of text reaches to the right, in pixels."""
    if style.face is Face.AILERON:
        return float(ImageFont.load_default(style.size).getlength(text))
    face = cv2.FontFace(style.face.value)
    if (
        text.strip() != text or not text
    ):  # trailing blanks are measured as nothing: measure them between two marks
        framed, marks = (
            cv2.getTextSize((0, 0), t, (0, 0), face, style.size, style.weight) for t in (f"|{text}|", "||")
        )
        return float(framed[2] - marks[2])
    return float(cv2.getTextSize((0, 0), text, (0, 0), face, style.size, style.weight)[2])


def seven_segments(shape: tuple[int, ...], text: str, at: tuple[float, float], size: int) -> Floats:
    """Return the ink of digits drawn in seven segments, starting at ``at`` on the baseline."""
    canvas = Image.new("L", (shape[1] * 2, shape[0] * 2), 0)
    pen = ImageDraw.Draw(canvas)
    high, wide, thick = size * 2.0, size * 1.05, max(2.0, size * 0.2)
    x = at[0] * 2
    for sign in text:
        for (x0, y0), (x1, y1) in _SEGMENTS.get(sign, ()):
            ends = [
                (x + px * wide + py * high * 0.1, at[1] * 2 - py * high) for px, py in ((x0, y0), (x1, y1))
            ]
            pen.line(ends, fill=255, width=int(thick))
        x += wide * (0.75 if sign in ":'" else 1.45)
    half = canvas.resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(half, np.float32) / np.float32(255)


def cv2_blur(values: Floats, sigma: float) -> Floats:
    """Blur."""
    return np.asarray(cv2.GaussianBlur(values, (0, 0), max(0.3, sigma)), np.float32)


def _strip(text: str, style: Style) -> tuple[Floats, float]:
    """Draw a line of text alone; returns its ink and the height of its baseline."""
    width, height = int(advance(text, style)) + 2 * style.size, int(style.size * 2.4)
    baseline = int(style.size * 1.5)
    if style.face is Face.AILERON:
        image = Image.new("L", (width, height), 0)
        ImageDraw.Draw(image).text(
            (style.size, baseline), text, 255, ImageFont.load_default(style.size), anchor="ls"
        )
        return np.asarray(image, np.float32) / np.float32(255), baseline
    canvas = np.zeros((height, width, 3), np.uint8)
    cv2.putText(
        canvas, text, (style.size, baseline), WHITE, cv2.FontFace(style.face.value), style.size, style.weight
    )
    return canvas[..., 0].astype(np.float32) / np.float32(255), baseline


def _thicker(letters: Floats, pixels: int) -> Floats:
    round_ = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2_blur(np.asarray(cv2.dilate(letters, round_), np.float32), 0.5)


_TOP, _MIDDLE, _BOTTOM = ((0, 1), (1, 1)), ((0, 0.5), (1, 0.5)), ((0, 0), (1, 0))
_UPPER_LEFT, _UPPER_RIGHT = ((0, 0.5), (0, 1)), ((1, 0.5), (1, 1))
_LOWER_LEFT, _LOWER_RIGHT = ((0, 0), (0, 0.5)), ((1, 0), (1, 0.5))
_SEGMENTS = {
    "0": (_TOP, _BOTTOM, _UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT),
    "1": (_UPPER_RIGHT, _LOWER_RIGHT),
    "2": (_TOP, _MIDDLE, _BOTTOM, _UPPER_RIGHT, _LOWER_LEFT),
    "3": (_TOP, _MIDDLE, _BOTTOM, _UPPER_RIGHT, _LOWER_RIGHT),
    "4": (_MIDDLE, _UPPER_LEFT, _UPPER_RIGHT, _LOWER_RIGHT),
    "5": (_TOP, _MIDDLE, _BOTTOM, _UPPER_LEFT, _LOWER_RIGHT),
    "6": (_TOP, _MIDDLE, _BOTTOM, _UPPER_LEFT, _LOWER_LEFT, _LOWER_RIGHT),
    "7": (_TOP, _UPPER_RIGHT, _LOWER_RIGHT),
    "8": (_TOP, _MIDDLE, _BOTTOM, _UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT),
    "9": (_TOP, _MIDDLE, _BOTTOM, _UPPER_LEFT, _UPPER_RIGHT, _LOWER_RIGHT),
    ":": (((0.2, 0.22), (0.2, 0.3)), ((0.2, 0.7), (0.2, 0.78))),
    "'": (((0.2, 0.8), (0.2, 1)),),
}


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


def _enlarged(pixels: Pixels) -> Image.Image:
    """Return an image twice as large to draw on: made small again, its edges are smooth."""
    return Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2), Image.Resampling.BOX)


def _reduced(image: Image.Image) -> Pixels:
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX), np.uint8)
