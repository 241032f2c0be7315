"""What the vendor answers, as values: envelopes in the vendor's key order, in compact JSON.

An envelope error arrives with HTTP status 200 and the real status in ``code``; HTTP 429 is the exception.
"""

from __future__ import annotations

import http
import json
from collections.abc import Mapping

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


@attrs.frozen
class Reply:
    """One answer of the vendor.

    Attributes:
        body: The JSON object, in the order its keys are written.
        status: The HTTP status.
    """

    body: Mapping[str, object]
    status: int = http.HTTPStatus.OK

    def encode(self) -> bytes:
        """Return the body as compact JSON in UTF-8."""
        # A lone surrogate (legal in JSON, not in UTF-8) becomes a question mark, as it does in Java.
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


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
