"""``examples/taskiq_worker.py`` in a worker process, with a real Redis server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flux_async.testing import FluxSandbox
from servers import Redis, RunningServer

pytest.importorskip("taskiq_redis")

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 120
ENQUEUE = """
import asyncio, taskiq_worker as example

async def main():
    await example.broker.startup()
    task = await example.submit.kiq("https://pictures.example/1.jpg", "1.jpg")
    result = await task.wait_result(timeout=100)
    result.raise_for_error()
    print(result.return_value)
    again = await example.fetch.kiq(result.return_value, "again.jpg")
    print((await again.wait_result(timeout=100)).return_value)
    await example.broker.shutdown()

asyncio.run(main())
"""


def test_a_worker_submits_once_and_fetches_as_often_as_asked(
    redis: tuple[Redis, RunningServer], tmp_path: Path
) -> None:
    """The submit returns the id of a task, its image is saved, and the same id can be fetched again."""
    server, _ = redis
    with FluxSandbox(sockets=True) as sandbox:
        environment = os.environ | {
            "KIE_API_KEY": sandbox.key,
            "KIE_BASE_URL": sandbox.url,
            "REDIS_URL": server.url,
            "PYTHONPATH": str(EXAMPLES),
        }
        options = ("--workers", "1", "--log-level", "WARNING")
        command = [sys.executable, "-m", "taskiq", "worker", "taskiq_worker:broker", *options]
        with subprocess.Popen(command, cwd=tmp_path, env=environment) as worker:
            try:
                ended = subprocess.run(
                    [sys.executable, "-c", ENQUEUE],
                    check=False,
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=SECONDS,
                )
                assert ended.returncode == 0, ended.stderr
            finally:
                worker.terminate()
                worker.wait(SECONDS)
        task_id, path = ended.stdout.split()
        assert len(task_id) == 32
        assert (tmp_path / path).is_file()
        assert sandbox.ledger.accepted == 1
