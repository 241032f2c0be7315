"""The right result for the right image: a task id is not believed, it is checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    Charge,
    EditRequest,
    FluxClient,
    InDoubt,
    Outcome,
    RetryPolicy,
    Succeeded,
    TaskMismatch,
)
from flux_async.batch.run import run_batch

URLS = [f"https://pictures.example/{number}.jpg" for number in range(8)]


@attrs.define
class EchoingVendor:
    """A vendor whose records show what was sent, and which may confuse its answers.

    Attributes:
        transport: Scripted.
        make: Makes answers.
        answers_with: Returns the number of the task that the submit of a number is answered with, or what is
            answered instead.
        shows: Returns what the record of a task shows of the request that it was made from.
        ends: Returns the flag with which a task ends.
    """

    transport: Any
    make: Any
    answers_with: Callable[[int], Any] = lambda number: number
    shows: Callable[[int, dict[str, Any]], Any] = lambda _, sent: json.dumps(sent, sort_keys=True)
    ends: Callable[[int], int] = lambda _: 1
    sent: list[dict[str, Any]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.transport.script["generate"] = [self._generate]
        self.transport.script["record-info"] = [self._record]

    def _generate(self, request: Any) -> Any:
        number = len(self.sent)
        self.sent.append(json.loads(request.body))
        answer = self.answers_with(number)
        return self.make.answer({"taskId": f"t{answer}"}) if isinstance(answer, int) else answer

    def _record(self, request: Any) -> Any:
        task_id = request.query["taskId"]
        number = int(task_id[1:])
        if number >= len(self.sent):
            return self.make.answer(None, 422, msg="The record does not exist")
        shown = self.shows(number, self.sent[number])
        fields = {} if shown is None else {"paramJson": shown}
        return self.make.record(self.ends(number), task_id, **fields)

    def tasks_about(self, url: str) -> list[str]:
        """Return the tasks that were made of an image."""
        return [f"t{number}" for number, sent in enumerate(self.sent) if sent.get("inputImage") == url]


@pytest.fixture
def echoing(transport: Any, make: Any) -> EchoingVendor:
    """A vendor that echoes verbatim and confuses nothing."""
    return EchoingVendor(transport, make)


async def run(client: FluxClient, path: Path | str, images: list[Any], **options: Any) -> dict[str, Outcome]:
    """Run a batch and return its outcomes by image."""
    async with run_batch(client, images, journal=path, **options) as batch:
        return {str(o.job.request.input_image): o async for o in batch if o.job is not None}  # type: ignore[union-attr]


# --- an id that another submit has --------------------------------------------------------------------------


async def test_one_id_for_three_submits_is_taken_once(
    client: FluxClient, echoing: EchoingVendor, tmp_path: Path
) -> None:
    """Three submits are answered with one id: the first has its result, two are in doubt and say why."""
    echoing.answers_with = lambda _: 0
    outcomes = await run(client, tmp_path / "j.sqlite3", URLS[:3])
    kinds = [type(outcomes[url]) for url in URLS[:3]]
    assert sorted(kind.__name__ for kind in kinds) == ["InDoubt", "InDoubt", "Succeeded"]
    (url,) = [url for url in URLS[:3] if isinstance(outcomes[url], Succeeded)]
    assert echoing.tasks_about(url) == ["t0"]
    for outcome in outcomes.values():
        if isinstance(outcome, InDoubt):
            assert isinstance(outcome.error, TaskMismatch)
            assert (outcome.error.charge, outcome.error.refused_task_id) == (Charge.MAYBE, "t0")
            assert "task t0" in str(outcome.error)


async def test_an_id_of_an_earlier_run_is_not_taken(
    echoing: EchoingVendor, tmp_path: Path, make: Any, clock: Any, transport: Any
) -> None:
    """The journal knows the ids of runs before; the job that has the id is named."""
    path = tmp_path / "j.sqlite3"
    for expected in (Succeeded, InDoubt):
        async with FluxClient(make.key, "http://127.0.0.1:1", transport=transport, clock=clock) as client:
            index = 0 if expected is Succeeded else 1
            echoing.answers_with = lambda _: 0
            outcomes = await run(client, path, [URLS[index]])
            assert isinstance(outcomes[URLS[index]], expected)
    error = outcomes[URLS[1]].error  # type: ignore[union-attr]
    assert isinstance(error, TaskMismatch)
    assert "Task t0 belongs to job" in error.message


async def test_an_id_of_an_earlier_submit_of_the_same_job_is_not_taken(
    echoing: EchoingVendor, tmp_path: Path, make: Any, clock: Any, transport: Any
) -> None:
    """A task that failed does not become the task of the submit that was paid after it."""
    path = tmp_path / "j.sqlite3"
    echoing.answers_with, echoing.ends = (lambda _: 0), lambda _: 3
    async with FluxClient(make.key, "http://127.0.0.1:1", transport=transport, clock=clock) as client:
        outcomes = await run(client, path, URLS[:1], retry=RetryPolicy(max_paid_attempts=2))
    assert isinstance(outcomes[URLS[0]], InDoubt)
    assert len(echoing.sent) == 2


async def test_one_client_hands_out_an_id_once(client: FluxClient, echoing: EchoingVendor) -> None:
    """The second caller receives an error that says what was seen, and that the submit may be charged."""
    echoing.answers_with = lambda _: 0
    assert await client.submit(EditRequest.text_removal(URLS[0])) == "t0"
    with pytest.raises(TaskMismatch, match="task t0, which another submit of this client has") as caught:
        await client.submit(EditRequest.text_removal(URLS[1]))
    assert (caught.value.charge, caught.value.task_id) == (Charge.MAYBE, None)
    assert caught.value.refused_task_id == "t0"
