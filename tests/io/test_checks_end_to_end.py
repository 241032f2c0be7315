"""remove-text with its checks in worker processes, against a sandbox over sockets."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from PIL import Image, ImageChops

FILES = ("file", "vendor_file")
HAS_PROC = Path("/proc/self/stat").exists()


def picture_without_text() -> bytes:
    """Return a PNG of soft colours."""
    steps = Image.linear_gradient("L").resize((320, 240))
    file = io.BytesIO()
    Image.merge("RGB", (steps, steps.rotate(90), Image.new("L", steps.size, 120))).save(file, "PNG")
    return file.getvalue()


def test_images_without_text_are_not_submitted(cli: Any, image_host: Any) -> None:
    """A file and an address are copied byte by byte; the poster is paid for."""
    plain = picture_without_text()
    photo = cli.folder / "photo.png"
    photo.write_bytes(plain)
    image_host.files["/plain.png"] = ("image/png", plain)
    images = [str(photo), f"{image_host.url}/plain.png?it", *image_host.more("textless", 1)]
    done = cli.run("remove-text", *images, "--skip-textless", "-o", "out")
    assert done.code == 0, done.stderr
    rows = cli.rows()
    assert [row["charge"] for row in rows] == ["no", "no", "yes"]
    assert [row["saved_credits"] for row in rows] == [5, 5, None]
    assert [(cli.folder / "out" / row["file"]).read_bytes() for row in rows[:2]] == [plain, plain]
    assert len(done.stdout.splitlines()) == 3
    assert "saved on images without text" in done.stderr


def workers_of(parent: int) -> Iterator[int]:
    """Yield the pids of the worker processes of a process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, stat = (folder / "cmdline").read_bytes(), (folder / "stat").read_text("ascii")
        except OSError:  # it has ended
            continue
        _, _, after_name = stat.rpartition(")")
        if b"flux_async.verification.worker" in command and int(after_name.split()[1]) == parent:
            yield int(folder.name)


def kill_worker(parent: subprocess.Popen[str]) -> None:
    """Kill the worker of a command in the middle of its first call, which starts it and loads models."""
    until = time.monotonic() + 240
    while not (workers := list(workers_of(parent.pid))):
        assert parent.poll() is None, "the command ended before it started a worker"
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(workers[0], signal.SIGKILL)


def test_an_image_is_composed_and_verified_also_where_a_worker_process_is_killed(
    make_cli: Any, sandbox_url: str, image_host: Any
) -> None:
    """It has the original's size, and its pixels beside the text; the vendor's image is kept; paid once."""
    cli, image = make_cli(sandbox_url), image_host.more("killed-worker", 1)[0]
    with cli.start("remove-text", image, "--preserve", "-o", "out") as process:
        if HAS_PROC:
            kill_worker(process)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert cli.tasks_of(image) == 1
    verified = attrs.evolve(cli, key=None).run("verify", "out")
    assert (verified.code, verified.stdout) == (0, stdout), verified.stderr
    (row,) = cli.rows()
    assert (row["not_preserved"], row["not_checked"], row["verdict"]) == (None, None, "clean")
    folder = cli.folder / "out"
    contents = image_host.files["/poster.png"][1], *((folder / row[name]).read_bytes() for name in FILES)
    original, composed, vendor = (Image.open(io.BytesIO(content)) for content in contents)
    assert (composed.size, composed.mode) == (original.size, original.mode)
    changed = ImageChops.difference(original, composed).getbbox()
    assert vendor.size
    assert changed is not None, "its text is gone"
    left, upper, right, lower = changed
    assert (right - left) * (lower - upper) < 0.5 * original.width * original.height
    assert not [path for path in folder.rglob(".*") if path.suffix == ".part"]
