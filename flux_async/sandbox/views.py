"""What the sandbox tells about itself, as plain values for the page and the ledger."""

from __future__ import annotations

import attrs

from flux_async.sandbox.file_book import FileBook
from flux_async.sandbox.page import TaskView
from flux_async.sandbox.tasks import Account, Flag, Task


def summary(account: Account) -> dict[str, str]:
    """Return the figures above the tasks."""
    ledger = account.ledger
    return {
        "Credits left": f"{account.balance:,.2f}".removesuffix(".00"),
        "Spent": f"{ledger.charged - ledger.refunded:,.2f}".removesuffix(".00"),
        "Submits": f"{ledger.submits:,}",
        "Refused": f"{ledger.refused.total():,}",
        "Polls": f"{ledger.polls:,}",
    }


def task_view(task: Task, now: float, files: FileBook, *, has_thumbnails: bool) -> TaskView:
    """Return what the page shows of a task."""
    failure, result = task.failure, task.result
    return TaskView(
        task_id=task.task_id,
        kind=str(task.order.kind),
        prompt=task.order.prompt,
        model=task.order.model,
        state=task.flag.name,
        problem=failure.message if failure else None,
        seconds=(task.ended_at or now) - task.created_at,
        price=task.order.price - task.refunded,
        polls=task.polls,
        callbacks=len(task.callbacks),
        result=result.path if result and files.find(result.path, now) else None,
        has_thumbnails=task.flag is Flag.SUCCESS and has_thumbnails,
    )


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
