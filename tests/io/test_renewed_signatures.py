"""Image addresses with a new signature each day: one image, one job, one charge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flux_async import EditRequest, Job, JobConflictError, JobKey, Journal
from flux_async.api.stored_requests import read_image, store_request
from flux_async.job_state import (
    Event,
    JobState,
    Problem,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitRejected,
    SubmitUnknown,
    TaskSucceeded,
)
from flux_async.journal.adding import Added
from flux_async.models import TaskId
from journal_records import happened, rows

IMAGE = "https://bucket.example/poster.jpg"
PROBLEM = Problem(type="BadRequest", code=422, message="No.")
ACCEPTED = SubmitAccepted(at=2.0, task_id=TaskId("t1"))
DONE = (
    ACCEPTED,
    TaskSucceeded(at=3.0, result_url="https://files.example/t.jpg"),
    Saved(at=4.0, file="a.jpg"),
)


def signed(day: int, image: str = IMAGE) -> str:
    return f"{image}?X-Amz-Date={day}&X-Amz-Signature={day:x}"


def job(day: int, key: str | None = "k", **options: str) -> Job:
    request = EditRequest.text_removal(signed(day), **options)
    return Job(request=request) if key is None else Job(request=request, key=JobKey(key))


async def live(journal: Journal, wanted: Job, *events: Event) -> None:
    """Add a job and take it through ``events``."""
    (stored,) = await journal.add_jobs([wanted])
    await happened(journal, stored, *events)


async def add_entries(
    journal: Journal, *jobs: Job, pays_again: bool = False, chosen: bool = False
) -> list[Added]:
    entries = [(job.key, store_request(job.request)) for job in jobs]
    return await journal.add_entries(entries, sources={}, is_chosen=lambda _: chosen, pays_again=pays_again)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def test_a_pending_job_gets_the_newer_address_with_an_event(path: Path) -> None:
    """The same key with a new signature is the same job; it is submitted with the valid address."""
    async with Journal(path) as journal:
        await live(journal, job(1))
        (stored,) = await journal.add_jobs([job(2)])
        assert read_image(stored.request) == signed(2)
        assert (stored.number, await journal.job("k")) == (1, stored)
    ((kind, detail),) = rows(path, "SELECT type, detail FROM event")
    assert (kind, json.loads(str(detail))) == ("AddressRenewed", {"before": signed(1)})


@pytest.mark.parametrize(
    "events",
    [
        [SubmitIntended(api="kontext", at=1.0), ACCEPTED],
        [SubmitIntended(api="kontext", at=1.0), *DONE],
        [SubmitIntended(api="kontext", at=1.0), SubmitUnknown(at=2.0, problem=PROBLEM)],
    ],
)
async def test_a_submitted_job_keeps_its_address(path: Path, events: list[Event]) -> None:
    """A live or finished attempt is compared with the address that was sent."""
    async with Journal(path) as journal:
        await live(journal, job(1), *events)
        (stored,) = await journal.add_jobs([job(2)])
        assert read_image(stored.request) == signed(1)
    assert not rows(path, "SELECT * FROM event WHERE type = 'AddressRenewed'")


async def test_a_failed_job_is_retried_with_the_newer_address_and_its_old_attempt_keeps_the_old_one(
    path: Path,
) -> None:
    """The attempt keeps the address that was sent."""
    async with Journal(path) as journal:
        await live(
            journal, job(1), SubmitIntended(api="kontext", at=1.0), SubmitRejected(at=2.0, problem=PROBLEM)
        )
        (stored,) = await journal.add_jobs([job(2)])
        assert stored.job.state is JobState.FAILED
        assert read_image(stored.request) == signed(2)
        assert await journal.input_urls(stored.number) == [signed(1)]


async def test_a_job_of_the_current_run_keeps_its_address(path: Path) -> None:
    """The run would submit the old address while the journal has the new one."""
    async with Journal(path) as journal:
        await live(journal, job(1))
        (stored,) = await journal.add_jobs([job(2)], is_chosen=lambda _: True)
        (twice,) = await journal.add_jobs([job(3), job(4)])
    assert read_image(stored.request) == signed(1)
    assert read_image(twice.request) == signed(3)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (
            Job(request=EditRequest.text_removal(signed(1, f"{IMAGE}x")), key=JobKey("k")),
            "inputImage differs",
        ),
        (Job(request=EditRequest.text_removal(f"{signed(1)}&v=2"), key=JobKey("k")), "inputImage differs"),
        (job(1, model="flux-kontext-max"), "model differs"),
        (job(2, prompt="Other words"), "enableTranslation and inputImage and prompt differ"),
    ],
)
async def test_a_key_with_another_request_is_a_conflict_that_names_the_difference(
    path: Path, other: Job, what: str
) -> None:
    """Another path, version, model or prompt is another request, with any signature."""
    async with Journal(path) as journal:
        await live(journal, job(1))
        with pytest.raises(JobConflictError, match=what):
            await journal.add_jobs([other])
        ((number, _, conflict, *_),) = await add_entries(journal, other)
        assert (number, what in str(conflict)) == (None, True)


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_without_a_key_a_new_signature_of_a_paid_image_is_noticed(path: Path, in_doubt: bool) -> None:
    """It is not added, and the paid job is returned; with permission it becomes a job of its own."""
    unknown = SubmitUnknown(at=2.0, problem=PROBLEM)
    async with Journal(path) as journal:
        await live(
            journal, job(1, None), SubmitIntended(api="kontext", at=1.0), *([unknown] if in_doubt else DONE)
        )
        ((number, _, _, paid_as, _),) = await add_entries(journal, job(2, None))
        assert (number, paid_as.job.key) == (None, job(1, None).key)
        assert sum((await journal.counts()).values()) == 1
        ((number, _, _, paid_as, _),) = await add_entries(journal, job(2, None), pays_again=True)
        assert (number, paid_as.job.key) == (2, job(1, None).key)


async def test_a_batch_warns_of_images_that_it_pays_for_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The library adds the jobs, and logs one line with their number."""
    async with Journal(path) as journal:
        await live(journal, job(1, None), SubmitIntended(api="kontext", at=1.0), *DONE)
        assert len(await journal.add_jobs([job(2, None), job(3, None)])) == 2
        await journal.add_jobs([job(2, None)])
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()[:6]) == ("WARNING", "2 jobs")


