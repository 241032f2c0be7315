"""The demo, end to end: a sandbox of its own, real images, real sockets, a contact sheet and a report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flux_async.cli.demo import SAMPLES
from flux_async.sandbox.samples import sample_names

SECONDS = 600
"""Many times what it may take where nothing else runs."""
FAST = """
from functools import partial
from flux_async.cli import demo, main
demo.run_demo = partial(demo.run_demo, quality="fast", samples=5)
main()
"""
"""The command with fast text removal and few images, which takes a fifth of the time."""


def run_demo(
    folder: Path, *arguments: str, command: tuple[str, str] = ("-m", "flux_async")
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
    return subprocess.run(
        [sys.executable, *command, "demo", *arguments],
        check=False,
        cwd=folder,
        env=environment | {"HTTP_PROXY": "http://127.0.0.1:9", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.mark.timeout(2 * SECONDS)
def test_the_demo_removes_text_from_its_images_and_shows_them(tmp_path: Path) -> None:
    """Without key and network it composes and verifies them, and prints where sheet and report are."""
    stale = tmp_path / "flux-demo" / "images" / "kept.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("not the demo's")
    ended = run_demo(tmp_path, command=("-c", FAST))
    assert ended.returncode == 0, ended.stderr

    sheet = tmp_path / "flux-demo" / "contact_sheet.png"
    page = tmp_path / "flux-demo" / "report.html"
    assert [line.rpartition(" ")[2] for line in ended.stdout.splitlines()] == [
        str(sheet.resolve()),
        page.resolve().as_uri(),
    ]
    rows = [json.loads(line) for line in (tmp_path / "flux-demo" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert 12 <= SAMPLES <= len(sample_names())
    assert {row["status"] for row in rows} == {"succeeded"}
    for row in rows:
        assert (tmp_path / "flux-demo" / row["file"]).stat().st_size > 1000
        assert Path(row["file"]).name in ended.stderr
    assert stale.exists()
    shown = json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[0])["rows"]
    assert len(shown) == len(rows)
    assert all(row["original"]["thumbnail"] and row["vendor"]["thumbnail"] for row in shown)

    from PIL import Image  # noqa: PLC0415 - only where images are opened

    with Image.open(sheet) as image:
        assert image.width > 1500
    for row in rows:
        assert (row["verdict"] is not None, row["not_checked"]) == (True, None)
        with Image.open(tmp_path / "flux-demo" / row["vendor_file"]) as image:
            assert image.width % 16 == image.height % 16 == 0
            assert image.width * image.height == pytest.approx(2**20, rel=0.1)
        (original,) = (tmp_path / "flux-demo" / "originals").glob(f"{Path(row['file']).stem}.*")
        with Image.open(tmp_path / "flux-demo" / row["file"]) as composed, Image.open(original) as before:
            assert row["not_preserved"] or composed.size == before.size
    assert sum(row["not_preserved"] is None for row in rows) >= 4


def test_the_demo_leaves_the_results_of_a_real_run_alone(tmp_path: Path) -> None:
    """A folder with results that were paid for is refused, and nothing in it is touched."""
    row = {
        "image": "https://example.com/a.png",
        "key": "k",
        "status": "pending",
        "task_id": "t",
        "result_url": None,
        "file": None,
        "charge": "yes",
        "error": None,
        "attempts": 1,
        "submitted_at": None,
        "finished_at": None,
    }
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(row))
    ended = run_demo(tmp_path, "-o", str(tmp_path))
    assert ended.returncode == 2
    assert "results of a real run" in ended.stderr
    assert results.read_text() == json.dumps(row)
