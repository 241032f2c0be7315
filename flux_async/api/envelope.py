"""Reads the envelope of every answer: ``{"code": …, "msg": …, "data": …}``.

Rules (API page, "Error Response Format"; the rest was seen on the live service):

1. The envelope's ``code`` decides; the HTTP status counts only where there is no readable envelope.
2. After a redirect, HTML, an empty or truncated body the charge of a submit is unknown.
3. ``code`` may be a string of digits, ``msg`` may be called ``message``, ``data`` may be missing.
4. Python's own parser defines what JSON is. orjson, if installed, is only faster.
"""

from __future__ import annotations

import enum
import json
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Protocol

import attrs

from flux_async.api.error_codes import CODES, OK, error_for, rule_for
from flux_async.api.parsing import EXCERPT, text, whole_number
from flux_async.api_errors import ServerError
from flux_async.errors import Charge, FluxError, Scope, UnexpectedResponse

READ_ADVICE = "A poll costs nothing: try again."
SERVER_ERRORS = 500
_REDIRECTS = range(300, 400)
_MOVED = frozenset({301, 307, 308})  # nothing was done; a 302 or 303 may follow a success
_NO_SUCH_ADDRESS = frozenset({404, 405})
_AMBIGUOUS = frozenset({400, 408})  # as HTTP statuses any proxy sends these, with other meanings
_LONGEST_RETRY_AFTER = 9
_LONGEST_MESSAGE = 500
_FIRST_INEXACT = 2.0**63


class Host(enum.Enum):
    """One of the vendor's two hosts; their addresses are in ``transport/credentials.py``."""

    API = "api"
    UPLOADS = "uploads"


class Stream(Protocol):
    """A body that is sent in pieces; each iteration starts from the beginning."""

    @property
    def size(self) -> int:
        """Bytes, all pieces together."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces."""
        ...


@attrs.frozen(kw_only=True)
class WireRequest:
    """One HTTP request, without address and without key: both belong to the transport.

    Attributes:
        keep_alive: Use a kept connection, and keep it afterwards. Only for a request whose answer names the
            task: a kept connection may still contain the answer to an earlier request. Any other request has
            a connection of its own, which is closed afterwards.
    """

    method: str
    path: str
    query: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes | None = None
    stream: Stream | None = attrs.field(default=None, repr=False)
    content_type: str = "application/json"
    host: Host = Host.API
    keep_alive: bool = False


@attrs.frozen(kw_only=True)
class WireResponse:
    """One HTTP answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes = attrs.field(default=b"", repr=False)


def read_envelope(response: WireResponse) -> tuple[int | None, dict[str, Any]]:
    """Return (code, envelope), or (None, {}) if the body is no envelope."""
    try:
        envelope = read_json(response.body)
    except (ValueError, RecursionError):
        return None, {}
    if not isinstance(envelope, dict):
        return None, {}
    return whole_number(envelope.get("code")), envelope


def read_json(body: bytes) -> Any:
    """Return the JSON value of a body, the same with orjson and without.

    orjson refuses what Python's parser reads (NaN, Infinity, half surrogates, UTF-16, a byte order mark) and
    makes floats of integers beyond 64 bits: then Python's parser reads the body.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deep.
    """
    fast = fast_parser()
    if fast is not None:
        try:
            value = fast(body)
        except ValueError:
            return json.loads(body)
        if not _holds_large_number(value):
            return value
    return json.loads(body)


@cache
def fast_parser() -> Callable[[bytes], Any] | None:
    """Return orjson's parser if it is installed; it is imported with the first answer."""
    try:
        import orjson  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        return None
    return orjson.loads


def _holds_large_number(value: object) -> bool:
    values = [value]
    while values:
        one = values.pop()
        if isinstance(one, dict):
            values.extend(one.values())
        elif isinstance(one, list):
            values.extend(one)
        elif isinstance(one, float) and abs(one) >= _FIRST_INEXACT:
            return True
    return False