async def test_two_signatures_of_one_image_in_one_list_are_noticed(path: Path) -> None:
    """Both would be paid; the second is refused, in the same chunk or in a later one."""
    async with Journal(path) as journal:
        first, second = await add_entries(journal, job(1, None), job(2, None))
        assert (first[0], second[0]) == (1, None)
        (third,) = await add_entries(journal, job(3, None), chosen=True)
        assert third[0] is None


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (job(1, "a"), job(2, "b")),  # two keys of the caller's own
        (job(1, None), job(2, None, model="flux-kontext-max")),
        (job(1, None), Job(request=EditRequest.text_removal(f"{signed(2)}&v=2"))),
    ],
)
async def test_another_request_for_the_image_is_added(path: Path, earlier: Job, later: Job) -> None:
    """Two keys of the caller's own, another model, another version of the file: no warning."""
    async with Journal(path) as journal:
        await live(journal, earlier, SubmitIntended(api="kontext", at=1.0), *DONE)
        ((number, *_),) = await add_entries(journal, later)
        assert number == 2


async def test_a_failed_or_pending_job_of_an_earlier_run_causes_no_warning(path: Path) -> None:
    """Nothing was paid for its address."""
    async with Journal(path) as journal:
        await live(journal, job(1, None))
        ((number, *_),) = await add_entries(journal, job(2, None))
        assert number == 2


# --- addresses that differ in the rest of their query -----------------------------------------------------


def at(url: str, key: str | None = None) -> Job:
    request = EditRequest.text_removal(url)
    return Job(request=request) if key is None else Job(request=request, key=JobKey(key))


async def paid(path: Path, *jobs: Job) -> None:
    """An earlier run."""
    async with Journal(path) as journal:
        for one in jobs:
            await live(
                journal, one, SubmitIntended(api="kontext", at=1.0), SubmitUnknown(at=2.0, problem=PROBLEM)
            )


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (f"{IMAGE}?id=17", f"{IMAGE}?id=18"),
        (f"{IMAGE}?id=17", IMAGE),
        (IMAGE, f"{IMAGE}?id=17"),
        (IMAGE, f"{IMAGE}?odd=1a2b&X-Amz-Signature=1"),
    ],
)
async def test_an_address_that_differs_only_in_its_query_is_noticed(
    path: Path, earlier: str, later: str
) -> None:
    """With any parameter name; only the caller can decide whether it is another image."""
    await paid(path, at(earlier))
    async with Journal(path) as journal:
        entries = [(at(later).key, store_request(at(later).request))]
        for pays in (False, True):
            (added,) = await journal.add_entries(
                entries, sources={}, is_chosen=lambda _: False, pays_again=False, pays_similar=pays
            )
            assert (added.number is not None, added.paid_as) == (pays, None)
            assert added.similar is not None
            assert added.similar.job.key == at(earlier).key


