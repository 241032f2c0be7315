"""Callbacks end to end: real sandbox, real sockets, real processes, forged callbacks."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

import local_http
from flux_async import CallbackEndpoint, FluxClient, Limits, PollPolicy, Succeeded, run_batch

KEY = "hook-key"
SPEED = 40
SIGNING = ("--speed", str(SPEED), "--images", "none", "--webhook-key", KEY)
FAST = PollPolicy(first_s=0.1, interval_s=0.1, sweep_s=1.0, callback_within_s=0.2, not_found_grace_s=5.0)
LIMITS = Limits(submits=20, window_s=10.0 / SPEED)
IMAGES = [f"https://pictures.example/{number}.jpg" for number in range(12)]


def ledger(url: str) -> dict[str, Any]:
    """Ask the sandbox for its book."""
    book: dict[str, Any] = local_http.get(f"{url}/__sandbox/ledger").json()
    return book


def until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the port is open."""
    while True:
        assert process.poll() is None, "the receiver did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


@contextmanager
def receiver_process(journal: Path, port: int) -> Iterator[None]:
    """Receive callbacks in a process of its own, which has only the path of the batch."""
    program = (
        "import sys, uvicorn; from flux_async import WebhookReceiver; "
        "uvicorn.run(WebhookReceiver(sys.argv[1], key=sys.argv[2]), port=int(sys.argv[3]), log_level='error')"
    )
    command = [sys.executable, "-c", program, str(journal), KEY, str(port)]
    with subprocess.Popen(command) as process:
        try:
            until_listening(process, port)
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()


def options(port: int) -> list[str]:
    """The options of a run with callbacks."""
    address = f"127.0.0.1:{port}"
    rate = ["--rate", f"20/{10 / SPEED}", "--no-download"]
    return ["-o", "out", "--callback-url", f"http://{address}/hook", "--listen", address, *rate]


FAULTS = [
    "callback-forged,callback-replayed",
    "callback-duplicate,callback-late:30%",
    "callback-early:50%,callback-wrong-id:20%",
    "callback-stale:30%,callback-unsigned:30%",
    "callback-missing",
]


@pytest.mark.parametrize("faults", FAULTS)
async def test_hostile_callbacks_change_no_result(
    start_sandbox: Any, reserved_port: int, tmp_path: Path, faults: str
) -> None:
    """Every image succeeds with the vendor's own address, and is paid once, whatever callbacks claim."""
    url = start_sandbox(*SIGNING, "--faults", faults, "--seed", "3").url
    port, journal = reserved_port, tmp_path / "run.sqlite3"
    endpoint = CallbackEndpoint(f"http://127.0.0.1:{port}/hook", key=KEY)
    with receiver_process(journal, port):
        async with (
            FluxClient("test", url, polling=FAST, limits=LIMITS) as client,
            run_batch(client, IMAGES, journal=journal, callbacks=endpoint) as batch,
        ):
            outcomes = [outcome async for outcome in batch]
    assert len(outcomes) == len(IMAGES)
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert all(outcome.image.result_url.startswith(f"{url}/") for outcome in outcomes)
    book = ledger(url)
    assert all(len(line["tasks"]) == 1 for line in book["images"].values())
    assert (book["callbacks"]["sent"] == 0) == (faults == "callback-missing")


async def test_a_callback_to_another_process_settles_a_lost_answer(
    start_sandbox: Any, reserved_port: int, tmp_path: Path
) -> None:
    """Some answers are dropped after the charge; the callbacks of another process name their tasks."""
    url = start_sandbox(*SIGNING, *some_replies_lost(tmp_path)).url
    port, journal = reserved_port, tmp_path / "run.sqlite3"
    endpoint = CallbackEndpoint(f"http://127.0.0.1:{port}/hook?mine=1", key=["new-key", KEY])
    with receiver_process(journal, port):
        async with (
            FluxClient("test", url, polling=FAST, limits=LIMITS) as client,
            run_batch(client, IMAGES, journal=journal, callbacks=endpoint) as batch,
        ):
            outcomes = [outcome async for outcome in batch]
    assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == len(IMAGES)
    book = ledger(url)
    assert any("drop-reply" in task["faults"] for task in book["tasks"])
    assert all(len(line["tasks"]) == 1 for line in book["images"].values())


def some_replies_lost(folder: Path) -> tuple[str, str]:
    """Return the options of a sandbox that loses every fourth reply: too few in a row to halt a run."""
    script = folder / "faults.jsonl"
    script.write_text(
        "".join('["drop-reply"]\n' if number % 4 == 1 else "[]\n" for number in range(len(IMAGES)))
    )
    return "--fault-script", str(script)


def test_the_command_line_receives_callbacks(
    start_sandbox: Any, reserved_port: int, cli: Any, tmp_path: Path
) -> None:
    """``--listen`` receives signed callbacks: they settle dropped answers, and the results show it."""
    sandbox = start_sandbox(*SIGNING, *some_replies_lost(tmp_path))
    command = attrs.evolve(cli, base_url=sandbox.url, more={"KIE_WEBHOOK_KEY": f"old, {KEY}"})
    ended = command.run("remove-text", *IMAGES, *options(reserved_port))
    assert ended.code == 0, ended.stderr
    rows = command.rows()
    assert [row["image"] for row in rows] == IMAGES
    assert {(row["status"], row["charge"], row["attempts"]) for row in rows} == {("succeeded", "yes", 1)}
    assert ledger(sandbox.url)["callbacks"]["accepted"] >= len(IMAGES)


def test_an_address_that_cannot_be_listened_at_is_refused(offline: Any) -> None:
    """Before anything is sent, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = offline.run("remove-text", IMAGES[0], *options(taken.getsockname()[1]))
    assert ended.code == 2
    assert "in use" in ended.stderr
    ended = offline.run("remove-text", IMAGES[0], "--listen", "127.0.0.1:1234")
    assert (ended.code, "--callback-url" in ended.stderr) == (2, True)
    ended = offline.run("remove-text", IMAGES[0], "--callback-url", "ftp://x")
    assert (ended.code, "http" in ended.stderr) == (2, True)
    ended = offline.run("remove-text", IMAGES[0], "--callback-url", "http://x", "--listen", "nowhere")
    assert (ended.code, "HOST:PORT" in ended.stderr) == (2, True)
