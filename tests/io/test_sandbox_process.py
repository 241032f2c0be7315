"""The sandbox as a process of its own: sockets, worker processes, real images, signals, exit codes."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_http
from flux_async.sandbox import SandboxError, SandboxSettings, serve
from flux_async.sandbox.server import main

GENERATE = "/api/v1/flux/kontext/generate"
KEY = {"Authorization": "Bearer test"}
REMOVE = "Remove all text from this image while preserving the background"
FETCH_FAILED = (
    "Failed to fetch the image. Kindly verify any access limits set by you or your service provider"
)
SECONDS = 120
NOT_AN_IMAGE = "We couldn't process the provided image file (code=invalid_image_format)"

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="reads child processes from /proc"
)


def submit(url: str, **body: object) -> str:
    reply = local_http.post(url + GENERATE, json={"prompt": REMOVE} | body, headers=KEY)
    return str(reply.json()["data"]["taskId"])


def wait_for(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


def finished(url: str, task_id: str) -> dict[str, Any]:
    def read() -> dict[str, Any] | None:
        path = "/api/v1/flux/kontext/record-info"
        data: dict[str, Any] = local_http.get(url + path, params={"taskId": task_id}, headers=KEY).json()[
            "data"
        ]
        return data if data["successFlag"] else None

    found: dict[str, Any] = wait_for(read)
    return found


def size_of(content: bytes) -> tuple[int, int]:
    from PIL import Image  # noqa: PLC0415 - loaded where images are opened

    with Image.open(io.BytesIO(content)) as image:
        return image.size


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# TaskImages


def test_text_removal(sandbox_url: str, image_host: Any) -> None:
    """An exact removal ends with a JPEG of the same size, the untouched origin and two thumbnails."""
    task_id = submit(sandbox_url, inputImage=f"{image_host.url}/moved/poster.png")
    links = finished(sandbox_url, task_id)["response"]
    result, origin = local_http.get(links["resultImageUrl"]), local_http.get(links["originImageUrl"])
    assert result.headers["Content-Type"] == "image/jpeg"
    assert result.content.startswith(b"\xff\xd8")
    assert size_of(result.content) == (640, 400)
    assert origin.headers["Content-Type"] == "image/png"
    assert origin.content == image_host.files["/poster.png"][1]
    for side in ("before", "after"):
        thumbnail = local_http.get(f"{sandbox_url}/__sandbox/thumbnails/{task_id}/{side}.jpg")
        assert max(size_of(thumbnail.content)) <= 480
    assert f"/__sandbox/thumbnails/{task_id}/after.jpg" in local_http.get(sandbox_url).text


def test_other_edit_into_another_ratio(sandbox_url: str, image_host: Any) -> None:
    """Any other edit leaves a mark on the image, in the requested ratio and format."""
    image = f"{image_host.url}/tall.png"
    task_id = submit(
        sandbox_url, prompt="Make it blue", inputImage=image, aspectRatio="1:1", outputFormat="png"
    )
    result = local_http.get(finished(sandbox_url, task_id)["response"]["resultImageUrl"]).content
    assert result.startswith(b"\x89PNG")
    width, height = size_of(result)
    assert width == pytest.approx(height, abs=2)


@pytest.mark.parametrize("api", ["kontext", "jobs"])
def test_a_fault_changes_what_the_result_shows(sandbox_url: str, image_host: Any, api: str) -> None:
    """Asked for by the image's address, by either API, a third of the image is cut off."""
    image = f"{image_host.url}/tall.png?sandbox-fault=crop"
    if api == "kontext":
        task_id = submit(sandbox_url, prompt="Make it blue", inputImage=image)
        link = finished(sandbox_url, task_id)["response"]["resultImageUrl"]
    else:
        job = {"model": "flux1-kontext", "input": {"prompt": "Make it blue", "input_image": image}}
        reply = local_http.post(f"{sandbox_url}/api/v1/jobs/createTask", json=job, headers=KEY)
        link = wait_for(lambda: job_link(sandbox_url, reply.json()["data"]["taskId"]))
    assert size_of(local_http.get(link).content) == (300, 325)


def job_link(url: str, task_id: str) -> str | None:
    """Return the link to the result of a task of the jobs API, once it has one."""
    path, asked = "/api/v1/jobs/recordInfo", {"taskId": task_id}
    data = local_http.get(url + path, params=asked, headers=KEY).json()["data"]
    return str(data["response"]["resultUrls"][0]) if data["state"] == "success" else None


