"""The recipe of docs/other-engines.md in a worker of Celery, with a real Redis server."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flux_async.testing import FluxSandbox
from servers import Redis, RunningServer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("celery") is None, reason="Celery is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "other-engines.md"
SECONDS = 120
OPTIONS = "--concurrency 2 --loglevel WARNING --without-mingle --without-gossip"
WORKER = [sys.executable, "-m", "celery", "-A", "posters", "worker", *OPTIONS.split()]
ENQUEUE = """
import once, posters
once.paid("SELECT 1")
once.paid("INSERT INTO paid (key) VALUES ('in doubt')")
for key in ("one", "in doubt", "one"):
    posters.submit.delay(key, f"https://pictures.example/{key[:3]}.jpg")
"""


def block_with(text: str) -> str:
    """Return the block of the page that contains a text."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if text in block)
    return str(found)


def test_a_key_is_submitted_once_and_one_in_doubt_never(
    redis: tuple[Redis, RunningServer], tmp_path: Path
) -> None:
    """Enqueued twice it is paid once, and its image is saved; without a known task nothing is paid again."""
    (tmp_path / "once.py").write_text(block_with("async def submit_once"))
    (tmp_path / "posters.py").write_text(block_with("from celery import Celery"))
    with FluxSandbox(sockets=True, speed=20) as sandbox:
        environment = os.environ | {
            "KIE_API_KEY": sandbox.key,
            "KIE_BASE_URL": sandbox.url,
            "REDIS_URL": redis[0].url.replace("/0", "/1"),
            "PYTHONPATH": str(tmp_path),
        }
        subprocess.run(
            [sys.executable, "-c", ENQUEUE], check=True, cwd=tmp_path, env=environment, timeout=SECONDS
        )
        log, saved = tmp_path / "log", tmp_path / "one.png"
        with (
            log.open("wb") as out,
            subprocess.Popen(WORKER, cwd=tmp_path, env=environment, stdout=out, stderr=out) as worker,
        ):
            try:
                deadline = time.monotonic() + SECONDS
                while not saved.exists() or "once.InDoubt: in doubt" not in log.read_text():
                    assert worker.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
            finally:
                worker.terminate()
                worker.wait(SECONDS)
        assert worker.returncode == 0
        assert sandbox.ledger.accepted == 1
