"""The engine on a real PostgreSQL, with workers in this process and in processes that are killed."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flux_async import (
    CallbackEndpoint,
    CallbackEvent,
    ConfigurationError,
    DiskFull,
    EditRequest,
    FluxClient,
    FluxEvent,
    FolderSink,
    ImageStream,
    InvalidInput,
    Job,
    JobConflictError,
    Limits,
    Model,
    Observer,
    PollPolicy,
    Succeeded,
    TaskId,
    WebhookReceiver,
    sink_for,
)
from flux_async.clock import SystemClock
from flux_async.job_state import Event, JobState, SubmitAccepted, SubmitIntended, apply
from flux_async.sandbox.server import listening
from flux_async.testing import FluxSandbox
from servers import Bucket, Postgres, RunningServer
from telemetry import Telemetry, orphans, traces_of

pytest.importorskip("dbos", reason="the extra engine is not installed")
import psycopg

from flux_async.engine import WORKER_LIMITS, Engine, EngineBatch, Worker
from flux_async.engine.accounts import Accounts
from flux_async.engine.housekeeping import delete_old_workflows
from flux_async.engine.queues import SUBMIT, SUBMIT_QUEUE, enqueue_watch, feed, watch_left
from flux_async.engine.store import COLUMNS, PostgresStore, stored_job

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
POLLING = PollPolicy(first_s=0.1, interval_s=0.1, jitter=0)
RATE = Limits(submits=1000, window_s=10)
WORKER = Path(__file__).parents[1] / "support" / "engine_worker.py"


@pytest.fixture
def sandbox() -> Iterator[FluxSandbox]:
    """The vendor, a hundred times as fast."""
    with FluxSandbox(sockets=True, webhook_key=None) as vendor:
        yield vendor


@pytest.fixture
async def engine(fresh_dsn: str) -> AsyncIterator[Engine]:
    """An engine on a database of its own."""
    async with Engine(fresh_dsn) as opened:
        yield opened


class Later(SystemClock):
    """The machine's own clock, some days later."""

    def __init__(self, days: float) -> None:
        self._ahead_s = days * 86_400

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return super().wall() + self._ahead_s


class QuickClock(SystemClock):
    """The system's clock, whose sleeps last a tenth of a second at most."""

    async def sleep(self, seconds: float) -> None:
        """Sleep a moment."""
        await super().sleep(min(seconds, 0.1))


class Disk:
    """A sink that is full until there is room."""

    has_room = False

    async def save(self, job: Job, stream: ImageStream) -> str:
        """Save nothing."""
        if not self.has_room:
            raise DiskFull(f"{stream.name} cannot be written: No space left on device.")
        return str(job.key)


def images(count: int) -> list[str]:
    return [f"https://example.com/{number}.jpg" for number in range(count)]


@asynccontextmanager
async def worker(
    engine: Engine,
    sandbox: FluxSandbox,
    folder: Path,
    callbacks: CallbackEndpoint | None = None,
    observers: Sequence[Observer] = (),
) -> AsyncIterator[Worker]:
    async with (
        FluxClient(
            sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING, observers=observers
        ) as client,
        Worker(
            engine, client, lambda name: FolderSink(folder / name), rate=RATE, callbacks=callbacks
        ) as made,
    ):
        yield made


async def is_halted(engine: Engine) -> bool:
    sql = "SELECT FROM flux_async.account WHERE halted_until > extract(epoch FROM clock_timestamp())"
    return await engine.database.row(sql) is not None


async def outcomes(batch: EngineBatch) -> Counter[str]:
    return Counter([type(outcome).__name__ async for outcome in batch])


