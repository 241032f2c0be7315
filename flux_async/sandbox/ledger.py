"""The ledger: submits, charges, polls and callbacks, by image, so that a test sees a double charge."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from flux_async.sandbox.faults import Fault
from flux_async.sandbox.models import Api

MAX_SUBJECT_LENGTH: Final = 2048
WINDOW: Final = 10.0  # vendor seconds

_LINES: Final = 20
_NAME: Final = 60


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
    """Counts of callback deliveries.

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
    """The ledger of one image, or of one prompt without an image.

    Attributes:
        submits: Submits that named it and were well formed, those refused for speed or credits included.
        tasks: Ids of the tasks made for it.
        refunds: How many of them were refunded.
        charged: Credits taken.
        refunded: Credits given back.
        polls: Times a record of its tasks was read.
        callbacks: Deliveries of callbacks attempted for its tasks.
        apis: How many of its tasks were made through each API.
        requests: Charges less refunds of each request about it, by digest: two edits are two requests.
    """

    submits: int = 0
    tasks: list[str] = attrs.Factory(list)
    refunds: int = 0
    charged: float = 0.0
    refunded: float = 0.0
    polls: int = 0
    callbacks: int = 0
    apis: dict[str, int] = attrs.Factory(dict)
    requests: dict[str, int] = attrs.Factory(dict)

    @property
    def charges(self) -> int:
        """Tasks charged and not refunded."""
        return len(self.tasks) - self.refunds

    @property
    def most_charges(self) -> int:
        """The most charges, less refunds, of one request about it."""
        return max(self.requests.values(), default=0)

    @property
    def is_paid_twice(self) -> bool:
        """Whether one request was charged more than once and not refunded."""
        return self.most_charges > 1


@attrs.define
class Window:
    """The most events within any ten vendor seconds."""

    most: int = 0
    _recent: deque[float] = attrs.Factory(deque)

    def note(self, now: float) -> None:
        """Count one event."""
        while self._recent and now - self._recent[0] >= WINDOW:
            self._recent.popleft()
        self._recent.append(now)
        self.most = max(self.most, len(self._recent))


