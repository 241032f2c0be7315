"""What the vendor answers, as values: envelopes in the vendor's key order, in compact JSON.

An envelope error arrives with HTTP status 200 and the real status in ``code``; HTTP 429 is the exception.
"""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from functools import cached_property

import attrs

CONTENT_TYPE = "application/json;charset=UTF-8"

BAD_KEY = (
    "Unauthorized \N{EN DASH} Authentication failed. "
    "Please check that your Authorization and Content-Type headers are correctly set."
)
NO_KEY = "You do not have access permissions"
NO_CREDITS = (
    "Credits insufficient : Your current balance isn't enough to run this request. Please top up to continue."
)
TOO_FAST = "Your call frequency is too high. Please try again later."
NO_RECORD = "The record does not exist"
WRONG_URL = "url is wrong"
INTERNAL = "Internal Error, Please try again later."
INTERNAL_AS_RECORDED = "internal error, please try again later."
SERVER_ERROR = "Server Error - An unexpected error occurred while processing the request"
MAINTENANCE = "Service Unavailable - System is currently undergoing maintenance"
SWITCHED_OFF = "Feature Disabled - The requested feature is currently disabled"
KEY_CAP = "Sub-key Usage Exceeds Limit"
FLAGGED = "Your prompt was flagged by Website as violating content policies."
NOT_MADE = "Image generation task failed"
TIMED_OUT = "generate task timeout"


@attrs.frozen(slots=False)
class Reply:
    """One answer of the vendor.

    Attributes:
        body: The JSON object, in the order its keys are written.
        status: The HTTP status.
    """

    body: Mapping[str, object]
    status: int = http.HTTPStatus.OK

    @property
    def content_type(self) -> str:
        """The header of that name."""
        return CONTENT_TYPE

    @cached_property
    def content(self) -> bytes:
        """The body as compact JSON in UTF-8."""
        # A lone surrogate (legal in JSON, not in UTF-8) becomes a question mark, as it does in Java.
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    def encode(self) -> bytes:
        """Return the body as compact JSON in UTF-8."""
        return self.content


@attrs.frozen
class Page:
    """An answer that is none of the vendor's: what a gateway or a broken connection makes of it.

    Attributes:
        content: The body.
        status: The HTTP status.
        content_type: The header of that name.
    """

    content: bytes
    status: int
    content_type: str = "text/html"

    def encode(self) -> bytes:
        """Return the body."""
        return self.content


def html_page(status: http.HTTPStatus) -> Page:
    """Return the page a gateway shows for a status."""
    title = f"{status.value} {status.phrase}"
    text = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        "<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
    )
    return Page(text.encode(), status)


def success(data: object) -> Reply:
    """Return a successful envelope around `data` (an object, a bare string or a bare number)."""
    return Reply({"code": 200, "msg": "success", "data": data})


def refusal(code: int, message: str) -> Reply:
    """Return an error envelope: HTTP 200, except for 429."""
    too_many = http.HTTPStatus.TOO_MANY_REQUESTS
    status = too_many if code == too_many else http.HTTPStatus.OK
    return Reply({"code": code, "msg": message, "data": None}, status)


def unauthorized(*, key_sent: bool) -> Reply:
    """Return the envelope for a missing or wrong key, which has no ``data`` at all."""
    return Reply({"code": 401, "msg": BAD_KEY if key_sent else NO_KEY})


def upload_refusal(code: int, message: str) -> Reply:
    """Return an error of the upload host: a real HTTP status and ``success`` beside ``code``."""
    return Reply({"success": False, "code": code, "msg": message}, code)
