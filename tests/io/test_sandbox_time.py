"""The sandbox on virtual time: answers repeat; and its ledger."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import attrs
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import local_http
from flux_async.sandbox import FaultPlan, Sandbox, SandboxError, SandboxSettings, VirtualTime
from flux_async.sandbox.clock import VIRTUAL_BEGIN
from flux_async.sandbox.server import listening

GENERATE = "/api/v1/flux/kontext/generate"
RECORD = "/api/v1/flux/kontext/record-info"
KEY = {"Authorization": "Bearer test"}
MINUTE = 60.0


@attrs.frozen
class Box:
    """A sandbox on virtual time, and a client of it."""

    sandbox: Sandbox
    web: httpx.AsyncClient

    async def submit(self, headers: dict[str, str] | None = None, **body: object) -> str:
        """Create a task and return its id."""
        reply = await self.web.post(GENERATE, json={"prompt": "A lighthouse"} | body, headers=headers)
        return str(reply.json()["data"]["taskId"])

    async def record_of(self, task_id: str) -> dict[str, Any]:
        """Return the record of a task."""
        data: dict[str, Any] = (await self.web.get(RECORD, params={"taskId": task_id})).json()["data"]
        return data


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with Sandbox(clock=VirtualTime()) as sandbox, sandbox.http_client(KEY) as web:
        yield Box(sandbox, web)


async def test_time_stands_still(box: Box) -> None:
    """Nothing ends until time is advanced, and then it ends at its own time."""
    task_id = await box.submit()
    assert (await box.record_of(task_id))["successFlag"] == 0
    await box.sandbox.advance(2 * MINUTE)
    record = await box.record_of(task_id)
    assert record["successFlag"] == 1
    assert record["createTime"] == VIRTUAL_BEGIN * 1000
    assert record["createTime"] < record["completeTime"] < record["createTime"] + 2 * MINUTE * 1000


async def test_everything_follows(box: Box) -> None:
    """The window of the rate limit, the life of links and the window of a fault are the vendor's time."""
    for _ in range(20):
        task_id = await box.submit()
    assert (await box.web.post(GENERATE, json={"prompt": "x"})).status_code == 429
    await box.sandbox.advance(10)
    assert (await box.web.post(GENERATE, json={"prompt": "x"})).status_code == 200
    await box.sandbox.advance(2 * MINUTE)
    link = (await box.record_of(task_id))["response"]["originImageUrl"]
    assert (await box.web.get(link)).status_code == 200
    await box.sandbox.advance(10 * MINUTE)
    assert (await box.web.get(link)).status_code == 403


async def test_a_slow_answer_waits_for_time(box: Box) -> None:
    """A submit that is answered late is answered when time has been advanced, and not before."""
    slow = asyncio.ensure_future(box.submit({"X-Sandbox-Fault": "slow-reply=30"}))  # noqa: TID251 - outlives
    await box.sandbox.advance(29)
    assert not slow.done()
    assert box.sandbox.ledger.accepted == 1
    await box.sandbox.advance(1)
    assert len(await slow) == 32


async def test_callbacks_and_their_retries_follow(box: Box) -> None:
    """A callback is delivered at the task's end and tried again after 1, 5 and 15 minutes, all at once."""
    seen: list[float] = []

    async def hook(_request: Request) -> PlainTextResponse:
        seen.append(box.sandbox.clock() - VIRTUAL_BEGIN)
        return PlainTextResponse("no", 500)

    async with listening(Starlette(routes=[Route("/hook", hook, methods=["POST"])]), port=0) as url:
        task_id = await box.submit(callBackUrl=f"{url}/hook")
        begun = time.monotonic()
        await box.sandbox.advance(60 * MINUTE)
        assert time.monotonic() - begun < 60
    gaps = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert gaps == pytest.approx([1 * MINUTE, 5 * MINUTE, 15 * MINUTE], abs=0.1)
    [task] = box.sandbox.record()["tasks"]
    assert task["taskId"] == task_id
    assert task["endedAt"] == pytest.approx(VIRTUAL_BEGIN + seen[0], abs=0.1)
    assert box.sandbox.ledger.callbacks.given_up == 1


async def all_answers(seed: int) -> list[bytes]:
    """Return all answers to one sequence of requests."""
    plan = FaultPlan.parse("drop-reply:10%,500:10%,fail-500:20%,late-record:20%,times-iso:30%", seed=seed)
    settings = SandboxSettings(images="none", seed=seed)
    answers = []
    async with Sandbox(settings, plan=plan, clock=VirtualTime()) as sandbox, sandbox.http_client(KEY) as web:
        ids: list[str] = []
        for number in range(40):
            body = {"prompt": "Remove the text", "inputImage": f"https://pictures.example/{number}.jpg"}
            try:
                reply = await web.post(GENERATE, json=body)
            except httpx.RemoteProtocolError:
                answers.append(b"dropped")
            else:
                answers.append(reply.content)
                ids += [reply.json()["data"]["taskId"]] if reply.json()["data"] else []
            await sandbox.advance(5)
            answers += [(await web.get(RECORD, params={"taskId": task_id})).content for task_id in ids]
        answers.append((await web.get("/api/v1/chat/credit")).content)
        answers.append((await web.get("/__sandbox/ledger")).content)
    return answers


