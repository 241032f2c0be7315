"""The messages that name paid tasks without a file."""

from __future__ import annotations

from flux_async import ConnectionLost, EditRequest, GenerateRequest, TaskId, UnclaimedTask
from flux_async.cli.status import tasks_not_recorded


def test_a_task_that_could_not_be_recorded_is_named_with_its_image() -> None:
    """Or with the prompt; a submit in doubt is named as such."""
    edit = EditRequest.text_removal("https://files.example/a.jpg")
    lost = ConnectionLost("no answer")
    unclaimed = (
        UnclaimedTask(request=edit, task_id=TaskId("t1")),
        UnclaimedTask(request=GenerateRequest(prompt="a lighthouse"), task_id=TaskId("t2")),
        UnclaimedTask(request=edit, error=lost),
    )
    assert list(tasks_not_recorded(unclaimed)) == [
        "Task t1 is paid, and could not be written down: https://files.example/a.jpg",
        "Task t2 is paid, and could not be written down: a lighthouse",
        "A submit is perhaps paid, and could not be written down: https://files.example/a.jpg",
    ]
