"""The command line on files of this machine, with a sandbox that fetches nothing."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_http

RATE = ("--rate", "20/0.2")
PRICE = "flux-kontext-max=9"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


@pytest.fixture
def quick(make_cli: Any, start_sandbox: Any) -> Iterator[Any]:
    """A command line against a quick sandbox of its own."""
    cli = make_cli(start_sandbox("--speed", "60", "--images", "none").url)
    cli.teach_times("out")
    return cli  # type: ignore[no-any-return]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three images and other files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("b.png", "a photo.png", "c.png")):
        (folder / name).write_bytes(PNG + bytes([number]))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(PNG)
    return folder


def submits(cli: Any) -> int:
    return int(cli.ledger()["accepted"])


def test_a_folder_is_run_once_whatever_its_files_are_called(quick: Any, photos: Path) -> None:
    """Three files, three submits; the same again none; moved none; changed one."""
    first = quick.run("remove-text", "./photos", *RATE, "-o", "out")
    assert first.code == 0, first.stderr
    rows = quick.rows()
    assert [row["image"] for row in rows] == ["./photos/a photo.png", "./photos/b.png", "./photos/c.png"]
    assert {row["status"] for row in rows} == {"succeeded"}
    assert rows[0]["file"].startswith("images/a-photo-")
    assert rows[0]["file"].partition(".")[0].endswith(f"-{rows[0]['key'][:12]}")
    assert all((quick.folder / "out" / row["file"]).is_file() for row in rows)
    assert submits(quick) == 3

    again = quick.run("remove-text", "photos", *RATE, "-o", "out")
    assert (again.code, len(again.stdout.splitlines()), submits(quick)) == (0, 3, 3)

    moved = quick.folder / "elsewhere.jpeg"
    (photos / "b.png").rename(moved)
    (photos / "c.png").write_bytes(PNG + b"changed")
    last = quick.run("remove-text", str(moved), "photos/c.png", *RATE, "-o", "out", "--json")
    assert (last.code, submits(quick)) == (0, 4)
    reported = {row["image"]: row for row in map(json.loads, last.stdout.splitlines())}
    assert reported[str(moved)]["task_id"] == rows[1]["task_id"]
    assert reported["photos/c.png"]["task_id"] not in {row["task_id"] for row in rows}
    assert len(quick.rows()) == 4


def test_equal_files_are_paid_once_and_have_rows_of_their_own(quick: Any, photos: Path) -> None:
    """Each path has its row and its line on stdout, with the one task; the same path again has none."""
    for name in ("copy.png", "z.png"):
        (photos / name).write_bytes((photos / "b.png").read_bytes())
    (photos / "list.csv").write_text("file\nb.png\nnone.png\ncopy.png\nc.png\nb.png\ncopy.png\nz.png\n")
    for command in (("--from", "photos/list.csv"), ("--from", "photos/list.csv", "--json")):
        ended = quick.run("remove-text", *command, *RATE, "-o", "out")
        rows = quick.rows()
        assert [row["image"] for row in rows] == ["b.png", "none.png", "copy.png", "c.png", "z.png"]
        assert len({row["task_id"] for row in rows if row["image"] in {"b.png", "copy.png", "z.png"}}) == 1
        assert [row["status"] for row in rows].count("succeeded") == 4
        assert (len(ended.stdout.splitlines()), submits(quick)) == (5 if "--json" in command else 4, 2)
        assert "2 files hold the same as another one: paid once." in ended.stderr
        assert "2 duplicates left out." in ended.stderr


def test_lists_name_files_beside_them_and_bad_ones_fail_alone(quick: Any, photos: Path) -> None:
    """Paths are relative to the list; a missing file and one that is not an image fail alone."""
    (photos / "list.csv").write_text("image,key\nb.png,mine\nnone.png,\nnotes.txt,\n")
    ended = quick.run("remove-text", "--from", "photos/list.csv", *RATE, "-o", "out")
    rows = quick.rows()
    assert (ended.code, submits(quick)) == (1, 1), ended.stderr
    assert [(row["image"], row["status"]) for row in rows] == [
        ("b.png", "succeeded"),
        ("none.png", "failed"),
        ("notes.txt", "failed"),
    ]
    assert rows[0]["key"] == "mine"
    assert "photos/list.csv line 3" in ended.stderr
    assert rows[2]["error"]["type"] == "InvalidInput"


def test_jobs_in_doubt_name_their_uploads_and_a_retry_finds_the_file(
    make_cli: Any, start_sandbox: Any, photos: Path, tmp_path: Path
) -> None:
    """The upload's address identifies the task; a retry from another directory finds the file."""
    address = start_sandbox("--speed", "60", "--images", "none", "--faults", "drop-reply").url
    cli = make_cli(address)
    cli.teach_times()
    ended = cli.run("remove-text", "photos/b.png", "photos/c.png", *RATE, "-o", "out")
    assert ended.code == 1, ended.stderr
    in_doubt = cli.status()["in_doubt"]
    tasks = {task["image"]: task["taskId"] for task in cli.ledger()["tasks"]}
    assert [doubt["image"] for doubt in in_doubt] == ["photos/b.png", "photos/c.png"]
    assert {doubt["uploaded_as"] for doubt in in_doubt} == set(tasks)
    assert f"uploaded as {in_doubt[0]['uploaded_as']}" in cli.run("status", "out").stdout

    mine, other = (tasks[doubt["uploaded_as"]] for doubt in in_doubt)
    refused = cli.run("adopt", "out", in_doubt[0]["key"], other)
    assert "was made from" in refused.stderr
    adopted = cli.run("adopt", "out", in_doubt[0]["key"], mine)
    assert adopted.code == 0, adopted.stderr

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    away = type(cli)(elsewhere, address)
    assert away.run("retry", "../out", "--in-doubt", *RATE).code == 1
    assert (submits(cli), len(cli.status()["in_doubt"])) == (3, 1)
    again = away.run("remove-text", "../photos/b.png", *RATE, "-o", "../out")
    assert again.code == 0, again.stderr
    assert (submits(cli), {row["image"]: row["status"] for row in cli.rows()}) == (
        3,
        {"../photos/b.png": "succeeded", "photos/c.png": "in_doubt"},
    )


