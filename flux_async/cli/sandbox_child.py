"""A sandbox in a child process, ended by its pid whatever happens."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from typing import IO, Self

import anyio
import attrs
from anyio.abc import Process

from flux_async import FluxError

SPEED = 10

_COMMAND = (
    *("-m", "flux_async.sandbox", "--port", "0", "--speed", str(SPEED), "--quality", "good"),
    "--until-eof",
)
_READY = "sandbox ready at "
_START_S = 60.0
_STOP_S = 5.0
_TAIL = 2000


class SandboxChildError(FluxError):
    """The sandbox did not start, or ended early."""

    default_advice = "Run  flux-async sandbox  to see what it says."


@attrs.define(eq=False)
class SandboxChild:
    """The child. It has a session of its own, so that Ctrl-C in the terminal reaches only its parent.

    It ends with its parent, however that ends: then nobody holds the other end of its standard input.
    """

    process: Process
    _complaints: IO[bytes]
    url: str = ""

    @classmethod
    async def start(cls) -> Self:
        """Start it; :meth:`ready` waits until it listens."""
        complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        process = await anyio.open_process(
            [sys.executable, *_COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=_environment(),
            start_new_session=True,
        )
        return cls(process, complaints)

    async def ready(self) -> None:
        """Wait until it listens, and learn its address.

        Raises:
            SandboxChildError: It ended, or took longer than a minute.
        """
        said = ""
        with anyio.move_on_after(_START_S):
            said = await self._first_line()
        if not said.startswith(_READY):
            self.kill()
            await self.ended()
            raise SandboxChildError(f"The sandbox did not start: {self.complaints() or said or 'silence'}.")
        self.url = said.removeprefix(_READY).strip()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    async def ended(self) -> None:
        """Wait for its end."""
        await self.process.wait()

    def complaints(self) -> str:
        """Return the end of what it wrote to stderr."""
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")[-_TAIL:].strip()

    def kill(self) -> None:
        """End it at once; its workers notice and end too."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def dismiss(self) -> None:
        """Ask it to end; it tidies up after itself."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    async def stop(self) -> None:
        """Ask it to end, and see to it."""
        self.dismiss()
        with anyio.move_on_after(_STOP_S):
            await self.ended()
        if self.is_running:
            self.kill()
        await self.process.aclose()
        self._complaints.close()

    async def _first_line(self) -> str:
        said = b""
        if self.process.stdout is not None:
            async for chunk in self.process.stdout:
                said += chunk
                if b"\n" in said:
                    break
        return said.decode(errors="replace").partition("\n")[0]


def _environment() -> dict[str, str]:
    """Return this process's environment without its keys and addresses: the sandbox has no use for them."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("KIE_")}
