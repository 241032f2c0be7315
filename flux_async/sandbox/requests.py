"""Reads what callers send, whatever they send: keys, bodies, addresses."""

from __future__ import annotations

import json
import re
from typing import Final, NoReturn

from starlette.requests import Request
from starlette.types import Message, Receive

from flux_async.sandbox.plan import HEADER, Rule, parse_rules

MAX_JSON_BYTES: Final = 1024 * 1024

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")


class UnknownFaultError(Exception):
    """A request asks for a fault there is none of."""


class BodyTooLargeError(Exception):
    """The body is longer than the service reads."""


def limited(request: Request, max_bytes: int) -> Request:
    """Return the request with a body that ends in `BodyTooLargeError` when it grows too long."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise BodyTooLargeError
        return message

    checked: Receive = receive
    return Request(request.scope, checked)


def sent_key(request: Request) -> str | None:
    """Return the key of the Authorization header, or None where there is none."""
    scheme, _, key = request.headers.get("Authorization", "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def is_json(request: Request) -> bool:
    """Whether the Content-Type header says JSON."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "application/json"


async def json_body(request: Request, max_bytes: int = MAX_JSON_BYTES) -> object:
    """Return the decoded body, or None where it is not JSON.

    Raises:
        BodyTooLargeError: If it is longer than `max_bytes`.
    """
    try:
        return json.loads(await limited(request, max_bytes).body(), parse_constant=_refuse)
    except (ValueError, RecursionError):  # undecodable bytes and absurd numbers are ValueErrors as well
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def base_url(request: Request) -> str:
    """Return the address the caller used for this service, without a path."""
    host = request.headers.get("Host", "")
    if _HOST.fullmatch(host) is None:
        name, port = request.scope.get("server") or ("localhost", None)
        host = f"{name}:{port}" if port else name
    return f"{request.scope['scheme']}://{host}"


def asked_faults(request: Request) -> tuple[Rule, ...]:
    """Return the faults a request asks for in its header.

    Raises:
        UnknownFaultError: If there is none of a name.
    """
    try:
        return parse_rules(request.headers.get(HEADER, ""))
    except ValueError as error:  # a misspelled fault would be a test that tests nothing
        raise UnknownFaultError(str(error)) from None
