"""The samples of the API page, run unchanged against the sandbox.

Only the address, the key, the picture, (for cURL) the task id and (for the callback server) the port are
filled in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest

import local_http

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
    sandbox_url: str, image_host: Any, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, subprocess.CompletedProcess[str]]:
    """The three samples, run beside each other; the cURL one up to its first answer."""
    folder = tmp_path_factory.mktemp("samples")
    ended = {}
    with ExitStack() as stack:
        running = {}
        for tool, (name, command) in COMMANDS.items():
            if tool != "python" and shutil.which(tool) is None:
                continue
            text = filled_in(name, sandbox_url, f"{image_host.url}/poster.jpg")
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
        missing(tool)
    return samples[tool]


def missing(tool: str) -> NoReturn:
    if "CI" in os.environ:
        pytest.fail(f"{tool} is not installed, and in CI it must be")
    pytest.skip(f"{tool} is not installed")


@pytest.mark.parametrize(
    ("tool", "success"), [("python", "Success! Result image URL: "), ("node", "Success! Image URL: ")]
)
def test_sample_succeeds(
    samples: Mapping[str, subprocess.CompletedProcess[str]], sandbox_url: str, tool: str, success: str
) -> None:
    """The sample submits, waits and prints the URL of an image with the requested ratio."""
    ended = outcome(samples, tool)
    assert (ended.returncode, ended.stderr) == (0, "")
    last = (ended.stdout.splitlines() or [""])[-1]
    assert last.startswith(f"{success}{sandbox_url}/files/result/"), ended.stdout
    picture = local_http.get(last.removeprefix(success))
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


# The callback server


def poll_until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return found


@attrs.frozen
class CallbackServer:
    """The Express sample in a process of its own."""

    url: str
    output: Path

    def has_said(self, *lines: str) -> bool:
        """Whether its output holds all of these lines."""
        return set(lines) <= set(self.output.read_text("utf-8").splitlines())


@contextmanager
def running_callback_server(folder: Path, port: int) -> Iterator[CallbackServer]:
    """Start the sample on a port; it writes what it downloads into the folder."""
    # Debian installs packages for Node in a folder that Node does not search.
    paths = [os.environ.get("NODE_PATH", ""), "/usr/share/nodejs"]
    environment = os.environ | {"NODE_PATH": os.pathsep.join(filter(None, paths))}
    if shutil.which("node") is None:
        missing("node")
    poll = ["node", "-e", "require('express')"]
    if subprocess.run(poll, check=False, env=environment, stderr=subprocess.DEVNULL).returncode:
        missing("express (Debian: node-express)")
    script, output = folder / "callback_server.js", folder / "output.txt"
    script.write_text((SAMPLES / script.name).read_text("utf-8").replace("3000", str(port)), "utf-8")
    with (
        output.open("wb") as out,
        subprocess.Popen(
            ["node", str(script)], cwd=folder, env=environment, stdout=out, stderr=out
        ) as process,
    ):
        try:
            server = CallbackServer(f"http://127.0.0.1:{port}/flux-callback", output)
            poll_until(lambda: server.has_said(f"Callback server running on port {port}"))
            yield server
        finally:
            process.kill()


def tasks_of(url: str) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = local_http.get(f"{url}/__sandbox/ledger").json()["tasks"]
    return tasks


def accepted(task: dict[str, Any]) -> bool:
    """Whether a callback was answered 200; on a busy machine an earlier answer may have come too late."""
    return any(attempt["status"] == 200 for attempt in task["callbacks"])


def test_callback_server_is_called(
    sandbox_url: str, start_sandbox: Callable[..., Any], reserved_port: int, tmp_path: Path
) -> None:
    """The Express sample understands the callbacks of a success and of a failure, and its 200 is accepted."""
    fast = start_sandbox("--images", "none", "--speed", "200").url
    nowhere = f"http://127.0.0.1:9/{tmp_path.name}.png"
    with running_callback_server(tmp_path, reserved_port) as server:
        for url, image in ((fast, {}), (sandbox_url, {"inputImage": nowhere})):
            body = {"prompt": "A lighthouse", "callBackUrl": server.url} | image
            reply = local_http.post(
                f"{url}/api/v1/flux/kontext/generate", json=body, headers={"Authorization": "Bearer test"}
            )
            assert reply.json()["code"] == 200
        [task] = poll_until(lambda: [task for task in tasks_of(fast) if accepted(task)])
        path = "/api/v1/flux/kontext/record-info"
        record = local_http.get(
            fast + path, params={"taskId": task["taskId"]}, headers={"Authorization": "Bearer test"}
        )
        links = record.json()["data"]["response"]
        poll_until(
            lambda: server.has_said(
                "Received Flux image processing callback: {",
                f"  taskId: '{task['taskId']}',",
                "  status: 200,",
                "  message: 'BFL image generated successfully.'",
                "Image processing completed successfully",
                f"Original image URL: {links['originImageUrl']}",
                f"Result image URL: {links['resultImageUrl']}",
            )
        )
        poll_until(lambda: server.has_said("Content policy violation - please adjust prompt"))
    counts = local_http.get(f"{fast}/__sandbox/ledger").json()["callbacks"]
    assert (counts["accepted"], counts["given_up"]) == (1, 0)
