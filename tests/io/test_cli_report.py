"""The command report: what a page says about a folder, during a run and after it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from PIL import Image

from flux_async import Charge, EditRequest
from flux_async.api.stored_requests import store_request
from flux_async.cli import report
from flux_async.cli.commands import cli
from flux_async.cli.report import read_report, show_report, write_report
from flux_async.cli.results import ErrorNote, ResultFile, ResultRow
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.terminal import run_cli
from flux_async.job_state import (
    Composed,
    Event,
    NotChecked,
    Problem,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitRejected,
    SubmitUnknown,
    TaskSucceeded,
    Verified,
)
from flux_async.journal.store import Journal
from flux_async.models import Echo, JobKey, TaskId
from flux_async.testing import FluxSandbox
from journal_records import happened

Run: TypeAlias = Callable[..., tuple[int, str]]

PROBLEM = Problem(type="ConnectionLost", message="No answer came.")


def events(name: str) -> tuple[Event, ...]:
    """Return what has happened to the job of that name."""
    intended, accepted = (
        SubmitIntended(at=1.0, api="kontext"),
        SubmitAccepted(at=2.0, task_id=TaskId(f"task-{name}")),
    )
    found = TaskSucceeded(
        at=9.0, result_url=f"https://files.example/{name}.png", generation_s=6.5, echo=Echo.CONFIRMED
    )
    return {
        "new": (),
        "submitting": (intended,),
        "generating": (intended, accepted),
        "paid": (intended, accepted, found),
        "done": (intended, accepted, found, Saved(at=10.0, file="done-1.png", sha256="0" * 64)),
        "refused": (
            intended,
            SubmitRejected(at=2.0, problem=Problem(type="ApiError", message="Bad request.")),
        ),
        "doubt": (intended, SubmitUnknown(at=2.0, problem=PROBLEM)),
    }[name]


NAMES = ("new", "submitting", "generating", "paid", "done", "refused", "doubt")


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """An open journal with a job in every state, and the folder's files."""
    for place in ("images", "originals"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (40, 30), "red").save(
            tmp_path / place / f"done-1.{'png' if place == 'images' else 'jpg'}"
        )
    async with Journal(tmp_path / JOURNAL) as journal:
        entries = [
            (JobKey(name), store_request(EditRequest.text_removal(f"https://shop.example/{name}.jpg?w=9")))
            for name in NAMES
        ]
        for name, stored in zip(NAMES, await journal.add(entries), strict=True):
            await happened(journal, stored, *events(name))
        yield journal


def append_errors(folder: Path) -> None:
    """Write what only results.jsonl knows: an input that is no job, and why a paid image is not here."""
    file, error = ResultFile(folder), ErrorNote(type="DownloadError", message="The host is away.")
    no_image = ErrorNote(type="InvalidInput", message="It is not an http(s) URL.")
    file.append(ResultRow(image="ftp://x/y", key="argument 9", status="failed", error=no_image))
    file.append(ResultRow(image="https://shop.example/paid.jpg", key="paid", charge=Charge.YES, error=error))
    with file.path.open("a") as lines:
        lines.write('{"image": "cut')


def by_key(folder: Path) -> dict[str, Any]:
    return {row.key: row for row in read_report(folder).rows}


async def test_every_state_has_its_row(journal: Journal, tmp_path: Path) -> None:
    """After a run: kinds, stages, files, errors, inputs that never became a job."""
    append_errors(tmp_path)
    await journal.aclose()
    rows = by_key(tmp_path)
    assert {key: str(row.kind) for key, row in rows.items()} == {
        "new": "pending",
        "submitting": "in_doubt",
        "generating": "pending",
        "paid": "pending",
        "done": "succeeded",
        "refused": "failed",
        "doubt": "in_doubt",
        "argument 9": "refused",
    }
    done, paid = rows["done"], rows["paid"]
    assert (done.title, done.vendor.file, done.original.file) == (
        "done.jpg",
        tmp_path / "images" / "done-1.png",
        tmp_path / "originals" / "done-1.jpg",
    )
    assert (done.generation_s, done.credits, done.original_url) == (
        6.5,
        5.0,
        "https://shop.example/done.jpg?w=9",
    )
    assert (paid.stage, paid.error) == ("finished, not downloaded yet", "The host is away.")
    assert rows["argument 9"].original_url is None
    head = read_report(tmp_path).head
    assert (head.images, head.credits, head.credits_in_doubt) == (8, 15.0, 5.0)


