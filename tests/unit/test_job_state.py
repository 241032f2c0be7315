"""The states of a job: every row of the table, every transition that is not in it, any order of events."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flux_async import Model
from flux_async.errors import Charge, ConnectionLost, FluxError, TaskFailed
from flux_async.job_state import (
    FINAL,
    LIVE,
    TRANSITIONS,
    AwaitCallback,
    AwaitTask,
    Begin,
    Cancelled,
    CheckForText,
    Choose,
    Compose,
    Composed,
    EchoContradicted,
    Event,
    Fetch,
    IllegalTransition,
    JobSnapshot,
    JobState,
    NotChecked,
    NoTextFound,
    Problem,
    ResubmitGranted,
    ResultChosen,
    ResultLost,
    RetryGranted,
    Saved,
    Settle,
    Submit,
    SubmitAccepted,
    SubmitAgain,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
    TaskEnded,
    TaskEndedRetryable,
    TaskFound,
    TaskSucceeded,
    Verified,
    Verify,
    WantedChecks,
    apply,
    earlier_is_better,
    events_of_lost_submit,
    next_attempt,
    next_step,
    recover,
    verdict_of,
)
from flux_async.models import CheckResult, Echo, JobKey, TaskId, TaskRecord, TaskStatus

P, S, SUBMITTED, G = JobState.PENDING, JobState.SUBMITTING, JobState.SUBMITTED, JobState.GENERATED
DONE, FAILED, DOUBT = JobState.DONE, JobState.FAILED, JobState.IN_DOUBT

PROBLEM = Problem(type="ServerError", code=500, message="The API answered 500.")
TASK, OTHER = TaskId("t1"), TaskId("t2")
URL = "https://files.example/t1.jpg"

NO_TEXT = {"kind": "clean", "no_text": True}

EVENTS: tuple[Event, ...] = (
    NoTextFound(at=1, file="a.png", sha256="3" * 64, verdict=NO_TEXT, saved_credits=5.0),
    SubmitIntended(api="kontext", at=1),
    SubmitAccepted(at=2, task_id=TASK),
    SubmitRefused(at=2, problem=PROBLEM, not_before=12),
    SubmitRejected(at=2, problem=PROBLEM),
    SubmitUnknown(at=2, problem=PROBLEM),
    TaskFound(api="kontext", at=3, task_id=TASK),
    EchoContradicted(at=4, problem=PROBLEM, task_id=TASK, belongs_to=JobKey("other")),
    ResubmitGranted(at=3),
    TaskSucceeded(at=4, result_url=URL, origin_url="https://files.example/o.jpg", generation_s=7.5),
    TaskEnded(at=4, problem=PROBLEM),
    TaskEndedRetryable(at=4, problem=PROBLEM),
    Saved(at=5, file="a.jpg"),
    Composed(at=6, file="a.png", sha256="1" * 64, vendor_file="vendor/a.jpg", replaced=0.2),
    Verified(at=7, verdict={"kind": "clean"}),
    NotChecked(at=7, problem="The original is gone."),
    ResultLost(at=5, problem=PROBLEM),
    Cancelled(at=6),
    RetryGranted(at=6),
    ResultChosen(at=8, keeps_earlier=False, file="b.png", vendor_file="vendor/b.jpg"),
)
BY_TYPE = {type(event): event for event in EVENTS}

# The design's table of a job's states, written a second time, by hand.
LEGAL = {
    (P, NoTextFound): DONE,
    (P, SubmitIntended): S,
    (P, Cancelled): FAILED,
    (P, TaskFound): SUBMITTED,
    (DONE, ResultLost): FAILED,
    (S, SubmitAccepted): SUBMITTED,
    (S, SubmitRefused): P,
    (S, SubmitRejected): FAILED,
    (S, SubmitUnknown): DOUBT,
    (S, TaskFound): SUBMITTED,
    (DOUBT, TaskFound): SUBMITTED,
    (DOUBT, ResubmitGranted): P,
    (SUBMITTED, TaskSucceeded): G,
    (SUBMITTED, EchoContradicted): DOUBT,
    (G, EchoContradicted): DOUBT,
    (SUBMITTED, TaskEnded): FAILED,
    (SUBMITTED, TaskEndedRetryable): P,
    (G, TaskSucceeded): G,
    (G, Saved): DONE,
    (G, TaskEnded): FAILED,
    (G, ResultLost): FAILED,
    (DONE, Saved): DONE,
    (DONE, Composed): DONE,
    (DONE, Verified): DONE,
    (DONE, NotChecked): DONE,
    (DONE, ResultChosen): DONE,
    (FAILED, RetryGranted): P,
    (DONE, RetryGranted): P,
}


def job(state: JobState) -> JobSnapshot:
    """Make a job that stands in ``state``."""
    task = TASK if state in {SUBMITTED, G, DONE} else None
    url = URL if state in {G, DONE} else None
    attempts = 0 if state is P else 1
    return JobSnapshot(
        key=JobKey("k"), state=state, attempts=attempts, task_id=task, api="kontext", result_url=url
    )


def name(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


# --- the table --------------------------------------------------------------------------------------------


def test_table_is_the_designs() -> None:
    """The table holds the moves of the design and no other."""
    assert dict(TRANSITIONS) == LEGAL


def test_every_event_is_tried_here() -> None:
    """An event added to the union must be added here."""
    assert set(BY_TYPE) == set(get_args(Event))


@pytest.mark.parametrize(("state", "event"), LEGAL, ids=name)
def test_every_row(state: JobState, event: type[Event]) -> None:
    """A legal event moves the job to the state of the table and keeps its key."""
    after = apply(job(state), BY_TYPE[event])
    assert after.state is LEGAL[state, event]
    assert after.key == "k"


@pytest.mark.parametrize(
    ("state", "event"),
    [pair for pair in itertools.product(JobState, BY_TYPE) if pair not in LEGAL],
    ids=name,
)
def test_everything_else_is_refused(state: JobState, event: type[Event]) -> None:
    """An event that the table does not hold for the state is an error that names both."""
    before = job(state)
    with pytest.raises(
        IllegalTransition, match=rf"{event.__name__} cannot happen to job k, which is {state}"
    ):
        apply(before, BY_TYPE[event])
    assert before == job(state)


def test_only_uncharged_answers_lead_back_from_a_submit() -> None:
    """From SUBMITTING only a refusal leads to PENDING: nothing else may be followed by another POST."""
    assert [event for (state, event), to in TRANSITIONS.items() if state is S and to is P] == [SubmitRefused]


def test_only_an_operator_event_leaves_a_final_state_or_in_doubt() -> None:
    """DONE ends if its image is missing; DONE, FAILED and IN_DOUBT lead to PENDING by an operator command."""
    ways_out = {
        (state, event) for (state, event), to in TRANSITIONS.items() if state in FINAL and to != state
    }
    assert ways_out == {(FAILED, RetryGranted), (DONE, RetryGranted), (DONE, ResultLost)}
    freed = [event for (state, event), to in TRANSITIONS.items() if state is DOUBT and to is P]
    assert freed == [ResubmitGranted]


# --- what an event writes down ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        (
            P,
            NoTextFound,
            {"file": "a.png", "finished_at": 1, "charge": Charge.NO, "credits": 0.0, "task_id": None},
        ),
        (P, SubmitIntended, {"attempts": 1, "charge": Charge.MAYBE, "task_id": None, "problem": None}),
        (S, SubmitAccepted, {"charge": Charge.YES, "task_id": TASK, "submitted_at": 2}),
        (S, SubmitRefused, {"charge": Charge.NO, "problem": PROBLEM, "not_before": 12}),
        (S, SubmitRejected, {"charge": Charge.NO, "problem": PROBLEM, "finished_at": 2}),
        (S, SubmitUnknown, {"charge": Charge.MAYBE, "problem": PROBLEM, "finished_at": None}),
        (S, TaskFound, {"charge": Charge.YES, "task_id": TASK}),
        (DOUBT, TaskFound, {"charge": Charge.YES, "task_id": TASK, "submitted_at": 3}),
        (DOUBT, ResubmitGranted, {"not_before": 0.0, "attempts": 1}),
        (SUBMITTED, TaskSucceeded, {"result_url": URL, "generated_at": 4, "generation_s": 7.5}),
        (SUBMITTED, EchoContradicted, {"charge": Charge.MAYBE, "problem": PROBLEM, "task_id": None}),
        (G, EchoContradicted, {"charge": Charge.MAYBE, "task_id": None, "result_url": None}),
        (SUBMITTED, TaskEnded, {"charge": Charge.MAYBE, "paid_failures": 1, "finished_at": 4}),
        (SUBMITTED, TaskEndedRetryable, {"paid_failures": 1, "not_before": 0.0, "finished_at": None}),
        (G, Saved, {"file": "a.jpg", "finished_at": 5, "problem": None}),
        (G, TaskEnded, {"charge": Charge.MAYBE, "paid_failures": 1, "finished_at": 4}),
        (DONE, Saved, {"file": "a.jpg", "finished_at": 5, "result_url": URL}),
        (G, ResultLost, {"problem": PROBLEM, "finished_at": 5}),
        (FAILED, RetryGranted, {"charge": Charge.NO, "finished_at": None, "not_before": 0.0}),
    ],
    ids=name,
)
def test_fields_set_by_each_event(state: JobState, event: type[Event], expected: dict[str, object]) -> None:
    """Charge, task, times and problem."""
    after = attrs.asdict(apply(job(state), BY_TYPE[event]), recurse=False)
    assert {field: after[field] for field in expected} == expected


def test_result_address_is_renewed() -> None:
    """A repeated success, as after a restart, only renews the address."""
    again = apply(job(G), TaskSucceeded(at=9, result_url="https://files.example/new.jpg"))
    assert (again.state, again.result_url) == (G, "https://files.example/new.jpg")


def test_the_cost_of_a_task_stays_with_it() -> None:
    """An address that is renewed without a figure changes nothing; the next submit is another task."""
    done = apply(job(SUBMITTED), TaskSucceeded(at=4, result_url=URL, credits=5.0))
    assert apply(done, TaskSucceeded(at=5, result_url=URL)).credits == 5.0
    assert apply(done, EchoContradicted(at=5, problem=PROBLEM, task_id=TASK)).credits is None
    again = apply(job(SUBMITTED), TaskEndedRetryable(at=4, problem=PROBLEM, credits=0.0))
    assert again.credits == 0.0
    assert apply(again, SubmitIntended(api="kontext", at=6)).credits is None
    assert apply(job(SUBMITTED), TaskEnded(at=4, problem=PROBLEM, credits=0.0)).credits == 0.0


def test_the_echo_of_a_task_stays_with_it() -> None:
    """What a record showed outlives a renewed address of the result, and ends with the next submit."""
    found = apply(job(DOUBT), TaskFound(api="kontext", at=3, task_id=TASK, echo=Echo.CONFIRMED))
    assert found.echo is Echo.CONFIRMED
    assert apply(job(DOUBT), TaskFound(api="kontext", at=3, task_id=TASK)).echo is None
    done = apply(found, TaskSucceeded(at=4, result_url=URL))
    assert done.echo is Echo.CONFIRMED
    other = apply(done, TaskSucceeded(at=5, result_url=URL, echo=Echo.ABSENT))
    assert other.echo is Echo.ABSENT
    again = attrs.evolve(other, state=P)
    assert apply(again, SubmitIntended(api="kontext", at=6)).echo is None


def test_checks_keep_what_they_found_about_the_file() -> None:
    """A composed image replaces the vendor's; a refusal keeps it; a new image has no findings."""
    saved = apply(job(G), BY_TYPE[Saved])
    failed = apply(saved, NotChecked(at=6, problem="The original is gone."))
    assert failed.checked == CheckResult(problem="The original is gone.")
    verified = apply(failed, Verified(at=7, verdict={"kind": "damaged"}))
    assert (verified.file, verified.checked) == ("a.jpg", CheckResult(verdict={"kind": "damaged"}))
    composed = apply(verified, BY_TYPE[Composed])
    assert (composed.file, composed.sha256) == ("a.png", "1" * 64)
    assert composed.checked == CheckResult(is_preserved=True, vendor_file="vendor/a.jpg", replaced=0.2)
    refusal = Composed(at=8, file="a.jpg", sha256="2" * 64, vendor_file="vendor/a.jpg", reason="no text")
    again = apply(verified, RetryGranted(at=8))
    assert (again.state, again.file, again.sha256, again.checked) == (P, None, None, None)
    refused = apply(verified, refusal)
    assert refused.checked == CheckResult(
        is_preserved=False,
        not_preserved="no text",
        vendor_file="vendor/a.jpg",
        verdict={"kind": "damaged"},
    )
    assert apply(refused, Saved(at=9, file="a.jpg")).checked is None
    assert apply(attrs.evolve(refused, state=P), BY_TYPE[SubmitIntended]).checked is None


