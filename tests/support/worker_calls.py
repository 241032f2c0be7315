"""What tests have a worker process do. It lies here because a worker can import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def end() -> None:
    """Be killed, as a system short of memory does it."""
    signal.raise_signal(signal.SIGKILL)


def end_once(marks: Path) -> int:
    """Be killed, except where another worker was before; return the process id."""
    try:
        (marks / "tried").mkdir()
    except FileExistsError:
        return os.getpid()
    return end() or 0


def stay(marks: Path) -> None:
    """Write the process id into a file, and never return."""
    part = marks / "part"
    part.write_text(str(os.getpid()), "ascii")
    part.rename(marks / "pid")
    while True:
        time.sleep(60)


def meet(marks: Path, others: int) -> int:
    """Return the process id, once as many calls are running at the same time."""
    (marks / f"here-{os.getpid()}").mkdir()
    while len(list(marks.glob("here-*"))) < others:
        time.sleep(0.01)
    return os.getpid()


def chatter(words: str) -> str:
    """Print, as libraries do, also by native code, and return the words."""
    print(words, flush=True)  # noqa: T201 - that is the test
    os.write(1, words.encode())
    return words


class Unpicklable(Exception):
    """An exception that cannot be restored from its pickle."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def fail() -> None:
    """Raise an exception that cannot be sent."""
    raise Unpicklable("one", "two")


def end_for(image: bytes, *, max_pixels: int) -> bool:
    """Be killed while checking an image."""
    return bool(end()) or bool(image) or bool(max_pixels)
