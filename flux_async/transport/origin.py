"""Where the key may go: to one origin, and nowhere else."""

from __future__ import annotations

import hashlib
from typing import NoReturn
from urllib.parse import urlsplit

from flux_async.errors import ConfigurationError, InvalidInput
from flux_async.models import check_http_url
from flux_async.protocol.envelope import WireRequest

DEFAULT_BASE_URL = "https://api.kie.ai"
_PAGE_SUFFIX = "/api/v1/flux/kontext"
_PORTS = {"http": 80, "https": 443}
_SHORTEST_SECRET = 16
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return (scheme, host, port) of ``url``, with the scheme's own port filled in."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme)


class ApiOrigin:
    """The API's address and the key that belongs to it.

    The key has no place in ``repr``, cannot be pickled, and is handed out only for URLs of this origin.

    Raises:
        ConfigurationError: No key, a key that cannot be sent in a header, or a base URL that is none.
    """

    __slots__ = ("_key", "base_url")

    def __init__(self, api_key: object, base_url: object) -> None:
        self._key = _clean_key(api_key)
        self.base_url: str = _clean_base_url(base_url or DEFAULT_BASE_URL)

    def __repr__(self) -> str:
        return f"ApiOrigin({getattr(self, 'base_url', '(not made)')!r})"

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "A client cannot be pickled: it holds the key.", advice="Make one in each process."
        )

    @property
    def host(self) -> str:
        """The API's host: name or number."""
        return origin_of(self.base_url)[1]

    @property
    def is_default(self) -> bool:
        """Whether the API is the vendor's own."""
        return self.host == origin_of(DEFAULT_BASE_URL)[1]

    @property
    def is_this_machine(self) -> bool:
        """Whether the API is on this machine, where no proxy is wanted."""
        return self.host in _LOOPBACK

    @property
    def sends_key_in_clear(self) -> bool:
        """Whether the key would cross a network unencrypted."""
        return origin_of(self.base_url)[0] == "http" and not self.is_this_machine

    @property
    def fingerprint(self) -> str:
        """16 hex digits that differ from account to account and tell nothing of the key."""
        return hashlib.sha256(f"flux-async\n{self.base_url}\n{self._key}".encode()).hexdigest()[:16]

    def url_for(self, request: WireRequest) -> str:
        """Return the absolute address of ``request``, without its query."""
        return self.base_url + request.path

    def authorization_for(self, url: str) -> dict[str, str]:
        """Return the header that carries the key, or nothing where ``url`` is of another origin."""
        if origin_of(url) != origin_of(self.base_url):
            return {}
        return {"Authorization": f"Bearer {self._key}"}

    def scrub(self, body: bytes) -> bytes:
        """Return ``body`` with the key, should the server have echoed it, blotted out.

        A word as short as the sandbox's ``test`` is no secret, and part of many an honest URL.
        """
        if len(self._key) < _SHORTEST_SECRET:
            return body
        for spelling in (self._key, self._key.replace("/", "\\/")):
            body = body.replace(spelling.encode(), b"***")
        return body


def _clean_key(api_key: object) -> str:
    if api_key is not None and not isinstance(api_key, str):
        raise ConfigurationError(f"The API key must be a string, not {type(api_key).__name__}.")
    key = (api_key or "").strip()
    if not key:
        raise ConfigurationError(
            "No API key: neither the api_key argument nor the environment variable KIE_API_KEY is set.",
            advice="Get a key at https://kie.ai/api-key and set KIE_API_KEY; the local sandbox takes the key "
            "'test'.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "The API key holds characters that no HTTP header can carry.",
            advice="Copy it again from https://kie.ai/api-key.",
        )
    return key


def _clean_base_url(base_url: object) -> str:
    if "@" in str(base_url):  # not shown: it may be a password
        raise ConfigurationError("KIE_BASE_URL must not hold a user or a password.")
    try:
        url = check_http_url(base_url.strip() if isinstance(base_url, str) else base_url, "KIE_BASE_URL")
    except InvalidInput as bad:
        raise ConfigurationError(
            bad.message, advice="Give the API's origin, for example https://api.kie.ai."
        ) from None
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigurationError("KIE_BASE_URL must be scheme, host and perhaps a path, without a query.")
    # The API page's "Base URL" ends in the product's own path; people paste it whole.
    return url.rstrip("/").removesuffix(_PAGE_SUFFIX)
