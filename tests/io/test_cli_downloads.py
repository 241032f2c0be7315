"""Paid images whose download fails, at the command line: pending or succeeded, and not paid again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import FluxClient, JobKey, Outcome, Succeeded, TaskId, fetch_missing
from flux_async.batch.inputs import as_job
from flux_async.cli.commands import cli
from flux_async.cli.results import ResultRow
from flux_async.cli.run_folder import RunFolder
from flux_async.cli.terminal import run_cli
from flux_async.job_state import Problem, Saved, SubmitAccepted, SubmitIntended, TaskSucceeded, apply
from flux_async.testing import FluxSandbox
from tests.support.file_host import JPEG, FileAnswer

LATE = "https://example.com/late.jpg?sandbox-fault=file-html=2"
QUICK = ("-o", "out", "--rate", "20/0.2")
DAY_S = 86_400.0


@pytest.fixture
def sandbox(make_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FluxSandbox]:
    """A sandbox on a port, for commands that are run in this process."""
    with FluxSandbox(sockets=True) as made:
        make_cli().teach_times()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KIE_BASE_URL", made.url)
        monkeypatch.setenv("KIE_API_KEY", "test")
        monkeypatch.setenv("COLUMNS", "1000")
        yield made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command in this process and return its exit code."""

    def run_one(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["flux-async", *words])
        return run_cli(cli)

    return run_one


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out", "results.jsonl").read_text().splitlines()]


def test_a_failed_download_is_pending_and_retry_failed_fetches_it_without_paying(
    sandbox: FluxSandbox, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with 1, says that it is paid, until when, and what to do; then it arrives, paid once."""
    assert run("remove-text", LATE, *QUICK, "--patience", "0.1") == 1
    [row] = rows()
    assert (row["status"], row["charge"], row["error"]["type"], row["file"]) == (
        "pending",
        "yes",
        "NotAnImage",
        None,
    )
    reported = capsys.readouterr().err
    assert "Download failed for late.jpg: the file host sent no JPEG" in reported
    assert "(2 attempts). The result is paid and stays available until " in reported
    assert "Run `flux-async retry out` to fetch it." in reported
    assert "Failed for good" not in reported
    assert run("retry", "out", "--failed", "--rate", "20/0.2") == 0
    reported = capsys.readouterr().err
    assert "0 images get another try, for up to 0 credits" in reported
    assert "1 image that is paid and not here yet: fetched, free of charge." in reported
    [row] = rows()
    assert (row["status"], row["error"], row["attempts"]) == ("succeeded", None, 1)
    assert Path("out", row["file"]).exists()
    assert len(sandbox.record()["tasks"]) == 1


# --- moved away, or left at the vendor --------------------------------------------------------------------


@attrs.define(eq=False)
class Done:
    """A folder in which one image is done, and not there."""

    client: FluxClient
    transport: Any
    clock: Any
    path: Path
    rows: list[ResultRow] = attrs.field(factory=list)
    tries: int = 0

    async def bring(
        self, answer: Callable[[float], FileAnswer], *, file: str | None, days: float = 1.0
    ) -> ResultRow:
        """Have the image brought; return its row."""
        began = self.clock.now

        @asynccontextmanager
        async def files(_url: str) -> Any:
            self.tries += 1
            yield answer(self.clock.now - began)

        self.transport.files = files
        folder = await RunFolder.open(self.path, account=self.client.fingerprint)
        try:
            [stored] = await folder.journal.add_jobs([as_job("https://example.com/poster.jpg")])
            at, job = self.clock.wall() - days * DAY_S, stored.job
            for event in (
                SubmitIntended(api="kontext", at=at),
                SubmitAccepted(at=at, task_id=TaskId("old")),
                TaskSucceeded(at=at, result_url="https://files.example/r.jpg"),
                Saved(at=at, file=file, sha256=None if file is None else "0" * 64),
            ):
                job = apply(job, event)
                await folder.journal.record(stored.number, job, event)

            async def settled(outcome: Outcome) -> None:
                problem = None if isinstance(outcome, Succeeded) else Problem.of(outcome.error)
                row = await folder.settled(stored.job.key, problem)
                assert row is not None
                self.rows.append(row)

            await fetch_missing(
                self.client, folder.journal, folder.images, patience=100.0, on_outcome=settled
            )
            left = await folder.journal.job(JobKey(stored.job.key))
            assert left is not None
            return folder.row(left)
        finally:
            await folder.aclose()


@pytest.fixture
def done(client: FluxClient, transport: Any, make: Any, clock: Any, tmp_path: Path) -> Done:
    """A folder in which one image is done, and not there; the vendor has no fresh links."""
    transport.script["download-url"] = [make.answer(None, 422, msg="url is wrong")]
    return Done(client, transport, clock, tmp_path / "out")


@pytest.mark.parametrize("file", [None, "poster.jpg"])
async def test_an_image_that_is_not_there_is_downloaded_as_soon_as_its_host_lets_it(
    done: Done, file: str | None
) -> None:
    """Half a minute of refusals costs nothing but tries."""
    row = await done.bring(lambda at: FileAnswer(503 if at < 30 else 200), file=file)
    assert (row.status, row.error) == ("succeeded", None)
    assert row.file is not None
    assert (done.path / row.file).read_bytes() == JPEG
    assert 4 < done.tries < 12
    assert [reported.status for reported in done.rows] == ["succeeded"]


@pytest.mark.parametrize("status", [403, 404, 410, 503])
@pytest.mark.parametrize("days", [1.0, 20.0])
async def test_an_image_that_was_moved_away_and_is_refused_stays_succeeded(
    done: Done, status: int, days: float
) -> None:
    """It was delivered: its row keeps its status and the reason for the missing file."""
    row = await done.bring(lambda _: FileAnswer(status, body=b""), file="poster.jpg", days=days)
    assert (row.status, row.file, row.charge) == ("succeeded", None, "yes")
    assert row.error is not None
    gone = days > 14 and status != 503
    assert row.error.type == ("ResultExpired" if gone else "DownloadError")
    assert f"HTTP {status}" in row.error.message
    assert (done.tries == 1) == gone
    assert "new charge" not in row.error.message


@pytest.mark.parametrize(
    ("days", "status", "kind"), [(1.0, "pending", "DownloadError"), (20.0, "failed", "ResultExpired")]
)
async def test_an_image_left_at_the_vendor_is_expired_only_after_14_days(
    done: Done, days: float, status: str, kind: str
) -> None:
    """It was never delivered: until then it is pending, and the same command fetches it."""
    row = await done.bring(lambda _: FileAnswer(404, body=b""), file=None, days=days)
    assert row.error is not None
    assert (row.status, row.error.type) == (status, kind)
