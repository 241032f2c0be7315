"""Halts a run when the service has been away for longer than the run waits.

Submits, polls and uploads note for themselves that they do not get through, and pause together. This says how
long a run puts up with it. No image fails for it: what was not submitted stays pending, and what was is taken
up by the next run.
"""

from __future__ import annotations

import logging
import math

import attrs

from flux_async.batch.progress import ProgressReporter
from flux_async.batch.run_control import RunControl
from flux_async.policy.rate_limit import Pause
from flux_async.session import Session, log


@attrs.define(kw_only=True, eq=False)
class PauseWatch:
    """The pauses of one run.

    Attributes:
        session: Has the pauses.
        patience_s: Seconds the run waits.
        control: Halts the run.
        progress: Notified when a pause has begun or ended.
    """

    session: Session
    patience_s: float
    control: RunControl
    progress: ProgressReporter
    _began: float = attrs.field(init=False)
    _shown: tuple[float | None, float] | None = attrs.field(default=None, init=False)
    _ended: list[Pause] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self.session.clock.monotonic()

    async def run(self) -> None:
        """Watch until cancelled, or until a halt leaves nothing to wait for."""
        session = self.session
        while True:
            now = session.clock.monotonic()
            self._show()
            at, pause = min(
                ((self._gives_up_at(pause), pause) for pause in self.session.pauses), key=lambda end: end[0]
            )
            if now < at:
                await session.changed.wait(session.clock, at - now)
                continue
            began = max(self._began, now if pause.since is None else pause.since)
            leaves = pause.is_outage and session.contact_at < began
            halt = pause.as_halt(now - began)
            log(logging.WARNING, "the batch is halted: %s", halt.message)
            self.control.halt(halt)
            if leaves:  # nothing was answered since the pause began, so tasks cannot be polled either
                self.control.abandon()
                return
            self._ended.append(pause)

    def _show(self) -> None:
        pause = self.session.current_pause()
        seen = None if pause is None else (pause.since, pause.until)
        if seen != self._shown:
            self._shown = seen
            self.progress.notify()

    def _gives_up_at(self, pause: Pause) -> float:
        if any(pause is ended for ended in self._ended):
            return math.inf
        reached = self.session.contact_at >= self._began
        return pause.gives_up_at(self._began, self.patience_s, reached=reached)
