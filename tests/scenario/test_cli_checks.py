"""remove-text with --preserve and --verify: files, results.jsonl, report, status, and what is printed."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from rich.console import Console

from check_workers import CLEAN, CheckWorkers
from flux_async import (
    BatchProgress,
    FluxClient,
    InvalidInput,
    Limits,
    Model,
    PollPolicy,
    Preserved,
    PreserveRefusal,
    PreserveReport,
    VerdictKind,
    retry,
)
from flux_async.cli.commands import cli
from flux_async.cli.display import MessageConsole, RunDisplay, RunView, live_lines, plain_line
from flux_async.cli.dry_run import run_dry
from flux_async.cli.folder_commands import what_to_retry
from flux_async.cli.inputs import gather_inputs
from flux_async.cli.report import read_report
from flux_async.cli.results import row_of
from flux_async.cli.run_command import RunCommand
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption
from flux_async.cli.status import status_of
from flux_async.cli.terminal import Exit, Output, run_cli
from flux_async.job_state import NO_CHECKS, JobState, WantedChecks
from flux_async.journal.reader import JournalReader
from flux_async.report.rows import Filter
from scripted_vendor import ScriptedVendor, echo
from tests.support.file_host import JPEG, FileAnswer

FAST = Limits(submits=1000, window_s=0.01, in_flight=20)
POLLING = PollPolicy(first_s=0.0, interval_s=0.002, jitter=0.0)
BOTH = WantedChecks(preserve=True, verify=True)
URLS = [f"https://pictures.example/{number}.jpg" for number in range(3)]
LEFT = attrs.evolve(CLEAN, kind=VerdictKind.TEXT_LEFT, text_left=0.25, words=("SALE",), background_kept=0.5)


async def done_jobs(reader: Any, _spending: Any) -> None:
    """Select what the commands on a folder select."""
    await reader.select(reader.folder.reader.jobs(JobState.DONE))


@attrs.define(eq=False)
class Runs:
    """Runs remove-text in one folder, without its process."""

    folder: Path
    vendor: ScriptedVendor
    said: io.StringIO = attrs.field(factory=io.StringIO)

    async def run(
        self,
        workers: CheckWorkers | None,
        checks: WantedChecks = BOTH,
        *,
        only_checks: bool = False,
        select: Any = None,
    ) -> tuple[Exit, list[dict[str, Any]]]:
        """Return the exit code and the lines of results.jsonl."""
        console = MessageConsole()
        console.file = self.said
        command = RunCommand(
            options=RunOptions(folder=self.folder, limits=FAST, checks=checks, only_checks=only_checks),
            select=select or (lambda reader, _: reader.read(gather_inputs(URLS, []))),
            make_client=lambda: FluxClient(
                "k", "http://127.0.0.1:1", transport=self.vendor, limits=FAST, polling=POLLING
            ),
            display=RunDisplay(output=Output(), prints_results=False, console=console),
            interruption=Interruption(),
            checks=workers,
        )
        code = await command.run()
        lines = (self.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return code, list(map(json.loads, lines))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs against a vendor whose results, and whose users' images, can be downloaded."""

    @asynccontextmanager
    async def fetch(_url: str) -> AsyncIterator[FileAnswer]:
        yield FileAnswer()

    monkeypatch.setenv("COLUMNS", "1000")
    vendor = ScriptedVendor(polls=1, shows=echo)
    vendor.files = fetch
    return Runs(tmp_path / "out", vendor)


async def test_results_report_and_status_say_what_the_checks_found(runs: Runs) -> None:
    """Composed images in images/, the vendor's in images/vendor/, originals in originals/."""
    code, rows = await runs.run(CheckWorkers(verdict=LEFT))
    assert code is Exit.SUCCEEDED
    folder = runs.folder
    assert {Path(row["file"]).parent.as_posix() for row in rows} == {"images"}
    assert {Path(row["vendor_file"]).parent.as_posix() for row in rows} == {"images/vendor"}
    assert all((folder / row[name]).is_file() for row in rows for name in ("file", "vendor_file"))
    assert len(list((folder / "originals").iterdir())) == 3
    found = ("verdict", "text_left", "words_left", "background_kept", "not_preserved", "not_checked")
    assert {tuple(map(str, (row[name] for name in found))) for row in rows} == {
        ("text_left", "0.25", "['SALE']", "0.5", "None", "None")
    }
    for shown in read_report(folder).rows:
        assert (shown.verdict, shown.text_left, shown.words_left) == ("text_left", 0.25, ("SALE",))
        assert shown.vendor.file.parent == folder / "images" / "vendor"
        assert shown.preserved.file.parent == folder / "images"
        assert shown.original.file.parent == folder / "originals"
    with JournalReader(folder / JOURNAL) as reader:
        assert status_of(reader, None)["checks"] == {"preserved": 3, "text_left": 3}
    assert "text left" in runs.said.getvalue()
    assert "composed with their originals" in runs.said.getvalue()


