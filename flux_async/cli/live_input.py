"""Inputs that may be slow to come, such as a pipe: read as they arrive, and given up when a run ends.

They are read in a thread. A thread that blocks in ``read`` cannot be interrupted, so that it waits for the
file and for a pipe of our own at once.
"""

from __future__ import annotations

import io
import os
import select
from collections.abc import Callable
from typing import Any


class InputStopped(Exception):
    """The run reads no more."""


class LiveInputs:
    """What the inputs of one run have in common.

    Attributes:
        on_wait: Called by the reading thread before it waits for more: what was read can be passed on.
    """

    def __init__(self) -> None:
        self.on_wait: Callable[[], None] = lambda: None
        self._stopped = False
        self._woken, self._wake = os.pipe()

    def __del__(self) -> None:
        os.close(self._woken)
        os.close(self._wake)

    def open(self, descriptor: int, *, closefd: bool) -> io.BufferedReader:
        """Return the bytes of an open file, as they come."""
        return io.BufferedReader(_LiveFile(self, descriptor, closefd=closefd))

    def stop(self) -> None:
        """End all waiting, now and later: the reading thread gets :class:`InputStopped`."""
        if not self._stopped:
            self._stopped = True
            os.write(self._wake, b"x")

    def wait(self, descriptor: int) -> None:
        """Return when a file has something to read, or is at its end.

        Raises:
            InputStopped: The run reads no more.
        """
        ready, _, _ = select.select([descriptor, self._woken], [], [], 0)
        if not ready:
            self.on_wait()
            select.select([descriptor, self._woken], [], [])
        if self._stopped:
            raise InputStopped


class _LiveFile(io.RawIOBase):
    def __init__(self, inputs: LiveInputs, descriptor: int, *, closefd: bool) -> None:
        self._inputs, self._descriptor, self._closefd = inputs, descriptor, closefd

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._inputs.wait(self._descriptor)
        view = memoryview(buffer)
        content = os.read(self._descriptor, len(view))
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed and self._closefd:
            os.close(self._descriptor)
        super().close()