async def test_answers_repeat() -> None:
    """The same seed and the same requests get the same answers, byte for byte; another seed others."""
    first = await all_answers(5)
    assert b"dropped" in first
    assert first == await all_answers(5)
    assert first != await all_answers(6)


async def test_misuse(box: Box) -> None:
    """Time does not run backwards, and real time cannot be advanced."""
    with pytest.raises(ValueError, match="at least 0"):
        await box.sandbox.advance(-1)
    async with Sandbox() as real:
        with pytest.raises(TypeError, match="VirtualTime"):
            await real.advance(1)


# Over HTTP


def test_control_over_http(start_sandbox: Any) -> None:
    """``--virtual-clock`` is moved by a POST; the clock of a sandbox without it is not."""
    sandbox = start_sandbox("--virtual-clock", "--images", "none")
    control = f"{sandbox.url}/__sandbox/clock"
    with httpx.Client(base_url=sandbox.url, headers=KEY, timeout=60) as web:
        task_id = web.post(GENERATE, json={"prompt": "x"}).json()["data"]["taskId"]
        assert web.post(control, json={"advance": 120}).json() == {"now": VIRTUAL_BEGIN + 120}
        assert web.get(RECORD, params={"taskId": task_id}).json()["data"]["successFlag"] == 1
        for body in ({"advance": -1}, {"advance": "1"}, {"advance": True}, {}, []):
            assert web.post(control, json=body).status_code == 400
    other = start_sandbox("--images", "none")
    reply = local_http.post(f"{other.url}/__sandbox/clock", json={"advance": 1})
    assert (reply.status_code, "--virtual-clock" in reply.json()["error"]) == (409, True)


async def test_two_on_one_port() -> None:
    """A port in use is an error of listening; the sandbox itself goes on."""
    async with Sandbox() as first, Sandbox() as second:
        port = httpx.URL(await first.listen()).port
        with pytest.raises(SandboxError, match="in use"):
            await second.listen(port=port or 0)
        async with httpx.AsyncClient(headers=KEY, timeout=60) as web:
            assert (await web.get(f"{await second.listen()}/api/v1/chat/credit")).json()["data"] == 10_000


# Faults that no submit of the client's asks for


async def test_faults_of_one_request(box: Box) -> None:
    """A header asks for faults of its own request; a misspelled one is refused."""
    refused = await box.web.post(GENERATE, json={"prompt": "x"}, headers={"X-Sandbox-Fault": "402"})
    assert refused.json()["code"] == 402
    balance = await box.web.get("/api/v1/chat/credit", headers={"X-Sandbox-Fault": "credits-as-text"})
    assert balance.content == b'{"code":200,"msg":"success","data":"10000"}'
    unknown = await box.web.post(GENERATE, json={"prompt": "x"}, headers={"X-Sandbox-Fault": "nonsense"})
    assert unknown.json()["code"] == 422
    assert unknown.json()["msg"].startswith("X-Sandbox-Fault: unknown fault 'nonsense'")
    assert box.sandbox.ledger.faults == {"402": 1, "credits-as-text": 1}


async def test_fresh_links(box: Box) -> None:
    """A fresh link works where the result's own is refused, unless none is given."""
    for faults, works in (("file-403", True), ("file-404=1", True), ("file-403,link-refused", False)):
        task_id = await box.submit({"X-Sandbox-Fault": faults})
        await box.sandbox.advance(2 * MINUTE)
        link = (await box.record_of(task_id))["response"]["resultImageUrl"]
        assert (await box.web.get(link)).status_code in (403, 404)
        fresh = (await box.web.post("/api/v1/common/download-url", json={"url": link})).json()
        assert (fresh["code"] == 200) is works
        assert not works or (await box.web.get(fresh["data"])).status_code == 200
        assert faults != "file-404=1" or (await box.web.get(link)).status_code == 200


# The ledger at the end


def test_ledger_in_the_end(start_sandbox: Any, tmp_path: Any) -> None:
    """``--ledger`` prints totals, faults and images to stderr, and a script decides what goes wrong."""
    script = tmp_path / "script.jsonl"
    script.write_text(json.dumps(["http-429"]) + "\n[]\n" + json.dumps(["500-paid"]) + "\n")
    options = ("--images", "none", "--ledger", "--fault-script", str(script))
    sandbox = start_sandbox(*options, stderr=True)
    image = "https://pictures.example/a.jpg"
    for _ in range(3):
        local_http.post(sandbox.url + GENERATE, json={"prompt": "x", "inputImage": image}, headers=KEY)
    book = local_http.get(f"{sandbox.url}/__sandbox/ledger").json()
    assert book["double_charges"] == [image]
    assert book["busiest_window"] == {"submits": 3, "accepted": 2}
    assert sandbox.stop() == 0
    lines = sandbox.process.stderr.read().splitlines()
    assert lines[0] == "submits 3   tasks 2   refused 1 (429: 1)   dropped 0"
    assert "faults: 500-paid 1, http-429 1" in lines
    assert "requests paid more than once: 1" in lines
    assert lines[-1].split() == ["3", "2", "10", "0", "0", image, "PAID", "TWICE"]
