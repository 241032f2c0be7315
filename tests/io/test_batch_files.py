"""Batches of files of this machine, against a sandbox over sockets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import local_http
from flux_async import (
    AuthenticationError,
    Charge,
    EditRequest,
    Failed,
    FluxClient,
    InvalidInput,
    Job,
    JobConflictError,
    JobKey,
    Journal,
    Limits,
    LocalImage,
    PollPolicy,
    RequestNotSent,
    RetryPolicy,
    Scope,
    Succeeded,
    run_batch,
)
from flux_async.batch.inputs import REUSE_S, InputUpload
from flux_async.clock import SystemClock
from flux_async.job_state import JobState

LIMITS = Limits(submits=20, window_s=0.2)
POLLING = PollPolicy(first_s=0.1, interval_s=0.1, jitter=0)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


@pytest.fixture
def url(start_sandbox: Any) -> Iterator[str]:
    """A sandbox of the test's own, which fetches nothing."""
    return start_sandbox("--speed", "60", "--images", "none").url  # type: ignore[no-any-return]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Five files with different images."""
    made = [tmp_path / f"photo {number}.png" for number in range(5)]
    for number, path in enumerate(made):
        path.write_bytes(PNG + bytes([number]))
    return made


def client_of(url: str, **options: Any) -> FluxClient:
    return FluxClient("test", url, limits=LIMITS, polling=POLLING, **options)


def ledger(url: str) -> dict[str, Any]:
    """What the sandbox was asked and paid."""
    reported: dict[str, Any] = local_http.get(f"{url}/__sandbox/ledger").json()
    return reported


async def collect(url: str, images: Any, **options: Any) -> list[Any]:
    """Run a batch to its end with a client of its own."""
    async with client_of(url) as client, run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


async def test_files_are_uploaded_and_each_is_paid_once(url: str, photos: list[Path], tmp_path: Path) -> None:
    """Path, text, request and job: each file is a success that names it; a second run submits nothing."""
    journal = tmp_path / "run.sqlite3"
    images = [
        photos[0],
        str(photos[1]),
        EditRequest(prompt="Make it blue", input_image=photos[2]),
        Job(key=JobKey("mine"), request=EditRequest.text_removal(photos[3])),
        LocalImage(path="photo 4.png", folder=str(tmp_path)),
        photos[0],
    ]
    outcomes = await collect(url, images, journal=journal)
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    paths = {str(outcome.job.request.input_image) for outcome in outcomes}
    assert paths == {*map(str, photos[:4]), "photo 4.png"}
    reported = ledger(url)
    assert (reported["accepted"], reported["charged"]) == (5, 25)
    assert all("/images/flux-async/" in image for image in reported["images"])
    assert await collect(url, images, journal=journal) == []
    assert ledger(url)["accepted"] == 5


async def test_a_moved_file_is_the_same_job_and_a_changed_one_is_new(
    url: str, photos: list[Path], tmp_path: Path
) -> None:
    """What counts is the content; under a key of the caller's own, other content is a conflict."""
    journal = tmp_path / "run.sqlite3"
    named = [Job(key=JobKey("mine"), request=EditRequest.text_removal(photos[1]))]
    await collect(url, [photos[0], *named], journal=journal)
    moved = photos[0].rename(tmp_path / "moved.jpg")
    assert await collect(url, [moved], journal=journal) == []
    assert ledger(url)["accepted"] == 2
    async with Journal(journal) as opened:
        (first, _) = await opened.jobs(JobState.DONE)
    assert str(first.read().input_image) == str(moved)  # type: ignore[union-attr]
    moved.write_bytes(PNG + b"changed")
    assert len(await collect(url, [moved], journal=journal)) == 1
    assert ledger(url)["accepted"] == 3
    photos[1].write_bytes(PNG + b"changed")
    with pytest.raises(JobConflictError):
        await collect(url, named, journal=journal)


