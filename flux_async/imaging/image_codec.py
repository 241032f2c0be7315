"""Decodes image files to arrays of pixels and encodes them again; limits are checked before decoding.

For every kind of file (palette, greyscale, 16 bits, CMYK, transparency, EXIF rotation, several frames) the
result is the first frame, upright, as uint8 RGB. Transparency is returned separately.
"""

from __future__ import annotations

import contextlib
import enum
import io
import warnings
from typing import TYPE_CHECKING

import attrs
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flux_async.imaging.arrays import Pixels

DEFAULT_MAX_PIXELS = 40_000_000
LONGEST_SIDE = 65_000
SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
JPEG_FULL_COLOUR = 0
"""Pillow's number for chroma at full resolution (4:4:4)."""

_OPAQUE = 255


class ImageFormat(enum.Enum):
    """Image formats that are read and written, under Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"


class ImageError(ValueError):
    """The bytes are not a usable image; the message says why."""


@attrs.frozen(kw_only=True, eq=False)
class DecodedImage:
    """Decoded image: ``pixels`` is uint8 RGB, ``alpha`` the opacity, or None where it is opaque."""

    pixels: Pixels
    alpha: NDArray[np.uint8] | None
    format: ImageFormat

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


@attrs.frozen(kw_only=True, eq=False)
class OpenedImage:
    """A decoded file with its own channels, not yet upright.

    ``animated`` says that the file has further frames or pages (second images of a camera do not count),
    ``deep`` that it has 16 bits per channel, of which Pillow may have kept 8.
    """

    image: Image.Image
    format: ImageFormat
    animated: bool
    deep: bool


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> DecodedImage:
    """Return the decoded bytes of an image file.

    The number of pixels is read from the header and checked before decoding.

    Raises:
        ImageError: no bytes, an unknown type, a truncated or damaged file, or too many pixels.
    """
    opened = open_image(data, max_pixels=max_pixels)
    with _clear_errors():
        return _to_decoded(ImageOps.exif_transpose(opened.image), opened.format)


def open_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> OpenedImage:
    """Return the first frame of an image file as Pillow decodes it, with its metadata in ``info``.

    The number of pixels is read from the header and checked before decoding.

    Raises:
        ImageError: no bytes, an unknown type, a truncated or damaged file, or too many pixels.
    """
    if not data:
        raise ImageError("there are no bytes")
    with _clear_errors():
        image = Image.open(io.BytesIO(data), formats=[kind.value for kind in ImageFormat])
        _check_size(image.size, max_pixels)
        # Cameras and phones write several JPEG images into one file, which Pillow calls MPO.
        is_photo = image.format == "MPO"
        deep = image.mode in SIXTEEN_BIT_MODES or ";16" in str(image.tile)  # load() empties the list
        animated = not is_photo and bool(getattr(image, "is_animated", False))
        image.load()
        kind = ImageFormat.JPEG if is_photo else ImageFormat(image.format)
        return OpenedImage(image=image, format=kind, animated=animated, deep=deep)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Raise whatever Pillow raises as ImageError, without its warnings."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large sizes and odd metadata: both are checked here.
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large: {error}") from error
    except UnidentifiedImageError:
        raise ImageError("this is not an image of a known type (PNG, JPEG, WebP, GIF, BMP, TIFF)") from None
    except Exception as error:
        raise ImageError(f"the image is truncated or damaged: {error}") from error


def encode_image(
    pixels: Pixels,
    format: ImageFormat = ImageFormat.PNG,  # noqa: A002 - Pillow's name for it
    quality: int = 92,
    *,
    alpha: NDArray[np.uint8] | None = None,
) -> bytes:
    """Return an array (uint8, RGB or greyscale) as the bytes of an image file.

    ``quality`` (1 to 100) applies to JPEG and WebP. ``alpha`` is written where the format supports it; in
    other formats transparent pixels become white.

    Raises:
        ImageError: not such an array, or too large for the format.
    """
    if pixels.dtype != np.uint8 or pixels.size == 0 or pixels.shape[2:] not in {(), (3,)}:
        raise ImageError(f"expected a uint8 RGB or greyscale array, got {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if alpha is not None:
        opacity = Image.fromarray(np.ascontiguousarray(alpha))
        image = image.convert("RGB")
        if format in {ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.TIFF}:
            image.putalpha(opacity)
        else:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), opacity)
    options: dict[str, int] = {}
    if format in {ImageFormat.JPEG, ImageFormat.WEBP}:
        options["quality"] = quality
    if format is ImageFormat.JPEG:
        options["subsampling"] = JPEG_FULL_COLOUR
    out = io.BytesIO()
    try:
        image.save(out, format.value, **options)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be written as {format.value}: {error}") from error
    return out.getvalue()


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > LONGEST_SIDE:
        raise ImageError(
            f"the image is too large: {width} x {height}, at most {max_pixels} pixels are allowed"
        )


def _to_decoded(image: Image.Image, kind: ImageFormat) -> DecodedImage:
    if image.mode in SIXTEEN_BIT_MODES:
        image = eight_bit(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"), np.uint8)
        if alpha.min() == _OPAQUE:
            alpha = None
    return DecodedImage(pixels=np.array(image.convert("RGB"), np.uint8), alpha=alpha, format=kind)


def eight_bit(image: Image.Image) -> Image.Image:
    """Return the upper 8 of 16 bits: Pillow's own conversion clips instead."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((np.clip(values, 0, 65_535) >> 8).astype(np.uint8))
