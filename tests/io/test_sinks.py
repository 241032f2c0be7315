"""Results that go to a destination of the caller's instead of a folder."""

from __future__ import annotations

import io
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    Charge,
    DownloadError,
    EditRequest,
    Failed,
    FluxClient,
    FolderSink,
    ImageStream,
    InvalidInput,
    Job,
    JobKey,
    Sink,
    Succeeded,
    run_batch,
)
from flux_async.testing import FluxSandbox, VirtualClock

URLS = [f"https://example.com/{n}.jpg" for n in range(4)]


@attrs.define
class ZipSink:
    """Puts each image into one archive."""

    archive: Path

    async def save(self, job: Job, stream: ImageStream) -> str:
        """Add the image to the archive."""
        for part in Path(tempfile.gettempdir()).glob("*.part"):
            assert stat.S_IMODE(part.stat().st_mode) == 0o600
        data = b"".join([chunk async for chunk in stream])
        with zipfile.ZipFile(self.archive, "a") as archive:
            archive.writestr(stream.name, data)
        return f"{self.archive.name}!{stream.name}"


@attrs.define
class FailingSink:
    """Fails a given number of times, then keeps its images."""

    failures: int
    error: Exception = attrs.field(factory=lambda: OSError("the store is away"))
    reference: Any = "kept"
    seen: list[str] = attrs.field(factory=list)

    async def save(self, job: Job, stream: ImageStream) -> str:
        """Fail, or return the reference."""
        self.seen.append(job.key)
        if len(self.seen) <= self.failures:
            raise self.error
        return self.reference  # type: ignore[no-any-return]


@pytest.fixture
def sandbox(flux_clock: VirtualClock, flux_sandbox: FluxSandbox) -> FluxSandbox:
    """A sandbox on virtual time."""
    return flux_sandbox


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which images grow that do not go to a folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def collect(client: FluxClient, images: Any, **options: Any) -> list[Any]:
    async with client, run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


async def test_a_batch_saves_its_images_in_an_archive(
    sandbox: FluxSandbox, tmp_path: Path, temporary: Path
) -> None:
    """Every image arrives whole under its name, its reference is reported, and no file is left behind."""
    sink = ZipSink(tmp_path / "clean.zip")
    outcomes = await collect(
        sandbox.client(), URLS, sink=sink, journal=tmp_path / "run.sqlite3", name_file=name
    )
    assert all(isinstance(outcome, Succeeded) and outcome.file is None for outcome in outcomes)
    with zipfile.ZipFile(sink.archive) as archive:
        names = set(archive.namelist())
        assert {outcome.reference for outcome in outcomes} == {f"clean.zip!{one}" for one in names}
        assert {one.rpartition(".")[0] for one in names} == {f"posters/{n}" for n in range(4)}
        assert all(io.BytesIO(archive.read(one)).getvalue() for one in names)
    assert list(temporary.glob("*.part")) == []
    assert await collect(sandbox.client(), URLS, sink=sink, journal=tmp_path / "run.sqlite3") == []


def name(job: Job) -> str:
    assert isinstance(job.request, EditRequest)
    return f"posters/{Path(str(job.request.input_image)).stem}"


