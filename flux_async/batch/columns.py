"""Names of columns: which of a list, or of a frame, hold images, keys and options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

IMAGE_COLUMNS = (
    "image_url",
    "image_src",
    "image_link",
    "image_urls",
    "img_url",
    "img_src",
    "imageurl",
    "picture_url",
    "photo_url",
    "url",
    "image",
    "images",
    "img",
    "picture",
    "pictures",
    "photo",
    "photos",
    "src",
    "urls",
    "link",
    "links",
    "file",
    "path",
    "filename",
)
"""Usual names of the column of images; where a list has several, the first of these counts."""

OPTIONS = ("prompt", "model", "aspect_ratio", "output_format")

AT_THE_ENDS = " \t\r\n\v\f\u00a0\u00ad\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202f\u2060\u3000\ufeff"
"""White space and invisible characters that editors, web pages and spreadsheets leave around a URL."""


@lru_cache(maxsize=1024)
def normal(name: str) -> str:
    """Return a column's name as it is compared: ``Image URL``, ``image-url`` and ``#image_url`` are one."""
    name = name.strip(AT_THE_ENDS)
    name = name[1:] if name[:1] == "#" and name[1:2].isalnum() else name
    return re.sub(r"[\s_-]+", "_", name.lower())


def image_columns(names: Sequence[str], chosen: str | None) -> list[str]:
    """Return those of the normalised ``names`` that may hold the images, the likeliest first.

    Args:
        names: Names of columns, each as :func:`normal` returns it.
        chosen: The column that the user named, or None.
    """
    if chosen is not None:
        return [name for name in [normal(chosen)] if name in names]
    return [name for name in IMAGE_COLUMNS if name in names]
