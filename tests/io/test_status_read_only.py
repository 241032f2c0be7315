"""``status`` on a read-only folder: a backup, another user's run, a read-only disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_RECORDER = """
import asyncio, os, sys
from flux_async.journal.store import Journal
from flux_async.job_state import SubmitIntended, apply
from flux_async.models import JobKey

async def main():
    async with Journal(sys.argv[1]) as journal:
        request = '{"inputImage": "https://files.example/a.jpg", "model": "flux-kontext-pro", "prompt": "x"}'
        (stored, _) = await journal.add([(JobKey("k1"), request), (JobKey("k2"), request)])
        event = SubmitIntended(api="kontext", at=1.0)
        await journal.record(stored.number, apply(stored.job, event), event)
        if sys.argv[2] == "killed":
            os.kill(os.getpid(), 9)

asyncio.run(main())
"""

_STATUS = """
import os, sys
from pathlib import Path
from flux_async.cli.status import show_status
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
show_status(Path(sys.argv[1]), as_json=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can enter."""
    made = Path(tempfile.mkdtemp(prefix="status-"))
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


@pytest.mark.parametrize(
    ("ended", "left"),
    [
        ("closed", ()),
        ("killed", ("journal.sqlite3-wal", "journal.sqlite3-shm")),
        ("killed", ("journal.sqlite3-wal",)),
    ],
    ids=["closed", "killed", "killed, without -shm"],
)
def test_status_of_a_read_only_folder(folder: Path, ended: str, left: tuple[str, ...]) -> None:
    """All committed records are counted, and the folder is unchanged."""
    journal, temporary = folder / "run" / "journal.sqlite3", folder / "temporary"
    subprocess.run([sys.executable, "-c", _RECORDER, str(journal), ended], check=False)
    for name in ("journal.sqlite3-wal", "journal.sqlite3-shm"):
        assert journal.with_name(name).exists() == (ended == "killed")
        if name not in left:
            journal.with_name(name).unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in journal.parent.iterdir()}
    for path in journal.parent.iterdir():
        path.chmod(0o444)
    journal.parent.chmod(0o555)
    temporary.mkdir()
    temporary.chmod(0o777)
    status = subprocess.run(
        [sys.executable, "-c", _STATUS, str(journal.parent)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    journal.parent.chmod(0o755)
    assert status.returncode == 0, status.stderr
    counts = json.loads(status.stdout)["counts"]
    assert (counts["pending"], counts["submitting"]) == (1, 1)
    assert {path.name: path.read_bytes() for path in journal.parent.iterdir()} == before
    assert list(temporary.iterdir()) == [], "no copy is left behind"
