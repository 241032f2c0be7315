"""The sandbox as an application, in-process: replies byte for byte, files, uploads, the page, garbage."""

from __future__ import annotations

import asyncio
import base64
import builtins
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import attrs
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from flux_async.sandbox import SandboxSettings, create_app

GENERATE = "/api/v1/flux/kontext/generate"
RECORD = "/api/v1/flux/kontext/record-info"
CREATE_TASK, JOB_RECORD = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo"
MODELS = "/api/v1/models"
CREDIT = "/api/v1/chat/credit"
DOWNLOAD = "/api/v1/common/download-url"
STREAM, BASE64, URL = "/api/file-stream-upload", "/api/file-base64-upload", "/api/file-url-upload"

KEY = {"Authorization": "Bearer test"}
JSON = {"Content-Type": "application/json"}
PROMPT = {"prompt": "A lighthouse at dusk"}
JOB = {"model": "flux1-kontext", "input": PROMPT}
BEGIN = 1_787_093_500.0
MINUTE, DAY = 60.0, 86_400.0
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNoaGgAAAMEAYF1LgG8AAAAAElFTkSuQmCC"
)


BAD_KEY_REPLY = (
    b'{"code":401,"msg":"Unauthorized \xe2\x80\x93 Authentication failed. Please check that your'
    b' Authorization and Content-Type headers are correctly set."}'
)


@attrs.define
class Clock:
    """Vendor time, moved by hand."""

    now: float = BEGIN

    def __call__(self) -> float:
        """Return the present."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(clock: Clock) -> Starlette:
    return create_app(SandboxSettings(images="none", seed=1, credits=5916.25), clock=clock)


@pytest.fixture
async def web(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox", headers=KEY) as client:
        yield client


async def new_task(web: httpx.AsyncClient, **body: object) -> str:
    reply = await web.post(GENERATE, json=PROMPT | body)
    return str(reply.json()["data"]["taskId"])


async def record(web: httpx.AsyncClient, task_id: str) -> dict[str, Any]:
    data = (await web.get(RECORD, params={"taskId": task_id})).json()["data"]
    assert isinstance(data, dict)
    return data


# Replies, byte for byte


async def test_submit_reply(web: httpx.AsyncClient) -> None:
    """A submit is answered as recorded: compact JSON and the vendor's content type."""
    reply = await web.post(GENERATE, json=PROMPT)
    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == "application/json;charset=UTF-8"
    assert re.fullmatch(rb'\{"code":200,"msg":"success","data":\{"taskId":"[0-9a-f]{32}"\}\}', reply.content)


async def test_dropped_reply_in_process(clock: Clock) -> None:
    """Without a connection to close, a dropped reply is an error for the caller of the application."""
    app = create_app(SandboxSettings(images="none", faults="drop-reply"), clock=clock)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox", headers=KEY) as web:
        with pytest.raises(ConnectionResetError, match="closed this connection"):
            await web.post(GENERATE, json=PROMPT)
        assert (await web.get("/__sandbox/ledger")).json()["charged"] == 5.0


async def test_credit_reply(web: httpx.AsyncClient) -> None:
    """The balance is a bare float."""
    assert (await web.get(CREDIT)).content == b'{"code":200,"msg":"success","data":5916.25}'


async def test_unknown_task_reply(web: httpx.AsyncClient) -> None:
    """An unknown task is HTTP 200 with code 422, as recorded."""
    reply = await web.get(RECORD, params={"taskId": "task12345"})
    assert (reply.status_code, reply.content) == (
        200,
        b'{"code":422,"msg":"The record does not exist","data":null}',
    )


async def test_jobs_api(web: httpx.AsyncClient, clock: Clock) -> None:
    """Its three paths answer; a record is read through the API of its submit only, its link without a key."""
    data = (await web.post(CREATE_TASK, json=JOB)).json()["data"]
    assert data["taskId"] == data["recordId"]
    asked = {"taskId": data["taskId"]}
    assert (await web.get(JOB_RECORD, params=asked)).json()["data"]["state"] == "waiting"
    assert (await web.get(RECORD, params=asked)).json()["code"] == 422
    clock.now += 2 * MINUTE
    record = (await web.get(JOB_RECORD, params=asked)).json()["data"]
    assert record["state"] == "success"
    image = await web.get(record["response"]["resultUrls"][0], headers={"Authorization": ""})
    assert image.headers["Content-Type"] == "image/jpeg"
    reply = await web.get(JOB_RECORD, params={"taskId": "test"})
    assert (reply.status_code, reply.content) == (
        200,
        b'{"code":422,"msg":"recordInfo is null","data":null}',
    )
    listed = (await web.get(MODELS, params={"q": "kontext"})).json()["data"]
    assert [entry["model"] for entry in listed["models"]] == ["flux1-kontext"]
    headers = KEY | {"Content-Type": "text/plain"}
    assert (await web.post(CREATE_TASK, content=b"{}", headers=headers)).content == BAD_KEY_REPLY


