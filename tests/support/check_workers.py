"""Checks of images without worker processes, for tests of what a batch does with them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from flux_async.verification.preserved_file import PreservedFile
from flux_async.verification.verdict import Verdict, VerdictKind

SIZE = (32, 16)
CLEAN = Verdict(kind=VerdictKind.CLEAN, no_text=False, original_size=SIZE, result_size=SIZE, text_left=0.0)
PREFIX = b"composed "


@attrs.define(eq=False, slots=False)
class CheckWorkers:
    """Makes checks at once; a composed image is a word and the original.

    Attributes:
        behave: Called with ``has_text``, ``preserve`` or ``verify`` and the original before each check; it
            may raise, and what it returns is the reason of a refusal to compose.
        textless: Parts of the names of originals without text.
        verdict: What is found about every image.
        made: How often each check of each original was made.
        is_closed: Whether it was closed.
    """

    behave: Callable[[str, Path], str | None] = attrs.field(default=lambda _kind, _original: None)
    verdict: Verdict = CLEAN
    textless: tuple[str, ...] = ()
    made: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    is_closed: bool = False

    async def has_text(self, image: Path) -> bool:
        """Return whether the name of an original, which must be there, is not one of those without text."""
        self.behave("has_text", image)
        assert image.is_file()
        self.made["has_text", image.name] += 1
        return not any(part in image.name for part in self.textless)

    async def preserve_file(
        self,
        original: Path,
        result: Path,
        destination: Path,
        *,
        format: Any,  # noqa: A002 - as in preserve
    ) -> PreservedFile:
        """Write the original with a word before it, unless it is refused."""
        reason, content = self.behave("preserve", original), result.read_bytes()
        if reason is None:
            content = PREFIX + original.read_bytes()
            destination.write_bytes(content)
        self.made["preserve", original.name] += 1
        digest = hashlib.sha256(content).hexdigest()
        return PreservedFile(format=format, sha256=digest, reason=reason, replaced=0.1)

    async def verify(self, original: Path, result: Path) -> Verdict:
        """Return the verdict, of a result that must be there."""
        self.behave("verify", original)
        assert result.is_file()
        self.made["verify", original.name] += 1
        return self.verdict

    async def aclose(self) -> None:
        """Record it."""
        self.is_closed = True