async def test_a_bad_file_fails_alone(url: str, photos: list[Path], tmp_path: Path) -> None:
    """Missing, not an image, a folder: a failure each, free of charge, and the others go on."""
    text = tmp_path / "notes.png"
    text.write_text("no image")
    images = [photos[0], tmp_path / "none.png", "none.png", text, tmp_path, photos[1]]
    outcomes = await collect(url, images)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert [type(outcome.error) for outcome in failed] == [InvalidInput] * 4
    assert len(outcomes) == 6
    async with client_of(url) as client:
        reported = await client.remove_text_many([photos[0], text], journal=tmp_path / "more.sqlite3")
    assert [type(outcome) for outcome in reported] == [Succeeded, Failed]


@pytest.mark.parametrize("change", ["missing", "changed", "unknown"])
async def test_a_file_that_is_gone_when_its_turn_comes_fails_alone(
    url: str, photos: list[Path], tmp_path: Path, change: str
) -> None:
    """Gone, changed, or known only by its content: the job fails unpaid, and runs when the file is back."""
    journal = tmp_path / "run.sqlite3"
    known = Job(request=EditRequest.text_removal(LocalImage(path=photos[0], sha256=digest_of(photos[0]))))
    content = photos[0].read_bytes()
    match change:
        case "missing":
            photos[0].unlink()
        case "changed":
            photos[0].write_bytes(PNG + b"other")
        case _:
            known = Job(request=EditRequest.text_removal(LocalImage(sha256=digest_of(photos[0]))))
    outcomes = await collect(url, [known, photos[1]], journal=journal)
    kinds = {str(type(outcome).__name__): outcome for outcome in outcomes}
    assert set(kinds) == {"Failed", "Succeeded"}
    assert isinstance(kinds["Failed"].error, InvalidInput)
    assert kinds["Failed"].error.charge is Charge.NO
    assert kinds["Failed"].job.key == known.key
    assert ledger(url)["accepted"] == 1
    photos[0].write_bytes(content)
    (outcome,) = await collect(url, [photos[0]], journal=journal)
    assert isinstance(outcome, Succeeded)
    assert outcome.job.key == known.key


def digest_of(path: Path) -> str:
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_wrong_key_halts_at_the_upload(url: str, photos: list[Path]) -> None:
    """401 from the upload host ends the batch once, before anything is submitted."""
    async with FluxClient("wrong", url) as client:
        with pytest.raises(AuthenticationError):
            async with run_batch(client, photos) as batch:
                async for outcome in batch:
                    raise AssertionError(outcome)
    assert ledger(url)["submits"] == 0


async def test_an_upload_host_that_is_down_halts_and_fails_no_image(
    url: str, photos: list[Path], tmp_path: Path
) -> None:
    """Nothing is submitted or charged; the next run takes all of them up."""
    journal, retry = tmp_path / "run.sqlite3", RetryPolicy(base_s=0.001, max_tries=2)
    async with (
        client_of(url, upload_url="http://127.0.0.1:9", retry=retry) as client,
        run_batch(client, photos, journal=journal, patience=0.05) as batch,
    ):
        with pytest.raises(RequestNotSent, match="KIE_UPLOAD_URL") as halt:
            [outcome async for outcome in batch]
    assert (halt.value.scope, halt.value.charge) == (Scope.STOP, Charge.NO)
    assert ledger(url)["submits"] == 0
    assert len(await collect(url, photos, journal=journal)) == 5


async def test_leaving_during_the_uploads_submits_nothing(
    raw_server: Any, url: str, photos: list[Path], tmp_path: Path
) -> None:
    """A batch that is left while its files are on their way ends at once; the next run begins anew."""

    async def stall(*_: Any) -> bool:
        await asyncio.Event().wait()
        return False

    journal = tmp_path / "run.sqlite3"
    async with (
        raw_server(stall) as host,
        client_of(url, upload_url=host.url) as client,
        asyncio.timeout(60),
        run_batch(client, photos, journal=journal),
    ):
        while len(host.requests) < 5:
            await asyncio.sleep(0.005)
    assert ledger(url)["submits"] == 0
    assert len(await collect(url, photos, journal=journal)) == 5