async def test_foreign_url_reply(web: httpx.AsyncClient) -> None:
    """A fresh link to a foreign URL is refused as recorded."""
    reply = await web.post(DOWNLOAD, json={"url": "https://example.com/image.png"})
    assert (reply.status_code, reply.content) == (200, b'{"code":422,"msg":"url is wrong","data":null}')


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            "Bearer wrong",
            BAD_KEY_REPLY,
        ),
        ("", b'{"code":401,"msg":"You do not have access permissions"}'),
        ("Basic dGVzdA==", b'{"code":401,"msg":"You do not have access permissions"}'),
    ],
)
async def test_wrong_key_reply(web: httpx.AsyncClient, key: str, expected: bytes) -> None:
    """A wrong key is HTTP 200, code 401, without data and with an en dash."""
    for reply in (
        await web.post(GENERATE, json=PROMPT, headers={"Authorization": key}),
        await web.get(RECORD, params={"taskId": "x"}, headers={"Authorization": key}),
        await web.post(CREATE_TASK, json=JOB, headers={"Authorization": key}),
        await web.get(JOB_RECORD, params={"taskId": "x"}, headers={"Authorization": key}),
        await web.get(MODELS, headers={"Authorization": key}),
        await web.get(CREDIT, headers={"Authorization": key}),
        await web.post(DOWNLOAD, json={"url": "x"}, headers={"Authorization": key}),
    ):
        assert (reply.status_code, reply.content) == (200, expected)


async def test_key_with_spaces_around_it(web: httpx.AsyncClient) -> None:
    """Spaces around the key do not matter."""
    reply = await web.get(CREDIT, headers={"Authorization": "bearer  test "})
    assert reply.json()["code"] == 200


async def test_submit_without_json_content_type(web: httpx.AsyncClient) -> None:
    """A submit without a JSON content type is answered like a wrong key."""
    for path in (GENERATE, DOWNLOAD):
        reply = await web.post(path, content=b'{"prompt":"x"}')
        assert reply.json()["code"] == 401


async def test_rate_limit_reply(web: httpx.AsyncClient, clock: Clock) -> None:
    """The 21st submit is HTTP 429 with code 429 in the body; 10 s after the first the way is free."""
    for _ in range(20):
        assert (await web.post(GENERATE, json=PROMPT)).status_code == 200
    reply = await web.post(GENERATE, json=PROMPT)
    assert reply.status_code == 429
    assert reply.content == (
        b'{"code":429,"msg":"Your call frequency is too high. Please try again later.","data":null}'
    )
    assert "Retry-After" not in reply.headers
    clock.now += 10
    assert (await web.post(GENERATE, json=PROMPT)).status_code == 200


async def test_record_replies(web: httpx.AsyncClient, clock: Clock) -> None:
    """A record goes from pending to finished with the vendor's key order and spelling of times."""
    task_id = await new_task(web, aspectRatio="1:1")
    head = (
        f'{{"code":200,"msg":"success","data":{{"taskId":"{task_id}","paramJson":'
        '"{\\"aspectRatio\\":\\"1:1\\",\\"prompt\\":\\"A lighthouse at dusk\\"}",'
    )
    tail = '"createTime":1787093500000,"successFlag":'
    pending = (await web.get(RECORD, params={"taskId": task_id})).text
    assert pending == (
        head + '"response":null,"completeTime":null,' + tail + '0,"errorCode":null,"errorMessage":null}}'
    )
    clock.now += 120
    finished = (await web.get(RECORD, params={"taskId": task_id})).text
    links = r'"response":\{"originImageUrl":"http://sandbox/files/origin/[0-9a-f]{32}\.jpg",'
    links += r'"resultImageUrl":"http://sandbox/files/result/[0-9a-f]{32}\.jpg"\},"completeTime":\d{10}000,'
    expected = re.escape(head) + links + re.escape(tail + '1,"errorCode":null,"errorMessage":""}}')
    assert re.fullmatch(expected, finished)


