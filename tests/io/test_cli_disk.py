"""Full disks and killed runs: existing files are whole, missing ones are fetched, nothing is paid twice."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

RATE = ("--rate", "20/0.2")
IMAGES = [f"https://pictures.example/{number}.png" for number in range(40)]
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


@pytest.fixture
def quick(make_cli: Any, start_sandbox: Any) -> Any:
    """A command line against a quick sandbox of its own."""
    return make_cli(start_sandbox("--speed", "60", "--images", "none").url)


@pytest.fixture
def mount() -> Iterator[Callable[[Path, str], None]]:
    """Mount a small disk at a folder, or give the one there another size."""
    mounted: list[Path] = []

    def do(folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={size}" if folder not in mounted else f"remount,size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("no disk can be mounted here")
        if folder not in mounted:
            mounted.append(folder)

    yield do
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def once_each(cli: Any, images: list[str]) -> bool:
    """Whether every image was charged exactly once."""
    book = cli.ledger()["images"]
    return all(len(book[image]["tasks"]) == 1 for image in images)


@pytest.mark.parametrize("where", ["the images", "everything"])
def test_a_full_disk_halts_cleanly_and_the_same_command_finishes(
    quick: Any, mount: Callable[[Path, str], None], where: str
) -> None:
    """Exit code 3 and advice; with space again, the same command finishes, each image paid once."""
    folder: Path = quick.folder / "out"
    if where == "the images":
        mount(folder / "images", "40k")
    else:
        mount(folder, "1m")
    quick.teach_times()
    full = quick.run("remove-text", *IMAGES, *RATE, "-o", "out")
    assert full.code == 3, full.stderr
    assert "Traceback" not in full.stderr
    assert "space" in full.stderr or "full" in full.stderr
    assert not list((folder / "images").glob(".*")), "nothing half is left"
    assert quick.ledger()["submits"] > 0, "it was the disk that ended it"
    if where == "the images":
        mount(folder / "images", "4m")
    else:
        mount(folder, "16m")
    done = quick.run("remove-text", *IMAGES, *RATE, "-o", "out")
    assert done.code == 0, done.stderr
    assert {row["status"] for row in quick.rows()} == {"succeeded"}
    assert once_each(quick, IMAGES)


def test_a_disk_that_is_full_before_the_run_halts_it_and_is_no_damage(
    quick: Any, mount: Callable[[Path, str], None]
) -> None:
    """Nothing is submitted; the folder can be read, and the same command works when there is room."""
    folder: Path = quick.folder / "out"
    mount(folder, "4m")
    quick.teach_times()
    first = quick.run("remove-text", IMAGES[0], *RATE, "-o", "out")
    assert first.code == 0, first.stderr
    submits = quick.ledger()["submits"]
    with (folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(1024)):
            pass
    files = sorted(path.name for path in folder.iterdir())
    for command in (("remove-text", IMAGES[1], *RATE, "-o", "out"), ("retry", "out", "--failed")):
        full = quick.run(*command)
        assert full.code == 3, full.stderr
        assert "full. Its records are unchanged. Make room on the disk" in full.stderr
        assert "Traceback" not in full.stderr
    for command in (("recover", "out", "--yes"), ("status", "out")):
        read = quick.run(*command)
        assert read.code == 0, read.stderr
    assert sorted(path.name for path in folder.iterdir()) == files
    (folder / "ballast").unlink()
    assert quick.ledger()["submits"] == submits
    done = quick.run("remove-text", *IMAGES[:2], *RATE, "-o", "out")
    assert done.code == 0, done.stderr
    assert once_each(quick, IMAGES[:2])


def test_a_disk_that_is_full_during_preserve_halts_cleanly(
    make_cli: Any, sandbox_url: str, image_host: Any, mount: Callable[[Path, str], None]
) -> None:
    """The vendor's image fits, the composed one does not: exit code 3, and it is composed when there is room.

    The original has noise, which makes it large as PNG.
    """
    noise = Image.effect_noise((640, 400), 24).convert("RGB")
    ImageDraw.Draw(noise).text((50, 140), "GRAND OPENING", "black", ImageFont.load_default(60))
    content = io.BytesIO()
    noise.save(content, "PNG")
    image_host.files["/noise.png"] = ("image/png", content.getvalue())
    cli, command = (
        make_cli(sandbox_url),
        ("remove-text", f"{image_host.url}/noise.png", "--preserve", "-o", "out"),
    )
    images: Path = cli.folder / "out" / "images"
    mount(images, f"{content.tell() // 1024}k")
    full = cli.run(*command)
    assert full.code == 3, full.stderr
    assert "Traceback" not in full.stderr
    assert "room" in full.stderr
    kept = [path for path in images.rglob("*") if path.is_file()]
    assert [path.suffix for path in kept] == [".jpg"], "the vendor's image, and nothing half"
    mount(images, "8m")
    done = cli.run(*command)
    assert done.code == 0, done.stderr
    (row,) = cli.rows()
    assert (row["not_preserved"], row["not_checked"]) == (None, None)
    with Image.open(cli.folder / "out" / row["file"]) as composed:
        composed.load()
        assert composed.size == noise.size
    assert once_each(cli, [f"{image_host.url}/noise.png"])


def test_killed_among_downloads_only_the_missing_are_fetched(make_cli: Any, start_sandbox: Any) -> None:
    """SIGKILL while images arrive: files with a final name are whole, and the next run keeps them.

    The run that is killed waits for more of its list: it cannot end before.
    """
    cli = make_cli(start_sandbox("--speed", "120", "--images", "none").url)
    images = [f"https://pictures.example/many/{number}.jpg" for number in range(200)]
    (cli.folder / "list.txt").write_text("\n".join(images))
    cli.teach_times()
    options = ("--rate", "20/0.1", "--in-flight", "200", "-o", "out")
    folder: Path = cli.folder / "out" / "images"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with cli.start("remove-text", "--from", "-", *options, stdin=subprocess.PIPE, **quiet) as process:
        process.stdin.write("".join(f"{image}\n" for image in images[:120]))
        process.stdin.flush()
        cli.wait_for(lambda: len(list(folder.glob("[!.]*"))) >= 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    here = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("[!.]*")}
    assert 60 <= len(here) < 200
    for name in here:
        content = (folder / name).read_bytes()
        assert content.startswith(JPEG_START)
        assert content.endswith(JPEG_END)
    again = cli.run("remove-text", "--from", "list.txt", *options)
    in_doubt = [row for row in cli.rows() if row["status"] == "in_doubt"]
    assert again.code == (1 if in_doubt else 0), again.stderr
    assert len(in_doubt) <= 6
    left = {name: (folder / name).stat() for name in here}
    unchanged = sum((stat.st_ino, stat.st_mtime_ns) == here[name] for name, stat in left.items())
    assert unchanged >= len(here) - 8, "at most those whose names were not on disk yet are fetched again"
    assert all((cli.folder / "out" / row["file"]).is_file() for row in cli.rows() if row["file"])
    assert all(len(line["tasks"]) <= 1 for line in cli.ledger()["images"].values())


def test_fifty_files_are_uploaded_once_and_a_second_run_submits_nothing(quick: Any) -> None:
    """A folder of photos: each has its result and its digest; the same again costs nothing."""
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
    )
    photos = quick.folder / "photos"
    photos.mkdir()
    for number in range(50):
        (photos / f"photo-{number:02}.png").write_bytes(png + os.urandom(8))
    quick.teach_times()
    first = quick.run("remove-text", "./photos", *RATE, "-o", "out", "--keep-originals")
    assert first.code == 0, first.stderr
    rows = quick.rows()
    assert len(rows) == 50
    assert {(row["status"], len(row["sha256"])) for row in rows} == {("succeeded", 64)}
    assert len(list((quick.folder / "out" / "originals").iterdir())) == 50
    before = quick.ledger()["accepted"]
    again = quick.run("remove-text", "./photos", *RATE, "-o", "out")
    assert (again.code, quick.ledger()["accepted"]) == (0, before)
