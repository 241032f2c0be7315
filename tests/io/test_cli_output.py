"""Standard output that cannot be written: a full disk, a closed pipe, no standard output at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

FULL = Path("/dev/full")
NO_SPACE = "No space left on device"
SECONDS = 120

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="the platform has no /dev/full")


@contextmanager
def full() -> Iterator[IO[str]]:
    """Yield a standard output on a full disk."""
    with FULL.open("w") as device:
        yield device


@contextmanager
def closed_pipe() -> Iterator[IO[str]]:
    """Yield a standard output that is a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        yield pipe


@contextmanager
def closed() -> Iterator[None]:
    """Yield no standard output."""
    yield None


def run_into(cli: Any, output: Callable[[], Any], *arguments: str, apart: bool = False) -> tuple[int, str]:
    """Run a command with this standard output, perhaps in a process of its own, whose end writes, too.

    Returns:
        Its exit code and what it printed to stderr.
    """
    with output() as stream:
        if not apart:
            code, stderr = cli.run_into(stream, *arguments)
        else:
            options = {"preexec_fn": lambda: os.close(1)} if stream is None else {"stdout": stream}
            with cli.start(*arguments, **options) as process:
                _, stderr = process.communicate(timeout=SECONDS)
            code = process.returncode
    assert "Traceback" not in stderr, stderr
    return code, stderr


@pytest.mark.parametrize("output", [full, closed_pipe, closed])
@pytest.mark.parametrize("options", [[], ["--json"], ["-o", "image.png"]], ids=str)
def test_a_paid_result_that_cannot_be_printed_is_named_on_stderr(
    quick_cli: Any, output: Callable[[], Any], options: list[str]
) -> None:
    """Task, address or file, and a command that is free: a full disk leads to no second charge."""
    code, stderr = run_into(quick_cli, output, "generate", "hi", *options, apart=not options)
    assert code == 1
    assert "is done, but its result could not be printed: " in stderr
    assert ("image.png" if "-o" in options else "http://127.0.0.1") in stderr
    task_id = stderr.partition("Task ")[2].partition(" ")[0]
    assert quick_cli.run("task", task_id).code == 0
    code, stderr = run_into(quick_cli, output, "task", task_id, apart=not options)
    assert (code, task_id in stderr) == (1, True)


def test_every_other_answer_that_cannot_be_printed_is_an_error_of_one_sentence(
    quick_cli: Any, image_host: Any, tmp_path: Path
) -> None:
    """Balance, state of a folder, upload, checks, help and list of faults; a closed pipe stays quiet."""
    (tmp_path / "poster.png").write_bytes(image_host.files["/poster.png"][1])
    expected = f"Error: Standard output cannot be written: {NO_SPACE}.\n"
    for command in (
        "credits",
        "status out --json",
        "status out",
        "upload poster.png",
        "doctor",
        "remove-text poster.png --dry-run --json",
        "--help",
        "credits --help",
        "--version",
        "sandbox --list-faults",
    ):
        code, stderr = run_into(quick_cli, full, *command.split(), apart=command == "--help")
        assert code == (2 if command.startswith("sandbox") else 1), command
        assert stderr.endswith(expected), stderr
    for command in ("credits", "status out", "--help", "sandbox --list-faults"):
        assert run_into(quick_cli, closed_pipe, *command.split(), apart=True)[1] == "", command


def test_results_of_a_run_that_cannot_be_printed_are_in_results_jsonl(
    quick_cli: Any, image_host: Any, request: pytest.FixtureRequest
) -> None:
    """The run goes on, says where its results are, and exits 1; a closed pipe is no error."""
    images = image_host.more(request.node.name, 3)
    code, stderr = run_into(quick_cli, full, "remove-text", *images, "-o", "out")
    assert code == 1
    assert f"Results could not be printed: {NO_SPACE}. They are in out/results.jsonl." in stderr
    assert [row["status"] for row in quick_cli.rows()] == ["succeeded"] * 3
    code, stderr = run_into(quick_cli, closed_pipe, "remove-text", *images, "-o", "out")
    assert (code, "could not be printed" in stderr) == (0, False)
