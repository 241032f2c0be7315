"""The command line as users and scripts call it, against the sandbox, over sockets."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

import local_http

KEYS = "image key status task_id api result_url file charge credits error attempts"
KEYS += " submitted_at finished_at sha256 verdict text_left words_left background_kept"
KEYS += " vendor_file not_preserved not_checked saved_credits"
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SECONDS = 120


def size_of(path: Path) -> tuple[int, int]:
    from PIL import Image  # noqa: PLC0415 - only where images are opened

    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()
        return image.size


# --- remove-text ------------------------------------------------------------------------------------------


def test_two_addresses_become_two_images_and_two_lines_paid_once(
    cli: Any, image_urls: list[str], tmp_path: Path
) -> None:
    """Two URLs: exit 0, two images, two lines with exactly the keys; the same again makes no request."""
    first = cli.run("remove-text", *image_urls[:2], image_urls[0], "-o", "out")
    assert (first.code, len(first.stdout.splitlines())) == (0, 2), first.stderr
    rows = cli.rows()
    assert [row["image"] for row in rows] == image_urls[:2]
    for row in rows:
        assert " ".join(row) == KEYS
        assert (row["status"], row["charge"], row["error"], row["attempts"]) == ("succeeded", "yes", None, 1)
        assert UTC_TIME.fullmatch(row["submitted_at"])
        assert UTC_TIME.fullmatch(row["finished_at"])
        assert re.fullmatch(r"images/[a-z0-9_-]+-[0-9a-f]{12}\.(png|jpg)", row["file"])
        assert size_of(tmp_path / "out" / row["file"]) == (640, 400)
    assert sorted(first.stdout.splitlines()) == sorted(f"out/{row['file']}" for row in rows)

    again = cli.run("remove-text", *image_urls[:2], "-o", "out")
    assert (again.code, sorted(again.stdout.splitlines())) == (0, sorted(first.stdout.splitlines()))
    assert cli.rows() == rows
    assert cli.tasks_of_each(image_urls[:2]) == [1, 1]

    (tmp_path / "out" / rows[0]["file"]).unlink()
    repaired = cli.run("remove-text", *image_urls[:2], "-o", "out")
    assert (repaired.code, size_of(tmp_path / "out" / rows[0]["file"])) == (0, (640, 400))
    assert cli.tasks_of(image_urls[0]) == 1


def test_one_unreachable_image_fails_alone(cli: Any, image_urls: list[str], image_host: Any) -> None:
    """One unreachable of three, given on standard input: two succeed, one fails with its type, exit 1."""
    missing = f"{image_host.url}/no-such-image.png"
    lines = f"# images\n{image_urls[0]}\n\n{missing}\n{image_urls[1]}\n"
    ended = cli.run("remove-text", "-", "-o", "out", "--json", text=lines)
    rows = cli.rows()
    assert ended.code == 1
    assert [row["status"] for row in rows] == ["succeeded", "failed", "succeeded"]
    assert (rows[1]["error"]["type"], rows[1]["error"]["code"]) == ("TaskFailed", 400)
    assert rows[1]["charge"] == "maybe"
    printed = [json.loads(line) for line in ended.stdout.splitlines()]
    assert sorted(printed, key=lambda row: str(row["image"])) == sorted(
        rows, key=lambda row: str(row["image"])
    )
    assert missing in ended.stderr
    assert "TaskFailed" in ended.stderr


def test_a_reader_that_goes_away_does_not_end_the_run(quick_cli: Any, image_urls: list[str]) -> None:
    """A broken pipe on stdout loses the printed lines, not the images, and shows no traceback."""
    reader, writer = os.pipe()
    with quick_cli.start("remove-text", *image_urls[:2], "-o", "out", stdout=writer) as process:
        os.close(writer)
        os.close(reader)
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    assert "Error" not in stderr
    assert "Traceback" not in stderr
    assert [row["status"] for row in quick_cli.rows()] == ["succeeded"] * 2


class _DeadKey(BaseHTTPRequestHandler):
    """Answers every request as the vendor answers a wrong key."""

    submits: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        """Count a submit and refuse it."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.submits.append(self.path)
        self.do_GET()

    def do_GET(self) -> None:
        """Refuse."""
        body = b'{"code":401,"msg":"Unauthorized","data":null}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def dead_key() -> Iterator[tuple[str, list[str]]]:
    """An API that accepts no key, and the submits it received."""
    submits: list[str] = []
    handler = type("Handler", (_DeadKey,), {"submits": submits})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", submits
        server.shutdown()
        thread.join()