async def test_only_jobs_that_earlier_runs_paid_are_noticed(path: Path) -> None:
    """A list of ``?id=1``, ``?id=2`` … does not warn of its own rows, also when it is given again."""
    ids = [at(f"{IMAGE}?id={n}") for n in range(130)]
    await paid(path, *ids[:120])
    async with Journal(path) as journal:
        added = await add_entries(journal, *ids)
        assert [one.similar for one in added] == [None] * 130
        (other,) = await add_entries(journal, at("https://bucket.example/other.jpg?id=1"))
        assert other.similar is None


@pytest.mark.parametrize(
    "later",
    [
        at(f"{IMAGE}?id=18", "mine"),
        Job(request=EditRequest.text_removal(f"{IMAGE}?id=18", model="flux-kontext-max")),
    ],
)
async def test_a_job_with_a_key_of_its_own_or_another_request_is_not_similar(path: Path, later: Job) -> None:
    """A key of the caller's own names the image."""
    await paid(path, at(f"{IMAGE}?id=17"))
    async with Journal(path) as journal:
        (added,) = await add_entries(journal, later)
        assert (added.number, added.similar) == (2, None)


async def test_a_batch_warns_of_addresses_that_differ_only_in_their_query(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The library adds the jobs; one line of the log has their number."""
    await paid(path, at(f"{IMAGE}?id=17"))
    async with Journal(path) as journal:
        await journal.add_jobs([at(f"{IMAGE}?id={n}") for n in range(2)])
    (record,) = caplog.records
    assert record.getMessage().startswith("2 jobs have addresses that differ only in the query")


@pytest.mark.parametrize("earlier", [at(IMAGE), at(IMAGE, "mine")])
@pytest.mark.parametrize("later", [f"{IMAGE}?X-Amz-Signature=1", IMAGE.replace("poster", "%70oster")])
async def test_an_image_that_was_done_without_a_signature_is_the_same_image_with_one(
    path: Path, earlier: Job, later: str
) -> None:
    """Also in another spelling, and if it had a key then."""
    await paid(path, earlier)
    async with Journal(path) as journal:
        (added,) = await add_entries(journal, at(later))
        assert (added.number, added.paid_as.job.key) == (None, earlier.key)


async def test_a_list_without_its_column_of_keys_pays_for_nothing_again(path: Path) -> None:
    """The same addresses with keys yesterday and without today are the same images."""
    await paid(path, at(IMAGE, "mine"))
    async with Journal(path) as journal:
        (added,) = await add_entries(journal, at(IMAGE))
        assert (added.number, added.paid_as.job.key) == (None, "mine")


async def test_addresses_that_differ_in_a_fragment_are_one_job(path: Path) -> None:
    """A fragment never reaches a server; it is not sent either."""
    async with Journal(path) as journal:
        first, second, third = await add_entries(journal, at(f"{IMAGE}#1"), at(f"{IMAGE}#2"), at(IMAGE))
        assert first[0] == second[0] == third[0] == 1
        stored = await journal.job(at(IMAGE).key)
        assert stored is not None
        assert read_image(stored.request) == IMAGE


async def test_a_chunk_of_new_jobs_has_the_numbers_and_addresses_of_jobs_added_one_by_one(
    tmp_path: Path,
) -> None:
    """A long list is added in chunks; a chunk with known or repeated entries is added job by job."""
    new = [at(f"https://bucket.example/{n}.jpg?id={n}") for n in range(3)]
    at_once, one_by_one = tmp_path / "a.sqlite3", tmp_path / "b.sqlite3"
    async with Journal(at_once) as journal:
        added = await add_entries(journal, *new)
        assert [one.number for one in added] == [1, 2, 3]
        added = await add_entries(journal, new[1], at("https://bucket.example/9.jpg"), new[1])
        assert [one.number for one in added] == [2, 4, 2]
    async with Journal(one_by_one) as journal:
        for one in (*new, at("https://bucket.example/9.jpg")):
            await add_entries(journal, one, one)
    columns = "SELECT number, key, request, address, bare_address FROM job"
    assert rows(at_once, columns) == rows(one_by_one, columns)
