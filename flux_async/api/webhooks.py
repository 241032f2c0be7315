"""Reads and verifies the vendor's callbacks, and makes their addresses. The caller passes in the time.

Sources: API page, "Webhook Callback Mechanism"; the vendor's page "Webhook verification".

Rules:

1. The signature covers ``task id . timestamp`` and nothing else: neither the body nor the address. So a
   callback proves only that *something* may have happened to this task: it triggers a poll.
2. A signature changes with every delivery, as its timestamp does; within ±300 s it can be replayed.
3. The task id has been seen in four fields. If two of them differ, the callback is rejected.
4. A wrong shape is answered with 400, a wrong signature with 401, and with no more detail.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import attrs

from flux_async.api import parsing
from flux_async.errors import CallbackRejected, InvalidInput, shown
from flux_async.images import check_http_url
from flux_async.models import CallbackEvent, TaskId

TIMESTAMP_HEADER = "X-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Webhook-Signature"
TOLERANCE_S = 300.0
"""Seconds by which the timestamp of a delivery may differ from our clock."""

ATTEMPT_PARAMETER = "c"
"""The query parameter that carries the attempt's id."""

RETRIES_END_AFTER_S = (1 + 5 + 15) * 60.0 + 4 * 15.0
"""Seconds from the first delivery to the last: 1, 5 and 15 min lie between them, and each may take 15 s to
fail (API page)."""

LONGEST_GENERATION_S = 600.0
"""Seconds after which the vendor ends a task (code 408)."""

_ATTEMPT_ID = re.compile(r"[0-9a-f]{32}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_ID_FIELDS = (("data", "taskId"), ("data", "task_id"), (None, "taskId"), (None, "task_id"))
_BAD_SHAPE, _BAD_SIGNATURE = 400, 401
_LARGEST_CODE = 9999  # SQLite cannot store every integer of JSON
_LONGEST_MESSAGE = 1000

Headers = Mapping[str, str] | Iterable[tuple[bytes, bytes]]
Keys = str | bytes | Iterable[str | bytes] | None


# --- addresses --------------------------------------------------------------------------------------------


def check_keys(given: Keys) -> tuple[bytes, ...]:
    """Return webhook keys as bytes, stripped of white space.

    Raises:
        InvalidInput: One of them is blank or no string.
    """
    if given is None:
        return ()
    if isinstance(given, str | bytes):
        return (_key(given),)
    try:
        return tuple(map(_key, given))
    except TypeError:  # not several of anything
        return (_key(None),)


def _key(given: object) -> bytes:
    try:
        key = given.encode() if isinstance(given, str) else given
    except UnicodeEncodeError:
        key = None  # its error would show the key
    if not isinstance(key, bytes) or not key.strip():
        raise InvalidInput(
            "A webhook key must be a string that is not blank.",
            advice="Generate one at kie.ai/settings, or leave it out if callbacks are not signed.",
        )
    return key.strip()


def _callback_url(_instance: object, _attribute: attrs.Attribute[Any], url: object) -> None:
    parts = urlsplit(check_http_url(url, "url"))
    taken = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if parts.fragment or parts.username or parts.password or ATTEMPT_PARAMETER in taken:
        raise InvalidInput(
            f"{shown(url)} cannot be a callback address: it must have no user, no fragment and no parameter "
            f"named {ATTEMPT_PARAMETER!r}, which is reserved.",
        )


def _seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if (number := parsing.finite(value)) is None or number < 0:
        raise InvalidInput(f"{attribute.name} must be a number of seconds, not {shown(value)}.")


@attrs.frozen
class CallbackEndpoint:
    """Where the vendor reports the end of tasks, and how it signs.

    Attributes:
        url: http(s) address of a :class:`flux_async.WebhookReceiver` that the vendor can reach.
        keys: The webhook keys of kie.ai/settings: one, or several while one replaces another; none if the
            vendor does not sign. A callback without a signature is confirmed by record-info.
        doubt_wait_s: Seconds after its submit for which a callback may settle a submit in doubt. Left out:
            the longest generation, at least ten minutes, plus the vendor's 22 minutes of deliveries.

    Raises:
        InvalidInput: The address or a key cannot be used.
    """

    url: str = attrs.field(validator=_callback_url)
    keys: tuple[bytes, ...] = attrs.field(default=None, converter=check_keys, repr=False, alias="key")
    doubt_wait_s: float | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(_seconds)
    )

    def wait_for_doubts_s(self, timeout_s: float) -> float:
        """Return ``doubt_wait_s``, or its default if tasks may take ``timeout_s`` seconds."""
        if self.doubt_wait_s is not None:
            return self.doubt_wait_s
        return max(timeout_s, LONGEST_GENERATION_S) + RETRIES_END_AFTER_S

    def address_for(self, attempt_id: str) -> str:
        """Return the callback address of one attempt."""
        parts = urlsplit(self.url)
        query = "&".join(filter(None, (parts.query, f"{ATTEMPT_PARAMETER}={attempt_id}")))
        return urlunsplit(parts._replace(query=query))


