"""Folders copied in part, moved or deleted: nothing is paid twice, and paid results are found."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

IMAGES = [f"https://pictures.example/lost/{number}.png" for number in range(60)]
SLOWLY = ("--rate", "20/4")
RATE = ("--rate", "20/0.5")
OVERALL_S = 120


@pytest.fixture
def cli(make_cli: Any, start_sandbox: Any) -> Any:
    """A command line against a sandbox of its own, which makes images of one pixel."""
    made = make_cli(start_sandbox("--speed", "20", "--images", "none").url)
    made.teach_times()
    (made.folder / "list.txt").write_text("\n".join(IMAGES))
    return made


def run_until_some_are_submitted(cli: Any, process: subprocess.Popen[str], most: int = 12) -> None:
    cli.wait_for(lambda: cli.ledger()["submits"] >= most or process.poll() is not None)
    assert process.poll() is None


def assert_paid_once(cli: Any) -> None:
    """No image was submitted twice."""
    tasks = dict(zip(IMAGES, cli.tasks_of_each(IMAGES), strict=True))
    assert {image: count for image, count in tasks.items() if count > 1} == {}


def test_a_folder_copied_without_its_wal_is_refused_and_recovered(cli: Any) -> None:
    """Exit 2 and the way on; recover asks; the resumed run pays only for what was never submitted."""
    command = ("remove-text", "--from", "list.txt")
    with cli.start(*command, *SLOWLY, "-o", "out") as process:
        run_until_some_are_submitted(cli, process)
        process.send_signal(signal.SIGKILL)
        process.wait(OVERALL_S)
    ignored = shutil.ignore_patterns("*-wal", "*-shm")
    shutil.copytree(cli.folder / "out", cli.folder / "copy", ignore=ignored)
    before = cli.ledger()["submits"]

    refused = cli.run(*command, *RATE, "-o", "copy")
    assert refused.code == 2, refused.stderr
    assert "lacks records of submits" in refused.stderr
    assert "flux-async recover copy" in refused.stderr
    assert "accept_lost_records" not in refused.stderr
    for polls in (("status", "copy", "--json"), (*command, "-o", "copy", "--dry-run")):
        ended = cli.run(*polls)
        assert ended.code == 0, ended.stderr
        assert "lacks records of submits" in ended.stderr
        assert "flux-async recover copy" in ended.stderr
    assert cli.status("copy")["lacks_records"] is True
    asked = cli.run("recover", "copy")
    assert asked.code == 2
    assert "Add --yes" in asked.stderr
    assert cli.run("recover", "nowhere").code == 2

    recovered = cli.run("recover", "copy", "--yes")
    assert recovered.code == 0, recovered.stderr
    assert re.search(r"lacks records of submits for \d+ images, made between 20\d\d-", recovered.stderr)
    lost = re.search(r"In doubt when they are given again: (\d+)\. Their keys:", recovered.stderr)
    if lost is not None:  # unless SQLite moved records from the -wal file meanwhile
        assert len(re.findall(r"^  [0-9a-f]{64}$", recovered.stderr, re.MULTILINE)) == int(lost[1])
        assert "`flux-async retry" not in recovered.stderr
        assert "the command that you ran before, with its whole list" in recovered.stderr
    assert cli.status("copy")["lacks_records"] is False
    assert cli.ledger()["submits"] == before
    assert "lacks no records" in cli.run("recover", "copy").stderr

    resumed = cli.run(*command, *RATE, "-o", "copy")
    assert resumed.code == 1, resumed.stderr
    rows = cli.rows("copy")
    assert {row["status"] for row in rows} == {"succeeded", "in_doubt"}
    assert len(rows) == len(IMAGES)
    assert_paid_once(cli)


def test_an_emptied_submit_log_and_a_missing_wal_charge_nothing_twice(cli: Any) -> None:
    """Neither file names the paid images: the run is refused, and after recovery every image is in doubt."""
    command = ("remove-text", "--from", "list.txt")
    with cli.start(*command, *SLOWLY, "-o", "out") as process:
        run_until_some_are_submitted(cli, process, 8)
        process.send_signal(signal.SIGKILL)
        process.wait(OVERALL_S)
    (cli.folder / "out" / "journal.sqlite3-wal").unlink()
    (cli.folder / "out" / "journal.sqlite3.submits").write_bytes(b"")
    refused = cli.run(*command, *RATE, "-o", "out")
    assert refused.code == 2, refused.stderr
    assert "flux-async recover out" in refused.stderr
    recovered = cli.run("recover", "out", "--yes")
    assert "Any other image is in doubt, too, when it is given again" in recovered.stderr
    assert cli.run(*command, *RATE, "-o", "out").code == 1
    assert {row["status"] for row in cli.rows("out")} == {"in_doubt"}
    assert_paid_once(cli)


def test_a_moved_folder_ends_its_run_and_resumes_at_its_new_path(cli: Any) -> None:
    """Exit 3 soon after, with the new path; no other run starts meanwhile; there the rest is paid once."""
    command = ("remove-text", "--from", "list.txt")
    with cli.start(*command, *SLOWLY, "-o", "out") as process:
        run_until_some_are_submitted(cli, process)
        (cli.folder / "out").rename(cli.folder / "moved")
        _, stderr = process.communicate(timeout=OVERALL_S)
    assert process.returncode == 3, stderr
    assert "was moved to" in stderr
    assert str((cli.folder / "moved").resolve()) in stderr
    assert "Traceback" not in stderr
    assert cli.ledger()["submits"] < len(IMAGES)
    resumed = cli.run(*command, *RATE, "-o", "moved")
    assert resumed.code == 0, resumed.stderr
    assert {row["status"] for row in cli.rows("moved")} == {"succeeded"}
    assert_paid_once(cli)


def _delete(folder: Path) -> None:
    while folder.exists():  # the run may write an image into it meanwhile
        shutil.rmtree(folder, ignore_errors=True)


def _delete_the_journal(folder: Path) -> None:
    (folder / "journal.sqlite3").unlink()


def _replace_the_journal(folder: Path) -> None:
    other = folder / "other"
    other.write_bytes(b"")
    other.replace(folder / "journal.sqlite3")


@pytest.mark.parametrize("happens", [_delete, _delete_the_journal, _replace_the_journal])
def test_a_journal_that_is_deleted_ends_its_run_and_is_saved(cli: Any, happens: Any) -> None:
    """Exit 3 with the folder of the copy; the same command on it finishes, each image paid once."""
    command = ("remove-text", "--from", "list.txt")
    with cli.start(*command, *SLOWLY, "-o", "out") as process:
        run_until_some_are_submitted(cli, process)
        happens(cli.folder / "out")
        _, stderr = process.communicate(timeout=OVERALL_S)
    assert process.returncode == 3, stderr
    assert "was deleted or replaced during the run" in stderr
    assert "Traceback" not in stderr
    assert cli.ledger()["submits"] < len(IMAGES)
    (rescued,) = cli.folder.glob("out-rescued-*")
    assert str(rescued) in stderr
    known = cli.status(rescued.name)["counts"]
    assert known["submitted"] + known["generated"] + known["done"] == cli.ledger()["accepted"]
    under_way = known["submitted"] + known["generated"]
    assert stderr.count(" is paid: https://pictures.example/lost/") == under_way
    before = cli.ledger()["submits"]
    refused = cli.run(*command, *RATE, "-o", "out")
    assert refused.code == 2, refused.stderr
    assert f"`flux-async retry {rescued.name}`, or with the same command" in refused.stderr
    assert f"`-o {rescued.name}`" in refused.stderr
    assert cli.ledger()["submits"] == before
    resumed = cli.run(*command, *RATE, "-o", rescued.name)
    assert resumed.code == 0, resumed.stderr
    assert {row["status"] for row in cli.rows(rescued.name)} == {"succeeded"}
    assert_paid_once(cli)