CRASH = """
import asyncio, os, sys
from pathlib import Path
from flux_async import FluxClient, run_batch
from flux_async.api.envelope import Host
from flux_async.transport.httpx_ import HttpxTransport

exchange = HttpxTransport.exchange

async def crash_after(self, request, *, timeout_s):
    truth = await exchange(self, request, timeout_s=timeout_s)
    if request.host is Host.UPLOADS:
        os._exit(9)
    return truth

HttpxTransport.exchange = crash_after

async def main():
    async with FluxClient("test", sys.argv[1], transport="httpx") as client:
        async with run_batch(client, [Path(p) for p in sys.argv[3:]], journal=sys.argv[2]) as batch:
            async for _ in batch:
                pass

asyncio.run(main())
"""


async def test_a_crash_between_upload_and_submit_costs_nothing(
    url: str, photos: list[Path], tmp_path: Path
) -> None:
    """The process dies after its first upload: nothing is in doubt, and each file is paid once."""
    journal = tmp_path / "run.sqlite3"
    command = [sys.executable, "-c", CRASH, url, str(journal), *map(str, photos)]
    died = await asyncio.to_thread(subprocess.run, command, timeout=60, check=False)
    assert died.returncode == 9
    assert ledger(url)["submits"] == 0
    async with Journal(journal) as opened:
        assert await opened.counts() == {JobState.PENDING: 5}
    outcomes = await collect(url, photos, journal=journal)
    assert [type(outcome) for outcome in outcomes] == [Succeeded] * 5
    assert Counter(len(line["tasks"]) for line in ledger(url)["images"].values()) == {1: 5}


async def test_the_journal_stores_content_and_sent_address(
    url: str, photos: list[Path], tmp_path: Path
) -> None:
    """A stored request is the same in every run; the attempt keeps the address that was sent."""
    journal = tmp_path / "run.sqlite3"
    await collect(url, [photos[0]], journal=journal)
    async with Journal(journal) as opened:
        (stored,) = await opened.jobs(JobState.DONE)
        (sent,) = await opened.input_urls(stored.number)
    assert f'"inputImage":"sha256:{digest_of(photos[0])}"' in stored.request
    assert str(photos[0]) not in stored.request
    assert list(ledger(url)["images"]) == [sent]
    assert (stored.source, stored.source_folder) == (str(photos[0]), str(Path.cwd()))


async def test_addresses_go_through_the_upload_host_on_request(
    url: str, image_host: Any, tmp_path: Path
) -> None:
    """With via_upload the vendor fetches from its own host; the job is still that of the address."""
    journal, image = tmp_path / "run.sqlite3", f"{image_host.url}/poster.png"
    await collect(url, [image], journal=journal, via_upload=True)
    (sent,) = ledger(url)["images"]
    assert sent.startswith(url)
    assert await collect(url, [image], journal=journal) == []


async def test_a_name_that_is_no_unicode_is_kept(url: str, tmp_path: Path) -> None:
    """Whatever bytes the file system allows in a name."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/photo-\xff.png")
    Path(path).write_bytes(PNG)
    journal = tmp_path / "run.sqlite3"
    (outcome,) = await collect(url, [path], journal=journal)
    assert isinstance(outcome, Succeeded)
    async with Journal(journal) as opened:
        (stored,) = await opened.jobs(JobState.DONE)
    assert stored.source == path


class _LaterClock(SystemClock):
    """A clock whose wall can be moved on."""

    ahead = 0.0

    def wall(self) -> float:
        """Return the time, moved on."""
        return super().wall() + self.ahead


async def test_an_upload_is_used_again_while_it_is_young(url: str, photos: list[Path]) -> None:
    """A second try of a submit takes the same upload; half a day later the file is uploaded again."""
    clock = _LaterClock()
    async with client_of(url, clock=clock) as client:
        place = InputUpload(client=client, request=EditRequest.text_removal(photos[0]))
        assert (place.is_ready, place.url) == (False, None)
        await place.prepare()
        first = place.url
        await place.prepare()
        assert (place.is_ready, place.url) == (True, first)
        clock.ahead = REUSE_S + 1
        assert not place.is_ready
        await place.prepare()
        assert place.url not in {None, first}
        plain = InputUpload(client=client, request=EditRequest.text_removal("https://example.com/a.jpg"))
        await plain.prepare()
        assert (plain.is_ready, plain.url) == (True, None)
