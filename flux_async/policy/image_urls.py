"""Which image addresses the vendor can certainly not fetch, and which look mistyped.

The vendor fetches an image after the submit, so an address that cannot work costs a task. Only what is
certain is refused: a host that no public server reaches, a host that is none, and pages of file sharers,
which are web pages and not images. What is merely suspicious is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import parse_qs, quote, unquote_plus, urlsplit

from flux_async.errors import InvalidInput, shown
from flux_async.models import EditRequest, ImageRequest, without_query
from flux_async.policy.hosts import kind_of, literal, may_be_public

_BAD_IN_A_HOST = re.compile(r"[\x00-\x20!\"#$&'()*+,/;<=>?@\\^`{|}~%]")
_LONGEST_HOST = 253
_LONGEST_LABEL = 63
_NUMBERS_AT_THE_END = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$")

_BARE_HOST = re.compile(r"(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?::[0-9]{1,5})?(?:[/?#].*)?", re.DOTALL)
_ONE_SLASH = re.compile(r"(https?):/?(?=[^/])", re.IGNORECASE)

_DRIVE_FILE = re.compile(r"/file/(?:u/[0-9]+/)?d/([A-Za-z0-9_-]+)(?:/(?:view|edit|preview))?/?")
_GITHUB_PAGE = re.compile(r"/([^/]+/[^/]+)/blob/(.+)")
_DROPBOX = frozenset({"dropbox.com", "www.dropbox.com"})
_PAGE_HOSTS = frozenset({"photos.app.goo.gl", "photos.google.com", "1drv.ms", "onedrive.live.com"})

_PAIRS = {")": "(", "]": "[", "}": "{", ">": "<"}
_AT_THE_END_BY_MISTAKE = ".,;:!'\"*|" + "".join(_PAIRS)


def check_reachable(url: str, *, api_host: str) -> None:
    """Refuse an http(s) address that the API at ``api_host`` can certainly not fetch an image from.

    An API in a private network, such as a sandbox, reaches what is there: beside it nothing is refused.

    Raises:
        InvalidInput: It can certainly not be fetched, or is a web page and not an image.
    """
    if not may_be_public(api_host):
        return
    host = (urlsplit(url).hostname or "").rstrip(".")
    if (why := _unreachable(host)) is not None:
        raise InvalidInput(
            f"The vendor cannot fetch {shown(url)}: {why}.",
            advice="Give an address that the whole internet reaches, or the file itself. Nothing was sent.",
        )
    if (direct := direct_form(url)) is not None:
        use = f"Use the direct address {direct} instead." if direct else "Use the address of the file itself."
        raise InvalidInput(
            f"{shown(url)} is a page around an image, not the image.", advice=f"{use} Nothing was sent."
        )


@lru_cache(maxsize=1024)
def _unreachable(host: str) -> str | None:
    """Say why no public server reaches ``host``, where that is certain."""
    if (address := literal(host)) is not None:
        kind = kind_of(address)
        return None if kind is None else f"{host} is not a public address ({kind})"
    labels = host.split(".")
    if (
        _BAD_IN_A_HOST.search(host)
        or len(host) > _LONGEST_HOST
        or not all(0 < len(label) <= _LONGEST_LABEL for label in labels)
        or _NUMBERS_AT_THE_END.search(host)
    ):
        return f"{shown(host)} is not the name of a host"
    return None if may_be_public(host) else f"{host} is a name that only an inner network knows"


def direct_form(url: str) -> str | None:
    """Return the image's own address for a share page, "" where it is unknown, None for any other address.

    ``https://drive.google.com/file/d/ID/view`` gives ``https://drive.google.com/uc?export=download&id=ID``.
    """
    parts = urlsplit(url)
    host, query = (parts.hostname or "").lower(), parse_qs(parts.query)
    if host == "drive.google.com":
        found = _DRIVE_FILE.fullmatch(parts.path)
        file_id = found[1] if found else (query.get("id", [""])[0] if parts.path == "/open" else "")
        if file_id:
            return f"https://drive.google.com/uc?export=download&id={file_id}"
        return "" if parts.path.startswith("/drive/") else None
    if host in _DROPBOX and parts.path.startswith(("/s/", "/scl/fi/")):
        if query.get("dl") == ["1"] or query.get("raw") == ["1"]:
            return None
        kept = [part for part in parts.query.split("&") if part and not part.startswith(("dl=", "raw="))]
        return parts._replace(query="&".join([*kept, "dl=1"]), fragment="").geturl()
    if host == "github.com" and "raw" not in query and (found := _GITHUB_PAGE.fullmatch(parts.path)):
        return f"https://raw.githubusercontent.com/{found[1]}/{found[2]}"
    return None


def suspicion(url: str) -> tuple[str, str] | None:
    """Return what in an http(s) address looks like a mistake, and the address probably meant, or None.

    The second is "" where it is not known.
    """
    if "&amp;" in url:
        return "it holds '&amp;', as web pages write '&'", url.replace("&amp;", "&")
    if (bare := without_trailing_marks(url)) != url:
        return f"it ends with {url[len(bare) :]!r}", bare
    if (urlsplit(url).hostname or "").lower() in _PAGE_HOSTS:
        return "it seems to lead to a page around an image, not to the image", ""
    return None


def mistyped_in_words(request: ImageRequest) -> str | None:
    """Return a warning about the request's image address, without its query, or None where it looks well."""
    image = request.input_image if isinstance(request, EditRequest) else None
    if not isinstance(image, str) or (suspect := suspicion(image)) is None:
        return None
    return f"The address {without_query(image)} looks mistyped: {suspect[0]}."


def without_trailing_marks(url: str) -> str:
    """Return ``url`` without punctuation that a text has put behind it; ``(`` inside keeps its ``)``."""
    while url and url[-1] in _AT_THE_END_BY_MISTAKE:
        mark = url[-1]
        if mark in _PAIRS and url.count(mark) <= url.count(_PAIRS[mark]):
            break
        url = url[:-1]
    return url


def with_scheme(text: str) -> str | None:
    """Return the address meant by ``host/a.jpg``, ``//host/a.jpg`` or ``https:/host/a.jpg``, or None."""
    if text.startswith("//"):
        rest = text[2:]
        return f"https://{rest}" if _BARE_HOST.fullmatch(rest) else None
    if (slip := _ONE_SLASH.match(text)) is not None:
        return f"{slip[1].lower()}://{text[slip.end() :]}"
    return f"https://{text}" if _BARE_HOST.fullmatch(text) and _is_no_file_name(text) else None


def _is_no_file_name(text: str) -> bool:
    """Whether a path follows, or it begins as many hosts do: ``poster.jpg`` alone is the name of a file."""
    return "/" in text or text.lower().startswith("www.")


# --- signatures -----------------------------------------------------------------------------------------

# An address without its signature, which a store makes anew each day for the same file. Three parts of an
# address never distinguish two files: a fragment, which is never sent; an escape of a letter that needs none
# (``%61`` is ``a``, RFC 3986 section 6.2.2.2); the case of the scheme and the host. Parameters are left out
# only if they are certainly a signature.

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
