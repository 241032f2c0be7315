"""The command line as a person or a script meets it: real processes against the sandbox, over sockets."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import attrs
import httpx
import pytest

from flux_async import Charge, EditRequest, Job
from flux_async.cli.results import ResultBook, ResultRow, Status

KEYS = "image key status task_id result_url file charge error attempts submitted_at finished_at"
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SECONDS = 60
NOBODY = "http://127.0.0.1:9"


@attrs.frozen
class Ended:
    """What a command left: exit code and both streams."""

    code: int
    stdout: str
    stderr: str


@attrs.frozen
class Cli:
    """Runs ``flux-async`` in a folder, against one address, with one key."""

    folder: Path
    base_url: str = NOBODY
    key: str | None = "test"

    @contextmanager
    def start(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a command; it does not outlive the block."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        environment |= {"KIE_BASE_URL": self.base_url, "COLUMNS": "120"}
        environment |= {} if self.key is None else {"KIE_API_KEY": self.key}
        with subprocess.Popen(
            [sys.executable, "-m", "flux_async.cli", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            **options,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def run(self, *arguments: str, text: str | None = None) -> Ended:
        """Run a command to its end."""
        with self.start(*arguments, stdin=subprocess.PIPE) as process:
            stdout, stderr = process.communicate(text or "", timeout=SECONDS)
        return Ended(process.returncode, stdout, stderr)

    def rows(self, folder: str = "out") -> list[dict[str, Any]]:
        """Return the lines of results.jsonl."""
        return [
            json.loads(line) for line in (self.folder / folder / "results.jsonl").read_text().splitlines()
        ]


@pytest.fixture
def cli(tmp_path: Path, sandbox_url: str) -> Cli:
    return Cli(tmp_path, sandbox_url)


@pytest.fixture
def offline(tmp_path: Path) -> Cli:
    """A command line whose API cannot be reached: what works here makes no request."""
    return Cli(tmp_path)


@pytest.fixture
def pictures(picture_host: Any, request: pytest.FixtureRequest) -> list[str]:
    """Three addresses that no other test uses."""
    names = [f"/{request.node.name}-{number}.png" for number in range(3)]
    for name in names:
        picture_host.files[name] = picture_host.files["/poster.png"]
    return [picture_host.url + name for name in names]


def submits_of(base_url: str, image: str) -> int:
    ledger = httpx.get(f"{base_url}/__sandbox/ledger").json()
    return int(ledger["images"].get(image, {"submits": 0})["submits"])


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def size_of(picture: Path) -> tuple[int, int]:
    from PIL import Image  # noqa: PLC0415 - only where pictures are looked at

    with Image.open(io.BytesIO(picture.read_bytes())) as image:
        image.load()
        return image.size


# --- remove-text ------------------------------------------------------------------------------------------


def test_two_addresses_become_two_pictures_and_two_lines_paid_once(
    cli: Cli, pictures: list[str], tmp_path: Path
) -> None:
    """Two URLs: exit 0, two images, two lines with exactly the keys; the same again makes no request."""
    first = cli.run("remove-text", *pictures[:2], pictures[0], "-o", "out")
    assert (first.code, len(first.stdout.splitlines())) == (0, 2), first.stderr
    rows = cli.rows()
    assert [row["image"] for row in rows] == pictures[:2]
    for row in rows:
        assert " ".join(row) == KEYS
        assert (row["status"], row["charge"], row["error"], row["attempts"]) == ("succeeded", "yes", None, 1)
        assert UTC_TIME.fullmatch(row["submitted_at"])
        assert UTC_TIME.fullmatch(row["finished_at"])
        assert re.fullmatch(r"images/[a-z0-9_-]+-[0-9a-f]{8}\.(png|jpg)", row["file"])
        assert size_of(tmp_path / "out" / row["file"]) == (640, 400)
    assert sorted(first.stdout.splitlines()) == sorted(f"out/{row['file']}" for row in rows)

    again = Cli(tmp_path).run("remove-text", *pictures[:2], "-o", "out")
    assert (again.code, sorted(again.stdout.splitlines())) == (0, sorted(first.stdout.splitlines()))
    assert cli.rows() == rows
    assert [submits_of(cli.base_url, image) for image in pictures[:2]] == [1, 1]

    (tmp_path / "out" / rows[0]["file"]).unlink()
    repaired = cli.run("remove-text", *pictures[:2], "-o", "out")
    assert (repaired.code, size_of(tmp_path / "out" / rows[0]["file"])) == (0, (640, 400))
    assert submits_of(cli.base_url, pictures[0]) == 1


def test_one_unreachable_image_fails_alone(cli: Cli, pictures: list[str], picture_host: Any) -> None:
    """One unreachable of three, given on standard input: two succeed, one fails with its type, exit 1."""
    missing = f"{picture_host.url}/no-such-picture.png"
    lines = f"# pictures\n{pictures[0]}\n\n{missing}\n{pictures[1]}\n"
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


def test_ctrl_c_ends_soon_and_the_next_run_pays_nothing_twice(
    cli: Cli, pictures: list[str], tmp_path: Path
) -> None:
    """SIGINT with tasks running: exit 130 within seconds, rows pending; the same command only waits."""
    with cli.start("remove-text", *pictures, "-o", "out") as process:
        results = tmp_path / "out" / "results.jsonl"
        wait_for(lambda: results.exists() and len(results.read_text().splitlines()) == 3)
        told = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SECONDS)
        took = time.monotonic() - told
    assert (process.returncode, stdout) == (130, "")
    assert took < 2.5
    assert "Run the same command again to resume" in stderr
    assert "Traceback" not in stderr
    rows = cli.rows()
    assert [(row["status"], row["charge"], bool(row["task_id"])) for row in rows] == [
        ("pending", "yes", True)
    ] * 3

    resumed = cli.run("remove-text", *pictures, "-o", "out")
    assert resumed.code == 0
    assert [row["task_id"] for row in cli.rows()] == [row["task_id"] for row in rows]
    assert [submits_of(cli.base_url, image) for image in pictures] == [1, 1, 1]


def test_a_reader_that_goes_away_does_not_end_the_run(cli: Cli, pictures: list[str], tmp_path: Path) -> None:
    """A broken pipe on stdout loses the printed lines, not the pictures, and shows no traceback."""
    reader, writer = os.pipe()
    with cli.start("remove-text", *pictures[:2], "-o", "out", stdout=writer) as process:
        os.close(writer)
        os.close(reader)
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    assert "Error" not in stderr
    assert "Traceback" not in stderr
    assert [row["status"] for row in cli.rows()] == ["succeeded"] * 2


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
    """An API that knows no key, and the submits it received."""
    submits: list[str] = []
    handler = type("Handler", (_DeadKey,), {"submits": submits})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", submits
        server.shutdown()
        thread.join()


def test_a_wrong_key_is_noticed_after_one_submit(tmp_path: Path, dead_key: tuple[str, list[str]]) -> None:
    """A wrong key: exit 3 after exactly one submit, said once; every image stays pending, free of charge."""
    url, submits = dead_key
    cli = Cli(tmp_path, url)
    ended = cli.run(
        "remove-text", *(f"https://example.com/{n}.png" for n in range(30)), "-o", "out", "--json"
    )
    assert (ended.code, len(submits)) == (3, 1)
    assert ended.stderr.count("401") == 1
    assert "KIE_API_KEY" in ended.stderr
    assert {(row["status"], row["charge"], row["attempts"]) for row in cli.rows()} == {("pending", "no", 0)}
    assert len(ended.stdout.splitlines()) == 30


def test_the_sandbox_turns_a_wrong_key_away_too(tmp_path: Path, sandbox_url: str) -> None:
    """Against the sandbox a wrong key is exit 3, for a run and for a single picture."""
    cli = Cli(tmp_path, sandbox_url, key="wrong")
    assert cli.run("remove-text", "https://example.com/a.png", "-o", "out").code == 3
    assert cli.run("generate", "A lighthouse").code == 3


def test_an_empty_balance_halts_the_run(tmp_path: Path, start_sandbox: Any, pictures: list[str]) -> None:
    """With credits for two of three: two succeed, the third stays pending, exit 3."""
    cli = Cli(tmp_path, start_sandbox("--speed", "20", "--credits", "10").url)
    ended = cli.run("remove-text", *pictures, "-o", "out")
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
        ["credits"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_a_key_every_command_names_the_variable(tmp_path: Path, arguments: list[str]) -> None:
    """No key: exit 2, one line that names KIE_API_KEY, and no folder made."""
    ended = Cli(tmp_path, key=None).run(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert "KIE_API_KEY" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("local", ["here.png", "folder", "/no/such/file.png"])
def test_a_local_path_is_refused_before_anything_is_sent(offline: Cli, local: str) -> None:
    """A file or folder of this machine is a usage error, even among good addresses."""
    (offline.folder / "here.png").write_bytes(b"")
    (offline.folder / "folder").mkdir()
    for arguments in (["remove-text", "https://example.com/a.png", local], ["edit", "Make it blue", local]):
        ended = offline.run(*arguments)
        assert (ended.code, ended.stdout) == (2, "")
        assert "local files are not supported yet" in ended.stderr
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
        ["edit", "Make it blue", "nonsense"],
        ["task", " "],
        ["sandbox", "--speed", "0"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_call_is_a_usage_error(offline: Cli, arguments: list[str]) -> None:
    """What cannot be meant is said on stderr, with exit 2 and without a traceback."""
    ended = offline.run(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert "Error: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_damaged_results_stop_the_run_and_stay_as_they_are(offline: Cli) -> None:
    """A results.jsonl that cannot be read: exit 2, its line is named, the file is untouched."""
    results = offline.folder / "out" / "results.jsonl"
    results.parent.mkdir()
    results.write_text('{"image": ')
    ended = offline.run("remove-text", "https://example.com/a.png", "-o", "out")
    assert ended.code == 2
    assert "results.jsonl line 1 cannot be read" in ended.stderr
    assert results.read_text() == '{"image": '


def test_an_address_that_is_none_fails_without_a_request(offline: Cli) -> None:
    """An invalid address is a failed row, free of charge, and exit 1."""
    ended = offline.run("remove-text", "nonsense", "data:image/png;base64,AAAA", "-o", "out")
    assert ended.code == 1
    rows = offline.rows()
    assert [(row["status"], row["charge"], row["attempts"]) for row in rows] == [("failed", "no", 0)] * 2
    assert {row["error"]["type"] for row in rows} == {"InvalidInput"}


def test_in_a_terminal_results_and_the_live_line_share_the_screen(offline: Cli) -> None:
    """On a terminal the results stand on lines of their own above the live line, which is gone in the end."""
    image, result = "https://example.com/a.png", "https://example.com/r.png"
    key = Job(request=EditRequest.text_removal(image)).key
    row = ResultRow(
        image=image, key=key, status=Status.SUCCEEDED, task_id="t", result_url=result, charge=Charge.YES
    )
    ResultBook.open(offline.folder / "out").append(row)
    screen, terminal = os.openpty()
    with offline.start(
        "remove-text",
        image,
        "nonsense",
        "--no-download",
        "-o",
        "out",
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(screen, 65536):
                shown += chunk
        except OSError:
            pass  # how a terminal says that nobody is on its other end any more
        os.close(screen)
    assert process.returncode == 1
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", shown.decode()).splitlines()
    assert result in lines
    assert any("0 of 2 done" in line for line in lines)
    assert "Traceback" not in shown.decode()


# --- one picture, one task, the account -------------------------------------------------------------------


def test_a_picture_is_made_from_words_and_its_task_can_be_asked_for(cli: Cli, tmp_path: Path) -> None:
    """With -o generate brings the picture home; task tells of it later, and prints its URL."""
    made = cli.run("generate", "A lighthouse", "--aspect-ratio", "1:1", "-o", "made.png", "--json")
    assert made.code == 0, made.stderr
    told = json.loads(made.stdout)
    assert (told["status"], told["file"]) == ("SUCCESS", "made.png")
    assert size_of(tmp_path / "made.png")[0] > 0
    assert cli.run("task", told["task_id"]).stdout == told["result_url"] + "\n"
    again = cli.run("task", told["task_id"], "--wait", "-o", "again.png")
    assert (again.code, again.stdout) == (0, "again.png\n")


def test_a_picture_is_edited(cli: Cli, pictures: list[str]) -> None:
    """Edit prints the URL of the result."""
    ended = cli.run("edit", "Make the sky orange", pictures[0], "--output-format", "png")
    assert ended.code == 0, ended.stderr
    assert httpx.get(ended.stdout.strip()).content.startswith(b"\x89PNG")


def test_a_task_that_failed_is_exit_1(cli: Cli, picture_host: Any) -> None:
    """A failed task is told with its reason: an error when it was waited for, a state when looked at."""
    ended = cli.run("edit", "Make it blue", f"{picture_host.url}/page.html")
    assert (ended.code, ended.stdout) == (1, "")
    task_id = ended.stderr.split()[2]
    looked = cli.run("task", task_id)
    assert looked.code == 1
    assert looked.stdout.startswith("GENERATE_FAILED: ")
    assert json.loads(cli.run("task", task_id, "--json").stdout)["error_code"] == 400


def test_an_unknown_task_is_exit_1(cli: Cli) -> None:
    """A task nobody knows is an error of one line."""
    ended = cli.run("task", "0" * 32)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: The API answered ")


def test_an_interrupted_picture_is_not_forgotten(tmp_path: Path, start_sandbox: Any) -> None:
    """SIGTERM while a picture is made: exit 130, and the paid task is named, with what takes it up."""
    cli = Cli(tmp_path, start_sandbox("--speed", "1").url)
    with cli.start("generate", "A lighthouse") as process:
        ledger = f"{cli.base_url}/__sandbox/ledger"
        wait_for(lambda: httpx.get(ledger).json()["accepted"])
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (130, "")
    (task,) = httpx.get(ledger).json()["tasks"]
    assert f"flux-async task {task['taskId']} --wait" in stderr


def test_the_balance_is_a_number(cli: Cli) -> None:
    """Credits prints the balance, or it as JSON."""
    assert float(cli.run("credits").stdout) > 0
    assert list(json.loads(cli.run("credits", "--json").stdout)) == ["credits"]


# --- the command itself -----------------------------------------------------------------------------------


def test_help_and_version_are_results(offline: Cli) -> None:
    """--help tells of every command and the exit codes, --version the version, both on stdout."""
    told = offline.run("--help")
    assert told.code == 0
    commands = ("remove-text", "generate", "edit", "task", "credits", "sandbox", "demo")
    assert all(f"\n  {name} " in told.stdout for name in commands)
    assert "130 interrupted" in told.stdout
    assert offline.run("--version").stdout.startswith("flux-async, version ")


def test_the_sandbox_command_serves_until_it_is_told_to_stop(offline: Cli) -> None:
    """Sandbox says where it listens, takes the key it was given, and ends with exit 0."""
    with offline.start("sandbox", "--port", "0", "--key", "other", "--credits", "7") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        cli = attrs.evolve(offline, base_url=line.removeprefix("sandbox ready at ").strip(), key="other")
        assert cli.run("credits").stdout == "7\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0


def test_a_second_signal_ends_the_command_at_once(tmp_path: Path) -> None:
    """With a submit that is never answered, the first SIGINT waits for it, the second does not.

    The image is then in doubt: the submit had left.
    """
    arrived = threading.Event()
    release = threading.Event()

    class Silent(_DeadKey):
        def do_POST(self) -> None:
            arrived.set()
            release.wait(SECONDS)
            self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        cli = Cli(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
        try:
            with cli.start("remove-text", "https://example.com/a.png", "-o", "out") as process:
                assert arrived.wait(SECONDS)
                process.send_signal(signal.SIGINT)
                wait_for((tmp_path / "out" / "results.jsonl").exists)
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=5)
        finally:
            release.set()
            server.shutdown()
            thread.join()
    assert process.returncode == 130
    (row,) = cli.rows()
    assert (row["status"], row["charge"]) == ("in_doubt", "maybe")
