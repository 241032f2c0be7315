"""Writing on pictures with the fonts that travel inside the wheels the sandbox needs anyway.

A fresh machine may have no fonts at all. OpenCV 5 carries Rubik (SIL Open Font License; upright and italic,
any weight) and, for every other script, WenQuanYi Micro Hei (Apache-2.0); Pillow carries Aileron (CC0).
Date stamps are drawn in seven segments without a font.
"""

from __future__ import annotations

import enum
import math
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
    """The typefaces at hand; the values are OpenCV's names, but for Aileron."""

    RUBIK = "sans"
    RUBIK_ITALIC = "italic"
    MICRO_HEI = "uni"
    AILERON = "aileron"


class Anchor(enum.Enum):
    """Which point of the text's baseline its place names."""

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
    """A picture being written on; it remembers what was written."""

    values: Floats
    texts: list[str] = attrs.field(factory=list)

    @classmethod
    def over(cls, picture: Pixels) -> Sheet:
        """Start with a clean picture."""
        return cls(picture.astype(np.float32))

    @property
    def pixels(self) -> Pixels:
        """The picture as it is now."""
        return to_pixels(self.values)

    def write(self, text: str, at: tuple[float, float], style: Style, anchor: Anchor = Anchor.LEFT) -> None:
        """Write one line; ``at`` is (x, y) of the anchor on the baseline, around which the line is turned."""
        self.texts.append(text)
        self.stamp(text, at, style, anchor)

    def stamp(self, text: str, at: tuple[float, float], style: Style, anchor: Anchor = Anchor.LEFT) -> None:
        """Write without remembering: a letter of a longer text."""
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
        """Lay ink (0 to 1) on the picture: shadow first, then outline, then the letters."""
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
