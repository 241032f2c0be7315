"""``examples/fastapi_service.py`` in two processes on one PostgreSQL, of which one is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

import local_http
from flux_async.testing import FluxSandbox
from servers import port_of, reserved_port
from tests.support.file_host import JPEG

pytest.importorskip("dbos", reason="the extra engine is not installed")
pytest.importorskip("fastapi")

SERVER = Path(__file__).parents[1] / "support" / "quick_fastapi_service.py"
SECONDS = 120
IMAGES, HALF = 60, 30
KEY = "hook-key"


@attrs.frozen
class Replica:
    """One process of the application."""

    url: str
    process: subprocess.Popen[bytes]

    def add(self, image: str) -> str | None:
        """Add an image and return its key; None if the process has ended."""
        try:
            answer = local_http.post(f"{self.url}/images", data={"url": image})
        except httpx.HTTPError:
            return None
        assert answer.status_code == 202, answer.text
        key: str = answer.json()["key"]
        return key

    def upload(self, content: bytes) -> str:
        """Add an image as a file and return its key."""
        answer = local_http.post(f"{self.url}/images", files={"file": ("poster.jpg", content, "image/jpeg")})
        assert answer.status_code == 202, answer.text
        key: str = answer.json()["key"]
        return key

    def state(self, key: str) -> str:
        """Return how far an image is."""
        state: str = local_http.get(f"{self.url}/images/{key}").json()["state"]
        return state

    @property
    def is_ready(self) -> bool:
        """Whether it takes images."""
        assert self.process.poll() is None, "the server has ended"
        try:
            return local_http.get(f"{self.url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def replica(port: int, environment: dict[str, str], folder: Path) -> Iterator[Replica]:
    """Serve the application in a child process, and end it by its pid."""
    with (folder / "log").open("ab") as log:
        command = [sys.executable, str(SERVER), str(port)]
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield Replica(f"http://127.0.0.1:{port}", child)
    finally:
        child.kill()
        child.wait()


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is true, checked every 100 ms."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_a_replica_is_killed_and_each_image_is_answered_once(fresh_dsn: str, tmp_path: Path) -> None:
    """By the other one, which takes over its work; nothing is paid twice."""
    with FluxSandbox(sockets=True, webhook_key=KEY, speed=10) as sandbox, ExitStack() as stack:
        reserved = [stack.enter_context(reserved_port()) for _ in range(2)]
        ports = [port_of(each) for each in reserved]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        environment |= {
            "FLUX_ASYNC_DSN": fresh_dsn,
            "KIE_API_KEY": sandbox.key,
            "KIE_BASE_URL": sandbox.url,
            "KIE_WEBHOOK_KEY": KEY,
            "PUBLIC_URL": f"http://127.0.0.1:{ports[1]}",  # a load balancer would find the one that lives
        }
        killed, other = (stack.enter_context(replica(port, environment, tmp_path)) for port in ports)
        until(lambda: killed.is_ready and other.is_ready)
        images = [f"https://pictures.example/{number}.jpg" for number in range(IMAGES)]
        keys = [killed.upload(JPEG), *(killed.add(image) for image in images[:HALF])]
        until(lambda: sum(other.state(str(key)) != "pending" for key in keys) > 8)
        killed.process.kill()
        keys += [killed.add(image) or other.add(image) for image in images[HALF:]]
        assert len({*keys} - {None}) == IMAGES + 1
        assert other.upload(JPEG) == keys[0]

        def is_over() -> bool:
            states = [other.state(str(key)) for key in keys]
            over = states.count("succeeded") + states.count("in_doubt") == len(keys)
            return over and states.count("succeeded") == sandbox.ledger.accepted

        until(is_over)
        assert sandbox.ledger.accepted >= len(keys) - 3, (
            "only what was about to be sent at the kill is in doubt"
        )
        results = [path for path in (tmp_path / "data" / "results").iterdir() if path.name[0] != "."]
        other.process.terminate()
        assert other.process.wait(SECONDS) in {0, -15}
        ledger, double_charges = sandbox.ledger.read(), sandbox.ledger.double_charges
    assert len(results) == ledger.accepted
    assert double_charges == {}
    assert ledger.callbacks.accepted > 0
