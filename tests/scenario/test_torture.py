"""The batch under SIGKILL, with real processes and sockets: the short form of ``benchmarks/torture.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "torture.py"
# If the tests run from the wheel, Python does not search the folder of the script.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_killed_runs_lose_nothing_and_pay_nothing_twice() -> None:
    """300 jobs, 8 kills at random times, 1 % of replies dropped: lost 0, charged twice 0."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--short"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert figures["kills"] == "8"
    assert (figures["lost"], figures["charged twice"]) == ("0", "0")
    assert figures["integrity_check ok"] == "1"
    ended = ("done", "in doubt, charged", "in doubt, not charged")
    assert sum(int(figures[how]) for how in ended) == 300


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_killed_runs_with_callbacks_leave_nothing_in_doubt() -> None:
    """The receiver dies with the worker, the next one submits to the other API: every job is settled."""
    # At this speed a job in doubt waits for the better part of a minute instead of half an hour.
    command = [sys.executable, str(SCRIPT), "--callbacks", "--jobs", "300", "--kills", "5", "--speed", "60"]
    command += ["--api", "both"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert (figures["done"], figures["charged twice"]) == ("300", "0")
    assert figures["polls at the wrong API"] == "0"
