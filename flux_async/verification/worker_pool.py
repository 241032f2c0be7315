"""Pool of worker processes for CPU work on images, for use from an event loop.

The pools of the standard library and of anyio import the user's main module in each worker. A script without
``if __name__ == "__main__"`` would submit its images there a second time, and pay for them twice. These
workers load this package only. A worker that is killed, by the system for its memory or by a user, costs no
other worker's call.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

import anyio
import anyio.abc
import attrs
from anyio.streams.buffered import BufferedByteReceiveStream

from flux_async.errors import ClientClosed
from flux_async.verification.machine import default_workers
from flux_async.verification.worker import HEADER, message

P = ParamSpec("P")
T = TypeVar("T")

TRIES = 3
"""How often a call is made whose worker ends during it."""
END_S = 5.0
"""Seconds that a process which closed its output may take to end."""
_COMMAND = (sys.executable, "-P", "-m", "flux_async.verification.worker")
_ONE_THREAD = {
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}
"""Each worker uses one core: several threads would only wait for each other."""


class WorkerEnded(Exception):
    """A worker process ended during a call; the message says how."""


@attrs.define(eq=False)
class WorkerProcess:
    """One worker process. It makes one call at a time."""

    process: anyio.abc.Process
    answers: BufferedByteReceiveStream

    @classmethod
    async def start(cls) -> Self:
        """Start a worker; it has the caller's import path, and not the caller's API key."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        environment |= _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = await anyio.open_process(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which lets images finish
        )
        if process.stdout is None:
            raise RuntimeError("a process with a pipe as its output has no output")
        return cls(process, BufferedByteReceiveStream(process.stdout))

    async def call(self, content: bytes) -> bytes:
        """Return the worker's answer.

        Raises:
            WorkerEnded: The process ended before it had answered.
        """
        try:
            if self.process.stdin is not None:
                await self.process.stdin.send(message(content))
            header = await self.answers.receive_exactly(HEADER)
            return await self.answers.receive_exactly(int.from_bytes(header, "big"))
        except (anyio.IncompleteRead, anyio.EndOfStream, OSError):
            raise WorkerEnded(await self._end()) from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise WorkerEnded(await self._end()) from None

    async def aclose(self) -> None:
        """Kill the process, whatever it does, and wait for its end."""
        with anyio.CancelScope(shield=True):
            if self.process.returncode is None:
                with suppress(ProcessLookupError):
                    self.process.kill()
            await self.process.aclose()

    async def _end(self) -> str:
        """Return how the process ended; it is over, or about to be."""
        with anyio.move_on_after(END_S, shield=True):
            await self.process.wait()  # a signal to a process that is over would take its exit code away
        await self.aclose()
        code = self.process.returncode or 0
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


class WorkerPool:
    """Worker processes that are started with the first calls, and ended by ``aclose``.

    A cancelled call ends its worker: native code cannot be interrupted otherwise. The next call starts
    another.

    Args:
        workers: The most processes; one for each core by default, as far as memory allows.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers: int = default_workers() if workers is None else workers
        self._slots = anyio.CapacityLimiter(self.workers)
        self._running: set[WorkerProcess] = set()
        self._idle: list[WorkerProcess] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``function(*args, **kwargs)``, called in a worker; all three must be picklable.

        If the worker ends during the call, another one makes it again: three times in all.

        Raises:
            WorkerEnded: Three workers ended during the call.
            ClientClosed: The pool is closed.
        """
        for tried in range(1, TRIES + 1):
            async with self._slots:
                try:
                    succeeded, value = pickle.loads(  # noqa: S301 - our own worker made it
                        await self._ask(pickle.dumps((function, args, kwargs)))
                    )
                    break
                except WorkerEnded:
                    if tried == TRIES:
                        raise
        if not succeeded:
            raise value
        result: T = value
        return result

    async def aclose(self) -> None:
        """End all workers; calls that are still running raise ``ClientClosed``."""
        self._closed = True
        self._idle.clear()
        for worker in tuple(self._running):
            await worker.aclose()

    async def _ask(self, call: bytes) -> bytes:
        """Return a worker's answer."""
        self._require_open()
        worker = self._idle.pop() if self._idle else await WorkerProcess.start()
        self._running.add(worker)
        try:
            self._require_open()  # it may have been closed while the worker started
            answer = await worker.call(call)
        except BaseException as error:
            self._running.discard(worker)
            await worker.aclose()
            if isinstance(error, WorkerEnded):
                self._require_open()
            raise
        self._idle.append(worker)
        return answer

    def _require_open(self) -> None:
        if self._closed:
            raise ClientClosed("The workers are closed.", advice="Use them inside their async with block.")
