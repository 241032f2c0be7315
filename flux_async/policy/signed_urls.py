"""Compares addresses without their signature, which a store makes anew each day for the same file.

Three things in an address never tell one file from another: a fragment, which is never sent; an escape of a
letter that needs none (``%61`` is ``a``, RFC 3986 section 6.2.2.2); the case of the scheme and the host.
Parameters are left out where they are a signature beyond doubt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote_plus

_SIGNS = re.compile(
    r"(x-(amz|goog|oss|cos|obs|tos|bce|ms)-.*|(aws|google|oss)access(key)?id|key-pair-id|policy"
    r"|(q-)?sign(ature)?|q-[a-z-]+|sig|hmac|hd(nea|nts|ntl)|auth_key|security-token"
    r"|expires?(_?at|_?in)?|exp|expiry)",
)
"""Parameters of Amazon, Google, Alibaba, Tencent, Huawei, Akamai and those who follow them."""

_TOKENS = frozenset({"token", "access_token", "jwt"})
"""They may be the name of the file (``/download?token=17``): a signature only where the path names one."""

_ALL_BESIDE: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    # Azure's shared access signature, Discord's, and that of Facebook and Instagram: names too short to mean
    # anything alone.
    (frozenset({"sig"}), re.compile(r"s[verpst]|spr|sip|srt|sdd|ske|skoid|sks|skt|sktid|skv|ss")),
    (frozenset({"hm"}), re.compile(r"ex|is|hm")),
    (frozenset({"oh", "oe"}), re.compile(r"oh|oe|_nc_(ohc|oc|gid|zt|rid|eui2|aid)")),
)

_DIGESTS = frozenset({"md5", "hash", "sha1", "sha256", "st", "s", "h", "mac"})
_DIGEST = re.compile(r"[\w+/=.-]{16,}")
_ENDS = frozenset({"e", "exp", "expires", "expire", "expiry"})
_UNIX_TIME = re.compile(r"[0-9]{9,13}")
"""nginx's ``secure_link`` leaves the names to the site: a digest and a time, where the path names a file."""

_DATED_MAC = re.compile(r"[0-9]{10}-[\w+/=-]{16,}")
"""The value of Cloudflare's ``verify``."""

_ORIGIN = re.compile(r"[a-z]+://[^/?]*", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_NEEDS_NONE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


def unsigned_url(url: str) -> str:
    """Return an address in its usual spelling, without its signature.

    ``https://h/%61.jpg?v=2&X-Amz-Signature=1f#top`` gives ``https://h/a.jpg?v=2``. What is left tells one
    file from another (``?id=17``).
    """
    start, _, query = _spelled(url).partition("?")
    if not query:
        return start
    parts = query.split("&")
    pairs = [(unquote_plus(name).lower(), value) for name, _, value in (p.partition("=") for p in parts)]
    signs = _signs_among(pairs, names_a_file="." in start.rpartition("/")[2])
    kept = [part for part, (name, _) in zip(parts, pairs, strict=True) if name not in signs]
    return f"{start}?{'&'.join(kept)}" if kept else start


def bare_url(url: str) -> str:
    """Return an address in its usual spelling, without its whole query."""
    return _spelled(url).partition("?")[0]


def is_resigned(url: str, other: str) -> bool:
    """Whether two addresses differ, and only in their signature or spelling; one of the two may have none."""
    return url != other and unsigned_url(url) == unsigned_url(other)


def _signs_among(pairs: Sequence[tuple[str, str]], *, names_a_file: bool) -> set[str]:
    """Return the names of those parameters that are a signature."""
    values = dict(pairs)
    names = values.keys()
    signs = {name for name in names if _SIGNS.fullmatch(name)}
    for needed, others in _ALL_BESIDE:
        if needed <= names:
            signs.update(name for name in names if others.fullmatch(name))
    if names_a_file or values.get("alt") == "media":  # Firebase
        signs.update(_TOKENS)
    if names_a_file and any(_UNIX_TIME.fullmatch(values[name]) for name in _ENDS & names):
        found = {name for name in _DIGESTS & names if _DIGEST.fullmatch(unquote_plus(values[name]))}
        if found:
            signs.update(found, _ENDS)
    if _DATED_MAC.fullmatch(unquote_plus(values.get("verify", ""))):
        signs.add("verify")
    return signs


def _spelled(url: str) -> str:
    """Return an address without its fragment, and spelled as every other spelling of it."""
    url = url.partition("#")[0]
    found = _ORIGIN.match(url)
    origin, path = ("", url) if found is None else (found[0], url[found.end() :])
    if "%" in path:
        path = _ESCAPE.sub(_unescaped, path)
    if not path.isascii():
        path = quote(path, safe=_VISIBLE, errors="replace")
    return origin.lower() + path


def _unescaped(found: re.Match[str]) -> str:
    letter = chr(int(found[0][1:], 16))
    return letter if letter in _NEEDS_NONE else found[0].upper()