async def test_unknown_path(web: httpx.AsyncClient) -> None:
    """An unknown path is HTTP 404 with a page that is not JSON."""
    reply = await web.get("/api/v1/flux/kontext/edit")
    assert reply.status_code == 404
    assert reply.text.startswith("<html>")


async def test_wrong_method(web: httpx.AsyncClient) -> None:
    """A submit by GET is HTTP 405."""
    assert (await web.get(GENERATE)).status_code == 405


@pytest.mark.parametrize("path", [CREDIT, "/files/result/x.jpg", "/kieai/1/x.png"])
async def test_default_agent_of_urllib_is_turned_away(web: httpx.AsyncClient, path: str) -> None:
    """The default User-Agent of urllib is answered with 403 and a line of text."""
    reply = await web.get(path, headers={"User-Agent": "Python-urllib/3.11"})
    assert (reply.status_code, reply.text) == (403, "error code: 1010")


async def test_body_too_large(web: httpx.AsyncClient) -> None:
    """A submit of more than a megabyte is HTTP 413."""
    reply = await web.post(GENERATE, json={"prompt": "x" * (1024 * 1024)})
    assert reply.status_code == 413


@pytest.mark.parametrize(
    "host", ["sandbox:1", "127.0.0.1:8080", "[::1]:80", "a b", "x/../y", "a" * 300, "@evil"]
)
async def test_links_follow_the_host_header(web: httpx.AsyncClient, clock: Clock, host: str) -> None:
    """Links lead where the caller found the service; a Host that is no host is not believed."""
    task_id = await new_task(web)
    clock.now += 120
    reply = await web.get(RECORD, params={"taskId": task_id}, headers={"Host": host})
    url = httpx.URL(reply.json()["data"]["response"]["resultImageUrl"])
    wild = host in ("a b", "x/../y", "a" * 300, "@evil")
    assert url.netloc.decode() == ("sandbox" if wild else host.removesuffix(":80"))


# Files


async def test_links_begin_with_the_public_address(clock: Clock) -> None:
    """Behind a tunnel, links lead through it; the sandbox fetches its own files itself."""
    public = "https://tunnel.example"
    app = create_app(SandboxSettings(images="none", seed=1, public_url=f"{public}/"), clock=clock)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787", headers=KEY) as web,
    ):
        task_id = await new_task(web)
        clock.now += 120
        result = (await record(web, task_id))["response"]["resultImageUrl"]
        assert result.startswith(f"{public}/files/")
        fresh = (await web.post(DOWNLOAD, json={"url": result})).json()["data"]
        assert fresh.startswith(f"{public}/files/")
        body = {"fileUrl": result, "uploadPath": "images"}
        uploaded = (await web.post(URL, json=body)).json()
        assert uploaded["code"] == 200, uploaded
        assert uploaded["data"]["downloadUrl"].startswith(f"{public}/kieai/")
        assert (await web.get("/samples/")).json()["samples"][0]["url"].startswith(f"{public}/samples/")


@pytest.mark.parametrize(("output_format", "magic"), [("jpeg", b"\xff\xd8"), ("png", b"\x89PNG")])
async def test_results_are_plain_files(
    web: httpx.AsyncClient, clock: Clock, output_format: str, magic: bytes
) -> None:
    """A result is fetched without a key, has its content type and is what was asked for."""
    task_id = await new_task(web, outputFormat=output_format)
    clock.now += 120
    url = (await record(web, task_id))["response"]["resultImageUrl"]
    reply = await web.get(url, headers={"Authorization": ""})
    assert reply.headers["Content-Type"] == f"image/{output_format}"
    assert reply.content.startswith(magic)
    assert (await web.head(url)).status_code == 200


