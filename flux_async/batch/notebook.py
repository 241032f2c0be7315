"""A batch in a Jupyter notebook: its progress as HTML, and a bar that follows a run."""

from __future__ import annotations

import importlib
import sys
from html import escape
from typing import TYPE_CHECKING, Any, Self

import attrs

if TYPE_CHECKING:
    from flux_async.batch.progress import BatchProgress

_UPDATE_S = 0.5
_COLOURS = {
    "succeeded": "#2e8b57",
    "failed": "#c0392b",
    "in doubt": "#d68910",
    "being checked": "#5fb7a5",
    "in flight": "#5b8def",
}
_STYLE = "display:flex;height:10px;max-width:600px;border-radius:5px;overflow:hidden;background:#8884"


def to_html(progress: BatchProgress) -> str:
    """Return a bar with the shares of the jobs, and their numbers in words."""
    counts = {
        "succeeded": progress.succeeded,
        "failed": progress.failed,
        "in doubt": progress.in_doubt,
        "being checked": progress.checking_text + progress.preserving + progress.verifying,
        "in flight": progress.generating + progress.fetching,
    }
    settled, total = progress.succeeded + progress.failed + progress.in_doubt, max(1, progress.seen)
    parts = "".join(
        f'<span style="width:{100 * count / total:.2f}%;background:{_COLOURS[name]}"></span>'
        for name, count in counts.items()
    )
    words = [f"{settled:,} of {progress.seen:,}"]
    words += [f"{count:,} {name}" for name, count in counts.items() if count]
    words += [
        f"{count:,} {verdict.replace('_', ' ')}" for verdict, count in progress.verdicts.items() if count
    ]
    if progress.skipped:
        words.append(f"{progress.skipped:,} without text, {progress.saved_credits:,g} credits saved")
    words += [f"{progress.credits:,g} credits", f"{progress.elapsed_s:.0f} s"]
    if progress.pause_left_s > 0:
        words.append(f"paused for {progress.pause_left_s:.0f} s: {progress.pause_reason}")
    figures = f'aria-label="Images" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{settled}"'
    bar = f'<div role="progressbar" {figures} style="{_STYLE}">{parts}</div>'
    return f"{bar}<div>{escape(' · '.join(words))}</div>"


@attrs.define(eq=False)
class NotebookBar:
    """An observer of a run that shows its progress below the cell, at most twice a second."""

    _display: Any
    _handle: Any = attrs.field(default=None, init=False)
    _shown_s: float | None = attrs.field(default=None, init=False)

    @classmethod
    def here(cls) -> Self | None:
        """Return a bar where this code runs in a Jupyter kernel; else None."""
        ipython = sys.modules.get("IPython")  # never imported here: a kernel has loaded it
        shell = None if ipython is None else ipython.get_ipython()
        if not hasattr(shell, "kernel"):
            return None
        return cls(importlib.import_module("IPython.display").display)

    def __call__(self, progress: BatchProgress, /) -> None:
        """Show the progress, where half a second has passed since the last time or nothing is left to do."""
        ended = progress.succeeded + progress.failed + progress.in_doubt
        is_due = self._shown_s is None or progress.elapsed_s >= self._shown_s + _UPDATE_S
        if not is_due and ended < progress.seen:
            return
        self.show(progress)

    def show(self, progress: BatchProgress) -> None:
        """Show the progress, in place of what was shown before."""
        self._shown_s = progress.elapsed_s
        if self._handle is None:
            self._handle = self._display(progress, display_id=True)
        else:
            self._handle.update(progress)
