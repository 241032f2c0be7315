"""A batch in a notebook: its progress as HTML, and the bar that follows a run."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest

from flux_async import BatchProgress, FluxClient, Succeeded, run_batch
from flux_async.batch.notebook import NotebookBar, to_html
from scripted_vendor import ScriptedVendor

SOME = BatchProgress(
    seen=8, succeeded=4, failed=1, in_doubt=1, generating=1, fetching=1, credits=35, elapsed_s=9
)


def test_progress_is_a_bar_and_words() -> None:
    """The shares fill the bar; counts that are zero are left out; a pause gives its reason, escaped."""
    html = to_html(SOME)
    assert re.findall(r"width:([\d.]+)%", html) == ["50.00", "12.50", "12.50", "0.00", "25.00"]
    assert "6 of 8 · 4 succeeded · 1 failed · 1 in doubt · 2 in flight · 35 credits · 9 s" in html
    checked = to_html(attrs.evolve(SOME, fetching=0, verifying=1, verdicts={"clean": 3, "text_left": 1}))
    assert "1 being checked · 1 in flight · 3 clean · 1 text left · 35 credits" in checked
    assert "0 of 0 · 0 credits · 0 s" in to_html(BatchProgress())
    paused = to_html(attrs.evolve(SOME, pause_left_s=3.0, pause_reason="<b>HTTP 429</b>"))
    assert "paused for 3 s: &lt;b&gt;HTTP 429&lt;/b&gt;" in paused


@attrs.define
class Shown:
    """What a notebook shows below a cell: a value, replaced by later ones."""

    values: list[Any] = attrs.field(factory=list)

    def display(self, value: Any, *, display_id: bool) -> Shown:
        """Show the first value."""
        assert display_id
        assert self.values == []
        self.values.append(value)
        return self

    def update(self, value: Any) -> None:
        """Show another in its place."""
        self.values.append(value)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """A kernel has loaded IPython."""
    shown, ipython, displays = Shown(), ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    displays.display = shown.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return shown


def test_the_bar_is_shown_at_most_twice_a_second(shown: Shown) -> None:
    """And whenever nothing is left to do."""
    bar = NotebookBar.here()
    assert bar is not None
    for elapsed_s, succeeded in ((0.0, 1), (0.1, 2), (0.3, 3), (0.5, 4), (0.6, 5), (0.7, 8)):
        bar(BatchProgress(seen=8, succeeded=succeeded, elapsed_s=elapsed_s))
    assert [progress.succeeded for progress in shown.values] == [1, 4, 8]


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["a script", "a terminal"])
def test_no_bar_outside_of_a_notebook(shown: Shown, shell: Any) -> None:
    """IPython may be loaded without a kernel, or not at all."""
    sys.modules["IPython"].get_ipython = lambda: shell  # type: ignore[attr-defined]
    assert NotebookBar.here() is None
    del sys.modules["IPython"]
    assert NotebookBar.here() is None


async def test_a_run_in_a_notebook_shows_a_bar(
    client: FluxClient, transport: ScriptedVendor, shown: Shown
) -> None:
    """It is updated until the last outcome; the batch itself has the same bar."""
    async with run_batch(client, ["https://pictures.example/1.jpg"]) as batch:
        assert [type(outcome) async for outcome in batch] == [Succeeded]
        html = batch._repr_html_()
    assert "1 of 1 · 1 succeeded" in html
    assert [shown.values[number].succeeded for number in (0, -1)] == [0, 1]


async def test_the_bar_of_a_run_that_is_left_early_shows_its_last_state(
    client: FluxClient, transport: ScriptedVendor, shown: Shown
) -> None:
    """Also within half a second of the last time; the clock of a run that has ended stands still."""
    images = [f"https://pictures.example/{number}.jpg" for number in range(3)]
    async with run_batch(client, images) as batch:
        async for _ in batch:
            break
    assert shown.values[-1] == batch.progress
    await client.session.clock.sleep(60.0)
    assert shown.values[-1].elapsed_s == batch.progress.elapsed_s
    assert re.search(r"\b_", repr(batch)) is None