def open_envelope(response: WireResponse, *, reading: bool = False) -> Any:
    """Return ``data`` of a code-200 envelope, else raise the error of the code."""
    code, envelope = read_envelope(response)
    return data_of(response, code, envelope, reading=reading)


def data_of(
    response: WireResponse, code: int | None, envelope: dict[str, Any], *, reading: bool = False
) -> Any:
    """Return ``data`` of an envelope with code 200, else raise the error of the code."""
    if code is None:
        raise _without_envelope(response, reading=reading)
    if code == OK:
        return envelope.get("data")
    raise error_for(
        code,
        message_of(envelope),
        http_status=response.status,
        retry_after_s=retry_after_s(response.headers),
        **_for_reading(reading and rule_for(code).charge is Charge.MAYBE),
    )


def _for_reading(reading: bool) -> dict[str, Any]:  # noqa: FBT001
    """Return charge and advice of a poll; those of the error's class are for a submit."""
    return {"charge": Charge.NO, "advice": READ_ADVICE} if reading else {}


def _without_envelope(response: WireResponse, *, reading: bool) -> FluxError:
    """Return the error of an answer without a readable envelope: rule 1, second half."""
    status = response.status
    if status in _MOVED:
        return UnexpectedResponse(
            f"The API answered with a redirect (HTTP {status}), which is not followed.",
            advice="Set KIE_BASE_URL to the address it should go to.",
            http_status=status,
            charge=Charge.NO,
            scope=Scope.STOP,
        )
    if status in _REDIRECTS:
        return unexpected(
            response, "The API answered with a redirect, which is not followed", reading=reading
        )
    if status >= SERVER_ERRORS:
        return ServerError(
            f"The server answered HTTP {status} without the API's envelope.",
            code=status,
            http_status=status,
            **_for_reading(reading),
        )
    if status in _NO_SUCH_ADDRESS:
        return _no_api_here(response, reading=reading)
    if status in CODES and status not in _AMBIGUOUS:
        return error_for(
            status,
            f"HTTP {status} without the API's envelope ({_excerpt(response)!r})",
            http_status=status,
            retry_after_s=retry_after_s(response.headers),
        )
    return unexpected(response, "The answer is not the API's JSON envelope", reading=reading)


def _no_api_here(response: WireResponse, *, reading: bool) -> UnexpectedResponse:
    """Return the error of a web server without such an address: no task was made, and none would be.

    A poll is repeated all the same: its task is paid, and the address may be right again later.
    """
    what = "The server has no such address: it is not the API"
    if reading:
        return unexpected(response, what, reading=True)
    return UnexpectedResponse(
        f"{what} (HTTP {response.status}, {len(response.body)} bytes).",
        advice="Nothing was charged. Set KIE_BASE_URL to the address of the API.",
        http_status=response.status,
        body_excerpt=_excerpt(response),
        charge=Charge.NO,
        scope=Scope.STOP,
    )


def unexpected(response: WireResponse, what: str, *, reading: bool = False) -> UnexpectedResponse:
    """Return the error of an undocumented answer."""
    return UnexpectedResponse(
        f"{what} (HTTP {response.status}, {len(response.body)} bytes).",
        http_status=response.status,
        body_excerpt=_excerpt(response),
        **_for_reading(reading),
    )


def _excerpt(response: WireResponse) -> str:
    return _readable(response.body[: 4 * EXCERPT].decode("utf-8", "replace"), EXCERPT)


def message_of(envelope: dict[str, Any]) -> str:
    """Return ``msg``, or ``message`` as some services call it: one printable line of bounded length."""
    return _readable(text(envelope.get("msg")) or text(envelope.get("message")) or "", _LONGEST_MESSAGE)


def _readable(message: str, longest: int) -> str:
    """Return a server's text for terminal and log: without escapes and line breaks, of bounded length."""
    return "".join(c if c.isprintable() else " " for c in message[:longest])


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; a date in it is compared with the answer's own Date."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:_LONGEST_RETRY_AFTER])
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until - parsedate_to_datetime(headers["date"])).total_seconds())
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