# --- what comes next --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (P, Begin()),
        (S, Submit()),
        (SUBMITTED, AwaitTask(task_id=TASK, api="kontext")),
        (G, Fetch(task_id=TASK, api="kontext", result_url=URL)),
        (DONE, Settle(state=DONE)),
        (FAILED, Settle(state=FAILED)),
        (DOUBT, Settle(state=DOUBT)),
    ],
    ids=str,
)
def test_next_step(state: JobState, step: object) -> None:
    """Each state has one step that follows from it."""
    assert next_step(job(state)) == step


def test_a_job_in_doubt_whose_callback_may_come_waits_for_it() -> None:
    """Only in doubt, and only if callbacks are received."""
    assert next_step(job(JobState.IN_DOUBT), callback_may_come=True) == AwaitCallback()
    for state in set(JobState) - {JobState.IN_DOUBT}:
        assert next_step(job(state), callback_may_come=True) == next_step(job(state))


def test_wanted_checks_follow_the_saved_image() -> None:
    """Composed first, then verified; each once; without a file there is nothing to check."""
    both = WantedChecks(preserve=True, verify=True)
    saved = apply(job(G), BY_TYPE[Saved])
    assert next_step(saved) == next_step(job(DONE), checks=both) == Settle(state=DONE)
    assert next_step(saved, checks=both) == Compose()
    composed = apply(saved, BY_TYPE[Composed])
    assert next_step(composed, checks=both) == next_step(saved, checks=WantedChecks(verify=True)) == Verify()
    assert next_step(composed, checks=WantedChecks(preserve=True)) == Settle(state=DONE)
    assert next_step(apply(composed, BY_TYPE[Verified]), checks=both) == Settle(state=DONE)
    not_checked = apply(saved, BY_TYPE[NotChecked])
    assert next_step(not_checked, checks=both) == Compose()
    assert next_step(job(FAILED), checks=both) == Settle(state=FAILED)


