"""``examples/fastapi_app.py``, served: submit in one request, result by webhook, killed in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_http

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 120
KEY = "hook-key"


@contextmanager
def serving(sandbox: str, journal: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the example with uvicorn in a child process, ended by its pid."""
    environment = os.environ | {
        "KIE_BASE_URL": sandbox,
        "KIE_API_KEY": "test",
        "KIE_WEBHOOK_KEY": KEY,
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "FLUX_JOURNAL": str(journal),
    }
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--port",
        str(port),
        "--app-dir",
        str(EXAMPLES),
        "fastapi_app:app",
    ]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(port))
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(SECONDS)
                finally:
                    process.kill()


def answers(port: int) -> bool:
    """Whether the server is up."""
    try:
        return local_http.get(f"http://127.0.0.1:{port}/images/none").status_code == 404
    except httpx.HTTPError:
        return False


def until(condition: Callable[[], Any]) -> Any:
    """Wait until something is true, checked every 50 ms."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return value


def state(port: int, key: str) -> dict[str, Any]:
    """Return the state of an image."""
    reported: dict[str, Any] = local_http.get(f"http://127.0.0.1:{port}/images/{key}").json()
    return reported


@pytest.fixture
def sandbox(start_sandbox: Any) -> str:
    """A sandbox that signs its callbacks."""
    url: str = start_sandbox("--speed", "6", "--images", "none", "--webhook-key", KEY).url
    return url


def test_acknowledged_images_end_once_though_the_server_is_killed(
    sandbox: str, reserved_port: int, tmp_path: Path
) -> None:
    """Submitted in one request, notified by webhook, killed in between; none is paid twice."""
    pytest.importorskip("fastapi")
    port, journal = reserved_port, tmp_path / "app.sqlite3"
    images = [f"https://pictures.example/{number}.jpg" for number in range(8)]  # one each half second
    url = f"http://127.0.0.1:{port}/images"
    with serving(sandbox, journal, port) as process:
        assert local_http.post(url, json={"image": "no address"}).status_code == 422
        keys = [local_http.post(url, json={"image": image}).json()["key"] for image in images]
        until(lambda: any(state(port, key)["state"] in {"submitted", "generated", "done"} for key in keys))
        process.kill()
        process.wait()
    with serving(sandbox, journal, port):
        until(lambda: all(state(port, key)["state"] in {"done", "in_doubt"} for key in keys))
        again = local_http.post(url, json={"image": images[0]}).json()["key"]
        assert again == keys[0]
        done = [reported for key in keys if (reported := state(port, key))["state"] == "done"]
        assert all(reported["result_url"].startswith(sandbox) for reported in done)
    ledger = local_http.get(f"{sandbox}/__sandbox/ledger").json()
    assert all(len(line["tasks"]) <= 1 for line in ledger["images"].values())
    assert len(done) >= len(images) - 5, (
        "only submits that were in flight at the kill may wait for their callback"
    )
    assert ledger["callbacks"]["accepted"] > 0