def test_upload_and_edit_take_a_file(quick: Any, photos: Path) -> None:
    """Upload prints the address, or all details; edit uploads first."""
    plain = quick.run("upload", "photos/b.png")
    reported = quick.run("upload", "photos/b.png", "--json")
    assert (plain.code, reported.code) == (0, 0), plain.stderr + reported.stderr
    assert local_http.get(plain.stdout.strip()).content == (photos / "b.png").read_bytes()
    fields = json.loads(reported.stdout)
    assert fields["sha256"] == hashlib.sha256((photos / "b.png").read_bytes()).hexdigest()
    assert fields["url"] != plain.stdout.strip()
    assert list(fields) == ["url", "size", "content_type", "sha256", "uploaded_at", "expires_at"]
    again = quick.run("upload", fields["url"], "--json")
    assert json.loads(again.stdout)["sha256"] is None

    assert quick.run("upload", "photos/notes.txt").code == 2
    assert "more than" in quick.run("upload", "photos/b.png", "--max-mb", "0.00001").stderr
    edited = quick.run("edit", "Make it blue", "photos/b.png", "--json")
    assert edited.code == 0, edited.stderr


def test_addresses_go_through_the_upload_host_on_request(quick: Any, image_host: Any) -> None:
    """--via-upload: the row has the given address, the vendor receives another."""
    image = f"{image_host.url}/poster.png"
    ended = quick.run("remove-text", image, "--via-upload", *RATE, "-o", "out")
    assert ended.code == 0, ended.stderr
    assert [row["image"] for row in quick.rows()] == [image]
    assert all(sent.startswith(quick.base_url) for sent in quick.ledger()["images"])


def test_a_run_prints_its_cost_and_the_balance(make_cli: Any, start_sandbox: Any, photos: Path) -> None:
    """Enough, bounded, too little: printed before the first submit; before and after are in the table."""
    cli = make_cli(start_sandbox("--speed", "60", "--images", "none", "--credits", "17.5").url)
    cli.teach_times()
    enough = cli.run("remove-text", "photos/a photo.png", *RATE, "-o", "out")
    assert "1 image needs about 5 credits; the account has 17.5." in enough.stderr
    assert "17.5 / 12.5" in enough.stderr
    nothing = cli.run("remove-text", "photos/a photo.png", *RATE, "-o", "out")
    assert "needs about" not in nothing.stderr

    bounded = cli.run("remove-text", "photos", *RATE, "-o", "out", "--max-credits", "5")
    assert (
        "2 images need about 10 credits, of which this run may spend 5; the account has 12.5"
        in bounded.stderr
    )
    assert bounded.code == 3
    short = cli.run(
        "remove-text",
        "photos",
        "--model",
        "flux-kontext-max",
        *RATE,
        "--price",
        "flux-kontext-max=9",
        "-o",
        "o2",
    )
    assert "3 images need about 27 credits; the account has 7.5. It will stop" in short.stderr
    assert (short.code, short.stderr.count("Halted: The API answered 402")) == (3, 1)


def test_a_balance_that_cannot_be_asked_for_stops_nothing(
    make_cli: Any, quick: Any, photos: Path, tmp_path: Path
) -> None:
    """Where that one question fails, the run goes on without; a refused key ends it before it spends."""
    with _half_broken(quick.base_url) as url:
        ended = make_cli(url).run("remove-text", "photos/b.png", *RATE, "-o", "out")
    assert ended.code == 0, ended.stderr
    assert "Could not read the balance (ServerError)" in ended.stderr
    assert submits(quick) == 1

    refused = make_cli(quick.base_url, key="wrong").run("remove-text", "photos/c.png", *RATE, "-o", "o2")
    assert (refused.code, submits(quick)) == (3, 1)
    assert refused.stderr.count("KIE_API_KEY") == 1


def test_a_web_page_for_the_balance_halts_before_anything_is_submitted(
    make_cli: Any, quick: Any, tmp_path: Path
) -> None:
    """A captive portal answers in place of the API: exit 3, and the message names the address."""
    image = "https://pictures.example/portal.png"
    with _half_broken(quick.base_url, page=b"<html>Welcome to the hotel</html>") as url:
        ended = make_cli(url).run("remove-text", image, *RATE, "-o", "out")
    assert ended.code == 3, ended.stderr
    assert f"{url} answered the question for the balance with a web page" in ended.stderr
    assert "Nothing was submitted" in ended.stderr
    assert submits(quick) == 0


@contextmanager
def _half_broken(url: str, page: bytes = b"") -> Iterator[str]:
    """Pass everything on to ``url`` but questions for the balance: they fail, or a page answers them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Pass on."""
            self._pass_on(None)

        def do_POST(self) -> None:
            """Pass on."""
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def _pass_on(self, body: bytes | None) -> None:
            if self.path.endswith("/credit"):
                if page:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(page)))
                    self.end_headers()
                    self.wfile.write(page)
                else:
                    self.send_error(500)
                return
            wanted = {"authorization", "content-type", "user-agent", "host"}
            headers = {name: value for name, value in self.headers.items() if name.lower() in wanted}
            answer = httpx.request(self.command, url + self.path, content=body, headers=headers, timeout=60)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
