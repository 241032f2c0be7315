"""The vendor's answers as values: envelopes and records of the Kontext API, in the vendor's key order.

An envelope error arrives with HTTP status 200 and the real status in ``code``; HTTP 429 is the exception.
"""

from __future__ import annotations

import http
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import attrs

from flux_async.sandbox.faults import Fault

if TYPE_CHECKING:
    from flux_async.sandbox.simulator import Task

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
        body: The JSON object, in the request its keys are written.
        status: The HTTP status.
    """

    body: Mapping[str, object]
    status: int = http.HTTPStatus.OK

    @property
    def content_type(self) -> str:
        """The Content-Type header."""
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
    """An answer of a gateway, or a damaged one.

    Attributes:
        content: The body.
        status: The HTTP status.
        content_type: The Content-Type header.
    """

    content: bytes
    status: int
    content_type: str = "text/html"

    def encode(self) -> bytes:
        """Return the body."""
        return self.content


def html_page(status: http.HTTPStatus) -> Page:
    """Return the page of a gateway for a status."""
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


_PENDING_FLAGS: Mapping[Fault, object] = {Fault.FLAG_NULL: None, Fault.FLAG_UNKNOWN: 9}


def record_of(task: Task, base_url: str) -> dict[str, object]:
    """Return ``data`` of record-info of the Kontext API; links begin with `base_url`."""
    failure = task.failure
    # The echo holds the fields that were sent, in an order of the vendor's own.
    echo = json.dumps(task.request.sent, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    record: dict[str, object] = {
        "taskId": task.task_id,
        "paramJson": echo,
        "response": _response(task, base_url),
        # Rounded up, even into the future, as in recorded traffic.
        "completeTime": None if task.ended_at is None else math.ceil(task.ended_at) * 1000,
        "createTime": math.floor(task.created_at) * 1000,
        "successFlag": int(task.flag),
        "errorCode": failure.code if failure else None,
        "errorMessage": failure.message if failure else "" if task.flag else None,
    }
    return _respelt(record, task) if task.faults else record


def _response(task: Task, base_url: str) -> dict[str, object] | None:
    if task.origin is None or task.result is None:
        return None
    return {
        "originImageUrl": base_url + task.origin.path,
        "resultImageUrl": base_url + task.result.path,
    }


def _respelt(record: dict[str, object], task: Task) -> dict[str, object]:
    """Return the record with the faults of its task."""
    faults = task.faults
    for name in ("completeTime", "createTime"):
        record[name] = time_as_faulted(record[name], task)
    if Fault.PARAMS_INVALID in faults:
        record["paramJson"] = str(record["paramJson"])[:-2]
    if Fault.PARAMS_MISSING in faults:
        del record["paramJson"]
    if Fault.ERROR_AS_TEXT in faults:
        code = record["errorCode"]
        record["errorCode"] = "null" if code is None else str(code)
    _respell_flag(record, task)
    if isinstance(links := record["response"], dict):
        _respell_links(record, links, task)
    return record


def _respell_flag(record: dict[str, object], task: Task) -> None:
    if Fault.FLAG_AS_TEXT in task.faults:
        record["successFlag"] = str(record["successFlag"])
    if task.flag:  # it has ended
        return
    for fault, value in _PENDING_FLAGS.items():
        if fault in task.faults:
            record["successFlag"] = value
    if Fault.FLAG_MISSING in task.faults:
        del record["successFlag"]


def _respell_links(record: dict[str, object], links: dict[str, object], task: Task) -> None:
    faults = task.faults
    if Fault.NO_RESPONSE in faults:
        record["response"] = None
    elif Fault.NO_URL in faults:
        record["response"] = dict.fromkeys(links, "")
    elif Fault.URL_IN_DATA in faults:
        record.update({"response": None} | links)
    elif Fault.URL_IN_LIST in faults:
        record["response"] = {"resultUrls": [links["resultImageUrl"]]}
    elif Fault.RESPONSE_AS_TEXT in faults:
        record["response"] = json.dumps(links, separators=(",", ":"))
    elif Fault.RESPONSE_AS_URL in faults:
        record["response"] = links["resultImageUrl"]


def time_as_faulted(value: object, task: Task) -> object:
    """Return a time in milliseconds as the faults of its task write it."""
    faults = task.faults
    if not isinstance(value, int) or Fault.TIMES_NULL in faults:
        return None
    moment = datetime.fromtimestamp(value / 1000, UTC)
    if Fault.TIMES_ISO in faults:
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    if Fault.TIMES_SPACED in faults:
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    return value // 1000 if Fault.TIMES_SECONDS in faults else value
