"""A list of sixty rows, valid ones and invalid ones of every kind, from reading to the last line."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import local_http
from commands import Cli

HOST = "http://pics.example.com"
RATE = ("--rate", "20/0.2")

GOOD = [
    *(f"{HOST}/{number}.jpg,k{number}," for number in range(20)),
    f'"{HOST}/w_200,h_300/a.jpg",,',
    f"{HOST}/a09c;00000115.jpg,,",
    f"{HOST}/a|b.jpg,,",
    "https://proxy.example.com/?url=http://pics.example.com/a.jpg,,",
    "https://web.archive.org/web/2020/http://pics.example.com/a.jpg,,",
    f'{HOST}/two-lines.jpg,,"two\nlines, and ""quotes"""',
    f"\u00a0{HOST}/invisible.jpg\u200b,,",
    f"{HOST}/surplus.jpg,,,,,,",
    f"{HOST}/inch.jpg,,6 inch",
    f"{HOST}/max.jpg,,,flux-kontext-max",
    f"{HOST}/a.jpg?x=1&amp;y=2,,",
    "http://localhost:8000/a.jpg,,",
    "whole.jpg,,",
    "copies/whole.png,,",
]
BAD = [
    f"{HOST}/w_300,h_300/a.jpg,",
    f"{HOST}/a,b,c,d,e.jpg",
    f'"{HOST}/x.jpg, {HOST}/y.jpg",,',
    f"{HOST}/x.jpg|{HOST}/y.jpg,,",
    f"{HOST}/x.jpg;{HOST}/y.jpg,,",
    f"{HOST}/with blank.jpg,,",
    f"{HOST}/no\u00a0break.jpg,,",
    ",key-without-image,",
    "nonsense,,",
    "pics.example.com/a.jpg,,",
    "//pics.example.com/a.jpg,,",
    "https:/pics.example.com/a.jpg,,",
    "ftp://pics.example.com/a.jpg,,",
    '"data:image/png;base64,AAAA",,',
    "http://,,",
    "missing.jpg,,",
    "copies,,",
    "half.jpg,,",
    "half.png,,",
    "text.jpg,,",
    "empty.webp,,",
    f"{HOST}/other.jpg,k1,",
    f"{HOST}/model.jpg,,,flux-kontext-huge",
    f'{HOST}/inch.jpg,,"6" inch"',
]
SKIPPED = ["", ",,,", "# a comment", f"{HOST}/0.jpg,k0,"]


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that rows name, whole ones and others."""
    whole, png = image("JPEG"), image("PNG")
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "whole.png").write_bytes(png)
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.webp").touch()
    return tmp_path


def test_sixty_mixed_rows_add_up(make_cli: Any, start_sandbox: Any, folder: Path) -> None:
    """Each good row is one submit and one result, no bad row is submitted, and all the counts agree."""
    cli = make_cli(start_sandbox("--speed", "60", "--images", "none").url)
    cli.teach_times()
    mixed = [row for pair in zip(GOOD, BAD, strict=False) for row in pair] + GOOD[len(BAD) :] + SKIPPED
    last = f'{HOST}/open.jpg,,"never closed'
    assert len(mixed) + 1 >= 60
    (folder / "list.csv").write_text("\n".join(["Image URL,key,title,model", *mixed, last]))

    ended = cli.run("remove-text", "--from", "list.csv", *RATE, "-o", "out")

    rows, ledger = cli.rows(), cli.ledger()
    assert ended.code == 1, ended.stderr
    found = Counter(row["status"] for row in rows)
    assert found == {"succeeded": len(GOOD), "failed": len(BAD) + 1}, ended.stderr
    table = dict(re.findall(r"^(succeeded|failed) +(\d+)$", ended.stderr, re.MULTILINE))
    assert table == {status: str(count) for status, count in found.items()}
    assert len(ended.stdout.splitlines()) == len(GOOD)
    refused = [row for row in rows if row["status"] == "failed"]
    assert {(row["charge"], row["attempts"], row["task_id"]) for row in refused} == {("no", 0, None)}
    assert all(row["key"].startswith("list.csv:") for row in refused)
    assert (ledger["accepted"], len(ledger["images"])) == (len(GOOD), len(GOOD))
    sent = {url for url in ledger["images"] if not url.startswith(cli.base_url)}
    assert sent == {row["image"] for row in rows if row["status"] == "succeeded" and "://" in row["image"]}
    assert f"{HOST}/w_200,h_300/a.jpg" in sent

    lines = [line for line in ended.stderr.splitlines() if line.startswith("list.csv line ")]
    assert sum("looks mistyped" not in line for line in lines) == 20
    assert (
        f"{len(refused) - 20} more could not be used: all {len(refused)} are in results.jsonl" in ended.stderr
    )
    assert "a.jpg?x=1&amp;y=2 looks mistyped" in ended.stderr

    again = cli.run("remove-text", "--from", "list.csv", *RATE, "-o", "out")
    assert (again.code, cli.ledger()["accepted"]) == (1, len(GOOD))
    assert Counter(row["status"] for row in cli.rows()) == found


def test_a_mistyped_argument_ends_the_command_before_anything_is_sent(
    quick_cli: Any, folder: Path, quick_url: str
) -> None:
    """The images before it are not submitted either."""
    before = local_http.get(f"{quick_url}/__sandbox/ledger").json()["submits"]
    for words in (("whole.jpg", "emptyd2"), ("whole.jpg", "example.com/a.jpg"), ("whole.jpg", "text.csv")):
        (folder / "text.csv").write_text(f"url\n{HOST}/never.jpg\n")
        ended = quick_cli.run("remove-text", *words, *RATE, "-o", "out")
        assert (ended.code, "Nothing was sent" in ended.stderr) == (2, True), ended.stderr
    assert "--from text.csv" in ended.stderr
    assert local_http.get(f"{quick_url}/__sandbox/ledger").json()["submits"] == before


def test_a_parquet_file_is_a_list_and_results_are_one(quick_cli: Cli, image_urls: list[str]) -> None:
    """Keys come from the file; results.parquet has the rows of results.jsonl."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"url": [*image_urls, "nonsense"], "key": ["a", "b", "c", "d"]})
    pq.write_table(table, quick_cli.folder / "list.parquet")
    ended = quick_cli.run("remove-text", "--from", "list.parquet", "--results", "parquet", "-o", "out", *RATE)
    assert ended.code == 1, ended.stderr
    assert "list.parquet line 4" in ended.stderr
    lines, rows = quick_cli.rows(), pq.read_table(quick_cli.folder / "out" / "results.parquet").to_pylist()
    for name in ("key", "status", "file", "task_id", "error"):
        assert [row[name] for row in rows] == [line[name] for line in lines]
    assert {row["key"]: row["status"] for row in rows if row["file"]} == dict.fromkeys("abc", "succeeded")
