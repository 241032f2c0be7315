"""Which part of an address is only a signature, which a store makes anew each day for the same file."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

_SIGNS = re.compile(
    r"(x-(amz|goog|oss|cos|obs|tos|bce|ms)-.*|(aws|google|oss)access(key)?id|key-pair-id|policy"
    r"|(q-)?sign(ature)?|q-[a-z-]+|sig|hmac|hd(nea|nts|ntl)|auth_key|security-token"
    r"|expires?(_?at|_?in)?|exp|expiry)",
)
"""Parameters of Amazon, Google, Alibaba, Tencent, Huawei, Akamai and those who follow them."""

_TOKENS = frozenset({"token", "access_token"})
"""They may be the name of the file (``/download?token=17``): a signature only where the path names one."""

_ONLY_BESIDE: tuple[tuple[str, frozenset[str]], ...] = (
    # Azure's shared access signature, and Discord's: names too short to mean anything alone.
    ("sig", frozenset({"sv", "se", "st", "sr", "sp", "spr", "sip", "ss", "srt", "sdd"})),
    ("sig", frozenset({"ske", "skoid", "sks", "skt", "sktid", "skv"})),
    ("hm", frozenset({"ex", "is", "hm"})),
)


def unsigned_url(url: str) -> str | None:
    """Return an address without its signature, or None where it has none.

    ``https://h/a.jpg?v=2&X-Amz-Signature=1f`` gives ``https://h/a.jpg?v=2``. What is left tells one file from
    another (``?id=17``), and stays as it is.
    """
    start, mark, query = url.partition("?")
    if not mark:
        return None
    parts = query.partition("#")[0].split("&")
    names = [unquote_plus(part.partition("=")[0]).lower() for part in parts]
    signs = {name for name in names if _SIGNS.fullmatch(name)}
    signs.update(name for sign, others in _ONLY_BESIDE if sign in names for name in others)
    if "." in start.rpartition("/")[2]:
        signs.update(_TOKENS)
    kept = [part for part, name in zip(parts, names, strict=True) if name not in signs]
    if len(kept) == len(parts):
        return None
    return f"{start}?{'&'.join(kept)}" if kept else start


def is_resigned(url: str, other: str) -> bool:
    """Whether two addresses differ, and only in their signatures; one of the two may have none."""
    return url != other and (unsigned_url(url) or url) == (unsigned_url(other) or other)