async def test_a_refusal_is_in_the_results_and_the_report(runs: Runs) -> None:
    """The file is the vendor's image."""
    _, rows = await runs.run(
        CheckWorkers(lambda _kind, _original: "other content"), attrs.evolve(BOTH, verify=False)
    )
    assert {row["not_preserved"] for row in rows} == {"other content"}
    for shown in read_report(runs.folder).rows:
        assert (shown.not_preserved, shown.preserved) == ("other content", None)
        assert shown.vendor.file.read_bytes() == (runs.folder / rows[0]["file"]).read_bytes()
    assert "not composed: the vendor's image" in runs.said.getvalue()


async def test_images_that_were_not_checked_are_named_and_checked_by_the_next_run(runs: Runs) -> None:
    """The command that is named tries again; the images succeeded, and are paid once."""

    def broken(_kind: str, _original: Path) -> None:
        raise InvalidInput("It is broken.")

    code, rows = await runs.run(CheckWorkers(broken))
    assert (code, {row["not_checked"] for row in rows}) == (Exit.SUCCEEDED, {"It is broken."})
    again = f"To try again: `flux-async retry {runs.folder} --preserve --verify`; nothing is paid twice."
    assert again in runs.said.getvalue()
    code, rows = await runs.run(CheckWorkers())
    assert {(row["verdict"], row["not_checked"]) for row in rows} == {("clean", None)}
    assert "3 of 3 done before, and checked now: nothing is paid for them." in runs.said.getvalue()
    assert runs.vendor.count("generate") == 3


async def test_a_composed_image_that_was_moved_away_is_made_again(runs: Runs) -> None:
    """The vendor's is fetched, and composed after it came; nothing is paid again."""
    _, rows = await runs.run(CheckWorkers())
    (runs.folder / rows[0]["file"]).unlink()
    _, again = await runs.run(CheckWorkers())
    assert [row["file"] for row in again] == [row["file"] for row in rows]
    assert all((runs.folder / row["file"]).is_file() for row in again)
    assert runs.vendor.count("generate") == 3


async def test_a_folder_that_is_done_is_checked_without_a_submit_or_a_poll(runs: Runs) -> None:
    """Exit 0 only if the checks found nothing to look at; the second time there is nothing to do."""
    await runs.run(None, NO_CHECKS)
    before = len(runs.vendor.seen)
    code, rows = await runs.run(CheckWorkers(verdict=LEFT), only_checks=True, select=done_jobs)
    assert (code, {row["verdict"] for row in rows}) == (Exit.SOME_FAILED, {"text_left"})
    assert all(row["vendor_file"] and (runs.folder / row["file"]).is_file() for row in rows)
    workers = CheckWorkers()
    code, again = await runs.run(workers, only_checks=True, select=done_jobs)
    assert (code, again, workers.made.total()) == (Exit.SOME_FAILED, rows, 0)
    assert len(runs.vendor.seen) == before


async def test_a_retry_says_how_many_images_are_paid_again_and_checks_the_new_ones(runs: Runs) -> None:
    """The run names command and cost first, as the report does; they are printed before the first submit."""
    await runs.run(CheckWorkers(verdict=LEFT))
    told = (
        "Text left: 3 in this folder. To pay for another task for each, up to 15 credits: `flux-async retry "
    )
    assert f"{told}{runs.folder} --text-left`" in runs.said.getvalue()
    step = read_report(runs.folder).head.next_steps[Filter.TEXT_LEFT]
    assert step.command == f"flux-async retry {runs.folder} --text-left"
    assert "up to 15 credits" in step.words
    code, rows = await runs.run(CheckWorkers(), select=what_to_retry(text_left=True))
    assert (code, {row["verdict"] for row in rows}) == (Exit.SUCCEEDED, {"clean"})
    assert {row["attempts"] for row in rows} == {2}
    assert len(list((runs.folder / "images" / "earlier").iterdir())) == 6
    assert runs.vendor.count("generate") == 6