def test_generation(sandbox_url: str) -> None:
    """A prompt without an image gets one drawn, in its ratio."""
    task_id = submit(sandbox_url, prompt="A lighthouse at dusk", aspectRatio="16:9")
    links = finished(sandbox_url, task_id)["response"]
    width, height = size_of(local_http.get(links["resultImageUrl"]).content)
    assert width / height == pytest.approx(16 / 9, rel=0.02)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing.png", FETCH_FAILED),
        ("/page.html", NOT_AN_IMAGE),
        ("/cut.png", NOT_AN_IMAGE),
        ("/too-large.png", "Image size exceeds maximum of 20971520 bytes"),
    ],
)
def test_bad_input_fails_later(sandbox_url: str, image_host: Any, path: str, message: str) -> None:
    """An input that cannot be used is accepted, fails later with flag 3, and its credits come back."""
    image = f"{image_host.url}{path}?this-test"  # the sandbox and its ledger are shared by all tests
    record = finished(sandbox_url, submit(sandbox_url, inputImage=image))
    assert (record["successFlag"], record["errorCode"], record["errorMessage"]) == (3, 400, message)
    line = local_http.get(f"{sandbox_url}/__sandbox/ledger").json()["images"][image]
    assert (line["charged"], line["refunded"]) == (5.0, 5.0)


def test_an_unreachable_input_fails_like_a_missing_one(sandbox_url: str) -> None:
    """An input on a closed port, or at a URL no client can open."""
    for image in ("http://127.0.0.1:9/x.png", "http://bad host/x.png", "http://\x00/x.png"):
        record = finished(sandbox_url, submit(sandbox_url, inputImage=image))
        assert record["errorMessage"] == FETCH_FAILED


# Processes


def test_seed_and_speed(start_sandbox: Callable[..., Any]) -> None:
    """The same seed hands out the same ids, and the clock starts at the present."""
    options = ("--seed", "5", "--images", "none", "--key", "first", "--key", "second", "--speed", "1")
    found = []
    for _ in range(2):
        url = start_sandbox(*options).url
        reply = local_http.post(
            url + GENERATE, json={"prompt": "x"}, headers={"Authorization": "Bearer second"}
        )
        found.append(reply.json()["data"]["taskId"])
        [task] = local_http.get(f"{url}/__sandbox/ledger").json()["tasks"]
        assert task["createdAt"] == pytest.approx(time.time(), abs=120)
    assert found[0] == found[1]


def test_dropped_replies_are_paid(start_sandbox: Callable[..., Any]) -> None:
    """A dropped reply closes the connection after the charge; the ledger has the image."""
    sandbox = start_sandbox("--images", "none", "--faults", "drop-reply:0.5", "--seed", "3")
    images = [f"https://pictures.example/{n}.jpg" for n in range(12)]
    dropped = 0
    for image in images:
        try:
            submit(sandbox.url, inputImage=image)
        except httpx.RemoteProtocolError:
            dropped += 1
    assert 0 < dropped < len(images)
    ledger = local_http.get(f"{sandbox.url}/__sandbox/ledger").json()
    assert ledger["accepted"] == len(images)
    lines = [ledger["images"][image] for image in images]
    assert [(len(line["tasks"]), line["charged"], line["refunded"]) for line in lines] == [(1, 5, 0)] * 12


def test_latency_comes_after_the_charge(start_sandbox: Callable[..., Any]) -> None:
    """A client that disconnects before a slow reply has paid; the latency is in vendor seconds."""
    slow = start_sandbox("--images", "none", "--latency", "12000", "--speed", "20")

    def charged() -> dict[str, int]:
        ledger = local_http.get(f"{slow.url}/__sandbox/ledger").json()
        return {image: len(line["tasks"]) for image, line in ledger["images"].items()}

    body = json.dumps({"prompt": "early"})
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: sandbox\r\nAuthorization: {KEY['Authorization']}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(slow.url).port or 0)) as caller:
        caller.sendall((head + body).encode())
        wait_for(lambda: charged() == {"prompt:early": 1})
    assert charged() == {"prompt:early": 1}
    sandbox = start_sandbox("--images", "none", "--latency", "6", "--speed", "20")
    begun = time.monotonic()
    submit(sandbox.url, prompt="patient")
    assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@needs_proc
