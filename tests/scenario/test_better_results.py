"""Images that are paid for again for a better result: the better one is the result, the other one is kept."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from check_workers import CLEAN, PREFIX, CheckWorkers
from flux_async import (
    BudgetExhausted,
    Charge,
    CheckFailed,
    CustomModel,
    DiskFull,
    Echo,
    EditRequest,
    Failed,
    InDoubt,
    InsufficientCreditsError,
    InvalidInput,
    MissingExtra,
    Model,
    Succeeded,
    TaskFailed,
    VerdictKind,
    adopt,
    fetch_missing,
    retry,
    run_batch,
)
from flux_async.batch import check_stage
from flux_async.job_state import JobSnapshot, JobState, verdict_of
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import Journal
from flux_async.verification.verdict import Verdict
from scripted_vendor import echo
from tests.scenario.test_checks import Crash, Fate, MortalJournal, collect
from tests.support.file_host import JPEG

URL = "https://example.com/poster.jpg"
LEFT = attrs.evolve(CLEAN, kind=VerdictKind.TEXT_LEFT, text_left=0.4)
DAMAGED = attrs.evolve(CLEAN, kind=VerdictKind.DAMAGED, background_kept=0.5)


@attrs.define(eq=False, slots=False)
class Judge(CheckWorkers):
    """Checks whose verdicts are given, one for each verification."""

    found: Sequence[Verdict] = ()

    async def verify(self, original: Path, result: Path) -> Verdict:
        """Return the next verdict; the last one is repeated."""
        await super().verify(original, result)
        number = self.made["verify", original.name] - 1
        return self.found[min(number, len(self.found) - 1)]


@attrs.define(eq=False, slots=False)
class JudgeOfAttempts(Judge):
    """The same, one for each attempt, however often it is verified."""

    async def verify(self, original: Path, result: Path) -> Verdict:
        """Return the verdict of the attempt, whose number is in the name of the file."""
        await super().verify(original, result)
        number = result.suffixes[0].removeprefix(".")
        return self.found[int(number) - 1 if number.isdigit() else 0]


@pytest.fixture
def hosted(hosted: Any) -> Any:
    """A vendor that echoes what was sent, with files to download."""
    hosted.shows = echo
    hosted.price = lambda number: 5.0 if is_pro(hosted.sent[number]) else 10.0
    return hosted


@pytest.fixture
def other(api: Any) -> Model:
    """Another model of the API, which costs ten credits here."""
    return Model.MAX if api == "kontext" else Model.NANO_BANANA_EDIT


@pytest.fixture
def checked(tmp_path: Path) -> dict[str, Any]:
    """The options of a batch that verifies, in a folder and with a journal."""
    return {
        "journal": tmp_path / "run.sqlite3",
        "directory": tmp_path / "out",
        "name_file": lambda _job: "poster",
        "verify": True,
        "prices": {"google/nano-banana-edit": 10.0},
    }


def is_pro(sent: dict[str, Any]) -> bool:
    """Return whether a submit was made with the model of the request."""
    return "flux-kontext-pro" in json.dumps(sent)


def files(folder: Path) -> set[str]:
    """Return the files of the results, without the originals."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()}
    return {name for name in found if not name.startswith("originals/")}


async def only_job(path: Path, client: Any) -> JobSnapshot:
    """Return the state of the only job of a journal."""
    async with Journal(path, clock=client.session.clock) as journal:
        found = [stored.job for state in JobState for stored in await journal.jobs(state)]
    (job,) = found
    return job


# --- retry ------------------------------------------------------------------------------------------------


