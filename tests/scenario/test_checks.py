"""Checks in a batch: results are composed with their originals and verified, whatever happens in between."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest

from check_workers import CLEAN, PREFIX, CheckWorkers
from flux_async import (
    CheckFailed,
    CheckResult,
    DiskFull,
    Failed,
    GenerateRequest,
    InvalidInput,
    LocalImage,
    MissingExtra,
    Succeeded,
    VerdictKind,
    retry,
    run_batch,
    run_checks,
)
from flux_async.batch.check_stage import read_verdict
from flux_async.batch.inputs import as_job
from flux_async.batch.originals import unchanged
from flux_async.batch.result_files import composed_name, promote, result_name, vendor_name
from flux_async.files.image_source import identify_now
from flux_async.job_state import JobSnapshot, JobState, RetryGranted, apply
from flux_async.journal.store import Journal
from flux_async.models import JobKey, TaskId
from tests.support.file_host import JPEG

URLS = [f"https://example.com/{number}.jpg" for number in range(5)]


@pytest.fixture
def checked(tmp_path: Path) -> dict[str, Any]:
    """The options of a batch with checks, in a folder and with a journal."""
    return {
        "journal": tmp_path / "run.sqlite3",
        "directory": tmp_path / "out",
        "preserve": True,
        "verify": True,
    }


async def collect(client: Any, images: Any, **options: Any) -> list[Any]:
    """Run a batch to its end."""
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


def once_each(outcomes: list[Any]) -> bool:
    """Whether there is one outcome for every image."""
    return {outcome.job.request.input_image for outcome in outcomes} == set(URLS) and len(outcomes) == 5


async def test_results_are_composed_and_verified_and_the_vendors_are_kept(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """The outcome waits for both; each original is downloaded once; progress counts what was found."""
    workers, seen = CheckWorkers(), []
    async with run_batch(client, URLS, **checked, checks=workers, on_progress=seen.append) as batch:
        outcomes = [outcome async for outcome in batch]
        progress = batch.progress
    assert once_each(outcomes)
    for outcome in outcomes:
        assert (outcome.file.parent, outcome.file.suffix) == (tmp_path / "out", ".png")
        assert outcome.file.read_bytes() == PREFIX + JPEG
        assert outcome.verdict == CLEAN
        assert outcome.check.is_preserved is True
        assert (tmp_path / "out" / outcome.check.vendor_file).read_bytes() == JPEG
    assert (progress.preserved, dict(progress.verdicts), progress.not_preserved) == (5, {"clean": 5}, 0)
    assert {one.preserving for one in seen} >= {0, 1}
    assert {one.verifying for one in seen} >= {0, 1}
    assert set(workers.made.values()) == {1}
    assert not workers.is_closed, "workers that were given belong to the caller"
    assert sorted(url for url in hosted.fetched if url in URLS) == URLS
    assert not list(tmp_path.rglob(".*"))

    again = await collect(client, URLS, **checked, checks=workers)
    assert (again, set(workers.made.values()), hosted.count("generate")) == ([], {1}, 5)


async def test_a_refusal_keeps_the_vendors_image_with_the_reason(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """It is the file of the outcome, beside the composed ones."""
    workers = CheckWorkers(lambda kind, _: "other content" if kind == "preserve" else None)
    async with run_batch(client, URLS[:1], **checked, checks=workers) as batch:
        (outcome,) = [outcome async for outcome in batch]
    assert (outcome.file.parent, outcome.file.suffix) == (tmp_path / "out", ".jpg")
    assert outcome.file.read_bytes() == (tmp_path / "out" / outcome.check.vendor_file).read_bytes() == JPEG
    assert (outcome.check.is_preserved, outcome.check.not_preserved) == (False, "other content")
    assert outcome.verdict == CLEAN
    assert batch.progress.not_preserved == 1


@pytest.mark.parametrize(
    "error",
    [InvalidInput("It is odd."), CheckFailed("It is odd."), ZeroDivisionError("odd")],
    ids=["image", "worker", "bug"],
)
async def test_a_check_that_fails_concerns_one_image_and_the_next_run_makes_it(
    client: Any, hosted: Any, checked: Any, error: Exception
) -> None:
    """The image is delivered with the reason, the others are checked, nothing is paid again."""

    def behave(_kind: str, _original: Path) -> None:
        if next(calls) == 0:
            raise error

    calls = itertools.count()
    outcomes = await collect(client, URLS, **checked, checks=CheckWorkers(behave))
    assert once_each(outcomes)
    bad = [outcome for outcome in outcomes if outcome.check.problem is not None]
    assert [(one.verdict, one.file.read_bytes()) for one in bad] == [(None, JPEG)]
    assert "odd" in bad[0].check.problem
    workers = CheckWorkers()
    (mended,) = await collect(client, URLS, **checked, checks=workers)
    assert mended.job.key == bad[0].job.key
    assert (mended.verdict, mended.check.problem, mended.check.is_preserved) == (CLEAN, None, True)
    assert (sum(workers.made.values()), hosted.count("generate")) == (2, 5)
    assert len(hosted.fetched) == 10, "five originals and five results, each once"


async def test_a_full_disk_halts_the_run_and_the_next_makes_what_is_missing(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """Each image is paid, downloaded and checked once, and whole; each has one outcome."""

    def behave(kind: str, _original: Path) -> None:
        if kind == "preserve" and next(calls) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    calls, before = itertools.count(), []
    with pytest.raises(DiskFull):
        async with run_batch(client, URLS, **checked, checks=CheckWorkers(behave)) as batch:
            async for outcome in batch:
                before.append(outcome)
    after = await collect(client, URLS, **checked, checks=CheckWorkers())
    assert len(before) == 2
    assert once_each([*before, *after])
    assert all(outcome.check.is_preserved and outcome.verdict for outcome in [*before, *after])
    assert (hosted.count("generate"), len(hosted.fetched)) == (5, 10)
    assert not list(tmp_path.rglob(".*"))


async def test_images_of_a_run_without_checks_are_checked_later(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """Verified where they are; composed, with the vendor's moved to its folder; nothing is paid again."""
    plain = checked | {"preserve": False, "verify": False}
    first = await collect(client, URLS, **plain)
    assert all(outcome.verdict is outcome.check is None for outcome in first)
    verified = await collect(client, [], **checked | {"preserve": False}, checks=CheckWorkers())
    assert once_each(verified)
    assert all((one.verdict, one.file.read_bytes()) == (CLEAN, JPEG) for one in verified)
    composed = await collect(client, URLS, **checked, checks=CheckWorkers())
    assert once_each(composed)
    assert all((one.verdict, one.file.read_bytes()) == (CLEAN, PREFIX + JPEG) for one in composed)
    assert not list((tmp_path / "out").glob("*.jpg"))
    assert len(list((tmp_path / "out" / "vendor").glob("*.jpg"))) == 5
    assert hosted.count("generate") == 5


