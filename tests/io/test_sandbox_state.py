"""The sandbox's state file: tasks, money, links, images and callbacks survive a restart."""

from __future__ import annotations

import gc
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import local_http
from flux_async.sandbox import FaultPlan, Sandbox, SandboxError, SandboxSettings, VirtualTime, create_app
from flux_async.sandbox.server import listening

GENERATE = "/api/v1/flux/kontext/generate"
RECORD = "/api/v1/flux/kontext/record-info"
CREATE_TASK = "/api/v1/jobs/createTask"
JOB_RECORD = "/api/v1/jobs/recordInfo"
KEY = {"Authorization": "Bearer test"}
IMAGE = "https://pictures.example/poster.jpg"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite3"


def settings(file: Path, **options: Any) -> SandboxSettings:
    return SandboxSettings(images="none", seed=1, credits=100, state=file, **options)


def virtual(file: Path, plan: str = "", **options: Any) -> Sandbox:
    return Sandbox(settings(file, virtual_clock=True, **options), plan=FaultPlan.parse(plan))


async def submit(web: httpx.AsyncClient, fault: str = "", **body: object) -> str:
    asked = {"prompt": "x", "inputImage": IMAGE} | body
    reply = await web.post(GENERATE, json=asked, headers={"X-Sandbox-Fault": fault})
    return str(reply.json()["data"]["taskId"])


async def record_of(web: httpx.AsyncClient, task_id: str) -> bytes:
    return (await web.get(RECORD, params={"taskId": task_id})).content


async def test_everything_is_restored(file: Path) -> None:
    """Records, balance, ledger, links and the time are unchanged; no id is used twice."""
    async with virtual(file) as box, box.http_client(KEY) as web:
        ids = [await submit(web, fault) for fault in ("", "fail-400", "never-ends", "times-iso,no-refund")]
        await box.advance(120)
        ids.append(await submit(web))
        records = [await record_of(web, task_id) for task_id in ids]
        job = {"model": "flux1-kontext", "input": {"prompt": "x", "input_image": IMAGE}}
        asked = {"taskId": (await web.post(CREATE_TASK, json=job)).json()["data"]["taskId"]}
        ids.append(asked["taskId"])
        job_record = (await web.get(JOB_RECORD, params=asked)).content
        link = (await web.get(RECORD, params={"taskId": ids[0]})).json()["data"]["response"]["resultImageUrl"]
        image = (await web.get(link)).content
        form = {"uploadPath": "in", "fileName": "a.txt"}
        uploaded = await web.post("/api/file-stream-upload", files={"file": ("a", b"kept")}, data=form)
        book = box.record()
    async with virtual(file) as box, box.http_client(KEY) as web:
        assert box.record() == book
        assert [await record_of(web, task_id) for task_id in ids[:-1]] == records
        assert (await web.get(JOB_RECORD, params=asked)).content == job_record
        assert (await web.get(link)).content == image
        assert (await web.get(uploaded.json()["data"]["downloadUrl"])).content == b"kept"
        await box.advance(120)
        assert b'"successFlag":1' in await record_of(web, ids[-2])
        assert b'"state":"success"' in (await web.get(JOB_RECORD, params=asked)).content
        assert b'"successFlag":0' in await record_of(web, ids[2])
        assert await submit(web) not in ids
        assert box.credits == 100 - 5 * len(ids)


async def test_limits_and_faults_go_on(file: Path) -> None:
    """The rate window, the windows of faults, the position in the script and a disabled key are restored."""
    plan = "455@60-90,key-disabled=22"
    async with virtual(file, plan) as box, box.http_client(KEY) as web:
        for _ in range(20):
            await submit(web)
    async with virtual(file, plan) as box, box.http_client(KEY) as web:
        assert (await web.post(GENERATE, json={"prompt": "x"})).status_code == 429
        await box.advance(70)
        assert (await web.post(GENERATE, json={"prompt": "x"})).json()["code"] == 455
        assert (await web.post(GENERATE, json={"prompt": "x"})).json()["code"] == 401
    async with virtual(file, plan) as box, box.http_client(KEY) as web:
        assert (await web.get("/api/v1/chat/credit")).json()["code"] == 401


async def test_a_failure_that_flips_after_the_restart(file: Path) -> None:
    """What was still to happen to a task happens."""
    async with virtual(file) as box, box.http_client(KEY) as web:
        task_id = await submit(web, "timeout-flips=600")
        await box.advance(120)
        assert b'"successFlag":3' in await record_of(web, task_id)
    async with virtual(file) as box, box.http_client(KEY) as web:
        assert b'"successFlag":3' in await record_of(web, task_id)
        await box.advance(600)
        assert b'"successFlag":1' in await record_of(web, task_id)


