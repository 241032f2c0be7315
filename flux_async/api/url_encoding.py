"""Percent-encoding of addresses that the vendor and file hosts send, as a browser does it.

The rules are those of the WHATWG URL Standard for http and https ("URL parsing", "percent-encoded bytes").
An escape that is there already stays byte for byte, a broken one such as ``%zz`` too: a signature may cover
it.
"""

from __future__ import annotations

import re
from urllib.parse import quote

_URL = re.compile(r"([a-z][a-z0-9+.-]*:)[/\\]{2}([^/?#\\]*)([^?#]*)(\?[^#]*)?(#.*)?", re.IGNORECASE)
_DROPPED = str.maketrans("", "", "\t\n\r")
_AROUND = "".join(map(chr, range(0x21)))
_PATH = "!$%&'()*+,/:;=@[]|-._~"
_QUERY = "!$%&()*+,/:;=?@[]\\^_`{|}~-."
_FRAGMENT = "!#$%&'()*+,/:;=?@[\\]^_{|}~-."


def encoded_as_by_a_browser(url: str) -> str:
    """Return an http(s) address with everything escaped that a browser would escape; others as they are.

    ``https://h/a b/é.jpg?x="1"`` becomes ``https://h/a%20b/%C3%A9.jpg?x=%221%22``; ``%2F%27%7E`` stays. The
    host is left alone.
    """
    bare = url.strip(_AROUND).translate(_DROPPED)
    match = _URL.fullmatch(bare)
    if match is None or match[1].lower() not in {"http:", "https:"}:
        return url
    scheme, authority, path, query, fragment = match.groups(default="")
    return (
        f"{scheme}//{authority}"
        + _quoted(path.replace("\\", "/"), _PATH)
        + _quoted(query[:1], "?")
        + _quoted(query[1:], _QUERY)
        + _quoted(fragment, _FRAGMENT)
    )


def _quoted(part: str, safe: str) -> str:
    """Escape all but letters, digits and ``safe``; a lone surrogate counts as U+FFFD, as in a browser."""
    whole = part.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return quote(whole, safe=safe)
