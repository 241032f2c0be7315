"""The sandbox's callbacks over real sockets: signed, tried again, given up, and every fault on the wire."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import pytest

from flux_async.sandbox import Sandbox as InProcess
from flux_async.sandbox import SandboxSettings, create_app
from flux_async.sandbox.callbacks import is_this_machine
from flux_async.sandbox.server import main

GENERATE = "/api/v1/flux/kontext/generate"
RECORD = "/api/v1/flux/kontext/record-info"
API_KEY = {"Authorization": "Bearer test"}
KEY = "test-webhook-key"
SECONDS = 60
FAST = 1200.0  # a vendor's minute takes 50 ms
NO_ANSWER = 0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give receivers a minute: a busy machine may need longer than the second that holds here."""
    monkeypatch.setattr("flux_async.sandbox.callbacks.SHORTEST_LIMIT", float(SECONDS))


@attrs.frozen
class Received:
    """One request as it arrived.

    Attributes:
        target: Path and query, byte for byte.
        headers: With names in lower case.
        at: When, in seconds of a clock that never runs backwards.
    """

    target: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def data(self) -> dict[str, Any]:
        """The part that names the task."""
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data

    @property
    def timestamp(self) -> int:
        """When it claims to have been sent."""
        return int(self.headers["x-webhook-timestamp"])

    def is_signed(self) -> bool:
        """Whether the signature belongs to the key, the task it names and the timestamp."""
        message = f"{self.data['taskId']}.{self.headers['x-webhook-timestamp']}"
        digest = hmac.digest(KEY.encode(), message.encode(), hashlib.sha256)
        return self.headers["x-webhook-signature"] == base64.b64encode(digest).decode()


@attrs.define
class Receiver:
    """A web server that keeps requests and answers as configured.

    Attributes:
        answers: The statuses of the first requests, in order; later ones get 200. `NO_ANSWER` waits for ever.
        body: Of every answer.
        connections: How many were opened.
        when_called: Is awaited before each answer.
    """

    url: str = ""
    answers: list[int] = attrs.Factory(list)
    body: bytes = b"ok"
    received: list[Received] = attrs.Factory(list)
    connections: int = 0
    when_called: Callable[[], Awaitable[None]] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self.connections += 1
        try:
            while True:
                self.received.append(await self._read(reader))
                if self.when_called:
                    await self.when_called()
                status = self.answers.pop(0) if self.answers else 200
                if status == NO_ANSWER:
                    await reader.read()  # until the other side has had enough
                    return
                headers = f"Content-Length: {len(self.body)}\r\nSet-Cookie: a=b\r\nLocation: /elsewhere\r\n"
                writer.write(f"HTTP/1.1 {status} Word\r\n{headers}\r\n".encode() + self.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        method, target, _ = first.split(" ")
        assert method == "POST"
        body = await reader.readexactly(int(headers["content-length"]))
        return Received(target, headers, body, time.monotonic())


@asynccontextmanager
async def receiver(*answers: int) -> AsyncIterator[Receiver]:
    """Open a receiver on a port of its own."""
    opened = Receiver(answers=list(answers))
    server = await asyncio.start_server(opened.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    opened.url = f"http://{host}:{port}/hook"
    try:
        yield opened
    finally:
        server.close()  # to wait for it would be to wait, from Python 3.12 on, for connections kept alive


@attrs.frozen
class Sandbox:
    """A sandbox in this process, whose callbacks leave through real sockets."""

    web: httpx.AsyncClient

    async def submit(self, receiver: Receiver | None, *faults: str, query: str = "", **body: object) -> str:
        """Create a task with these faults and return its id."""
        asked = f"?sandbox-fault={','.join(faults)}" if faults else ""
        body = {"prompt": "x", "inputImage": f"https://example.com/a.png{asked}"} | body
        if receiver is not None:
            body["callBackUrl"] = receiver.url + query
        while (reply := await self.web.post(GENERATE, json=body)).status_code == 429:
            await asyncio.sleep(0.005)
        return str(reply.json()["data"]["taskId"])

    async def record(self, task_id: str) -> dict[str, Any]:
        """Read the record of a task."""
        data: dict[str, Any] = (await self.web.get(RECORD, params={"taskId": task_id})).json()["data"]
        return data

    async def ledger(self) -> dict[str, Any]:
        """Read the ledger."""
        ledger: dict[str, Any] = (await self.web.get("/__sandbox/ledger")).json()
        return ledger

    async def settled(self, **counts: int) -> dict[str, Any]:
        """Wait until the ledger counts this of the callbacks."""
        async with asyncio.timeout(SECONDS):
            while True:
                ledger = await self.ledger()
                if all(ledger["callbacks"][name] >= count for name, count in counts.items()):
                    return ledger
                await asyncio.sleep(0.01)


@asynccontextmanager
async def sandbox(**settings: Any) -> AsyncIterator[Sandbox]:
    """Run a sandbox without images."""
    options = {"images": "none", "speed": FAST, "webhook_key": KEY} | settings
    app = create_app(SandboxSettings(**options))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://sandbox", headers=API_KEY) as web,
    ):
        yield Sandbox(web)


async def test_signed_delivery() -> None:
    """A callback has the record's contents, signed for the real present, at exactly the given address."""
    query, begun = "?attempt=a%7eb&x=%2F/../.&empty=", int(time.time())
    async with receiver() as hook, sandbox() as box:
        task_id = await box.submit(hook, query=query)
        ledger = await box.settled(accepted=1)
        record = await box.record(task_id)
    [got] = hook.received
    assert got.target == f"/hook{query}"
    assert got.headers["content-type"] == "application/json"
    assert got.is_signed()
    assert begun <= got.timestamp <= time.time()
    assert not {"authorization", "cookie"} & set(got.headers)
    assert json.loads(got.body) == {
        "code": 200,
        "msg": "BFL image generated successfully.",
        "data": {"taskId": task_id, "info": record["response"]},
    }
    [task] = ledger["tasks"]
    [attempt] = task["callbacks"]
    assert (attempt["status"], attempt["fault"]) == (200, None)
    assert task["endedAt"] <= attempt["at"] <= task["endedAt"] + FAST
    assert ledger["images"]["https://example.com/a.png"]["callbacks"] == 1


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("", "/"),
        ("?x=~%7e", "/?x=~%7e"),
        ("/a/../b//c%2fd?x={y}|'&&", "/a/../b//c%2fd?x={y}|'&&"),
        ("/a?b#c", "/a?b"),
        ("/\N{LATIN SMALL LETTER U WITH DIAERESIS}", "/%C3%BC"),
    ],
)
async def test_address_byte_for_byte(written: str, target: str) -> None:
    """Path and query are sent as they were given; only what cannot be sent is escaped."""
    async with receiver() as hook, sandbox() as box:
        await box.submit(None, callBackUrl=hook.url.removesuffix("/hook") + written)
        await box.settled(accepted=1)
    assert hook.received[0].target == target


