"""The engine on a real PostgreSQL, with workers in this process and in processes that are killed."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flux_async import (
    CallbackEndpoint,
    ConfigurationError,
    EditRequest,
    FluxClient,
    FolderSink,
    InvalidInput,
    Job,
    JobConflictError,
    Limits,
    PollPolicy,
    Succeeded,
    WebhookReceiver,
)
from flux_async.sandbox.server import listening
from flux_async.testing import FluxSandbox

pytest.importorskip("dbos", reason="the extra engine is not installed")
from flux_async.engine import WORKER_LIMITS, Engine, EngineBatch, Worker

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


def images(count: int) -> list[str]:
    return [f"https://example.com/{number}.jpg" for number in range(count)]


@asynccontextmanager
async def worker(
    engine: Engine, sandbox: FluxSandbox, folder: Path, callbacks: CallbackEndpoint | None = None
) -> AsyncIterator[Worker]:
    async with (
        FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as client,
        Worker(
            engine, client, lambda name: FolderSink(folder / name), rate=RATE, callbacks=callbacks
        ) as made,
    ):
        yield made


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


async def test_an_unnamed_job_is_the_same_under_a_renewed_signature(engine: Engine) -> None:
    """A second run of a list with presigned addresses pays for nothing twice."""
    for signature in ("1", "2"):
        await engine.submit([f"https://s.example.com/a.jpg?X-Amz-Signature={signature}"], batch="posters")
    assert (await engine.batch("posters").status()).pending == 1


async def test_files_of_this_machine_are_refused(engine: Engine, tmp_path: Path) -> None:
    """No worker could read them."""
    file = tmp_path / "a.png"
    file.write_bytes(PIXEL)
    with pytest.raises(InvalidInput, match="workers cannot read"):
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


async def test_a_server_that_does_not_answer_is_one_sentence() -> None:
    """It names the server, and says that nothing was sent."""
    with pytest.raises(ConfigurationError, match="PostgreSQL at 127.0.0.1:1 cannot be used") as refused:
        await Engine("postgresql://nobody@127.0.0.1:1/none").submit([], batch="posters")
    assert "nothing was sent" in str(refused.value)


# --- processes --------------------------------------------------------------------------------------------


def start(dsn: str, sandbox: FluxSandbox, folder: Path, *callback_url: str) -> subprocess.Popen[str]:
    """Start a worker and return when it holds its lock."""
    environment = os.environ | {"KIE_API_KEY": sandbox.key}
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
        assert len(list((tmp_path / "posters").iterdir())) == status.succeeded
        assert status.in_doubt <= (0 if hooks else 12)
        assert not sandbox.ledger.double_charges