def attempt_in(query: str | bytes) -> str | None:
    """Return the attempt's id in the query of a callback's address, or None without exactly one."""
    text = query.decode("latin-1") if isinstance(query, bytes) else query
    try:
        found = [value for name, value in parse_qsl(text, max_num_fields=20) if name == ATTEMPT_PARAMETER]
    except ValueError:
        return None
    return found[0] if len(found) == 1 and _ATTEMPT_ID.fullmatch(found[0]) else None


# --- signatures -------------------------------------------------------------------------------------------


def signature_of(task_id: str, timestamp: str, key: str | bytes) -> str:
    """Return Base64 of HMAC-SHA256 over ``task_id.timestamp``, as the vendor sends it."""
    secret = key.encode() if isinstance(key, str) else key
    digest = hmac.new(secret, f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def sign(task_id: str, key: str | bytes, *, at: float) -> dict[str, str]:
    """Return the headers of a delivery made ``at`` seconds since the epoch, as the vendor sends them."""
    timestamp = str(int(at))
    return {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature_of(task_id, timestamp, key)}


def verify(headers: Headers, task_id: str, keys: Keys, *, now: float) -> None:
    """Check that one of ``keys`` signed ``task_id`` within ±300 s of ``now`` (seconds since the epoch).

    Raises:
        InvalidInput: A key cannot be used.
        CallbackRejected: It did not; ``http_status`` is 401.
    """
    pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)
    timestamp = _single(pairs, TIMESTAMP_HEADER)
    sent = _digest(_single(pairs, SIGNATURE_HEADER))
    if not _TIMESTAMP.fullmatch(timestamp) or sent is None:
        raise _unsigned("The callback has no usable signature and timestamp.")
    matches = [
        hmac.compare_digest(sent, base64.b64decode(signature_of(task_id, timestamp, key)))
        for key in check_keys(keys)  # check_keys: a string is one key
    ]  # every key is tried, so that the time reveals nothing
    if not any(matches):
        raise _unsigned("The callback's signature does not match.")
    if abs(now - int(timestamp)) > TOLERANCE_S:
        raise _unsigned("The callback's timestamp is too far from our clock.")


def _single(pairs: Iterable[tuple[str | bytes, str | bytes]], name: str) -> str:
    """Return a header, or an empty string if it is absent or repeated."""
    found = [_as_text(value) for key, value in pairs if _as_text(key).lower() == name.lower()]
    return found[0].strip() if len(found) == 1 else ""


def _as_text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _digest(signature: str) -> bytes | None:
    try:
        digest = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest if len(digest) == hashlib.sha256().digest_size else None


def _unsigned(message: str) -> CallbackRejected:
    return CallbackRejected(message, http_status=_BAD_SIGNATURE)


# --- bodies -----------------------------------------------------------------------------------------------


def parse(body: bytes, *, attempt_id: str | None = None) -> CallbackEvent:
    """Return the event of a callback's body (API page, "Callback Format"), not verified.

    The image's addresses are not read: the signature does not cover them.

    Raises:
        CallbackRejected: No JSON object, or not exactly one task id; ``http_status`` is 400.
    """
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        raise _misshapen("The callback is no JSON.") from None
    if not isinstance(envelope, dict):
        raise _misshapen("The callback is no JSON object.")
    message = parsing.text(envelope.get("msg")) or parsing.text(envelope.get("message"))
    return CallbackEvent(
        task_id=_task_id(envelope),
        code=_code(envelope.get("code")),
        message=(message or "")[:_LONGEST_MESSAGE],
        attempt_id=attempt_id,
    )


def _code(value: object) -> int | None:
    code = parsing.whole_number(value)
    return code if code is not None and 0 <= code <= _LARGEST_CODE else None


def _task_id(envelope: dict[str, Any]) -> TaskId:
    data = envelope.get("data")
    data = data if isinstance(data, dict) else {}
    values = [data.get(name) if outer else envelope.get(name) for outer, name in _ID_FIELDS]
    ids = [parsing.task_id(value) if type(value) is int else value for value in values]
    found = {value for value in ids if isinstance(value, str) and value}
    if len(found) != 1 or any(value is not None and not isinstance(value, str) for value in ids):
        raise _misshapen("The callback does not name one task.")
    name = found.pop()
    if parsing.task_id(name) != name:
        raise _misshapen("The callback's task id is not one.")
    return TaskId(name)


def _misshapen(message: str) -> CallbackRejected:
    return CallbackRejected(message, http_status=_BAD_SHAPE)


# --- all of it --------------------------------------------------------------------------------------------


def read_callback(
    headers: Headers, body: bytes, query: str | bytes, keys: Keys, *, now: float
) -> CallbackEvent:
    """Return the event of a delivery, verified if there are ``keys``; ``signed`` is whether it was.

    Raises:
        CallbackRejected: Its shape (400) or its signature (401) is wrong.
        InvalidInput: A key cannot be used.
    """
    several = check_keys(keys)
    event = parse(body, attempt_id=attempt_in(query))
    if not several:
        return event
    verify(headers, event.task_id, several, now=now)
    return attrs.evolve(event, signed=True)
