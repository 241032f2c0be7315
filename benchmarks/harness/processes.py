"""Child processes of a benchmark: begun with a line that says so, ended by their pid, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

_START_S = 30.0
_STOP_S = 10.0


@contextlib.contextmanager
def child(*arguments: object, quiet: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Run a Python child, and end it when the block is left."""
    command, errors = [sys.executable, *map(str, arguments)], subprocess.DEVNULL if quiet else None
    # With compiled modules, as an installer leaves them: compiling them is no cost of a run.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    """Return the first line a child prints; empty where it has none to say in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_S)
    return process.stdout.readline().strip() if ready else ""


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[str]:
    """Run a server that says ``… ready at ADDRESS``, and yield its address.

    Raises:
        SystemExit: If it does not.
    """
    with child(*arguments) as process:
        said, _, address = first_line(process).partition("ready at ")
        if not address:
            raise SystemExit(f"no server: {said!r} from {' '.join(map(str, arguments))}")
        yield address


@contextlib.contextmanager
def sandbox(**options: object) -> Iterator[str]:
    """Run a sandbox without pictures and yield its address; options as on its command line."""
    named = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with serving("-m", "flux_async.sandbox", "--port", "0", "--images", "none", *named) as address:
        yield address


def read_json(url: str) -> Any:
    """Return what a server says; its front door turns urllib's own name away."""
    request = urllib.request.Request(url, headers={"User-Agent": "benchmark"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def read_ledger(url: str) -> Any:
    """Return the books of a sandbox."""
    return read_json(f"{url}/__sandbox/ledger")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