async def test_callbacks_go_on(file: Path) -> None:
    """A callback that was not accepted is delivered after the restart, at its time."""
    answers = [503, 200]
    seen: list[bytes] = []

    async def hook(request: Request) -> PlainTextResponse:
        seen.append(await request.body())
        return PlainTextResponse("", answers.pop(0))

    async with listening(Starlette(routes=[Route("/hook", hook, methods=["POST"])]), port=0) as url:
        async with virtual(file) as box, box.http_client(KEY) as web:
            await submit(web, callBackUrl=f"{url}/hook")
            await box.advance(40)
        assert len(seen) == 1
        async with virtual(file) as box:
            await box.advance(120)
            assert len(seen) == 2
            assert seen[0] == seen[1]
            [task] = box.record()["tasks"]
            assert [attempt["status"] for attempt in task["callbacks"]] == [503, 200]
        async with virtual(file) as box:
            await box.advance(3600)
    assert answers == []


def test_killed(start_sandbox: Callable[..., Any], file: Path) -> None:
    """Killed right after an answer, it has not forgotten the task, and takes it up to its end."""
    options = ("--images", "none", "--state", str(file), "--speed", "50", "--seed", "2")
    ids: list[str] = []
    for _ in range(3):
        sandbox = start_sandbox(*options)
        for _ in range(3):
            reply = local_http.post(sandbox.url + GENERATE, json={"prompt": "x"}, headers=KEY)
            ids.append(reply.json()["data"]["taskId"])
        sandbox.stop(signal.SIGKILL)
    assert len(set(ids)) == 9
    url = start_sandbox(*options).url
    assert local_http.get(f"{url}/api/v1/chat/credit", headers=KEY).json()["data"] == 10_000 - 45
    end = time.monotonic() + 120
    while not all(ended(url, task_id) for task_id in ids):
        assert time.monotonic() < end
        time.sleep(0.05)


def ended(url: str, task_id: str) -> bool:
    data = local_http.get(url + RECORD, params={"taskId": task_id}, headers=KEY).json()["data"]
    return bool(data["successFlag"] == 1 and local_http.get(data["response"]["resultImageUrl"]).is_success)


def test_images_survive_a_restart(start_sandbox: Callable[..., Any], image_host: Any, file: Path) -> None:
    """An image that was being made when it was killed is made after the restart, and stays."""
    options = ("--state", str(file), "--speed", "100")
    sandbox = start_sandbox(*options)
    body = {"prompt": "Remove the text", "inputImage": f"{image_host.url}/poster.png"}
    task_id = local_http.post(sandbox.url + GENERATE, json=body, headers=KEY).json()["data"]["taskId"]
    sandbox.stop(signal.SIGKILL)
    sandbox = start_sandbox(*options)
    end = time.monotonic() + 120
    while not ended(sandbox.url, task_id):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert sandbox.stop() == 0
    sandbox = start_sandbox(*options)
    thumbnail = local_http.get(f"{sandbox.url}/__sandbox/thumbnails/{task_id}/after.jpg")
    assert thumbnail.content.startswith(b"\xff\xd8")
    links = local_http.get(sandbox.url + RECORD, params={"taskId": task_id}, headers=KEY).json()["data"]
    assert local_http.get(links["response"]["resultImageUrl"]).content.startswith(b"\xff\xd8")


def test_files_that_cannot_be_used(file: Path, tmp_path: Path) -> None:
    """A file in use, of an unsupported version or no database is refused in one sentence, and closed."""
    first = create_app(settings(file))
    with pytest.raises(SandboxError, match="another sandbox is using it"):
        create_app(settings(file))
    first.state.handlers.state.close()
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SandboxError, match="unsupported version"):
        create_app(settings(file))
    other = tmp_path / "note.txt"
    other.write_text("no database " * 100)
    for path in (other, tmp_path / "no" / "folder"):
        with pytest.raises(SandboxError, match="cannot be used"):
            create_app(settings(path))
    gc.collect()  # Python 3.13 warns of a database that was not closed, and warnings are errors


def test_virtual_time_goes_on(file: Path) -> None:
    """Virtual time begins where it ended."""
    first = create_app(settings(file, virtual_clock=True))
    first.state.handlers.now = VirtualTime(first.state.handlers.now() + 500)
    first.state.handlers.vendor.submit("test", {"prompt": "x"}, first.state.handlers.now())
    first.state.handlers.save()
    first.state.handlers.state.close()
    second = create_app(settings(file, virtual_clock=True))
    assert second.state.handlers.now() == first.state.handlers.now()
    second.state.handlers.state.close()
