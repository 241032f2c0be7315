"""What was asked, paid, polled and called back: the book a test reads to see that nobody paid twice."""

from __future__ import annotations

from collections import Counter

import attrs

from flux_async.sandbox.faults import Fault

MAX_SUBJECT_LENGTH = 2048


@attrs.frozen(kw_only=True)
class Attempt:
    """One delivery of a callback.

    Attributes:
        at: When it was posted, in vendor seconds.
        status: The HTTP status it was answered with; None where no answer came.
        fault: The fault it shows, or None for what the vendor would have sent.
    """

    at: float
    status: int | None
    fault: Fault | None


@attrs.define
class CallbackCounts:
    """What became of the callbacks.

    Attributes:
        sent: Deliveries attempted.
        accepted: Deliveries answered with HTTP 200.
        failed: Deliveries answered otherwise, or not at all.
        given_up: Callbacks that failed for the last time.
    """

    sent: int = 0
    accepted: int = 0
    failed: int = 0
    given_up: int = 0


@attrs.define
class Line:
    """The book for one image (or for one prompt, where a picture is made from nothing).

    Attributes:
        submits: Submits that named it and were well formed, those refused for speed or credits included.
        tasks: Ids of the tasks made for it.
        charged: Credits taken.
        refunded: Credits given back.
        polls: Times a record of its tasks was read.
        callbacks: Deliveries of callbacks attempted for its tasks.
    """

    submits: int = 0
    tasks: list[str] = attrs.Factory(list)
    charged: float = 0.0
    refunded: float = 0.0
    polls: int = 0
    callbacks: int = 0


@attrs.define
class Ledger:
    """The book of one account.

    Attributes:
        submits: Submits received with a good key.
        refused: How many of them were refused, by envelope code.
        polls: Records read, unknown tasks included.
        callbacks: What became of the callbacks.
        images: One line per input image URL; a generation is filed under ``prompt:`` and its prompt.
    """

    submits: int = 0
    refused: Counter[int] = attrs.Factory(Counter)
    charged: float = 0.0
    refunded: float = 0.0
    polls: int = 0
    callbacks: CallbackCounts = attrs.Factory(CallbackCounts)
    images: dict[str, Line] = attrs.Factory(dict)

    def line(self, subject: str) -> Line:
        """Return the line of one image, begun when it is first named."""
        return self.images.setdefault(subject[:MAX_SUBJECT_LENGTH], Line())

    def accept(self, subject: str, task_id: str, price: float) -> None:
        """Write down a task and its charge."""
        self.charged += price
        line = self.line(subject)
        line.tasks.append(task_id)
        line.charged += price

    def refund(self, subject: str, price: float) -> None:
        """Write down credits that were given back."""
        self.refunded += price
        self.line(subject).refunded += price

    def poll(self, subject: str | None) -> None:
        """Write down that a record was asked for; None where there is none."""
        self.polls += 1
        if subject is not None:
            self.line(subject).polls += 1

    def call(self, subject: str) -> None:
        """Write down that a callback is delivered."""
        self.callbacks.sent += 1
        self.line(subject).callbacks += 1

    def called(self, *, accepted: bool) -> None:
        """Write down what became of a delivery."""
        if accepted:
            self.callbacks.accepted += 1
        else:
            self.callbacks.failed += 1

    def as_json(self) -> dict[str, object]:
        """Return the book as plain data."""
        return {
            "submits": self.submits,
            "accepted": self.submits - self.refused.total(),
            "refused": {str(code): count for code, count in sorted(self.refused.items())},
            "charged": self.charged,
            "refunded": self.refunded,
            "polls": self.polls,
            "callbacks": attrs.asdict(self.callbacks),
            "images": {subject: attrs.asdict(line) for subject, line in self.images.items()},
        }
