"""What a worker process does with one picture: read it, change it, write the result and two thumbnails.

Only paths and words travel between the processes; the pictures stay here.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from flux_async.sandbox.parameters import Kind

if TYPE_CHECKING:
    from flux_async.imaging import Pixels

MAX_PIXELS: Final = 40_000_000
JPEG_QUALITY: Final = 95
THUMBNAIL_QUALITY: Final = 82
THUMBNAIL_WIDTH: Final = 360
THUMBNAIL_HEIGHT: Final = 480
TINT_STRENGTH: Final = 0.16
EDIT_LABEL: Final = "sandbox edit"

_PARENT_CHECK_SECONDS: Final = 0.2


@attrs.frozen(kw_only=True)
class Negative:
    """One picture to be made, as it travels to the worker.

    Attributes:
        source: The fetched input picture; None where a picture is drawn from the prompt.
        result: Where the result goes; the thumbnails go to `before` and `after`.
    """

    kind: Kind
    prompt: str
    source: Path | None
    ratio: str | None
    output_format: str
    quality: str
    threads: int
    result: Path
    before: Path
    after: Path


@attrs.frozen(kw_only=True)
class Spoiled:
    """The input is not a picture the sandbox can work on."""

    reason: str


def develop(negative: Negative) -> Spoiled | None:
    """Make one picture; runs in a worker process."""
    _settle_in(negative.threads)
    from flux_async.imaging import ImageError  # noqa: PLC0415 - loaded in workers only

    try:
        before, alpha = _input(negative)
        _write_thumbnail(before, alpha, negative.before)  # first: it is shown while the work goes on
        after, alpha = _result(negative, before, alpha)
    except ImageError as error:
        return Spoiled(reason=str(error))
    _write(after, negative.result, negative.output_format, JPEG_QUALITY, alpha)
    _write_thumbnail(after, alpha, negative.after)
    return None


def _input(negative: Negative) -> tuple[Pixels, Pixels | None]:
    """Return the picture to begin with, and its opacity if it has any; a prompt alone is drawn."""
    from flux_async.imaging import decode_image  # noqa: PLC0415 - loaded in workers only

    if negative.source is None:
        from flux_async.sandbox.pictures import draw_from_prompt  # noqa: PLC0415 - as above

        return draw_from_prompt(negative.prompt, negative.ratio or "1:1", seed=_digest(negative.prompt)), None
    picture = decode_image(negative.source.read_bytes(), max_pixels=MAX_PIXELS)
    return picture.pixels, picture.alpha


def _result(negative: Negative, before: Pixels, alpha: Pixels | None) -> tuple[Pixels, Pixels | None]:
    """Return what becomes of the picture, and its opacity if it has any."""
    from flux_async.imaging import Quality, remove_text  # noqa: PLC0415 - loaded in workers only

    if negative.source is None:
        return before, None
    after = before
    if negative.kind is Kind.TEXT_REMOVAL:
        after = remove_text(after, quality=Quality[negative.quality.upper()]).image
    if negative.ratio is not None:
        from flux_async.sandbox.pictures import fit_to_ratio  # noqa: PLC0415 - as above

        after, alpha = fit_to_ratio(after, negative.ratio), None
    if negative.kind is Kind.EDIT:
        after = mark_edit(after, negative.prompt)
    return after, alpha


def _digest(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")


def mark_edit(picture: Pixels, prompt: str) -> Pixels:
    """Return the picture with a tint drawn from the prompt and a label, so that an edit can be seen."""
    import colorsys  # noqa: PLC0415 - loaded in workers only

    import numpy as np  # noqa: PLC0415
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    tint = np.array(colorsys.hsv_to_rgb(_digest(prompt) % 360 / 360, 0.7, 1.0)) * 255
    tinted = np.clip(picture * (1 - TINT_STRENGTH) + tint * TINT_STRENGTH + 0.5, 0, 255).astype(np.uint8)
    canvas = Image.fromarray(tinted)
    size = max(8, min(canvas.size) // 14)
    draw = ImageDraw.Draw(canvas, "RGBA")
    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((size, size), EDIT_LABEL, font=font)
    pad = size // 2
    draw.rounded_rectangle((left - pad, top - pad, right + pad, bottom + pad), pad, fill=(0, 0, 0, 150))
    draw.text((size, size), EDIT_LABEL, font=font, fill=(255, 255, 255, 255))
    return np.asarray(canvas, np.uint8)


def _write_thumbnail(picture: Pixels, alpha: Pixels | None, path: Path) -> None:
    """Write a small copy, which is under its name only when it is whole: a page may ask for it meanwhile."""
    part = path.with_name(f"{path.name}.part")
    _write(_small(picture), part, "jpeg", THUMBNAIL_QUALITY, None if alpha is None else _small(alpha))
    part.replace(path)


def _small(picture: Pixels) -> Pixels:
    import numpy as np  # noqa: PLC0415 - loaded in workers only
    from PIL import Image  # noqa: PLC0415

    small = Image.fromarray(picture)
    small.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT))
    return np.asarray(small, np.uint8)


def _write(
    picture: Pixels, path: Path, output_format: str, quality: int, alpha: Pixels | None = None
) -> None:
    from flux_async.imaging import ImageFormat, encode_image  # noqa: PLC0415 - loaded in workers only

    path.write_bytes(encode_image(picture, ImageFormat[output_format.upper()], quality, alpha=alpha))


_settled: list[Any] = []


def _settle_in(threads: int) -> None:
    """Prepare this process once: few threads, low priority, and an end as soon as the parent is gone."""
    if _settled:
        return
    watch = threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="parent watch", daemon=True)
    watch.start()
    _settled.append(watch)
    if hasattr(os, "nice"):
        os.nice(5)  # polls are answered by the parent, before pictures are worked on
    # Nobody reads what native code writes to the error pipe; full, it would stop the worker for ever.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    import cv2  # noqa: PLC0415 - loaded in workers only

    cv2.setNumThreads(threads)


def _end_with_parent(parent: int) -> None:
    # An idle worker ends when its input closes; one in the middle of a picture would finish it first.
    if sys.platform == "win32":
        return
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)
