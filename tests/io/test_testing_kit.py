"""The fixtures for users' tests: each kind of test, each plugin, both ways to the sandbox, refusals."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

from flux_async import (
    CallbackRejected,
    ConnectionLost,
    DownloadCutShort,
    DownloadError,
    EditRequest,
    InvalidRequestError,
    MissingExtra,
    NotFoundError,
    PollDeadlineExceeded,
    Succeeded,
    run_batch,
)
from flux_async.api.webhooks import read_callback
from flux_async.testing import FluxLedger, FluxSandbox, PaidTwice, SignCallback, VirtualClock, sandbox

IMAGE = "https://pictures.example/poster.jpg"
both_ways = pytest.mark.parametrize(
    "flux_sandbox", [{}, {"sockets": True}], indirect=True, ids=["asgi", "tcp"]
)

# One file that is run by itself with each plugin; ``MARK`` makes a coroutine a test, ``FIXTURE`` a fixture.
EVERY_KIND = """
import sys

import pytest

loaded = {"flux_async", "httpx", "starlette"} & sys.modules.keys()

import asyncio
from flux_async import EditRequest, PollDeadlineExceeded
PREAMBLE

IMAGE = "https://pictures.example/poster.jpg"
ways = pytest.mark.parametrize("flux_sandbox", [{}, {"sockets": True}], indirect=True)

def test_nothing_was_loaded_before_it_was_used():
    assert not loaded

MARK
@ways
async def test_real_time(flux_client, flux_ledger, tmp_path):
    image = await flux_client.remove_text(IMAGE)
    await flux_client.download(image, tmp_path / "clean.jpg")
    assert flux_ledger.charges(IMAGE) == 1

MARK
@ways
@pytest.mark.flux_sandbox(faults="never-ends")
async def test_virtual_time(flux_client, flux_clock):
    with pytest.raises(PollDeadlineExceeded):
        await flux_client.remove_text(IMAGE, timeout=300)

FIXTURE
async def task(flux_client):
    submitted = await flux_client.generate("A lighthouse", timeout=60)
    yield submitted.task_id
    assert (await flux_client.record(submitted.task_id)).result_url

MARK
@ways
async def test_with_an_async_fixture(task, flux_client, flux_clock):
    assert (await flux_client.record(task)).result_url

@ways
def test_without_an_event_loop(flux_client, flux_clock, flux_ledger):
    task = asyncio.run(flux_client.submit(EditRequest.text_removal(IMAGE)))
    flux_clock.advance(600)
    assert flux_ledger.read().images[IMAGE].tasks == [task]
