"""Questions to the person at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskStatus

from flux_async.cli.live_input import InputStopped, LiveInputs


def can_ask() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


@attrs.frozen(kw_only=True)
class Questions:
    """Asks yes or no.

    Attributes:
        show: Prints the question.
        descriptor: Where the answer is read from.
    """

    show: Callable[[str], None]
    descriptor: int = 0

    async def ask(self, words: str) -> bool:
        """Return whether the answer begins with y; a cancelled caller does not wait for one."""
        self.show(f"{words} Type y and Enter to go on, only Enter to stop.")
        answer = ""
        live = LiveInputs()

        async def end_with_me(task_status: TaskStatus[None]) -> None:
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                live.stop()

        def read() -> str:
            try:
                return live.open(self.descriptor, closefd=False).readline().decode(errors="replace")
            except InputStopped:
                return ""

        async with anyio.create_task_group() as group:
            await group.start(end_with_me)
            answer = await anyio.to_thread.run_sync(read)
            group.cancel_scope.cancel()
        return answer.strip().lower()[:1] == "y"