async def test_a_retry_with_another_model_names_its_cost_and_keeps_the_image_where_it_fails(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row stays succeeded, with the failure; the words at the end name the command that tries again."""
    await runs.run(CheckWorkers(verdict=LEFT))
    runs.vendor.price, runs.vendor.ends = lambda _: 10.0, lambda _: 3
    workers = CheckWorkers(verdict=LEFT)
    code, rows = await runs.run(workers, select=what_to_retry(text_left=True, model=Model.MAX))
    assert code is Exit.SUCCEEDED
    assert "3 images get another try with flux-kontext-max, for up to 30 credits." in capsys.readouterr().err
    assert {(row["status"], row["verdict"], row["error"]["type"]) for row in rows} == {
        ("succeeded", "text_left", "TaskFailed")
    }
    assert all((runs.folder / row["file"]).is_file() and row["charge"] == "yes" for row in rows)
    words = rows[0]["error"]["message"]
    assert words.startswith("Another attempt failed, and the earlier image is kept.")
    assert words.endswith("(a new charge).")
    assert runs.said.getvalue().count("not in the folder") == 0
    assert all(row.error_type == "TaskFailed" for row in read_report(runs.folder).rows)


async def test_a_retry_that_was_interrupted_is_resumed_by_a_plain_one(runs: Runs) -> None:
    """With its checks; the images are pending meanwhile, and what is left to pay is named."""
    await runs.run(CheckWorkers(verdict=LEFT))
    async with FluxClient("k", "http://127.0.0.1:1", transport=runs.vendor, limits=FAST) as client:
        await retry(client, runs.folder / JOURNAL, text_left=True, model="flux-kontext-max")
    runs.vendor.price = lambda _: 10.0
    code, rows = await runs.run(CheckWorkers(), NO_CHECKS, select=what_to_retry())
    assert (code, {row["verdict"] for row in rows}) == (Exit.SUCCEEDED, {"clean"})
    assert all(row["vendor_file"] for row in rows), "composed, as the earlier ones were"
    assert "3 images need about 30 credits" in runs.said.getvalue()
    assert runs.vendor.count("generate") == 6


async def test_the_paid_image_is_shown_while_another_attempt_is_not_over(runs: Runs) -> None:
    """Pending and in doubt alike: with its file and its verdict; it is never said to be free."""
    _, before = await runs.run(CheckWorkers(verdict=LEFT))
    async with FluxClient("k", "http://127.0.0.1:1", transport=runs.vendor, limits=FAST) as client:
        await retry(client, runs.folder / JOURNAL, text_left=True)
    with JournalReader(runs.folder / JOURNAL) as reader:
        pending = [row_of(stored) for stored in reader.jobs()]
        assert status_of(reader, None)["checks"]["text_left"] == 3
    assert {(row.status, row.charge, row.verdict) for row in pending} == {("pending", "yes", "text_left")}
    assert {row.file for row in pending} == {row["file"] for row in before}
    assert {row.task_id for row in pending} == {row["task_id"] for row in before}
    assert all(row.vendor is not None and row.credits for row in read_report(runs.folder).rows)
    runs.vendor.loses_answer = lambda _: True
    code, rows = await runs.run(CheckWorkers(), select=what_to_retry())
    assert code is not Exit.SUCCEEDED
    (doubt, *_) = [row for row in rows if row["status"] == "in_doubt"]
    assert (doubt["charge"], doubt["verdict"]) == ("maybe", "text_left")
    assert all((runs.folder / row["file"]).is_file() for row in rows)


def test_a_retry_of_verdicts_needs_downloads(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before a job is granted another try."""
    monkeypatch.setenv("KIE_API_KEY", "k")
    for option in ("--text-left", "--damaged"):
        code, _, said = command("retry", "run", option, "--no-download")
        assert (code, "leave --no-download out" in said) == (2, True)


def test_a_model_for_nothing_to_pay_is_a_usage_error(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read or sent."""
    monkeypatch.setenv("KIE_API_KEY", "k")
    for words in ((), ("--in-doubt", "--failed")):
        code, _, said = command("retry", "run", *words, "--model", "flux-kontext-max")
        assert (code, "--model goes with" in said) == (2, True)


def test_a_retry_with_a_model_is_resumed_without_it(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is refused without what it goes with."""
    monkeypatch.setenv("KIE_API_KEY", "k")
    given: list[RunOptions] = []
    monkeypatch.setattr(
        "flux_async.cli.folder_commands.run_retry", lambda options, **_: given.append(options) or 0
    )
    assert command("retry", "run", "--text-left", "--model", "flux-kontext-max")[0] == 0
    assert command("retry", "run", "--text-left")[0] == 0
    assert [one.repeats for one in given] == [("--text-left", "--model"), ("--text-left",)]


async def test_images_without_text_cost_nothing_and_are_counted(runs: Runs) -> None:
    """In the results, the status, the report and the words at the end; the second time nothing is done."""
    workers = CheckWorkers(textless=("0-", "1-"))
    code, rows = await runs.run(workers, WantedChecks(skip_textless=True))
    assert code is Exit.SUCCEEDED
    found = ("status", "verdict", "charge", "credits", "saved_credits", "task_id", "attempts")
    skipped = ("succeeded", "no_text", "no", 0.0, 5.0, None, 0)
    assert [tuple(row[name] for name in found) for row in rows[:2]] == [skipped, skipped]
    assert (rows[2]["charge"], rows[2]["saved_credits"], rows[2]["verdict"]) == ("yes", None, None)
    assert all((runs.folder / row["file"]).is_file() for row in rows)
    said = " ".join(runs.said.getvalue().split())
    assert "Those without text are not submitted, and cost nothing." in said
    assert "saved on images without text 10" in said
    with JournalReader(runs.folder / JOURNAL) as reader:
        status = status_of(reader, None)
        assert (status["credits"]["saved"], status["credits"]["spent"]) == (10, 5)
        assert status["checks"] == {"no_text": 2}
    report = read_report(runs.folder)
    assert [row.saved_credits for row in report.rows] == [5.0, 5.0, None]
    assert [row.vendor is None for row in report.rows] == [True, True, False]
    assert report.rows[0].preserved.file == runs.folder / rows[0]["file"]
    (runs.folder / rows[0]["file"]).unlink()
    made = workers.made.copy()
    code, again = await runs.run(workers, WantedChecks(skip_textless=True))
    assert (code, again[1:]) == (Exit.SUCCEEDED, rows[1:])
    assert (runs.folder / again[0]["file"]).is_file()
    assert (workers.made, runs.vendor.count("generate")) == (made, 1)


async def test_clean_results_of_a_folder_end_with_0(runs: Runs) -> None:
    """Also where nothing was left to check."""
    await runs.run(None, NO_CHECKS)
    assert (await runs.run(CheckWorkers(), only_checks=True, select=done_jobs))[0] is Exit.SUCCEEDED
    assert (await runs.run(CheckWorkers(), only_checks=True, select=done_jobs))[0] is Exit.SUCCEEDED


HOLE = np.zeros((2, 3), dtype=bool)
REFUSED = PreserveReport(refusal=PreserveRefusal.OTHER_CONTENT)
OTHER_CONTENT = "the result shows something else than the original"


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command about two files in this process; return its exit code and both streams."""
    for name in ("original.png", "result.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["flux-async", *words])
        code = run_cli(cli)
        return code, *capsys.readouterr()

    return run


PAIR = ("preserve", "original.png", "result.jpg", "-o", "out.png")


def test_one_result_is_composed_or_nothing_is_written(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exit 0 and the path, or 1 and the reason; --fallback writes the result as it came."""
    composed = Preserved(image=b"new", format="png", report=PreserveReport(replaced=0.16, hole=HOLE))
    refused = Preserved(image=JPEG, format="jpeg", report=REFUSED)
    out = tmp_path / "out.png"
    monkeypatch.setattr("flux_async.cli.image_checks.preserve", lambda *_, **__: refused)
    code, printed, said = command(*PAIR, "--mask-out", "mask.png")
    assert (code, printed, out.exists(), Path("mask.png").exists()) == (1, "", False, False)
    assert f"Not composed: {OTHER_CONTENT}. Nothing was written." in said
    code, printed, said = command(*PAIR, "--fallback")
    assert (code, printed, out.read_bytes()) == (1, "out.png\n", JPEG)
    assert "out.png is the result as it came (jpeg)." in said
    monkeypatch.setattr("flux_async.cli.image_checks.preserve", lambda *_, **__: composed)
    code, printed, said = command(*PAIR, "--mask-out", "mask.png")
    assert (code, printed, out.read_bytes()) == (0, "out.png\n", b"new")
    assert "16.0% of it was replaced" in said
    assert Path("mask.png").read_bytes().startswith(b"\x89PNG")
    code, printed, _ = command(*PAIR, "--json")
    answer = json.loads(printed)
    assert (answer["verdict"], answer["file"], answer["replaced"]) == ("composed", "out.png", 0.16)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify", "original.png"), "Which result is to be compared with original.png?"),
        (("verify", ".", "result.jpg"), "Give the folder of a run, or an original and its result."),
        (("preserve", "original.png", "result.jpg"), "Give an original, its result"),
        (("preserve", ".", "--fallback"), "Give the folder of a run alone"),
    ],
    ids=["no result", "folder and result", "no output", "folder and options"],
)
def test_a_folder_or_two_files(
    command: Callable[..., tuple[int, str, str]], words: tuple[str, ...], message: str
) -> None:
    """Anything else is a usage error."""
    code, _, said = command(*words)
    assert (code, message in said) == (2, True)


