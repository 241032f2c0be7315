"""Builds and reads requests to the upload host, which stores local files for the vendor ("File Upload API").

Rules (the vendor's pages contradict each other; these agree with recorded answers):

1. ``success`` and ``data.success`` report success; either may be missing, none may be false.
2. The address is ``data.downloadUrl``, or ``fileUrl`` on one page. There is no ``expiresAt``.
3. An error is a real HTTP status, or HTTP 200 with ``success: false``; it has no ``data``.
4. The same name overwrites, with a delay, so names are never used twice. The address works without a key, so
   names must not be guessable.
5. Uploads are never charged.
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
from flux_async.api_errors import ServerError, UploadRejected
from flux_async.errors import Charge, FluxError, InvalidInput, Scope, UnexpectedResponse, shown

STREAM_PATH = "/api/file-stream-upload"
URL_PATH = "/api/file-url-upload"
FOLDER = "images/flux-async"
"""``uploadPath``: no slash at either end."""

LIFETIME_S = 24 * 3600.0
"""One of the vendor's pages says 24 hours, others three days."""

_AGAIN = "An upload is free: try again."
_REFUSED = frozenset({400, 404, 405, 413, 415, 422})
_REDIRECTS = range(300, 400)
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")
_LONGEST_STEM = 60


@attrs.frozen(kw_only=True)
class Stored:
    """An uploaded file as the upload host describes it.

    Attributes:
        url: Its address, which works without a key.
        size: Bytes, or None if not stated.
        content_type: Content type, or None if not stated.
    """

    url: str
    size: int | None = None
    content_type: str | None = None


def upload_name(secret: str, suffix: str, name: str | None = None) -> str:
    """Return a file name that cannot be guessed: ``<stem of name>-<secret><suffix>``."""
    stem = "" if name is None else _UNSAFE.sub("-", _bare(name))[:_LONGEST_STEM].strip("-_")
    return f"{stem}-{secret}{suffix}" if stem else f"{secret}{suffix}"


def _bare(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidInput(f"name must be a string, not {type(name).__name__}.")
    last = name.replace("\\", "/").rpartition("/")[2]
    return last.rpartition(".")[0] or last


def form_around(*, file_name: str, content_type: str, boundary: str) -> tuple[bytes, bytes]:
    """Return the parts of a multipart form before and after the file.

    ``file_name`` comes from :func:`upload_name`, so nothing in it needs to be escaped.
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
    """POST file-stream-upload; the only request whose content type is not JSON."""
    return WireRequest(
        method="POST",
        path=STREAM_PATH,
        host=Host.UPLOADS,
        stream=stream,
        content_type=f"multipart/form-data; boundary={boundary}",
    )


def build_url_upload(url: str, *, secret: str, name: str | None = None) -> WireRequest:
    """POST file-url-upload: the host fetches the file itself, within 30 s.

    The host names the file, because its format is unknown here, in a folder that cannot be guessed.
    """
    folder = f"{FOLDER}/{upload_name(secret, '', name)}"
    body = json.dumps({"fileUrl": url, "uploadPath": folder}, separators=(",", ":"), ensure_ascii=False)
    return WireRequest(method="POST", path=URL_PATH, host=Host.UPLOADS, body=body.encode())


def parse_upload(response: WireResponse) -> Stored:
    """Return the file of an answer to an upload.

    Raises:
        AuthenticationError: The key was refused: scope STOP.
        UploadRejected: The file was refused.
        ApiError: Any other refusal.
        UnexpectedResponse: No documented shape, a redirect, or a success without an address.
    """
    code, envelope = read_envelope(response)
    data = envelope.get("data")
    inner = data if isinstance(data, dict) else {}
    reports_ok = code == OK or (code is None and envelope.get("success") is True)
    if not reports_ok or response.status != OK or envelope.get("success") is False:
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
    """Return the error by rule 3: by the envelope's code unless it is 200, else by the HTTP status."""
    meant = code if code not in (None, OK) else response.status
    message = message_of(envelope) or "no message"
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
            f"The upload host refused the file ({meant}): {message.rstrip('.')}.",
            code=meant,
            msg=message,
            http_status=response.status,
        )
    if meant in CODES and meant != OK:
        return _free(error_for(meant, message, http_status=response.status))
    if meant >= SERVER_ERRORS:
        failed = f"The upload host answered {meant}: {message.rstrip('.')}."
        return _free(ServerError(failed, code=meant, msg=message, http_status=response.status))
    return _free(unexpected(response, f"The upload host reports no success ({shown(message)})"))


def _free(error: FluxError) -> FluxError:
    """Return the error without a charge: error classes assume a submit, and an upload costs nothing."""
    if error.charge is not Charge.NO or isinstance(error, UnexpectedResponse):
        error.charge, error.advice = Charge.NO, _AGAIN
    return error
