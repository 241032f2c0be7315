"""Parquet files as lists, and results as one."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import click
import pytest

from flux_async import MissingExtra
from flux_async.cli.input_rows import InputRow, ListOptions
from flux_async.cli.inputs import gather_inputs
from flux_async.cli.parquet import write_results
from flux_async.cli.results import ErrorNote, ResultFile, ResultRow, Status

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
A, B = "https://example.com/a.jpg", "https://example.com/b.jpg"


def write(path: Path, columns: dict[str, list[Any]], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def read(name: str, notes: list[str] | None = None, **options: Any) -> list[InputRow]:
    note = (lambda _: None) if notes is None else notes.append
    return list(gather_inputs([], [name], options=ListOptions(**options), note=note))


def test_columns_have_the_names_of_other_lists(tmp_path: Path) -> None:
    """Images, keys and options are found, whatever else the file holds; a row names its number."""
    name = write(
        tmp_path / "list.parquet",
        {
            "Image URL": [A, B],
            "key": [1, None],
            "prompt": ["Say less", None],
            "model": ["", None],
            "n": [[1], [2]],
        },
    )
    first, second = read(name)
    assert (first.image, first.key, first.options) == (A, "1", {"prompt": "Say less"})
    assert (second.image, second.key, second.options, second.place) == (B, None, {}, f"{name} line 2")


def test_a_row_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    """No image, something else than text, several images in a cell."""
    name = write(tmp_path / "list.parquet", {"url": [None, "", A, f"{A},{B}"]})
    assert [row.refusal for row in read(name)] == [
        "no 'url'",
        "no 'url'",
        None,
        'it holds 2 addresses: --split "," makes one job of each',
    ]
    assert [row.image for row in read(name, split=",") if row.refusal is None] == [A, A, B]
    name = write(tmp_path / "other.parquet", {"image": [{"bytes": b"x", "path": None}]})
    assert [row.refusal for row in read(name)] == ["'image' is not a string"]


def test_columns_that_differ_only_in_case_are_one(tmp_path: Path) -> None:
    """Where their values differ, the row is refused."""
    name = write(tmp_path / "list.parquet", {"url": [A, A, None], "URL": [A, B, B]})
    one, two, three = read(name)
    assert (one.image, three.image) == (A, B)
    assert "2 different values under 'url'" in str(two.refusal)


def test_a_column_can_be_chosen(tmp_path: Path) -> None:
    """Else the likeliest is taken, which a note says; without one the file is refused."""
    notes: list[str] = []
    name = write(
        tmp_path / "list.parquet", {"picture": [A], "image_url": [B], "hero": ["https://example.com/c"]}
    )
    assert read(name, notes)[0].image == B
    assert "column image_url, not from picture" in notes[0]
    assert read(name, column="Hero")[0].image == "https://example.com/c"
    with pytest.raises(click.UsageError, match=r"no column of 'x'. Its columns: picture, image_url, hero"):
        read(name, column="x")
    with pytest.raises(click.UsageError, match="no column of images, such as url or image"):
        read(write(tmp_path / "none.parquet", {"n": [1]}))


def test_a_folder_is_a_list_of_all_its_files(tmp_path: Path) -> None:
    """In order of name, with those of folders below, without those of Spark and hidden ones."""
    for name, image in (
        ("b/part-0.parquet", A),
        ("c.PQ", B),
        ("_temporary/x.parquet", "x"),
        (".h.parquet", "x"),
    ):
        write(tmp_path / "set" / name, {"url": [image]})
    (tmp_path / "set" / "_SUCCESS").touch()
    assert [row.image for row in read(str(tmp_path / "set"))] == [A, B]
    (tmp_path / "none").mkdir()
    with pytest.raises(click.UsageError, match="holds no Parquet file"):
        read(str(tmp_path / "none"))


def test_files_are_relative_to_the_folder_of_the_list(tmp_path: Path) -> None:
    """As in other lists."""
    (tmp_path / "poster.png").write_bytes(b"x")
    (row,) = read(write(tmp_path / "list.parquet", {"path": ["poster.png"]}))
    assert (row.is_file, row.folder, row.refusal) == (True, str(tmp_path), None)


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """Also from one large row group: the first row does not need the rest."""
    name = write(
        tmp_path / "list.parquet", {"url": [f"{A}?{n}" for n in range(50_000)]}, row_group_size=50_000
    )
    rows = gather_inputs([], [name])
    assert next(rows).image == f"{A}?0"
    assert sum(1 for _ in rows) == 49_999


@pytest.mark.parametrize("content", [b"", b"PAR1 and no end"], ids=["empty", "cut"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Before anything is sent."""
    (tmp_path / "list.parquet").write_bytes(content)
    with pytest.raises(click.UsageError, match="cannot be read as Parquet"):
        read(str(tmp_path / "list.parquet"))


def test_a_parquet_file_needs_its_ending(tmp_path: Path) -> None:
    """Under another name it is refused, with what to do."""
    name = write(tmp_path / "list", {"url": [A]})
    with pytest.raises(
        click.UsageError, match=r"a Parquet file, not a list\. Give it as a file with the ending"
    ):
        read(name)


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both for lists and for results."""
    name = write(tmp_path / "list.parquet", {"url": [A]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"flux-async\[parquet\]"):
        read(name)


def test_results_are_written_as_they_are_in_the_lines(tmp_path: Path) -> None:
    """One row for each, with all keys; times are timestamps; a file that is there is replaced."""
    file, when = ResultFile(tmp_path), "2026-08-01T12:00:00.250Z"
    failed = ResultRow(
        image=A, key="a", status=Status.FAILED, error=ErrorNote(type="TaskFailed", code=501, message="no")
    )
    done = ResultRow(
        image=B,
        key="b",
        status=Status.SUCCEEDED,
        task_id="t",
        result_url=f"{B}?r",
        file="images/b.png",
        credits=5,
        attempts=1,
        submitted_at=when,
        finished_at=when,
        verdict="text_left",
        words_left=("SALE",),
        text_left=0.25,
    )
    file.rewrite([failed, done])
    for _ in range(2):
        assert write_results(file) == tmp_path / "results.parquet"
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert list(rows[0]) == [field.name for field in attrs.fields(ResultRow)]
    assert (rows[0]["status"], rows[0]["error"]) == (
        "failed",
        {"type": "TaskFailed", "code": 501, "message": "no"},
    )
    assert rows[1]["finished_at"] == datetime(2026, 8, 1, 12, 0, 0, 250_000, UTC)
    assert (rows[1]["credits"], rows[1]["words_left"], rows[1]["charge"]) == (5.0, ["SALE"], "no")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