"""
PLUGINS = {
    # options of pytest, what a coroutine is marked with, what makes an async fixture, what else there is
    "strict": (
        ["--asyncio-mode=strict"],
        "@pytest.mark.asyncio",
        "@pytest_asyncio.fixture",
        "import pytest_asyncio",
    ),
    "auto": (["--asyncio-mode=auto"], "", "@pytest.fixture", ""),
    "anyio": (
        ["-p", "no:asyncio"],
        "@pytest.mark.anyio",
        "@pytest.fixture",
        "@pytest.fixture\ndef anyio_backend(): return 'asyncio'",
    ),
}


def run_pytest(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a file of tests in a process of its own; warnings are errors there too."""
    (folder / "test_it.py").write_text(textwrap.dedent(text), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", *options]
    command += ["-p", "no:cacheprovider", "-p", "no:faker", "-p", "no:respx"]  # the last one loads httpx
    command += ["-W", "error", "-W", "ignore:The configuration option"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin(tmp_path: Path, plugin: str) -> None:
    """pytest-asyncio in both modes and anyio's plugin: async, sync, and with fixtures that await."""
    options, mark, fixture, preamble = PLUGINS[plugin]
    text = EVERY_KIND.replace("MARK", mark).replace("FIXTURE", fixture).replace("PREAMBLE", preamble)
    done = run_pytest(tmp_path, text, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout


# --- both ways to the sandbox ------------------------------------------------------------------------------


@both_ways
async def test_five_minutes_pass_at_once(
    flux_client: Any, flux_clock: VirtualClock, flux_sandbox: Any
) -> None:
    """A task that never ends is waited for to the last virtual second, in a moment."""
    began, at = time.perf_counter(), flux_clock.now
    with pytest.raises(PollDeadlineExceeded):
        await flux_client.remove_text(f"{IMAGE}?sandbox-fault=never-ends", timeout=300)
    assert flux_clock.now - at == pytest.approx(300, abs=3)
    assert time.perf_counter() - began < 60


@both_ways
@pytest.mark.parametrize("fault", ["slow-reply", "dripping-reply"])
async def test_the_vendor_sleeps_on_the_same_clock(
    flux_client: Any, flux_clock: VirtualClock, fault: str
) -> None:
    """An answer later than a request's timeout leaves the submit in doubt, a minute later."""
    at = flux_clock.now
    with pytest.raises(ConnectionLost):
        await flux_client.remove_text(f"{IMAGE}?sandbox-fault={fault}")
    assert flux_clock.now - at == pytest.approx(60, abs=1)


@both_ways
async def test_a_batch(
    flux_client: Any, flux_clock: VirtualClock, flux_ledger: FluxLedger, tmp_path: Path
) -> None:
    """Twenty images with journal and files: each once, none before the vendor had it."""
    images = [f"https://pictures.example/{number}.jpg" for number in range(20)]
    async with run_batch(
        flux_client, images, journal=tmp_path / "run.sqlite3", directory=tmp_path / "images"
    ) as batch:
        kinds = Counter([type(outcome) async for outcome in batch])
    assert kinds == {Succeeded: 20}
    assert len(list((tmp_path / "images").iterdir())) == flux_ledger.accepted == 20
    assert flux_ledger.read().submits_in_window.most <= 20


@both_ways
async def test_files_up_and_down(flux_client: Any, flux_sandbox: FluxSandbox, tmp_path: Path) -> None:
    """A file is uploaded, its result is downloaded, and a refused link is replaced by a fresh one."""
    client = flux_sandbox.client()
    image = await flux_client.generate("A lighthouse")
    source = await client.download(image, tmp_path / "photo.jpg")
    cleaned = await flux_client.remove_text(source.path)
    assert (await flux_client.download(cleaned, tmp_path / "clean.jpg")).size > 100
    refused = await flux_client.remove_text(f"{IMAGE}?sandbox-fault=file-403")
    assert (await flux_client.download(refused, tmp_path / "fresh.jpg")).size > 100


@both_ways
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("file-truncated", DownloadCutShort),
        ("expired-result", DownloadError),
        ("file-redirect", DownloadError),
    ],
)
async def test_failed_downloads_leave_no_file(
    flux_client: Any, flux_clock: VirtualClock, tmp_path: Path, fault: str, error: type[Exception]
) -> None:
    """The errors are those of any other transport."""
    image = await flux_client.remove_text(f"{IMAGE}?sandbox-fault={fault}")
    with pytest.raises(error):
        await flux_client.download(image, tmp_path / "clean.jpg", timeout=30)
    assert list(tmp_path.iterdir()) == []


@both_ways
async def test_a_callback_arrives_in_virtual_time(
    flux_client: Any, flux_clock: VirtualClock, flux_sandbox: FluxSandbox, raw_server: Any
) -> None:
    """The sandbox calls back when the task has ended, though only the vendor sleeps."""
    came = asyncio.Event()

    async def receive(
        _first: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        event = read_callback(headers, body, "", flux_sandbox.webhook_key, now=flux_clock.wall())
        assert event.code == 200
        came.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        return True

    async with raw_server(receive) as server:
        at = flux_clock.now
        await flux_client.submit(EditRequest.text_removal(IMAGE, callback_url=f"{server.url}/hook"))
        async with asyncio.timeout(60):
            await came.wait()
    assert flux_clock.now > at + 3


@both_ways
async def test_httpx_of_the_tests_own(flux_sandbox: FluxSandbox) -> None:
    """A plain client reaches the same sandbox, and a dropped connection is an httpx error."""
    async with flux_sandbox.http_client(headers={"Authorization": f"Bearer {flux_sandbox.key}"}) as http:
        assert (await http.get("/api/v1/chat/credit")).json()["data"] == flux_sandbox.credits
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(
                "/api/v1/flux/kontext/generate",
                json={"prompt": "x"},
                headers={"X-Sandbox-Fault": "drop-reply"},
            )
    assert flux_sandbox.record()["accepted"] == 1


@pytest.mark.flux_sandbox(sockets=True)
def test_a_program_without_an_event_loop(flux_sandbox: FluxSandbox, flux_ledger: FluxLedger) -> None:
    """Over sockets any program is served, while the test itself only waits."""
    with httpx.Client(base_url=flux_sandbox.url, timeout=60) as http:
        reply = http.get("/api/v1/chat/credit", headers={"Authorization": "Bearer test"})
    assert reply.json() == {"code": 200, "msg": "success", "data": 10_000.0}
    assert flux_ledger.submits == 0


def test_two_loops_in_one_test(flux_sandbox: FluxSandbox) -> None:
    """Each event loop of a test has its own client; nothing of the first is left when it has ended."""
    for _ in range(2):
        asyncio.run(flux_sandbox.client().credits())


# --- virtual time ------------------------------------------------------------------------------------------


async def test_sleepers_wake_in_order_across_loops(flux_clock: VirtualClock) -> None:
    """Two event loops in two threads share one time, and it never runs ahead of either."""
    woken: list[float] = []

    async def sleep_often(gap: float) -> None:
        for _ in range(20):
            await flux_clock.sleep(gap)
            woken.append(flux_clock.now)

    other = asyncio.to_thread(asyncio.run, sleep_often(0.7))
    async with asyncio.TaskGroup() as group:
        group.create_task(other)
        group.create_task(sleep_often(0.5))
    assert len(woken) == 40
    assert woken == sorted(woken)


async def test_time_stands_still_while_it_is_held(flux_clock: VirtualClock) -> None:
    """A sleep does not end during a hold, however long that takes in real time."""
    at = flux_clock.now
    async with asyncio.TaskGroup() as group:
        with flux_clock.hold():
            group.create_task(flux_clock.sleep(5))
            await asyncio.sleep(0.04)
            assert flux_clock.now == at
    assert flux_clock.now == at + 5


# --- the ledger --------------------------------------------------------------------------------------------


async def test_time_waits_for_a_coroutine_that_a_worker_thread_has_woken(flux_clock: VirtualClock) -> None:
    """A coroutine goes on for some turns after its thread has ended: the sleeper behind it waits."""
    began, woke = flux_clock.now, []

    async def work() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await anyio.to_thread.run_sync(int)
            for _ in range(8):
                await asyncio.sleep(0)
            await flux_clock.sleep(1)
            woke.append(flux_clock.now - began)

    async with asyncio.TaskGroup() as group:
        group.create_task(flux_clock.sleep(100))
        group.create_task(work())
    assert woke == [float(number) for number in range(1, 21)]


async def test_the_ledger_names_images_that_were_paid_twice(
    flux_client: Any, flux_sandbox: FluxSandbox
) -> None:
    """The message has image, number and tasks; an allowed second charge is no error."""
    ledger = flux_sandbox.ledger
    tasks = [await flux_client.submit(EditRequest.text_removal(IMAGE)) for _ in range(2)]
    ledger.allow(IMAGE)
    ledger.check()
    tasks.append(await flux_client.submit(EditRequest.text_removal(IMAGE)))
    with pytest.raises(PaidTwice, match=f"{IMAGE}: 3 charges, 15 credits .*{', '.join(tasks)}"):
        ledger.check()
    assert ledger.double_charges == {IMAGE: 3}
    assert "3 submits, 3 tasks, 15 credits" in repr(ledger)


@pytest.mark.flux_sandbox(script=[["fail-500"], []])
async def test_a_refund_is_no_charge(flux_client: Any, flux_ledger: FluxLedger, flux_clock: Any) -> None:
    """A task that failed and was refunded, and another one that was paid, are one charge."""
    for _ in range(2):
        task = await flux_client.submit(EditRequest.text_removal(IMAGE))
        await flux_clock.sleep(120)
        await flux_client.record(task)
    assert (flux_ledger.charges(IMAGE), flux_ledger.charged, flux_ledger.polls) == (1, 5.0, 2)
    assert flux_ledger.charges("https://pictures.example/never-seen.jpg") == 0


def test_a_double_charge_fails_the_test(tmp_path: Path) -> None:
    """Though the test itself has passed."""
    text = """
        import pytest
        from flux_async import EditRequest

        async def test_resubmits(flux_client, flux_ledger):
            for _ in range(2):
                await flux_client.submit(EditRequest.text_removal("https://pictures.example/poster.jpg"))
    """
    done = run_pytest(tmp_path, text, "--asyncio-mode=auto")
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout
    assert f"{IMAGE}: 2 charges, 10 credits" in done.stdout


# --- callbacks ---------------------------------------------------------------------------------------------


def test_a_signed_callback_is_accepted(sign_callback: SignCallback) -> None:
    """It is read and verified as the vendor's own; one with another key, or an old one, is refused."""
    callback = sign_callback("task1", result_url="https://files.example/a.jpg")
    body = json.loads(callback.body)
    assert body["data"]["info"]["resultImageUrl"] == "https://files.example/a.jpg"
    key = "webhook-key-of-the-test-kit"
    event = read_callback(callback.headers, callback.body, "", key, now=time.time())
    assert (event.task_id, event.code, event.signed) == ("task1", 200, True)
    for forged in (sign_callback("task1", key="other"), sign_callback("task1", at=time.time() - 600)):
        with pytest.raises(CallbackRejected):
            read_callback(forged.headers, forged.body, "", key, now=time.time())
    failed = json.loads(sign_callback("task1", code=501).body)
    assert failed["data"]["info"] == {"originImageUrl": "", "resultImageUrl": ""}


@pytest.mark.flux_sandbox(webhook_key="mine")
def test_a_callback_is_signed_with_the_sandboxes_key_and_time(
    flux_sandbox: FluxSandbox, flux_clock: VirtualClock, sign_callback: SignCallback
) -> None:
    """The marker's key signs, at the time of the virtual clock."""
    flux_clock.advance(3600)
    callback = sign_callback("task1")
    assert read_callback(callback.headers, callback.body, "", "mine", now=flux_clock.wall()).signed


# --- options and what is refused ---------------------------------------------------------------------------


@pytest.mark.flux_sandbox(credits=7, faults="422")
class TestMarkers:
    """Markers of a class hold for its tests; the nearest one wins, option by option."""

    @pytest.mark.flux_sandbox(credits=3)
    async def test_the_nearest_wins(self, flux_client: Any) -> None:
        """Options that it leaves out are those of the class."""
        assert await flux_client.credits() == 3
        with pytest.raises(InvalidRequestError):
            await flux_client.submit(EditRequest.text_removal(IMAGE))


@pytest.mark.parametrize("flux_sandbox", [{"api": "jobs"}], indirect=True, ids=["jobs"])
async def test_the_clients_of_a_sandbox_use_the_api_that_is_asked_for(
    flux_sandbox: FluxSandbox, flux_client: Any, flux_clock: Any
) -> None:
    """Each may have another one; the sandbox serves both, and knows a task at the API of its submit only."""
    image = await flux_client.remove_text("https://pictures.example/a.jpg")
    other = flux_sandbox.client(api="kontext")
    assert (image.api, flux_client.api, other.api) == ("jobs", "jobs", "kontext")
    with pytest.raises(NotFoundError, match="It may be a task of the API jobs"):
        await other.record(image.task_id)


def test_an_unknown_option_is_named() -> None:
    """A misspelled option would be a test that tests nothing."""
    with pytest.raises(TypeError, match="Unknown option of the sandbox: fault. Options: sockets, api, speed"):
        FluxSandbox(fault="404")
    with pytest.raises(ValueError, match="speed has no effect on virtual time"):
        FluxSandbox(clock=VirtualClock(), speed=3)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real images it is another one."""
    found = sandbox.importlib.util.find_spec
    for absent, extra, options in [("starlette", "testing", {}), ("cv2", "sandbox", {"images": "real"})]:
        with monkeypatch.context() as patch:
            patch.setattr(
                sandbox.importlib.util, "find_spec", lambda name, a=absent: None if name == a else found(name)
            )
            with pytest.raises(MissingExtra, match=rf"{absent} not installed.*'flux-async\[{extra}\]'"):
                FluxSandbox(**options)


def test_misuse_of_the_fixtures_fails_the_test_with_a_sentence(tmp_path: Path) -> None:
    """A clock that comes too late and a marker without names end the test with a sentence."""
    text = """
        import pytest

        async def test_late(flux_client, request):
            request.getfixturevalue("flux_clock")

        @pytest.mark.flux_sandbox("404")
        async def test_nameless(flux_client):
            pass
    """
    done = run_pytest(tmp_path, text, "--asyncio-mode=auto")
    assert "flux_clock must be an argument of the test" in done.stdout
    assert "The options of @pytest.mark.flux_sandbox are keywords" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_plugin_can_be_left_out(tmp_path: Path) -> None:
    """Without it, its fixtures are unknown."""
    done = run_pytest(tmp_path, "def test_it(flux_client): ...", "-p", "no:flux_async")
    assert "fixture 'flux_client' not found" in done.stdout
