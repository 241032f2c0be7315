"""Runs of ``remove-text --preserve --verify`` that are killed, and the audit of their files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.processes import child, first_line, read_ledger, serving

SIZE = (480, 320)
SPEED = 20
WAIT_S = 3600.0


def draw_images(folder: Path, count: int, seed: int) -> list[str]:
    """Draw images with a number each, on a gradient of colours of their own; return their names."""
    rng = random.Random(seed)
    folder.mkdir()
    font, names = ImageFont.load_default(56), []
    for number in range(count):
        ends = [tuple(rng.randrange(20, 140) for _ in range(3)) for _ in range(2)]
        image = Image.composite(
            *(Image.new("RGB", SIZE, end) for end in ends), Image.linear_gradient("L").resize(SIZE)
        )
        place = rng.randrange(20, 120), rng.randrange(40, 220)
        ImageDraw.Draw(image).text(place, f"SALE {number:04}", "white", font)
        names.append(f"poster-{number:04}.png")
        image.save(folder / names[-1])
    return names


@contextlib.contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine and yield its address."""
    with child(
        "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder, quiet=True
    ) as server:
        said = first_line(server).split()
        yield f"http://127.0.0.1:{said[said.index('port') + 1]}"


def torture_checks(count: int, kills: int, seed: int, folder: Path) -> dict[str, float]:
    """Kill the command ``kills`` times at random times, let it finish, and return the audit."""
    rng, begun = random.Random(seed), time.monotonic()
    names = draw_images(folder / "photos", count, seed)
    journal = folder / "out" / "journal.sqlite3"
    limits = ("--speed", SPEED, "--credits", 20 * count)
    with serving("-m", "flux_async.sandbox", "--port", 0, *limits) as api, hosted(folder / "photos") as host:
        (folder / "list.txt").write_text("".join(f"{host}/{name}\n" for name in names))
        rounds: list[float] = []
        for place in [*sorted(rng.uniform(0.05, 0.9) for _ in range(kills)), None]:
            started = time.monotonic()
            with _command(folder, api) as process:
                if place is None:
                    code = process.wait(WAIT_S)
                else:
                    _wait_for_verdicts(journal, round(place * count), process)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(rng.uniform(0, 2))  # in the middle of whatever it does then
                    process.kill()
                    process.wait()
            rounds.append(round(time.monotonic() - started, 1))
        if code not in {0, 1}:
            raise SystemExit(
                f"torture: the last run ended with exit code {code}: {(folder / 'log').read_text()}"
            )
        ledger = read_ledger(api)
    print("seconds of each run:", *rounds)
    seconds = round(time.monotonic() - begun, 1)
    return {"images": count, "kills": kills, "seconds": seconds} | audit(folder, ledger, count)


@contextlib.contextmanager
def _command(folder: Path, api: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run remove-text on the list; it does not outlive the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
    environment |= {"KIE_API_KEY": "test", "KIE_BASE_URL": api}
    options = ("--preserve", "--verify", "--rate", f"20/{10 / SPEED}", "--yes", "--no-report")
    command = [sys.executable, "-m", "flux_async", "remove-text", "--from", "list.txt", "-o", "out", *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_for_verdicts(journal: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + WAIT_S
    while len(_rows(journal, "SELECT job FROM event WHERE type = 'Verified'")) < count:
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit("torture: the command ended, or made no progress")
        time.sleep(0.05)


def _rows(journal: Path, sql: str) -> list[Any]:
    """Read the journal beside the process that runs it; nothing before it is there."""
    if not journal.exists():
        return []
    address = f"{journal.as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=60)) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:  # its tables are not there yet
            return []


def audit(folder: Path, ledger: dict[str, Any], count: int) -> dict[str, float]:
    """Hold journal and files against what the vendor charged."""
    journal, images = folder / "out" / "journal.sqlite3", folder / "out" / "images"
    jobs = _rows(journal, "SELECT request, state, file, sha256, checked FROM job")
    found = Counter[str]()
    for request, state, file, sha256, checked in jobs:
        found[state] += 1
        if state == "done":
            name = json.loads(request)["inputImage"].rpartition("/")[2]
            check = json.loads(checked or "{}")
            found += _audit_file(folder / "photos" / name, images, file, sha256, check)
    charged = [len(line["tasks"]) for line in ledger["images"].values()]
    twice = (
        "SELECT 1 FROM event WHERE type IN ('Composed', 'Verified') GROUP BY type, job HAVING count(*) > 1"
    )
    return {
        "done": found["done"],
        "in doubt": found["in_doubt"],
        "missing": count - found["done"] - found["in_doubt"],
        "not whole": found["not whole"],
        "other pixels changed": found["other pixels changed"],
        "composed": found["composed"],
        "not composed": found["not composed"],
        "verified": found["verified"],
        "verified as clean": found["clean"],
        "not checked": found["not checked"],
        "checked twice": len(_rows(journal, twice)),
        "charged twice": sum(tasks > 1 for tasks in charged),
        "charged": sum(charged),
    }


def _audit_file(original: Path, images: Path, file: str, sha256: str, check: dict[str, Any]) -> Counter[str]:
    """Return what is found about one image: whole, and unchanged beside what was replaced."""
    found = Counter[str]()
    content = (images / file).read_bytes() if (images / file).is_file() else b""
    kept = check.get("vendor_file")
    is_whole = (
        hashlib.sha256(content).hexdigest() == sha256 and kept is not None and (images / kept).is_file()
    )
    found["not whole"] += not is_whole
    found["composed" if check.get("is_preserved") else "not composed"] += 1
    found["verified"] += check.get("verdict") is not None
    found["clean"] += (check.get("verdict") or {}).get("kind") == "clean"
    found["not checked"] += check.get("problem") is not None
    if is_whole and check.get("is_preserved"):
        with Image.open(original) as before, Image.open(io.BytesIO(content)) as after:
            same_size = before.size == after.size
            changed = (np.asarray(before) != np.asarray(after)).any(2).mean() if same_size else 1.0
        found["other pixels changed"] += changed > check["replaced"] or not changed
    return found
