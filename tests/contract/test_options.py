"""Options that one function passes on to another by name."""

from __future__ import annotations

import inspect

from flux_async import BatchOptions, run_batch


def test_options_of_a_batch_are_those_of_run_batch() -> None:
    """Every keyword of ``run_batch`` is in ``BatchOptions``, with the same type, and no other."""
    parameters = inspect.signature(run_batch).parameters.values()
    keywords = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {name: ref.__forward_arg__ for name, ref in BatchOptions.__annotations__.items()} == keywords
