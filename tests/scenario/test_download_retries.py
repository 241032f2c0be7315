"""Downloads of paid results that fail: tried again in the same run, then in the next; never paid again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    BudgetExhausted,
    DownloadError,
    Failed,
    FluxClient,
    Journal,
    Limits,
    ResultExpired,
    Succeeded,
    TaskId,
    run_batch,
)
from flux_async.batch.run_context import MOST_RETRIES_AT_ONCE
from flux_async.job_state import JobState, SubmitAccepted, SubmitIntended, TaskSucceeded, apply
from flux_async.transport import FileStream
from jobs_wire import segment_of
from tests.support.file_host import JPEG, FileAnswer

URLS = [f"https://example.com/{number}.jpg" for number in range(40)]
DAY_S = 86_400.0


GOOD, NOT_FOUND = FileAnswer(), FileAnswer(404, body=b"")


@attrs.define
class FileHosts:
    """Answers requests for files, as ``behave`` says for an address and a time."""

    clock: Any
    behave: Callable[[str, float], FileAnswer]
    began: float = attrs.field(init=False)
    asked: list[tuple[float, str]] = attrs.field(factory=list)
    takes_s: Callable[[str], float] = lambda _: 0.0
    open_now: int = 0
    most_open: int = 0

    def __attrs_post_init__(self) -> None:
        self.began = self.clock.now

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[FileStream]:
        """Open a file."""
        self.asked.append((self.clock.now - self.began, url))
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            await self.clock.sleep(self.takes_s(url))
            yield self.behave(url, self.clock.now - self.began)
        finally:
            self.open_now -= 1


@pytest.fixture
def hosts(vendor: Any, clock: Any, make: Any) -> Callable[..., FileHosts]:
    """Put file hosts behind the client; the vendor has no fresh links."""

    def put(behave: Callable[[str, float], FileAnswer], **options: Any) -> FileHosts:
        made = FileHosts(clock, behave, **options)
        vendor.script["download-url"] = [make.answer(None, 422, msg="url is wrong")]
        vendor.files = made.fetch
        return made

    return put


async def collect(client: FluxClient, images: Any, **options: Any) -> list[Any]:
    """Run a batch to its end."""
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


async def states_of(client: FluxClient, path: Path) -> Counter[JobState]:
    """Count the jobs of a journal by their states."""
    async with Journal(path, clock=client.session.clock) as journal:
        return Counter({state: len(found) for state in JobState if (found := await journal.jobs(state))})


TROUBLE = {
    "a CDN that lags": NOT_FOUND,
    "a CDN that says gone": FileAnswer(410, body=b""),
    "a signature that is not valid yet": FileAnswer(403, body=b""),
    "a host that is down": FileAnswer(503, body=b""),
    "a host that is busy": FileAnswer(429, headers={"retry-after": "20"}, body=b""),
    "an empty answer": FileAnswer(body=b""),
    "a web page": FileAnswer(body=b"<!DOCTYPE html>"),
    "half an image": FileAnswer(body=JPEG[:-40]),
    "fewer bytes than told": FileAnswer(headers={"content-length": "999"}),
}


UNTIL = {"kontext": "5 October", "jobs": "22 September, 14:30 UTC"}
"""14 days after the submit, or 24 hours."""


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
async def test_a_result_that_comes_late_is_fetched_in_the_same_run(
    client: Any, vendor: Any, clock: Any, hosts: Any, tmp_path: Path, trouble: FileAnswer
) -> None:
    """Whatever its host answers for half a minute, each image is paid once and arrives."""
    files = hosts(lambda _url, at: GOOD if at > 45 else trouble)
    outcomes = await collect(client, URLS[:3], directory=tmp_path)
    assert [type(outcome) for outcome in outcomes] == [Succeeded] * 3
    assert all(outcome.file.read_bytes() == JPEG for outcome in outcomes)
    assert vendor.count("generate") == 3
    assert clock.now - files.began < 100
    assert len(files.asked) < 60


@pytest.mark.both_apis
async def test_the_run_ends_when_a_download_has_had_its_time_and_the_next_run_goes_on(
    client: Any, vendor: Any, clock: Any, hosts: Any, tmp_path: Path
) -> None:
    """The error says that the result is paid, how long it is available, and what to do."""
    files = hosts(lambda _url, _at: NOT_FOUND)
    [outcome] = await collect(client, URLS[:1], directory=tmp_path, journal=tmp_path / "j", patience=120)
    assert isinstance(outcome, Failed)
    assert (type(outcome.error), outcome.error.http_status, outcome.error.charge) == (
        DownloadError,
        404,
        "yes",
    )
    tries = sum(url.endswith(".jpg") for _, url in files.asked)
    assert str(outcome.error) == (
        f"Download failed for 0.jpg: files.example answered HTTP 404 ({tries} attempts). "
        f"The result is paid and stays available until {UNTIL[vendor.api]}. "
        "Run the batch again on the same journal to fetch it."
    )
    assert 120 < clock.now - files.began < 160
    assert await states_of(client, tmp_path / "j") == {JobState.GENERATED: 1}
    hosts(lambda _url, _at: GOOD)
    [again] = await collect(client, URLS[:1], directory=tmp_path, journal=tmp_path / "j")
    assert isinstance(again, Succeeded)
    assert vendor.count("generate") == 1


async def test_waiting_downloads_hold_no_slot_for_tasks_in_flight(
    client: Any, vendor: Any, clock: Any, hosts: Any, tmp_path: Path
) -> None:
    """With two tasks in flight at most and a file host that is down, ten images are submitted."""
    files = hosts(lambda _url, at: GOOD if at > 400 else NOT_FOUND)
    narrow = FluxClient("k", transport=vendor, clock=clock, limits=Limits(in_flight=2))
    async with narrow:
        outcomes = await collect(narrow, URLS[:10], directory=tmp_path)
    assert {type(outcome) for outcome in outcomes} == {Succeeded}
    submits = [at - files.began for at, request in vendor.seen if segment_of(request.path) == "generate"]
    assert len(submits) == 10
    assert max(submits) < 200


async def test_a_host_that_is_down_does_not_keep_others_waiting(
    client: Any, vendor: Any, hosts: Any, tmp_path: Path
) -> None:
    """Of eight downloads at once at most four are tries of what has failed before."""

    def behave(url: str, at: float) -> FileAnswer:
        return NOT_FOUND if is_bad(url) and at < 300 else GOOD

    def is_bad(url: str) -> bool:
        return int(url.rpartition("/t")[2].removesuffix(".jpg")) < 20

    files = hosts(behave, takes_s=lambda url: 10.0 if is_bad(url) else 0.1)
    outcomes = await collect(client, URLS, directory=tmp_path)
    assert {type(outcome) for outcome in outcomes} == {Succeeded}
    good = [at for at, url in files.asked if not is_bad(url)]
    assert len(good) == 20
    assert max(good) < 100
    assert files.most_open == 8
    asked = [url for _, url in files.asked]
    retried = [at for number, (at, url) in enumerate(files.asked) if url in asked[:number]]
    assert max(sum(at <= other < at + 10 for other in retried) for at in retried) <= MOST_RETRIES_AT_ONCE


async def test_a_busy_run_goes_on_trying(
    client: Any, vendor: Any, clock: Any, hosts: Any, tmp_path: Path
) -> None:
    """An outage longer than the patience costs no image while the run has other work."""
    files = hosts(lambda _url, at: GOOD if at > 900 else NOT_FOUND)

    async def images() -> AsyncIterator[str]:
        yield URLS[0]
        await clock.sleep(1000)
        yield URLS[1]

    outcomes = await collect(client, images(), directory=tmp_path, patience=60)
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Succeeded]
    assert clock.now - files.began < 1100


async def test_many_results_of_a_host_that_is_down_end_within_their_time(
    client: Any, vendor: Any, clock: Any, hosts: Any, tmp_path: Path
) -> None:
    """Downloads that wait for a slot are not waited for beyond the patience."""
    files = hosts(lambda _url, _at: NOT_FOUND, takes_s=lambda _: 20.0)
    outcomes = await collect(client, URLS, directory=tmp_path, patience=100)
    assert {type(outcome) for outcome in outcomes} == {Failed}
    assert len(outcomes) == 40
    assert clock.now - files.began < 40 / 8 * 20 + 100 + 30 + 2 * 20 + 60
    assert vendor.count("generate") == 40


async def test_leaving_the_run_does_not_wait_for_downloads(
    client: Any, vendor: Any, clock: Any, hosts: Any, tmp_path: Path
) -> None:
    """The results stay where they are; a later run fetches them."""
    hosts(lambda url, _at: NOT_FOUND if "t1." in url else GOOD)
    async with run_batch(client, URLS[:2], directory=tmp_path, journal=tmp_path / "j") as batch:
        async for _ in batch:
            await clock.sleep(30)
            left_at = clock.now
            break
    assert clock.now - left_at < 1
    hosts(lambda _url, _at: GOOD)
    assert (await states_of(client, tmp_path / "j"))[JobState.GENERATED] == 1
    assert [
        type(outcome) for outcome in await collect(client, [], directory=tmp_path, journal=tmp_path / "j")
    ] == [Succeeded]
    assert vendor.count("generate") == 2


async def test_cancelling_the_run_ends_it_at_once(
    client: Any, vendor: Any, clock: Any, hosts: Any, tmp_path: Path
) -> None:
    """Also while nothing but downloads is waited for."""
    files, ended_at = hosts(lambda _url, _at: NOT_FOUND), 0.0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:

            async def end() -> None:
                while len(files.asked) < 8:
                    await clock.sleep(1)
                nonlocal ended_at
                ended_at = clock.now
                limit.reschedule(0)

            group.create_task(end())
            await collect(client, URLS[:2], directory=tmp_path, journal=tmp_path / "j")
    assert clock.now - ended_at < 1
    assert await states_of(client, tmp_path / "j") == {JobState.GENERATED: 2}


async def paid_before(client: FluxClient, path: Path, *, days: float) -> None:
    """Write a journal in which the first image was submitted, and had its result, some days ago."""
    async with Journal(path, clock=client.session.clock) as journal:
        await journal.aclose()
        await journal.open(account=client.fingerprint)
        [stored] = await journal.add_jobs([_job(URLS[0])])
        at, job = client.session.clock.wall() - days * DAY_S, stored.job
        for event in (
            SubmitIntended(api="kontext", at=at),
            SubmitAccepted(at=at, task_id=TaskId("old")),
            TaskSucceeded(at=at, result_url="https://files.example/told-then.jpg"),
        ):
            job = apply(job, event)
            await journal.record(stored.number, job, event)


def _job(url: str) -> Any:
    from flux_async.batch.inputs import as_job  # noqa: PLC0415 - only here

    return as_job(url)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@pytest.mark.parametrize(
    ("days", "kind", "state"), [(13.9, DownloadError, "generated"), (14.1, ResultExpired, "failed")]
)
async def test_a_result_is_expired_only_after_14_days(
    client: Any, vendor: Any, hosts: Any, tmp_path: Path, status: int, days: float, kind: type, state: str
) -> None:
    """The age of its task decides, whatever the status is."""
    hosts(lambda _url, _at: FileAnswer(status, body=b""))
    await paid_before(client, tmp_path / "j", days=days)
    [outcome] = await collect(client, [], directory=tmp_path, journal=tmp_path / "j")
    assert isinstance(outcome, Failed)
    assert type(outcome.error) is kind
    assert await states_of(client, tmp_path / "j") == {JobState(state): 1}


async def test_a_host_that_is_down_after_14_days_proves_nothing(
    client: Any, vendor: Any, hosts: Any, tmp_path: Path
) -> None:
    """Only a refusal does."""
    hosts(lambda _url, _at: FileAnswer(503, body=b""))
    await paid_before(client, tmp_path / "j", days=20)
    [outcome] = await collect(client, [], directory=tmp_path, journal=tmp_path / "j")
    assert type(outcome.error) is DownloadError
    assert await states_of(client, tmp_path / "j") == {JobState.GENERATED: 1}


async def test_a_result_whose_record_cannot_be_read_is_fetched_from_its_known_address(
    client: Any, vendor: Any, make: Any, hosts: Any, tmp_path: Path
) -> None:
    """A record that has gone, or an API that is down, does not hold back a paid result."""
    files = hosts(lambda _url, _at: GOOD)
    vendor.script["record-info"] = [make.answer(None, 422, msg="The record does not exist")]
    await paid_before(client, tmp_path / "j", days=3)
    [outcome] = await collect(client, [], directory=tmp_path, journal=tmp_path / "j")
    assert isinstance(outcome, Succeeded)
    assert [url for _, url in files.asked] == ["https://files.example/told-then.jpg"]


async def test_a_transport_that_raises_anything_is_tried_again(
    client: Any, vendor: Any, hosts: Any, tmp_path: Path
) -> None:
    """A caller's own transport may fail in unforeseen ways; the result is paid all the same."""

    def behave(_url: str, at: float) -> FileAnswer:
        if at < 40:
            raise RuntimeError("unforeseen")
        return GOOD

    hosts(behave)
    [outcome] = await collect(client, URLS[:1], directory=tmp_path)
    assert isinstance(outcome, Succeeded)


