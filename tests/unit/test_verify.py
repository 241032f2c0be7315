"""verify: text left, damage and cropping are found; another size, a shift and other colours are none."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib

import attrs
import cv2
import numpy as np
import pytest
from PIL import Image

from flux_async import InvalidInput, Verdict, VerdictKind, has_text, preserve, verify
from flux_async.cli.commands import cli
from flux_async.cli.terminal import run_cli
from flux_async.imaging.image_codec import open_image
from flux_async.imaging.text_detection import TextLine, TextRegion
from flux_async.sandbox.drawing import Sheet, Style, gradient
from flux_async.verification import comparison
from flux_async.verification.comparison import View, compare, text_left, view_file
from flux_async.verification.judging import judge
from flux_async.verification.loading import load
from flux_async.verification.text_areas import TextLines

SHAPE = (150, 200)
NO_LINES = TextLines(regions=(), shape=SHAPE)
MOVED = np.array([[1.01, 0.004, -2.3], [-0.004, 1.008, 1.7], [0, 0, 1]])
"""Where a pixel of the original is in the result, before that is enlarged."""
CLEAN = Verdict(
    kind=VerdictKind.UNSURE,
    no_text=False,
    text_left=0.0,
    background_kept=0.99,
    changed_elsewhere=0.0,
    covered=0.98,
    added=0.02,
    original_size=(200, 150),
    result_size=(400, 300),
)


def blobs(seed=1):
    """Return a colourful image with structure everywhere and no text."""
    values = np.random.default_rng(seed).normal(size=(*SHAPE, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(values, (0, 0), 3) + cv2.GaussianBlur(values, (0, 0), 12) * 2
    return np.clip(128 + smooth / smooth.std() * 36, 0, 255).astype(np.uint8)


def view(pixels):
    """Return an image as it is compared."""
    return View(pixels=np.ascontiguousarray(pixels), alpha=None, size=pixels.shape[1::-1])


def edited(pixels, matrix=MOVED):
    """Return what an editor makes of an image: moved, enlarged, with other colours."""
    moved = cv2.warpPerspective(pixels, matrix, SHAPE[::-1], borderMode=cv2.BORDER_REFLECT_101)
    large = cv2.resize(moved, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    return np.clip(large * np.float32([0.96, 1.0, 1.03]) + np.float32([6, -3, 2]), 0, 255).astype(np.uint8)


def spoilt(pixels):
    """Return an image with a patch of another colour."""
    changed = pixels.copy()
    changed[100:120, 125:150] = (230, 40, 60)
    return changed


def file_of(pixels, kind="PNG", mode="RGB", **options):
    """Return the bytes of a file."""
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("figures", "kind", "reason"),
    [
        ({}, VerdictKind.CLEAN, ""),
        ({"background_kept": 0.3, "text_left": 0.9}, VerdictKind.DAMAGED, "something else"),
        (
            {"text_left": 0.4, "words": ("SALE", "50%"), "covered": 0.5},
            VerdictKind.TEXT_LEFT,
            "40%.*SALE, 50%",
        ),
        ({"covered": 0.5, "changed_elsewhere": 0.2}, VerdictKind.CROPPED, "50% of the original"),
        ({"recoloured": 60.0}, VerdictKind.DAMAGED, "colours"),
        ({"added": 0.5}, VerdictKind.CROPPED, "50% of the result"),
        ({"changed_elsewhere": 0.2}, VerdictKind.DAMAGED, "20.0% of the area outside the text"),
        ({"text_left": 0.01, "words": ("a1",)}, VerdictKind.UNSURE, "a1"),
        ({"changed_elsewhere": 0.0015}, VerdictKind.UNSURE, "0.1%|0.2%"),
        ({"recoloured": 14.0}, VerdictKind.UNSURE, "colours"),
    ],
    ids=[
        "clean",
        "other content",
        "text left",
        "cropped",
        "recoloured",
        "padded",
        "changed",
        "little text left",
        "little changed",
        "a little recoloured",
    ],
)
def test_the_gravest_finding_is_the_verdict(figures, kind, reason) -> None:
    """Other content, then text left, cropped, changed; close to a limit it is unsure."""
    found, words = judge(attrs.evolve(CLEAN, **figures))
    assert found is kind
    assert bool(words) == bool(reason)
    assert re.search(reason, words)


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (edited, VerdictKind.CLEAN),
        (lambda image: edited(spoilt(image)), VerdictKind.DAMAGED),
        (lambda image: edited(blobs(seed=2)), VerdictKind.DAMAGED),
        (lambda image: edited(image[30:, 40:]), VerdictKind.CROPPED),
        (
            lambda image: cv2.copyMakeBorder(edited(image), 0, 0, 90, 90, cv2.BORDER_REFLECT),
            VerdictKind.CROPPED,
        ),
        (lambda image: np.full((1024, 1024, 3), 127, np.uint8), VerdictKind.DAMAGED),
        (lambda image: image[:20, :20], VerdictKind.UNSURE),
    ],
    ids=["moved and tinted", "patch", "other image", "cropped", "padded", "blank", "tiny"],
)
def test_an_image_without_text_is_compared(result, kind) -> None:
    """A shift, another size and other colours are no damage; the verdict says that there is no text."""
    image = blobs()
    verdict = compare(view(image), view(result(image)), NO_LINES, search=False)
    assert (verdict.kind, verdict.no_text) == (kind, True)


def test_size_and_alignment_are_reported() -> None:
    """Sizes of both files; where a pixel of the original is in the result; scale and shift."""
    verdict = compare(view(blobs()), view(edited(blobs())), NO_LINES, search=False)
    assert (verdict.original_size, verdict.result_size) == ((200, 150), (400, 300))
    place = np.array(verdict.alignment) @ (100, 75, 1)
    expected = (MOVED @ (100, 75, 1))[:2] * 2 + 0.5
    assert np.abs(place - expected).max() < 0.5
    assert verdict.scale == pytest.approx(1.009, abs=0.002)
    assert verdict.shift == pytest.approx(((MOVED @ (100, 75, 1)) - (100, 75, 1))[:2], abs=0.5)
    assert verdict.covered > 0.95
    assert verdict.background_kept > 0.98


def test_what_changes_beside_the_text_went_with_it() -> None:
    """The box of a caption is no damage; the same patch elsewhere is."""
    corners = np.array([(127, 105), (147, 105), (147, 115), (127, 115)], np.float32)
    line = TextLines(regions=(TextRegion.of(corners, SHAPE, certain=True),), shape=SHAPE)
    boxed = view(spoilt(blobs()))
    assert compare(boxed, view(edited(blobs())), line, search=False).kind is VerdictKind.CLEAN
    assert compare(boxed, view(edited(blobs())), NO_LINES, search=False).kind is VerdictKind.DAMAGED


def test_what_is_left_of_a_line_is_no_taller_than_it_was(monkeypatch) -> None:
    """A texture around the place of a line, taken for one, is not its text."""
    line = level_line(60, 20, 80, 180)
    texture, rest = level_line(40, 10, 100, 190), level_line(61, 20, 79, 90)
    monkeypatch.setattr(
        comparison, "read_region", lambda _, region: TextLine(region=region, text="SALE", confidence=0.8)
    )
    shares = []
    for found in (texture, rest):
        monkeypatch.setattr(comparison, "find_text", lambda *_, found=found, **__: (found,))
        lines = TextLines(regions=(line,), shape=SHAPE)
        shares.append(text_left(view(blobs()), view(blobs()), np.eye(3), lines)[0])
    assert shares[0] == 0
    assert 0.3 < shares[1] < 0.5


@pytest.mark.parametrize(
    ("text", "confidence", "certain", "left"),
    [
        ("AN", 0.8, False, False),
        ("AN", 0.8, True, True),
        ("AN", 0.95, False, True),
        ("SALE", 0.7, False, True),
    ],
)
def test_two_letters_must_be_read_well(monkeypatch, text, confidence, certain, left) -> None:
    """Unless it is certain that they are text: textures are read as two letters now and then."""
    line = attrs.evolve(level_line(60, 20, 80, 180), certain=certain)
    read = TextLine(region=line, text=text, confidence=confidence)
    monkeypatch.setattr(comparison, "read_region", lambda *_: read)
    monkeypatch.setattr(comparison, "find_text", lambda *_, **__: (line,))
    lines = TextLines(regions=(line,), shape=SHAPE)
    share, words = text_left(view(blobs()), view(blobs(seed=2)), np.eye(3), lines)
    assert (share > 0.9, words) == (left, (text,) if left else ())


def level_line(top, left, bottom, right):
    """Return a level line of text."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return TextRegion.of(np.array(corners, np.float32), SHAPE, certain=False)


