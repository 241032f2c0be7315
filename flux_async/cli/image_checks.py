"""The commands that check results against their originals. Nothing here costs credits."""

from __future__ import annotations

from pathlib import Path

import attrs

from flux_async import Verdict, VerdictKind, verify
from flux_async.cli.terminal import Exit, Output, as_json, printable


def show_verdict(original: Path, result: Path, *, as_json: bool) -> Exit:
    """Print the verdict on one result."""
    verdict = verify(original, result)
    Output().line(_json(verdict) if as_json else _line(verdict))
    return Exit.SUCCEEDED if verdict.kind is VerdictKind.CLEAN else Exit.SOME_FAILED


def _line(verdict: Verdict) -> str:
    """Return the verdict as text: ``text_left: 28% of the text's area still reads as text: SALE``."""
    no_text = "no text was found in the original" if verdict.no_text else ""
    words = "; ".join(filter(None, [verdict.reason, no_text]))
    return printable(f"{verdict.kind}: {words}" if words else verdict.kind)


def _json(verdict: Verdict) -> str:
    """Return the verdict as a JSON object; its kind is named as in ``results.jsonl``."""
    figures = attrs.asdict(verdict)
    return as_json({"verdict": figures.pop("kind"), **figures})
