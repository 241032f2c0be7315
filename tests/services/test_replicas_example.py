"""``examples/fastapi_replicas.py`` on a real PostgreSQL: two replicas and a worker, stopped and killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_http
from flux_async.testing import FluxSandbox
from servers import port_of, reserved_port

pytest.importorskip("dbos", reason="the extra engine is not installed")
pytest.importorskip("fastapi")

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 120
KEY = "hook-key"


@contextmanager
def running(environment: dict[str, str], folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module of Python in a child process, and end it by its pid."""
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is true, checked every 100 ms."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether a replica is up."""
    try:
        return local_http.get(f"{url}/images/unknown").status_code == 404
    except httpx.HTTPError:
        return False


def test_replicas_and_a_worker_end_and_no_image_is_lost(fresh_dsn: str, tmp_path: Path) -> None:
    """Images are added by both replicas; callbacks reach one of them; each image is paid once."""
    reserved = [reserved_port(), reserved_port()]
    ports = [port_of(each) for each in reserved]
    first, second = (f"http://127.0.0.1:{port}" for port in ports)

    def add(url: str, number: int) -> str:
        image = {"image": f"https://pictures.example/{number}.jpg"}
        key: str = local_http.post(f"{url}/images", json=image).json()["key"]
        return key

    def states(url: str) -> list[str]:
        return [local_http.get(f"{url}/images/{key}").json()["state"] for key in keys]

    with FluxSandbox(sockets=True, webhook_key=KEY) as sandbox, ExitStack() as stack:
        for each in reserved:
            stack.enter_context(each)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        environment |= {"FLUX_ASYNC_DSN": fresh_dsn, "KIE_WEBHOOK_KEY": KEY, "PYTHONPATH": str(EXAMPLES)}
        with_key = environment | {"KIE_API_KEY": sandbox.key, "KIE_BASE_URL": sandbox.url}

        def replica(port: int) -> subprocess.Popen[bytes]:
            command = ("uvicorn", "--port", str(port), "fastapi_replicas:app")
            return stack.enter_context(running(environment, tmp_path, *command))

        def worker() -> subprocess.Popen[bytes]:
            command = ("flux_async", "worker", "-o", "results", "--callback-url", f"{second}/flux-callback")
            return stack.enter_context(running(with_key, tmp_path, *command))

        stopped = replica(ports[0])
        until(lambda: answers(first))
        replica(ports[1])
        killed = worker()
        keys = [add(first, number) for number in range(3)]
        stopped.terminate()
        stopped.wait(SECONDS)
        until(lambda: answers(second))
        keys += [add(second, number) for number in range(2, 6)]
        assert keys[2] == keys[3]
        until(lambda: "Succeeded" in states(second))
        killed.kill()
        worker()
        replica(ports[0])
        until(lambda: answers(first))
        until(lambda: set(states(first)) <= {"Succeeded", "InDoubt"})
        assert states(first).count("Succeeded") >= len(keys) - 3, "others were under way at the kill"
        assert sandbox.ledger.double_charges == {}
        assert sandbox.ledger.read().callbacks.accepted > 0