async def test_long_reply() -> None:
    """The body of a receiver's answer is not read to its end."""
    async with receiver() as hook, sandbox() as box:
        hook.body = b"x" * 8_000_000
        await box.submit(hook)
        await box.settled(accepted=1)


async def test_nothing_while_the_app_does_not_run() -> None:
    """Without its lifespan the app answers submits and sends no callback."""
    app = create_app(SandboxSettings(images="none", faults="callback-early"))
    async with (
        receiver() as hook,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://sandbox", headers=API_KEY
        ) as web,
    ):
        await Sandbox(web).submit(hook)
        assert (await Sandbox(web).ledger())["callbacks"]["sent"] == 0
    assert hook.received == []


async def test_nothing_without_an_address() -> None:
    """A task without callBackUrl causes no callback."""
    async with receiver() as hook, sandbox() as box:
        await box.submit(None)
        await box.submit(hook)
        ledger = await box.settled(accepted=1)
    assert len(hook.received) == 1
    assert ledger["callbacks"]["sent"] == 1


async def test_no_signature_without_a_key() -> None:
    """Without a webhook key callbacks are not signed."""
    async with receiver() as hook, sandbox(webhook_key=None) as box:
        await box.submit(hook)
        await box.settled(accepted=1)
    assert not any(name.startswith("x-webhook") for name in hook.received[0].headers)


async def test_prompt() -> None:
    """The callback leaves at the task's end, also when it slept for another task before."""
    box = InProcess(SandboxSettings(images="none", webhook_key=KEY, virtual_clock=True, seed=2))
    ids: list[str] = []
    async with receiver() as hook, box, box.http_client(API_KEY) as web:
        for model in ("flux-kontext-max", "flux-kontext-pro"):
            body = {"prompt": "x", "model": model, "callBackUrl": hook.url}
            ids.append((await web.post(GENERATE, json=body)).json()["data"]["taskId"])
        await box.advance(300)
        tasks = {task["taskId"]: task for task in box.record()["tasks"]}
    slow, quick = (tasks[task_id] for task_id in ids)
    assert quick["endedAt"] < slow["endedAt"]
    for task in (slow, quick):
        assert task["callbacks"][0]["at"] == pytest.approx(task["endedAt"], abs=0.1)


