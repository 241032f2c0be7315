"""What a generative editor returns for an image without text, simulated from a known clean image.

The result has another size, is moved and stretched by up to a few percent, has other colours, is softened and
sharpened, grained, and saved as JPEG. On request it is warped, cropped, padded, changed elsewhere, or the
text is left in it. Nothing of it was fitted to real results: there were none.
"""

from __future__ import annotations

import io
import math

import attrs
import cv2
import numpy as np
from PIL import Image

from flux_async.imaging.arrays import Floats, Mask, Pixels

_LOW = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
]
SIZES = [*_LOW, (1024, 1024), *[(width, height) for height, width in _LOW]]
"""Sizes of results, width and height: about a megapixel."""


@attrs.frozen(kw_only=True)
class Edit:
    """How an editor misbehaves.

    Attributes:
        preset: Whether the size is one of ``SIZES``, else about a megapixel in the image's own ratio.
        move: Largest shift, scale and stretch, as a share.
        drift: Strength of the change of all colours; ``local_drift`` that of its variation over the image.
        elastic: Largest smooth displacement, in pixels of the result.
        hallucinate: Number of round areas that show something else; ``near`` puts them at the text.
        left: Which text is left: none, "all", "half", or "garbled" into other words.
        crop: "16:9", "16:9 low" or "zoom" cut off parts, "pad" adds some.
        invent: Whether the ground under the text is plausible instead of true.
    """

    preset: bool = True
    move: float = 0.012
    drift: float = 1.0
    local_drift: float = 1.0
    elastic: float = 0.0
    hallucinate: int = 0
    near: bool = False
    left: str = ""
    crop: str = ""
    invent: bool = False


@attrs.frozen(kw_only=True, eq=False)
class Edited:
    """The result as a JPEG file, where each pixel of the original is in it, and how much text it contains."""

    file: bytes
    to_result: np.ndarray
    inside: float


def edit_image(original: Pixels, clean: Pixels, edit: Edit, rng: np.random.Generator) -> Edited:
    """Return the result for an original whose clean version is known."""
    text = np.abs(original.astype(int) - clean).max(2) > 6
    content, frame = _cropped(_content(original, clean, text, edit, rng), edit.crop)
    resized, size = _resized(content, rng, preset=edit.preset)
    moved, affine = _moved(resized, edit, rng)
    matrix = affine @ size @ frame
    place = cv2.warpPerspective(text.astype(np.uint8), matrix, resized.shape[1::-1]) > 0
    for _ in range(edit.hallucinate):
        _hallucinate(moved, place, rng, near=edit.near)
    out = _developed(_recoloured(moved, edit, rng), rng)
    file = io.BytesIO()
    Image.fromarray(out).save(file, "JPEG", quality=int(rng.integers(85, 96)))
    return Edited(file=file.getvalue(), to_result=matrix, inside=_share_inside(text, matrix, resized.shape))


def _content(original: Pixels, clean: Pixels, text: Mask, edit: Edit, rng: np.random.Generator) -> Pixels:
    """Return what the editor shows, before it moves and recolours it."""
    if edit.left == "all":
        return original.copy()
    if edit.left == "half":
        middle = clean.shape[1] // 2
        return np.concatenate([clean[:, :middle], original[:, middle:]], 1)
    if edit.left == "garbled":
        return _garbled(original, text, rng)
    return _invented(clean, text) if edit.invent else clean.copy()