def test_signal_ends_it_at_once(
    start_sandbox: Callable[..., Any], image_host: Any, number: signal.Signals
) -> None:
    """SIGINT and SIGTERM end it and its workers, with code 0, also during work on an image."""
    sandbox = start_sandbox()
    submit(sandbox.url, inputImage=f"{image_host.url}/poster.png")
    workers = wait_for(lambda: children(sandbox.process.pid))
    assert sandbox.stop(number) == 0
    wait_for(lambda: not any(map(is_alive, workers)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None])
def test_a_sandbox_with_until_eof_ends_by_signal_and_by_eof(number: signal.Signals | None) -> None:
    """A signal that comes while nothing more comes from its parent ends it as any other, and so does EOF."""
    command = [sys.executable, "-m", "flux_async.sandbox", "--port", "0", "--images", "none", "--until-eof"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as sandbox:
        assert sandbox.stdin is not None
        assert sandbox.stdout is not None
        assert sandbox.stderr is not None
        assert sandbox.stdout.readline().startswith("sandbox ready at ")
        if number is None:
            sandbox.stdin.close()
        else:
            sandbox.send_signal(number)
        assert sandbox.wait(SECONDS) == 0
        assert "Fatal" not in sandbox.stderr.read()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes files")
def test_without_an_input_there_is_no_end_to_wait_for() -> None:
    """One clear line on stderr and exit code 2."""
    command = ["sh", "-c", '"$0" -m flux_async.sandbox --port 0 --until-eof <&-', sys.executable]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "sandbox: --until-eof needs a standard input, and there is none.\n"


PARENT = """
import anyio
from flux_async.cli.demo import SandboxChild

async def main():
    child = await SandboxChild.start("fast")
    await child.ready()
    print(child.process.pid, flush=True)
    await anyio.sleep_forever()

anyio.run(main)
"""


@needs_proc
def test_the_sandbox_of_the_demo_gets_neither_the_key_nor_the_webhook_key() -> None:
    """No variable of the API is in its environment, so none is in those of its workers."""
    secrets = {"KIE_API_KEY": "secret-of-the-user", "KIE_WEBHOOK_KEY": "another", "KIE_BASE_URL": "http://x"}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=os.environ | secrets
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        environment = Path(f"/proc/{child}/environ").read_bytes()
        parent.kill()
    assert b"PATH=" in environment
    assert b"KIE_" not in environment
    assert b"secret-of-the-user" not in environment
    wait_for(lambda: not is_alive(child))


@needs_proc
def test_a_killed_demo_leaves_no_sandbox_behind() -> None:
    """Its parent has no chance to end it: it notices by itself."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: not is_alive(child))


@needs_proc
def test_workers_die_with_it(start_sandbox: Callable[..., Any], image_host: Any) -> None:
    """Killed during work on an image, it leaves no worker process behind."""
    sandbox = start_sandbox("--workers", "2")
    for path in ("/poster.png", "/tall.png", "/poster.jpg"):
        submit(sandbox.url, inputImage=f"{image_host.url}{path}")
    workers = wait_for(lambda: children(sandbox.process.pid))
    sandbox.stop(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, workers)))


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flux_async.sandbox", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_port_in_use(sandbox_url: str) -> None:
    """A port that is taken is one clear line on stderr and exit code 2."""
    ended = run("--port", str(httpx.URL(sandbox_url).port))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert "is in use" in ended.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--speed", "0"), "speed must be a number above 0"),
        (("--workers", "0"), "workers must be a number of at least 1"),
        (("--port", "99999"), "cannot listen on 127.0.0.1 port 99999"),
        (("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
    ],
)
def test_bad_options(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad option is one clear line and exit code 2."""
    assert main(options) == 2
    assert words in capsys.readouterr().err


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra it prints the install command, and exits with code 2."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert main(["--port", "0"]) == 2
    assert "pip install 'flux-async[sandbox]'" in capsys.readouterr().err
    with pytest.raises(SandboxError, match="pip install"):
        serve(SandboxSettings(), port=0)


def test_importing_needs_no_extra() -> None:
    """Importing the package of the sandbox loads neither its web framework nor numpy."""
    code = "import sys, flux_async.sandbox; print({'starlette', 'uvicorn', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
