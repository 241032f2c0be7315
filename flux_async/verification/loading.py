"""Reads image files with their own channels, and writes composed ones as the original was.

Everything in between works on the upright image in red, green and blue, on white where it is transparent.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flux_async.errors import InvalidInput
from flux_async.imaging.image_codec import (
    SIXTEEN_BIT_MODES,
    ImageError,
    OpenedImage,
    eight_bit,
    open_image,
)
from flux_async.verification.report import PreserveRefusal

if TYPE_CHECKING:
    from flux_async.imaging.arrays import Mask, Pixels

Transpose = Image.Transpose
ORIENTATION = 0x0112
"""The EXIF tag that says how an image is turned to be upright."""
TO_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
OPPOSITE = {Transpose.ROTATE_90: Transpose.ROTATE_270, Transpose.ROTATE_270: Transpose.ROTATE_90}
"""Turns that another one undoes; each of the others undoes itself."""

HOLDS = {
    "png": {"L", "LA", "P", "RGB", "RGBA"},
    "webp": {"RGB", "RGBA"},
    "jpeg": {"L", "RGB", "CMYK"},
    "tiff": {"L", "LA", "P", "RGB", "RGBA", "CMYK"},
}
"""Colour modes that each format can hold."""
MODES = HOLDS["tiff"]
SETTINGS: dict[str, dict[str, object]] = {
    # Level 6, Pillow's own, takes three times as long for files that are 3 % smaller.
    "png": {"compress_level": 3},
    "webp": {"lossless": True, "exact": True},
    "tiff": {"compression": "tiff_adobe_deflate"},
    "jpeg": {"quality": 95, "subsampling": 0},
}
KEPT = ("icc_profile", "exif", "dpi", "transparency")
"""Metadata that a composed file has from its original."""


@attrs.frozen(kw_only=True, eq=False)
class LoadedImage:
    """An upright image.

    ``channels`` are the file's own (height, width, channels), ``mode`` is Pillow's name for them. ``pixels``
    are the same in red, green and blue on white, ``alpha`` the opacity or None. ``turn`` made it upright.
    """

    channels: NDArray[np.uint8]
    mode: str
    pixels: Pixels
    alpha: NDArray[np.uint8] | None
    palette: NDArray[np.uint8] | None
    turn: Transpose | None
    info: dict[str, object]

    def turned_back(self, mask: Mask) -> Mask:
        """Return a mask of the upright image in the orientation of the file."""
        return (
            mask
            if self.turn is None
            else np.asarray(_turned_back(Image.fromarray(mask), self.turn), np.bool_)
        )


def open_file(data: bytes, what: str, max_pixels: int) -> OpenedImage:
    """Return the decoded file.

    Raises:
        InvalidInput: It is empty, no image, damaged or too large; ``what`` names it.
    """
    try:
        return open_image(data, max_pixels=max_pixels)
    except ImageError as error:
        raise InvalidInput(
            f"The {what} image cannot be used: {error}.", advice=f"Check the {what} image."
        ) from error


def unsupported(opened: OpenedImage) -> PreserveRefusal | None:
    """Return why an original cannot be composed without losing something, or None."""
    if opened.deep:
        return PreserveRefusal.UNSUPPORTED_DEPTH
    if opened.animated:
        return PreserveRefusal.SEVERAL_FRAMES
    return None if opened.image.mode in MODES else PreserveRefusal.UNSUPPORTED_MODE


def load(opened: OpenedImage) -> LoadedImage:
    """Return a decoded file as an upright image; modes that cannot be written become RGB or grey."""
    image = opened.image
    turn = TO_UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode in SIXTEEN_BIT_MODES:
        upright = eight_bit(upright)
    if upright.mode not in MODES:
        upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    channels = np.array(upright, np.uint8)
    pixels, alpha = _on_white(upright)
    return LoadedImage(
        channels=channels if channels.ndim == 3 else channels[..., None],  # noqa: PLR2004 - dimensions
        mode=upright.mode,
        pixels=pixels,
        alpha=alpha,
        palette=_palette(upright),
        turn=turn,
        info={key: image.info[key] for key in KEPT if key in image.info},
    )


def write(original: LoadedImage, channels: NDArray[np.uint8], wanted: str) -> tuple[bytes, str]:
    """Return changed channels of an image as a file like the original, and the file's format."""
    format_ = next(name for name in (wanted, "png", "tiff") if _holds(name, original))
    height, width = channels.shape[:2]
    image = Image.frombytes(original.mode, (width, height), np.ascontiguousarray(channels).tobytes())
    if original.palette is not None:
        image.putpalette(original.palette[:, :3].tobytes())
    if original.turn is not None:
        image = _turned_back(image, original.turn)
    out = io.BytesIO()
    image.save(out, format_.upper(), **SETTINGS[format_], **original.info)
    return out.getvalue(), format_


def _holds(format_: str, original: LoadedImage) -> bool:
    """Return whether a format holds the image's mode; only PNG holds a colour that means "transparent"."""
    return original.mode in HOLDS[format_] and (format_ == "png" or "transparency" not in original.info)


def _on_white(image: Image.Image) -> tuple[Pixels, NDArray[np.uint8] | None]:
    """Return the image in RGB, laid on white where it is transparent, and its opacity."""
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"), np.uint8), None
    whole = image.convert("RGBA")
    alpha = np.array(whole.getchannel("A"), np.uint8)
    laid = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
    return np.array(laid.convert("RGB"), np.uint8), alpha


def _palette(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return the palette as red, green, blue, opacity; None for other modes."""
    if image.mode != "P":
        return None
    colours = np.array(image.getpalette("RGBA"), np.uint8).reshape(-1, 4)
    return _with_transparency(colours, image.info.get("transparency"))


def _with_transparency(colours: NDArray[np.uint8], transparency: object) -> NDArray[np.uint8]:
    """Return a palette with the opacity from a file's ``transparency``: one clear index, or one byte each."""
    colours = colours.copy()
    if isinstance(transparency, bytes):
        colours[: len(transparency), 3] = np.frombuffer(transparency, np.uint8)[: len(colours)]
    elif isinstance(transparency, int) and transparency < len(colours):
        colours[transparency, 3] = 0
    return colours


def _turned_back(image: Image.Image, turn: Transpose) -> Image.Image:
    return image.transpose(OPPOSITE.get(turn, turn))
