"""The samples of the API page, run as they are against the sandbox: a client nobody here wrote.

Only the address, the key, the picture and (for cURL) the task id are filled in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

SAMPLES = Path(__file__).parents[1] / "samples" / "api_page"
PLACEHOLDER_TASK = "task12345"
SECOND_COMMAND = "# Query task status"
SECONDS = 90

COMMANDS = {
    "python": ("sample.py", [sys.executable]),
    "node": ("sample.js", ["node"]),
    "curl": ("sample.sh", ["sh"]),
}


def filled_in(name: str, url: str, image: str) -> str:
    text = (SAMPLES / name).read_text("utf-8")
    for placeholder, value in {
        "https://api.kie.ai": url,
        "your_api_key_here": "test",
        "YOUR_API_KEY": "test",
        "https://example.com/image-with-text.jpg": image,
    }.items():
        text = text.replace(placeholder, value)
    return text


@pytest.fixture(scope="module")
def samples(
    sandbox_url: str, picture_host: Any, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, subprocess.CompletedProcess[str]]:
    """The three samples, run beside each other; the cURL one up to its first answer."""
    folder = tmp_path_factory.mktemp("samples")
    ended = {}
    with ExitStack() as stack:
        running = {}
        for tool, (name, command) in COMMANDS.items():
            if tool != "python" and shutil.which(tool) is None:
                continue
            text = filled_in(name, sandbox_url, f"{picture_host.url}/poster.jpg")
            (folder / name).write_text(text.partition(SECOND_COMMAND)[0], "utf-8")
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, str(folder / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            running[tool] = process
        for tool, process in running.items():
            out, err = process.communicate(timeout=SECONDS)
            ended[tool] = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    return ended


def outcome(
    samples: Mapping[str, subprocess.CompletedProcess[str]], tool: str
) -> subprocess.CompletedProcess[str]:
    if tool not in samples:
        if "CI" in os.environ:
            pytest.fail(f"{tool} is not installed, and in CI it must be")
        pytest.skip(f"{tool} is not installed")
    return samples[tool]


@pytest.mark.parametrize(
    ("tool", "success"), [("python", "Success! Result image URL: "), ("node", "Success! Image URL: ")]
)
def test_sample_succeeds(
    samples: Mapping[str, subprocess.CompletedProcess[str]], sandbox_url: str, tool: str, success: str
) -> None:
    """The sample submits, waits and prints the URL of a picture in the ratio it asked for."""
    ended = outcome(samples, tool)
    assert (ended.returncode, ended.stderr) == (0, "")
    last = (ended.stdout.splitlines() or [""])[-1]
    assert last.startswith(f"{success}{sandbox_url}/files/result/"), ended.stdout
    picture = httpx.get(last.removeprefix(success))
    assert picture.headers["Content-Type"] == "image/jpeg"


def test_curl_sample_succeeds(
    samples: Mapping[str, subprocess.CompletedProcess[str]], sandbox_url: str, tmp_path: Path
) -> None:
    """The first command of the cURL sample makes a task, the second one sees it succeed."""
    submitted = json.loads(outcome(samples, "curl").stdout)
    assert submitted["code"] == 200
    text = filled_in("sample.sh", sandbox_url, "").partition(SECOND_COMMAND)[2]
    script = tmp_path / "query.sh"
    script.write_text(text.replace(PLACEHOLDER_TASK, submitted["data"]["taskId"]), "utf-8")
    end = time.monotonic() + SECONDS
    while True:
        asked = subprocess.run(
            ["sh", str(script)], capture_output=True, text=True, check=True, timeout=SECONDS
        )
        record = json.loads(asked.stdout)["data"]
        if record["successFlag"] != 0:
            break
        assert time.monotonic() < end
        time.sleep(0.05)
    assert record["successFlag"] == 1
    assert record["response"]["resultImageUrl"].startswith(sandbox_url)
