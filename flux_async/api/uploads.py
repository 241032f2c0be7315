"""The upload host: where a file of ours is put for the vendor to fetch (vendor's "File Upload API").

Rules (the vendor's pages contradict each other; these agree with recorded answers):

1. Success stands at two levels, ``success`` and ``data.success``; either may be missing, none may be false.
2. The address is ``data.downloadUrl``, or ``fileUrl`` as one page has it. There is no ``expiresAt``.
3. An error is a real HTTP status, or HTTP 200 with ``success: false``; it has no ``data``.
4. The same name overwrites, with a delay: names are never used twice. The address works without a key, so
   they cannot be guessed either.
5. Nothing here is ever charged.
"""

from __future__ import annotations

import json
import re
from typing import Any

import attrs

from flux_async.api import parsing
from flux_async.api.envelope import (
    SERVER_ERRORS,
    Host,
    Stream,
    WireRequest,
    WireResponse,
    message_of,
    read_envelope,
    unexpected,
)
from flux_async.api.error_codes import CODES, OK, error_for
from flux_async.errors import (
    Charge,
    FluxError,
    InvalidInput,
    Scope,
    ServerError,
    UnexpectedResponse,
    UploadRejected,
    shown,
)

STREAM_PATH = "/api/file-stream-upload"
URL_PATH = "/api/file-url-upload"
FOLDER = "images/flux-async"
"""``uploadPath``: no slash at either end."""

LIFETIME_S = 24 * 3600.0
"""The vendor's pages say 24 hours in one place and three days in others."""

_AGAIN = "An upload is free: try again."
_REFUSED = frozenset({400, 404, 405, 413, 415, 422})
_REDIRECTS = range(300, 400)
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")
_LONGEST_STEM = 60


@attrs.frozen(kw_only=True)
class Stored:
    """What the upload host says it has.

    Attributes:
        url: Where the vendor, and anybody else who knows it, can fetch the file.
        size: Bytes, where it says so.
        content_type: As the host has it, where it says so.
    """

    url: str
    size: int | None = None
    content_type: str | None = None


def upload_name(secret: str, suffix: str, name: str | None = None) -> str:
    """Return a file name nobody can guess: ``<stem of name>-<secret><suffix>``."""
    stem = "" if name is None else _UNSAFE.sub("-", _bare(name))[:_LONGEST_STEM].strip("-_")
    return f"{stem}-{secret}{suffix}" if stem else f"{secret}{suffix}"


def _bare(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidInput(f"name must be a string, not {type(name).__name__}.")
    last = name.replace("\\", "/").rpartition("/")[2]
    return last.rpartition(".")[0] or last


def form_around(*, file_name: str, content_type: str, boundary: str) -> tuple[bytes, bytes]:
    """Return what stands before and after the file in a multipart form.

    ``file_name`` is one of :func:`upload_name`, so nothing in it needs to be escaped.
    """
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in {"uploadPath": FOLDER, "fileName": file_name}.items()
    ]
    file = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    return "".join([*parts, file]).encode(), f"\r\n--{boundary}--\r\n".encode()


def build_stream_upload(stream: Stream, boundary: str) -> WireRequest:
    """POST file-stream-upload; the form must not carry the JSON content type of all other requests."""
    return WireRequest(
        method="POST",
        path=STREAM_PATH,
        host=Host.UPLOADS,
        stream=stream,
        content_type=f"multipart/form-data; boundary={boundary}",
    )


def build_url_upload(url: str, *, secret: str, name: str | None = None) -> WireRequest:
    """POST file-url-upload: the host fetches the file itself, within 30 s.

    Its kind is not known here, so the host names it, in a folder nobody can guess.
    """
    folder = f"{FOLDER}/{upload_name(secret, '', name)}"
    body = json.dumps({"fileUrl": url, "uploadPath": folder}, separators=(",", ":"), ensure_ascii=False)
    return WireRequest(method="POST", path=URL_PATH, host=Host.UPLOADS, body=body.encode())


def parse_upload(response: WireResponse) -> Stored:
    """Read the answer to an upload.

    Raises:
        AuthenticationError: The key was refused: scope STOP.
        UploadRejected: The file was refused.
        ApiError: Any other refusal.
        UnexpectedResponse: No documented shape, a redirect, or a success without an address.
    """
    code, envelope = read_envelope(response)
    data = envelope.get("data")
    inner = data if isinstance(data, dict) else {}
    told_ok = code == OK or (code is None and envelope.get("success") is True)
    if not told_ok or response.status != OK or envelope.get("success") is False:
        raise _refusal(response, code, envelope)
    if inner.get("success") is False:
        raise _refusal(response, code, envelope)
    url = parsing.link(inner.get("downloadUrl")) or parsing.link(inner.get("fileUrl"))
    if url is None:
        raise _free(unexpected(response, "The upload host reports success without an address"))
    return Stored(
        url=url,
        size=parsing.whole_number(inner.get("fileSize")),
        content_type=parsing.text(inner.get("mimeType")),
    )


def _refusal(response: WireResponse, code: int | None, envelope: dict[str, Any]) -> FluxError:
    """Rule 3: the envelope's code where it says more than 200, else the HTTP status."""
    meant = code if code not in (None, OK) else response.status
    words = message_of(envelope) or "no message"
    if response.status in _REDIRECTS and code is None:
        return UnexpectedResponse(
            f"The upload host answered with a redirect (HTTP {response.status}), which is not followed.",
            advice="Set KIE_UPLOAD_URL to the address it should go to.",
            http_status=response.status,
            charge=Charge.NO,
            scope=Scope.STOP,
        )
    if meant in _REFUSED:
        return UploadRejected(
            f"The upload host refused the file ({meant}): {words.rstrip('.')}.",
            code=meant,
            msg=words,
            http_status=response.status,
        )
    if meant in CODES and meant != OK:
        return _free(error_for(meant, words, http_status=response.status))
    if meant >= SERVER_ERRORS:
        failed = f"The upload host answered {meant}: {words.rstrip('.')}."
        return _free(ServerError(failed, code=meant, msg=words, http_status=response.status))
    return _free(unexpected(response, f"The upload host reports no success ({shown(words)})"))


def _free(error: FluxError) -> FluxError:
    """Errors speak of submits; an upload costs nothing and may be made again."""
    if error.charge is not Charge.NO or isinstance(error, UnexpectedResponse):
        error.charge, error.advice = Charge.NO, _AGAIN
    return error
