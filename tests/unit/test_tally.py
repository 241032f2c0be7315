"""The counts of submits and credits of a run."""

from __future__ import annotations

import pytest

from flux_async import TaskId
from flux_async.batch.progress import Tally
from flux_async.job_state import (
    Event,
    JobSnapshot,
    JobState,
    NoTextFound,
    Problem,
    ResultChosen,
    ResultLost,
    RetryGranted,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
    TaskEnded,
    TaskEndedRetryable,
    TaskSucceeded,
    Verified,
    apply,
)
from flux_async.models import JobKey


def counted(*events: Event, expects_callbacks: bool = False) -> Tally:
    """Return the tally of a job to which these events happened, at five credits an image."""
    tally, job = Tally(expects_callbacks=expects_callbacks), JobSnapshot(key=JobKey("k"))
    tally.add_job(job.state)
    spent: float | None = None
    for event in events:
        before, job = job.state, apply(job, event)
        if isinstance(event, SubmitIntended):
            tally.credits += 5.0
            spent = 5.0
        spent = tally.add_event(before, job, event, spent)
    return tally


def refused(type_: str) -> SubmitRefused:
    return SubmitRefused(at=2.0, problem=Problem(type=type_, message="m"))


def test_a_submit_that_never_left_is_none() -> None:
    """A vendor that cannot be reached was asked for nothing, however often it is tried."""
    tally = counted(
        SubmitIntended(api="kontext", at=1.0),
        refused("RequestNotSent"),
        SubmitIntended(api="kontext", at=3.0),
    )
    assert (tally.submits, tally.credits) == (1, 5.0)


def test_a_submit_that_was_refused_is_a_submit() -> None:
    """It took a permit of the rate limit, but no credits."""
    tally = counted(SubmitIntended(api="kontext", at=1.0), refused("RateLimitedError"))
    assert (tally.submits, tally.credits) == (1, 0.0)


def test_the_cost_of_failed_tasks_is_listed_separately() -> None:
    """The vendor usually returns it."""
    problem = Problem(type="TaskFailed", message="m")
    begun = (SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=TaskId("t")))
    for end in (TaskEnded(at=3.0, problem=problem), TaskEndedRetryable(at=3.0, problem=problem)):
        tally = counted(*begun, end)
        assert (tally.credits, tally.refundable) == (5.0, 5.0)
    assert counted(*begun).refundable == 0.0


def test_what_was_measured_replaces_the_price() -> None:
    """Also the cost of a failed task: nothing if it was refunded."""
    begun = (SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=TaskId("t")))
    image = TaskSucceeded(at=3.0, result_url="https://files.example/r.jpg", credits=5.5)
    again = TaskSucceeded(at=4.0, result_url="https://files.example/new.jpg", credits=5.5)
    tally = counted(*begun, image, again)
    assert (tally.credits, tally.measured, tally.refundable, tally.failures) == (5.5, 5.5, 0.0, 0)
    problem = Problem(type="TaskFailed", message="m")
    for paid in (0.0, 5.0):
        tally = counted(*begun, TaskEnded(at=3.0, problem=problem, credits=paid))
        assert (tally.credits, tally.measured, tally.refundable, tally.failures) == (paid, paid, paid, 1)


def test_images_without_text_are_counted_with_what_they_would_have_cost() -> None:
    """They are no submits and cost nothing."""
    found = NoTextFound(at=1.0, file="a.png", sha256="1" * 64, verdict={}, saved_credits=5.0)
    progress = counted(found).progress(elapsed_s=1.0)
    assert (progress.skipped, progress.saved_credits) == (1, 5.0)
    assert (progress.submits, progress.credits, progress.verdicts) == (0, 0.0, {})


SUBMITTED = (SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=TaskId("t")))
IMAGE = TaskSucceeded(at=3.0, result_url="https://files.example/r.jpg")
SAVED = Saved(at=4.0, file="a.png")
LEFT, CLEAN = Verified(at=5.0, verdict={"kind": "text_left"}), Verified(at=5.0, verdict={"kind": "clean"})
FAILURE = Problem(type="TaskFailed", message="m")


