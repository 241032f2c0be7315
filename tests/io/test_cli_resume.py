"""A run that ends in any way is resumed by the same command; those that a signal ends are processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

RATE = ("--rate", "20/1")
SLOWLY = ("--rate", "5/1")
SOON = ("--rate", "20/0.5")
NO_PICTURES = ("--images", "none")
OVERALL_S = 120


@pytest.fixture
def cli(quick_cli: Any) -> Any:
    """Only one test here needs an image."""
    return quick_cli


@pytest.fixture
def many(image_host: Any, request: pytest.FixtureRequest) -> list[str]:
    """Sixteen addresses that no other test uses."""
    return [str(url) for url in image_host.more(request.node.name, 16)]


@pytest.fixture
def lots(image_host: Any, request: pytest.FixtureRequest) -> list[str]:
    """Sixty of them: submitted slowly, they take a run longer than this test needs to end it."""
    return [str(url) for url in image_host.more(request.node.name, 60)]


def assert_complete(cli: Any, images: list[str]) -> list[dict[str, Any]]:
    """Every image has exactly one line, a file of its own, and was paid for once."""
    rows: list[dict[str, Any]] = cli.rows()
    assert [row["image"] for row in rows] == images
    assert {row["status"] for row in rows} == {"succeeded"}
    assert len({row["file"] for row in rows}) == len(images)
    assert all((cli.folder / "out" / row["file"]).is_file() for row in rows)
    assert cli.tasks_of_each(images) == [1] * len(images)
    return rows


def settled_lines(folder: Path) -> int:
    results = folder / "out" / "results.jsonl"
    return len(results.read_text().splitlines()) if results.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_the_same_command_completes_it(
    cli: Any, lots: list[str], number: signal.Signals
) -> None:
    """A signal in the middle: exit 130, every input has its line; then the rest, paid once."""
    with cli.start("remove-text", *lots, *SLOWLY, "-o", "out") as process:
        cli.wait_for(lambda: settled_lines(cli.folder) >= 2)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=OVERALL_S)
    assert process.returncode == 130, stderr
    assert "Run the same command again to resume" in stderr
    assert "Traceback" not in stderr
    before = cli.rows()
    assert [row["image"] for row in before] == lots
    assert {row["status"] for row in before} == {"succeeded", "pending"}

    resumed = cli.run("remove-text", *lots, *SOON, "-o", "out")
    assert resumed.code == 0, resumed.stderr
    after = {row["image"]: row["task_id"] for row in assert_complete(cli, lots)}
    assert all(after[row["image"]] == row["task_id"] for row in before if row["task_id"])
    assert len(resumed.stdout.splitlines()) == len(lots)


def test_a_killed_run_is_completed_and_images_in_doubt_are_flagged(cli: Any, many: list[str]) -> None:
    """SIGKILL in the middle: the same command completes the rest; images in doubt are not paid for again."""
    with cli.start("remove-text", *many, *SLOWLY, "-o", "out") as process:
        cli.wait_for(lambda: settled_lines(cli.folder) >= 3)
        process.kill()
        process.communicate()
    resumed = cli.run("remove-text", *many, *RATE, "-o", "out")
    rows = cli.rows()
    assert [row["image"] for row in rows] == many
    in_doubt = [row for row in rows if row["status"] == "in_doubt"]
    assert resumed.code == (1 if in_doubt else 0), resumed.stderr
    assert {row["status"] for row in rows} <= {"succeeded", "in_doubt"}
    known = [row["image"] for row in rows if row not in in_doubt]
    assert cli.tasks_of_each(known) == [1] * len(known)
    assert max(cli.tasks_of_each(many)) == 1
    assert len(in_doubt) <= 6


def test_a_second_run_in_the_same_folder_names_the_first(
    make_cli: Any, start_sandbox: Any, many: list[str]
) -> None:
    """While one runs, another exits 2, names its process and changes nothing; status reports both."""
    cli = make_cli(start_sandbox("--speed", "0.01", *NO_PICTURES).url)
    with cli.start("remove-text", *many[:3], "-o", "out") as process:
        cli.wait_for(lambda: (cli.folder / "out" / "journal.sqlite3").exists() and cli.ledger()["accepted"])
        second = cli.run("remove-text", many[5], "-o", "out")
        reported = cli.status()
        words = cli.run("status", "out").stdout
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=OVERALL_S)
    assert second.code == 2
    assert f"is being run by process {process.pid}" in second.stderr
    assert second.stdout == ""
    assert cli.tasks_of(many[5]) == 0
    assert [row["image"] for row in cli.rows()] == many[:3]
    assert reported["holder"]["pid"] == process.pid
    assert (
        reported["counts"]["submitted"] + reported["counts"]["submitting"] + reported["counts"]["pending"]
        == 3
    )
    assert f"run by process {process.pid}" in words
    assert cli.status()["holder"] is None


def test_an_empty_balance_is_one_halt(make_cli: Any, start_sandbox: Any, many: list[str]) -> None:
    """Credits for ten of sixteen: ten succeed, six stay pending, exit 3, few submits answered 402."""
    cli = make_cli(start_sandbox("--speed", "20", "--credits", "50", *NO_PICTURES).url)
    cli.teach_times()
    ended = cli.run("remove-text", *many, *RATE, "-o", "out")
    assert ended.code == 3, ended.stderr
    assert ended.stderr.count("Halted: The API answered 402") == 1
    assert sorted(row["status"] for row in cli.rows()) == ["pending"] * 6 + ["succeeded"] * 10
    assert cli.status()["credits"] == {"spent": 50, "measured": 5, "perhaps": 0, "saved": 0}


def test_a_budget_is_a_halt(cli: Any, many: list[str]) -> None:
    """--max-credits ends the spending of this run with exit 3; the next run has a budget of its own."""
    ended = cli.run("remove-text", *many[:4], *RATE, "--max-credits", "12", "-o", "out")
    assert ended.code == 3, ended.stderr
    assert "12 credits" in ended.stderr
    assert sum(cli.tasks_of_each(many[:4])) == 2
    again = cli.run("remove-text", *many[:4], *RATE, "--max-credits", "12", "-o", "out")
    assert again.code == 0
    assert_complete(cli, many[:4])


def test_a_deadline_leaves_what_is_paid_pending_for_the_next_run(
    make_cli: Any, start_sandbox: Any, many: list[str]
) -> None:
    """Its row is pending, with the reason; a later run waits for the same task."""
    state = ("--state", str(make_cli().folder / "state.sqlite3"), *NO_PICTURES)
    slow = start_sandbox("--speed", "0.001", *state)
    cli = make_cli(slow.url)
    late = cli.run("remove-text", many[0], "--timeout", "0.1", "-o", "out")
    assert late.code == 1, late.stderr
    (row,) = cli.rows()
    assert (row["status"], row["charge"], row["error"]["type"]) == ("pending", "yes", "PollDeadlineExceeded")
    assert row["task_id"]
    assert row["finished_at"] is None
    assert "Run the same command again" in late.stderr
    slow.stop()
    start_sandbox("--speed", "1000", *state, "--port", slow.url.rpartition(":")[2])
    resumed = cli.run("remove-text", many[0], "-o", "out")
    assert resumed.code == 0, resumed.stderr
    assert "1 of 1 paid by an earlier run" in resumed.stderr
    assert assert_complete(cli, many[:1])[0]["task_id"] == row["task_id"]


def test_images_left_at_the_vendor_can_be_downloaded_later(cli: Any, many: list[str]) -> None:
    """--no-download prints addresses; without it the same command downloads the images, unpaid."""
    left = cli.run("remove-text", *many[:2], *RATE, "--no-download", "-o", "out")
    assert (left.code, {row["file"] for row in cli.rows()}) == (0, {None})
    assert sorted(left.stdout.splitlines()) == sorted(row["result_url"] for row in cli.rows())
    brought = cli.run("remove-text", *many[:2], *RATE, "-o", "out")
    assert brought.code == 0, brought.stderr
    assert "2 of 2 done before, but not here" in brought.stderr
    assert_complete(cli, many[:2])


def test_the_folder_belongs_to_one_key(make_cli: Any, cli: Any, many: list[str]) -> None:
    """A folder made with one key is refused under another, with exit 2, and nothing is submitted."""
    assert cli.run("remove-text", many[0], *RATE, "-o", "out").code == 0
    other = make_cli(cli.base_url, key="other").run("remove-text", many[1], "-o", "out")
    assert other.code == 2
    assert "another key" in other.stderr
    assert cli.tasks_of(many[1]) == 0


def test_images_of_other_runs_stay_in_the_results(cli: Any, many: list[str]) -> None:
    """What is asked for comes first in results.jsonl, in its order; the rest of the folder follows."""
    cli.run("remove-text", *many[:2], *RATE, "-o", "out")
    ended = cli.run("remove-text", many[3], many[1], *RATE, "-o", "out", "--json")
    assert ended.code == 0, ended.stderr
    assert [row["image"] for row in cli.rows()] == [many[3], many[1], many[0]]
    assert {json.loads(line)["image"] for line in ended.stdout.splitlines()} == {many[3], many[1]}


def test_results_that_cannot_be_written_halt_the_run_and_cost_nothing_more(cli: Any, many: list[str]) -> None:
    """A disk that refuses results.jsonl is exit 3; the next run reports the paid results."""
    assert cli.run("remove-text", many[0], *RATE, "-o", "out").code == 0
    results = cli.folder / "out" / "results.jsonl"
    results.unlink()
    results.mkdir()
    halted = cli.run("remove-text", *many[:2], *RATE, "-o", "out")
    assert halted.code == 3, halted.stderr
    assert "cannot be written" in halted.stderr
    assert "Traceback" not in halted.stderr
    results.rmdir()
    assert cli.run("remove-text", *many[:2], *RATE, "-o", "out").code == 0
    assert_complete(cli, many[:2])


# --- lists ------------------------------------------------------------------------------------------------


def test_lists_of_every_kind_are_read_and_bad_rows_fail_alone(cli: Any, many: list[str]) -> None:
    """CSV, JSON Lines and text together: bad rows are named by line, the others run, exit 1."""
    (cli.folder / "a.csv").write_text(f"Title;URL;key\nx;{many[0]};first\ny;;second\nz;ftp://h/x.png;third\n")
    rows = [json.dumps(many[1]), json.dumps({"image": many[2], "output_format": "png"}), "{", "[1]"]
    rows.append(json.dumps({"url": many[3], "model": "best"}))
    (cli.folder / "b.jsonl").write_text("\n".join(rows))
    text = f"# text\n{many[4]}\n\nhere.png\n"
    (cli.folder / "here.png").touch()
    ended = cli.run(
        "remove-text", "--from", "a.csv", "--from", "b.jsonl", "--from", "-", *RATE, "-o", "out", text=text
    )
    assert ended.code == 1, ended.stderr
    reported = [(row["key"], row["status"]) for row in cli.rows()]
    assert [name for name, status in reported if status == "failed"] == [
        "a.csv:3", "a.csv:4", "b.jsonl:3", "b.jsonl:4", "b.jsonl:5", "stdin:4",
    ]  # fmt: skip
    assert reported[0] == ("first", "succeeded")
    assert [status for _, status in reported].count("succeeded") == 4
    for place in ("a.csv line 3", "a.csv line 4", "b.jsonl line 3", "b.jsonl line 5", "stdin line 4"):
        assert place in ended.stderr
    assert cli.tasks_of_each(many[:5]) == [1, 1, 1, 0, 1]


def test_one_key_for_two_images_is_an_invalid_row(cli: Any, many: list[str]) -> None:
    """The second of two different rows with one key fails alone, and is not submitted."""
    (cli.folder / "a.csv").write_text(f"url,key\n{many[0]},k\n{many[1]},k\n{many[0]},k\n")
    ended = cli.run("remove-text", "--from", "a.csv", *RATE, "-o", "out")
    assert ended.code == 1
    assert [(row["key"], row["status"]) for row in cli.rows()] == [("k", "succeeded"), ("a.csv:3", "failed")]
    assert "a.csv line 3" in ended.stderr
    assert cli.tasks_of_each(many[:2]) == [1, 0]


# --- a person's word --------------------------------------------------------------------------------------


def test_a_failure_is_paid_for_again_only_on_request(
    make_cli: Any, sandbox_url: str, image_host: Any, tmp_path: Path
) -> None:
    """A failed task stays failed under the same command; retry prints the cost, and runs it."""
    cli = make_cli(sandbox_url)
    cli.teach_times()
    image = f"{image_host.url}/late-{os.getpid()}.png"
    assert cli.run("remove-text", image, *RATE, "-o", "out").code == 1
    again = cli.run("remove-text", image, *RATE, "-o", "out")
    assert (again.code, cli.tasks_of(image)) == (1, 1)
    assert "flux-async retry out --failed" in again.stderr
    image_host.files[image.removeprefix(image_host.url)] = image_host.files["/poster.png"]

    retried = cli.run("retry", "out", "--failed", *RATE)
    assert retried.code == 0, retried.stderr
    assert "1 image gets another try, for up to 5 credits" in retried.stderr
    (row,) = cli.rows()
    assert (row["status"], row["attempts"], cli.tasks_of(image)) == ("succeeded", 2, 2)
    assert retried.stdout == f"out/{row['file']}\n"
    assert cli.run("retry", "no-such-folder", "--failed").code == 2
    assert cli.run("status", "no-such-folder").code == 2
    assert cli.run("adopt", "no-such-folder", "k", "0" * 32).code == 2
    assert cli.run("rekey", "no-such-folder").code == 2
    assert not (tmp_path / "no-such-folder").exists()


@pytest.fixture
def in_doubt(make_cli: Any, start_sandbox: Any, many: list[str]) -> Any:
    """A run of two images whose submits were charged, and whose answers were lost."""
    cli = make_cli(start_sandbox("--speed", "20", "--faults", "drop-reply", *NO_PICTURES).url)
    cli.teach_times()
    ended = cli.run("remove-text", *many[:2], *RATE, "-o", "flux-out")
    assert ended.code == 1, ended.stderr
    assert [row["status"] for row in cli.rows("flux-out")] == ["in_doubt"] * 2
    assert "flux-async adopt flux-out JOB TASK_ID" in ended.stderr
    return cli


def test_a_task_is_adopted_if_it_matches(in_doubt: Any, many: list[str]) -> None:
    """Adopt takes a task of the same image; the next run fetches it without a submit."""
    first, second = in_doubt.rows("flux-out")
    tasks = {task["image"]: task["taskId"] for task in in_doubt.ledger()["tasks"]}
    for name, task in ((first["key"], tasks[many[1]]), (first["key"], "0" * 32), ("zzz", tasks[many[0]])):
        refused = in_doubt.run("adopt", "flux-out", name, task)
        assert refused.code in {1, 2}
        assert "Error" in refused.stderr
    assert len(in_doubt.status("flux-out")["in_doubt"]) == 2

    adopted = in_doubt.run("adopt", "flux-out", first["key"][:12], tasks[many[0]])
    assert adopted.code == 0, adopted.stderr
    assert in_doubt.run("adopt", "flux-out", second["key"], tasks[many[0]]).code == 2
    resumed = in_doubt.run("remove-text", *many[:2], *RATE)
    assert resumed.code == 1, resumed.stderr
    rows = in_doubt.rows("flux-out")
    assert [row["status"] for row in rows] == ["succeeded", "in_doubt"]
    assert rows[0]["task_id"] == tasks[many[0]]
    assert in_doubt.tasks_of_each(many[:2]) == [1, 1]
    assert in_doubt.status("flux-out")["credits"] == {"spent": 5, "measured": 0, "perhaps": 5, "saved": 0}


def test_images_in_doubt_are_resubmitted_only_on_request(in_doubt: Any, many: list[str]) -> None:
    """Held by default; --on-doubt resubmit, and retry --in-doubt, submit each once more."""
    reported = in_doubt.status("flux-out")
    assert [row["image"] for row in reported["in_doubt"]] == many[:2]
    assert reported["credits"] == {"spent": 0, "measured": 0, "perhaps": 10, "saved": 0}
    held = in_doubt.run("remove-text", *many[:2], *RATE)
    assert (held.code, in_doubt.tasks_of_each(many[:2])) == (1, [1, 1])
    assert in_doubt.run("remove-text", many[0], *RATE, "--on-doubt", "resubmit").code == 1
    assert in_doubt.tasks_of_each(many[:2]) == [2, 1]
    retried = in_doubt.run("retry", "flux-out", "--in-doubt", *RATE, "--json")
    assert "2 images get another try, for up to 10 credits" in retried.stderr
    assert in_doubt.tasks_of_each(many[:2]) == [3, 2]
    assert [json.loads(line)["status"] for line in retried.stdout.splitlines()] == ["in_doubt"] * 2
