"""Where the key may go: to one origin, and nowhere else."""

from __future__ import annotations

from typing import NoReturn
from urllib.parse import quote, urlencode, urlsplit

from flux_async.errors import ConfigurationError, InvalidInput
from flux_async.models import check_http_url
from flux_async.protocol.envelope import WireRequest

DEFAULT_BASE_URL = "https://api.kie.ai"
_PAGE_SUFFIX = "/api/v1/flux/kontext"
_PORTS = {"http": 80, "https": 443}
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

    def __init__(self, api_key: str | None, base_url: str | None) -> None:
        self._key = _clean_key(api_key)
        self.base_url = _clean_base_url(base_url or DEFAULT_BASE_URL)

    def __repr__(self) -> str:
        return f"ApiOrigin({self.base_url!r})"

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "A client cannot be pickled: it holds the key.", advice="Make one in each process."
        )

    @property
    def sends_key_in_clear(self) -> bool:
        """Whether the key would cross a network unencrypted."""
        scheme, host, _ = origin_of(self.base_url)
        return scheme == "http" and host not in _LOOPBACK

    def url_for(self, request: WireRequest) -> str:
        """Return the absolute address of ``request``."""
        query = "?" + urlencode(request.query, quote_via=quote) if request.query else ""
        return self.base_url + request.path + query

    def authorization_for(self, url: str) -> dict[str, str]:
        """Return the header that carries the key, or nothing where ``url`` is of another origin."""
        if origin_of(url) != origin_of(self.base_url):
            return {}
        return {"Authorization": f"Bearer {self._key}"}

    def scrub(self, text: str) -> str:
        """Return ``text`` with the key, should anybody have echoed it, blotted out."""
        return text.replace(self._key, "***")

    def scrub_bytes(self, body: bytes) -> bytes:
        """Return ``body`` with the key, should the server have echoed it, blotted out."""
        return body.replace(self._key.encode(), b"***")


def _clean_key(api_key: str | None) -> str:
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


def _clean_base_url(base_url: str) -> str:
    try:
        url = check_http_url(base_url.strip(), "KIE_BASE_URL").rstrip("/")
    except InvalidInput as bad:
        raise ConfigurationError(
            bad.message, advice="Give the API's origin, for example https://api.kie.ai."
        ) from None
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationError(
            "KIE_BASE_URL must be scheme, host and perhaps a path, without user, query or fragment."
        )
    # The API page's "Base URL" ends in the product's own path; people paste it whole.
    return url.removesuffix(_PAGE_SUFFIX)