async def test_each_job_is_paid_once_and_its_outcome_comes_once(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """Also of jobs that are given twice, before and after they are done."""
    batch = await engine.submit(images(5), batch="posters")
    await engine.submit(images(6), batch="posters")
    async with worker(engine, sandbox, tmp_path):
        found = [outcome async for outcome in batch]
        await engine.submit(images(6), batch="posters")
        assert (await batch.wait()).succeeded == 6
    assert {type(outcome) for outcome in found} == {Succeeded}
    files = {outcome.reference for outcome in found if isinstance(outcome, Succeeded)}
    assert {file.name for file in (tmp_path / "posters").iterdir()} == files
    assert len(files) == sandbox.ledger.accepted == 6


async def test_what_ended_two_weeks_ago_leaves_dbos_and_is_not_paid_again(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """Its job is kept."""
    database = engine.database

    async def workflows() -> int:
        return len(await database.client.list_workflows_async(load_input=False, load_output=False))

    batch = await engine.submit(images(1), batch="posters")
    async with worker(engine, sandbox, tmp_path) as made:
        assert await outcomes(batch) == {"Succeeded": 1}
        while not await made.is_idle():
            await asyncio.sleep(0.05)
    database.clock = Later(13)
    await delete_old_workflows(database)
    assert await workflows() == 2
    database.clock = Later(15)
    await delete_old_workflows(database)
    assert await workflows() == 0
    await engine.submit(images(1), batch="posters")
    assert await feed(database) == 0
    assert (await batch.status()).succeeded == 1


async def test_a_key_with_another_request_is_refused(engine: Engine) -> None:
    """A renewed signature of the same address is no other request."""

    def signed(path: str, signature: str) -> Job:
        url = f"https://store.example.com/{path}?X-Amz-Signature={signature}&X-Amz-Expires=60"
        return Job(request=EditRequest.text_removal(url), key="poster")

    await engine.submit([signed("a.jpg", "1")], batch="posters")
    await engine.submit([signed("a.jpg", "2")], batch="posters")
    with pytest.raises(JobConflictError, match="poster"):
        await engine.submit([signed("b.jpg", "1")], batch="posters")
    assert (await engine.batch("posters").status()).pending == 1
    for other in ("a.jpg", "b.jpg"):
        with pytest.raises(JobConflictError, match="poster"):
            await engine.submit([signed(other, "3"), images(1)[0], signed("c.jpg", "1")], batch=other)
        assert (await engine.batch(other).status()).pending == 2


async def test_an_unnamed_job_is_the_same_under_a_renewed_signature(engine: Engine) -> None:
    """A second run of a list with presigned addresses pays for nothing twice."""
    for signature in ("1", "2"):
        await engine.submit([f"https://s.example.com/a.jpg?X-Amz-Signature={signature}"], batch="posters")
    assert (await engine.batch("posters").status()).pending == 1


async def test_files_of_this_machine_are_refused(engine: Engine, tmp_path: Path) -> None:
    """No worker could read them."""
    file = tmp_path / "a.png"
    file.write_bytes(PIXEL)
    with pytest.raises(InvalidInput, match="workers cannot read it"):
        await engine.submit([file], batch="posters")


async def test_a_cancelled_batch_submits_nothing_until_it_is_submitted_again(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """The iteration of a cancelled batch ends."""
    batch = await engine.submit(images(3), batch="posters")
    assert (await batch.cancel()).is_cancelled
    async with worker(engine, sandbox, tmp_path):
        assert await outcomes(batch) == Counter()
        await engine.submit(images(3), batch="posters")
        assert await outcomes(batch) == {"Succeeded": 3}


async def test_jobs_of_higher_priority_are_submitted_first(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """Whatever waits in front of them."""
    await engine.submit(images(40), batch="many", priority=100)
    urgent = await engine.submit(["https://example.com/urgent.jpg"], batch="one", priority=1)
    async with worker(engine, sandbox, tmp_path):
        await urgent.wait()
        assert (await engine.batch("many").status()).pending > 0


async def test_a_job_continues_the_trace_in_which_it_was_submitted(
    engine: Engine, sandbox: FluxSandbox, fresh_dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker is another process; one given again has no second beginning. Each event comes once."""
    pytest.importorskip("opentelemetry.sdk", reason="the extra dev is not installed")
    backend, remote, seen = Telemetry(), Telemetry(), list[FluxEvent]()
    caplog.set_level("INFO", "flux_async.jobs")
    async with Engine(fresh_dsn, observers=[backend.observer]) as traced:
        with backend.tracer_provider.get_tracer("app").start_as_current_span("POST /images"):
            await traced.submit(images(1), batch="posters")
        await traced.submit(images(1), batch="posters")
    batch = await engine.submit(images(2), batch="posters")
    async with worker(engine, sandbox, tmp_path, observers=[remote.observer, seen.append]):
        assert await outcomes(batch) == {"Succeeded": 2}
    assert (len(backend.spans), len(remote.named("flux_async.add"))) == (2, 1)
    jobs = {span.attributes["flux_async.image"]: span for span in remote.named("flux_async.job")}
    first, second = (jobs[image] for image in images(2))
    assert traces_of([first]) == traces_of(backend.spans) != traces_of([second])
    assert orphans([*backend.spans, *remote.spans]) == []
    requests = {span.name for span in remote.spans if traces_of([span]) == traces_of([first])}
    assert {"flux_async.job", "POST /api/v1/flux/kontext/generate"} <= requests
    kinds = [type(event).__name__ for event in seen if event.job == first.attributes["flux_async.job.key"]]
    assert [kind for kind in kinds if kind != "Polled"] == [
        *("JobAdded", "SubmitStarted", "Submitted", "JobAdded", "Downloaded", "Settled"),
    ]
    assert remote.total("flux_async_job_active") == remote.total("flux_async_task_in_flight") == 0
    assert sum("succeeded" in record.message for record in caplog.records) == 2


async def test_processes_that_start_at_once_make_the_tables_once(fresh_dsn: str) -> None:
    """Replicas on an empty database wait for each other, and none for ever."""
    engines = [Engine(fresh_dsn) for _ in range(3)]
    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for engine in engines:
                group.create_task(engine.database.open())
    finally:
        for engine in engines:
            await engine.aclose()


async def test_a_server_that_does_not_answer_is_one_sentence() -> None:
    """It names the server, and says that nothing was sent."""
    with pytest.raises(ConfigurationError, match="PostgreSQL at 127.0.0.1:1 cannot be used") as refused:
        await Engine("postgresql://nobody@127.0.0.1:1/none").submit([], batch="posters")
    assert "nothing was sent" in str(refused.value)


async def test_tables_that_cannot_be_made_are_one_sentence(
    fresh_dsn: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of this library: DBOS prints nothing of its own."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
    guest = fresh_dsn.replace("//flux@", "//guest@")
    with pytest.raises(ConfigurationError, match="cannot be used: permission denied for database"):
        await Engine(guest).submit([], batch="posters")
    assert capfd.readouterr() == ("", "")


async def test_a_refused_key_leaves_its_jobs_to_the_other(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """Its submits halt, those of the other key go on, and each task is polled with its own key."""
    async with (
        FluxClient("revoked", sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as dead,
        FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as client,
        Worker(engine, [dead, client], lambda name: FolderSink(tmp_path / name), rate=RATE),
    ):
        batch = await engine.submit(images(10), batch="posters")
        assert await outcomes(batch) == {"Succeeded": 10}
    assert sandbox.ledger.accepted == 10


async def test_submits_halt_while_the_balance_is_too_low(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """No permit is given; jobs stay pending."""
    async with (
        FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS) as client,
        Worker(engine, client, lambda name: FolderSink(tmp_path / name), min_credits=1e9),
    ):
        assert await Accounts(engine.database).permit([client.fingerprint]) is None
    assert sandbox.ledger.submits == 0


async def test_the_balance_shows_a_price_that_no_record_names(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """An image alone in flight measures it, the next one confirms what is unexpected; then the key halts."""
    expected = await engine.submit(images(3), batch="posters")
    async with worker(engine, sandbox, tmp_path):
        assert await outcomes(expected) == {"Succeeded": 3}
    store = PostgresStore(database=engine.database, account="", executor="")
    assert await store.prices() == {Model.PRO: 5.0}
    await engine.database.execute("DELETE FROM flux_async.fact")
    await engine.submit(images(9), batch="more")
    async with FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as client:
        async with Worker(engine, client, None, rate=RATE, prices={Model.PRO: 99}):
            while not await is_halted(engine):
                await asyncio.sleep(0.05)
        assert (await store.prices(), sandbox.ledger.accepted) == ({Model.PRO: 5.0}, 5)


async def test_an_unexpected_price_halts_the_submits_of_its_key(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """No further image is paid after the first has shown it."""
    async with FluxClient(
        sandbox.key, sandbox.url, api="jobs", limits=WORKER_LIMITS, polling=POLLING
    ) as client:
        paid = await engine.submit(images(1), batch="posters")
        async with Worker(engine, client, lambda name: FolderSink(tmp_path / name), prices={Model.PRO: 99}):
            assert await outcomes(paid) == {"Succeeded": 1}
            while not await is_halted(engine):
                await asyncio.sleep(0.05)


async def test_a_job_that_is_held_takes_its_task_from_a_late_callback_or_from_the_user(
    engine: Engine, tmp_path: Path
) -> None:
    """Also long after no worker waits for it any more; another job's task is refused."""
    with FluxSandbox(sockets=True, webhook_key=None, faults="drop-reply:100%") as sandbox:
        events: list[CallbackEvent] = []
        async with listening(WebhookReceiver(None, on_callback=events.append), port=0) as url:
            callbacks = CallbackEndpoint(f"{url}/cb", doubt_wait_s=0.1)
            async with worker(engine, sandbox, tmp_path, callbacks):
                batch = await engine.submit(images(2), batch="posters")
                assert await outcomes(batch) == {"InDoubt": 2}
                while len(events) < 2:
                    await asyncio.sleep(0.05)
                await engine.receive(events[0])
                assert (await batch.wait()).succeeded == 1
                [held] = [row.stored.job.key async for row in batch.rows(JobState.IN_DOUBT)]
                async with FluxClient(sandbox.key, sandbox.url) as client:
                    with pytest.raises(InvalidInput, match="belongs to job"):
                        await batch.adopt(client, held, events[0].task_id)
                    assert (await batch.adopt(client, held, events[1].task_id)).key == held
                assert (await batch.wait()).succeeded == 2
        assert sandbox.ledger.accepted == 2


async def test_results_reach_an_object_store_that_was_away(
    engine: Engine, sandbox: FluxSandbox, s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is there once and whole; a result that is paid is never given up."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    batch = await engine.submit(images(3), batch="posters")
    s3.stop()
    async with (
        FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as client,
        Worker(engine, client, lambda name: sink_for(f"{s3.url}/{name}"), rate=RATE),
    ):
        while sandbox.ledger.accepted < 3:
            await asyncio.sleep(0.05)
        s3.start()
        assert (await batch.wait()).succeeded == 3
    assert len(s3.names()) == sandbox.ledger.accepted == 3


# --- processes --------------------------------------------------------------------------------------------


def start(dsn: str, sandbox: FluxSandbox, folder: Path, *callback_url: str) -> subprocess.Popen[str]:
    """Start a worker and return when it holds its lock."""
    environment = os.environ | {"KIE_API_KEY": sandbox.key, "PYTHONPATH": str(WORKER.parent)}
    command = [sys.executable, str(WORKER), dsn, sandbox.url, str(folder), *callback_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """End a worker as a crash does."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("hooks", [True, False], ids=["webhooks", "polls"])
async def test_killed_workers_lose_nothing_and_nothing_is_paid_twice(
    fresh_dsn: str, engine: Engine, tmp_path: Path, *, hooks: bool
) -> None:
    """With webhooks, submits whose worker was killed before the answer are found, or made again."""
    policy = "resubmit" if hooks else "hold"
    with FluxSandbox(sockets=True, webhook_key=None, speed=5) as sandbox:
        async with listening(WebhookReceiver(engine), port=0) as url:
            batch = await engine.submit(images(60), batch="posters", in_doubt=policy)
            address = [f"{url}/callback"] if hooks else []
            workers = [start(fresh_dsn, sandbox, tmp_path, *address) for _ in range(2)]
            try:
                for done in (5, 20):
                    while (await batch.status()).pending > 60 - done:
                        await asyncio.sleep(0.05)
                    kill(workers.pop(0))
                    workers.append(start(fresh_dsn, sandbox, tmp_path, *address))
                found = await outcomes(batch)
            finally:
                for process in workers:
                    kill(process)
            status = await batch.status()
        assert found["Succeeded"] == status.succeeded == 60 - status.in_doubt
        whole = [file for file in (tmp_path / "posters").iterdir() if file.name[0] != "."]
        assert len(whole) == status.succeeded
        assert status.in_doubt <= (0 if hooks else 12)
        assert not sandbox.ledger.double_charges


def run_application(dsn: str, sandbox: FluxSandbox, folder: Path, executor: str) -> tuple[int, str, str]:
    """Run the application with DBOS of its own; return exit code, output and errors."""
    command = [sys.executable, str(WORKER.with_name("dbos_application.py")), dsn, sandbox.url, str(folder)]
    environment = os.environ | {"KIE_API_KEY": sandbox.key}
    ended = subprocess.run(
        [*command, executor], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_a_worker_uses_the_dbos_of_its_application(
    fresh_dsn: str, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """It launches no second one, whichever event loop the first has."""
    code, out, errors = run_application(fresh_dsn, sandbox, tmp_path, "replica-1")
    assert code == 0, errors
    assert out == "replica-1 ['Succeeded', 'Succeeded', 'Succeeded'] done\n"


def test_an_executor_id_that_every_process_has_is_refused(
    fresh_dsn: str, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """Two workers of one name would take each other for dead."""
    code, _, errors = run_application(fresh_dsn, sandbox, tmp_path, "local")
    assert code == 1
    assert "unique to this process" in errors


async def tasks_known(engine: Engine) -> int:
    """Return how many answers to submits are in the database: a worker killed before that leaves a doubt."""
    row = await engine.database.row("SELECT count(task_id) AS known FROM flux_async.attempt")
    assert row is not None
    return int(row["known"])


async def test_a_dead_workers_tasks_are_polled_again(fresh_dsn: str, engine: Engine, tmp_path: Path) -> None:
    """By the other workers, without another permit: the vendor sees no further submit."""
    with FluxSandbox(sockets=True, webhook_key=None, speed=1) as sandbox:
        batch = await engine.submit(images(6), batch="posters")
        first = start(fresh_dsn, sandbox, tmp_path)
        try:
            while (await tasks_known(engine)) < 6:
                await asyncio.sleep(0.05)
        finally:
            kill(first)
        polls = sandbox.ledger.polls
        second = start(fresh_dsn, sandbox, tmp_path)
        try:
            while sandbox.ledger.polls < polls + 6:
                await asyncio.sleep(0.05)
            assert sandbox.ledger.submits == 6
            assert (await batch.wait()).succeeded == 6
        finally:
            kill(second)


async def test_a_restarted_server_loses_nothing(
    postgres: tuple[Postgres, RunningServer], engine: Engine, tmp_path: Path
) -> None:
    """Workers wait for it, and go on by themselves."""
    with FluxSandbox(sockets=True, webhook_key=None, speed=10) as sandbox:
        batch = await engine.submit(images(30), batch="posters")
        async with worker(engine, sandbox, tmp_path):
            while (await batch.status()).succeeded < 3:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(postgres[1].restart, signal.SIGKILL)
            status = await batch.wait()
        assert (status.succeeded, status.in_doubt) == (30, 0)
        assert not sandbox.ledger.double_charges


@pytest.mark.parametrize("again", [True, False], ids=["its worker enqueues a watch", "its worker ends"])
async def test_a_task_that_a_suspended_worker_names_late_is_fetched(
    engine: Engine, sandbox: FluxSandbox, tmp_path: Path, *, again: bool
) -> None:
    """Its job was put in doubt meanwhile, and the watch of that has ended; also if the worker ends then."""
    batch, database = await engine.submit(images(1), batch="posters"), engine.database
    sql = f"SELECT {COLUMNS} FROM flux_async.job"

    async def submit(dispatch: int) -> None:
        name = f"submit:{seen.job.key}:{dispatch}"
        await database.client.enqueue_async(
            {"workflow_name": SUBMIT, "queue_name": SUBMIT_QUEUE, "workflow_id": name}, seen.number
        )

    async with FluxClient(sandbox.key, sandbox.url) as client:
        store = PostgresStore(database=database, account=client.fingerprint, executor="suspended")

        async def record(event: Event) -> None:
            await store.record(seen.number, apply(seen.job, event), event, before=seen.job)

        await database.execute("INSERT INTO flux_async.worker (executor, started_at) VALUES ('suspended', 0)")
        seen = stored_job((await database.rows(sql))[0])
        at = SystemClock().wall()
        await record(SubmitIntended(at=at, api="kontext"))
        seen = stored_job((await database.rows(sql))[0])
        await submit(1)
        async with worker(engine, sandbox, tmp_path) as other, asyncio.timeout(60):
            assert (await batch.wait()).in_doubt == 1
            request = EditRequest.text_removal(images(1)[0])
            await record(SubmitAccepted(at=at, task_id=await client.submit(request)))
            assert not await other.is_idle()
            if again:
                await submit(2)
            else:
                while not await watch_left(database, age_s=0):  # the watch that has settled it is ending
                    await asyncio.sleep(0.02)
            assert (await batch.wait()).succeeded == 1
            assert await watch_left(database, age_s=0) == 0
    assert sandbox.ledger.accepted == 1


async def test_a_task_whose_id_has_a_colon_is_watched_once(engine: Engine) -> None:
    """The id of a task is the vendor's to choose; it is part of the name of the work on it."""
    await engine.submit(images(1), batch="posters")
    database, sql = engine.database, f"SELECT {COLUMNS} FROM flux_async.job"
    store = PostgresStore(database=database, account="a", executor="x")
    await database.execute("INSERT INTO flux_async.worker (executor, started_at) VALUES ('x', 0)")
    for event in (SubmitIntended(at=1.0, api="kontext"), SubmitAccepted(at=1.0, task_id=TaskId("a:1"))):
        seen = stored_job((await database.rows(sql))[0])
        await store.record(seen.number, apply(seen.job, event), event, before=seen.job)
    row = {**(await database.rows(sql))[0], "account": "a"}
    await enqueue_watch(database.client, row, row["snapshot"]["task_id"])
    assert await watch_left(database, age_s=0) == 0


async def test_a_full_disk_halts_the_submits_of_its_worker_until_there_is_room(
    fresh_dsn: str, sandbox: FluxSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once. What is paid is saved as soon as that can be done."""
    disk = Disk()
    async with (
        Engine(fresh_dsn) as engine,
        FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as client,
        Worker(engine, client, lambda _: disk, rate=RATE) as made,
        asyncio.timeout(60),
    ):
        engine.database.clock = QuickClock()
        batch = await engine.submit(images(18), batch="posters")
        while (problem := await made.halted()) is None:
            await asyncio.sleep(0.02)
        assert problem.type == "DiskFull"
        pending = 18
        while pending + sandbox.ledger.accepted != 18:  # submits in flight are answered
            pending = (await batch.status()).pending
            await asyncio.sleep(0.02)
        assert sandbox.ledger.accepted < 18
        disk.has_room = True
        assert (await batch.wait()).succeeded == 18
        assert await made.halted() is None
    assert sum("nothing is submitted until" in record.message for record in caplog.records) == 1