def _garbled(original: Pixels, text: Mask, rng: np.random.Generator) -> Pixels:
    """Return the original with the pieces of its text shuffled."""
    rows, columns = np.nonzero(text)
    window = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    content = original.copy()
    pieces = max(2, int(np.ptp(columns)) // 90)
    cuts = np.array_split(original[window], pieces, 1)
    content[window] = np.concatenate([cuts[number] for number in rng.permutation(pieces)], 1)
    return content


def _invented(clean: Pixels, text: Mask) -> Pixels:
    """Return the clean image with other details under the text."""
    hole = cv2.dilate(text.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(np.float32)
    share = cv2.GaussianBlur(hole, (0, 0), 2)[..., None]
    height, width = clean.shape[:2]
    rolled = np.roll(clean, (height // 17, width // 13), (0, 1)).astype(np.float32)
    other = cv2.GaussianBlur(rolled, (0, 0), 1.0)
    coarse = [
        cv2.GaussianBlur(values.astype(np.float32), (0, 0), max(height, width) / 40)
        for values in (other, clean)
    ]
    invented = other - coarse[0] + coarse[1]
    return np.clip(clean * (1 - share) + invented * share, 0, 255).astype(np.uint8)


def _cropped(content: Pixels, crop: str) -> tuple[Pixels, np.ndarray]:
    """Return the part that the editor shows, and the map of places to it."""
    height, width = content.shape[:2]
    frame = np.eye(3)
    if crop.startswith("16:9"):
        keep = min(height, width * 9 // 16)
        top = height - keep if crop.endswith("low") else (height - keep) // 2
        frame[1, 2] = -top
        return content[top : top + keep], frame
    if crop == "zoom":
        high, wide = int(height * 0.62), int(width * 0.62)
        top, left = int((height - high) * 0.8), int((width - wide) * 0.8)
        frame[:2, 2] = -left, -top
        return content[top : top + high, left : left + wide], frame
    if crop == "pad":
        wide = max(width, math.ceil(height * 16 / 9))
        side = (wide - width) // 2
        frame[0, 2] = side
        padded = cv2.copyMakeBorder(content, 0, 0, side, wide - width - side, cv2.BORDER_REFLECT_101)
        return np.asarray(padded, np.uint8), frame
    return content, frame


def _resized(content: Pixels, rng: np.random.Generator, *, preset: bool) -> tuple[Pixels, np.ndarray]:
    height, width = content.shape[:2]
    if preset:
        size = min(SIZES, key=lambda each: abs(math.log(each[0] / each[1] * height / width)))
    else:
        scale = math.sqrt(1024 * 1024 * rng.uniform(0.92, 1.05) / (height * width))
        size = round(width * scale / 16) * 16, round(height * scale / 16) * 16
    smaller = size[0] * size[1] < width * height
    resized = cv2.resize(content, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    x, y = size[0] / width, size[1] / height
    return np.asarray(resized, np.uint8), np.array([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5], [0, 0, 1]])


def _moved(image: Pixels, edit: Edit, rng: np.random.Generator) -> tuple[Floats, np.ndarray]:
    """Return the image turned, scaled, stretched, shifted and warped, and the affine part of that."""
    height, width = image.shape[:2]
    angle, scale = rng.uniform(-0.004, 0.004) * edit.move / 0.012, 1 + rng.uniform(-1, 1) * edit.move
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    stretch = 1 + rng.uniform(-0.15, 0.15) * edit.move
    affine = np.array([[cosine * stretch, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    centre = np.array([width / 2, height / 2])
    shift = rng.uniform(-1, 1, 2) * edit.move * np.array([width, height]) * 0.6
    affine[:2, 2] = centre - affine[:2, :2] @ centre + shift
    back = np.linalg.inv(affine)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x = back[0, 0] * columns + back[0, 1] * rows + back[0, 2]
    y = back[1, 0] * columns + back[1, 1] * rows + back[1, 2]
    if edit.elastic:
        x, y = (axis + smooth_noise(rng, (height, width), 120) * edit.elastic for axis in (x, y))
    places = x.astype(np.float32), y.astype(np.float32)
    moved = cv2.remap(image, *places, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, np.float32), affine


def _hallucinate(image: Floats, text: Mask, rng: np.random.Generator, *, near: bool) -> None:
    """Change a round area of the image in place: another colour, blurred, or turned by 180 degrees."""
    height, width = image.shape[:2]
    side = int(rng.uniform(0.08, 0.16) * min(height, width))
    zone = cv2.dilate(text.astype(np.uint8), np.ones((21, 21), np.uint8)) > 0
    for _ in range(400):
        top, left = int(rng.integers(8, height - side - 8)), int(rng.integers(8, width - side - 8))
        window = slice(top, top + side), slice(left, left + side)
        if zone[window].any() == near:
            break
    disc = np.zeros((side, side), np.float32)
    cv2.circle(disc, (side // 2, side // 2), int(side * 0.42), (1,), -1)
    share = cv2.GaussianBlur(disc, (0, 0), 2)[..., None]
    before = image[window]
    kinds = (rng.uniform(40, 220, 3), cv2.GaussianBlur(before, (0, 0), side / 6) * 0.8, before[::-1, ::-1])
    image[window] = before * (1 - share) + kinds[int(rng.integers(3))] * share


def _recoloured(image: Floats, edit: Edit, rng: np.random.Generator) -> Floats:
    """Return the image with another brightness curve, contrast, saturation and tint, varying over it."""
    lab = cv2.cvtColor(np.clip(image, 0, 255) / np.float32(255), cv2.COLOR_RGB2LAB)
    lab[..., 0] = 100 * np.clip(lab[..., 0] / 100, 0, 1) ** (1 + rng.uniform(-0.06, 0.06) * edit.drift)
    gains = [1 + rng.uniform(-0.05, 0.05) * edit.drift, *(1 + rng.uniform(-0.08, 0.08, 2) * edit.drift)]
    lab = (lab - [50, 0, 0]) * gains + [50, 0, 0] + rng.uniform(-1, 1, 3) * [3, 2.5, 2.5] * edit.drift
    for channel, strength in enumerate((1.5, 1, 1)):
        lab[..., channel] += smooth_noise(rng, image.shape[:2], 260) * edit.local_drift * strength
    return np.asarray(cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB), np.float32) * 255


def _developed(image: Floats, rng: np.random.Generator) -> Pixels:
    """Return the image softened, sharpened and grained."""
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.45, 0.9))
    sharp = soft + rng.uniform(0.2, 0.7) * (soft - cv2.GaussianBlur(soft, (0, 0), 1.2))
    grained = sharp + rng.normal(0, rng.uniform(0.6, 1.8), sharp.shape)
    return np.clip(grained + 0.5, 0, 255).astype(np.uint8)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Floats:
    """Return a smooth random field whose largest absolute value is 1."""
    height, width = shape
    size = max(4, int(height * 3 / sigma)), max(4, int(width * 3 / sigma))
    small = rng.normal(size=size).astype(np.float32)
    field = cv2.GaussianBlur(
        cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), (0, 0), sigma / 3
    )
    return np.asarray(field / max(1e-6, float(np.abs(field).max())), np.float32)


def _share_inside(text: Mask, matrix: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the share of the text's pixels that lie inside the result."""
    rows, columns = np.nonzero(text)
    if not rows.size:
        return 1.0
    x, y, _ = matrix @ np.stack([columns, rows, np.ones_like(rows)])
    return float(((x > 0) & (x < shape[1] - 1) & (y > 0) & (y < shape[0] - 1)).mean())