async def test_findings_of_checks_are_in_the_row(journal: Journal, tmp_path: Path) -> None:
    """A composed result stands beside the vendor's; verdict, words and figures are those of verify."""
    vendor = tmp_path / "images" / "vendor" / "done-1.jpg"
    vendor.parent.mkdir()
    Image.new("RGB", (32, 32)).save(vendor)
    done = await journal.job("done")
    assert done is not None
    composed = Composed(at=11.0, file="done-1.png", sha256="1" * 64, vendor_file="vendor/done-1.jpg")
    verdict = {"kind": "text_left", "reason": "SALE can be read", "words": ["SALE"], "text_left": 0.25}
    await happened(journal, done, composed, Verified(at=12.0, verdict=verdict))
    await journal.aclose()
    assert by_key(tmp_path)["done"].hole == ()
    write_report(tmp_path, copies_s=60)
    row = by_key(tmp_path)["done"]
    assert len(row.hole) == 1  # of a JPEG original nearly all pixels differ
    assert (row.vendor.file, row.preserved.file) == (vendor, tmp_path / "images" / "done-1.png")
    assert (row.verdict, row.words_left, row.text_left) == ("text_left", ("SALE",), 0.25)
    assert "text_left" in row.filters


async def test_outlines_of_the_journal_are_shown_as_they_are(journal: Journal, tmp_path: Path) -> None:
    """They are what was replaced: the images are not compared, and may be elsewhere by now."""
    done = await journal.job("done")
    assert done is not None
    line = [100, 100, 900, 100, 900, 200, 100, 200]
    files = {"file": "done-1.png", "sha256": "1" * 64, "vendor_file": "vendor/done-1.jpg"}
    await happened(journal, done, Composed(at=11.0, **files, replaced=0.1, outlines=(tuple(line),)))
    await journal.aclose()
    (tmp_path / "originals" / "done-1.jpg").unlink()
    report = read_report(tmp_path)
    assert report.without_hole == []
    assert {row.key: row.hole for row in report.rows}["done"] == (line,)


@pytest.mark.parametrize(
    ("event", "filters"),
    [
        (NotChecked(at=11.0, problem="The original is away."), {"unsure"}),
        (Verified(at=11.0, verdict={"kind": "clean", "no_text": True}), {"no_text"}),
        (
            Composed(at=11.0, file="a.png", sha256="1" * 64, vendor_file="vendor/a.png", reason="no overlap"),
            {"not_preserved"},
        ),
    ],
    ids=["no check", "no text", "refused"],
)
async def test_results_that_need_a_look_after_checks(
    journal: Journal, tmp_path: Path, event: Event, filters: set[str]
) -> None:
    """Those that could not be checked, and those that could not be composed; not those without text."""
    done = await journal.job("done")
    assert done is not None
    await happened(journal, done, event)
    await journal.aclose()
    row = by_key(tmp_path)["done"]
    assert set(row.filters) - {"all", "succeeded", "attention"} == filters
    assert ("attention" in row.filters) == (filters != {"no_text"})
    assert row.preserved is None


async def test_a_page_during_a_run(journal: Journal, tmp_path: Path) -> None:
    """It says so; a submit in progress is not in doubt; no command is given that the run would refuse."""
    assert by_key(tmp_path)["submitting"].stage == "being submitted"
    head = read_report(tmp_path).head
    assert head.is_running
    assert [step for step in head.next_steps.values() if step.command] == []
    assert "A run was going on" in write_report(tmp_path).read_text()


