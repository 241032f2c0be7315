"""Inputs row by row: three formats, and invalid rows."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from flux_async import LocalImage
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import gather_inputs, image_of


def read(text: str, *, name: str = "-") -> list[InputRow]:
    return list(gather_inputs([], [name], io.StringIO(text, newline="")))


def read_file(folder: Path, name: str, content: bytes) -> list[InputRow]:
    (folder / name).write_bytes(content)
    return list(gather_inputs([], [str(folder / name)]))


def test_images_come_from_arguments_and_lists_in_order() -> None:
    """A hyphen stands for the lines of standard input; blank lines and comments are skipped, but counted."""
    stdin = io.StringIO("http://h/2\n\n# no\n  http://h/3  \n")
    given = list(gather_inputs(["http://h/1", "-", "http://h/4"], [], stdin))
    assert [row.image for row in given] == [f"http://h/{n}" for n in (1, 2, 3, 4)]
    assert [row.place for row in given] == ["argument 1", "stdin line 1", "stdin line 4", "argument 3"]
    assert [row.name for row in given][1::2] == ["stdin:1", "argument:3"]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_no_image_at_all_is_a_usage_error(arguments: list[str]) -> None:
    """An empty run is an error."""
    with pytest.raises(click.UsageError, match="at least one image"):
        gather_inputs(arguments, [], io.StringIO(""))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_is_known_by_its_header(separator: str) -> None:
    """A header with url or image makes it CSV, whatever separates the cells; other columns do not matter."""
    rows = ["ID,Image,key,prompt,model,output format", "7,http://h/1,a,Go,flux-kontext-max,png", ",,,,,", "8"]
    text = "\r\n".join(rows).replace(",", separator)
    first, second = read(text)
    assert (first.image, first.key, first.line) == ("http://h/1", "a", 2)
    assert dict(first.options) == {"prompt": "Go", "model": "flux-kontext-max", "output_format": "png"}
    assert (second.line, second.refusal) == (4, "no 'image'")


def test_a_cell_may_hold_several_lines(tmp_path: Path) -> None:
    """A quoted line break belongs to its cell, and the line named is the row's first; a BOM is no text."""
    content = b'\xef\xbb\xbfurl,prompt\nhttp://h/1,"two\nlines"\nhttp://h/2,\n'
    first, second = read_file(tmp_path, "a.csv", content)
    assert (first.options["prompt"], first.line, second.line) == ("two\nlines", 2, 4)
    assert second.options == {}


def test_a_csv_without_an_address_is_a_usage_error(tmp_path: Path) -> None:
    """Where no column can hold the address nothing can be meant."""
    with pytest.raises(
        click.UsageError, match=r"a.csv line 1 names no column .* name, key\. .*--column NAME"
    ):
        read_file(tmp_path, "a.csv", b"name,key\nx,y\n")


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        ({"url": "http://h/1", "key": 7, "x": [1]}, None),
        ("http://h/1", None),
        ({"key": "a"}, "no 'url' and no 'image'"),
        ({"url": ["http://h/1"]}, "'url' is not a string; give each image a row of its own"),
        ({"images": ["http://h/1"]}, "'images' is not a string; give each image a row of its own"),
        ({"image": {"src": "http://h/1"}}, "'image' is not a string"),
        ({"url": "http://h/1", "prompt": {}}, "'prompt' is not a string"),
        ({"url": "http://h/1", "key": True}, "'key' is not a string"),
        ([["http://h/1"]], "neither a JSON string nor a JSON object"),
        (None, "neither a JSON string nor a JSON object"),
    ],
)
def test_json_rows_are_addresses_or_objects(value: Any, refusal: str | None) -> None:
    """A JSON row is an address or an object; anything else is refused alone, with its line."""
    _, given = read(f'"http://h/0"\n{json.dumps(value)}\n')
    assert (given.line, given.refusal) == (2, refusal)


@pytest.mark.parametrize("line", ["{", "\x00", "[" * 9999, '{"url": "http://h"'])
def test_what_is_no_json_is_refused_alone(line: str, tmp_path: Path) -> None:
    """Damaged lines do not end the reading."""
    rows = read_file(tmp_path, "a.jsonl", f'{line}\n"http://h/1"\n'.encode())
    assert [row.refusal is None for row in rows] == [False, True]


def test_bytes_that_are_no_text_are_passed_on_to_the_check(tmp_path: Path) -> None:
    """A line that is not UTF-8 does not end the reading."""
    rows = read_file(tmp_path, "a.txt", b"http://h/\xff\nhttp://h/1\n")
    assert rows[1].image == "http://h/1"


