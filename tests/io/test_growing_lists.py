"""Lists that are still being written while they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_async.cli.inputs import gather_inputs
from flux_async.cli.list_files import InputStopped

WAIT_S = 60


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Make a named pipe that is open at both ends, so that nothing waits for the other side."""
    path = tmp_path / "list"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield str(path), end
    os.close(end)


def test_a_row_is_read_when_it_comes_and_not_when_the_list_ends(pipe: tuple[str, int]) -> None:
    """What is there is returned; before more is waited for, the reader is notified."""
    path, end = pipe
    os.write(end, b"http://h/1\nhttp://h/2\nhttp://h/")
    rows = gather_inputs([], [path])
    rows.live.on_wait = lambda: os.write(end, b"3\n") and None
    assert [next(rows).image for _ in range(3)] == ["http://h/1", "http://h/2", "http://h/3"]


def test_reading_that_waits_can_be_ended(pipe: tuple[str, int]) -> None:
    """The thread that reads ends at once, without a row cut short by the end."""
    path, end = pipe
    os.write(end, b"http://h/1\nhttp://h/cut")
    rows = gather_inputs([], [path])
    waits, ended = threading.Event(), []
    rows.live.on_wait = waits.set

    def read() -> None:
        try:
            ended.extend(row.image for row in rows)
        except InputStopped:
            ended.append("stopped")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert waits.wait(WAIT_S)
    rows.live.stop()
    rows.live.stop()
    thread.join(WAIT_S)
    assert ended == ["http://h/1", "stopped"]


def test_the_end_of_a_pipe_is_the_end_of_the_list(tmp_path: Path) -> None:
    """Nothing waits when the last writer has gone."""
    path = tmp_path / "list"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    os.write(end, b"http://h/1\n")
    rows = gather_inputs([], [str(path)])
    os.close(end)
    assert [row.image for row in rows] == ["http://h/1"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"id;url\n1;http://h/1\n", b"2;http://h/2\n"),
        (b'{"url": "http://h/1"}\n', b'{"url": "http://h/2"}\n'),
        (b'[\n"http://h/1",\n', b'"http://h/2",\n'),
        ("http://h/1\n".encode("utf-16"), "http://h/2\n".encode("utf-16-le")),
    ],
)
def test_each_format_is_read_as_it_comes(pipe: tuple[str, int], first: bytes, second: bytes) -> None:
    """A row does not wait for the rows behind it, whatever the format and the encoding."""
    path, end = pipe
    os.write(end, first)
    rows = gather_inputs([], [path])
    rows.live.on_wait = lambda: os.write(end, second) and None
    assert [next(rows).image for _ in range(2)] == ["http://h/1", "http://h/2"]


def test_a_row_with_bytes_that_are_no_text_is_refused_alone(pipe: tuple[str, int]) -> None:
    """A pipe cannot be read twice: its encoding is not guessed."""
    path, end = pipe
    os.write(end, b"url,key\nhttp://h/1,M\xfcller\nhttp://h/2,b\n")
    rows = gather_inputs([], [path])
    assert ["no text" in (next(rows).refusal or "") for _ in range(2)] == [True, False]
