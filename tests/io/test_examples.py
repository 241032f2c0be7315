"""The web backends of the examples and of the documents, each served by its server against the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

import local_http

pytest.importorskip("fastapi")
pytest.importorskip("hypercorn")
pytest.importorskip("litestar")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "in-a-web-backend.md"
SECONDS = 120
KEY = "hook-key"
SERVERS = {
    "uvicorn": ("--timeout-graceful-shutdown", "60", "--port", "{port}"),
    "hypercorn": ("--workers", "0", "--graceful-timeout", "60", "--bind", "127.0.0.1:{port}"),
}


@attrs.frozen
class Example:
    """An example that is served by a child process."""

    url: str
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> httpx.Response:
        """Return the answer to a GET."""
        return local_http.get(self.url + path)

    def add(self, image: str, path: str = "/images") -> str:
        """Add an image by its address and return its key."""
        answer = local_http.post(self.url + path, json={"image": image})
        assert answer.status_code == 202, answer.text
        key: str = answer.json()["key"]
        return key

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.process.wait(SECONDS)


@contextmanager
def serving(server: str, app: str, port: int, folder: Path, sandbox: str, **more: str) -> Iterator[Example]:
    """Serve an example in a folder of its own, and end it by its pid."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
    path = os.pathsep.join((str(folder), str(EXAMPLES)))
    environment |= {"KIE_BASE_URL": sandbox, "KIE_API_KEY": "test", "PYTHONPATH": path} | more
    options = [option.format(port=port) for option in SERVERS[server]]
    command = [sys.executable, "-m", server, *options, app]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    example = Example(f"http://127.0.0.1:{port}", process)
    try:
        until(lambda: answers(example))
        yield example
    finally:
        process.kill()
        process.wait()


def answers(example: Example) -> bool:
    """Whether the server is up."""
    assert example.process.poll() is None, "the server has ended"
    try:
        return example.get("/").status_code in {200, 404}
    except httpx.HTTPError:
        return False


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is true, checked every 50 ms."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def sandbox(start_sandbox: Any) -> str:
    """A sandbox that signs its callbacks."""
    url: str = start_sandbox("--speed", "6", "--images", "none", "--webhook-key", KEY).url
    return url


def test_fastapi_answers_each_image_once_though_it_is_killed(
    sandbox: str, reserved_port: int, image_host: Any, tmp_path: Path
) -> None:
    """Added in one request, notified by webhook, killed and stopped in between; none is paid twice."""
    served = ("uvicorn", "fastapi_service:app", reserved_port, tmp_path, sandbox)
    callbacks = {"KIE_WEBHOOK_KEY": KEY, "PUBLIC_URL": f"http://127.0.0.1:{reserved_port}"}
    images = [f"https://pictures.example/{number}.jpg" for number in range(7)]  # one each half second

    def add(example: Example, **form: Any) -> httpx.Response:
        return local_http.post(f"{example.url}/images", **form)

    def state(example: Example, key: str) -> str:
        found: str = example.get(f"/images/{key}").json()["state"]
        return found

    with serving(*served, **callbacks) as example:
        assert [add(example, data={"url": url}).status_code for url in ("/etc/passwd", "")] == [422, 422]
        html = {"file": ("page.html", b"<script>", "text/html")}
        assert add(example, files=html).status_code == 422
        keys = [add(example, data={"url": image}).json()["key"] for image in images]
        until(lambda: any(state(example, key) not in {"pending", "submitting"} for key in keys))
    with serving(*served, **callbacks) as example:
        upload = {"file": ("poster.png", image_host.files["/poster.png"][1], "image/png")}
        answer = add(example, files=upload, headers={"Accept": "text/html"})
        assert answer.status_code == 303
        uploaded = answer.headers["Location"].split("/")[2]
        assert example.get(f"/images/{uploaded}/progress").status_code == 200
        lines = example.get(f"/images/{uploaded}/events").text.split("\n\n")
        settled = json.loads(lines[-2].removeprefix("data: "))
        assert (settled["event"], settled["outcome"]) == ("Settled", "succeeded")
        gallery = example.get("/gallery").text
        assert f"/uploads/{uploaded}.png" in gallery
        assert f"/results/{settled['file']}" in gallery
        assert example.get(f"/results/{settled['file']}").status_code == 200
        assert example.get("/jobs.sqlite3").status_code == 404
        until(lambda: all(state(example, key) in {"succeeded", "in_doubt"} for key in keys))
        assert add(example, data={"url": images[0]}).json()["key"] == keys[0]
        done = [key for key in keys if state(example, key) == "succeeded"]
        assert example.get("/readyz").status_code == 200
        assert example.get("/healthz").json()["in_flight"] <= len(keys) - len(done)
        assert example.get("/images/unknown/events").status_code == 404
        assert example.stop() in {0, -15}
    assert "Application shutdown complete" in (tmp_path / "log").read_text("utf-8")
    ledger = local_http.get(f"{sandbox}/__sandbox/ledger").json()
    assert all(len(line["tasks"]) <= 1 for line in ledger["images"].values())
    assert len(done) >= len(keys) - 5, "only submits that were in flight at the kill may wait for a callback"
    assert ledger["callbacks"]["accepted"] > 0