def test_an_original_is_looked_at_before_it_is_paid() -> None:
    """Where that is wanted and nothing was perhaps paid; the copy of one without text is not checked."""
    wanted = WantedChecks(skip_textless=True)
    assert next_step(job(P), checks=wanted) == CheckForText()
    assert next_step(attrs.evolve(job(P), charge=Charge.MAYBE), checks=wanted) == Begin()
    done = apply(job(P), BY_TYPE[NoTextFound])
    assert next_step(done, checks=attrs.evolve(wanted, preserve=True, verify=True)) == Settle(state=DONE)
    assert verdict_of(done) == "no_text"


def test_nothing_of_a_task_that_failed_is_left_with_an_image_without_text() -> None:
    """Only the attempts are counted on; a copy that is made again is the same copy."""
    failed = attrs.evolve(job(SUBMITTED), problem=PROBLEM, submitted_at=2, generation_s=3.0)
    granted = apply(apply(failed, BY_TYPE[TaskEnded]), RetryGranted(at=6))
    done = apply(granted, BY_TYPE[NoTextFound])
    assert done == JobSnapshot(
        key=JobKey("k"),
        state=DONE,
        attempts=1,
        paid_failures=1,
        file="a.png",
        sha256="3" * 64,
        finished_at=1,
        credits=0.0,
        checked=CheckResult(verdict=NO_TEXT, saved_credits=5.0),
    )
    again = apply(done, Saved(at=9, file="a.png", sha256="3" * 64))
    assert again == attrs.evolve(done, finished_at=9)


