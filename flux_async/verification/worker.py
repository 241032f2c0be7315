"""Worker process: takes calls from standard input, and writes what they return to standard output.

Started by ``WorkerPool`` as ``python -m flux_async.verification.worker``. Each message is its length in eight
bytes and a pickle. The end of standard input ends the process at once, also in the middle of a call: so no
worker outlives its parent, however that ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from pathlib import Path
from typing import BinaryIO

HEADER = 8
"""Bytes that hold the length of a message."""


def serve() -> None:
    """Answer calls until standard input ends."""
    answers = _own_output()
    if hasattr(os, "nice"):
        os.nice(5)  # the parent has polls to answer
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, calls), name="calls", daemon=True).start()
    while True:
        answers.write(message(_answer(calls.get())))
        answers.flush()


def message(content: bytes) -> bytes:
    """Return a message as it is written: its length and its content."""
    return len(content).to_bytes(HEADER, "big") + content


def _own_output() -> BinaryIO:
    """Return standard output, and lead all else that is printed to nowhere, native code's words, too."""
    answers = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return answers


def _receive(requests: BinaryIO, calls: queue.SimpleQueue[bytes]) -> None:
    while len(header := requests.read(HEADER)) == HEADER:
        calls.put(requests.read(int.from_bytes(header, "big")))
    os._exit(0)


def _answer(call: bytes) -> bytes:
    """Return the pickle of whether a call succeeded, and of its value or exception."""
    try:
        function, args, kwargs = pickle.loads(call)  # noqa: S301 - the parent made it
        return pickle.dumps((True, function(*args, **kwargs)))
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        return _pickled(error)


def _pickled(error: Exception) -> bytes:
    try:
        content = pickle.dumps((False, error))
        pickle.loads(content)  # noqa: S301 - some exceptions can be pickled, and not be restored
    except Exception:  # noqa: BLE001 - of a class that cannot be sent
        content = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return content


if __name__ == "__main__":
    serve()
