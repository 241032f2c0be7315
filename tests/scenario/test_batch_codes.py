"""The effect of each of the vendor's codes on a job in a batch, for submits and for polls."""

from __future__ import annotations

from typing import Any

import pytest

from flux_async import Failed, FluxClient, FluxError, InDoubt, RetryPolicy, Succeeded
from flux_async.api.envelope import WireResponse
from flux_async.api_errors import (
    AuthenticationError,
    FeatureDisabledError,
    InsufficientCreditsError,
    KeyLimitError,
    PermissionDeniedError,
)
from flux_async.batch.runner import run_batch
from flux_async.errors import Charge, RequestNotSent
from flux_async.job_state import JobState
from flux_async.journal.store import Journal
from flux_async.transport import Answered, NotSent, Unknown

pytestmark = pytest.mark.both_apis

IMAGE = "https://pictures.example/1.jpg"
REJECTED = (400, 404, 422)
HALTS = {
    401: AuthenticationError,
    402: InsufficientCreditsError,
    403: PermissionDeniedError,
    433: KeyLimitError,
    505: FeatureDisabledError,
}
FOR_NOW = (429, 455)
TASK_FAILED = (400, 408, 501)
IN_DOUBT = (408, 500, 501, 502, 503, 504, 999)
SHAPELESS = {
    "timeout or drop": Unknown("the connection was lost"),
    "HTTP 500": Answered(WireResponse(status=500, headers={}, body=b"<h1>oops</h1>")),
    "HTTP 502, empty": Answered(WireResponse(status=502, headers={}, body=b"")),
    "200, no JSON": Answered(WireResponse(status=200, headers={}, body=b"OK")),
    "200, cut": Answered(WireResponse(status=200, headers={}, body=b'{"code":200,"data":{"taskId":"t')),
    "200, no task id": Answered(WireResponse(status=200, headers={}, body=b'{"code":200,"data":{}}')),
    "200, data null": Answered(WireResponse(status=200, headers={}, body=b'{"code":200,"data":null}')),
}


async def run(client: FluxClient, journal: Journal, **options: Any) -> list[Any]:
    async with run_batch(client, [IMAGE], journal=journal, **options) as batch:
        return [outcome async for outcome in batch]


async def state(journal: Journal) -> JobState:
    ((found, count),) = (await journal.counts()).items()
    assert count == 1
    return found


# --- submitting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", REJECTED)
async def test_rejected_submit(client: FluxClient, transport: Any, make: Any, code: int) -> None:
    """400, 404 and 422 end the job, uncharged, after one POST."""
    transport.script["generate"] = [make.answer(None, code, msg="no")]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Failed)
        assert outcome.error.charge is Charge.NO
        assert await state(journal) is JobState.FAILED
    assert transport.count("generate") == 1


@pytest.mark.parametrize("code", HALTS)
async def test_halting_submit(client: FluxClient, transport: Any, make: Any, code: int) -> None:
    """401, 402, 403, 433 and 505 raise their error once and leave the job to a later run."""
    transport.script["generate"] = [make.answer(None, code, msg="no"), make.answer({"taskId": "t1"})]
    async with Journal(clock=client.session.clock) as journal:
        with pytest.raises(HALTS[code]):
            await run(client, journal)
        assert await state(journal) is JobState.PENDING
        assert transport.count("generate") == 1
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Succeeded)
        assert await state(journal) is JobState.DONE
    assert transport.count("generate") == 2


@pytest.mark.parametrize("code", FOR_NOW)
async def test_refused_for_now(client: FluxClient, transport: Any, make: Any, code: int) -> None:
    """429 and 455 make the job wait a full window at least, and submit it again."""
    transport.script["generate"] = [make.answer(None, code, msg="later"), make.answer({"taskId": "t1"})]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Succeeded)
        stored = await journal.job(outcome.job.key)
        assert stored is not None
        assert stored.job.attempts == 2
    first, second = (at for at, request in transport.seen if request.method == "POST")
    assert second - first >= (10.0 if code == 429 else 60.0)


async def test_never_connected(client: FluxClient, transport: Any, make: Any) -> None:
    """A submit that never left is made again."""
    transport.script["generate"] = [NotSent("refused"), make.answer({"taskId": "t1"})]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Succeeded)
        assert await state(journal) is JobState.DONE


async def test_never_reachable(client: FluxClient, transport: Any) -> None:
    """The run halts within 30 s, whatever the retry policy is, and the journal keeps the job as pending."""
    transport.script["generate"] = transport.script["credit"] = [NotSent("refused")]
    began = client.session.clock.monotonic()
    async with Journal(clock=client.session.clock) as journal:
        with pytest.raises(RequestNotSent, match="could not be reached: refused"):
            await run(client, journal, retry=RetryPolicy(max_tries=1))
        assert await state(journal) is JobState.PENDING
    assert client.session.clock.monotonic() - began <= 30.0
    assert 3 <= transport.count("generate") <= 8


