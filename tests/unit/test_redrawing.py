"""The sandbox redraws images as the vendor does: another size, slightly moved, in slightly other colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flux_async.imaging import ImageFormat, decode_image, encode_image
from flux_async.sandbox.faults import Fault
from flux_async.sandbox.image_pipeline import ImageJob
from flux_async.sandbox.image_worker import PIXELS, make_result, size_of
from flux_async.sandbox.redrawing import cut_off, invent_object, redraw
from flux_async.sandbox.requests import Kind

MOST_MOVED = 0.02
"""Of a side, in both directions."""


def dice(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def marked(height: int, width: int) -> np.ndarray:
    """Return a grey image with a bright mark near each corner."""
    image = np.full((height, width, 3), 90, np.uint8)
    for row in (height // 10, height - height // 10):
        for column in (width // 10, width - width // 10):
            image[row - 3 : row + 3, column - 3 : column + 3] = 250
    return image


def places(image: np.ndarray) -> np.ndarray:
    """Return where the four marks are, as shares of the sides."""
    bright = image.mean(2) > 170
    height, width = bright.shape
    found = []
    for rows in (slice(height // 2), slice(height // 2, None)):
        for columns in (slice(width // 2), slice(width // 2, None)):
            inside = np.zeros_like(bright)
            inside[rows, columns] = bright[rows, columns]
            found.append(np.argwhere(inside).mean(0) + 0.5)
    return np.array(found) / (height, width)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [(192, 128), (480, 320)], ids=["smaller", "larger"])
def test_no_place_moves_by_more_than_two_percent(seed: int, size: tuple[int, int]) -> None:
    """Zoomed and shifted, every mark is still there, at most 2 % of a side away, but somewhere else."""
    image = marked(200, 300)
    redrawn = redraw(image, size, dice(seed))
    assert redrawn.shape == (size[1], size[0], 3)
    moved = np.abs(places(redrawn) - places(image))
    assert 0.0005 < moved.max() <= MOST_MOVED + 0.5 / min(size)


@pytest.mark.parametrize("seed", range(8))
def test_colours_change_slightly(seed: int) -> None:
    """Colours differ, by less than a tenth of the range."""
    image = np.full((40, 60, 3), (200, 120, 40), np.uint8)
    change = np.abs(redraw(image, (60, 40), dice(seed)).astype(int) - image)
    assert 0 < change.max() < 25


def test_the_same_numbers_give_the_same_image() -> None:
    """Seed and image decide every pixel."""
    image = marked(60, 90)
    assert (redraw(image, (96, 64), dice(4)) == redraw(image, (96, 64), dice(4))).all()
    assert (redraw(image, (96, 64), dice(4)) != redraw(image, (96, 64), dice(5))).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1)], ids=str)
def test_the_smallest_images_are_redrawn(shape: tuple[int, int]) -> None:
    """An image of one pixel has all of it, too."""
    image, text = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.bool_)
    assert redraw(image, (32, 16), dice()).shape == (16, 32, 3)
    assert cut_off(image, text).size
    assert (invent_object(image, text, dice()) != image).any()


@pytest.mark.parametrize("seed", range(4))
def test_an_object_is_invented_where_no_text_is(seed: int) -> None:
    """It differs clearly from what it hides; the text and most of the rest are as they were."""
    image, text = np.full((100, 150, 3), 128, np.uint8), np.zeros((100, 150), np.bool_)
    text[:, :110] = True
    invented = invent_object(image, text, dice(seed))
    changed = (invented != image).any(2)
    assert 0.005 < changed.mean() < 0.03
    assert not changed[text].any()
    assert np.abs(invented[changed].astype(int) - 128).min() > 100
    assert (image == 128).all()


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(10), slice(None)),
        (slice(90, None), slice(None)),
        (slice(None), slice(15)),
        (slice(None), slice(135, None)),
    ],
    ids=["top", "bottom", "left", "right"],
)
def test_the_side_with_the_text_is_cut_off(rows: slice, columns: slice) -> None:
    """About two thirds of one side are left, and no text."""
    text = np.zeros((100, 150), np.bool_)
    text[rows, columns] = True
    image = np.repeat(text[..., None], 3, 2).astype(np.uint8) * 255
    part = cut_off(image, text)
    assert part.size == pytest.approx(0.65 * image.size, rel=0.02)
    assert not part.any()


# --- the worker -------------------------------------------------------------------------------------------


def result(folder: Path, image: np.ndarray, alpha: np.ndarray | None = None, **options: object) -> np.ndarray:
    """Return what the worker makes of an image for an edit, which needs no text models."""
    source = folder / "input.png"
    source.write_bytes(encode_image(image, ImageFormat.PNG, alpha=alpha))
    job = {
        "kind": Kind.EDIT,
        "prompt": "Make it blue",
        "source": source,
        "ratio": None,
        "output_format": "png",
        "quality": "fast",
        "exact": False,
        "seed": 1,
        "faults": frozenset(),
        "threads": 1,
        "result": folder / "result.png",
        "before": folder / "before.jpg",
        "after": folder / "after.jpg",
    }
    decoded = decode_image(source.read_bytes())
    made, opacity = make_result(ImageJob(**job | options), decoded.pixels, decoded.alpha)
    return made if opacity is None else np.dstack([made, opacity])


LEFT = {"kind": Kind.TEXT_REMOVAL, "faults": frozenset({Fault.TEXT_LEFT})}


@pytest.mark.parametrize("shape", [(40, 60), (70, 50), (20, 400), (300, 3)], ids=str)
def test_a_result_is_about_a_megapixel(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Its sides are multiples of 16, in the input's ratio, but no wider than 21:9."""
    made = result(tmp_path, marked(*shape), **LEFT)
    height, width = made.shape[:2]
    assert height % 16 == width % 16 == 0
    assert height * width == pytest.approx(PIXELS, rel=0.1)
    ratio = min(21 / 9, max(9 / 21, shape[1] / shape[0]))
    assert width / height == pytest.approx(ratio, rel=0.03)