@pytest.mark.parametrize(
    ("events", "verdicts"),
    [
        ((CLEAN, ResultChosen(at=6.0, keeps_earlier=False, file="a.png")), {"clean": 1}),
        ((LEFT, ResultChosen(at=6.0, keeps_earlier=True, loses="text_left")), {"text_left": 1}),
        ((), {}),
    ],
    ids=["better", "worse", "undecided"],
)
def test_of_several_results_of_an_image_the_better_is_counted(
    events: tuple[Event, ...], verdicts: dict[str, int]
) -> None:
    """An image has one verdict; the attempts are counted by themselves."""
    first = (*SUBMITTED, IMAGE, SAVED, LEFT)
    progress = counted(*first, RetryGranted(at=6.0), *SUBMITTED, IMAGE, SAVED, *events).progress(
        elapsed_s=1.0
    )
    assert (progress.verdicts, progress.tried_again, progress.submits) == (verdicts, 1, 2)


@pytest.mark.parametrize(
    ("end", "credits_"),
    [
        ((SubmitRejected(at=7.0, problem=FAILURE),), 5.0),
        ((SUBMITTED[1], TaskEnded(at=7.0, problem=FAILURE)), 10.0),
        ((SUBMITTED[1], IMAGE, ResultLost(at=7.0, problem=FAILURE)), 10.0),
    ],
    ids=["rejected", "failed", "lost"],
)
def test_an_attempt_that_fails_gives_the_image_its_verdict_back(
    end: tuple[Event, ...], credits_: float
) -> None:
    """And its credits to the run, if it was not charged."""
    first = (*SUBMITTED, IMAGE, SAVED, LEFT, RetryGranted(at=6.0), SUBMITTED[0])
    tally = counted(*first, *end)
    assert (tally.progress(elapsed_s=1.0).verdicts, tally.credits) == ({"text_left": 1}, credits_)


def test_tasks_of_earlier_runs_cost_this_run_nothing() -> None:
    """It has not submitted them."""
    tally, problem = Tally(), Problem(type="TaskFailed", message="m")
    job = JobSnapshot(key=JobKey("k"), state=JobState.SUBMITTED, task_id=TaskId("t"))
    tally.add_job(job.state)
    event = TaskEnded(at=3.0, problem=problem, credits=5.0)
    assert tally.add_event(job.state, apply(job, event), event, None) is None
    assert (tally.credits, tally.measured, tally.refundable, tally.failures) == (0.0, 0.0, 0.0, 1)


@pytest.mark.parametrize(("expects_callbacks", "in_doubt", "waiting"), [(True, 0, 1), (False, 1, 0)])
def test_a_job_in_doubt_waits_only_where_a_callback_may_come(
    expects_callbacks: bool, in_doubt: int, waiting: int
) -> None:
    """Without callbacks nothing can settle it in this run, so it counts as in doubt at once."""
    unknown = SubmitUnknown(at=2.0, problem=Problem(type="ConnectionLost", message="m"))
    tally = counted(SubmitIntended(api="kontext", at=1.0), unknown, expects_callbacks=expects_callbacks)
    progress = tally.progress(elapsed_s=3.0)
    assert (progress.in_doubt, progress.waiting) == (in_doubt, waiting)


def test_outcomes_and_refused_inputs_are_counted() -> None:
    """A job that has its outcome is in no state any more; an input that is no request counts as failed."""
    tally = counted()
    tally.add_outcome("Succeeded", JobState.PENDING)
    tally.add_refused()
    tally.add_job(JobState.SUBMITTED)
    tally.remove_job(JobState.SUBMITTED)
    progress = tally.progress(elapsed_s=0.0, pause_left_s=2.0, pause_reason="Away")
    assert (progress.seen, progress.succeeded, progress.failed, progress.generating) == (2, 1, 1, 0)
    assert (progress.pause_left_s, progress.pause_reason) == (2.0, "Away")
