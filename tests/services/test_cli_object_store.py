"""The command line with results in an object store: a real S3 server, and the sandbox in a child process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Cli, running_sandbox
from servers import Bucket

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f0005000101a5f0dd8c0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def sandbox_url() -> Iterator[str]:
    """A sandbox that makes no images: every result is one pixel."""
    with running_sandbox("--speed", "20", "--credits", "1000000", "--images", "none") as sandbox:
        yield sandbox.url


@pytest.fixture
def cli(tmp_path: Path, sandbox_url: str, s3: Bucket) -> Cli:
    """The command line with the variables of the store."""
    return Cli(tmp_path, sandbox_url, more=s3.environment)


@pytest.fixture
def images(sandbox_url: str, request: pytest.FixtureRequest) -> list[str]:
    """Addresses that the sandbox serves, and no other test uses."""
    return [f"{sandbox_url}/samples/beach-club.png?{request.node.name}={number}" for number in range(2)]


def folder_of(s3: Bucket, prefix: str) -> str:
    return f"flux-out-s3-{s3.name}-{prefix}"


def test_results_go_to_the_store_and_the_rest_to_a_folder(cli: Cli, s3: Bucket, images: list[str]) -> None:
    """Stdout and results.jsonl hold the addresses; the same command, and retry, have nothing left to do."""
    target, folder = f"{s3.url}/clean", folder_of(s3, "clean")
    ended = cli.run("remove-text", *images, "-o", f"{target}/")
    assert ended.code == 0, ended.stderr
    files = ended.stdout.split()
    assert sorted(files) == sorted(f"{s3.url}/{name}" for name in s3.names())
    assert {row["file"] for row in cli.rows(folder)} == set(files)
    assert not (cli.folder / folder / "images").exists()
    assert cli.status(folder)["counts"]["done"] == len(images)
    for again in (("remove-text", *images, "-o", target), ("retry", folder)):
        assert cli.run(*again).code == 0
    assert cli.tasks_of_each(images) == [1, 1]
    assert cli.run("report", folder).code == 0
    page = (cli.folder / folder / "report.html").read_text()
    assert all(f'"stored_as":"{file}"' in page for file in files)


def test_a_store_that_is_down_costs_nothing(cli: Cli, s3: Bucket, images: list[str]) -> None:
    """The command ends before anything is sent; with the store back it is one like any other."""
    s3.stop()
    ended = cli.run("remove-text", *images, "-o", s3.url, "--journal-dir", "run")
    assert ended.code == 2
    assert "could not be written: HTTP error" in ended.stderr
    assert "Nothing was sent" in ended.stderr
    assert cli.tasks_of_each(images) == [0, 0]
    s3.start()
    assert cli.run("remove-text", *images, "-o", s3.url, "--journal-dir", "run").code == 0


def test_retry_finishes_in_the_store_what_a_run_left(cli: Cli, s3: Bucket, images: list[str]) -> None:
    """``retry`` takes the folder, and knows the destination from it."""
    assert cli.run("remove-text", images[0], "-o", s3.url, "--journal-dir", "run").code == 0
    assert (cli.folder / "run" / "destination.txt").read_text() == f"{s3.url}\n"
    ended = cli.run("remove-text", *images, "-o", "run")
    assert ended.code == 0, ended.stderr
    assert len(s3.names()) == len(images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--verify",), "need the results in a folder"),
        (("--preserve",), "need the results in a folder"),
        (("--no-download",), "Leave --no-download out"),
    ],
    ids=["verify", "preserve", "no-download"],
)
def test_what_a_store_cannot_serve_is_refused(
    cli: Cli, s3: Bucket, images: list[str], options: tuple[str, ...], words: str
) -> None:
    """Before anything is sent."""
    ended = cli.run("remove-text", *images, "-o", s3.url, "--journal-dir", "run", *options)
    assert ended.code == 2
    assert words in " ".join(ended.stderr.split())
    assert cli.tasks_of_each(images) == [0, 0]


def test_checks_of_results_in_a_store_are_refused(cli: Cli, s3: Bucket, images: list[str]) -> None:
    """``verify`` of the folder says where they are."""
    assert cli.run("remove-text", images[0], "-o", s3.url, "--journal-dir", "run").code == 0
    ended = cli.run("verify", "run")
    assert ended.code == 2
    assert f"these are in {s3.url}" in " ".join(ended.stderr.split())


def test_a_folder_keeps_its_destination(cli: Cli, s3: Bucket, images: list[str]) -> None:
    """Neither another address nor results in the folder itself are mixed with it."""
    assert cli.run("remove-text", images[0], "-o", s3.url, "--journal-dir", "run").code == 0
    other = cli.run("remove-text", images[1], "-o", f"{s3.url}/other", "--journal-dir", "run")
    assert (other.code, "copy the results to" in other.stderr) == (2, True)
    assert cli.run("remove-text", images[1], "-o", "local").code == 0
    mixed = cli.run("remove-text", images[1], "-o", s3.url, "--journal-dir", "local")
    assert (mixed.code, "local/images" in mixed.stderr) == (2, True)


def test_inputs_may_be_objects(cli: Cli, s3: Bucket) -> None:
    """In arguments and lists; the dry run knows them, and a missing one costs nothing."""
    s3.put("in/one.png", PIXEL)
    (cli.folder / "list.txt").write_text(f"{s3.url}/in/missing.png\n")
    arguments = ("remove-text", f"{s3.url}/in/one.png", "--from", "list.txt", "-o", "out")
    assert cli.run(*arguments, "--dry-run").code == 0
    ended = cli.run(*arguments)
    assert ended.code == 1
    done, missing = sorted(cli.rows(), key=lambda row: row["status"], reverse=True)
    assert (done["image"], done["status"]) == (f"{s3.url}/in/one.png", "succeeded")
    assert (missing["charge"], "does not exist" in json.dumps(missing["error"])) == ("no", True)


def test_workers_save_in_the_store(cli: Cli, s3: Bucket, images: list[str], fresh_dsn: str) -> None:
    """Inputs are addresses, objects, and files that were copied; a store that is down is found first."""
    pytest.importorskip("dbos", reason="the extra engine is not installed")
    s3.put("in/one.png", PIXEL)
    (cli.folder / "poster.png").write_bytes(PIXEL + b"poster")
    (cli.folder / "list.txt").write_text("\n".join([images[0], f"{s3.url}/in/one.png", "poster.png"]))
    enqueue = ("enqueue", "list.txt", "--batch", "posters", "--dsn", fresh_dsn, "--staging")
    refused = cli.run(*enqueue, "memory://")
    assert (refused.code, "is no place for files" in refused.stderr) == (2, True)
    assert cli.run(*enqueue, f"{s3.url}/in").code == cli.run(*enqueue, f"{s3.url}/in").code == 0
    assert len(s3.names("in/")) == 2
    (cli.folder / "photos").mkdir()
    (cli.folder / "photos" / "photo.png").write_bytes(PIXEL + b"photo")
    photos = cli.run("enqueue", "photos", *enqueue[2:], f"{s3.url}/in")
    assert (photos.code, "4 pending" in photos.stderr) == (0, True)
    worker = ("worker", "--dsn", fresh_dsn, "-o", f"{s3.url}/clean", "--rate", "1000/10", "--until-idle")
    s3.stop()
    stopped = cli.run(*worker)
    assert (stopped.code, "Nothing was sent" in stopped.stderr) == (2, True)
    s3.start()
    ended = cli.run_apart(*worker)
    assert ended.code == 0, ended.stderr
    rows = cli.run("batch", "results", "posters", "--dsn", fresh_dsn, "--json").stdout.splitlines()
    assert [Path(json.loads(row)["image"]).name for row in rows[2:]] == ["poster.png", "photo.png"]
    files = sorted(json.loads(row)["file"] for row in rows)
    assert files == sorted(f"{s3.url}/{name}" for name in s3.names("clean/"))
    assert len(files) == 4
    assert cli.tasks_of(images[0]) == 1