# --- another attempt for a better result ------------------------------------------------------------------


FIRST = apply(
    apply(attrs.evolve(job(G), credits=5.0, submitted_at=2), Saved(at=5, file="a.png", sha256="1" * 64)),
    Verified(at=6, verdict={"kind": "text_left", "text_left": 0.4}),
)
"""A job whose image has text left."""

OTHER_MODEL = '{"model":"flux-kontext-max"}'
AGAIN = RetryGranted(at=7, other_model=OTHER_MODEL)


def second(verdict: dict[str, Any] | None, file: str = "earlier/a.2.png") -> JobSnapshot:
    """Make the same job with a second result, which has this verdict."""
    after = apply(FIRST, AGAIN)
    for event in (
        SubmitIntended(at=8, api="jobs"),
        SubmitAccepted(at=9, task_id=OTHER),
        TaskSucceeded(at=10, result_url=URL, credits=10.0),
        Saved(at=11, file=file, sha256="2" * 64),
    ):
        after = apply(after, event)
    return after if verdict is None else apply(after, Verified(at=12, verdict=verdict))


def test_the_image_of_a_job_is_kept_while_another_is_made() -> None:
    """With all that is known of it; the job waits for its submit, with the other model."""
    again = apply(FIRST, AGAIN)
    assert (again.state, again.charge, again.file, again.redone) == (P, Charge.NO, None, 1)
    assert again.other_model == OTHER_MODEL
    assert again.kept is not None
    assert (again.kept.attempt, again.kept.file, again.kept.task_id) == (1, "a.png", TASK)
    assert (again.kept.credits, again.kept.checked) == (5.0, FIRST.checked)
    assert next_step(again, checks=WantedChecks(skip_textless=True)) == Begin(), "it has text"


