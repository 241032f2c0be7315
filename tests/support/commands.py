"""The sandbox in a child process, and the command line against it, in this process or another."""

from __future__ import annotations

import asyncio
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import attrs
import pytest

import local_http
from flux_async import EditRequest, Journal
from flux_async.cli.commands import cli as cli_commands
from flux_async.cli.display import message_console
from flux_async.cli.terminal import run_cli
from flux_async.policy.generation_times import GenerationTimes, kind_of
from loggers import unchanged_loggers

READY = "sandbox ready at "
START_SECONDS = 120
STOP_SECONDS = 120
SECONDS = 120
CLOSED_PORT = "http://127.0.0.1:9"


@attrs.frozen
class RunningSandbox:
    """A sandbox in a child process."""

    url: str
    process: subprocess.Popen[str]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def running_sandbox(*options: str, stderr: bool = False) -> Iterator[RunningSandbox]:
    """Start ``python -m flux_async.sandbox`` on a free port and end it, by its pid, in the end."""
    command = [sys.executable, "-m", "flux_async.sandbox", "--port", "0", *options]
    errors = subprocess.PIPE if stderr else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
            line = process.stdout.readline() if readable else ""
            assert line.startswith(READY), f"the sandbox did not start: {line!r}"
            yield RunningSandbox(line.removeprefix(READY).strip(), process)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                finally:
                    process.kill()


@attrs.frozen
class Ended:
    """Exit code and both streams of a command."""

    code: int
    stdout: str
    stderr: str


@attrs.frozen
class Cli:
    """Runs ``flux-async`` in a folder, against one address, with one key and more variables."""

    folder: Path
    base_url: str = CLOSED_PORT
    key: str | None = "test"
    more: dict[str, str] = attrs.field(factory=dict)

    @contextmanager
    def start(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a command; it does not outlive the block."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        with subprocess.Popen(
            [sys.executable, "-m", "flux_async", *arguments],
            cwd=self.folder,
            env=environment | self.environment(),
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            **options,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def run(self, *arguments: str, text: str = "") -> Ended:
        """Run a command to its end in this process; to start another would take most of the time."""
        stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")
        code, stderr = self.run_into(stdout, *arguments, text=text)
        return Ended(code, stdout.buffer.getvalue().decode(), stderr)

    def run_into(self, stdout: IO[str] | None, *arguments: str, text: str = "") -> tuple[int, str]:
        """Run a command in this process with another standard output; return its exit code and its stderr."""
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        stderr = io.TextIOWrapper(io.BytesIO(), "utf-8")
        message_console.cache_clear()
        with pytest.MonkeyPatch.context() as patch, unchanged_loggers(), os.fdopen(reader) as stdin:
            for name in [name for name in os.environ if name.startswith("KIE_")]:
                patch.delenv(name)
            for name, value in self.environment().items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["flux-async", *arguments])
            for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
                patch.setattr(sys, name, stream)
            code = run_cli(cli_commands)
        return code, stderr.buffer.getvalue().decode()

    def run_apart(self, *arguments: str) -> Ended:
        """Run a command to its end in a process of its own."""
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=SECONDS)
        return Ended(process.returncode, stdout, stderr)

    def environment(self) -> dict[str, str]:
        """Return the variables of the command, beside those of this process."""
        key = {} if self.key is None else {"KIE_API_KEY": self.key}
        return {"KIE_BASE_URL": self.base_url, "COLUMNS": "120"} | key | self.more

    def teach_times(self, folder: str = "out") -> None:
        """Store in the journal of a folder that tasks take half a second, as they do in a quick sandbox.

        A run without learned times polls as if they took eight seconds.
        """
        times, kind = GenerationTimes(), kind_of(EditRequest.text_removal("https://example.com/"))
        for _ in range(300):
            observation = times.begin(0.0, kind=kind, age=0.0)
            observation.generating(0.15)
            observation.ended(0.6)

        async def keep() -> None:
            async with Journal(self.folder / folder / "journal.sqlite3") as journal:
                await journal.record_generation_times(times.dump())

        asyncio.run(keep())

    def rows(self, folder: str = "out") -> list[dict[str, Any]]:
        """Return the lines of results.jsonl."""
        results = self.folder / folder / "results.jsonl"
        return [json.loads(line) for line in results.read_text().splitlines()]

    def status(self, folder: str = "out") -> dict[str, Any]:
        """Return the output of ``status --json``."""
        reported: dict[str, Any] = json.loads(self.run("status", folder, "--json").stdout)
        return reported

    def ledger(self) -> dict[str, Any]:
        """Return the sandbox's ledger."""
        ledger: dict[str, Any] = local_http.get(f"{self.base_url}/__sandbox/ledger").json()
        return ledger

    def tasks_of(self, image: str) -> int:
        """Return the number of tasks that were made, and paid, for an image."""
        return self.tasks_of_each([image])[0]

    def tasks_of_each(self, images: Iterable[str]) -> list[int]:
        """Return the number of tasks of each image; submits refused with 429 made none."""
        lines = self.ledger()["images"]
        return [len(lines[image]["tasks"]) if image in lines else 0 for image in images]

    @staticmethod
    def wait_for(what: Callable[[], object]) -> None:
        """Wait until ``what`` returns something true."""
        end = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.02)