@pytest.mark.parametrize("answer", [*IN_DOUBT, *SHAPELESS])
async def test_any_other_answer_to_a_submit_leaves_it_in_doubt(
    client: FluxClient, transport: Any, make: Any, answer: int | str
) -> None:
    """Also no answer at all: no second POST, neither now nor in a later run."""
    truth = make.answer(None, answer, msg="?") if isinstance(answer, int) else SHAPELESS[answer]
    transport.script["generate"] = [truth]
    async with Journal(clock=client.session.clock) as journal:
        for _ in range(2):
            (outcome,) = await run(client, journal)
            assert isinstance(outcome, InDoubt)
            assert outcome.error.charge is Charge.MAYBE
            assert await state(journal) is JobState.IN_DOUBT
            assert transport.count("generate") == 1
        transport.script["generate"] = [make.answer({"taskId": "t1"})]
        (outcome,) = await run(client, journal, in_doubt="resubmit")
        assert isinstance(outcome, Succeeded)
    assert transport.count("generate") == 2


# --- polling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted({*REJECTED, *FOR_NOW, *IN_DOUBT} - set(TASK_FAILED)))
async def test_polls_with_these_codes_are_repeated(
    client: FluxClient, transport: Any, make: Any, code: int
) -> None:
    """They do not end the task, whose image arrives."""
    transport.script["record-info"] = [make.answer(None, code, msg="?")] * 2 + [make.record(1)]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Succeeded)
    assert transport.count("generate") == 1


@pytest.mark.parametrize("truth", [NotSent("refused"), *SHAPELESS.values()], ids=["not sent", *SHAPELESS])
async def test_a_poll_without_a_whole_answer_is_repeated(
    client: FluxClient, transport: Any, make: Any, truth: Any
) -> None:
    """The task is not affected."""
    transport.script["record-info"] = [truth, make.record(1)]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Succeeded)


@pytest.mark.parametrize("code", HALTS)
async def test_a_poll_that_is_refused_halts_the_run(
    client: FluxClient, transport: Any, make: Any, code: int
) -> None:
    """The next run polls the paid task, without a POST."""
    transport.script["record-info"] = [make.answer(None, code, msg="no"), make.record(1)]
    async with Journal(clock=client.session.clock) as journal:
        with pytest.raises(HALTS[code]):
            await run(client, journal)
        assert await state(journal) is JobState.SUBMITTED
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Succeeded)
    assert transport.count("generate") == 1


@pytest.mark.parametrize("code", TASK_FAILED)
async def test_polls_with_these_codes_end_the_task(
    client: FluxClient, transport: Any, make: Any, code: int
) -> None:
    """400, 408 and 501 in place of a record mean that the task ended without an image, perhaps charged."""
    transport.script["record-info"] = [make.answer(None, code, msg="no")]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Failed)
        assert outcome.error.charge is Charge.MAYBE
        assert await state(journal) is JobState.FAILED
    assert transport.count("generate") == 1


@pytest.mark.parametrize("flag", [2, 3])
async def test_a_failed_task_is_not_resubmitted(
    client: FluxClient, transport: Any, make: Any, flag: int
) -> None:
    """It ends its job; a second charge needs an explicit retry."""
    transport.script["record-info"] = [make.record(flag, errorCode=501, errorMessage="no luck")]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Failed)
        assert "no luck" in str(outcome.error)
        assert await state(journal) is JobState.FAILED
        assert await run(client, journal) == []
    assert transport.count("generate") == 1


async def test_failed_task_within_the_paid_attempts(client: FluxClient, transport: Any, make: Any) -> None:
    """Who allows two paid attempts gets a second task after the first one failed, and no third."""
    tasks = [make.answer({"taskId": f"t{n}"}) for n in (1, 2, 3)]
    transport.script["generate"] = tasks

    def failed(request: Any) -> Any:
        return make.record(3, task_id=request.query["taskId"], errorMessage="no luck")

    transport.script["record-info"] = [failed]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal, retry=RetryPolicy(max_paid_attempts=2))
        assert isinstance(outcome, Failed)
        assert outcome.job is not None
        stored = await journal.job(outcome.job.key)
        assert stored is not None
        assert (stored.job.attempts, stored.job.paid_failures) == (2, 2)
    assert transport.count("generate") == 2


async def test_our_deadline_leaves_the_job_to_the_next_run(
    client: FluxClient, transport: Any, make: Any
) -> None:
    """A task slower than the timeout is a failed outcome that is marked as paid; the next run polls it."""
    transport.script["record-info"] = [make.record(0)]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal, timeout=20.0)
        assert isinstance(outcome, Failed)
        assert (outcome.error.charge, outcome.error.task_id) == (Charge.YES, "t1")
        assert await state(journal) is JobState.SUBMITTED
        transport.script["record-info"] = [make.record(1)]
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Succeeded)
    assert transport.count("generate") == 1


async def test_success_without_a_result_url_fails_its_own_job_only(
    client: FluxClient, transport: Any, make: Any
) -> None:
    """A task said to be done without a result URL fails its own job and no other."""
    transport.script["record-info"] = [make.record(1, response=None)]
    async with Journal(clock=client.session.clock) as journal:
        (outcome,) = await run(client, journal)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, FluxError)
    assert transport.count("generate") == 1
