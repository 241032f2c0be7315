"""Decides which image addresses are refused or probably mistyped, and which differ only in a signature.

The vendor fetches an image after the submit, so an address that cannot work costs a task. Refused are hosts
that no public server reaches, invalid host names, and pages of file sharing services, which are web pages and
not images. An address that is only probably wrong is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import parse_qs, quote, unquote_plus, urlsplit

from flux_async.errors import InvalidInput, shown
from flux_async.images import is_object, without_query
from flux_async.models import EditRequest, ImageRequest
from flux_async.policy.hosts import kind_of, literal, may_be_public

_BAD_IN_A_HOST = re.compile(r"[\x00-\x20!\"#$&'()*+,/;<=>?@\\^`{|}~%]")
_PLAIN_HOST = re.compile(r"https?://([a-z0-9.-]+)(?:/|\Z)")
_LONGEST_HOST = 253
_LONGEST_LABEL = 63
_NUMBERS_AT_THE_END = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$")

_BARE_HOST = re.compile(r"(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?::[0-9]{1,5})?(?:[/?#].*)?", re.DOTALL)
_ONE_SLASH = re.compile(r"(https?):/?(?=[^/])", re.IGNORECASE)

_DRIVE_FILE = re.compile(r"/file/(?:u/[0-9]+/)?d/([A-Za-z0-9_-]+)(?:/(?:view|edit|preview))?/?")
_GITHUB_PAGE = re.compile(r"/([^/]+/[^/]+)/blob/(.+)")
_DROPBOX = frozenset({"dropbox.com", "www.dropbox.com"})
_SHARERS = _DROPBOX | {"drive.google.com", "github.com"}
_PAGE_HOSTS = frozenset({"photos.app.goo.gl", "photos.google.com", "1drv.ms", "onedrive.live.com"})

_PAIRS = {")": "(", "]": "[", "}": "{", ">": "<"}
_TRAILING_MARKS = ".,;:!'\"*|" + "".join(_PAIRS)


def check_reachable(url: str, *, api_host: str) -> None:
    """Refuse an http(s) address from which the API at ``api_host`` cannot fetch an image.

    An API in a private network, such as a sandbox, reaches hosts in it: then nothing is refused.

    Raises:
        InvalidInput: It can certainly not be fetched, or is a web page and not an image.
    """
    if is_object(url) or not may_be_public(api_host):
        return  # an object is uploaded, not fetched
    host = _host_of(url).rstrip(".")
    if (why := _unreachable(host)) is not None:
        raise InvalidInput(
            f"The vendor cannot fetch {shown(url)}: {why}.",
            advice="Give an address that the internet reaches, or the file itself. Nothing was sent.",
        )
    if host in _SHARERS and (direct := direct_form(url)) is not None:
        use = f"Use the direct address {direct} instead." if direct else "Use the address of the file itself."
        raise InvalidInput(
            f"{shown(url)} is a page around an image, not the image.", advice=f"{use} Nothing was sent."
        )


def _host_of(url: str) -> str:
    """Return the host of an http(s) address in lower case, or an empty string."""
    plain = _PLAIN_HOST.match(url)  # as nearly all are: urlsplit takes ten times as long
    return plain[1] if plain is not None else (urlsplit(url).hostname or "").lower()


@lru_cache(maxsize=1024)
def _unreachable(host: str) -> str | None:
    """Return why certainly no public server reaches ``host``, or None."""
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
        return f"{shown(host)} is not a valid host name"
    return None if may_be_public(host) else f"{host} is a name in a private network"


def direct_form(url: str) -> str | None:
    """Return the image's own address for a share page, "" if it is unknown, None for any other address.

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
    """Return what is probably wrong in an http(s) address and the address probably meant, or None.

    The second is "" if it is unknown.
    """
    if "&amp;" in url:
        return "it contains '&amp;', as web pages write '&'", url.replace("&amp;", "&")
    if (bare := without_trailing_marks(url)) != url:
        return f"it ends with {url[len(bare) :]!r}", bare
    if _host_of(url) in _PAGE_HOSTS:
        return "it probably leads to a page around an image, not to the image", ""
    return None


def mistyped_in_words(request: ImageRequest) -> str | None:
    """Return a warning about the request's image address, without its query, or None."""
    image = request.input_image if isinstance(request, EditRequest) else None
    if not isinstance(image, str) or (suspect := suspicion(image)) is None:
        return None
    return f"The address {without_query(image)} looks mistyped: {suspect[0]}."


