"""Bytes of an image file to an array of pixels and back, with limits that hold before anything is decoded.

Whatever the file holds (palette, greyscale, 16 bits, CMYK, transparency, an EXIF rotation, many frames),
what comes out is its first frame, upright, as uint8 RGB; transparency is kept apart so that it can be
written again.
"""

from __future__ import annotations

import enum
import io
import warnings
from typing import TYPE_CHECKING

import attrs
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flux_async.imaging.arrays import Pixels

DEFAULT_MAX_PIXELS = 40_000_000
LONGEST_SIDE = 65_000
SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
JPEG_FULL_COLOUR = 0
"""Pillow's number for keeping colour at full resolution."""

_OPAQUE = 255


class PictureFormat(enum.Enum):
    """The image formats that are read and written, under Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"


class PictureError(ValueError):
    """The bytes are not a picture we can take; the message says why."""


@attrs.frozen(kw_only=True, eq=False)
class Picture:
    """A decoded picture: ``pixels`` is uint8 RGB, ``alpha`` its opacity if it had any."""

    pixels: Pixels
    alpha: NDArray[np.uint8] | None
    format: PictureFormat

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def decode_picture(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Decode the bytes of an image file.

    The number of pixels is read from the header and checked before anything is decoded.

    Raises:
        PictureError: no bytes, an unknown type, a truncated or damaged file, or too many pixels.
    """
    if not data:
        raise PictureError("there are no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns of large sizes and odd metadata: both are judged here
            with Image.open(io.BytesIO(data), formats=[kind.value for kind in PictureFormat]) as image:
                _check_size(image.size, max_pixels)
                # Cameras and phones write several JPEG images into one file, which Pillow calls MPO.
                kind = PictureFormat.JPEG if image.format == "MPO" else PictureFormat(image.format)
                image.load()
                upright = ImageOps.exif_transpose(image)
                return _to_picture(upright, kind)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("this is not an image of a known type (PNG, JPEG, WebP, GIF, BMP, TIFF)") from None
    except Exception as error:
        raise PictureError(f"the image is truncated or damaged: {error}") from error


def encode_picture(
    pixels: Pixels,
    format: PictureFormat = PictureFormat.PNG,  # noqa: A002 - the word everybody uses for it
    quality: int = 92,
    *,
    alpha: NDArray[np.uint8] | None = None,
) -> bytes:
    """Encode an array (uint8, RGB or greyscale) as the bytes of an image file.

    ``quality`` (1 to 100) counts for JPEG and WebP, ``alpha`` is written where the format can hold it; in
    other formats what it leaves open is white.

    Raises:
        PictureError: not such an array, or too large for the format.
    """
    if pixels.dtype != np.uint8 or pixels.size == 0 or pixels.shape[2:] not in {(), (3,)}:
        raise PictureError(f"expected a uint8 RGB or greyscale array, got {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if alpha is not None:
        opacity = Image.fromarray(np.ascontiguousarray(alpha))
        image = image.convert("RGB")
        if format in {PictureFormat.PNG, PictureFormat.WEBP, PictureFormat.TIFF}:
            image.putalpha(opacity)
        else:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), opacity)
    options: dict[str, int] = {}
    if format in {PictureFormat.JPEG, PictureFormat.WEBP}:
        options["quality"] = quality
    if format is PictureFormat.JPEG:
        options["subsampling"] = JPEG_FULL_COLOUR
    out = io.BytesIO()
    try:
        image.save(out, format.value, **options)
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot be written as {format.value}: {error}") from error
    return out.getvalue()


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > LONGEST_SIDE:
        raise PictureError(
            f"the image is too large: {width} x {height}, at most {max_pixels} pixels are allowed"
        )


def _to_picture(image: Image.Image, kind: PictureFormat) -> Picture:
    if image.mode in SIXTEEN_BIT_MODES:
        image = _eight_bit(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"), np.uint8)
        if alpha.min() == _OPAQUE:
            alpha = None
    return Picture(pixels=np.array(image.convert("RGB"), np.uint8), alpha=alpha, format=kind)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Keep the upper 8 of 16 bits: Pillow's own conversion clips instead."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((np.clip(values, 0, 65_535) >> 8).astype(np.uint8))
