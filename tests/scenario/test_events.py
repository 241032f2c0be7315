"""What observers of a client see of its calls and batches."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import Charge, EditRequest, FluxError, RetryPolicy, events, run_batch
from flux_async.events import FluxEvent
from flux_async.testing import FluxSandbox, VirtualClock
from flux_async.transport import NotSent, Unknown

URL = "https://example.com/poster.jpg?signature=secret"
IMAGE = "https://example.com/poster.jpg"


@pytest.fixture
def seen(client: Any) -> list[FluxEvent]:
    """The events of the client."""
    found: list[FluxEvent] = []
    client.session.events.attach(found.append)
    return found


def names(found: list[FluxEvent]) -> list[str]:
    """Return the names of events in order, repeated polls left out."""
    kinds = [type(event).__name__ for event in found]
    return [kind for n, kind in enumerate(kinds) if kind != "Polled" or kinds[n - 1] != "Polled"]


async def run(client: Any, images: list[str], **options: Any) -> list[Any]:
    """Run a batch to its end."""
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


@pytest.mark.both_apis
async def test_a_call_is_seen_from_its_start_to_its_end(client: Any, vendor: Any, seen: Any) -> None:
    """All of its events have one key."""
    image = await client.remove_text(URL)
    assert names(seen) == ["JobAdded", "SubmitStarted", "Submitted", "Polled", "Settled"]
    assert {event.job for event in seen} == {seen[0].job}
    assert seen[0].image == IMAGE
    assert seen[0].model == "flux-kontext-pro"
    assert (seen[2].task_id, seen[2].charge, seen[2].api) == (image.task_id, Charge.YES, client.api)
    assert (seen[-1].outcome, seen[-1].task_id) == ("succeeded", image.task_id)


async def test_a_job_is_seen_from_its_start_to_its_file(clock: VirtualClock, tmp_path: Path) -> None:
    """Events follow the journal; the last one has what the outcome has."""
    seen: list[Any] = []
    with FluxSandbox(clock=clock) as sandbox:
        async with sandbox.client(observers=[seen.append]) as client:
            (outcome,) = await run(client, [URL], directory=tmp_path / "clean")
    assert names(seen) == ["JobAdded", "SubmitStarted", "Submitted", "Polled", "Downloaded", "Settled"]
    assert {event.job for event in seen} == {outcome.job.key}
    assert all(event.image == IMAGE for event in seen if not isinstance(event, events.Polled))
    settled = seen[-1]
    assert (settled.outcome, settled.charge, settled.is_final) == ("succeeded", Charge.YES, True)
    assert settled.file == seen[-2].file == outcome.file.name
    assert "secret" not in repr(seen)


async def test_a_download_that_is_made_again_is_seen(
    client: Any, vendor: Any, seen: Any, tmp_path: Path
) -> None:
    """The scripted vendor has no files."""
    await run(client, [URL], directory=tmp_path, patience=5.0)
    retried = [event for event in seen if isinstance(event, events.Retried)]
    assert {event.what for event in retried} == {"download"}
    assert (seen[-1].outcome, seen[-1].is_final, seen[-1].charge) == ("failed", False, Charge.YES)


async def test_a_trace_context_is_kept_with_the_job(client: Any, vendor: Any, tmp_path: Path) -> None:
    """A later run has the context in which the job was added, not its own."""

    @attrs.define(eq=False)
    class Tracer:
        context: str = "00-first"
        seen: list[Any] = attrs.field(factory=list)

        def trace_context(self, at: float) -> str:
            assert at > 0
            return self.context

        def __call__(self, event: FluxEvent, /) -> None:
            self.seen.append(event)

    tracer, path = Tracer(), tmp_path / "run.sqlite3"
    client.session.events.attach(tracer)
    vendor.script["record-info"] = [Unknown("dropped")]
    async with run_batch(client, [URL], journal=path):
        while vendor.count("record-info") < 1:
            await vendor.clock.sleep(0.1)
    vendor.script["record-info"] = [vendor.record]
    tracer.context = "00-second"
    await run(client, [URL], journal=path)
    assert {event.trace for event in tracer.seen if not isinstance(event, events.Polled | events.Paused)} == {
        "00-first"
    }


async def test_a_lost_answer_is_seen_as_a_possible_charge(client: Any, transport: Any, seen: Any) -> None:
    """In a batch and in a call alike."""
    transport.script["generate"] = [Unknown("dropped")]
    await run(client, [URL])
    assert names(seen) == ["JobAdded", "SubmitStarted", "Submitted", "Settled"]
    assert (seen[2].charge, seen[2].error, seen[2].task_id) == (Charge.MAYBE, "ConnectionLost", None)
    assert (seen[3].outcome, seen[3].is_final) == ("in_doubt", False)
    seen.clear()
    with pytest.raises(FluxError):
        await client.remove_text(URL)
    assert names(seen) == ["JobAdded", "SubmitStarted", "Submitted", "Settled"]
    assert (seen[2].charge, seen[3].outcome) == (Charge.MAYBE, "in_doubt")


async def test_retries_pauses_and_halts_are_seen(client: Any, vendor: Any, make: Any, seen: Any) -> None:
    """Each with its reason."""
    accepted = vendor.script["generate"][0]
    vendor.script["generate"] = [make.answer(None, 429), NotSent("no route"), accepted]
    await run(client, [URL])
    submits = ["SubmitStarted", "RateLimited", "Retried", "SubmitStarted", "Paused", "Retried"]
    assert names(seen) == ["JobAdded", *submits, "SubmitStarted", "Submitted", "Polled", "Settled"]
    assert seen[2].seconds > 0
    assert (seen[5].what, seen[5].error) == ("submits", "RequestNotSent")
    seen.clear()
    vendor.script["generate"] = [make.answer(None, 402)]
    with pytest.raises(FluxError):
        await run(client, [f"{URL}2"])
    halts = [event for event in seen if isinstance(event, events.Halted)]
    assert [(halt.what, halt.error) for halt in halts] == [
        ("submits", "InsufficientCreditsError"),
        ("run", "InsufficientCreditsError"),
    ]


async def test_a_submit_alone_is_seen_until_it_has_its_task(
    client: Any, vendor: Any, make: Any, seen: Any
) -> None:
    """It has no outcome here; one that is refused has ended."""
    request = EditRequest.text_removal(URL)
    await client.submit(request)
    assert names(seen) == ["SubmitStarted", "Submitted"]
    seen.clear()
    vendor.script["generate"] = [make.answer(None, 422)]
    with pytest.raises(FluxError):
        await client.submit(request)
    assert names(seen) == ["SubmitStarted", "Settled"]
    assert (seen[1].outcome, seen[1].charge, seen[1].code) == ("failed", Charge.NO, 422)


async def test_a_task_that_failed_and_is_paid_for_again_is_seen(
    client: Any, vendor: Any, make: Any, seen: Any
) -> None:
    """The end of the first task is a retry, the outcome that of the second."""
    record = vendor.script["record-info"][0]
    vendor.script["record-info"] = [make.record(3, "t0", errorCode=501, errorMessage="no"), record]
    await run(client, [URL], retry=RetryPolicy(max_paid_attempts=2))
    retried = next(event for event in seen if isinstance(event, events.Retried))
    assert (retried.what, retried.error) == ("task", "TaskFailed")
    assert [event.attempt for event in seen if isinstance(event, events.SubmitStarted)] == [1, 2]


async def test_a_callback_is_seen_once(client: Any, vendor: Any, seen: Any) -> None:
    """It names its task."""
    client.notify("t9")
    assert names(seen) == ["CallbackReceived"]
    assert seen[0].task_id == "t9"


async def test_an_observer_that_raises_breaks_nothing(client: Any, vendor: Any) -> None:
    """Neither a call nor a batch."""

    def broken(_: FluxEvent) -> None:
        raise RuntimeError("no")

    client.session.events.attach(broken)
    await client.remove_text(URL)
    assert len(await run(client, [URL])) == 1


async def test_a_cancelled_call_has_an_end(client: Any, vendor: Any, seen: Any, clock: Any) -> None:
    """Its task is paid and may still bring the image."""
    async with asyncio.TaskGroup() as group:
        call = group.create_task(client.remove_text(URL))
        while not any(isinstance(event, events.Submitted) for event in seen):
            await clock.sleep(0.05)
        call.cancel()
    settled = seen[-1]
    assert (settled.error, settled.charge, settled.is_final) == ("CancelledError", Charge.YES, False)
    assert client.unclaimed[0].task_id == settled.task_id
