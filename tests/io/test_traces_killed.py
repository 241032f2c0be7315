"""One trace per job across SIGKILL and a callback: real processes, and the spans that each has exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import local_http
from commands import SECONDS

SCRIPT = Path(__file__).parents[1] / "support" / "traced_service.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
IMAGES = [f"https://pictures.example/{number}.jpg" for number in range(3)]
POST, POLL = "POST /api/v1/flux/kontext/generate", "GET /api/v1/flux/kontext/record-info"


@contextmanager
def service(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run the service in a process of its own, and kill it in the end."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], word: str, times: int = 1) -> None:
    """Read what a process prints until it has said a word so often."""
    assert process.stdout is not None
    said = []
    while times and (line := process.stdout.readline()):
        said.append(line)
        times -= line.split()[0] == word
    assert not times, said


def end_tasks(url: str) -> None:
    """Let the time of the vendor pass until all tasks have ended."""
    assert local_http.post(f"{url}/__sandbox/clock", json={"advance": 600}).is_success


def spans_in(path: Path) -> list[dict[str, Any]]:
    """Return the spans that a process has exported."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def traces_of(spans: list[dict[str, Any]], *names: str) -> list[str]:
    """Return the trace of each span with one of these names."""
    return sorted(span["context"]["trace_id"] for span in spans if span["name"] in names)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_job_has_one_trace_across_sigkill_and_a_callback(
    start_sandbox: Any, reserved_port: int, tmp_path: Path
) -> None:
    """Killed between submit and end of the task; the callback comes to the process after it."""
    url = start_sandbox("--virtual-clock", "--images", "none").url
    killed, resumed = tmp_path / "killed.jsonl", tmp_path / "resumed.jsonl"
    with service(url, reserved_port, tmp_path, killed, *IMAGES) as process:
        wait_for(process, "Submitted")
        end_tasks(url)  # the others are submitted when the first one has shown the price
        wait_for(process, "Submitted", len(IMAGES) - 1)
    with service(url, reserved_port, tmp_path, resumed) as process:
        wait_for(process, "listening")
        end_tasks(url)
        wait_for(process, "CallbackReceived", len(IMAGES) - 1)
        process.communicate("\n".join(IMAGES), timeout=SECONDS)
        assert process.returncode == 0
    assert local_http.get(f"{url}/__sandbox/ledger").json()["submits"] == len(IMAGES)
    first, later = spans_in(killed), spans_in(resumed)
    traces, ended = traces_of(first, "flux_async.add"), traces_of(first, "flux_async.job")
    assert len(set(traces)) == len(IMAGES)
    assert traces_of(first, POST) == traces
    assert traces_of(later, "flux_async.add", POST) == []
    for name in ("flux_async.callback", "GET", "flux_async.job"):
        assert traces_of(first, name) == ended
        assert sorted(ended + traces_of(later, name)) == traces
    assert set(traces_of(later, POLL)) == set(traces) - set(ended)
    known = {span["context"]["span_id"] for span in first + later}
    assert [span for span in first + later if span["parent_id"] not in {None, *known}] == []
