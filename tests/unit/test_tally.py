"""The counts of submits and credits of a run."""

from __future__ import annotations

from flux_async import TaskId
from flux_async.batch.progress import Tally
from flux_async.job_state import (
    Event,
    JobSnapshot,
    Problem,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    TaskEnded,
    TaskEndedRetryable,
    apply,
)
from flux_async.models import JobKey


def counted(*events: Event) -> Tally:
    """Return the tally of a job to which these events happened, at five credits an image."""
    tally, job = Tally(), JobSnapshot(key=JobKey("k"))
    tally.add_job(job.state)
    for event in events:
        before, job = job.state, apply(job, event)
        if isinstance(event, SubmitIntended):
            tally.credits += 5.0
        tally.add_event(before, job, event, lambda: 5.0)
    return tally


def refused(type_: str) -> SubmitRefused:
    return SubmitRefused(at=2.0, problem=Problem(type=type_, message="m"))


def test_a_submit_that_never_left_is_none() -> None:
    """A vendor that cannot be reached was asked for nothing, however often it is tried."""
    tally = counted(SubmitIntended(at=1.0), refused("RequestNotSent"), SubmitIntended(at=3.0))
    assert (tally.submits, tally.credits) == (1, 5.0)


def test_a_submit_that_was_refused_is_a_submit() -> None:
    """It took a permit of the rate limit, but no credits."""
    tally = counted(SubmitIntended(at=1.0), refused("RateLimitedError"))
    assert (tally.submits, tally.credits) == (1, 0.0)


def test_the_cost_of_failed_tasks_is_listed_separately() -> None:
    """The vendor usually returns it."""
    problem = Problem(type="TaskFailed", message="m")
    begun = (SubmitIntended(at=1.0), SubmitAccepted(at=2.0, task_id=TaskId("t")))
    for end in (TaskEnded(at=3.0, problem=problem), TaskEndedRetryable(at=3.0, problem=problem)):
        tally = counted(*begun, end)
        assert (tally.credits, tally.refundable) == (5.0, 5.0)
    assert counted(*begun).refundable == 0.0