async def test_saved_images_are_checked_without_a_submit_or_a_poll(
    client: Any, hosted: Any, tmp_path: Path
) -> None:
    """run_checks leaves all else of the journal as it is."""
    journal, out = tmp_path / "run.sqlite3", tmp_path / "out"
    await collect(client, URLS, journal=journal, directory=out)
    async with Journal(journal, clock=client.session.clock) as opened:
        await opened.add_jobs([as_job("https://example.com/not-submitted.jpg")])
    before = len(hosted.seen)
    async with run_checks(client, journal, out, preserve=True, checks=CheckWorkers()) as batch:
        outcomes = [outcome async for outcome in batch]
    assert once_each(outcomes)
    assert all(outcome.check.is_preserved for outcome in outcomes)
    assert len(hosted.seen) == before
    with pytest.raises(InvalidInput, match="nothing to check"):
        run_checks(client, journal, out)


async def test_the_vendors_image_of_an_earlier_run_must_be_the_one_that_was_paid_for(
    client: Any, hosted: Any, checked: Any
) -> None:
    """A file that was edited since is not composed; one that is gone neither."""
    edited, gone = await collect(client, URLS[:2], **checked | {"preserve": False, "verify": False})
    edited.file.write_bytes(b"edited")
    gone.file.unlink()
    outcomes = await collect(client, [], **checked | {"verify": False}, checks=CheckWorkers())
    assert len(outcomes) == 2
    assert all("not in" in outcome.check.problem for outcome in outcomes)
    assert edited.file.read_bytes() == b"edited"