async def test_files_expire(web: httpx.AsyncClient, clock: Clock) -> None:
    """An origin dies after 10 minutes, a result after 14 days, a fresh link after 20 minutes."""
    task_id = await new_task(web)
    clock.now += 120
    links = (await record(web, task_id))["response"]
    clock.now += 10 * MINUTE
    assert (await web.get(links["originImageUrl"])).status_code == 403
    assert (await web.get(links["resultImageUrl"])).status_code == 200
    fresh = (await web.post(DOWNLOAD, json={"url": links["resultImageUrl"]})).json()["data"]
    assert (await web.get(fresh)).status_code == 200
    clock.now += 20 * MINUTE
    assert (await web.get(fresh)).status_code == 403
    clock.now += 14 * DAY
    assert (await web.get(links["resultImageUrl"])).status_code == 404
    gone = await web.post(DOWNLOAD, json={"url": links["resultImageUrl"]})
    assert gone.json()["msg"] == "url is wrong"


# Uploads

UPLOADED = re.compile(
    r'\{"success":true,"code":200,"msg":"File uploaded successfully","data":\{"success":true,'
    r'"fileName":"(?P<name>[^"]+)","filePath":"kieai/\d+/images/in/(?P=name)",'
    r'"downloadUrl":"(?P<url>http://sandbox/kieai/\d+/images/in/(?P=name))",'
    r'"fileSize":70,"mimeType":"image/png","uploadedAt":"2026-08-18T22:51:40\.000Z"\}\}'
)
PIXEL_TEXT = base64.b64encode(PIXEL).decode()


@pytest.mark.parametrize(
    "request_parts",
    [
        (STREAM, {"files": {"file": ("cat.png", PIXEL, "image/png")}, "data": {"uploadPath": "images/in"}}),
        (BASE64, {"json": {"base64Data": PIXEL_TEXT, "uploadPath": "images/in"}}),
        (BASE64, {"json": {"base64Data": f"data:image/png;base64,{PIXEL_TEXT}", "uploadPath": "images/in"}}),
    ],
    ids=["stream", "base64", "data url"],
)
async def test_upload(
    web: httpx.AsyncClient, request_parts: tuple[str, dict[str, Any]], clock: Clock
) -> None:
    """An upload is answered as recorded, is served as it came, and dies after a day."""
    path, parts = request_parts
    assert len(PIXEL) == 69
    reply = await web.post(path, **parts)
    match = UPLOADED.fullmatch(reply.text.replace('"fileSize":69', '"fileSize":70'))
    assert match, reply.text
    assert re.fullmatch(r"1787093500000-[0-9a-z]{11}\.png", match["name"])
    served = await web.get(match["url"], headers={"Authorization": ""})
    assert (served.content, served.headers["Content-Type"]) == (PIXEL, "image/png")
    clock.now += DAY
    assert (await web.get(match["url"])).status_code == 404


async def test_upload_keeps_its_name(web: httpx.AsyncClient) -> None:
    """A file name that was sent is kept, escaped in the URL, and overwritten by the next of that name."""
    urls = []
    for content in (b"one", b"two"):
        form = {"uploadPath": "in", "fileName": "my cat.txt"}
        reply = await web.post(STREAM, files={"file": ("x", content, "text/plain")}, data=form)
        urls.append(reply.json()["data"]["downloadUrl"])
    assert urls[0] == urls[1]
    assert urls[0].endswith("/in/my%20cat.txt")
    assert (await web.get(urls[0])).text == "two"


async def test_uploaded_pages_are_defused(web: httpx.AsyncClient) -> None:
    """An uploaded page cannot run scripts in the sandbox's own origin."""
    form = {"uploadPath": "in"}
    reply = await web.post(STREAM, files={"file": ("x.html", b"<script>", "text/html")}, data=form)
    served = await web.get(reply.json()["data"]["downloadUrl"])
    assert served.headers["Content-Security-Policy"].startswith("sandbox")


