"""API key and addresses. The key is sent to the API and its upload host, and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from functools import lru_cache
from typing import NoReturn
from urllib.parse import quote, urlsplit

from flux_async.api.envelope import Host, WireRequest
from flux_async.errors import ConfigurationError, InvalidInput
from flux_async.images import check_http_url

logger: logging.Logger = logging.getLogger("flux_async")

DEFAULT_BASE_URL = "https://api.kie.ai"
DEFAULT_UPLOAD_URL = "https://kieai.redpandaai.co"
_PAGE_SUFFIX = "/api/v1/flux/kontext"
_PORTS = {"http": 80, "https": 443}
_SHORTEST_SECRET = 16
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@lru_cache(maxsize=64)
def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of ``url``; without a port, the default of the scheme."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme)


class Credentials:
    """Addresses of the API and of its upload host, and the key for both.

    The key is not in ``repr``, cannot be pickled, and is returned only for URLs of these two origins.

    Args:
        api_key: The key.
        base_url: Address of the API; None stands for the vendor's.
        upload_url: Address of the upload host. None stands for the vendor's for the vendor's API, and for
            ``base_url`` for any other, such as a sandbox: its key must not reach the vendor.

    Raises:
        ConfigurationError: No key, a key that no header can carry, or an empty or invalid URL.
    """

    __slots__ = ("_key", "_spellings", "base_url", "upload_url")

    def __init__(self, api_key: object, base_url: object, upload_url: object = None) -> None:
        self._key = _clean_key(api_key)
        self._spellings = _spellings_of(self._key)
        self.base_url: str = _clean_base_url(base_url, "KIE_BASE_URL", DEFAULT_BASE_URL)
        vendors = origin_of(self.base_url) == origin_of(DEFAULT_BASE_URL)
        default = DEFAULT_UPLOAD_URL if vendors else self.base_url
        self.upload_url: str = _clean_base_url(upload_url, "KIE_UPLOAD_URL", default)

    @classmethod
    def find(cls, api_key: str | None, base_url: str | None, upload_url: str | None) -> Credentials:
        """Return credentials; KIE_API_KEY, KIE_BASE_URL and KIE_UPLOAD_URL stand in for None.

        An empty argument or variable is refused, not left out: an empty address, as of a setting that failed
        to expand, would send paid requests of a test to the vendor.
        """
        given = {"KIE_API_KEY": api_key, "KIE_BASE_URL": base_url, "KIE_UPLOAD_URL": upload_url}
        found = cls(*(os.environ.get(name) if value is None else value for name, value in given.items()))
        for url in found.in_clear:
            logger.warning("%s is plain http: the key crosses the network unencrypted", url)
        return found

    def __repr__(self) -> str:
        return f"Credentials({getattr(self, 'base_url', '(not made)')!r})"

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "A client cannot be pickled: it holds the key.", advice="Make one in each process."
        )

    @property
    def host(self) -> str:
        """Host of the API: name or IP address."""
        return origin_of(self.base_url)[1]

    @property
    def is_default(self) -> bool:
        """Whether it is the vendor's API."""
        return self.host == origin_of(DEFAULT_BASE_URL)[1]

    @property
    def is_this_machine(self) -> bool:
        """Whether the API runs on this machine."""
        return _is_here(self.base_url)

    @property
    def in_clear(self) -> tuple[str, ...]:
        """The addresses to which the key would cross a network unencrypted."""
        both = dict.fromkeys([self.base_url, self.upload_url])
        return tuple(url for url in both if origin_of(url)[0] == "http" and not _is_here(url))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the key and the API without revealing the key."""
        return hashlib.sha256(f"flux-async\n{self.base_url}\n{self._key}".encode()).hexdigest()[:16]

    def url_for(self, request: WireRequest) -> str:
        """Return the absolute address of ``request`` without its query."""
        return (self.upload_url if request.host is Host.UPLOADS else self.base_url) + request.path

    def authorization_for(self, url: str) -> dict[str, str]:
        """Return the header with the key; an empty dictionary if ``url`` has another origin."""
        if origin_of(url) not in (origin_of(self.base_url), origin_of(self.upload_url)):
            return {}
        return {"Authorization": f"Bearer {self._key}"}

    def scrub(self, body: bytes) -> bytes:
        """Return ``body`` with the key replaced by ``***``, also in base64, in case the server echoed it.

        A key shorter than 16 characters, like the sandbox's ``test``, is no secret and occurs in many URLs.
        """
        for spelling in self._spellings:
            body = body.replace(spelling, b"***")
        return body


def _spellings_of(key: str) -> tuple[bytes, ...]:
    """Return the forms in which a server can echo a key: plain, JSON, URL, UTF-16, base64."""
    if len(key) < _SHORTEST_SECRET:
        return ()
    found = [key, quote(key, safe=""), *_in_base64(key.encode())]
    found += [text.replace("/", "\\/") for text in found]
    wide = (key.encode("utf-16-le"), key.encode("utf-16-be"))
    return tuple(dict.fromkeys([*(text.encode() for text in found), *wide]))


def _in_base64(secret: bytes) -> list[str]:
    """Return the base64 forms of ``secret`` inside a longer text, in both alphabets.

    base64 encodes three bytes as four letters, so the form depends on the position modulo three. Letters that
    also encode neighbouring bytes are left out.
    """
    found = []
    for lead in range(3):
        packed = base64.b64encode(bytes(lead) + secret)
        own = packed[-(-lead * 8 // 6) : (lead + len(secret)) * 8 // 6].decode()
        found += [own, own.translate(str.maketrans("+/", "-_"))]
    return found


def _clean_key(api_key: object) -> str:
    if api_key is not None and not isinstance(api_key, str):
        raise ConfigurationError(f"The API key must be a string, not {type(api_key).__name__}.")
    key = (api_key or "").strip()
    if not key:
        raise ConfigurationError(
            "There is no API key.",
            advice="Get a key at https://kie.ai/api-key and {give_key}. The local sandbox takes the key "
            "'test'.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "The API key contains characters that an HTTP header cannot carry.",
            advice="Copy it again from https://kie.ai/api-key.",
        )
    return key


def _is_here(url: str) -> bool:
    return origin_of(url)[1] in _LOOPBACK


def _clean_base_url(given: object, name: str, default: str) -> str:
    if given is None:
        return default
    if isinstance(given, str) and not given.strip():
        raise ConfigurationError(
            f"{name} is empty.", advice="Give an origin, for example https://api.kie.ai, or leave it out."
        )
    if "@" in str(given):  # not shown: it can be a password
        raise ConfigurationError(f"{name} must not contain a user name or password.")
    try:
        url = check_http_url(given.strip() if isinstance(given, str) else given, name)
    except InvalidInput as bad:
        raise ConfigurationError(
            bad.message, advice="Use an origin, for example https://api.kie.ai."
        ) from None
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{name} must consist of scheme, host and optional path, without a query.")
    # The API page's "Base URL" ends in the path of the product; users paste all of it.
    return url.rstrip("/").removesuffix(_PAGE_SUFFIX)