def test_a_local_file_must_not_have_changed_since_it_was_submitted(tmp_path: Path) -> None:
    """Else a result would be composed with another image."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(JPEG)
    image = identify_now(LocalImage(path=photo))
    assert unchanged(image) == photo
    photo.write_bytes(JPEG + b"1")
    with pytest.raises(InvalidInput, match="has changed since it was submitted"):
        unchanged(image)
    photo.unlink()
    with pytest.raises(InvalidInput, match="cannot be read"):
        unchanged(image)


async def test_only_results_that_were_made_of_an_image_are_checked(
    client: Any, hosted: Any, checked: Any
) -> None:
    """A generated image has no original: it succeeds, and no run comes back to it."""
    workers = CheckWorkers()
    (outcome,) = await collect(client, [GenerateRequest(prompt="A lighthouse")], **checked, checks=workers)
    assert isinstance(outcome, Succeeded)
    assert (outcome.check, workers.made) == (None, Counter())
    assert await collect(client, [], **checked, checks=workers) == []


async def test_images_with_text_left_are_paid_again_and_the_earlier_ones_are_kept(
    client: Any, hosted: Any, checked: Any, tmp_path: Path
) -> None:
    """Only those of the verdict, and only once the user says so; a run without that pays for none."""
    left = attrs.evolve(CLEAN, kind=VerdictKind.TEXT_LEFT, text_left=0.4)
    await collect(client, URLS[:2], **checked, checks=CheckWorkers(verdict=left))
    await collect(client, URLS[2:], **checked, checks=CheckWorkers())
    folder, journal = tmp_path / "out", checked["journal"]
    assert not (await retry(client, journal, damaged=True)).to_submit
    planned = await retry(client, journal, text_left=True, damaged=True, dry_run=True)
    assert await collect(client, URLS, **checked, checks=CheckWorkers()) == []
    assert (planned.to_submit, hosted.count("generate")) == (array("q", [1, 2]), 5)
    assert (await retry(client, journal, text_left=True)).submits == planned.submits
    assert len(list(folder.glob("*.png"))) == 5, "kept where they are until there are new ones"
    outcomes = await collect(client, URLS, **checked, checks=CheckWorkers())
    assert {outcome.job.request.input_image for outcome in outcomes} == set(URLS[:2])
    assert all(outcome.verdict == CLEAN and outcome.file.is_file() for outcome in outcomes)
    assert hosted.count("generate") == 7
    for outcome in outcomes:
        stem = outcome.file.stem
        assert (folder / "earlier" / f"{stem}.1.png").read_bytes() == PREFIX + JPEG
        assert (folder / "earlier" / f"{stem}.1.vendor.jpg").read_bytes() == JPEG
    assert len(list((folder / "earlier").iterdir())) == 4


def two_results(file: str, earlier: str = "a.png") -> JobSnapshot:
    """Make a job whose second result is to be compared with its first one."""
    first = JobSnapshot(
        key=JobKey("k"), state=JobState.DONE, attempts=1, task_id=TaskId("t1"), api="jobs", file=earlier
    )
    again = apply(first, RetryGranted(at=1))
    return attrs.evolve(again, state=JobState.DONE, attempts=2, task_id=TaskId("t2"), file=file)


def test_the_first_move_of_an_earlier_image_counts(tmp_path: Path) -> None:
    """After a crash the file under the name may be of the later attempt already."""
    (tmp_path / "earlier").mkdir()
    (tmp_path / "a.png").write_bytes(b"first")
    (tmp_path / "earlier" / "a.2.jpg").write_bytes(b"second")
    job = two_results("earlier/a.2.jpg")
    for _ in range(2):
        found = promote(tmp_path, job)
        assert (found.file, found.vendor_file, found.leftover) == (
            "a.jpg",
            None,
            {"a.png", "earlier/a.2.jpg"},
        )
        assert (tmp_path / "a.jpg").read_bytes() == b"second"
        assert (tmp_path / "earlier" / "a.1.png").read_bytes() == b"first"
        (tmp_path / "a.png").write_bytes(b"second")
    with pytest.raises(InvalidInput, match="no two results"):
        promote(tmp_path, attrs.evolve(job, kept=None))


def test_files_that_are_gone_are_left_out(tmp_path: Path) -> None:
    """The next run fetches the result again, as it is paid."""
    found = promote(tmp_path, two_results("earlier/a.2.jpg"))
    assert found.file == "a.jpg"
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("file", "vendor"),
    [
        ("a.png", "vendor/a.png"),
        ("b/a.1", "vendor/b/a.1"),
        ("earlier/a.2.jpg", "earlier/a.2.vendor.jpg"),
        ("earlier/a.2", "earlier/a.2.vendor"),
    ],
)
def test_the_vendors_image_of_an_attempt_lies_beside_it(file: str, vendor: str) -> None:
    """That of the result has a folder of its own."""
    assert vendor_name(file) == vendor_name(vendor) == vendor
    assert composed_name(vendor) == file


def test_the_files_of_another_attempt_have_its_number() -> None:
    """Those of the only one have the name of the result."""
    job = two_results("a.png")
    assert result_name("b/a.jpg", job) == "earlier/b/a.2"
    assert result_name("a.v1", attrs.evolve(job, kept=None)) == "a.v1"


class Crash(BaseException):
    """The process has ended."""


@attrs.define(eq=False, slots=False)
class Fate:
    """The n-th commit, before or after which the process ends."""

    number: int
    after: bool
    seen: int = 0
    is_over: bool = False

    def reach(self, *, after: bool) -> None:
        """End the process here, if this is the point."""
        if self.is_over:
            raise Crash
        self.seen += after == self.after
        if after == self.after and self.seen == self.number:
            self.is_over = True
            raise Crash


class MortalJournal(Journal):
    """A journal whose process may end at any write."""

    def __init__(self, path: Path, fate: Fate, **options: Any) -> None:
        super().__init__(path, **options)
        self.fate = fate

    async def record(self, *what: Any, **how: Any) -> None:
        """Write, with a possible end before and after."""
        self.fate.reach(after=False)
        await super().record(*what, **how)
        self.fate.reach(after=True)


@pytest.mark.parametrize("after", [False, True], ids=["before commit", "after commit"])
async def test_a_run_that_dies_at_any_commit_is_resumed_with_every_file_whole(
    client: Any, hosted: Any, checked: Any, tmp_path: Path, *, after: bool
) -> None:
    """Nothing is paid twice; no check that was recorded is made again; none is missing."""
    for number in itertools.count(1):
        path, folder, workers = tmp_path / f"{number}.sqlite3", tmp_path / f"{number}", CheckWorkers()
        options, fate = checked | {"directory": folder, "checks": workers}, Fate(number, after)
        before = hosted.count("generate")
        try:
            async with MortalJournal(path, fate, clock=client.session.clock) as journal:
                await collect(client, URLS[:2], **options | {"journal": journal})
        except (Crash, BaseExceptionGroup):
            assert fate.is_over
        recorded = await checks_in(path, client)
        await collect(client, URLS[:2], **options | {"journal": path})
        made = await checks_in(path, client)
        in_doubt = 2 - len(made)
        assert all(found.is_preserved and found.verdict for found in made.values())
        assert hosted.count("generate") - before <= 2
        assert in_doubt <= 2
        assert len(list(folder.glob("*.png"))) == len(list(folder.glob("vendor/*.jpg"))) == len(made)
        assert all(file.read_bytes() == PREFIX + JPEG for file in folder.glob("*.png"))
        assert sum(workers.made.values()) <= 2 * len(made) + 2, "at most those in progress are made again"
        assert set(recorded) <= set(made)
        if not fate.is_over:
            break
    assert number > 8, "two intents, answers, results and files, and four checks"


async def checks_in(path: Path, client: Any) -> dict[str, CheckResult]:
    """Return what the checks found that a journal has."""
    async with Journal(path, clock=client.session.clock) as journal:
        return {
            stored.job.key: stored.job.checked
            for stored in await journal.jobs(JobState.DONE)
            if stored.job.checked is not None
        }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preserve": True}, "preserve needs a folder for the results"),
        ({"verify": True}, "verify needs a folder for the results"),
        ({"verify": 1}, "verify must be True or False"),
        ({"preserve": True, "preserve_format": "gif"}, "'gif' is no format"),
    ],
    ids=["no folder", "no folder to verify", "no flag", "no format"],
)
async def test_options_are_checked_before_anything_is_sent(
    client: Any, vendor: Any, options: dict[str, Any], words: str
) -> None:
    """A batch that could not check its results does not begin."""
    with pytest.raises(InvalidInput, match=words):
        run_batch(client, URLS, **options)
    assert vendor.count("generate") == 0


async def test_a_missing_extra_is_named_before_anything_is_paid(
    client: Any, vendor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the first image."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else object())
    with pytest.raises(MissingExtra, match=r"preserve \(cv2 not installed\) needs the extra verify"):
        run_batch(client, URLS, directory=tmp_path, preserve=True)
    assert vendor.count("generate") == 0


async def test_no_result_is_named_like_a_vendors_image(client: Any, hosted: Any, checked: Any) -> None:
    """The folder of the vendor's images is not the caller's; the job is refused, uncharged."""
    options = checked | {"name_file": lambda job: f"Vendor/{job.key}"}
    (outcome,) = await collect(client, URLS[:1], **options, checks=CheckWorkers())
    assert isinstance(outcome, Failed)
    assert "holds the vendor's images" in outcome.error.message
    assert hosted.count("generate") == 0


def test_a_verdict_of_another_release_is_none() -> None:
    """It does not end a run."""
    assert read_verdict({"kind": "splendid"}) is read_verdict({}) is read_verdict(None) is None
    assert read_verdict({"kind": "clean", "no_text": False, "original_size": [1, 2]}) is None