@pytest.mark.parametrize("end", [SubmitRejected, TaskEnded, ResultLost], ids=name)
def test_an_attempt_that_fails_leaves_the_earlier_image(end: type[Event]) -> None:
    """The job is done with it, and the failure is told; the next attempt is the third."""
    doing = apply(apply(FIRST, AGAIN), SubmitIntended(at=8, api="jobs"))
    if end is not SubmitRejected:
        doing = apply(doing, SubmitAccepted(at=9, task_id=OTHER))
    if end is ResultLost:
        doing = apply(doing, TaskSucceeded(at=10, result_url="https://files.example/2.jpg"))
    after = apply(doing, BY_TYPE[end])
    assert (after.state, after.charge, after.problem) == (DONE, Charge.YES, PROBLEM)
    same = ("task_id", "api", "result_url", "file", "sha256", "credits", "checked", "other_model")
    assert [getattr(after, field) for field in same] == [getattr(FIRST, field) for field in same]
    assert (after.kept, after.result_of, after.attempts, after.redone) == (None, 1, 2, 1)
    third = apply(after, RetryGranted(at=20))
    assert third.kept is not None
    assert (third.kept.attempt, third.redone, third.other_model) == (1, 2, None)
    assert apply(third, SubmitIntended(at=21, api="jobs")).result_of is None


def test_a_task_that_may_be_paid_again_or_is_in_doubt_keeps_it_too() -> None:
    """Until the job is done."""
    doing = apply(apply(apply(FIRST, AGAIN), BY_TYPE[SubmitIntended]), BY_TYPE[SubmitAccepted])
    assert apply(doing, BY_TYPE[TaskEndedRetryable]).kept is not None
    assert apply(doing, BY_TYPE[EchoContradicted]).kept is not None


def test_two_results_are_compared_once_the_second_is_verified() -> None:
    """Not before, and not without the wish to verify."""
    both = WantedChecks(preserve=True, verify=True)
    saved = second(None)
    assert next_step(saved) == Settle(state=DONE)
    assert next_step(saved, checks=both) == Compose()
    assert next_step(saved, checks=WantedChecks(verify=True)) == Verify()
    verified = second({"kind": "clean"})
    assert next_step(verified) == next_step(verified, checks=WantedChecks(verify=True)) == Choose()


LEFT_02, LEFT_04 = {"kind": "text_left", "text_left": 0.2}, {"kind": "text_left", "text_left": 0.4}
BAD_5, BAD_7 = {"kind": "damaged", "background_kept": 0.5}, {"kind": "damaged", "background_kept": 0.7}