def test_a_wrong_key_is_noticed_before_anything_is_submitted(
    make_cli: Any, tmp_path: Path, dead_key: tuple[str, list[str]]
) -> None:
    """A wrong key: exit 3 without a submit, one message; every image stays pending, free of charge."""
    url, submits = dead_key
    cli = make_cli(url)
    ended = cli.run(
        "remove-text", *(f"https://example.com/{n}.png" for n in range(30)), "-o", "out", "--json"
    )
    assert (ended.code, len(submits)) == (3, 0)
    assert ended.stderr.count("401") == 1
    assert "KIE_API_KEY" in ended.stderr
    assert {(row["status"], row["charge"]) for row in cli.rows()} == {("pending", "no")}
    assert sum(row["attempts"] for row in cli.rows()) == 0
    assert len(ended.stdout.splitlines()) == 30


def test_the_sandbox_refuses_a_wrong_key_too(make_cli: Any, tmp_path: Path, sandbox_url: str) -> None:
    """Against the sandbox a wrong key is exit 3, for a run and for a single image."""
    cli = make_cli(sandbox_url, key="wrong")
    assert cli.run("remove-text", "https://example.com/a.png", "-o", "out").code == 3
    assert cli.run("generate", "A lighthouse").code == 3


def test_an_empty_balance_halts_the_run(
    make_cli: Any, tmp_path: Path, start_sandbox: Any, image_urls: list[str]
) -> None:
    """With credits for two of three: two succeed, the third stays pending, exit 3."""
    cli = make_cli(start_sandbox("--speed", "20", "--credits", "10", "--images", "none").url)
    cli.teach_times()
    ended = cli.run("remove-text", *image_urls, "-o", "out")
    assert ended.code == 3
    assert [row["status"] for row in cli.rows()] == ["succeeded", "succeeded", "pending"]
    assert "Halted: The API answered 402" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["remove-text", "https://example.com/a.png"],
        ["generate", "A lighthouse"],
        ["edit", "Make it blue", "https://example.com/a.png"],
        ["task", "0123456789abcdef"],
        ["upload", "https://example.com/a.png"],
        ["credits"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_a_key_every_command_names_the_variable(
    make_cli: Any, tmp_path: Path, arguments: list[str]
) -> None:
    """No key: exit 2, one line that names KIE_API_KEY, and no folder made."""
    ended = make_cli(key=None).run(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert "KIE_API_KEY" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("local", ["here/*.png", "empty", "/no/such/file.png", "gone.jpg"])
def test_a_path_with_nothing_there_is_refused_before_anything_is_sent(offline: Any, local: str) -> None:
    """A missing file, an empty folder, a pattern without a match: a usage error, nothing is sent."""
    (offline.folder / "empty").mkdir()
    for arguments in (
        ["remove-text", "https://example.com/a.png", local],
        ["edit", "Make it blue", local],
        ["upload", local],
    ):
        ended = offline.run(*arguments)
        assert (ended.code, ended.stdout) == (2, "")
        assert "othing was sent" in ended.stderr
    assert not (offline.folder / "flux-out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["remove-text"],
        ["remove-text", "-"],
        ["remove-text", "--rate", "fast", "https://example.com/a.png"],
        ["remove-text", "--prompt", " ", "https://example.com/a.png"],
        ["generate", " "],
        ["generate", "A lighthouse", "-o", "."],
        ["generate", "A lighthouse", "-o", "/proc/image.png"],
        ["edit", "Make it blue", "https://example.com/a.png", "-o", "folder/"],
        ["edit", "Make it blue", "nonsense"],
        ["task", " "],
        ["sandbox", "--speed", "0"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_call_is_a_usage_error(offline: Any, arguments: list[str]) -> None:
    """Invalid arguments are reported on stderr, with exit 2 and without a traceback."""
    ended = offline.run(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert "Error: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_results_without_a_journal_stop_the_run_unchanged(offline: Any) -> None:
    """A results.jsonl whose journal is gone: exit 2, and the file is untouched; it may list paid tasks."""
    results = offline.folder / "out" / "results.jsonl"
    results.parent.mkdir()
    results.write_text('{"image": ')
    ended = offline.run("remove-text", "https://example.com/a.png", "-o", "out")
    assert ended.code == 2
    assert "no journal.sqlite3" in ended.stderr
    assert results.read_text() == '{"image": '
    assert list(results.parent.iterdir()) == [results]


@pytest.mark.parametrize("name", ["images", "originals"])
def test_a_file_in_place_of_a_folder_stops_the_run_before_it_spends(offline: Any, name: str) -> None:
    """Paid results could not be saved."""
    (offline.folder / "out").mkdir()
    (offline.folder / "out" / name).touch()
    ended = offline.run("remove-text", "https://example.com/a.png", "-o", "out")
    assert (ended.code, f"out/{name} is no folder" in ended.stderr) == (2, True)
    assert "nothing was sent" in ended.stderr


def test_an_address_that_is_none_fails_without_a_request(offline: Any) -> None:
    """An invalid address is a failed row, free of charge, and exit 1."""
    ended = offline.run("remove-text", "ftp://h.com/a.png", "data:image/png;base64,AAAA", "-o", "out")
    assert ended.code == 1
    rows = offline.rows()
    assert [(row["status"], row["charge"], row["attempts"]) for row in rows] == [("failed", "no", 0)] * 2
    assert {row["error"]["type"] for row in rows} == {"InvalidInput"}
    assert "not an http(s) URL" in ended.stderr


def shown_on_a_terminal(cli: Any, *arguments: str) -> tuple[int, str]:
    """Run a command whose two streams are one terminal; return its exit code and all that was drawn."""
    screen, terminal = os.openpty()
    with cli.start(*arguments, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(screen, 65536):
                shown += chunk
        except OSError:
            pass  # how a terminal reports that its other end is closed
        os.close(screen)
    return process.returncode, shown.decode()


def test_in_a_terminal_results_and_the_live_lines_share_the_screen(
    quick_cli: Any, image_urls: list[str]
) -> None:
    """On a terminal the results stand on lines of their own above the live lines, which go in the end."""
    code, shown = shown_on_a_terminal(
        quick_cli, "remove-text", image_urls[0], "ftp://h.com/a.png", "-o", "out"
    )
    assert code == 1
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", shown).splitlines()
    assert f"out/{quick_cli.rows()[0]['file']}" in lines
    assert any("1 of 2 done" in line for line in lines)
    assert any("1 of 20 submits in 10 s" in line for line in lines)
    assert "Traceback" not in shown


def test_the_spinner_of_a_single_command_is_gone_before_its_result(quick_cli: Any) -> None:
    """On a terminal the address stands on a line of its own."""
    code, shown = shown_on_a_terminal(quick_cli, "generate", "A lighthouse")
    assert code == 0
    assert "Generating" in shown
    last = re.split(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n", shown.rstrip())[-1]
    assert last.startswith("http://")


def test_the_log_is_shown_as_asked(quick_cli: Any, image_urls: list[str]) -> None:
    """Without -v warnings only; -v adds submits and results, -vv polls; nothing of it holds the key."""
    quiet = quick_cli.run("remove-text", image_urls[0], "-o", "out")
    once = quick_cli.run("remove-text", image_urls[1] + "?sig=geheim", "-o", "out", "-v")
    twice = quick_cli.run("remove-text", image_urls[2], "-o", "out", "-vv")
    assert ": submitted (" not in quiet.stderr
    assert ": submitted (attempt 1, charge yes, task " in once.stderr
    assert "poll of task" not in once.stderr
    assert "poll of task" in twice.stderr
    assert "sig=geheim" not in "".join(line for line in once.stderr.splitlines() if " INFO " in line)


def test_status_counts_inputs_that_were_refused(quick_cli: Any, image_urls: list[str]) -> None:
    """They are in no journal, but they were asked for and failed."""
    quick_cli.run("remove-text", image_urls[0], "ftp://h.com/a.png", "data:image/png;base64,AA", "-o", "out")
    assert quick_cli.status()["refused"] == 2
    assert re.search(r"refused +2 ", quick_cli.run("status", "out").stdout)


# --- one image, one task, the account ---------------------------------------------------------------------


def test_generate_saves_an_image_whose_task_can_be_read(cli: Any, tmp_path: Path) -> None:
    """With -o generate saves the image; task reports it later, and prints its URL."""
    made = cli.run("generate", "A lighthouse", "--aspect-ratio", "1:1", "-o", "made.png", "--json")
    assert made.code == 0, made.stderr
    reported = json.loads(made.stdout)
    assert (reported["status"], reported["file"]) == ("SUCCESS", "made.png")
    assert size_of(tmp_path / "made.png")[0] > 0
    assert cli.run("task", reported["task_id"]).stdout == reported["result_url"] + "\n"
    again = cli.run("task", reported["task_id"], "--wait", "-o", "again.png")
    assert (again.code, again.stdout) == (0, "again.png\n")


def test_edit_prints_the_url_of_the_result(cli: Any, image_urls: list[str]) -> None:
    """Edit prints the URL of the result."""
    ended = cli.run("edit", "Make the sky orange", image_urls[0], "--output-format", "png")
    assert ended.code == 0, ended.stderr
    assert local_http.get(ended.stdout.strip()).content.startswith(b"\x89PNG")


def test_a_task_that_failed_is_exit_1(cli: Any, image_host: Any) -> None:
    """A failed task is reported with its reason: as an error of the wait, as a state of the task."""
    ended = cli.run("edit", "Make it blue", f"{image_host.url}/page.html")
    assert (ended.code, ended.stdout) == (1, "")
    task_id = ended.stderr.split()[2]
    ended = cli.run("task", task_id)
    assert ended.code == 1
    assert ended.stdout.startswith("GENERATE_FAILED: ")
    assert json.loads(cli.run("task", task_id, "--json").stdout)["error_code"] == 400


def test_an_unknown_task_is_exit_1(cli: Any) -> None:
    """A missing task is reported in one line, with the API's message; no parameter is blamed."""
    ended = cli.run("task", "nope")
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: No task 'nope': the API answered 422: The record does not exist. ")
    assert ended.stderr.count("\n") == 1
    assert "parameter" not in ended.stderr


def test_an_interrupted_generate_names_the_paid_task(
    make_cli: Any, tmp_path: Path, start_sandbox: Any
) -> None:
    """SIGTERM during generate: exit 130, and the paid task is named, with the command that fetches it."""
    cli = make_cli(start_sandbox("--speed", "1").url)
    with cli.start("generate", "A lighthouse") as process:
        ledger = f"{cli.base_url}/__sandbox/ledger"
        cli.wait_for(lambda: local_http.get(ledger).json()["accepted"])
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (130, "")
    (task,) = local_http.get(ledger).json()["tasks"]
    assert f"flux-async task {task['taskId']} --wait" in stderr


def test_the_balance_is_a_number(cli: Any) -> None:
    """Credits prints the balance, or it as JSON."""
    assert float(cli.run("credits").stdout) > 0
    assert list(json.loads(cli.run("credits", "--json").stdout)) == ["credits"]


# --- the command itself -----------------------------------------------------------------------------------


def test_help_and_version_are_results(offline: Any) -> None:
    """--help lists every command and the exit codes, --version the version, both on stdout."""
    reported = offline.run("--help")
    assert reported.code == 0
    commands = (
        "remove-text",
        "status",
        "retry",
        "adopt",
        "generate",
        "edit",
        "task",
        "upload",
        "credits",
        "doctor",
        "sandbox",
        "demo",
    )
    assert all(f"\n  {name} " in reported.stdout for name in commands)
    assert "130 interrupted" in reported.stdout
    assert offline.run("--version").stdout.startswith("flux-async, version ")


def test_the_sandbox_command_serves_until_a_signal(offline: Any) -> None:
    """It prints its address, accepts the given key, and ends with exit 0."""
    with offline.start("sandbox", "--port", "0", "--key", "other", "--credits", "7") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        cli = attrs.evolve(offline, base_url=line.removeprefix("sandbox ready at ").strip(), key="other")
        assert cli.run("credits").stdout == "7\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0


def test_a_second_signal_ends_the_command_at_once(make_cli: Any, tmp_path: Path) -> None:
    """With a submit that is never answered, the first SIGINT waits for it, the second does not.

    The image is then in doubt: the submit had left.
    """
    arrived = threading.Event()
    release = threading.Event()

    class Silent(_DeadKey):
        def do_POST(self) -> None:
            arrived.set()
            release.wait(2 * SECONDS)
            self.close_connection = True

        def do_GET(self) -> None:
            body = b'{"code":200,"msg":"success","data":100}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        cli = make_cli(f"http://127.0.0.1:{server.server_address[1]}")
        try:
            with cli.start("remove-text", "https://example.com/a.png", "-o", "out") as process:
                assert arrived.wait(SECONDS)
                process.send_signal(signal.SIGINT)
                assert process.stderr is not None
                assert "1 image needs about 5 credits" in process.stderr.readline()
                assert "Stopping" in process.stderr.readline()
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=SECONDS)
        finally:
            release.set()
            server.shutdown()
            thread.join()
    assert process.returncode == 130
    (in_doubt,) = cli.status()["in_doubt"]
    assert in_doubt["image"] == "https://example.com/a.png"
    assert UTC_TIME.fullmatch(in_doubt["submitted_at"])


def test_the_sandbox_lists_its_faults(offline: Any) -> None:
    """``sandbox --list-faults`` prints each with a sentence, and starts nothing."""
    ended = offline.run("sandbox", "--list-faults")
    assert ended.code == 0
    assert "  http-429           The submit is refused with HTTP 429, without Retry-After.\n" in ended.stdout


def test_the_sandbox_refuses_a_script_it_cannot_read(offline: Any) -> None:
    """The line that is wrong is named."""
    (offline.folder / "script.jsonl").write_text('["http-429"]\n["nonsense"]\n')
    ended = offline.run("sandbox", "--port", "0", "--fault-script", "script.jsonl")
    assert ended.code == 2
    assert "line 2" in ended.stderr
    assert "nonsense" in ended.stderr


@pytest.mark.parametrize("option", ["--max-credits", "--patience", "--timeout", "--confirm-above"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry"])
def test_a_limit_that_is_no_number_is_a_usage_error(offline: Any, option: str, more: list[str]) -> None:
    """Exit 2, and no folder is made."""
    ended = offline.run("remove-text", "https://example.com/a.png", "-o", "out", option, "nan", *more)
    assert (ended.code, f"Invalid value for '{option}'" in ended.stderr) == (2, True), ended.stderr
    assert not (offline.folder / "out").exists()


# --- models of the user's own -----------------------------------------------------------------------------

OWN_MODEL = """
["nano-banana-pro"]
credits = 18
image_field = "image_input"
image_is_list = true
extras = { aspect_ratio = "auto", resolution = "1K" }
"""


def test_a_run_with_a_model_of_a_file_resumes_without_it(
    cli: Any, image_urls: list[str], tmp_path: Path
) -> None:
    """Its price counts for the budget and in ``status``; the folder's journal holds all of it."""
    file = tmp_path / "models.toml"
    file.write_text(OWN_MODEL, encoding="utf-8")
    words = ("-o", "out", "--model-file", str(file), "--model", "nano-banana-pro", "--max-credits", "20")
    halted = cli.run("remove-text", *image_urls[:2], *words)
    assert halted.code == 3, halted.stderr
    file.unlink()
    resumed = cli.run("retry", "out")
    assert resumed.code == 0, resumed.stderr
    assert [row["credits"] for row in cli.rows()] == [18, 18]
    assert json.loads(cli.run("status", "out", "--json").stdout)["credits"]["spent"] == 36
    assert cli.tasks_of_each(image_urls[:2]) == [1, 1]