def test_a_requested_ratio_decides_the_size(tmp_path: Path) -> None:
    """The result has the size of the ratio."""
    assert result(tmp_path, marked(40, 60), ratio="16:9").shape[:2] == size_of("16:9")[::-1]


def test_exact_changes_nothing_but_the_text(tmp_path: Path) -> None:
    """Text that stays is the whole difference there: none."""
    image = marked(40, 60)
    assert (result(tmp_path, image, exact=True, **LEFT) == image).all()


def test_seed_and_content_decide_the_result(tmp_path: Path) -> None:
    """Same seed and file, same result, for every kind of job; another seed, another result."""
    image = marked(40, 60)
    one = result(tmp_path, image, **LEFT)
    assert (one == result(tmp_path, image, **LEFT)).all()
    assert (one != result(tmp_path, image, seed=-2, **LEFT)).any()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    """The vendor's results are opaque; exact ones keep their transparency unless they are cut."""
    image, alpha = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    flat = result(tmp_path, image, alpha, **LEFT)
    assert flat.shape[2] == 3
    assert flat[:, : flat.shape[1] // 3].min() > 200
    kept = result(tmp_path, image, alpha, exact=True, **LEFT)
    assert (kept[..., 3] == alpha).all()
    cut = result(tmp_path, image, alpha, exact=True, faults=frozenset({Fault.CROP}))
    assert cut.shape == (26, 60, 3)


def test_faults_change_what_the_result_shows(tmp_path: Path) -> None:
    """An object is invented, a third is cut off, or both."""
    image = np.full((40, 60, 3), 128, np.uint8)
    plain = result(tmp_path, image, exact=True)
    invented = result(tmp_path, image, exact=True, faults=frozenset({Fault.HALLUCINATE}))
    assert invented.shape == plain.shape
    assert (invented != plain).any()
    both = result(tmp_path, image, exact=True, faults=frozenset({Fault.HALLUCINATE, Fault.CROP}))
    assert both.size < plain.size
