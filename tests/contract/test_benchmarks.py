"""Every benchmark has a short form and a row in the README of the benchmarks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))
ROWS = dict(
    re.findall(
        r"^\| `python benchmarks/(\S+?\.py)(.*?)`", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE
    )
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_accepts_the_options_of_its_row(script: str) -> None:
    """Each has a row in the README of the benchmarks, and accepts ``--short``, ``--long`` and its options."""
    reported = subprocess.run(
        [sys.executable, str(FOLDER / script), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER)},
    ).stdout
    wanted = ["--long", "--short", *re.findall(r"--[a-z]+", ROWS[script])]
    assert [option for option in wanted if option not in reported] == []


def test_every_row_has_a_script() -> None:
    """Every row of that README is about a script that is there."""
    assert sorted(ROWS) == SCRIPTS