@pytest.mark.both_apis
async def test_a_better_result_takes_the_place_of_the_earlier_one(
    client: Any, hosted: Any, checked: Any, other: Model, tmp_path: Path
) -> None:
    """With another model, whose price is told before; the job keeps its key and request."""
    judge = Judge(found=[LEFT, CLEAN])
    (first,) = await collect(client, [URL], **checked, checks=judge)
    plan = await retry(client, checked["journal"], text_left=True, model=other.value, dry_run=True)
    assert dict(plan.submits) == {other: 1}
    assert (await only_job(checked["journal"], client)).kept is None
    await retry(client, checked["journal"], text_left=True, model=other)
    (second,) = await collect(client, [URL], **checked, checks=judge)
    assert isinstance(second, Succeeded), second
    assert (second.job, second.verdict, second.error) == (first.job, CLEAN, None)
    assert second.image.task_id != first.image.task_id
    assert second.image.echo is Echo.CONFIRMED
    assert list(map(is_pro, hosted.sent)) == [True, False]
    assert files(tmp_path / "out") == {"poster.jpg", "earlier/poster.1.jpg"}
    assert second.file == tmp_path / "out" / "poster.jpg"
    with JournalReader(checked["journal"]) as reader:
        spent = {one.model: (one.tasks, one.perhaps) for one in reader.spending()}
    assert spent == {"flux-kontext-pro": (1, 0), other.value: (1, 0)}


async def test_a_worse_result_is_kept_beside(client: Any, hosted: Any, checked: Any, tmp_path: Path) -> None:
    """The earlier one is the outcome, with its task and its files; the composed ones have the vendor's."""
    judge = Judge(found=[LEFT, DAMAGED])
    options = checked | {"preserve": True, "checks": judge}
    (first,) = await collect(client, [URL], **options)
    await retry(client, checked["journal"], text_left=True)
    (second,) = await collect(client, [URL], **options)
    assert (second.verdict, second.image.task_id) == (LEFT, first.image.task_id)
    assert (second.file, second.file.read_bytes()) == (first.file, PREFIX + JPEG)
    assert files(tmp_path / "out") == {
        "poster.png",
        "vendor/poster.jpg",
        "earlier/poster.2.png",
        "earlier/poster.2.vendor.jpg",
    }
    await retry(client, checked["journal"], text_left=True)
    judge.found = [CLEAN]
    (third,) = await collect(client, [URL], **options)
    assert third.verdict == CLEAN
    assert files(tmp_path / "out") == {
        "poster.png",
        "vendor/poster.jpg",
        *(f"earlier/poster.{number}.{ending}" for number in (1, 2) for ending in ("png", "vendor.jpg")),
    }
    assert hosted.count("generate") == 3


@pytest.mark.parametrize("with_checks", [False, True], ids=["plain rerun", "with verify"])
async def test_an_interrupted_retry_is_resumed_with_its_checks(
    client: Any, hosted: Any, checked: Any, other: Model, with_checks: bool
) -> None:
    """Also by a run that asks for none: it submits with the model of the retry, composes and verifies."""
    options = checked | {"preserve": True}
    await collect(client, [URL], **options, checks=Judge(found=[LEFT]))
    await retry(client, checked["journal"], text_left=True, model=other)
    judge = Judge(found=[CLEAN])
    plain = checked | {"verify": with_checks, "checks": judge}
    (outcome,) = await collect(client, [URL], **plain)
    assert (outcome.verdict, outcome.check.is_preserved) == (CLEAN, True)
    assert list(map(is_pro, hosted.sent)) == [True, False]
    assert sum(judge.made.values()) == 2
    assert await collect(client, [URL], **plain) == []