@pytest.mark.parametrize(
    ("earlier", "latest", "is_better"),
    [
        (LEFT_04, {"kind": "clean"}, False),
        (LEFT_04, {"kind": "clean", "no_text": True}, False),
        (LEFT_04, {"kind": "unsure"}, False),
        (LEFT_04, LEFT_02, False),
        (LEFT_04, LEFT_04, False),
        (LEFT_02, LEFT_04, True),
        (LEFT_04, {"kind": "cropped"}, True),
        (LEFT_04, BAD_7, True),
        (BAD_5, BAD_7, False),
        (BAD_7, BAD_5, True),
        (BAD_7, {"kind": "cropped"}, False),
        (BAD_7, LEFT_04, False),
        ({"kind": "splendid"}, LEFT_02, True),
    ],
    ids=str,
)
def test_the_better_verdict_wins(earlier: dict[str, Any], latest: dict[str, Any], is_better: bool) -> None:
    """Of equal ones the latest."""
    found = second(latest)
    assert found.kept is not None
    kept = attrs.evolve(found.kept, checked=CheckResult(verdict=earlier))
    assert earlier_is_better(attrs.evolve(found, kept=kept)) is is_better


def test_without_a_verdict_a_result_may_be_anything() -> None:
    """It is worse than a clean one and better than one with text left; without another none is better."""
    found = second(LEFT_02)
    assert found.kept is not None
    assert earlier_is_better(attrs.evolve(found, kept=attrs.evolve(found.kept, checked=None)))
    assert not earlier_is_better(FIRST)


def test_the_chosen_result_is_the_jobs() -> None:
    """The earlier one as it was, or the latest with its final files."""
    latest = apply(second({"kind": "clean"}), BY_TYPE[ResultChosen])
    assert (latest.file, latest.task_id, latest.kept, latest.result_of) == ("b.png", OTHER, None, None)
    assert latest.checked == CheckResult(verdict={"kind": "clean"}, vendor_file="vendor/b.jpg")
    assert latest.other_model == OTHER_MODEL
    earlier = apply(second(LEFT_04), ResultChosen(at=13, keeps_earlier=True))
    assert (earlier.file, earlier.task_id, earlier.problem) == ("a.png", TASK, None)
    assert (earlier.kept, earlier.result_of, earlier.attempts) == (None, 1, 2)
    with pytest.raises(IllegalTransition, match="no earlier result"):
        apply(FIRST, ResultChosen(at=13, keeps_earlier=True))


def test_a_result_that_was_not_chosen_does_not_replace_the_kept_one() -> None:
    """Also where a lost submit is found: the earlier one is the one that is known to be verified."""
    again = apply(second(None), RetryGranted(at=20))
    assert again.kept is not None
    assert (again.kept.attempt, again.redone) == (1, 2)


def test_another_attempt_follows_a_bad_verdict_until_they_are_used_up() -> None:
    """Earlier ones count, failed ones too; each has its model, the last one is repeated."""
    assert next_step(FIRST, checks=WantedChecks(verify=True)) == Settle(state=DONE)
    twice = WantedChecks(verify=True, until_clean=2)
    assert next_step(FIRST, checks=twice) == SubmitAgain()
    escalates = attrs.evolve(twice, until_clean=4, escalate=(Model.PRO, Model.MAX))
    wanted = [SubmitAgain(model=Model.PRO), SubmitAgain(model=Model.MAX), SubmitAgain(model=Model.MAX)]
    for redone, step in enumerate([*wanted, Settle(state=DONE)]):
        assert next_step(attrs.evolve(FIRST, redone=redone), checks=escalates) == step
    assert list(escalates.models_left(1)) == [Model.MAX, Model.MAX]
    for kind, is_bad in (("clean", False), ("unsure", False), ("damaged", True), ("cropped", True)):
        found = attrs.evolve(FIRST, checked=CheckResult(verdict={"kind": kind}))
        assert (next_attempt(found, twice) is not None) is is_bad
    assert next_attempt(second(LEFT_04), twice) is None, "the results are compared first"
    assert next_attempt(job(G), twice) is None


