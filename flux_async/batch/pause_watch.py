"""Halts a run when the service has been away for longer than the run waits.

Submits, polls and uploads note for themselves that they do not get through, and pause together. This says how
long a run puts up with it. No image fails for it: what was not submitted stays pending, and what was is taken
up by the next run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from flux_async.errors import FluxError
from flux_async.policy.pauses import Pause
from flux_async.session import Session


@attrs.define(kw_only=True, eq=False)
class PauseWatch:
    """The pauses of one run.

    Attributes:
        account: Has the pauses.
        patience_s: Seconds the run waits.
        on_halt: Is called with the error that halts the run, and whether to leave the tasks that are waited
            for: nothing has been answered since the pause began, so they cannot be polled either.
        on_change: Is called when a pause has begun or ended.
    """

    session: Session
    patience_s: float
    on_halt: Callable[[FluxError, bool], None]
    on_change: Callable[[], None]
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
                ((self._gives_up_at(pause), pause) for pause in self._pauses()), key=lambda end: end[0]
            )
            if now < at:
                await session.changed.wait(session.clock, at - now)
                continue
            began = max(self._began, now if pause.since is None else pause.since)
            leaves = pause.is_outage and session.contact_at < began
            self.on_halt(pause.as_halt(now - began), leaves)
            if leaves:
                return
            self._ended.append(pause)

    def _show(self) -> None:
        pause = self.current()
        seen = None if pause is None else (pause.since, pause.until)
        if seen != self._shown:
            self._shown = seen
            self.on_change()

    def current(self) -> Pause | None:
        """Return the pause that is on, submits first."""
        return next((pause for pause in self._pauses() if pause.is_on), None)

    def _pauses(self) -> tuple[Pause, Pause, Pause]:
        return self.session.gate.pause, self.session.upload_pause, self.session.polls

    def _gives_up_at(self, pause: Pause) -> float:
        if any(pause is ended for ended in self._ended):
            return math.inf
        reached = self.session.contact_at >= self._began
        return pause.gives_up_at(self._began, self.patience_s, reached=reached)