@attrs.define
class Ledger:
    """The ledger of one account.

    Attributes:
        submits: Submits received with a good key.
        accepted: Tasks made.
        refused: How many submits were refused, by envelope code, or by HTTP status where there is none.
        dropped: Submits whose connection was closed before they were read.
        charged: Credits taken; `refunded`, credits given back.
        polls: Records read, unknown tasks included.
        callbacks: Counts of callback deliveries.
        faults: How often each fault active: a submit, a task with all that follows, or a call.
        unknown_fields: How often each unknown field was sent.
        submits_in_window: The most submits within ten vendor seconds, refused ones included;
            `tasks_in_window`, the most tasks made.
        images: One line per input image URL; a generation is filed under ``prompt:`` and its prompt.
    """

    submits: int = 0
    accepted: int = 0
    refused: Counter[int] = attrs.Factory(Counter)
    dropped: int = 0
    charged: float = 0.0
    refunded: float = 0.0
    polls: int = 0
    callbacks: CallbackCounts = attrs.Factory(CallbackCounts)
    faults: Counter[str] = attrs.Factory(Counter)
    unknown_fields: Counter[str] = attrs.Factory(Counter)
    submits_in_window: Window = attrs.Factory(Window)
    tasks_in_window: Window = attrs.Factory(Window)
    images: dict[str, Line] = attrs.Factory(dict)
    _changed: set[str] = attrs.field(factory=set, init=False, repr=False)

    @property
    def double_charges(self) -> list[str]:
        """The images about which the same request was paid more than once, and not refunded."""
        return [subject for subject, line in self.images.items() if line.is_paid_twice]

    def line(self, subject: str) -> Line:
        """Return the line of one image; a new one for a new image."""
        name = subject[:MAX_SUBJECT_LENGTH]
        self._changed.add(name)  # every caller changes it
        return self.images.setdefault(name, Line())

    def take_changed(self) -> list[tuple[str, Line]]:
        """Return the lines that may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return [(name, self.images[name]) for name in changed]

    def submit(self, now: float) -> None:
        """Count a submit."""
        self.submits += 1
        self.submits_in_window.note(now)

    def strike(self, faults: Iterable[Fault]) -> None:
        """Count faults that struck."""
        self.faults.update(map(str, faults))

    def accept(
        self, subject: str, request: str, task_id: str, price: float, now: float, *, api: Api = Api.KONTEXT
    ) -> None:
        """Record a task and its charge."""
        self.accepted += 1
        self.tasks_in_window.note(now)
        self.charged += price
        line = self.line(subject)
        line.tasks.append(task_id)
        line.apis[api] = line.apis.get(api, 0) + 1
        line.requests[request] = line.requests.get(request, 0) + 1
        line.charged += price

    def refund(self, subject: str, request: str, price: float) -> None:
        """Record a refund."""
        self.refunded += price
        line = self.line(subject)
        line.refunds += 1
        line.requests[request] = line.requests.get(request, 1) - 1
        line.refunded += price

    def poll(self, subject: str | None) -> None:
        """Count a poll; `subject` is None for an unknown task."""
        self.polls += 1
        if subject is not None:
            self.line(subject).polls += 1

    def call(self, subject: str) -> None:
        """Count an attempt to deliver a callback."""
        self.callbacks.sent += 1
        self.line(subject).callbacks += 1

    def called(self, *, accepted: bool) -> None:
        """Count the outcome of a delivery."""
        if accepted:
            self.callbacks.accepted += 1
        else:
            self.callbacks.failed += 1

    def as_json(self) -> dict[str, object]:
        """Return the ledger as plain data."""
        return {
            "submits": self.submits,
            "accepted": self.accepted,
            "refused": {str(code): count for code, count in sorted(self.refused.items())},
            "dropped": self.dropped,
            "charged": self.charged,
            "refunded": self.refunded,
            "polls": self.polls,
            "callbacks": attrs.asdict(self.callbacks),
            "faults": dict(sorted(self.faults.items())),
            "unknown_fields": dict(sorted(self.unknown_fields.items())),
            "busiest_window": {
                "submits": self.submits_in_window.most,
                "accepted": self.tasks_in_window.most,
            },
            "double_charges": self.double_charges,
            "images": {subject: attrs.asdict(line) for subject, line in self.images.items()},
        }


def ledger_table(ledger: Ledger) -> str:
    """Return a summary of the ledger for a terminal, with the images of the most submits."""
    return "\n".join([*_totals(ledger), *_images(ledger), ""])


def _totals(ledger: Ledger) -> Iterator[str]:
    refused = ", ".join(f"{code}: {count}" for code, count in sorted(ledger.refused.items()))
    yield (
        f"submits {ledger.submits:,}   tasks {ledger.accepted:,}   "
        f"refused {ledger.refused.total():,}{f' ({refused})' if refused else ''}   dropped {ledger.dropped:,}"
    )
    yield f"charged {ledger.charged:,g}   refunded {ledger.refunded:,g}   polls {ledger.polls:,}"
    calls = ledger.callbacks
    if calls.sent:
        yield f"callbacks {calls.sent:,}   accepted {calls.accepted:,}   given up {calls.given_up:,}"
    busiest, made = ledger.submits_in_window.most, ledger.tasks_in_window.most
    yield f"busiest 10 s: {busiest} submits, {made} tasks"
    if ledger.faults:
        yield "faults: " + ", ".join(f"{name} {count:,}" for name, count in sorted(ledger.faults.items()))
    if ledger.unknown_fields:
        names = ", ".join(f"{_printable(name)} {count:,}" for name, count in ledger.unknown_fields.items())
        yield f"unknown fields: {names}"
    yield f"requests paid more than once: {len(ledger.double_charges):,}"


def _images(ledger: Ledger) -> Iterator[str]:
    if not ledger.images:
        return
    yield f"{'submits':>7} {'tasks':>6} {'charged':>8} {'refunded':>8} {'polls':>6}  image"
    most = sorted(ledger.images.items(), key=lambda item: (-item[1].is_paid_twice, -item[1].submits))
    for subject, line in most[:_LINES]:
        name = _printable(subject)
        name = name if len(name) <= _NAME else f"{name[:20]}...{name[23 - _NAME :]}"
        twice = "  PAID TWICE" if line.is_paid_twice else ""
        yield (
            f"{line.submits:>7} {len(line.tasks):>6} {line.charged:>8g} {line.refunded:>8g} {line.polls:>6}"
            f"  {name}{twice}"
        )
    if len(most) > _LINES:
        yield f"and {len(most) - _LINES:,} more images"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