def test_a_job_whose_image_is_not_here_keeps_nothing() -> None:
    """There is no file to go back to."""
    left = apply(apply(job(G), Saved(at=5)), RetryGranted(at=6))
    assert (left.kept, left.redone) == (None, 1)


def test_a_refused_job_waits() -> None:
    """A job that was turned away for now begins again not before the time it was given."""
    assert next_step(apply(job(S), BY_TYPE[SubmitRefused])) == Begin(not_before=12)


@pytest.mark.parametrize("state", [SUBMITTED, G], ids=str)
def test_a_paid_job_without_its_task_is_a_bug(state: JobState) -> None:
    """A job marked as paid, without a task to poll, is refused instead of resubmitted."""
    with pytest.raises(IllegalTransition, match="without a task"):
        next_step(JobSnapshot(key=JobKey("k"), state=state))


@pytest.mark.parametrize("state", JobState, ids=str)
def test_recover(state: JobState) -> None:
    """After a crash an intent without an answer is in doubt; every other state is unchanged."""
    event = recover(job(state), 50.0)
    if state is not S:
        assert event is None
        return
    assert isinstance(event, SubmitUnknown)
    after = apply(job(state), event)
    assert (after.state, after.charge) == (DOUBT, Charge.MAYBE)
    assert after.problem is not None
    assert after.problem.type == ConnectionLost.__name__
    assert recover(after, 60.0) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FluxError("Odd."), None),
        (ConnectionLost("Gone."), None),
        (
            TaskFailed(
                "No.", record=TaskRecord(task_id=TASK, status=TaskStatus.GENERATE_FAILED, error_code=501)
            ),
            501,
        ),
        (TaskFailed("No record."), None),
    ],
    ids=name,
)
def test_problem_of(error: FluxError, code: int | None) -> None:
    """An error is kept as the name of its class, the vendor's code and its message."""
    assert Problem.of(error) == Problem(type=type(error).__name__, code=code, message=str(error))


# --- any order of facts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", JobState)
def test_a_job_whose_submit_is_unrecorded_is_not_resubmitted(state: JobState) -> None:
    """Every job that a run would submit, now or after its task fails, is in doubt; the others stay."""
    job = JobSnapshot(key=JobKey("k"), state=state, attempts=1, task_id=TASK, result_url=URL)
    after = job
    for event in events_of_lost_submit(job, at=5.0, now=9.0):
        after = apply(after, event)
    if state in {JobState.PENDING, JobState.SUBMITTED, JobState.FAILED}:
        assert (after.state, after.attempts, after.charge) == (JobState.IN_DOUBT, 2, Charge.MAYBE)
        assert after.problem is not None
        assert "lost the record" in after.problem.message
    else:
        assert after == job


def test_a_verdict_is_that_of_verify_or_no_text() -> None:
    """An original without text is no success of the removal; before a check there is no verdict."""
    saved = apply(job(G), BY_TYPE[Saved])
    assert verdict_of(saved) is verdict_of(apply(saved, BY_TYPE[NotChecked])) is None
    assert verdict_of(apply(saved, BY_TYPE[Verified])) == "clean"
    for kind, verdict in (("clean", "no_text"), ("damaged", "damaged")):
        found = Verified(at=7, verdict={"kind": kind, "no_text": True})
        assert verdict_of(apply(saved, found)) == verdict


def test_a_lost_submit_of_a_job_that_was_done_before_is_in_doubt() -> None:
    """The user had it submitted again; a submit before its end is that of its image."""
    done = apply(job(G), BY_TYPE[Saved])
    assert events_of_lost_submit(done, at=4.0, now=9.0) == ()
    for event in events_of_lost_submit(done, at=6.0, now=9.0):
        done = apply(done, event)
    assert (done.state, done.charge) == (DOUBT, Charge.MAYBE)


