"""The vendor's Common API: the balance, and fresh links to results."""

from __future__ import annotations

import json

from flux_async.api import parsing
from flux_async.api.envelope import WireRequest, WireResponse, open_envelope, unexpected

CREDIT_PATH = "/api/v1/chat/credit"
DOWNLOAD_URL_PATH = "/api/v1/common/download-url"


def build_credit() -> WireRequest:
    """GET the balance (Common API, "Get account credits")."""
    return WireRequest(method="GET", path=CREDIT_PATH)


def build_download_url(url: str) -> WireRequest:
    """POST download-url: request a fresh link to a result (Common API, "Get download URL")."""
    body = json.dumps({"url": url}, separators=(",", ":"), ensure_ascii=False)
    return WireRequest(method="POST", path=DOWNLOAD_URL_PATH, body=body.encode())


def parse_credit(response: WireResponse) -> float:
    """Return the balance in credits: a bare number, in reality a float.

    Raises:
        ApiError: The vendor refused.
        UnexpectedResponse: No finite number.
    """
    data = open_envelope(response, reading=True)
    number = parsing.finite(data)
    if number is None:
        raise unexpected(response, "The balance is not a number", reading=True)
    return number


def parse_download_url(response: WireResponse) -> str:
    """Return the link of an answer to download-url: a bare string, which grants access for 20 minutes.

    Raises:
        ApiError: The vendor refused; 422 for an unknown file.
        UnexpectedResponse: No link; the answer is not quoted, because it may contain one all the same.
    """
    link = parsing.link(open_envelope(response, reading=True))
    if link is None:
        error = unexpected(response, "download-url answered without a link", reading=True)
        error.body_excerpt = ""
        raise error
    return link