def without_trailing_marks(url: str) -> str:
    """Return ``url`` without the punctuation that followed it in a text; ``(`` inside keeps its ``)``."""
    while url and url[-1] in _TRAILING_MARKS:
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
    # ``poster.jpg`` alone is the name of a file.
    is_address = "/" in text or text.lower().startswith("www.")
    return f"https://{text}" if is_address and _BARE_HOST.fullmatch(text) else None


# --- signatures -----------------------------------------------------------------------------------------

# Object stores sign the address of the same file anew each day. Three parts of an address never distinguish
# two files: a fragment, which is never sent; an escape of a letter that needs none (``%61`` is ``a``, see
# RFC 3986, section 6.2.2.2); the case of the scheme and the host. Parameters are left out only if they are
# certainly a signature.

_SIGNS = re.compile(
    r"(x-(amz|goog|oss|cos|obs|tos|bce|ms)-.*|(aws|google|oss)access(key)?id|key-pair-id|policy"
    r"|(q-)?sign(ature)?|q-[a-z-]+|sig|hmac|hd(nea|nts|ntl)|auth_key|security-token"
    r"|expires?(_?at|_?in)?|exp|expiry)",
)
"""Parameters of Amazon, Google, Alibaba, Tencent, Huawei, Akamai and compatible stores."""

_TOKENS = frozenset({"token", "access_token", "jwt"})
"""They may name the file (``/download?token=17``): a signature only if the path ends in a file name."""

_TOGETHER: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    # Shared access signatures of Azure, Discord, and Facebook and Instagram. The names are too short to mean
    # anything alone.
    (frozenset({"sig"}), re.compile(r"s[verpst]|spr|sip|srt|sdd|ske|skoid|sks|skt|sktid|skv|ss")),
    (frozenset({"hm"}), re.compile(r"ex|is|hm")),
    (frozenset({"oh", "oe"}), re.compile(r"oh|oe|_nc_(ohc|oc|gid|zt|rid|eui2|aid)")),
)

_DIGESTS = frozenset({"md5", "hash", "sha1", "sha256", "st", "s", "h", "mac"})
_DIGEST = re.compile(r"[\w+/=.-]{16,}")
_ENDS = frozenset({"e", "exp", "expires", "expire", "expiry"})
_UNIX_TIME = re.compile(r"[0-9]{9,13}")
"""nginx's ``secure_link``: each site names its parameters for a digest and a time itself."""

_DATED_MAC = re.compile(r"[0-9]{10}-[\w+/=-]{16,}")
"""The value of Cloudflare's ``verify``."""

_ORIGIN = re.compile(r"[a-z]+://[^/?]*", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_NEEDS_NONE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


def unsigned_url(url: str) -> str:
    """Return an address in its normal form, without its signature; other parameters may name the file.

    ``https://h/%61.jpg?v=2&X-Amz-Signature=1f#top`` gives ``https://h/a.jpg?v=2``.
    """
    start, _, query = _normalised(url).partition("?")
    if not query:
        return start
    parts = query.split("&")
    pairs = [(unquote_plus(name).lower(), value) for name, _, value in (p.partition("=") for p in parts)]
    signs = _signs_among(pairs, names_a_file="." in start.rpartition("/")[2])
    kept = [part for part, (name, _) in zip(parts, pairs, strict=True) if name not in signs]
    return f"{start}?{'&'.join(kept)}" if kept else start


def bare_url(url: str) -> str:
    """Return an address in its normal form, without its query."""
    return _normalised(url).partition("?")[0]


def is_resigned(url: str, other: str) -> bool:
    """Return whether two addresses differ, and only in signature or spelling; one may have no signature."""
    return url != other and unsigned_url(url) == unsigned_url(other)


def _signs_among(pairs: Sequence[tuple[str, str]], *, names_a_file: bool) -> set[str]:
    """Return the names of the parameters that are a signature."""
    values = dict(pairs)
    names = values.keys()
    signs = {name for name in names if _SIGNS.fullmatch(name)}
    for needed, others in _TOGETHER:
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


def _normalised(url: str) -> str:
    """Return the normal form of an address, without its fragment."""
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
