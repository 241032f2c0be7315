"""The states of a job: every row of the table, every transition that is not in it, any order of events."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flux_async.errors import Charge, ConnectionLost, FluxError, TaskFailed
from flux_async.job_state import (
    FINAL,
    LIVE,
    TRANSITIONS,
    AwaitCallback,
    AwaitTask,
    Begin,
    Compose,
    Composed,
    EchoContradicted,
    Event,
    Fetch,
    IllegalTransition,
    JobSnapshot,
    JobState,
    LookForText,
    NotChecked,
    NoTextFound,
    Problem,
    ResubmitGranted,
    ResultLost,
    RetryGranted,
    Saved,
    Settle,
    Submit,
    SubmitAccepted,
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
    events_of_lost_submit,
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
    RetryGranted(at=6),
)
BY_TYPE = {type(event): event for event in EVENTS}

# The design's table of a job's states, written a second time, by hand.
LEGAL = {
    (P, NoTextFound): DONE,
    (P, SubmitIntended): S,
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
    looks = WantedChecks(skip_textless=True)
    assert next_step(job(P), checks=looks) == LookForText()
    assert next_step(attrs.evolve(job(P), charge=Charge.MAYBE), checks=looks) == Begin()
    done = apply(job(P), BY_TYPE[NoTextFound])
    assert next_step(done, checks=attrs.evolve(looks, preserve=True, verify=True)) == Settle(state=DONE)
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
        if isinstance(next_step(self.job, checks=WantedChecks(skip_textless=True)), LookForText):
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
