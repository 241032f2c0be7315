"""The sandbox's ledger for a test: submits and charges of each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux_async.sandbox.ledger import Ledger, Line


class PaidTwice(AssertionError):
    """The same request was charged more than once, and the test did not allow it."""


class FluxLedger:
    """Submits and charges at the vendor; every access reads the present ledger.

    An image is named by its address as it was submitted (of an uploaded file: the upload's), a generated
    image by its prompt.

    Args:
        read: Returns a copy of the sandbox's own ledger.
    """

    def __init__(self, read: Callable[[], Ledger]) -> None:
        self._read = read
        self._allowed: dict[str, int] = {}

    def __repr__(self) -> str:
        ledger = self.read()
        return f"<FluxLedger: {ledger.submits} submits, {ledger.accepted} tasks, {ledger.charged:g} credits>"

    def read(self) -> Ledger:
        """Return a copy of the whole ledger: also refusals by code, faults that occurred, callbacks."""
        return self._read()

    @property
    def submits(self) -> int:
        """Submits received with a valid key, refused ones included."""
        return self.read().submits

    @property
    def accepted(self) -> int:
        """Tasks made."""
        return self.read().accepted

    @property
    def polls(self) -> int:
        """Polls of tasks."""
        return self.read().polls

    @property
    def charged(self) -> float:
        """Credits charged and not refunded."""
        ledger = self.read()
        return ledger.charged - ledger.refunded

    def charges(self, image: str) -> int:
        """Return the charges of an image that were not refunded."""
        images = self.read().images
        line = images.get(image) or images.get(f"prompt:{image}")
        return 0 if line is None else line.charges

    @property
    def double_charges(self) -> dict[str, int]:
        """Number of charges of each image for which the same request was charged more than once."""
        images = self.read().images
        return {image: line.most_charges for image, line in images.items() if line.is_paid_twice}

    def allow(self, image: str, times: int = 2) -> None:
        """Allow ``times`` charges of the same request for an image."""
        self._allowed |= {image: times, f"prompt:{image}": times}

    def check(self) -> None:
        """Check for double charges, as the fixture does at the end of the test.

        Raises:
            PaidTwice: The same request for an image was charged more often than allowed. Two different edits
                of one image are two requests.
        """
        images = self.read().images
        over = {
            image: line for image, line in images.items() if line.most_charges > self._allowed.get(image, 1)
        }
        if over:
            raise PaidTwice("\n".join(["charged more than once:", *map(_described, over.items())]))


def _described(entry: tuple[str, Line]) -> str:
    image, line = entry
    refunds = f", {line.refunds} of them refunded" if line.refunds else ""
    return (
        f"  {image}: {line.charges} charges, {line.charged - line.refunded:g} credits "
        f"({line.submits} submits made the tasks {', '.join(line.tasks)}{refunds})"
    )