@pytest.mark.parametrize("name", ["verify", "preserve"])
def test_a_folder_without_a_journal_is_refused_and_left_alone(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str
) -> None:
    """No journal is made."""
    (tmp_path / "empty").mkdir()
    code, _, said = command(name, "empty")
    assert (code, "There is no journal" in said) == (2, True)
    assert not list((tmp_path / "empty").iterdir())


def test_progress_shows_the_checks_as_a_stage() -> None:
    """A bar of their own in a terminal, counts in a plain line; none without checks."""
    batch = BatchProgress(
        seen=40, succeeded=12, preserving=2, verifying=1, verdicts={"clean": 9, "text_left": 2}, not_checked=1
    )
    view = RunView(batch=batch, asked=40, checks=BOTH)
    words = "2 being composed · 1 being verified · 9 clean · 2 text left · 1 not checked"
    assert words in plain_line(view)
    console = Console(file=io.StringIO(), width=120)
    console.print(live_lines(view, 120))
    console.print(live_lines(attrs.evolve(view, checks=NO_CHECKS), 120))
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("checks")]
    assert len(lines) == 1
    assert lines[0].rstrip().endswith("12 of 40")
    only = RunView(
        batch=BatchProgress(preserved=3, not_preserved=1), asked=9, checks=WantedChecks(preserve=True)
    )
    assert only.checked == 4