def test_a_row_names_a_file_beside_its_list(tmp_path: Path) -> None:
    """A path is relative to the list's own folder; a missing file or a folder is refused alone."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.webp").touch()
    lines = ["sub/a.webp", "sub/b.webp", "sub", "http://h/1", str(tmp_path / "sub" / "a.webp"), "nonsense"]
    rows = read_file(tmp_path, "a.txt", "\n".join(lines).encode())
    assert [row.is_file for row in rows] == [True, True, True, False, True, False]
    assert [row.folder for row in rows if row.is_file] == [str(tmp_path)] * 4
    faults = [row.refusal or "" for row in rows]
    assert [bool(fault) for fault in faults] == [False, True, True, False, False, False]
    assert "there is no such file" in faults[1]
    assert "is a folder" in faults[2]


def test_arguments_may_be_files_folders_and_patterns(tmp_path: Path) -> None:
    """A folder gives its own images in order, without hidden ones; a pattern gives its matches."""
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "sub/c.webp", "sub/.d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()

    def names(*arguments: str) -> list[str]:
        return [str(Path(row.image).relative_to(tmp_path)) for row in gather_inputs(arguments, [])]

    assert names(str(tmp_path)) == ["a.png", "b.JPG"]
    assert names(str(tmp_path / "**" / "*.webp")) == ["sub/c.webp"]
    assert names(str(tmp_path / "sub" / "c.webp"), str(tmp_path / "*.png")) == ["sub/c.webp", "a.png"]
    rows = list(gather_inputs([str(tmp_path)], []))
    assert [row.place for row in rows] == [row.name for row in rows] == [row.image for row in rows]


def test_a_folder_does_not_fail_for_one_entry(tmp_path: Path) -> None:
    """Links that lead nowhere, or to themselves, and pipes are passed on, each to fail alone."""
    (tmp_path / "a.png").touch()
    (tmp_path / "lost.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    names = ["a.png", "loop.png", "lost.png", "pipe.png"]
    for argument in (str(tmp_path), str(tmp_path / "*.png"), str(tmp_path / "**" / "*.png")):
        assert [Path(row.image).name for row in gather_inputs([argument], [])] == names


def test_a_pattern_goes_through_links_and_into_each_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links that lead back, which have two to the fortieth ways through them, are not gone round."""
    for name in ("p/a.png", "p/one/b.png", "p/two/.c.png", "p/.hidden/d.png", "elsewhere/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "p" / "one" / "back").symlink_to("..")
    (tmp_path / "p" / "two" / "back").symlink_to("../..")
    (tmp_path / "p" / "link").symlink_to("../elsewhere")
    monkeypatch.chdir(tmp_path / "p")
    wanted = ["a.png", "link/e.png", "one/b.png"]
    for pattern in ("**/*.png", "**", "**/**/*.png", str(tmp_path / "p") + "/**/*.png"):
        found = [row.image.removeprefix(f"{tmp_path}/p/") for row in gather_inputs([pattern], [])]
        assert [name for name in found if "back" not in name] == wanted, pattern
    assert [row.image for row in gather_inputs(["on?/**/b*"], [])] == ["one/b.png"]
    with pytest.raises(click.UsageError, match="matches no file"):
        gather_inputs(["nowhere/**/*.png"], [])


@pytest.mark.parametrize("name", ["scan:1.jpg", "http:x.png", "a[1].png", "--json.png"])
def test_a_file_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also what would be the beginning of an address, an option or a pattern."""
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    (row,) = gather_inputs([name], [])
    assert (row.image, row.is_file, image_of(name)) == (name, True, LocalImage(path=name))
    (listed,) = read_file(tmp_path, "list.txt", name.encode())
    assert (listed.is_file, listed.refusal) == (True, None)


def test_a_refused_path_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, not allowed, a folder: each has its message, and no name can move the cursor."""
    (tmp_path / "loop.png").symlink_to("loop.png")
    for path, why in (
        ("none.png", "no such file"),
        ("loop.png", "levels of symbolic links"),
        ("\x1b[31mred.png", r"\\x1b\[31mred.png"),
        ("n" * 300 + ".png", "name too long"),
    ):
        with pytest.raises(click.UsageError, match=f"(?i){why}"):
            gather_inputs([str(tmp_path / path)], [])
    with pytest.raises(click.UsageError, match="it is a folder"):
        image_of(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(click.UsageError, match="not a regular file"):
        image_of(str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    "bad", ["{}/none.png", "{}/*.gif", "./none", "none.jpeg", "{}/empty", "nonsense", "a\0b"]
)
def test_a_missing_path_is_a_usage_error(tmp_path: Path, bad: str) -> None:
    """Before anything is sent; also a mistyped argument."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(click.UsageError, match=r"[Nn]othing was sent"):
        gather_inputs(["http://h/1", bad.format(tmp_path)], [])


@pytest.mark.parametrize("odd", ["ftp://h/a.png", "file:///a.png", "data:image/png,A"])
def test_what_may_be_an_address_is_passed_on(odd: str) -> None:
    """It fails as a row of its own, not as a mistake in the call."""
    (row,) = gather_inputs([odd], [])
    assert (row.image, row.is_file) == (odd, False)


def test_one_image_is_an_address_or_a_file(tmp_path: Path) -> None:
    """For commands about one image."""
    photo = tmp_path / "a.png"
    photo.touch()
    assert image_of("https://h/1") == "https://h/1"
    assert image_of(str(photo)) == LocalImage(path=photo)
    for bad in (str(tmp_path), "nonsense", "a\0b"):
        with pytest.raises(click.UsageError):
            image_of(bad)


def test_a_list_is_read_as_it_is_asked_for() -> None:
    """Rows are made one at a time, not all at once."""
    rows = gather_inputs([], ["-"], io.StringIO("http://h/1\n" * 100_000))
    assert isinstance(rows, Iterator)
    assert next(rows).line == 1


def test_a_list_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    """The name of the list is in the message."""
    with pytest.raises(click.UsageError, match="nowhere"):
        gather_inputs([], [str(tmp_path / "nowhere.txt")])
