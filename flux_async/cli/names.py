"""File names for results: readable, and safe on every system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from urllib.parse import unquote, urlsplit

MAX_STEM = 60
_FALLBACK = "image"
_KEY_DIGITS = 12
_DIGEST = re.compile(r"[0-9a-f]{64}")


def stem_of(image: str) -> str:
    """Return the last part of the path, without its ending, in ASCII letters, digits, ``-`` and ``_``.

    ``https://host/a/Été%20(2).final.png?x=1`` becomes ``Ete-2-final``. No dot is left, so no system takes a
    part of it for a reserved name or an ending, and no separator, so it cannot lead out of its folder.
    """
    try:
        path = unquote(urlsplit(image).path) if "://" in image else image
        last = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    except ValueError:
        return _FALLBACK
    bare = last.rpartition(".")[0] or last
    plain = unicodedata.normalize("NFKD", bare).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain)[:MAX_STEM].strip("-_") or _FALLBACK


def file_stem(image: str, key: str) -> str:
    """Return ``<stem>-<12 digits>``: the digits stand for the key, and tell pictures of one name apart."""
    digits = key if _DIGEST.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()
    return f"{stem_of(image)}-{digits[:_KEY_DIGITS]}"
