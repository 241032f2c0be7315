"""skip_textless: originals without text are copied and not paid for, whatever happens in between."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from check_workers import CLEAN, CheckWorkers
from flux_async import (
    CheckFailed,
    CheckResult,
    DiskFull,
    GenerateRequest,
    InvalidInput,
    Succeeded,
    VerdictKind,
    fetch_missing,
    run_batch,
)
from flux_async.errors import Charge
from flux_async.job_state import JobState
from flux_async.journal.store import Journal
from tests.scenario.test_checks import Crash, Fate, MortalJournal, collect
from tests.support.file_host import JPEG, FileAnswer

PLAIN, POSTER = "https://example.com/plain.jpg", "https://example.com/poster.jpg"
URLS = [PLAIN, POSTER]


def name_by_address(job: Any) -> str:
    """Name a file as its address, so that the checks of a test can tell which one it is."""
    return Path(str(getattr(job.request, "input_image", "made"))).stem


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """The options of a batch that skips images without text."""
    return {
        "journal": tmp_path / "run.sqlite3",
        "directory": tmp_path / "out",
        "name_file": name_by_address,
        "skip_textless": True,
    }


def by_image(outcomes: list[Any]) -> dict[str, Any]:
    """Return the outcomes by the addresses of their images."""
    return {outcome.job.request.input_image: outcome for outcome in outcomes}


async def test_an_image_without_text_is_copied_and_costs_nothing(
    client: Any, hosted: Any, options: Any, tmp_path: Path
) -> None:
    """It succeeds without a task; the other is submitted; progress says what was saved."""
    workers, seen = CheckWorkers(textless=("plain",)), []
    async with run_batch(client, URLS, **options, checks=workers, on_progress=seen.append) as batch:
        found = by_image([outcome async for outcome in batch])
        progress = batch.progress
    plain, poster = found[PLAIN], found[POSTER]
    assert isinstance(plain, Succeeded)
    assert (plain.image, plain.file, plain.reference) == (None, tmp_path / "out" / "plain.jpg", "plain.jpg")
    assert plain.file.read_bytes() == JPEG
    assert (plain.verdict.no_text, plain.verdict.kind) == (True, VerdictKind.CLEAN)
    assert plain.check.saved_credits == 5
    assert poster.image.task_id
    assert poster.verdict is poster.check is None
    assert hosted.count("generate") == 1
    assert (progress.skipped, progress.saved_credits, progress.credits) == (1, 5, 5)
    assert {one.checking_text for one in seen} >= {0, 1}
    assert sorted(url for url in hosted.fetched if url in URLS) == URLS
    async with Journal(options["journal"], clock=client.session.clock) as journal:
        job = (await journal.job(plain.job.key)).job
    assert (job.state, job.charge, job.credits, job.task_id, job.attempts) == (
        *(JobState.DONE, Charge.NO, 0, None, 0),
    )


async def test_it_is_no_job_of_later_runs(client: Any, hosted: Any, options: Any) -> None:
    """Neither with other checks nor without any: nothing is checked for text, checked or paid again."""
    workers = CheckWorkers(textless=("plain",))
    await collect(client, URLS, **options, checks=workers)
    made = workers.made.copy()
    assert await collect(client, URLS, **options, checks=workers) == []
    assert await collect(client, URLS, **options | {"skip_textless": False}) == []
    assert (workers.made, hosted.count("generate")) == (made, 1)
    (checked,) = await collect(client, URLS, **options, checks=workers, preserve=True, verify=True)
    assert checked.job.request.input_image == POSTER
    assert checked.verdict == CLEAN


@pytest.mark.parametrize(
    "error",
    [InvalidInput("It is odd."), CheckFailed("It is odd."), ZeroDivisionError("odd"), OSError("odd")],
    ids=["image", "worker", "bug", "system"],
)
async def test_an_image_that_cannot_be_looked_at_is_submitted(
    client: Any, hosted: Any, options: Any, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """As it would be without the option; the log and the progress say so."""

    def behave(_kind: str, _original: Path) -> None:
        raise error

    async with run_batch(client, [PLAIN], **options, checks=CheckWorkers(behave)) as batch:
        (outcome,) = [outcome async for outcome in batch]
        assert (batch.progress.not_checked_for_text, batch.progress.skipped) == (1, 0)
    assert outcome.image is not None
    assert hosted.count("generate") == 1
    assert "is submitted without a check for text" in caplog.text


async def test_an_original_that_cannot_be_downloaded_is_submitted_after_one_try(
    client: Any, vendor: Any, options: Any
) -> None:
    """The vendor may reach what this machine cannot; without a copy of it nothing could be checked."""
    fetched: list[str] = []

    @asynccontextmanager
    async def fetch(url: str) -> AsyncIterator[FileAnswer]:
        fetched.append(url)
        yield FileAnswer(status=404) if url == PLAIN else FileAnswer()

    vendor.files = fetch
    (outcome,) = await collect(client, [PLAIN], **options, checks=CheckWorkers())
    assert outcome.image is not None
    assert fetched.count(PLAIN) == 1


async def test_an_image_without_text_that_cannot_be_copied_is_submitted(
    client: Any, hosted: Any, options: Any, tmp_path: Path
) -> None:
    """Here it is no image any more when it is copied."""

    def behave(kind: str, original: Path) -> None:
        if kind == "has_text":
            original.write_bytes(b"no image")

    (outcome,) = await collect(client, [PLAIN], **options, checks=CheckWorkers(behave, textless=("plain",)))
    assert outcome.image is not None
    assert [file.name for file in (tmp_path / "out").glob("*.*")] == ["plain.jpg"]


async def test_only_images_are_looked_at(client: Any, hosted: Any, options: Any) -> None:
    """A request without an image is submitted."""
    workers = CheckWorkers(textless=("made",))
    (outcome,) = await collect(client, [GenerateRequest(prompt="A lighthouse")], **options, checks=workers)
    assert outcome.image is not None
    assert not workers.made


async def test_a_full_disk_halts_before_anything_is_paid(client: Any, hosted: Any, options: Any) -> None:
    """The next run goes on."""

    def behave(_kind: str, _original: Path) -> None:
        raise DiskFull("The disk is full.")

    with pytest.raises(DiskFull):
        await collect(client, URLS, **options, checks=CheckWorkers(behave))
    assert hosted.count("generate") == 0
    assert len(await collect(client, URLS, **options, checks=CheckWorkers(textless=("plain",)))) == 2


async def test_a_copy_that_was_moved_away_is_made_again_for_nothing(
    client: Any, hosted: Any, options: Any, tmp_path: Path
) -> None:
    """From the address, which is not the vendor's; what was saved is still known."""
    await collect(client, [PLAIN], **options, checks=CheckWorkers(textless=("plain",)))
    (tmp_path / "out" / "plain.jpg").unlink()
    report = await fetch_missing(client, options["journal"], tmp_path / "out", name_file=name_by_address)
    assert (report.fetched, report.missing) == (1, 0)
    assert (tmp_path / "out" / "plain.jpg").read_bytes() == JPEG
    async with Journal(options["journal"], clock=client.session.clock) as journal:
        (stored,) = await journal.jobs(JobState.DONE)
    assert isinstance(stored.job.checked, CheckResult)
    assert stored.job.checked.saved_credits == 5
    assert hosted.count("generate") == 0


