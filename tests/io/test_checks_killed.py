"""SIGKILL among downloads and checks: every file is whole, no check is recorded twice, none is missing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from check_workers import PREFIX

SCRIPT = Path(__file__).parents[1] / "support" / "checked_run.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
IMAGES, KILLS = 60, (10, 25, 40)
WAIT_S = 120


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Read the journal beside the process that runs it; nothing before it is there."""
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:  # its tables are not there yet
            return []


def kill_at(count: int, path: Path, process: subprocess.Popen[bytes]) -> None:
    """Kill a run once it has recorded so many verdicts."""
    until = time.monotonic() + WAIT_S
    while rows(path, "SELECT count(*) FROM event WHERE type = 'Verified'") < [(count,)]:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_runs_that_are_killed_three_times_check_every_image_once(
    start_sandbox: Any, image_host: Any, tmp_path: Path
) -> None:
    """Nothing is paid twice; originals are downloaded, results composed, vendor's images kept."""
    url, path, out = (
        start_sandbox("--speed", "120", "--images", "none").url,
        tmp_path / "run.sqlite3",
        tmp_path / "out",
    )
    command = [sys.executable, str(SCRIPT), url, str(tmp_path), *image_host.more("killed", IMAGES)]
    for count in KILLS:
        with subprocess.Popen(command, env=ENVIRONMENT) as process:
            kill_at(count, path, process)
    assert subprocess.run(command, env=ENVIRONMENT, timeout=WAIT_S, check=False).returncode == 0
    original = image_host.files["/poster.png"][1]
    jobs = rows(path, "SELECT file, sha256, checked FROM job WHERE state = 'done'")
    for file, sha256, checked in jobs:
        content = (out / file).read_bytes()
        assert content == PREFIX + original
        assert hashlib.sha256(content).hexdigest() == sha256
        found = json.loads(checked)
        assert found["is_preserved"]
        assert found["verdict"]["kind"] == "clean"
        assert (out / found["vendor_file"]).is_file()
    in_doubt = rows(path, "SELECT count(*) FROM job WHERE state = 'in_doubt'")[0][0]
    assert len(jobs) + in_doubt == IMAGES
    assert in_doubt <= 6 * len(KILLS), "at most the submits in flight at each kill"
    twice = "SELECT type, job FROM event WHERE type IN ('SubmitIntended', 'Composed', 'Verified') "
    assert rows(path, f"{twice} GROUP BY type, job HAVING count(*) > 1") == []
