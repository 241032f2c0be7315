"""A journal with tasks of both APIs: each is polled, confirmed and adopted where it was submitted.

The scripted vendor knows a task only at the API that it was submitted to, so that a poll of the other one
finds nothing.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    CallbackEndpoint,
    DownloadError,
    EditRequest,
    Failed,
    FluxClient,
    InDoubt,
    InvalidInput,
    Job,
    Journal,
    Limits,
    NotFoundError,
    PollDeadlineExceeded,
    ResultExpired,
    Succeeded,
    TaskId,
    adopt,
    fetch_missing,
    rekey,
    run_batch,
)
from flux_async.api.models_table import ApiName
from flux_async.batch.operations import RekeyEvidence
from flux_async.cli.status import status_of
from flux_async.job_state import JobState
from flux_async.journal.reader import JournalReader
from flux_async.testing import VirtualClock
from jobs_wire import api_of
from scripted_vendor import ADDRESS, KEY, answer
from tests.support.file_host import FileAnswer

URLS = [f"https://pictures.example/{number}.jpg" for number in range(12)]
DAY_S = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


@pytest.fixture
def over(vendor: Any, clock: VirtualClock) -> Callable[..., FluxClient]:
    """Make a client over an API, as another process would."""

    def make(api: ApiName, **options: Any) -> FluxClient:
        options = {"transport": vendor, "clock": clock, "rng": random.Random(1)} | options
        return FluxClient(KEY, ADDRESS, api=api, **options)

    return make


async def run(client: FluxClient, path: Path, images: list[Any], **options: Any) -> list[Any]:
    async with run_batch(client, images, journal=path, **options) as batch:
        return [outcome async for outcome in batch]


def polls_by_api(vendor: Any) -> dict[str, set[str]]:
    """Return the APIs at which each task was polled."""
    found: dict[str, set[str]] = {}
    for _, request in vendor.seen:
        if "taskId" in request.query:
            found.setdefault(str(request.query["taskId"]), set()).add(api_of(request.path))
    return found


def assert_polled_where_submitted(vendor: Any) -> None:
    assert polls_by_api(vendor) == {task.task_id: {task.api} for task in vendor.tasks}


async def apis_in(path: Path) -> dict[str, int]:
    with JournalReader(path) as reader:
        return dict(reader.apis())


# --- resuming ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("kontext", "jobs"), ("jobs", "kontext")])
async def test_a_run_that_is_resumed_over_the_other_api_polls_each_task_where_it_is(
    over: Any, vendor: Any, path: Path, first: ApiName, second: ApiName
) -> None:
    """What was submitted stays where it is; the rest goes to the other API; nothing is paid twice."""
    vendor.generation_s = 120.0
    async with over(first) as client:
        late = await run(client, path, URLS[:5], timeout=30.0)
        assert {type(outcome.error) for outcome in late} == {PollDeadlineExceeded}
        assert {outcome.error.api for outcome in late} == {first}
    vendor.generation_s = 10.0
    async with over(second) as client:
        outcomes = await run(client, path, URLS)
    assert Counter(type(outcome) for outcome in outcomes) == {Succeeded: 12}
    assert Counter(outcome.image.api for outcome in outcomes) == {first: 5, second: 7}
    assert_polled_where_submitted(vendor)
    assert set(vendor.charged.values()) == {1}
    assert await apis_in(path) == {first: 5, second: 7}
    with JournalReader(path) as reader:
        state = status_of(reader, None)
    assert (state["apis"], state["fetch_by"]) == ({first: 5, second: 7}, None)


async def test_status_says_until_when_paid_results_have_to_be_fetched(
    over: Any, vendor: Any, clock: VirtualClock, path: Path
) -> None:
    """A result of the jobs API is kept for a day, the others for 14: the first end counts."""
    vendor.generation_s = 1000.0
    for api, images in (("kontext", URLS[:1]), ("jobs", URLS[1:2])):
        async with over(api) as client:
            await run(client, path, images, timeout=10.0)
    with JournalReader(path) as reader:
        found = reader.fetch_by()
    assert found is not None
    assert found - clock.wall() == pytest.approx(DAY_S, abs=120.0)


async def test_the_intent_has_the_api_and_the_models_id_there(over: Any, vendor: Any, path: Path) -> None:
    """Before the POST leaves: after a crash both are known."""
    for api, images in (("kontext", URLS[:1]), ("jobs", URLS[1:2])):
        async with over(api) as client:
            await run(client, path, images)
    with JournalReader(path) as reader:
        assert [stored.job.api for stored in reader.jobs()] == ["kontext", "jobs"]
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT api, model FROM attempt ORDER BY job").fetchall()
    assert found == [("kontext", "flux-kontext-pro"), ("jobs", "flux1-kontext")]


# --- submits in doubt -------------------------------------------------------------------------------------


async def test_a_callback_confirms_a_task_at_the_api_of_its_attempt(
    over: Any, calling: Any, path: Path
) -> None:
    """The submit in doubt went to kontext; the run that receives its callback submits to jobs."""
    calling.loses_answer = lambda number: number == 0
    calling.calls_after = lambda _: None
    async with over("kontext") as client:
        soon = CallbackEndpoint("https://ours.example/flux-callback", key="hook", doubt_wait_s=2.0)
        [outcome] = await calling.collect(client, path, URLS[:1], callbacks=soon)
        assert isinstance(outcome, InDoubt)
    task = calling.tasks[0]
    async with over("jobs") as client, Journal(path, clock=client.session.clock) as journal:
        await calling.call_back(task, inbox=journal)
    async with over("jobs") as client:
        [outcome] = await calling.collect(client, path, URLS[:1])
    assert isinstance(outcome, Succeeded)
    assert (outcome.image.task_id, outcome.image.api) == (task.task_id, "kontext")
    assert_polled_where_submitted(calling)
    assert calling.submits == 1


async def test_a_task_is_adopted_from_an_api_that_the_job_was_submitted_to(
    over: Any, vendor: Any, path: Path
) -> None:
    """Resubmitted over the other API and in doubt again, its task may be at either."""
    vendor.loses_answer = lambda _: True
    async with over("kontext") as client:
        await run(client, path, URLS[:1])
    async with over("jobs") as client:
        [outcome] = await run(client, path, URLS[:1], in_doubt="resubmit")
        assert isinstance(outcome, InDoubt)
        assert [task.api for task in vendor.tasks] == ["kontext", "jobs"]
        with pytest.raises(NotFoundError, match="Nothing was changed"):
            await adopt(client, path, outcome.job.key, "t9")
        adopted = await adopt(client, path, outcome.job.key, "t0")
        assert adopted.record.api == "kontext"
        [fetched] = await run(client, path, URLS[:1])
    assert isinstance(fetched, Succeeded)
    assert (fetched.image.task_id, fetched.image.api) == ("t0", "kontext")


async def test_a_task_of_a_lost_submit_is_looked_for_at_the_clients_api(
    over: Any, vendor: Any, path: Path
) -> None:
    """The journal lost the record of the submit, and so its API: the advice names the other one."""
    async with over("jobs") as client:
        await run(client, path, URLS[:1])
        async with Journal(path, clock=client.session.clock) as journal:
            [added] = await journal.add_jobs([Job(request=EditRequest.text_removal(URLS[1]))])
        log = path.with_name(path.name + ".submits")
        log.write_text(f'{log.read_text("utf-8").rstrip()}\n99 1.0 "{added.job.key}"\n\n\n', "utf-8")
        async with await Journal(path, clock=client.session.clock).open(accept_lost_records=True) as journal:
            assert (await journal.counts())[JobState.IN_DOUBT] == 1
    vendor.add_task("t7", {"prompt": "p", "inputImage": URLS[1]}, api="jobs")
    async with over("kontext") as client:
        with pytest.raises(NotFoundError, match="It may be a task of the API jobs: give api='jobs'"):
            await adopt(client, path, added.job.key, "t7")


# --- operations -------------------------------------------------------------------------------------------


async def test_a_new_key_is_proven_by_a_task_of_the_other_api(over: Any, vendor: Any, path: Path) -> None:
    """Each task is read where it was submitted."""
    async with over("kontext") as client:
        await run(client, path, URLS[:1])
    async with over("jobs") as client, Journal(path, clock=client.session.clock) as journal:
        await journal.rekey("another key")
    async with over("jobs") as client:
        found = await rekey(client, path)
    assert (found.evidence, found.task_id) == (RekeyEvidence.TASK_SEEN, "t0")
    assert_polled_where_submitted(vendor)


@pytest.mark.parametrize(
    ("api", "age_s", "error"),
    [("jobs", 1.1 * DAY_S, ResultExpired), ("kontext", 1.1 * DAY_S, DownloadError)],
)
async def test_results_of_the_jobs_api_expire_after_a_day(
    over: Any,
    vendor: Any,
    clock: VirtualClock,
    path: Path,
    tmp_path: Path,
    api: ApiName,
    age_s: float,
    error: type,
) -> None:
    """A result that is refused is gone for good after that time, and not before."""
    vendor.script["download-url"] = [answer(None, 422, msg="url is wrong")]
    vendor.files = lambda _: _Refused()
    failed: list[Any] = []

    async def keep(outcome: Any) -> None:
        failed.append(outcome)

    async with over(api) as client:
        await run(client, path, URLS[:1])
        await clock.sleep(age_s)
        await fetch_missing(client, path, tmp_path / "out", patience=5.0, on_outcome=keep)
    assert [type(outcome.error) for outcome in failed] == [error]


class _Refused:
    """A file host that answers 404."""

    async def __aenter__(self) -> Any:
        return FileAnswer(404, body=b"")

    async def __aexit__(self, *_: object) -> None:
        """Close nothing."""


# --- one call ---------------------------------------------------------------------------------------------


async def test_kontext_max_over_jobs_is_refused_before_anything_is_sent(
    over: Any, vendor: Any, path: Path
) -> None:
    """A call, and each image of a batch; a later run over kontext submits them."""
    request = EditRequest.text_removal(URLS[0], model="flux-kontext-max")
    async with over("jobs") as client:
        for call in (client.submit, client.run):
            with pytest.raises(InvalidInput, match="jobs API does not have the model flux-kontext-max"):
                await call(request)
        [refused] = await run(client, path, [request])
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, InvalidInput)
    assert (vendor.seen, await apis_in(path)) == ([], {})
    async with over("kontext") as client:
        [outcome] = await run(client, path, [request])
    assert isinstance(outcome, Succeeded)


async def test_a_client_knows_where_it_has_submitted_a_task(over: Any, vendor: Any) -> None:
    """Another client polls its own API, the one that is named, or where the request would go."""
    request = EditRequest.text_removal(URLS[0])
    async with over("jobs") as client:
        task_id = await client.submit(request)
        assert (await client.record(task_id)).api == "jobs"
        image = await client.wait(task_id)
        assert (image.api, image.record and image.record.api) == ("jobs", "jobs")
    async with over("kontext") as other:
        with pytest.raises(NotFoundError, match="It may be a task of the API jobs: give api='jobs'"):
            await other.record(task_id)
        assert (await other.record(task_id, api="jobs")).api == "jobs"
        assert (await other.wait(task_id, api="jobs")).api == "jobs"
        model = EditRequest(prompt="p", input_image=URLS[0], model="nano-banana-2-lite")
        assert other.session.api_of(TaskId("t9"), model) == "jobs"


async def test_a_waiter_at_the_wrong_api_does_not_disturb_the_others(
    over: Any, vendor: Any, clock: VirtualClock
) -> None:
    """Waits for one task share polls, but not with those at another API; a callback wakes both."""
    vendor.generation_s = 200.0
    async with over("jobs", limits=Limits()) as client:
        task_id = await client.submit(EditRequest.text_removal(URLS[0]))
        async with asyncio.TaskGroup() as group:
            right = group.create_task(client.wait(task_id))
            with pytest.raises(NotFoundError):
                await client.wait(task_id, api="kontext")
            client.notify(task_id)
        assert right.result().api == "jobs"


async def test_an_unclaimed_task_has_its_api(over: Any) -> None:
    """For a user who keeps it and waits in another process."""
    async with over("jobs") as client:
        client.session.keep_unclaimed(EditRequest.text_removal(URLS[0]), "jobs", TaskId("t1"))
        assert [unclaimed.api for unclaimed in client.unclaimed] == ["jobs"]
