"""The upload host: the three endpoints that store a file for the vendor.

Errors here are real HTTP statuses, and ``success`` stands beside ``code`` instead of an envelope.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

import httpx
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from flux_async.sandbox import envelopes
from flux_async.sandbox.envelopes import Reply
from flux_async.sandbox.files import Blob, BlobStore
from flux_async.sandbox.http_client import TooLargeError, UnreachableError, fetch, sniff
from flux_async.sandbox.requests import is_web_address
from flux_async.sandbox.simulator import Upload

MAX_BASE64_BYTES: Final = 10 * 1024 * 1024
MAX_FILE_BYTES: Final = 100 * 1024 * 1024

BAD_KEY: Final = envelopes.upload_refusal(401, "Authentication failed: Invalid API Key")

_MAX_NAME: Final = 200
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]+")
_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+")


class RefusedError(Exception):
    """The upload is not accepted; `reply` is the answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reply: Reply = envelopes.upload_refusal(400, message)


async def read_stream(request: Request, blobs: BlobStore) -> Upload:
    """Read POST file-stream-upload: multipart with ``file``, ``uploadPath`` and perhaps ``fileName``."""
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            return await _read_form(form, blobs)
    except HTTPException as error:
        raise RefusedError(f"Invalid multipart body: {error.detail}") from error


async def _read_form(form: FormData, blobs: BlobStore) -> Upload:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise RefusedError("Missing required parameter: file")
    folder, name = _place(form)
    content = blobs.new_name()
    head, size = b"", 0
    with blobs.path(content).open("wb") as target:
        while chunk := await file.read(1 << 20):
            head = head or chunk[:16]
            size += len(chunk)
            target.write(chunk)
    return Upload(folder=folder, name=name, blob=_blob(content, head, file.content_type), size=size)


def read_base64(body: object, blobs: BlobStore) -> Upload:
    """Read POST file-base64-upload: JSON with ``base64Data`` (bare or as a data URL) and ``uploadPath``."""
    fields = _object(body)
    text = fields.get("base64Data")
    if not isinstance(text, str) or not text:
        raise RefusedError("Missing required parameter: base64Data")
    folder, name = _place(fields)
    declared = None
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        declared = head.removeprefix("data:").partition(";")[0]
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError("Base64 decoding failed: Invalid Base64 format") from error
    if len(content) > MAX_BASE64_BYTES:
        raise RefusedError("File size exceeds the limit of 10MB")
    blob = _blob(blobs.put(content, "").name, content[:16], declared)
    return Upload(folder=folder, name=name, blob=blob, size=len(content))


async def read_url(body: object, blobs: BlobStore, web: httpx.AsyncClient) -> Upload:
    """Read POST file-url-upload: JSON with ``fileUrl`` and ``uploadPath``; the file is fetched at once."""
    fields = _object(body)
    url = fields.get("fileUrl")
    if not isinstance(url, str) or not url:
        raise RefusedError("Missing required parameter: fileUrl")
    folder, name = _place(fields)
    if not is_web_address(url):
        raise RefusedError("Invalid parameter: fileUrl must be an http or https URL")
    content = blobs.new_name()
    try:
        content_type = await fetch(web, url, blobs.path(content), MAX_FILE_BYTES)
    except TooLargeError as error:
        raise RefusedError("File size exceeds the limit of 100MB") from error
    except UnreachableError as error:
        raise RefusedError("File download failed: the URL could not be fetched") from error
    size = blobs.path(content).stat().st_size
    return Upload(folder=folder, name=name, blob=_blob(content, b"", content_type), size=size)


def _object(body: object) -> Mapping[str, object]:
    if not isinstance(body, dict):
        raise RefusedError("The request body must be a JSON object")
    return body


def _place(fields: Mapping[str, object] | FormData) -> tuple[str, str | None]:
    """Return folder and file name, checked: no step up, no slash at either end."""
    folder, name = fields.get("uploadPath"), fields.get("fileName")
    if not isinstance(folder, str) or not folder:
        raise RefusedError("Missing required parameter: uploadPath")
    if len(folder) > _MAX_NAME or not all(_is_name(part) for part in folder.split("/")):
        raise RefusedError("Invalid parameter: uploadPath")
    if name is None or name == "":
        return folder, None
    if not isinstance(name, str) or not _is_name(name):
        raise RefusedError("Invalid parameter: fileName")
    return folder, name


def _is_name(text: str) -> bool:
    encodable = text.encode("utf-8", "replace").decode() == text
    return (
        encodable and len(text) <= _MAX_NAME and text not in (".", "..") and _NAME.fullmatch(text) is not None
    )


def _blob(name: str, head: bytes, declared: str | None) -> Blob:
    usable = declared if declared and _CONTENT_TYPE.fullmatch(declared) else None
    return Blob(name=name, content_type=sniff(head) or usable or "application/octet-stream")