async def test_tried_again() -> None:
    """A receiver that answers 500, redirects, then accepts, gets three deliveries, on one connection."""
    async with receiver(500, 302, 200) as hook, sandbox() as box:
        await box.submit(hook)
        ledger = await box.settled(accepted=1)
    first, second, third = hook.received
    assert first.body == second.body == third.body
    assert second.at - first.at >= 0.045
    assert third.at - second.at >= 0.245
    assert [got.target for got in hook.received] == ["/hook"] * 3
    assert "cookie" not in third.headers
    assert hook.connections == 1
    assert ledger["callbacks"] == {"sent": 3, "accepted": 1, "failed": 2, "given_up": 0}
    assert [attempt["status"] for attempt in ledger["tasks"][0]["callbacks"]] == [500, 302, 200]


async def test_given_up() -> None:
    """After four failed deliveries nothing more comes; a closed port is a failure without status."""
    async with receiver(500, 500, 500, 500) as hook, sandbox(speed=20_000) as box:
        await box.submit(hook)
        await box.submit(Receiver("http://127.0.0.1:9/hook"))
        await box.submit(Receiver("http://bad host/hook"))
        ledger = await box.settled(given_up=3)
        await asyncio.sleep(0.05)
    assert len(hook.received) == 4
    assert ledger["callbacks"] == {"sent": 12, "accepted": 0, "failed": 12, "given_up": 3}
    statuses = [[attempt["status"] for attempt in task["callbacks"]] for task in ledger["tasks"]]
    assert statuses == [[None] * 4, [None] * 4, [500] * 4]


async def test_a_silent_receiver_delays_no_other() -> None:
    """A receiver that never answers holds up its own calls only, and not more than 64 at once."""
    async with receiver(*[NO_ANSWER] * 150) as silent, receiver() as hook, sandbox() as box:
        for _ in range(68):
            await box.submit(silent)
        for _ in range(4):
            await box.submit(hook)
        ledger = await box.settled(accepted=4)
        assert ledger["callbacks"]["failed"] == 0
        async with asyncio.timeout(SECONDS):
            while silent.connections < 64:
                await asyncio.sleep(0.01)
        assert silent.connections == 64