async def test_watching_ends_with_the_run(
    journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is written anew until then and reloads itself; the last one does not."""
    pages = []

    def sleep(seconds: float) -> None:
        pages.append((tmp_path / "report.html").read_text())
        if len(pages) == 2:
            (tmp_path / f"{JOURNAL}.lock").write_text("")  # as when its process ends

    assert show_report(tmp_path, watch=True, contact_sheet=False, sleep=sleep) == 0
    assert ['data-reload="10"' in page for page in pages] == [True, True]
    assert "data-reload" not in (tmp_path / "report.html").read_text()
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


async def test_commands_are_quoted_and_say_what_they_pay(journal: Journal, tmp_path: Path) -> None:
    """Folders with spaces and quotes are pasted whole; a command that pays twice says so."""
    await journal.aclose()
    folder = tmp_path / "it's a run"
    folder.mkdir()
    for path in tmp_path.glob(f"{JOURNAL}*"):
        path.rename(folder / path.name)
    steps = read_report(folder).head.next_steps
    quoted = f"""'{tmp_path}/it'"'"'s a run'"""
    commands = {str(name): step.command for name, step in steps.items()}
    assert [commands.pop(name) for name in ("unsure", "not_preserved")] == [None, None]
    assert commands == {
        "failed": f"flux-async retry {quoted} --failed",
        "in_doubt": f"flux-async retry {quoted} --in-doubt",
        "pending": f"flux-async retry {quoted}",
        "all": f"flux-async retry {quoted}",
        "text_left": f"flux-async retry {quoted} --text-left",
        "damaged": f"flux-async retry {quoted} --damaged",
        "refused": None,
        "unrecognised": None,
    }
    words = {str(name): step.words for name, step in steps.items()}
    assert "up to 5 credits" in words["failed"]
    assert "perhaps for a second charge" in words["in_doubt"]
    assert "nothing is paid twice" in words["pending"]


async def test_a_long_run_shows_first_what_needs_a_look(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page has a limit; the counts of images and credits are those of the whole run."""
    await journal.aclose()
    monkeypatch.setattr("flux_async.cli.report_rows.MOST_ROWS", 4)
    report = read_report(tmp_path)
    assert [row.key for row in report.rows] == ["new", "submitting", "refused", "doubt"]
    assert report.head.images == 7
    assert "up to 5 credits" in report.head.next_steps["failed"].words


async def test_the_command_writes_page_copies_and_sheet(
    journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths are printed; the page links to the small copies; a second time makes none."""
    await journal.aclose()
    monkeypatch.setattr(sys, "argv", ["flux-async", "report", str(tmp_path), "--contact-sheet"])
    assert run_cli(cli) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name) for name in ("report.html", "contact_sheet.png")
    ]
    copies = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "thumbnails").iterdir()}
    assert len(copies) == 2
    page = (tmp_path / "report.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    (done,) = (row for row in data["rows"] if row["key"] == "done")
    assert done["vendor"]["file"] == "images/done-1.png"
    assert {done[role]["thumbnail"].rpartition("/")[2] for role in ("vendor", "original")} == set(copies)
    assert run_cli(cli) == 0
    assert copies == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "thumbnails").iterdir()}


@pytest.mark.parametrize(("folder", "code"), [("missing", 2), ("run", 1)])
async def test_a_folder_that_cannot_be_used(
    journal: Journal, tmp_path: Path, folder: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a journal is a wrong argument; a page that cannot be written is a failure."""
    await journal.aclose()
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "full").touch()
    path = tmp_path if folder == "run" else tmp_path / folder
    monkeypatch.setattr(sys, "argv", ["flux-async", "report", str(path)])
    assert run_cli(cli) == code
    assert not (tmp_path / "missing").exists()


async def test_without_its_extra_the_command_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written, and the exit code is that of settings."""
    monkeypatch.delattr(report, "show_report")
    monkeypatch.setattr(sys, "argv", ["flux-async", "report", str(tmp_path)])
    assert run_cli(cli) == 2
    assert "flux-async[report]" in capsys.readouterr().err


# --- the page of a run ------------------------------------------------------------------------------------


@pytest.fixture
def run(
    make_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run remove-text on an image in this process, against a sandbox; return exit code and messages."""
    with FluxSandbox(sockets=True) as sandbox:
        make_cli().teach_times()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KIE_BASE_URL", sandbox.url)
        monkeypatch.setenv("KIE_API_KEY", "test")

        def run(*options: str) -> tuple[int, str]:
            words = ["flux-async", "remove-text", "https://example.com/a.jpg", "-o", "out", *options]
            monkeypatch.setattr(sys, "argv", words)
            return run_cli(cli), capsys.readouterr().err

        yield run


def test_a_run_ends_with_its_report(run: Run, tmp_path: Path) -> None:
    """It says where the page is; --no-report writes none."""
    code, errors = run("--no-report")
    assert (code, (tmp_path / "out" / "report.html").exists()) == (0, False)
    assert "Report:" not in errors
    code, errors = run()
    assert code == 0
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in errors
    assert "https://example.com/a.jpg" in (tmp_path / "out" / "report.html").read_text()


def test_no_report_fails_a_run(run: Run, tmp_path: Path) -> None:
    """A page that cannot be written is a message; the exit code is that of the images."""
    (tmp_path / "out" / "report.html" / "full").mkdir(parents=True)
    code, errors = run()
    assert code == 0
    assert "The report could not be written" in errors
