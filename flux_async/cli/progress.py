"""How far a run is, as one frozen value."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping

import attrs


class Phase(enum.Enum):
    """Where one image is on its way."""

    QUEUED = enum.auto()
    SUBMITTING = enum.auto()
    GENERATING = enum.auto()
    DOWNLOADING = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    IN_DOUBT = enum.auto()


SETTLED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.IN_DOUBT})


@attrs.frozen(kw_only=True)
class Progress:
    """A run at one moment.

    Attributes:
        phases: How many images are in each phase; they add up to ``total``.
        kept: How many were settled without any work: by earlier runs, or as no address at all.
        submitted: Tasks made by this run.
        elapsed_s: Seconds since it began.
    """

    phases: Mapping[Phase, int]
    kept: int = 0
    submitted: int = 0
    elapsed_s: float = 0.0

    @property
    def total(self) -> int:
        """All images."""
        return sum(self.phases.values())

    @property
    def generating(self) -> int:
        """Images whose task is running at the vendor."""
        return self.phases.get(Phase.GENERATING, 0)

    @property
    def succeeded(self) -> int:
        """Images that have their picture."""
        return self.phases.get(Phase.SUCCEEDED, 0)

    @property
    def failed(self) -> int:
        """Images that failed or are in doubt."""
        return self.phases.get(Phase.FAILED, 0) + self.phases.get(Phase.IN_DOUBT, 0)

    @property
    def settled(self) -> int:
        """Images about which nothing more will happen in this run."""
        return self.succeeded + self.failed

    @property
    def per_minute(self) -> float:
        """Images settled by this run's work, per minute: 30 in 90 s is 20."""
        return 60.0 * (self.settled - self.kept) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present rate, or None while there is none: 40 left at 20 a minute is 120."""
        if self.per_minute <= 0:
            return None
        return 60.0 * (self.total - self.settled) / self.per_minute


@attrs.define
class Tally:
    """Counts images by phase as they move."""

    kept: int = attrs.field(default=0, init=False)
    submitted: int = attrs.field(default=0, init=False)
    _phase_of: dict[str, Phase] = attrs.field(factory=dict, init=False)
    _counts: Counter[Phase] = attrs.field(factory=Counter, init=False)

    def move(self, key: str, phase: Phase) -> None:
        """Record that the image ``key`` is now in ``phase``."""
        before = self._phase_of.get(key)
        if before is not None:
            self._counts[before] -= 1
        self._phase_of[key] = phase
        self._counts[phase] += 1

    def progress(self, elapsed_s: float) -> Progress:
        """Return the state of things."""
        return Progress(
            phases=dict(self._counts), kept=self.kept, submitted=self.submitted, elapsed_s=elapsed_s
        )