def png_header(width, height):
    """Return a PNG file that is nothing but a header."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"no image",
        file_of(blobs())[:5000],
        file_of(blobs(), "JPEG")[:3000],
        file_of(blobs(), "WEBP")[:3000],
        png_header(30_000, 30_000),
        b"GIF89a" + struct.pack("<HHBBB", 30_000, 30_000, 0, 0, 0),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=[
        "empty",
        "text",
        "truncated PNG",
        "truncated JPEG",
        "truncated WebP",
        "900 megapixels of PNG",
        "of GIF",
        "of BMP",
    ],
)
def test_files_that_cannot_be_used_are_named(file) -> None:
    """As the original or the result, or as the image that may have text."""
    good = file_of(np.zeros((1, 1, 3), np.uint8))
    for function in (verify, preserve):
        with pytest.raises(InvalidInput, match="original image cannot be used"):
            function(file, good)
        with pytest.raises(InvalidInput, match="result image cannot be used"):
            function(good, file)
    with pytest.raises(InvalidInput, match="cannot be used"):
        has_text(file)


def test_an_image_of_one_pixel_is_unsure() -> None:
    """There is nothing to compare."""
    dot = file_of(np.zeros((1, 1, 3), np.uint8))
    assert verify(dot, dot).reason == "the images are too small to be compared"
    assert preserve(dot, dot).report.verdict == "refused"
    assert not has_text(dot)


def turned(orientation):
    """Return a JPEG whose EXIF data say how it is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(blobs())
    out = io.BytesIO()
    upside = image.transpose(back[orientation]) if orientation in back else image
    upside.save(out, "JPEG", quality=95, subsampling=0, exif=exif)
    return out.getvalue()