async def test_a_folder_is_a_sink_like_any_other(sandbox: FluxSandbox, tmp_path: Path) -> None:
    """``directory=`` and a ``FolderSink`` save the same files; the reference is the name in the folder."""
    for folder, options in (
        ("a", {"directory": tmp_path / "a"}),
        ("b", {"sink": FolderSink(str(tmp_path / "b"))}),
    ):
        outcomes = await collect(sandbox.client(), URLS[:2], name_file=name, **options)
        assert all((tmp_path / folder / outcome.reference).is_file() for outcome in outcomes)
    files = [sorted(p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*.*")) for f in ("a", "b")]
    assert files[0] == files[1]
    assert len(files[0]) == 2


async def test_a_sink_that_fails_for_a_while_loses_nothing(sandbox: FluxSandbox, temporary: Path) -> None:
    """The image is paid once, and saved again until the sink takes it."""
    sink, paid = FailingSink(failures=2), sandbox.ledger.charged
    (outcome,) = await collect(sandbox.client(), URLS[:1], sink=sink, patience=60)
    assert isinstance(outcome, Succeeded)
    assert (outcome.reference, len(sink.seen)) == ("kept", 3)
    assert sandbox.ledger.charged - paid == 5
    assert list(temporary.glob("*.part")) == []


@pytest.mark.parametrize(
    "sink",
    [FailingSink(failures=9, error=DownloadError("full", retryable=False)), FailingSink(0, reference=None)],
    ids=["error", "no reference"],
)
async def test_a_sink_that_cannot_save_fails_its_image_only(
    sandbox: FluxSandbox, tmp_path: Path, sink: Sink
) -> None:
    """The result stays paid and fetchable: another run with a sink that works saves it."""
    journal = tmp_path / "run.sqlite3"
    (outcome,) = await collect(sandbox.client(), URLS[:1], sink=sink, journal=journal)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, DownloadError)
    (again,) = await collect(sandbox.client(), URLS[:1], sink=FailingSink(0), journal=journal)
    assert isinstance(again, Succeeded)
    assert again.reference == "kept"


async def test_one_result_is_saved_in_a_sink(sandbox: FluxSandbox, tmp_path: Path) -> None:
    """``client.save`` works without a batch."""
    async with sandbox.client() as client:
        image = await client.remove_text(URLS[0])
        job = Job(key=JobKey("mine"), request=EditRequest.text_removal(URLS[0]))
        saved = await client.save(image, ZipSink(tmp_path / "one.zip"), job=job, name="poster")
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        (inside,) = archive.namelist()
    assert saved.reference == f"one.zip!{inside}"
    assert inside.startswith("poster.")


async def test_a_folder_and_a_sink_are_refused_together(sandbox: FluxSandbox, tmp_path: Path) -> None:
    """Nothing is opened or sent."""
    with pytest.raises(InvalidInput, match="give one of them"):
        run_batch(sandbox.client(), URLS, directory=tmp_path, sink=ZipSink(tmp_path / "a.zip"))


class SyncSink:
    """Forgets ``async``."""

    def save(self, job: Job, stream: ImageStream) -> str:
        """Return a reference at once."""
        return "kept"


class SinkOfOneArgument:
    """Takes too little."""

    async def save(self, stream: ImageStream) -> str:
        """Return a reference."""
        return "kept"


@pytest.mark.parametrize(
    "sink", ["folder", object(), 3, ZipSink, SyncSink(), SinkOfOneArgument()], ids=lambda sink: repr(sink)[:9]
)
async def test_a_sink_that_cannot_save_is_refused_before_anything_is_sent(
    sandbox: FluxSandbox, sink: Any
) -> None:
    """Nothing is paid, and the message says what to give."""
    paid = sandbox.ledger.charged
    with pytest.raises(InvalidInput, match=r"async def save\(self, job, stream\).*give directory="):
        run_batch(sandbox.client(), URLS, sink=sink)
    async with sandbox.client() as client:
        with pytest.raises(InvalidInput, match="async def save"):
            await client.save("https://example.com/a.jpg", sink, job=None, name="a")  # type: ignore[arg-type]
    assert sandbox.ledger.charged == paid


@pytest.mark.parametrize("error", [AttributeError("no bucket"), TypeError("x"), InvalidInput("x")])
async def test_an_error_in_the_code_of_a_sink_is_not_retried_and_the_result_stays_fetchable(
    sandbox: FluxSandbox, tmp_path: Path, error: Exception
) -> None:
    """It would come again at every try. The outcome names the paid task; the next run saves its image."""
    sink, paid = FailingSink(failures=9, error=error), sandbox.ledger.charged
    journal = tmp_path / "run.sqlite3"
    (outcome,) = await collect(sandbox.client(), URLS[:1], sink=sink, journal=journal)
    assert isinstance(outcome, Failed)
    assert len(sink.seen) == 1
    assert outcome.error.task_id is not None
    assert outcome.error.charge is Charge.YES
    assert "The result is paid and stays available until" in str(outcome.error)
    assert "nothing was sent" not in str(outcome.error)
    assert ("Correct FailingSink.save." in str(outcome.error)) is not isinstance(error, InvalidInput)
    (again,) = await collect(sandbox.client(), URLS[:1], sink=FailingSink(0), journal=journal)
    assert isinstance(again, Succeeded)
    assert sandbox.ledger.charged - paid == 5