def test_progress_says_what_was_saved() -> None:
    """Images without text count as checked; originals that wait for that check are a stage."""
    batch = BatchProgress(
        seen=9, checking_text=4, skipped=3, saved_credits=15.0, not_checked_for_text=1, succeeded=3
    )
    view = RunView(batch=batch, asked=9, checks=WantedChecks(skip_textless=True, verify=True))
    assert (
        "4 being checked for text · 1 submitted without a check for text · 3 without text, 15 credits saved"
        in plain_line(view)
    )
    assert view.checked == 3


def test_checks_need_downloads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Refused before anything is sent."""
    arguments = [
        "flux-async",
        "remove-text",
        URLS[0],
        "--verify",
        "--no-download",
        "-o",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    assert run_cli(cli) == Exit.USAGE
    assert "leave --no-download out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--verify", "--preserve", "--skip-textless"])
def test_a_missing_extra_is_named_before_anything_is_read_or_sent(
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    option: str,
) -> None:
    """No folder is made, no retry is granted, nothing is paid."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else object())
    monkeypatch.setenv("KIE_API_KEY", "k")
    code, _, said = command("remove-text", URLS[0], option, "-o", "run")
    assert (code, "needs the extra verify" in said, (tmp_path / "run").exists()) == (2, True, False)


