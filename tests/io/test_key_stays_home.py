"""Nothing that a run puts out contains the key: logs, spans, metrics, journal, report, snapshots, titles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import SECONDS, Cli
from flux_async import JobService, run_batch
from flux_async.testing import FluxSandbox
from telemetry import Telemetry

KEY = "sk-nobody-should-see-me-4711"
FAULTS = "fail-501:20%,drop-reply:10%,poll-500:10%"
IMAGES = [f"https://example.com/{n}.jpg?token=geheim" for n in range(12)]


@pytest.fixture
def sandbox() -> Iterator[FluxSandbox]:
    """A sandbox with that key, where much goes wrong."""
    with FluxSandbox(sockets=True, keys=(KEY,), faults=FAULTS) as opened:
        yield opened


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_nothing_that_is_observed_contains_the_key(
    sandbox: FluxSandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither do spans, metrics and log lines have a query of an address."""
    caplog.set_level(logging.DEBUG)
    seen, snapshots = Telemetry(), []
    async with sandbox.client(observers=[seen.observer]) as client:
        async with run_batch(client, IMAGES, journal=tmp_path / "run.sqlite3") as batch:
            async for _ in batch:
                snapshots.append(repr((client, client.snapshot(), batch.progress)))
        async with JobService(client, journal=tmp_path / "jobs.sqlite3") as service:
            key = await service.add("https://example.com/served.jpg")
            async with asyncio.timeout(SECONDS):
                async for event in service.events(key):
                    snapshots.append(repr((event, service, service.snapshot())))
    spans = "\n".join(span.to_json() for span in seen.spans)
    metrics = seen.exposition()
    assert spans
    assert snapshots
    assert seen.total("flux_async_job_outcomes_total") == len(IMAGES) + 1
    assert KEY.encode() not in b"".join(files_in(tmp_path).values())
    ours = [record for record in caplog.records if record.name.startswith("flux_async")]
    fields = [repr(vars(record)) for record in ours]  # what structured formatters write
    assert fields
    for text in (spans, metrics, caplog.text, *fields, *snapshots):
        assert KEY not in text
    for text in (spans, metrics, *fields):
        assert "geheim" not in text


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc here")
def test_nothing_that_a_command_leaves_contains_the_key(sandbox: FluxSandbox, tmp_path: Path) -> None:
    """Neither what it prints, nor its folder with the report, nor the titles of its processes."""
    cli = Cli(tmp_path, sandbox.url, KEY)
    cli.teach_times()
    titles: set[str] = set()
    with (tmp_path / "printed").open("w") as printed:
        options = {"stdout": printed, "stderr": printed}
        with cli.start("remove-text", *IMAGES, "-o", "out", "--rate", "100/1", "-vv", **options) as process:
            cli.wait_for(lambda: titles.update(titles_of(process.pid)) or process.poll() is not None)
    left = files_in(tmp_path)
    assert {"out/report.html", "out/results.jsonl", "out/journal.sqlite3"} <= left.keys(), left["printed"]
    assert any("remove-text" in title for title in titles)
    assert KEY not in "".join(titles)
    assert [name for name, content in left.items() if KEY.encode() in content] == []


def titles_of(pid: int) -> list[str]:
    """Return the titles of a process and of those that it has started, as ``ps`` shows them."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [Path(f"/proc/{each}/cmdline").read_bytes().decode() for each in (pid, *children)]
    except OSError:
        return []  # one of them has ended
