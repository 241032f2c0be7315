"""enqueue, worker and batch, on a real PostgreSQL and against the sandbox."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from commands import Cli, Ended
from flux_async.testing import FluxSandbox

pytest.importorskip("dbos", reason="the extra engine is not installed")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command line against a sandbox."""
    with FluxSandbox(sockets=True, webhook_key=None) as sandbox:
        yield Cli(tmp_path, sandbox.url, sandbox.key)


def test_a_list_is_enqueued_and_worked_on_until_nothing_is_left(cli: Cli, fresh_dsn: str) -> None:
    """Rows that cannot be used are named; status and results are as documented."""
    dsn = ("--dsn", fresh_dsn)
    urls = [f"https://example.com/{name}.jpg" for name in "abc"]
    (cli.folder / "images.txt").write_text("\n".join([*urls, "poster.jpg"]), "utf-8")
    enqueued = cli.run("enqueue", "images.txt", "--batch", "posters", "--priority", "7", *dsn)
    assert enqueued.code == 1
    assert "images.txt line 4" in enqueued.stderr
    assert "3 pending" in enqueued.stderr
    worked = cli.run_apart("worker", *dsn, "-o", "clean", "--rate", "1000/10", "--until-idle")
    assert worked.code == 0, worked.stderr
    status = json.loads(cli.run("batch", "status", "posters", *dsn, "--json").stdout)
    counts = {"pending": 0, "in_flight": 0, "succeeded": 3, "failed": 0, "in_doubt": 0}
    assert status == {"batch": "posters", "counts": counts, "credits": 15.0}
    results = cli.run("batch", "results", "posters", *dsn, "--json")
    rows = [json.loads(line) for line in results.stdout.splitlines()]
    assert [row["image"] for row in rows] == urls
    assert {row["status"] for row in rows} == {"succeeded"}
    assert all((cli.folder / "clean" / "posters" / row["file"]).is_file() for row in rows)
    assert results.code == 0
    report = json.loads(cli.run("batch", "report", "posters", *dsn, "--json").stdout)
    assert report["counts"] == counts
    assert report["credits"] == {"spent": 15.0, "measured": 0.0, "perhaps": 0.0}
    assert report["began_at"] <= report["ended_at"]
    page = Path(cli.run("batch", "report", "posters", *dsn, "-o", "clean").stdout.strip())
    assert page == cli.folder / "clean" / "posters" / "report.html"
    shown = page.read_text("utf-8")
    assert all(f'"vendor":{{"file":"{row["file"]}"' in shown for row in rows)
    assert "<dt>Credits spent</dt><dd>15</dd>" in shown
    again = cli.run("batch", "retry", "posters", "--failed", "--in-doubt", *dsn)
    assert again.code == 0
    assert "0 images get another try, for up to 0 credits." in again.stderr


def test_a_key_with_another_request_is_a_refused_row(cli: Cli, fresh_dsn: str) -> None:
    """In one list and in a later one: the row is named, the others are added, and the counts are printed."""
    enqueue = ("enqueue", "--batch", "posters", "--dsn", fresh_dsn)
    (cli.folder / "a.csv").write_text(
        "url,key\nhttps://h.example/1.jpg,k\nhttps://h.example/2.jpg,k\n", "utf-8"
    )
    twice = cli.run(*enqueue, "a.csv")
    assert twice.code == 1
    assert "a.csv line 3: Job k of batch posters has another request." in twice.stderr
    assert "1 pending" in twice.stderr
    rows = ["url,key", "https://h.example/1.jpg,k", "https://h.example/3.jpg,a", "https://h.example/2.jpg,k"]
    rows += ["https://h.example/4.jpg,b", "https://h.example/4.jpg,b", "https://h.example/5.jpg,c\0"]
    (cli.folder / "b.csv").write_text("\n".join(rows), "utf-8")
    later = cli.run(*enqueue, "b.csv")
    assert later.code == 1
    assert "b.csv line 4: Job k of batch posters" in later.stderr
    assert "b.csv line 7: " in later.stderr
    assert later.stderr.count("b.csv line") == 2
    assert "3 pending" in later.stderr
    assert cli.run(*enqueue, "b.csv").code == 1


