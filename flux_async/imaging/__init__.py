"""Find, read and remove text in pictures, without network or GPU, the same result every time.

Needs the extra ``imaging``. Importing this package costs nothing and never fails; the first use of one of its
names loads numpy, OpenCV and Pillow, and raises an ImportError that says what to install if they are missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux_async.imaging.arrays import Floats, Mask, Pixels, Window
    from flux_async.imaging.detection import TextRegion
    from flux_async.imaging.filling import Fill, fill_hole
    from flux_async.imaging.finding import Quality, find_text, read_text
    from flux_async.imaging.networks import NetworksMissingError
    from flux_async.imaging.picture_files import (
        Picture,
        PictureError,
        PictureFormat,
        decode_picture,
        encode_picture,
    )
    from flux_async.imaging.recognition import TextLine
    from flux_async.imaging.removal import Removal, remove_text

__all__ = [
    "Fill",
    "Floats",
    "Mask",
    "NetworksMissingError",
    "Picture",
    "PictureError",
    "PictureFormat",
    "Pixels",
    "Quality",
    "Removal",
    "TextLine",
    "TextRegion",
    "Window",
    "decode_picture",
    "encode_picture",
    "fill_hole",
    "find_text",
    "read_text",
    "remove_text",
]

_HOMES = {
    "arrays": ("Floats", "Mask", "Pixels", "Window"),
    "detection": ("TextRegion",),
    "filling": ("Fill", "fill_hole"),
    "finding": ("Quality", "find_text", "read_text"),
    "networks": ("NetworksMissingError",),
    "picture_files": ("Picture", "PictureError", "PictureFormat", "decode_picture", "encode_picture"),
    "recognition": ("TextLine",),
    "removal": ("Removal", "remove_text"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name from its module at first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
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