class _AnyOrder(RuleBasedStateMachine):
    """Facts arrive in any order and more than once; a person may speak at any time.

    What the table refuses changes nothing. The machine counts attempts that are live by itself, from the
    facts that were let through, and compares.
    """

    def __init__(self) -> None:
        super().__init__()
        self.job = JobSnapshot(key=JobKey("k"))
        self.live = 0
        self.intents = 0
        self.time = 0.0

    def offer(self, event: Event) -> bool:
        before = self.job
        try:
            self.job = apply(self.job, event)
        except IllegalTransition:
            assert (before.state, type(event)) not in TRANSITIONS
            return False
        left = before.state in FINAL and self.job.state is not before.state
        lost = before.state is DONE and isinstance(event, ResultLost)
        assert not left or lost or isinstance(event, RetryGranted), (
            "no permission, and a final state was left"
        )
        return True

    def at(self) -> float:
        self.time += 1
        return self.time

    @rule()
    def intend(self) -> None:
        if self.offer(SubmitIntended(api="kontext", at=self.at())):
            assert self.live == 0, "a submit while an attempt is live"
            self.live += 1
            self.intents += 1

    @rule(task=st.sampled_from([TASK, OTHER]), kind=st.sampled_from([SubmitAccepted, TaskFound]))
    def accepted(self, task: TaskId, kind: type[SubmitAccepted]) -> None:
        was_pending = self.job.state is P
        if was_pending and not self.intents:
            return  # there is no submit whose task could be found
        where: dict[str, Any] = {"api": "kontext"} if kind is TaskFound else {}
        if self.offer(kind(at=self.at(), task_id=task, **where)) and was_pending:
            self.live += 1

    @rule(kind=st.sampled_from([SubmitRefused, SubmitRejected, TaskEnded, TaskEndedRetryable]))
    def attempt_over(self, kind: Any) -> None:
        was_live = self.job.state in LIVE
        if self.offer(kind(at=self.at(), problem=PROBLEM)):
            self.live -= was_live

    @rule()
    def unknown(self) -> None:
        self.offer(SubmitUnknown(at=self.at(), problem=PROBLEM))

    @rule()
    def contradicted(self) -> None:
        was_over = self.job.state is G
        if self.offer(EchoContradicted(at=self.at(), problem=PROBLEM, task_id=TASK)):
            self.live += was_over

    @rule()
    def resubmit(self) -> None:
        if self.offer(ResubmitGranted(at=self.at())):
            self.live -= 1

    @rule(url=st.sampled_from([URL, URL + "?again"]))
    def succeeded(self, url: str) -> None:
        if self.offer(TaskSucceeded(at=self.at(), result_url=url)):
            self.live = 0

    @rule()
    def saved(self) -> None:
        self.offer(Saved(at=self.at()))

    @rule()
    def lost(self) -> None:
        self.offer(ResultLost(at=self.at(), problem=PROBLEM))

    @rule()
    def retry(self) -> None:
        self.offer(RetryGranted(at=self.at()))

    @rule()
    def no_text(self) -> None:
        if isinstance(next_step(self.job, checks=WantedChecks(skip_textless=True)), CheckForText):
            assert self.offer(BY_TYPE[NoTextFound])

    @rule()
    def crash(self) -> None:
        event = recover(self.job, self.at())
        if event is not None:
            assert self.offer(event)

    @precondition(lambda self: self.job.state is DONE)
    @rule(event=st.sampled_from(EVENTS))
    def done_is_done(self, event: Event) -> None:
        before = self.job
        if self.offer(event):
            assert self.job.state is LEGAL[DONE, type(event)], "only what the table says can change"
            assert (self.job.task_id, self.job.attempts) == (before.task_id, before.attempts)
        else:
            assert self.job == before

    @invariant()
    def one_live_attempt(self) -> None:
        assert self.live == (self.job.state in LIVE)
        assert self.intents == self.job.attempts

    @invariant()
    def there_is_a_next_step(self) -> None:
        step = next_step(self.job)
        assert isinstance(step, Submit) == (self.job.state is S)
        assert isinstance(step, Begin) == (self.job.state is P)

    @invariant()
    def charge_is_known(self) -> None:
        if self.job.state in {SUBMITTED, G, DONE}:
            assert (self.job.charge is Charge.YES) == (self.job.task_id is not None)
            assert self.job.charge is not Charge.MAYBE
        if self.job.state in {S, DOUBT}:
            assert self.job.charge is Charge.MAYBE


TestAnyOrder = _AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