@pytest.mark.parametrize(
    ("path", "parts", "message"),
    [
        (STREAM, {"data": {"uploadPath": "in"}}, "Missing required parameter: file"),
        (STREAM, {"files": {"file": ("x", b"x")}}, "Missing required parameter: uploadPath"),
        (
            STREAM,
            {"files": {"file": ("x", b"x")}, "data": {"uploadPath": "/in"}},
            "Invalid parameter: uploadPath",
        ),
        (
            STREAM,
            {"files": {"file": ("x", b"x")}, "data": {"uploadPath": "a/../b"}},
            "Invalid parameter: uploadPath",
        ),
        (
            STREAM,
            {"files": {"file": ("x", b"x")}, "data": {"uploadPath": "in", "fileName": "../x"}},
            "Invalid parameter: fileName",
        ),
        (
            STREAM,
            {"content": b"broken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            None,
        ),
        (STREAM, {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, None),
        (BASE64, {"json": {"uploadPath": "in"}}, "Missing required parameter: base64Data"),
        (BASE64, {"json": {"base64Data": PIXEL_TEXT}}, "Missing required parameter: uploadPath"),
        (
            BASE64,
            {"json": {"base64Data": "no!", "uploadPath": "in"}},
            "Base64 decoding failed: Invalid Base64 format",
        ),
        (BASE64, {"json": []}, "The request body must be a JSON object"),
        (
            BASE64,
            {"json": {"base64Data": "AAAA" * (7 * 512 * 1024), "uploadPath": "in"}},
            "File size exceeds the limit of 10MB",
        ),
        (BASE64, {"content": b" " * (16 * 1024 * 1024)}, "File size exceeds the limit"),
    ],
)
async def test_refused_upload(
    web: httpx.AsyncClient, path: str, parts: dict[str, Any], message: str | None
) -> None:
    """A bad upload is a real HTTP 400 with success false and no data."""
    reply = await web.post(path, **parts)
    assert reply.status_code == 400
    body = reply.json()
    assert list(body) == ["success", "code", "msg"]
    assert (body["success"], body["code"]) == (False, 400)
    if message is not None:
        assert body["msg"] == message


@pytest.mark.parametrize("path", [STREAM, BASE64, URL])
async def test_upload_with_a_wrong_key(web: httpx.AsyncClient, path: str) -> None:
    """A wrong key on the upload host is a real HTTP 401."""
    reply = await web.post(path, headers={"Authorization": "Bearer wrong"})
    assert reply.status_code == 401
    assert reply.content == b'{"success":false,"code":401,"msg":"Authentication failed: Invalid API Key"}'


async def test_upload_by_url(app: Starlette, web: httpx.AsyncClient, image_host: Any) -> None:
    """A file named by URL is fetched and served; what cannot be fetched is refused."""
    async with app.router.lifespan_context(app):
        body = {"fileUrl": f"{image_host.url}/moved/poster.png", "uploadPath": "in", "fileName": "p.png"}
        reply = await web.post(URL, json=body)
        served = await web.get(reply.json()["data"]["downloadUrl"])
        assert (served.headers["Content-Type"], served.content) == image_host.files["/poster.png"]
        for url, message in (
            (f"{image_host.url}/missing.png", "File download failed: the URL could not be fetched"),
            ("ftp://example.com/x", "Invalid parameter: fileUrl must be an http or https URL"),
            ("", "Missing required parameter: fileUrl"),
        ):
            refused = await web.post(URL, json={"fileUrl": url, "uploadPath": "in"})
            assert (refused.status_code, refused.json()["msg"]) == (400, message)


# What the vendor does not have


async def test_the_ledger_lists_tasks_charges_and_polls(web: httpx.AsyncClient, clock: Clock) -> None:
    """It needs no key."""
    image = "https://example.com/a.jpg"
    task_id = await new_task(web, inputImage=image, callBackUrl="https://example.com/hook")
    await record(web, task_id)
    clock.now += 120
    ledger = (await web.get("/__sandbox/ledger", headers={"Authorization": ""})).json()
    assert ledger["credits"] == 5911.25
    assert (ledger["submits"], ledger["accepted"], ledger["charged"], ledger["polls"]) == (1, 1, 5.0, 1)
    assert ledger["images"][image]["tasks"] == [task_id]
    [task] = ledger["tasks"]
    assert (task["state"], task["createdAt"], task["callBackUrl"]) == (
        "SUCCESS",
        BEGIN,
        "https://example.com/hook",
    )


async def test_page_escapes_what_it_shows(web: httpx.AsyncClient) -> None:
    """The page shows the tasks, and a prompt cannot put markup on it."""
    await new_task(web, prompt="<script>alert(1)</script>")
    page = await web.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "&lt;script&gt;alert(1)" in page.text
    assert "<script>alert" not in page.text


async def test_page_part(web: httpx.AsyncClient, clock: Clock) -> None:
    """The part that is refreshed lists the newest 60 tasks and counts the others."""
    task_ids = []
    for _ in range(62):
        clock.now += 1
        task_ids.append(await new_task(web))
    part = (await web.get("/__sandbox/tasks")).text
    assert part.count("<article") == 60
    assert "and 2 older" in part
    assert part.index(task_ids[-1]) < part.index(task_ids[-2])


async def test_missing_thumbnail(web: httpx.AsyncClient) -> None:
    """A thumbnail of a task without one is 404."""
    task_id = await new_task(web)
    assert (await web.get(f"/__sandbox/thumbnails/{task_id}/after.jpg")).status_code == 404


async def test_samples(web: httpx.AsyncClient) -> None:
    """The samples are listed with absolute URLs and served as PNG."""
    samples = (await web.get("/samples/")).json()["samples"]
    assert all(set(sample) == {"name", "title", "url"} for sample in samples)
    image = await web.get(samples[0]["url"])
    assert image.headers["Content-Type"] == "image/png"
    assert image.content.startswith(b"\x89PNG")
    assert (await web.get("/samples/no-such.png")).status_code == 404


async def test_samples_may_be_absent(web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the means to draw samples there are none, and nothing breaks."""
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "flux_async.sandbox" and "samples" in (arguments[2] or ()):
            raise ImportError(name)
        return real_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert (await web.get("/samples/")).status_code == 404
    assert (await web.get("/samples/x.png")).status_code == 404


async def test_images_need_the_lifespan() -> None:
    """Asked for images without its lifespan, the app raises an error instead of never finishing."""
    app = create_app(SandboxSettings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", headers=KEY) as web:
        with pytest.raises(RuntimeError, match="lifespan"):
            await web.post(GENERATE, json=PROMPT)
        with pytest.raises(RuntimeError, match="lifespan"):
            await web.post(URL, json={})


# Garbage

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one takes a while to make

paths = st.sampled_from(
    [
        *(GENERATE, RECORD, CREATE_TASK, JOB_RECORD, MODELS, CREDIT, DOWNLOAD, STREAM, BASE64, URL),
        *("/", "/samples/x.png", "/files/a", "/kieai/b", "/unknown"),
        *("/__sandbox/ledger", "/__sandbox/tasks", "/__sandbox/thumbnails/a/b.jpg"),
    ]
)
header_text = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40)
content_types = st.sampled_from(
    ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", ""]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["prompt", "url", "uploadPath", "base64Data", "fileUrl"]), inner)
    ),
    max_leaves=8,
)
bodies = st.one_of(
    st.binary(max_size=300),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 100_000),
    st.just(b'{"prompt":' + b"9" * 5000 + b"}"),
    st.binary(max_size=100).map(
        lambda data: (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + data
            + b"\r\n--x--\r\n"
        )
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"]),
    path=paths,
    query=st.text(max_size=30),
    headers=st.tuples(st.just("sandbox") | header_text, st.just("Bearer test") | header_text, content_types),
    body=bodies,
)
def test_garbage_never_breaks_it(
    *, method: str, path: str, query: str, headers: tuple[str, str, str], body: bytes
) -> None:
    """Whatever arrives is answered with an HTTP status below 500, and no exception escapes."""
    names = (b"host", b"authorization", b"content-type")
    raw = [(name, value.encode("latin-1")) for name, value in zip(names, headers, strict=True)]

    async def send() -> int:
        app = create_app(SandboxSettings(images="none", seed=1), clock=Clock())
        transport = httpx.ASGITransport(app)
        async with AsyncExitStack() as stack:
            if path == URL:
                await stack.enter_async_context(app.router.lifespan_context(app))
            web = await stack.enter_async_context(httpx.AsyncClient(transport=transport, verify=NO_TLS))
            params = {"taskId": query, "url": query}
            url = f"http://sandbox{path}"
            return (await web.request(method, url, params=params, headers=raw, content=body)).status_code

    assert asyncio.run(send()) < 500


async def test_an_early_answer_waits_for_the_rest_of_the_body() -> None:
    """A socket closed with bytes unread would reset the connection and lose a 401 on its way."""
    parts = [{"type": "http.request", "body": b"x" * 9, "more_body": n < 3} for n in range(4)]
    sent: list[tuple[str, int]] = []

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append((message["type"], len(parts)))

    path = "/api/file-stream-upload"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await create_app(SandboxSettings(images="none"))(scope | {"headers": []}, receive, send)
    assert sent[0] == ("http.response.start", 0)