def deep(_):
    """Return a greyscale PNG with 16 bits."""
    grey = cv2.cvtColor(blobs(), cv2.COLOR_RGB2GRAY).astype(np.uint16) << 8
    return cv2.imencode(".png", grey)[1].tobytes()


def animated(_):
    """Return a GIF of two frames."""
    frames = [Image.fromarray(blobs()), Image.fromarray(blobs(2))]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def clear_palette(_):
    """Return a palette PNG whose darkest colour is transparent."""
    out = io.BytesIO()
    image = Image.fromarray(blobs()).quantize(200)
    image.save(out, "PNG", transparency=0)
    return out.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        *(lambda _, number=number: turned(number) for number in range(1, 9)),
        lambda image: file_of(image, "JPEG", "CMYK", quality=95),
        lambda image: file_of(image, mode="L"),
        lambda image: file_of(image, mode="LA"),
        lambda image: file_of(image, "WEBP", "RGBA", lossless=True),
        clear_palette,
        deep,
        animated,
    ],
    ids=[
        *(f"EXIF {number}" for number in range(1, 9)),
        "CMYK",
        "L",
        "LA",
        "RGBA",
        "palette",
        "16 bit",
        "GIF",
    ],
)
def test_every_kind_of_file_is_seen_upright(make) -> None:
    """It has the pixels of the plain image, up to losses of its format; a palette's clear colour is white.

    That holds for verify and for preserve.
    """
    file = make(blobs())
    seen = view_file(file, "original", 1_000_000)
    assert seen.size == (200, 150)
    laid_over = load(open_image(file)).pixels
    grey = [
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int) for image in (seen.pixels, laid_over, blobs())
    ]
    assert np.median(np.abs(grey[0] - grey[2])) < 6
    assert np.median(np.abs(grey[1] - grey[2])) < 6


def test_transparent_pixels_are_white() -> None:
    """As a viewer on a white page shows them; a large image is reduced."""
    clear = np.zeros((1200, 1200, 4), np.uint8)
    out = io.BytesIO()
    Image.fromarray(clear).save(out, "PNG")
    seen = view_file(out.getvalue(), "original", 2_000_000)
    assert seen.shape == (1025, 1025)
    assert seen.pixels.min() == 255


@pytest.fixture(scope="module")
def poster(tmp_path_factory):
    """Paths of a small poster: with its text, without, and with half of it."""
    folder = tmp_path_factory.mktemp("poster")
    clean = gradient((480, 320), (24, 40, 120), (250, 130, 70))
    sheet = Sheet.over(clean)
    sheet.write("SUMMER SALE", (40, 120), Style(size=56, weight=800))
    sheet.write("everything half price", (60, 260), Style(size=36, weight=600))
    half = sheet.pixels.copy()
    half[:180] = clean[:180]
    paths = {}
    for name, pixels in {"text": sheet.pixels, "clean": clean, "half": half}.items():
        paths[name] = folder / f"{name}.png"
        Image.fromarray(pixels).save(paths[name])
    return paths


def test_text_that_is_left_is_read(poster) -> None:
    """A clean result has none; of half the text the words are named."""
    assert verify(poster["text"], poster["clean"]).kind is VerdictKind.CLEAN
    verdict = verify(poster["text"], poster["half"])
    assert verdict.kind is VerdictKind.TEXT_LEFT
    assert verdict.words == ("everything half price",)
    assert 0.3 < verdict.text_left < 0.7
    assert has_text(poster["half"])
    assert not has_text(poster["clean"])


def test_the_command_prints_the_verdict(poster, capsys, monkeypatch) -> None:
    """As a line or as JSON; the exit code is 0 for a clean result only."""
    files = str(poster["text"]), str(poster["half"])
    monkeypatch.setattr("sys.argv", ["flux-async", "verify", *files])
    assert run_cli(cli) == 1
    line = capsys.readouterr().out
    assert line.startswith("text_left: ")
    assert line.endswith("everything half price\n")
    monkeypatch.setattr("sys.argv", ["flux-async", "verify", "--json", *files])
    assert run_cli(cli) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["no_text"], answer["original_size"]) == ("text_left", False, [480, 320])
    monkeypatch.setattr(
        "flux_async.cli.image_checks.verify", lambda *_: attrs.evolve(CLEAN, kind=VerdictKind.CLEAN)
    )
    monkeypatch.setattr("sys.argv", ["flux-async", "verify", *files])
    assert run_cli(cli) == 0
    assert capsys.readouterr().out == "clean\n"
