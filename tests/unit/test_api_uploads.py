"""Requests to the upload host and its answers, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flux_async import (
    AuthenticationError,
    Charge,
    FluxError,
    InvalidInput,
    RateLimitedError,
    Scope,
    ServerError,
    UnexpectedResponse,
    UploadRejected,
)
from flux_async.api.envelope import Host, WireResponse
from flux_async.api.uploads import (
    FOLDER,
    build_stream_upload,
    build_url_upload,
    form_around,
    parse_upload,
    upload_name,
)

# Recorded from the live service.
REAL = (
    '{"success":true,"code":200,"msg":"File uploaded successfully","data":{"success":true,"fileName":'
    '"1776323952044-dtzo7rcrpdj.png","filePath":"kieai/1/images/test-uploads/1776323952044-dtzo7rcrpdj.png",'
    '"downloadUrl":"https://tempfile.example.com/kieai/1/images/test-uploads/1776323952044-dtzo7rcrpdj.png",'
    '"fileSize":70,"mimeType":"image/png","uploadedAt":"2026-04-16T07:19:12.309Z"}}'
)
URL = "https://tempfile.example.com/a.png"


def answer(body: Any, status: int = 200) -> WireResponse:
    return WireResponse(status=status, body=(body if isinstance(body, str) else json.dumps(body)).encode())


def test_the_recorded_success_is_read() -> None:
    """Address, size and kind of the vendor's own answer."""
    stored = parse_upload(answer(REAL))
    assert stored.url.endswith("/1776323952044-dtzo7rcrpdj.png")
    assert (stored.size, stored.content_type) == (70, "image/png")


@pytest.mark.parametrize(
    "body",
    [
        {"success": True, "code": 200, "data": {"fileUrl": URL}},
        {"success": True, "data": {"downloadUrl": "", "fileUrl": URL}},
        {"code": "200", "data": {"downloadUrl": URL, "fileSize": None, "mimeType": None}},
    ],
)
def test_the_other_shapes_of_success_are_read(body: dict[str, Any]) -> None:
    """The quickstart page's fileUrl, a code as text, and either level of success missing."""
    stored = parse_upload(answer(body))
    assert (stored.url, stored.size, stored.content_type) == (URL, None, None)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {"success": False, "code": 400, "msg": "Missing required parameter: uploadPath"},
            UploadRejected,
        ),
        (200, {"success": False, "code": 400, "msg": "File size exceeds"}, UploadRejected),
        (400, "", UploadRejected),
        (405, "<html>", UploadRejected),
        (404, "<html>not here</html>", UploadRejected),
        (401, {"success": False, "code": 401, "msg": "Authentication failed"}, AuthenticationError),
        (200, {"success": False, "code": 401, "msg": "Authentication failed"}, AuthenticationError),
        (401, "<html>", AuthenticationError),
        (429, {"success": False, "code": 429, "msg": "slow down"}, RateLimitedError),
        (500, {"success": False, "code": 500, "msg": "Internal server error"}, ServerError),
        (502, "<html>", ServerError),
        (599, {"success": False}, ServerError),
        (500, {"success": True, "code": 200, "data": {"downloadUrl": URL}}, ServerError),
        (200, {"success": False, "code": 200, "msg": "no"}, UnexpectedResponse),
        (
            200,
            {"success": True, "code": 200, "data": {"success": False, "downloadUrl": URL}},
            UnexpectedResponse,
        ),
        (200, {"success": True, "code": 200, "data": {}}, UnexpectedResponse),
        (200, {"success": True, "code": 200, "data": [URL]}, UnexpectedResponse),
        (200, REAL[:-9], UnexpectedResponse),
        (200, "", UnexpectedResponse),
        (302, "", UnexpectedResponse),
    ],
)
def test_every_refused_upload_is_free_and_has_advice(
    status: int, body: Any, expected: type[FluxError]
) -> None:
    """Real HTTP statuses, and 200 with success false: one error each, none of them charged."""
    with pytest.raises(expected) as caught:
        parse_upload(answer(body, status))
    assert type(caught.value) is expected
    assert caught.value.charge is Charge.NO
    assert "second charge" not in str(caught.value)
    stops = expected is AuthenticationError or status == 302
    assert (caught.value.scope is Scope.STOP) is stops


def test_a_form_is_multipart_and_not_json() -> None:
    """The file stands between the two parts; the request has the form's content type."""
    before, after = form_around(file_name="f.png", content_type="image/png", boundary="b0")
    text = (before + b"DATA" + after).decode()
    assert text.startswith("--b0\r\n")
    assert text.endswith("Content-Type: image/png\r\n\r\nDATA\r\n--b0--\r\n")
    assert f'name="uploadPath"\r\n\r\n{FOLDER}\r\n' in text
    assert 'name="fileName"\r\n\r\nf.png\r\n' in text
    wire = build_stream_upload(object(), "b0")  # type: ignore[arg-type]
    assert (wire.host, wire.content_type) == (Host.UPLOADS, "multipart/form-data; boundary=b0")
    assert not FOLDER.startswith("/")
    assert not FOLDER.endswith("/")


def test_a_url_upload_names_an_unguessable_folder() -> None:
    """JSON with the address; the host names the file, which may be of any kind."""
    wire = build_url_upload("https://h/é.png", secret="s3", name="my é photo.png")
    body = json.loads(wire.body or b"")
    assert body == {"fileUrl": "https://h/é.png", "uploadPath": f"{FOLDER}/my-photo-s3"}
    assert (wire.host, wire.content_type) == (Host.UPLOADS, "application/json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "s.jpg"),
        ("holiday.png", "holiday-s.jpg"),
        ("../../etc/passwd", "passwd-s.jpg"),
        ('a"\r\nX: y', "a-X-y-s.jpg"),
        ("ü", "s.jpg"),
        ("x" * 99, "x" * 60 + "-s.jpg"),
    ],
)
def test_names_are_safe_and_never_without_the_secret(name: str | None, expected: str) -> None:
    """No file name can leave its folder or its header line."""
    assert upload_name("s", ".jpg", name) == expected


def test_a_name_that_is_none_is_refused() -> None:
    """Before anything is read or sent."""
    with pytest.raises(InvalidInput, match="name"):
        upload_name("s", ".jpg", 7)  # type: ignore[arg-type]