async def test_the_progress_counts_what_waits_for_its_download(
    client: Any, vendor: Any, hosts: Any, tmp_path: Path
) -> None:
    """It is being fetched until it is here; in the end nothing is."""
    hosts(lambda _url, at: GOOD if at > 60 else NOT_FOUND)
    seen = []
    outcomes = await collect(client, URLS[:3], directory=tmp_path, on_progress=seen.append)
    assert len(outcomes) == 3
    assert max(progress.fetching for progress in seen) == 3
    assert max(progress.retrying for progress in seen) == 3
    assert (seen[-1].retrying, seen[-1].fetching, seen[-1].succeeded, seen[-1].seen) == (0, 0, 3, 3)


@pytest.mark.parametrize("file", [None, "run.sqlite3"])
async def test_a_result_that_was_not_fetched_is_paid_once_with_and_without_a_file(
    client: Any, vendor: Any, hosts: Any, tmp_path: Path, file: str | None
) -> None:
    """Without a journal file the advice names the task and how to fetch it; a new run would pay again."""
    hosts(lambda _url, _at: NOT_FOUND)
    journal = ":memory:" if file is None else tmp_path / file
    [outcome] = await collect(client, URLS[:1], directory=tmp_path / "out", journal=journal, patience=30)
    assert isinstance(outcome.error, DownloadError)
    task_id, text = outcome.error.task_id, str(outcome.error)
    assert task_id is not None
    assert ("same journal" in text) is (file is not None)
    assert ("a new run of the batch pays again" in text) is (file is None)
    hosts(lambda _url, _at: GOOD)
    if file is None:
        assert f"`image = await client.wait('{task_id}')` and `await client.download(image, path)`" in text
        saved = await client.download(await client.wait(task_id), tmp_path / "a.jpg")
        assert saved.path.read_bytes() == JPEG
    else:
        await collect(client, URLS[:1], directory=tmp_path / "out", journal=journal)
    assert vendor.count("generate") == 1


async def test_a_halt_without_a_journal_file_names_the_second_charge(client: Any, hosts: Any) -> None:
    """The same call again would pay for all images; before anything was paid there is nothing to name."""
    hosts(lambda _url, _at: GOOD)
    for budget, warns in ((1, False), (6, True)):
        with pytest.raises(BudgetExhausted) as raised:
            await collect(client, URLS[:2], max_credits=budget)
        text = str(raised.value)
        assert "same call again" not in text
        assert ("a new run pays again for images that this one has paid" in text) is warns


async def test_a_halt_with_a_journal_file_says_to_run_again(client: Any, hosts: Any, tmp_path: Path) -> None:
    """Nothing is paid twice then."""
    hosts(lambda _url, _at: GOOD)
    with pytest.raises(BudgetExhausted, match="Run the same call again with a larger max_credits") as raised:
        await collect(client, URLS[:2], max_credits=6, journal=tmp_path / "run.sqlite3")
    assert "in memory" not in str(raised.value)
