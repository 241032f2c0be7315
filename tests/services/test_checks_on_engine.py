"""Results that workers of the engine compose and verify, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from check_workers import CLEAN, PREFIX, CheckWorkers
from commands import Cli
from flux_async import (
    FluxClient,
    FolderSink,
    InvalidInput,
    JobService,
    JobState,
    JobStatus,
    Limits,
    MissingExtra,
    Outcome,
    PollPolicy,
    Succeeded,
)
from flux_async.testing import FluxSandbox
from flux_async.verification import checks as image_checks
from flux_async.verification.verdict import Verdict
from tests.support.file_host import JPEG

pytest.importorskip("dbos", reason="the extra engine is not installed")
from flux_async.engine import WORKER_LIMITS, Engine, Worker

POLLING = PollPolicy(first_s=0.1, interval_s=0.1, jitter=0)
LIMITS = Limits(submits=1000, window_s=10)
WORKER = Path(__file__).parents[1] / "support" / "engine_worker.py"


@pytest.fixture
def sandbox() -> Iterator[FluxSandbox]:
    """The vendor, a hundred times as fast."""
    with FluxSandbox(sockets=True, webhook_key=None) as vendor:
        yield vendor


@pytest.fixture
def client(sandbox: FluxSandbox) -> FluxClient:
    """A client that is not open."""
    return FluxClient(sandbox.key, sandbox.url, limits=LIMITS, polling=POLLING)


async def uploaded(sandbox: FluxSandbox) -> str:
    """Return the address of an image that is at the vendor."""
    async with FluxClient(sandbox.key, sandbox.url) as client:
        return (await client.upload(JPEG)).url


def checked(outcome: Outcome | JobStatus) -> dict[str, Any]:
    """Return what the checks of a result found, and the names of its files."""
    assert isinstance(outcome, Succeeded)
    assert outcome.check is not None
    return {
        "verdict": outcome.verdict,
        "preserved": outcome.check.is_preserved,
        "file": outcome.reference,
        "vendor": outcome.check.vendor_file,
        "problem": outcome.check.problem,
    }


async def test_a_service_answers_with_the_verdict_and_the_composed_image(
    client: FluxClient, sandbox: FluxSandbox, fresh_dsn: str, tmp_path: Path
) -> None:
    """In each process, once the image is checked; a check that fails costs no result."""
    poster, folder, seen = tmp_path / "poster.jpg", tmp_path / "results", list[JobStatus | Outcome]()
    poster.write_bytes(JPEG)
    checks = CheckWorkers()
    async with (
        JobService(engine=fresh_dsn, directory=folder) as other,
        JobService(
            client, engine=fresh_dsn, directory=folder, verify=True, preserve=True, checks=checks
        ) as service,
        Engine(fresh_dsn) as engine,
    ):
        await service.add(poster, key="poster")
        first = await service.result("poster")
        assert checked(first) == checked(await other.get("poster"))
        assert checked(first) == {
            "verdict": CLEAN,
            "preserved": True,
            "file": "poster.png",
            "vendor": "vendor/poster.jpg",
            "problem": None,
        }
        assert (folder / "poster.png").read_bytes() == PREFIX + JPEG
        assert (folder / "vendor" / "poster.jpg").is_file()
        assert [checked(outcome) async for outcome in engine.batch("service")] == [checked(first)]

        def refuse(kind: str, _: Path) -> None:
            seen.append(kind)
            raise InvalidInput("The image is too large.")

        checks.behave = refuse
        await service.add(poster, key="large")
        assert checked(await service.result("large"))["problem"] == "The image is too large."
        assert (await engine.batch("service").status()).succeeded == 2
    assert seen == ["preserve"]
    assert sandbox.ledger.accepted == 2


async def test_a_check_whose_worker_is_killed_is_made_by_another_one(
    sandbox: FluxSandbox, fresh_dsn: str, tmp_path: Path
) -> None:
    """From the saved file: nothing is paid or composed again."""
    checks = CheckWorkers()
    async with (
        Engine(fresh_dsn) as engine,
        FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as client,
    ):
        batch = await engine.submit([await uploaded(sandbox)], batch="posters")
        await anyio.to_thread.run_sync(kill_in_check, fresh_dsn, sandbox, tmp_path)
        (row,) = [row async for row in batch.rows(JobState.DONE)]
        assert row.stored.job.checked is not None
        async with Worker(
            engine,
            client,
            lambda name: FolderSink(tmp_path / name),
            verify=True,
            preserve=True,
            checks=checks,
        ):
            (outcome,) = [outcome async for outcome in batch]
    found = checked(outcome)
    assert found["verdict"] == CLEAN
    assert (tmp_path / "posters" / found["file"]).read_bytes() == PREFIX + JPEG
    (original,) = (tmp_path / "posters" / "originals").iterdir()
    assert checks.made == {("verify", original.name): 1}
    assert sandbox.ledger.accepted == 1


def kill_in_check(dsn: str, sandbox: FluxSandbox, folder: Path) -> None:
    """Run a worker, and end it as a crash does while it verifies a result."""
    environment = os.environ | {"KIE_API_KEY": sandbox.key, "HANGS_IN": "verify"}
    environment["PYTHONPATH"] = str(WORKER.parent)  # if the tests run from the wheel
    command = [sys.executable, str(WORKER), dsn, sandbox.url, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout as lines:
        assert [lines.readline() != "", lines.readline()] == [True, "verify\n"]
    process.kill()
    process.wait()


class Endless(CheckWorkers):
    """A ``verify`` that does not end."""

    async def verify(self, original: Path, result: Path) -> Verdict:
        """Wait for ever."""
        await super().verify(original, result)
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_worker_without_checks_settles_what_another_one_has_not_verified(
    sandbox: FluxSandbox, fresh_dsn: str, tmp_path: Path
) -> None:
    """Its outcome comes once, without a verdict."""
    checks = Endless()
    async with (
        Engine(fresh_dsn) as engine,
        FluxClient(sandbox.key, sandbox.url, limits=WORKER_LIMITS, polling=POLLING) as client,
    ):
        batch = await engine.submit([await uploaded(sandbox)], batch="posters")
        async with Worker(
            engine, client, lambda name: FolderSink(tmp_path / name), verify=True, checks=checks
        ):
            while not checks.made:
                await asyncio.sleep(0.05)
        async with Worker(engine, client, lambda name: FolderSink(tmp_path / name)):
            outcomes = [outcome async for outcome in batch]
    assert [type(outcome) for outcome in outcomes] == [Succeeded]
    assert sandbox.ledger.accepted == 1


def test_a_worker_composes_and_verifies_at_the_command_line(
    sandbox: FluxSandbox, fresh_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results and report show what was found."""
    monkeypatch.setattr(image_checks, "ImageChecks", CheckWorkers)
    cli, dsn = Cli(tmp_path, sandbox.url, sandbox.key), ("--dsn", fresh_dsn)
    (tmp_path / "images.txt").write_text(asyncio.run(uploaded(sandbox)), "utf-8")
    assert cli.run("enqueue", "images.txt", "--batch", "posters", *dsn).code == 0
    options = ("--preserve", "--verify", "--until-idle", "--rate", "1000/10")
    worked = cli.run("worker", *dsn, "-o", "clean", *options)
    assert worked.code == 0, worked.stderr
    row = json.loads(cli.run("batch", "results", "posters", *dsn, "--json").stdout)
    assert (row["verdict"], row["not_preserved"], row["not_checked"]) == ("clean", None, None)
    folder = tmp_path / "clean" / "posters"
    assert (folder / row["file"]).is_file()
    assert (folder / row["vendor_file"]).is_file()
    report = json.loads(cli.run("batch", "report", "posters", *dsn, "--json").stdout)
    assert report["checks"] == {"clean": 1, "preserved": 1}
    assert "checks: 1 clean, 1 preserved" in cli.run("batch", "report", "posters", *dsn).stdout
    page = Path(cli.run("batch", "report", "posters", *dsn, "-o", "clean").stdout.strip())
    shown = page.read_text("utf-8")
    for image in (f'"vendor":{{"file":"{row["vendor_file"]}"', '"original":{"file":"originals/'):
        assert image in shown


def test_checks_need_a_folder_and_a_worker(
    client: FluxClient, fresh_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is opened or sent."""

    class Store:
        async def save(self, *_: object) -> str:
            return ""

    for options in ({}, {"sink": Store()}):
        with pytest.raises(InvalidInput, match="needs its results in a folder"):
            JobService(client, engine=fresh_dsn, verify=True, **options)
    with pytest.raises(InvalidInput, match="workers make the checks"):
        JobService(engine=fresh_dsn, directory=tmp_path, preserve=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="verify"):
        JobService(client, engine=fresh_dsn, directory=tmp_path, verify=True)
    cli = Cli(tmp_path, "http://127.0.0.1:1", "key")
    for option, words in (
        ("--verify", "Leave out --verify, or give a folder"),
        ("--preserve-format=jpeg", "goes with --preserve"),
    ):
        refused = cli.run("worker", "--dsn", fresh_dsn, "-o", "s3://bucket/clean", option)
        assert (refused.code, words in refused.stderr) == (2, True), refused.stderr