def test_rows_of_a_pipe_are_stored_as_they_come(cli: Cli, fresh_dsn: str) -> None:
    """A command that is killed has lost none of those that it was given; Ctrl-C ends it."""
    dsn = ("--dsn", fresh_dsn)
    with cli.start("enqueue", "-", "--batch", "posters", *dsn, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("https://example.com/a.jpg\nhttps://example.com/b.jpg\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while "b.jpg" not in cli.run("batch", "results", "posters", *dsn).stdout:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "2 pending" in stderr
    assert "Traceback" not in stderr


def test_a_batch_is_cancelled(cli: Cli, fresh_dsn: str) -> None:
    """Its images stay pending, and a worker has nothing to do."""
    dsn = ("--dsn", fresh_dsn)
    (cli.folder / "images.txt").write_text("https://example.com/a.jpg", "utf-8")
    assert cli.run("enqueue", "images.txt", "--batch", "posters", *dsn).code == 0
    assert (
        "1 pending, 0 in flight, 0 succeeded, 0 failed, 0 in doubt; cancelled"
        in cli.run("batch", "cancel", "posters", *dsn).stdout
    )
    assert "0 in doubt; cancelled" in cli.run("batch", "report", "posters", *dsn).stdout
    assert cli.run_apart("worker", *dsn, "-o", "clean", "--until-idle").code == 0
    assert cli.run("batch", "results", "posters", *dsn).stdout == "pending https://example.com/a.jpg\n"


def test_an_interrupted_enqueue_says_how_the_rest_is_added(cli: Cli, fresh_dsn: str) -> None:
    """What has come so far is in the batch; the list is a pipe that stays open."""
    options = ("--batch", "posters", "--dsn", fresh_dsn)
    with cli.start("enqueue", "-", *options, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("https://example.com/a.jpg\n")
        process.stdin.flush()
        while "1 pending" not in cli.run("batch", "status", *options[1:]).stdout:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert "Run the same command again to add the rest" in process.stderr.read()


def test_mistakes_are_one_sentence(cli: Cli, fresh_dsn: str) -> None:
    """A DSN without a server, one that is none, and a batch that is none: exit 2."""
    nothing = cli.run("batch", "status", "x", "--dsn", "postgresql://nobody@127.0.0.1:1/none")
    assert nothing.code == 2
    assert nothing.stderr.startswith("Error: PostgreSQL at 127.0.0.1:1 cannot be used: ")
    for keys in (",", "", "one,,two"):
        blank = attrs.evolve(cli, more={"KIE_API_KEYS": keys}).run(
            "worker", "--dsn", fresh_dsn, "-o", "clean"
        )
        assert (blank.code, blank.stderr.partition(".")[0]) == (2, "Error: KIE_API_KEYS holds a blank key")
    no_dsn = cli.run("batch", "status", "x", "--dsn", "flux.sqlite3")
    assert no_dsn.code == 2
    assert "The DSN is no address of PostgreSQL." in no_dsn.stderr
    unknown = cli.run("batch", "status", "unknown", "--dsn", fresh_dsn)
    assert unknown.code == 2
    assert "There is no batch 'unknown'." in unknown.stderr
    (cli.folder / "images.txt").write_text("https://example.com/a.jpg", "utf-8")
    assert cli.run("enqueue", "images.txt", "--batch", "posters", "--dsn", fresh_dsn).code == 0
    nobody = cli.run("batch", "adopt", "posters", "poster", "task", "--dsn", fresh_dsn)
    assert nobody.code == 2
    assert "No job here is called poster." in nobody.stderr
    nameless = cli.run("batch", "adopt", "posters", "", "task", "--dsn", fresh_dsn)
    assert nameless.code == 2
    assert "key must not be blank." in nameless.stderr


def test_a_worker_ends_well_on_a_signal(cli: Cli, fresh_dsn: str) -> None:
    """It says when it has begun."""
    with cli.start("worker", "--dsn", fresh_dsn, "-o", "clean") as process:
        assert process.stderr is not None
        assert "has begun" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_worker_stopped_while_it_starts_has_done_nothing(
    cli: Cli, fresh_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modules are being loaded, and it does not listen for signals yet: exit 0, and no output."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flux_async.cli.engine_runs.run_worker", stopped)
    assert cli.run("worker", "--dsn", fresh_dsn, "-o", "clean") == Ended(0, "", "")


def test_a_worker_refuses_a_folder_that_it_cannot_write(cli: Cli, fresh_dsn: str) -> None:
    """Before anything is paid."""
    (cli.folder / "clean").write_text("a file", "utf-8")
    refused = cli.run("worker", "--dsn", fresh_dsn, "-o", "clean/results", "--until-idle")
    assert refused.code == 2
    assert "clean/results cannot be used: Not a directory." in refused.stderr
    assert "nothing was sent" in refused.stderr


def test_a_worker_that_is_to_end_ends_when_its_key_is_refused(cli: Cli, fresh_dsn: str) -> None:
    """It says why, once for all submits that found it together: exit 3."""
    dsn = ("--dsn", fresh_dsn)
    (cli.folder / "images.txt").write_text(
        "\n".join(f"https://example.com/{n}.jpg" for n in range(9)), "utf-8"
    )
    assert cli.run("enqueue", "images.txt", "--batch", "posters", *dsn).code == 0
    refused = attrs.evolve(cli, key="revoked")
    worked = refused.run_apart("worker", *dsn, "-o", "clean", "--rate", "1000/10", "--until-idle")
    assert worked.code == 3, worked.stderr
    assert worked.stderr.count("the submits of account") == 1
    assert worked.stderr.count("Error: The worker ended with work left: ") == 1
    assert "9 pending" in cli.run("batch", "status", "posters", *dsn).stdout