async def test_a_run_until_clean_names_its_cost_at_most_and_is_resumed(runs: Runs) -> None:
    """Also in the dry run; the second run of the same command pays for nothing, a larger number for more."""
    checks = WantedChecks(verify=True, until_clean=3, escalate=(Model.PRO,))
    code, rows = await runs.run(CheckWorkers(verdict=LEFT), checks)
    said = runs.said.getvalue()
    assert "3 images need about 15 credits, with all their further attempts up to 45" in said
    assert "Text left: 3 in this folder. To pay for another task for each" in said
    assert f"`flux-async retry {runs.folder} --text-left`" in said
    assert (code, {(row["verdict"], row["attempts"]) for row in rows}) == (Exit.SUCCEEDED, {("text_left", 3)})
    assert len(list((runs.folder / "images").glob("*.jpg"))) == 3
    assert len(list((runs.folder / "images" / "earlier").iterdir())) == 6
    code, again = await runs.run(CheckWorkers(verdict=LEFT), checks)
    assert (code, again, runs.vendor.count("generate")) == (Exit.SUCCEEDED, rows, 9)
    more = attrs.evolve(checks, until_clean=4)
    _, rows = await runs.run(CheckWorkers(), more)
    assert "3 of 3 done before with text left or damage: paid for again." in runs.said.getvalue()
    assert "Further attempts for images that are done need up to 15 credits; the" in runs.said.getvalue()
    assert {(row["verdict"], row["attempts"]) for row in rows} == {("clean", 4)}
    assert runs.vendor.count("generate") == 12


def test_the_dry_run_names_the_cost_of_further_attempts(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the models that they would be made with."""
    monkeypatch.setenv("KIE_API_KEY", "k")
    further = ("--until-clean", "3", "--escalate", "flux-kontext-pro,flux-kontext-max")
    code, printed, said = command("remove-text", *URLS, *further, "--dry-run", "--max-credits", "20")
    assert code == 0
    words = "To submit: 3 (flux-kontext-pro: 3), for about 15 credits, with all further attempts up to 60, "
    assert f"{words}of which the run may spend 20." in " ".join(said.split())
    code, printed, _ = command("remove-text", *URLS, *further, "--dry-run", "--json")
    found = json.loads(printed)
    assert (found["credits"], found["credits_at_most"], found["tried_again"]) == (15, 60, 0)


async def test_the_dry_run_lists_images_to_be_paid_for_again(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says that there is nothing else to submit."""
    await runs.run(CheckWorkers(verdict=LEFT), WantedChecks(verify=True))
    options = RunOptions(
        folder=runs.folder, checks=WantedChecks(verify=True, until_clean=3), max_credits=20.0
    )
    capsys.readouterr()
    for as_json in (False, True):
        assert run_dry(options, gather_inputs(URLS, []), as_json=as_json) is Exit.SUCCEEDED
        printed, said = capsys.readouterr()
        if as_json:
            assert json.loads(printed)["tried_again"] == 3
        else:
            assert printed.split() == URLS
            words = "To submit: only further attempts, for up to 30 credits, of which the run may spend 20."
            assert words in " ".join(said.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--until-clean", "0"), "0 is not in the range"),
        (("--until-clean", "2", "--no-download"), "leave --no-download out"),
        (
            ("--escalate", "flux-kontext-max"),
            "--escalate names 1 model for the tasks after the first one: it needs --until-clean 2 or more.",
        ),
        (("--until-clean", "11"), "11 is not in the range 1<=x<=10"),
        (("--preserve-format", "jpeg"), "--preserve-format goes with --preserve."),
        (("--until-clean", "2", "--escalate", "flux-kontext-ultra"), "'flux-kontext-ultra' is not one of"),
        (
            (
                "--until-clean",
                "2",
                "--escalate",
                "gpt-image-2-5-flare-image-to-image",
                "--aspect-ratio",
                "16:9",
            ),
            "aspect_ratio",
        ),
    ],
    ids=["none", "no images", "too few", "too many", "no preserve", "no model", "no such option"],
)
def test_options_of_further_attempts_are_checked(
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    """Before anything is read or sent."""
    monkeypatch.setenv("KIE_API_KEY", "k")
    code, _, said = command("remove-text", URLS[0], *words, "-o", "run")
    assert (code, message in " ".join(said.split())) == (2, True), said
