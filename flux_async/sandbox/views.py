"""What the sandbox tells about itself, as plain values for the page and the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import attrs

from flux_async.sandbox.ledger import Attempt, Ledger
from flux_async.sandbox.links import FileBook
from flux_async.sandbox.page import PAID_TWICE, TaskView
from flux_async.sandbox.tasks import FAILURES, Account, Flag, Task

STATES: Final[dict[str, tuple[Flag, ...]]] = {
    "generating": (Flag.GENERATING,),
    "done": (Flag.SUCCESS,),
    "failed": FAILURES,
}
"""What the page calls the states a reader can ask for."""

_LINES: Final = 20
_NAME: Final = 60


def summary(account: Account) -> dict[str, str]:
    """Return the figures above the tasks."""
    ledger = account.ledger
    return {
        "Credits": f"{account.balance:,.2f}".removesuffix(".00"),
        "Spent": f"{ledger.charged - ledger.refunded:,.2f}".removesuffix(".00"),
        "Submits": f"{ledger.submits:,}",
        "Refused": f"{ledger.refused.total():,}",
        "Polls": f"{ledger.polls:,}",
        "Faults": f"{ledger.faults.total():,}",
        "Unknown fields": f"{ledger.unknown_fields.total():,}",
        PAID_TWICE: f"{len(ledger.double_charges):,}",
    }


def task_view(task: Task, now: float, files: FileBook, *, has_before: bool, has_after: bool) -> TaskView:
    """Return what the page shows of a task."""
    failure, result = task.failure, task.result
    return TaskView(
        task_id=task.task_id,
        kind=str(task.order.kind),
        prompt=task.order.prompt,
        image=task.order.input_image,
        made_at=datetime.fromtimestamp(task.created_at, UTC).strftime("%H:%M:%S"),
        model=task.order.model,
        state=task.flag.name,
        problem=failure.message if failure else None,
        seconds=(task.ended_at or now) - task.created_at,
        price=task.order.price - task.refunded,
        polls=task.polls,
        faults=sorted(task.faults),
        callbacks=[_answered(attempt) for attempt in task.callbacks],
        result=result.path if result and files.find(result.path, now) else None,
        has_before=has_before and task.flag in (Flag.GENERATING, Flag.SUCCESS),
        has_after=has_after and task.flag is Flag.SUCCESS,
    )


def matches(task: Task, words: str, state: str) -> bool:
    """Say whether a task is looked for: by words of its picture, prompt, id or faults, and by its state."""
    if state and STATES.get(state) is not None and task.flag not in STATES[state]:
        return False
    sought = (
        f"{task.task_id} {task.order.input_image or ''} {task.order.prompt} {' '.join(task.faults)}".lower()
    )
    return all(word in sought for word in words.lower().split())


def _answered(attempt: Attempt) -> str:
    told = str(attempt.status or "unanswered")
    return told if attempt.fault is None else f"{told} ({attempt.fault.removeprefix('callback-')})"


def task_json(task: Task) -> dict[str, object]:
    """Return what the ledger tells of a task."""
    failure = task.failure
    return {
        "taskId": task.task_id,
        "kind": str(task.order.kind),
        "image": task.order.input_image,
        "callBackUrl": task.order.call_back_url,
        "state": task.flag.name,
        "createdAt": task.created_at,
        "endedAt": task.ended_at,
        "charged": task.order.price,
        "refunded": task.refunded,
        "polls": task.polls,
        "error": failure.message if failure else None,
        "faults": sorted(task.faults),
        "callbacks": [attrs.asdict(attempt) for attempt in task.callbacks],
    }


def ledger_table(ledger: Ledger) -> str:
    """Return the ledger in short, for a terminal; of many images those that were asked for most often."""
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