async def test_a_retry_that_cannot_be_compared_is_not_paid(
    client: Any, hosted: Any, checked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder, or without the extra; the earlier image stays, and nothing is lost."""
    await collect(client, [URL], **checked, checks=Judge(found=[LEFT]))
    await retry(client, checked["journal"], text_left=True)
    (left,) = await collect(client, [URL], journal=checked["journal"])
    assert isinstance(left, Failed)
    assert (type(left.error), left.error.charge) == (InvalidInput, Charge.NO)
    monkeypatch.setattr(check_stage.importlib.util, "find_spec", lambda _: None)
    (left,) = await collect(client, [URL], **checked | {"verify": False})
    assert isinstance(left.error, MissingExtra)
    assert hosted.count("generate") == 1
    monkeypatch.undo()
    (outcome,) = await collect(client, [URL], **checked, checks=Judge(found=[CLEAN]))
    assert outcome.verdict == CLEAN


async def test_an_attempt_that_fails_for_good_leaves_the_earlier_image(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """The outcome is the earlier one with the failure; the vendor's answers decide nothing about its file."""
    judge = Judge(found=[LEFT])
    (first,) = await collect(client, [URL], **checked, checks=judge)
    await retry(client, checked["journal"], text_left=True)
    hosted.ends = lambda number: 3 if number else 1
    (second,) = await collect(client, [URL], **checked, checks=judge)
    assert isinstance(second, Succeeded)
    assert isinstance(second.error, TaskFailed)
    assert (second.image.task_id, second.verdict, second.file) == (first.image.task_id, LEFT, first.file)
    job = await only_job(checked["journal"], client)
    assert (job.state, job.charge, job.attempts, job.kept) == (JobState.DONE, Charge.YES, 2, None)
    assert files(tmp_path / "out") == {"poster.jpg"}
    planned = await retry(client, checked["journal"], failed=True, text_left=True, dry_run=True)
    assert len(planned.to_submit) == 1
    async with run_batch(client, [URL], **checked, checks=judge) as batch:
        assert [outcome async for outcome in batch] == []
        again = await batch.earlier_outcome(first.job)
    assert isinstance(again, Succeeded)
    assert "TaskFailed" in again.error.message


async def test_results_that_could_not_be_compared_are_compared_by_the_next_run(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """Any run does that, for nothing; until then both are here, and no retry pays for a third."""

    def broken(kind: str, _original: Path) -> None:
        if kind == "verify" and hosted.count("generate") > 1:
            raise CheckFailed("The worker ended.")

    await collect(client, [URL], **checked, checks=Judge(found=[LEFT]))
    await retry(client, checked["journal"], text_left=True)
    (undecided,) = await collect(client, [URL], **checked, checks=Judge(broken, found=[CLEAN]))
    assert (undecided.check.problem, undecided.verdict) == ("The worker ended.", None)
    assert files(tmp_path / "out") == {"poster.jpg", "earlier/poster.2.jpg"}
    assert not (await retry(client, checked["journal"], text_left=True, damaged=True)).to_submit
    undecided.file.unlink()
    report = await fetch_missing(client, checked["journal"], tmp_path / "out", name_file=checked["name_file"])
    assert report.fetched == 1
    assert files(tmp_path / "out") == {"poster.jpg", "earlier/poster.2.jpg"}
    plain = checked | {"verify": False}
    (decided,) = await collect(client, [], **plain, checks=Judge(found=[CLEAN]))
    assert decided.verdict == CLEAN
    assert files(tmp_path / "out") == {"poster.jpg", "earlier/poster.1.jpg"}
    assert await collect(client, [URL], **plain, checks=Judge(found=[CLEAN])) == []
    assert hosted.count("generate") == 2


async def test_a_disk_that_is_full_when_the_results_change_places_halts(
    client: Any, hosted: Any, checked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run chooses; nothing is paid again."""

    def full(*_: Any) -> Any:
        raise DiskFull("The disk is full.")

    await collect(client, [URL], **checked, checks=Judge(found=[LEFT]))
    await retry(client, checked["journal"], text_left=True)
    with monkeypatch.context() as patched:
        patched.setattr("flux_async.batch.checks.promote", full)
        with pytest.raises(DiskFull):
            await collect(client, [URL], **checked, checks=Judge(found=[CLEAN]))
    (outcome,) = await collect(client, [], **checked, checks=Judge(found=[CLEAN]))
    assert (outcome.verdict, hosted.count("generate")) == (CLEAN, 2)
    assert files(tmp_path / "out") == {"poster.jpg", "earlier/poster.1.jpg"}


@pytest.mark.parametrize("after", [False, True], ids=["before commit", "after commit"])
@pytest.mark.parametrize("verdict", [CLEAN, DAMAGED], ids=["better", "worse"])
async def test_a_retry_that_dies_at_any_commit_is_resumed(
    client: Any, hosted: Any, checked: Any, tmp_path: Path, verdict: Verdict, *, after: bool
) -> None:
    """The earlier image is in its place all the time; the retry is paid once; both end where they belong."""
    for number in itertools.count(1):
        path, folder = tmp_path / f"{number}.sqlite3", tmp_path / f"{number}"
        options = checked | {"journal": path, "directory": folder, "preserve": True}
        await collect(client, [URL], **options, checks=Judge(found=[LEFT]))
        await retry(client, path, text_left=True)
        fate, before = Fate(number, after), hosted.count("generate")
        try:
            async with MortalJournal(path, fate, clock=client.session.clock) as journal:
                await collect(client, [URL], **options | {"journal": journal}, checks=Judge(found=[verdict]))
        except (Crash, BaseExceptionGroup):
            assert fate.is_over
        assert (folder / "poster.png").read_bytes() == PREFIX + JPEG
        await collect(client, [URL], **checked | options | {"verify": False}, checks=Judge(found=[verdict]))
        job = await only_job(path, client)
        assert hosted.count("generate") - before <= 1
        if job.state is JobState.DONE:
            attempts = [{f"earlier/poster.{n}.{ending}" for ending in ("png", "vendor.jpg")} for n in (1, 2)]
            loser, winner = attempts if verdict is CLEAN else reversed(attempts)
            assert job.kept is None
            found = files(folder)
            assert found - winner == {"poster.png", "vendor/poster.jpg", *loser}
            assert not found & winner or after, (
                "copies of the winner are left if it dies before it deletes them"
            )
        else:
            assert (job.state, job.kept is not None) == (JobState.IN_DOUBT, True)
        if not fate.is_over:
            break
    assert number > 6, "intent, answer, result and file, two checks and the choice"


@pytest.mark.both_apis
async def test_a_submit_in_doubt_is_settled_by_the_record_of_its_own_model(
    client: Any, hosted: Any, checked: Any, other: Model
) -> None:
    """A task of the first model is not taken for that of the second; nothing is paid a third time."""
    options = checked | {"checks": Judge(found=[LEFT, CLEAN])}
    await collect(client, [URL], **options)
    await retry(client, checked["journal"], text_left=True, model=other)
    hosted.loses_answer = lambda number: number == 1
    (doubt,) = await collect(client, [URL], **options)
    assert isinstance(doubt, InDoubt)
    hosted.add_foreign_task("t9")
    with pytest.raises(InvalidInput, match="another request"):
        await adopt(client, checked["journal"], doubt.job.key, "t9")
    api = "jobs" if other is Model.NANO_BANANA_EDIT else "kontext"
    adopted = await adopt(client, checked["journal"], doubt.job.key, hosted.tasks[1].task_id)
    assert (adopted.echo, adopted.record.api) == (Echo.CONFIRMED, api)
    (outcome,) = await collect(client, [URL], **options | {"verify": False})
    assert (outcome.verdict, outcome.image.task_id) == (CLEAN, hosted.tasks[1].task_id)
    assert hosted.count("generate") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"failed": True, "model": "flux-kontext-ultra"}, "'flux-kontext-ultra' is no model"),
        ({"in_doubt": True, "model": Model.MAX}, "not with another model"),
    ],
    ids=["no model", "in doubt"],
)
async def test_a_model_that_cannot_be_used_is_refused(
    client: Any, hosted: Any, checked: Any, options: dict[str, Any], words: str
) -> None:
    """Before anything is changed."""
    await collect(client, [URL], **checked, checks=Judge(found=[LEFT]))
    with pytest.raises(InvalidInput, match=words):
        await retry(client, checked["journal"], **options)


async def test_a_model_that_does_not_take_one_of_the_requests_changes_nothing(
    client: Any, hosted: Any, checked: Any
) -> None:
    """No image is granted another submit then."""
    plain = CustomModel(id="mine/edit", credits=3, image_field="image_url")
    ratio = EditRequest.text_removal("https://example.com/wide.jpg", aspect_ratio="16:9")
    options = checked | {"name_file": None}
    await collect(client, [URL, ratio], **options, checks=Judge(found=[LEFT]))
    with pytest.raises(InvalidInput, match="aspect_ratio"):
        await retry(client, checked["journal"], text_left=True, model=plain)
    async with Journal(checked["journal"], clock=client.session.clock) as journal:
        assert (await journal.counts())[JobState.DONE] == 2


# --- until_clean ------------------------------------------------------------------------------------------


@pytest.mark.both_apis
async def test_an_image_is_submitted_until_its_verdict_is_good(
    client: Any, hosted: Any, checked: Any, other: Model, tmp_path: Path
) -> None:
    """Through the models, with the last one for the rest; one outcome, the best; each attempt is counted."""
    judge, seen = Judge(found=[LEFT, DAMAGED, LEFT, CLEAN]), []
    options = checked | {"until_clean": 5, "escalate": [Model.PRO, other.value], "on_progress": seen.append}
    async with run_batch(client, [URL], **options, checks=judge) as batch:
        (outcome,) = [outcome async for outcome in batch]
        progress = batch.progress
    assert (outcome.verdict, outcome.image.task_id) == (CLEAN, hosted.tasks[3].task_id)
    assert list(map(is_pro, hosted.sent)) == [True, True, False, False]
    assert files(tmp_path / "out") == {
        "poster.jpg",
        *(f"earlier/poster.{number}.jpg" for number in (1, 2, 3)),
    }
    assert (progress.submits, progress.tried_again, progress.credits) == (4, 3, 30)
    assert (progress.verdicts, progress.succeeded, progress.seen) == ({"clean": 1}, 1, 1)
    assert all(count >= 0 for one in seen for count in one.verdicts.values())
    assert await collect(client, [URL], **options, checks=judge) == []
    assert hosted.count("generate") == 4


async def test_attempts_that_fail_count_too_and_the_best_result_stays(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """Nothing is paid beyond the number, by this run or the next; what is left is told."""
    judge = Judge(found=[LEFT, DAMAGED])
    hosted.ends = lambda number: 3 if number == 1 else 1
    options = checked | {"until_clean": 3, "checks": judge}
    async with run_batch(client, [URL], **options) as batch:
        (outcome,) = [outcome async for outcome in batch]
        assert (batch.progress.verdicts, batch.progress.failed) == ({"text_left": 1}, 0)
    assert (outcome.verdict, outcome.image.task_id, outcome.error) == (LEFT, hosted.tasks[0].task_id, None)
    assert files(tmp_path / "out") == {"poster.jpg", "earlier/poster.3.jpg"}
    assert await collect(client, [URL], **options) == []
    assert hosted.count("generate") == 3
    (more,) = await collect(client, [URL], **options | {"until_clean": 4, "checks": Judge(found=[CLEAN])})
    assert (more.verdict, hosted.count("generate")) == (CLEAN, 4)


async def test_the_budget_bounds_the_attempts(client: Any, hosted: Any, checked: Any) -> None:
    """The image that is there is the outcome, and the job is done; the same call goes on later."""
    options = checked | {"until_clean": 3, "checks": Judge(found=[LEFT])}
    found: list[Any] = []
    with pytest.raises(BudgetExhausted):
        async with run_batch(client, [URL], **options, max_credits=12) as batch:
            async for outcome in batch:
                found.append(outcome)
    assert [outcome.verdict for outcome in found] == [LEFT]
    job = await only_job(checked["journal"], client)
    assert (job.state, job.kept, job.redone, hosted.count("generate")) == (JobState.DONE, None, 1, 2)
    assert await collect(client, [URL], **checked, checks=Judge(found=[CLEAN])) == []
    (outcome,) = await collect(client, [URL], **options | {"checks": Judge(found=[CLEAN])})
    assert (outcome.verdict, hosted.count("generate")) == (CLEAN, 3)


async def test_only_images_of_the_call_are_submitted_again(client: Any, hosted: Any, checked: Any) -> None:
    """Not others of its journal, whether they are done or their task is fetched by this call."""
    urls = [f"https://example.com/{number}.jpg" for number in range(3)]
    options = checked | {"name_file": None, "checks": Judge(found=[LEFT])}
    await collect(client, urls[:1], **options)
    hosted.polls = 10**9
    async with run_batch(client, urls[1:], **options):
        while hosted.count("generate") < 3:
            await asyncio.sleep(0)
    hosted.polls = 1
    outcomes = await collect(client, urls[2:], **options | {"until_clean": 2})
    assert sorted(outcome.job.request.input_image for outcome in outcomes) == urls[1:]
    assert hosted.count("generate") == 4
    assert urls[2] in json.dumps(hosted.sent[3])
    outcomes = await collect(client, [*urls, urls[0]], **options | {"until_clean": 2})
    assert sorted(outcome.job.request.input_image for outcome in outcomes) == urls[:2]
    assert hosted.count("generate") == 6


async def test_a_model_that_does_not_take_the_request_ends_the_attempts(
    client: Any, hosted: Any, checked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The image that is there is the outcome; the log says why."""
    plain = CustomModel(id="mine/edit", credits=3, image_field="image_url")
    ratio = EditRequest.text_removal(URL, aspect_ratio="16:9")
    options = checked | {"until_clean": 3, "escalate": [plain], "checks": Judge(found=[LEFT])}
    (outcome,) = await collect(client, [ratio], **options)
    assert (outcome.verdict, hosted.count("generate")) == (LEFT, 1)
    assert "is not submitted again for a better image" in caplog.text


async def test_a_submit_that_the_account_cannot_pay_leaves_the_image(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """The run halts; the next one submits it, with its checks, once there are credits."""
    hosted.balance = 7.0
    options = checked | {"until_clean": 2, "checks": Judge(found=[LEFT, CLEAN])}
    with pytest.raises(InsufficientCreditsError):
        await collect(client, [URL], **options)
    assert files(tmp_path / "out") == {"poster.jpg"}
    hosted.balance = 100.0
    (outcome,) = await collect(client, [URL], **options | {"until_clean": 1, "verify": False})
    assert (outcome.verdict, len(hosted.tasks)) == (CLEAN, 2)


@pytest.mark.parametrize("after", [False, True], ids=["before commit", "after commit"])
async def test_attempts_that_die_at_any_commit_are_resumed(
    client: Any, hosted: Any, checked: Any, tmp_path: Path, *, after: bool
) -> None:
    """Never more of them than allowed; an image is in its place as soon as there was one."""
    for number in itertools.count(1):
        path, folder = tmp_path / f"{number}.sqlite3", tmp_path / f"{number}"
        options = checked | {"journal": path, "directory": folder, "until_clean": 3}
        fate, before = Fate(number, after), hosted.count("generate")
        judge = JudgeOfAttempts(found=[LEFT, DAMAGED, CLEAN])
        try:
            async with MortalJournal(path, fate, clock=client.session.clock) as journal:
                await collect(client, [URL], **options | {"journal": journal}, checks=judge)
        except (Crash, BaseExceptionGroup):
            assert fate.is_over
        died_with = await only_job(path, client)
        assert died_with.kept is None or (folder / died_with.kept.file).is_file()
        await collect(client, [URL], **options, checks=judge)
        job = await only_job(path, client)
        assert hosted.count("generate") - before <= 3
        if job.state is JobState.DONE:
            assert (job.kept, verdict_of(job)) == (None, "clean")
            assert {"poster.jpg", "earlier/poster.1.jpg", "earlier/poster.2.jpg"} <= files(folder)
        else:
            assert job.state is JobState.IN_DOUBT
        if not fate.is_over:
            break
    assert number > 15, "three attempts with their checks, and two choices"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"until_clean": 0}, "until_clean must be a whole number from 1"),
        ({"until_clean": 11}, "until_clean must be a whole number from 1 to 10, not 11"),
        ({"until_clean": True}, "until_clean must be a whole number from 1"),
        ({"until_clean": 2, "directory": None}, "verify needs a folder"),
        ({"escalate": "flux-kontext-max"}, "escalate must be a list of models"),
        ({"escalate": ["flux-kontext-ultra"]}, "'flux-kontext-ultra' is no model"),
    ],
    ids=["none", "too many", "a flag", "no folder", "one name", "no model"],
)
def test_the_options_of_further_attempts_are_checked(
    client: Any, checked: Any, options: dict[str, Any], words: str
) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidInput, match=words):
        run_batch(client, [URL], **checked | options)