def test_starlette_under_hypercorn_waits_for_an_image(
    quick_url: str, reserved_port: int, tmp_path: Path
) -> None:
    """One request adds an image, another one returns its outcome; a stop ends the server in order."""
    with serving("hypercorn", "starlette_service:app", reserved_port, tmp_path, quick_url) as example:
        key = example.add("https://pictures.example/starlette.jpg")
        until(lambda: example.get(f"/images/{key}/result").json().get("state") == "Succeeded")
        assert example.get("/images/unknown/result").status_code == 404
        assert example.get("/readyz").status_code == 204
        answer = local_http.post(f"{example.url}/images", json={"image": "/etc/passwd"})
        assert answer.status_code == 422
        assert example.stop() == 0
    assert len(list((tmp_path / "results").glob("[!.]*"))) == 1


def test_litestar_streams_events(quick_url: str, reserved_port: int, tmp_path: Path) -> None:
    """A reader of the stream sees an image from its submit to its outcome."""
    with serving("uvicorn", "litestar_service:app", reserved_port, tmp_path, quick_url) as example:
        seen = []
        with (
            httpx.Client(timeout=SECONDS, verify=local_http.PLAIN) as client,
            client.stream("GET", f"{example.url}/events") as stream,
        ):
            key = example.add("https://pictures.example/litestar.jpg", "/images?priority=5")
            for line in stream.iter_lines():
                seen += [line.removeprefix("event: ")] if line.startswith("event: ") else []
                if "Settled" in seen:
                    break
        assert "Submitted" in seen
        assert example.get(f"/images/{key}").json() == {"state": "Succeeded"}
        assert example.get("/images/unknown").status_code == 404
        answer = local_http.post(f"{example.url}/images", json={"image": "/etc/passwd"})
        assert answer.status_code == 422


def test_the_shortest_backend_of_the_documents_works(
    quick_url: str, reserved_port: int, tmp_path: Path
) -> None:
    """The first program of the page, copied as it is: an image is added and gets its file."""
    program = PAGE.read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    assert sum(bool(line) for line in program.splitlines()) <= 25
    (tmp_path / "app.py").write_text(program, "utf-8")
    with serving("uvicorn", "app:app", reserved_port, tmp_path, quick_url) as example:
        key = example.add("https://pictures.example/shortest.jpg")
        until(lambda: example.get(f"/images/{key}").json()["state"] == "succeeded")
        assert (tmp_path / example.get(f"/images/{key}").json()["file"]).is_file()
        unknown = example.get("/images/unknown")
        assert (unknown.status_code, unknown.json()) == (404, {"error": "There is no job 'unknown'."})
        answer = local_http.post(f"{example.url}/images", json={"image": "/etc/passwd"})
        assert answer.status_code == 422
