"""The sandbox's book, as a test reads it: what was submitted and charged, image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux_async.sandbox.ledger import Ledger, Line


class PaidTwice(AssertionError):
    """The same request was charged more than once, and the test did not say that it may be."""


class FluxLedger:
    """What the vendor has in its books; every reading is of the present.

    An image is named by its address as it was submitted (of an uploaded file: the upload's), a picture made
    from nothing by its prompt.

    Args:
        book: Returns a copy of the sandbox's own ledger.
    """

    def __init__(self, book: Callable[[], Ledger]) -> None:
        self._book = book
        self._allowed: dict[str, int] = {}

    def __repr__(self) -> str:
        book = self.read()
        return f"<FluxLedger: {book.submits} submits, {book.accepted} tasks, {book.charged:g} credits>"

    def read(self) -> Ledger:
        """Return a copy of the whole book: refusals by code, faults that struck, windows, callbacks."""
        return self._book()

    @property
    def submits(self) -> int:
        """Submits received with a good key, refused ones included."""
        return self.read().submits

    @property
    def accepted(self) -> int:
        """Tasks made."""
        return self.read().accepted

    @property
    def polls(self) -> int:
        """Looks at tasks."""
        return self.read().polls

    @property
    def charged(self) -> float:
        """Credits taken for good: less what was refunded."""
        book = self.read()
        return book.charged - book.refunded

    def charges(self, image: str) -> int:
        """Return how often an image was charged for good."""
        images = self.read().images
        line = images.get(image) or images.get(f"prompt:{image}")
        return 0 if line is None else line.charges

    @property
    def double_charges(self) -> dict[str, int]:
        """The images about which the same request was charged for good more than once, and how often."""
        images = self.read().images
        return {image: line.most_charges for image, line in images.items() if line.is_paid_twice}

    def allow(self, image: str, times: int = 2) -> None:
        """Allow the same request about an image to be charged ``times`` times, on purpose."""
        self._allowed |= {image: times, f"prompt:{image}": times}

    def check(self) -> None:
        """Raise what the fixture raises at the end of the test.

        Raises:
            PaidTwice: The same request about an image was charged more often than it may be. Two different
                edits of one image are two requests.
        """
        images = self.read().images
        over = {
            image: line for image, line in images.items() if line.most_charges > self._allowed.get(image, 1)
        }
        if over:
            raise PaidTwice("\n".join(["charged more than once:", *map(_told, over.items())]))


def _told(entry: tuple[str, Line]) -> str:
    image, line = entry
    refunds = f", {line.refunds} of them refunded" if line.refunds else ""
    return (
        f"  {image}: {line.charges} charges, {line.charged - line.refunded:g} credits "
        f"({line.submits} submits made the tasks {', '.join(line.tasks)}{refunds})"
    )
