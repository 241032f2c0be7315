"""A client in JavaScript that speaks only the jobs API, run unchanged against the sandbox."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import local_http

CLIENT = Path(__file__).parents[1] / "samples" / "jobs_api" / "client.mjs"
SECONDS = 90


def finish(url: str, folder: Path, *arguments: str) -> tuple[bytes, float | None]:
    """Run the client, and return the image it saved and the credits it read."""
    node = shutil.which("node")
    if node is None:
        if "CI" in os.environ:
            pytest.fail("node is not installed, and in CI it must be")
        pytest.skip("node is not installed")
    model, field, image, *options = arguments
    saved = folder / "result"
    ended = subprocess.run(
        [node, str(CLIENT), model, field, image, str(saved), *options],
        env=os.environ | {"KIE_BASE_URL": url, "KIE_API_KEY": "test"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    printed = json.loads(ended.stdout)
    tasks = local_http.get(f"{url}/__sandbox/ledger").json()["tasks"]
    (task,) = [task for task in tasks if task["taskId"] == printed["taskId"]]
    assert (task["api"], task["model"], task["state"]) == ("jobs", model, "SUCCESS")
    return saved.read_bytes(), printed["credits"]


@pytest.mark.parametrize(
    ("arguments", "price", "kind"),
    [
        (("flux1-kontext", "input_image", "output_format=png"), 5.0, "PNG"),
        (("seedream/4.5-edit", "image_urls[]", "aspect_ratio=4:3", "quality=basic"), 6.5, "PNG"),
    ],
    ids=["kontext", "seedream"],
)
def test_a_client_of_the_jobs_api_finishes(
    sandbox_url: str, image_host: Any, tmp_path: Path, arguments: tuple[str, ...], price: float, kind: str
) -> None:
    """It tests the key without a charge, submits, polls and downloads an image, at the model's price."""
    model, field, *options = arguments
    content, charged = finish(
        sandbox_url, tmp_path, model, field, f"{image_host.url}/poster.png?{tmp_path.name}", *options
    )
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == kind
        assert min(image.size) > 1
    assert charged == price


def test_it_reads_the_records_of_april(start_sandbox: Callable[..., Any], tmp_path: Path) -> None:
    """They have the result in a string only, and no price."""
    url = start_sandbox("--images", "none", "--speed", "200", "--job-records", "old").url
    content, charged = finish(url, tmp_path, "flux1-kontext", "input_image", "https://pictures.example/a.jpg")
    assert content.startswith(b"\xff\xd8")
    assert charged is None