async def test_a_file_of_this_machine_is_copied_too(
    client: Any, hosted: Any, options: Any, tmp_path: Path
) -> None:
    """Byte by byte, and again where the copy is gone; one that changed meanwhile is not."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(JPEG)
    named = options | {"name_file": None}
    (outcome,) = await collect(client, [photo], **named, checks=CheckWorkers(textless=("photo",)))
    assert (outcome.image, outcome.file.read_bytes()) == (None, JPEG)
    outcome.file.unlink()
    assert (await fetch_missing(client, named["journal"], tmp_path / "out")).fetched == 1
    outcome.file.unlink()
    photo.write_bytes(JPEG + b"1")
    outcomes: list[Any] = []

    async def seen(failed: Any) -> None:
        outcomes.append(failed)

    report = await fetch_missing(client, named["journal"], tmp_path / "out", on_outcome=seen)
    assert report.missing == 1
    assert "has changed since it was submitted" in outcomes[0].error.message


@pytest.mark.parametrize("after", [False, True], ids=["before commit", "after commit"])
async def test_a_run_that_dies_at_any_commit_pays_for_no_image_without_text(
    client: Any, hosted: Any, options: Any, tmp_path: Path, *, after: bool
) -> None:
    """The resumed run looks again where nothing was recorded; the copy is whole, and there once."""
    for number in itertools.count(1):
        path, folder = tmp_path / f"{number}.sqlite3", tmp_path / f"{number}"
        made = options | {"directory": folder, "checks": CheckWorkers(textless=("plain",))}
        fate, before = Fate(number, after), hosted.count("generate")
        try:
            async with MortalJournal(path, fate, clock=client.session.clock) as journal:
                await collect(client, URLS, **made | {"journal": journal})
        except (Crash, BaseExceptionGroup):
            assert fate.is_over
        await collect(client, URLS, **made | {"journal": path})
        async with Journal(path, clock=client.session.clock) as journal:
            states = {stored.job.file: stored.job for stored in await journal.jobs(JobState.DONE)}
        assert states["plain.jpg"].charge is Charge.NO
        assert (folder / "plain.jpg").read_bytes() == JPEG
        assert hosted.count("generate") - before <= 1
        assert not list(folder.rglob(".*"))
        if not fate.is_over:
            break
    assert number > 4, "one copy, one intent, answer, result and file"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"skip_textless": True}, "skip_textless needs a folder for the results"),
        ({"skip_textless": "yes"}, "skip_textless must be True or False"),
    ],
    ids=["no folder", "no flag"],
)
async def test_it_is_refused_before_anything_is_sent(
    client: Any, vendor: Any, options: dict[str, Any], words: str
) -> None:
    """A batch that could not keep the copies does not begin."""
    with pytest.raises(InvalidInput, match=words):
        run_batch(client, URLS, **options)
    assert vendor.count("generate") == 0
