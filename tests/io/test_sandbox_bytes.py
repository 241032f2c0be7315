"""The vendor's own answers, recorded or documented, come out of the sandbox byte for byte.

The samples were recorded, or stand in the vendor's documentation; ``<id>``, ``<ms>`` and their like hold the
place of what differs from one exchange to the next.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import attrs
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from flux_async.sandbox import Sandbox, SandboxSettings, VirtualTime
from flux_async.sandbox.server import listening

GENERATE = "/api/v1/flux/kontext/generate"
RECORD = "/api/v1/flux/kontext/record-info"
CREDIT = "/api/v1/chat/credit"
DOWNLOAD = "/api/v1/common/download-url"
STREAM, BASE64 = "/api/file-stream-upload", "/api/file-base64-upload"
KEY = {"Authorization": "Bearer test"}
IMAGE = "https://example.com/photo.jpg"
# 70 bytes, as in the recording.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)

PLACES = {
    "<id>": r"[0-9a-f]{32}",
    "<ms>": r"\d{10}000",
    "<url>": r"http://sandbox\.test/files/\w+/[0-9a-f]{32}\.jpg",
    "<uid>": r"\d+",
    "<name>": r"\d{13}-[0-9a-z]{11}\.png",
    "<iso>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    "<host>": r"http://sandbox\.test",
}

SUBMITTED = '{"code":200,"msg":"success","data":{"taskId":"<id>"}}'
NO_RECORD = '{"code":422,"msg":"The record does not exist","data":null}'
EMPTY = '{"code":200,"msg":"success","data":null}'
WRONG_URL = '{"code":422,"msg":"url is wrong","data":null}'
UNAUTHORIZED = (
    '{"code":401,"msg":"Unauthorized \N{EN DASH} Authentication failed. Please check that your '
    'Authorization and Content-Type headers are correctly set."}'
)
NO_KEY = '{"code":401,"msg":"You do not have access permissions"}'
SERVER_ERROR = (
    '{"code":500,"msg":"Server Error - An unexpected error occurred while processing the request",'
    '"data":null}'
)
PENDING = (
    '{"code":200,"msg":"success","data":{"taskId":"<id>","paramJson":"{…}","response":null,'
    '"completeTime":null,"createTime":<ms>,"successFlag":0,"errorCode":null,"errorMessage":null}}'
)
FAILED = (
    '{"code":200,"msg":"success","data":{"taskId":"<id>","paramJson":"{…}","response":null,'
    '"completeTime":<ms>,"createTime":<ms>,"successFlag":3,"errorCode":500,'
    '"errorMessage":"internal error, please try again later."}}'
)
CREDITS = '{"code":200,"msg":"success","data":5916.25}'
FRESH = '{"code":200,"msg":"success","data":"<url>"}'
UPLOADED = (
    '{"success":true,"code":200,"msg":"File uploaded successfully","data":{"success":true,'
    '"fileName":"<name>","filePath":"kieai/<uid>/images/test-uploads/<name>",'
    '"downloadUrl":"<host>/kieai/<uid>/images/test-uploads/<name>","fileSize":70,"mimeType":"image/png",'
    '"uploadedAt":"<iso>"}}'
)
NO_PATH = '{"success":false,"code":400,"msg":"Missing required parameter: uploadPath"}'
NO_BASE64 = '{"success":false,"code":400,"msg":"Base64 decoding failed: Invalid Base64 format"}'
NO_UPLOAD_KEY = '{"success":false,"code":401,"msg":"Authentication failed: Invalid API Key"}'
UPLOAD_BROKEN = '{"success":false,"code":500,"msg":"Internal server error"}'

NOTHING = '"info":{"originImageUrl":"","resultImageUrl":""}'
CALLBACKS = {
    "": '{"code":200,"msg":"BFL image generated successfully.","data":{"taskId":"<id>",'
    '"info":{"originImageUrl":"<url>","resultImageUrl":"<url>"}}}',
    "fail-400": '{"code":400,"msg":"Your prompt was flagged by Website as violating content policies.",'
    f'"data":{{"taskId":"<id>",{NOTHING}}}}}',
    "fail-501": f'{{"code":501,"msg":"Image generation task failed","data":{{"taskId":"<id>",{NOTHING}}}}}',
    "fail-500": '{"code":500,"msg":"Internal Error, Please try again later.",'
    f'"data":{{"taskId":"<id>",{NOTHING}}}}}',
}


def is_like(content: bytes, sample: str) -> bool:
    """Say whether an answer is a sample, byte for byte but for ids and times."""
    pattern = re.escape(sample)
    for place, expression in PLACES.items():
        pattern = pattern.replace(re.escape(place), expression)
    pattern = pattern.replace(re.escape("{…}"), r'\{(?:[^"\\]|\\.)*\}')
    return re.fullmatch(pattern, content.decode()) is not None


@attrs.frozen
class Box:
    """A sandbox on virtual time, and a client of it."""

    sandbox: Sandbox
    web: httpx.AsyncClient

    async def submit(self, fault: str = "", **body: object) -> httpx.Response:
        """Submit an edit."""
        asked = {"prompt": "Remove all text", "inputImage": IMAGE} | body
        return await self.web.post(GENERATE, json=asked, headers={"X-Sandbox-Fault": fault})

    async def record(self, reply: httpx.Response) -> httpx.Response:
        """Look at the task a submit made."""
        return await self.web.get(RECORD, params={"taskId": reply.json()["data"]["taskId"]})


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    settings = SandboxSettings(images="none", credits=5916.25)
    async with Sandbox(settings, clock=VirtualTime()) as sandbox, sandbox.http_client(KEY) as web:
        yield Box(sandbox, web)


def assert_like(reply: httpx.Response, sample: str, status: int = 200) -> None:
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/json;charset=UTF-8"
    assert is_like(reply.content, sample), reply.text


async def test_submits(box: Box) -> None:
    """A submit that is accepted, one that fails without a task, and three without a good key."""
    assert_like(await box.submit(), SUBMITTED)
    assert_like(await box.submit("500"), SERVER_ERROR)
    assert_like(await box.web.post(GENERATE, json={}, headers={"Authorization": "Bearer no"}), UNAUTHORIZED)
    assert_like(await box.web.post(GENERATE, content=b"{}"), UNAUTHORIZED)
    assert_like(await box.web.post(GENERATE, json={}, headers={"Authorization": ""}), NO_KEY)


async def test_records(box: Box) -> None:
    """The life of a task that fails, and tasks there are none of, in two spellings."""
    made = await box.submit("fail-500")
    assert_like(await box.record(made), PENDING)
    await box.sandbox.advance(120)
    assert_like(await box.record(made), FAILED)
    assert_like(await box.web.get(RECORD, params={"taskId": "task12345"}), NO_RECORD)
    assert_like(await box.record(await box.submit("late-record-null")), EMPTY)


async def test_parameters_are_echoed_as_sent(box: Box) -> None:
    """The field paramJson is compact JSON of the fields that were sent and of no others."""
    made = await box.submit(outputFormat="png", unknown=1)
    echo = (await box.record(made)).json()["data"]["paramJson"]
    assert json.loads(echo) == {"prompt": "Remove all text", "inputImage": IMAGE, "outputFormat": "png"}
    assert " :" not in echo
    assert ": " not in echo.replace("https://", "")


async def test_balance_and_links(box: Box) -> None:
    """The balance is a bare float, a fresh link a bare string, a foreign one wrong."""
    assert_like(await box.web.get(CREDIT), CREDITS)
    made = await box.submit()
    await box.sandbox.advance(120)
    link = (await box.record(made)).json()["data"]["response"]["resultImageUrl"]
    assert_like(await box.web.post(DOWNLOAD, json={"url": link}), FRESH)
    assert_like(await box.web.post(DOWNLOAD, json={"url": "https://example.com/x.png"}), WRONG_URL)


async def test_uploads(box: Box) -> None:
    """An upload, and the four ways in which it is documented to fail, with real HTTP statuses."""
    path = {"uploadPath": "images/test-uploads"}
    files = {"file": ("x.png", PIXEL, "image/png")}
    assert_like(await box.web.post(STREAM, files=files, data=path), UPLOADED)
    assert_like(await box.web.post(STREAM, files=files), NO_PATH, 400)
    assert_like(await box.web.post(BASE64, json={"base64Data": "?", **path}), NO_BASE64, 400)
    foreign = {"Authorization": "Bearer no"}
    assert_like(await box.web.post(BASE64, json=path, headers=foreign), NO_UPLOAD_KEY, 401)
    broken = {"X-Sandbox-Fault": "upload-500"}
    assert_like(await box.web.post(BASE64, json=path, headers=broken), UPLOAD_BROKEN, 500)


@pytest.mark.parametrize("fault", CALLBACKS)
async def test_callbacks(box: Box, fault: str) -> None:
    """The four documented callbacks."""
    seen: list[Any] = []

    async def hook(request: Request) -> PlainTextResponse:
        seen.append((request.headers["Content-Type"], await request.body()))
        return PlainTextResponse("ok")

    async with listening(Starlette(routes=[Route("/hook", hook, methods=["POST"])]), port=0) as url:
        await box.submit(fault, callBackUrl=f"{url}/hook")
        await box.sandbox.advance(120)
    [(content_type, body)] = seen
    assert content_type == "application/json"
    assert is_like(body, CALLBACKS[fault]), body