async def test_a_silent_receiver_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 15 vendor seconds, and not before a real one is over."""
    monkeypatch.setattr("flux_async.sandbox.callbacks.SHORTEST_LIMIT", 1.0)
    async with receiver(*[NO_ANSWER] * 4) as silent, sandbox() as box:
        begun = time.monotonic()
        await box.submit(silent)
        await box.settled(failed=1)
        assert time.monotonic() - begun > 1.0


# Faults


async def test_fault_missing() -> None:
    """A missing callback does not come, though its task ends well; the next one does."""
    async with receiver() as hook, sandbox() as box:
        task_id = await box.submit(hook, "callback-missing")
        other = await box.submit(hook)
        ledger = await box.settled(accepted=1)
        async with asyncio.timeout(SECONDS):
            while (await box.record(task_id))["successFlag"] == 0:
                await asyncio.sleep(0.01)
    assert [got.data["taskId"] for got in hook.received] == [other]
    assert [task["faults"] for task in ledger["tasks"]] == [[], ["callback-missing"]]


async def test_fault_duplicate() -> None:
    """A duplicate callback comes three times."""
    async with receiver() as hook, sandbox() as box:
        await box.submit(hook, "callback-duplicate")
        ledger = await box.settled(accepted=3)
    assert len({got.body for got in hook.received}) == 1
    assert all(got.is_signed() for got in hook.received)
    shown = [attempt["fault"] for attempt in ledger["tasks"][0]["callbacks"]]
    assert shown == [None, "callback-duplicate", "callback-duplicate"]


async def test_fault_late() -> None:
    """A late callback comes two vendor minutes after the end."""
    async with receiver() as hook, sandbox() as box:
        await box.submit(hook, "callback-late")
        [task] = (await box.settled(accepted=1))["tasks"]
    assert 120 <= task["callbacks"][0]["at"] - task["endedAt"] < 120 + FAST
    assert hook.received[0].is_signed()


async def test_fault_early() -> None:
    """An early callback comes before the reply to its submit, while the task is being made, and alone."""
    async with receiver() as hook, sandbox() as box:
        flags, replied = [], False

        async def read_flag() -> None:
            assert not replied
            flags.append((await box.record(hook.received[0].data["taskId"]))["successFlag"])

        hook.when_called = read_flag
        task_id = await box.submit(hook, "callback-early")
        replied = True
        [got] = hook.received
        assert (got.data["taskId"], json.loads(got.body)["code"], flags) == (task_id, 200, [0])
        hook.when_called = None
        await box.submit(hook)
        await box.settled(accepted=2)
    assert [got.data["taskId"] == task_id for got in hook.received] == [True, False]


async def test_fault_forged() -> None:
    """A forged callback comes before the true one, badly signed and with a result elsewhere."""
    async with receiver(401) as hook, sandbox() as box:
        await box.submit(hook, "callback-forged")
        await box.settled(accepted=1)
    forged, true = hook.received
    assert (forged.is_signed(), true.is_signed()) == (False, True)
    assert forged.data["taskId"] == true.data["taskId"]
    assert forged.data["info"]["resultImageUrl"].startswith("https://attacker.example/")


async def test_fault_replayed() -> None:
    """A replayed callback follows the true one with its signature and a result elsewhere."""
    async with receiver() as hook, sandbox() as box:
        await box.submit(hook, "callback-replayed")
        await box.settled(accepted=2)
    true, replayed = hook.received
    assert true.is_signed()
    assert replayed.is_signed()
    assert true.timestamp == replayed.timestamp
    assert replayed.data["info"]["resultImageUrl"].startswith("https://attacker.example/")


async def test_fault_stale() -> None:
    """A stale callback is properly signed, ten minutes ago."""
    async with receiver(401) as hook, sandbox() as box:
        await box.submit(hook, "callback-stale")
        await box.settled(failed=1)
    [got] = hook.received
    assert got.is_signed()
    assert time.time() - got.timestamp == pytest.approx(600, abs=120)


async def test_fault_wrong_id() -> None:
    """A callback with a wrong id has a valid signature of a task that does not exist."""
    async with receiver() as hook, sandbox() as box:
        task_id = await box.submit(hook, "callback-wrong-id")
        await box.settled(accepted=1)
    [got] = hook.received
    assert got.is_signed()
    assert got.data["taskId"] != task_id


async def test_fault_unsigned() -> None:
    """An unsigned callback has no signature headers, though there is a key."""
    async with receiver() as hook, sandbox() as box:
        await box.submit(hook, "callback-unsigned")
        await box.settled(accepted=1)
    assert not any(name.startswith("x-webhook") for name in hook.received[0].headers)


async def test_shares_repeat() -> None:
    """A share of the tasks is hit, and with the same seed the same ones."""
    hit = []
    for _ in range(2):
        async with sandbox(seed=4, faults="callback-missing:30%", speed=100_000) as box:
            for _ in range(40):
                await box.submit(None)
                await asyncio.sleep(0)
            hit.append([task["faults"] for task in (await box.ledger())["tasks"]])
    assert hit[0] == hit[1]
    assert 0 < hit[0].count(["callback-missing"]) < len(hit[0])


# The command line


def test_options(start_sandbox: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is taken from the environment where no option names it, and faults from their option."""
    monkeypatch.setenv("KIE_WEBHOOK_KEY", KEY)

    async def call(url: str) -> Received:
        async with (
            receiver() as hook,
            httpx.AsyncClient(base_url=url, headers=API_KEY, timeout=SECONDS) as web,
        ):
            with pytest.raises(httpx.RemoteProtocolError):  # the reply is lost on the way
                await web.post(GENERATE, json={"prompt": "x", "callBackUrl": hook.url})
            await Sandbox(web).settled(accepted=1)
            return hook.received[0]

    options = ("--images", "none", "--speed", "200", "--faults", "drop-reply:100%")
    assert asyncio.run(call(start_sandbox(*options).url)).is_signed()
    other = asyncio.run(call(start_sandbox(*options, "--webhook-key", "other").url))
    assert not other.is_signed()
    assert other.headers["x-webhook-signature"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--faults", "nonsense"), "unknown fault 'nonsense'; known are maintenance"),
        (("--webhook-key", ""), "webhook_key must not be empty"),
    ],
)
def test_bad_options(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad option is one clear line and exit code 2."""
    assert main(options) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:9/hook", True),
        ("http://127.9.9.9/hook", True),
        ("http://[::1]:9/hook", True),
        ("http://localhost:9/hook", True),
        ("http://203.0.113.7/hook", False),
        ("http://192.168.0.1/hook", False),
        ("http://nowhere.invalid/hook", False),
        ("http://127.0.0.1:99999/hook", False),
    ],
)
async def test_only_loopback_addresses_are_this_machine(url: str, is_here: bool) -> None:
    """By what the name resolves to."""
    assert await is_this_machine(url) is is_here


async def test_callbacks_stay_on_this_machine_by_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A program under test may name a receiver in production; nothing is sent there."""
    caplog.set_level("INFO", logger="flux_async.sandbox.callbacks")
    async with sandbox() as box:
        await box.submit(None, callBackUrl="http://nowhere.invalid/hook")
        await box.settled(failed=1)
    assert "not sent: it leads to another machine" in caplog.text
    caplog.clear()
    async with sandbox(callbacks_anywhere=True) as box:
        await box.submit(None, callBackUrl="http://nowhere.invalid/hook")
        await box.settled(failed=1)
    assert "not sent" not in caplog.text
    assert "callback to http://nowhere.invalid/hook failed" in caplog.text
