"""Converts filled areas from red, green and blue to the channels of the original's file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flux_async.imaging.arrays import Floats, Mask
from flux_async.verification.grid import grow, spread

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue, as Pillow makes greyscale."""
CLEAR = 8
"""Pixels with less opacity (of 255) count as transparent."""

_RIM = 3
_BLACK_SMOOTH = 4.0
_OPAQUE = 128


def to_own_channels(
    fill: Floats, own: NDArray[np.uint8], hole: Mask, mode: str, palette: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Return ``own``, the channels of a window, with the hole set to the colours of ``fill`` (0 to 255).

    Opacity stays as it is, except for text on transparent ground, which becomes transparent.
    """
    changed = own.copy()
    colours = np.clip(fill, 0, 255)
    if palette is not None:
        changed[hole, 0] = _palette_indices(colours[hole], palette, own[..., 0], hole)
        return changed
    values = _values(colours, own, hole, mode)
    changed[hole, : values.shape[2]] = np.clip(values + 0.5, 0, 255).astype(np.uint8)[hole]
    if mode in {"RGBA", "LA"} and _is_on_nothing(own[..., -1], hole):
        changed[hole, -1] = np.minimum(own[hole, -1], _opacity_around(own[..., -1], hole)[hole])
    return changed


def _values(colours: Floats, own: NDArray[np.uint8], hole: Mask, mode: str) -> Floats:
    if mode in {"L", "LA"}:
        return np.asarray(colours @ LUMA, np.float32)[..., None]
    if mode != "CMYK":
        return colours
    # The same colour has many forms in CMYK: take that with the surroundings' share of black.
    black = spread(own[..., 3:].astype(np.float32), (~hole).astype(np.float32), smooth=_BLACK_SMOOTH)
    black = np.minimum(black, 255 - colours.max(2, keepdims=True))
    inks = 255 - colours * 255 / np.maximum(255 - black, 1)
    return np.concatenate([inks, black], 2).astype(np.float32)


def _palette_indices(
    colours: Floats, palette: NDArray[np.uint8], indices: NDArray[np.uint8], hole: Mask
) -> NDArray[np.uint8]:
    """Return the indices of the nearest opaque colours; a transparent one for text on transparent ground."""
    clear = palette[:, 3] < CLEAR
    if clear.any() and _is_on_nothing(palette[np.minimum(indices, len(palette) - 1), 3], hole):
        return np.full(len(colours), int(np.argmax(clear)), np.uint8)
    usable = np.flatnonzero(palette[:, 3] >= _OPAQUE)
    choices = usable if usable.size else np.arange(len(palette))
    nearest = np.zeros(len(colours), np.uint8)
    least = np.full(len(colours), np.inf, np.float32)
    for index in choices:
        distance = ((colours - palette[index, :3].astype(np.float32)) ** 2).sum(1)
        closer = distance < least
        nearest[closer], least[closer] = index, distance[closer]
    return nearest


def _is_on_nothing(alpha: NDArray[np.uint8], hole: Mask) -> bool:
    """Return whether most of the rim around a hole is transparent."""
    rim = grow(hole, _RIM) & ~hole
    return bool(rim.any() and (alpha[rim] < CLEAR).mean() > 0.5)  # noqa: PLR2004 - half


def _opacity_around(alpha: NDArray[np.uint8], hole: Mask) -> NDArray[np.uint8]:
    values = spread(alpha[..., None].astype(np.float32), (~hole).astype(np.float32), smooth=0)
    return np.clip(values[..., 0], 0, 255).astype(np.uint8)
