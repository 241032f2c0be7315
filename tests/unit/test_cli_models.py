"""Models at the command line: ``models``, ``--model``, ``--model-file``, ``--price`` and lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flux_async import Model
from flux_async.cli.commands import cli

IMAGE = "https://example.com/a.jpg"
FILE = """
["lab/model-9"]
credits = 3
image_field = "pictures"
needs_image = false
max_prompt = 1000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(FILE, encoding="utf-8")
    return file


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def list_file(folder: Path, rows: str) -> Path:
    path = folder / "list.csv"
    path.write_text(rows, encoding="utf-8")
    return path


def dry(tmp_path: Path, *words: object) -> Any:
    """Return what a dry run of remove-text reports."""
    found = run("remove-text", "--dry-run", "--json", "-o", tmp_path / "out", *words)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_models_are_listed_with_price_and_options(file: Path) -> None:
    """Those of the table, and those of a file."""
    lines = run("models").stdout.splitlines()
    for model in Model:
        assert any(line.startswith(model.value) and f" {model.row.credits:g} " in line for line in lines)
    assert any("seedream/4.5-edit" in line and "aspect_ratio!" in line for line in lines)
    assert any("qwen2/image-edit" in line and " 800 " in line for line in lines)
    assert lines[-1].startswith("Results are kept for 14 days (kontext), 24 hours (jobs).")
    own = [line for line in run("models", "--model-file", file).stdout.splitlines() if "lab/" in line]
    assert [line.split() for line in own] == [["lab/model-9", "*", "3", "jobs", "1,000", "none"]]


def test_a_model_of_a_file_hides_that_of_the_table(file: Path, tmp_path: Path) -> None:
    """It is listed once, as a run takes it."""
    file.write_text(FILE.replace("lab/model-9", "nano-banana-2"), encoding="utf-8")
    lines = run("models", "--model-file", file, "--json").stdout.splitlines()
    assert [row["credits"] for row in map(json.loads, lines) if row["model"] == "nano-banana-2"] == [3]
    report = dry(tmp_path, IMAGE, "--model-file", file, "--model", "nano-banana-2")
    assert report["credits"] == 3


def test_models_are_listed_as_json(file: Path) -> None:
    """One object a line."""
    rows = [json.loads(line) for line in run("models", "--json", "--model-file", file).stdout.splitlines()]
    assert [row["model"] for row in rows] == [*(model.value for model in Model), "lab/model-9"]
    assert rows[0] == {
        "model": "flux-kontext-pro",
        "credits": 5.0,
        "apis": ["kontext", "jobs"],
        "options": sorted(Model.PRO.row.options),
        "required": [],
        "max_prompt": None,
        "needs_image": False,
    }
    assert rows[-1]["credits"] == 3


def test_a_run_uses_a_model_of_the_table(tmp_path: Path) -> None:
    """Its price counts."""
    found = dry(tmp_path, IMAGE, "--model", "google/nano-banana-edit", "--aspect-ratio", "4:3")
    assert (found["to_submit"], found["credits"]) == ({"google/nano-banana-edit": 1}, 4)


def test_a_run_uses_a_model_of_a_file(tmp_path: Path, file: Path) -> None:
    """Named by ``--model`` or by a row of a list; its price is that of the file, or that of ``--price``."""
    words = ("--model-file", file)
    found = dry(tmp_path, IMAGE, *words, "--model", "lab/model-9")
    assert (found["to_submit"], found["credits"]) == ({"lab/model-9": 1}, 3)
    found = dry(tmp_path, IMAGE, "--price", "lab/model-9=7", "--model", "lab/model-9", *words)
    assert found["credits"] == 7
    rows = f"url,model,aspect_ratio\n{IMAGE},,16:9\n{IMAGE}?2,lab/model-9,\n{IMAGE}?3,seedream/4.5-edit,3:4\n"
    found = dry(tmp_path, *words, "--from", list_file(tmp_path, rows))
    assert found["to_submit"] == {"flux-kontext-pro": 1, "lab/model-9": 1, "seedream/4.5-edit": 1}
    assert found["credits"] == 5 + 3 + 6.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "lab/model-9"), "'lab/model-9' is not one of 'flux-kontext-pro'"),
        (("--price", "lab/model-9=3"), "invalid price 'lab/model-9=3'"),
        (("--model", "seedream/4.5-edit"), "seedream/4.5-edit needs aspect_ratio"),
        (("--model", "nano-banana-2", "--output-format", "png"), "nano-banana-2 does not take output_format"),
        (("--model", "nano-banana-2-lite", "--model-file", __file__), "is not TOML"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_used_is_an_error_before_anything_is_sent(words: tuple[str, ...], said: str) -> None:
    """Exit code 2, with what is wrong."""
    found = run("remove-text", IMAGE, "--dry-run", *words)
    assert found.exit_code != 0
    assert said in " ".join((found.output + str(found.exception)).split())


def test_a_row_with_a_model_that_does_not_exist_fails_alone(tmp_path: Path) -> None:
    """The other rows go on."""
    rows = f"url,model\n{IMAGE},\n{IMAGE}?2,lab/model-9\n"
    words = ("--dry-run", "--json", "-o", tmp_path / "out", "--from", list_file(tmp_path, rows))
    found = run("remove-text", *words)
    assert json.loads(found.stdout.splitlines()[-1])["refused"] == 1
    assert "model must be one of flux-kontext-pro" in found.stderr
