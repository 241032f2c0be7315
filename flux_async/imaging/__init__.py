"""Finds, reads and removes text in images, without network or GPU. The same input gives the same result.

Needs the extra ``imaging``. Importing this package loads no optional dependency. The first use of one of its
names loads numpy, OpenCV and Pillow, and raises an ImportError that names the extra if they are missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux_async.imaging.arrays import Floats, Mask, Pixels, Window
    from flux_async.imaging.filling import Fill, fill_hole
    from flux_async.imaging.image_codec import (
        DecodedImage,
        ImageError,
        ImageFormat,
        decode_image,
        encode_image,
    )
    from flux_async.imaging.ocr import ModelsMissingError
    from flux_async.imaging.removal import Removal, remove_text
    from flux_async.imaging.text_detection import Quality, TextLine, TextRegion, find_text, read_text

__all__ = [
    "DecodedImage",
    "Fill",
    "Floats",
    "ImageError",
    "ImageFormat",
    "Mask",
    "ModelsMissingError",
    "Pixels",
    "Quality",
    "Removal",
    "TextLine",
    "TextRegion",
    "Window",
    "decode_image",
    "encode_image",
    "fill_hole",
    "find_text",
    "read_text",
    "remove_text",
]

_MODULES = {
    "arrays": ("Floats", "Mask", "Pixels", "Window"),
    "filling": ("Fill", "fill_hole"),
    "text_detection": ("Quality", "TextLine", "TextRegion", "find_text", "read_text"),
    "ocr": ("ModelsMissingError",),
    "image_codec": ("DecodedImage", "ImageError", "ImageFormat", "decode_image", "encode_image"),
    "removal": ("Removal", "remove_text"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Return a public name from its module, loaded at first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("flux_async"):
            raise
        raise ImportError(
            f"flux_async.imaging needs {error.name}: run  pip install 'flux-async[imaging]'  "
            "(in a checkout: '.[imaging]')",
            name=error.name,
        ) from error
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
