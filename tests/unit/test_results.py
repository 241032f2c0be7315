"""results.jsonl: exact keys, nothing lost between two runs, nothing touched that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from flux_async import AuthenticationError, Charge, ConfigurationError, ConnectionLost, TaskFailed
from flux_async.cli.results import FIELDS, ErrorNote, ResultBook, ResultRow, ResultsError, Status
from flux_async.models import TaskId, TaskRecord, TaskStatus

DONE = ResultRow(
    image="https://host/a.png",
    key="a" * 64,
    status=Status.SUCCEEDED,
    task_id="t1",
    result_url="https://host/r.png",
    file="images/a-aaaaaaaa.png",
    charge=Charge.YES,
    attempts=1,
    submitted_at="2026-08-01T12:00:00.000Z",
    finished_at="2026-08-01T12:00:09.000Z",
)
WAITING = ResultRow(image="https://host/b.png", key="b" * 64)


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


def test_a_line_has_exactly_the_keys_of_the_design_in_their_order() -> None:
    """A line has exactly the keys of the design, in their order."""
    names = "image key status task_id result_url file charge error attempts submitted_at finished_at"
    assert " ".join(json.loads(DONE.as_json())) == names == " ".join(FIELDS)


def test_an_error_is_its_type_its_code_and_its_words() -> None:
    """An error becomes {type, code, message}; the code is the vendor's."""
    error = AuthenticationError("The API answered 401: no.", code=401, advice="Get a key.")
    assert attrs.asdict(ErrorNote.of(error)) == {
        "type": "AuthenticationError",
        "code": 401,
        "message": "The API answered 401: no. Get a key.",
    }


def test_a_failed_task_gives_the_code_of_its_record() -> None:
    """The code of a TaskFailed is the task's errorCode, that of an error without one is null."""
    record = TaskRecord(task_id=TaskId("t"), status=TaskStatus.GENERATE_FAILED, error_code=501)
    assert ErrorNote.of(TaskFailed("It failed.", record=record)).code == 501
    assert ErrorNote.of(ConnectionLost("Gone.")).code is None


@pytest.mark.parametrize(
    "row",
    [
        DONE,
        WAITING,
        attrs.evolve(WAITING, image="https://host/плакат.png"),
        attrs.evolve(
            WAITING, image="not unicode: \udcff", status="failed", error=ErrorNote(type="E", message="\u2028")
        ),
    ],
)
def test_a_row_survives_being_written_and_read(tmp_path: Path, row: ResultRow) -> None:
    """What was appended is what the next run reads, whatever characters it holds."""
    ResultBook.open(tmp_path / "out").append(row)
    assert ResultBook.open(tmp_path / "out").rows == {row.key: row}


def test_of_several_lines_with_one_key_the_last_counts(tmp_path: Path) -> None:
    """Appending a row again replaces what is known of its image."""
    book = ResultBook.open(tmp_path)
    book.append(attrs.evolve(DONE, status=Status.PENDING))
    book.append(DONE)
    assert len(lines_of(tmp_path)) == 2
    assert ResultBook.open(tmp_path).rows == {DONE.key: DONE}


def test_the_file_is_rewritten_in_the_order_of_the_input(tmp_path: Path) -> None:
    """A rewrite puts this run's images first, in their order, and keeps what earlier runs paid for."""
    book = ResultBook.open(tmp_path)
    old = attrs.evolve(DONE, key="c" * 64)
    for row in (old, DONE, WAITING):
        book.append(row)
    book.rewrite([WAITING.key, DONE.key])
    assert [line["key"] for line in lines_of(tmp_path)] == [WAITING.key, DONE.key, old.key]
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_last_line_without_an_end_is_not_run_into(tmp_path: Path) -> None:
    """A file edited by hand, without a newline at its end, is appended to on a line of its own."""
    (tmp_path / "results.jsonl").write_text(DONE.as_json())
    ResultBook.open(tmp_path).append(WAITING)
    assert [line["key"] for line in lines_of(tmp_path)] == [DONE.key, WAITING.key]


DAMAGED = {
    "torn": DONE.as_json()[:40],
    "no object": "[]",
    "too few keys": '{"image": "x"}',
    "one key more": DONE.as_json()[:-1] + ', "more": 1}',
    "unknown status": DONE.as_json().replace("succeeded", "great"),
    "wrong type": DONE.as_json().replace('"attempts": 1', '"attempts": "1"'),
    "success without a task": DONE.as_json().replace('"t1"', "null"),
    "failure without a reason": WAITING.as_json().replace("pending", "failed"),
    "error of another shape": WAITING.as_json().replace('"error": null', '"error": {"no": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, damage: str) -> None:
    """A line that cannot be read is a configuration error that names it; the file stays as it is."""
    content = f"{WAITING.as_json()}\n{damage}\n"
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"results\.jsonl line 2 cannot be read"):
        ResultBook.open(tmp_path)
    assert path.read_text() == content


def test_bytes_that_are_no_utf_8_are_damage_too(tmp_path: Path) -> None:
    """A file of another encoding is refused, not misread."""
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigurationError, match="line 1"):
        ResultBook.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    """A file where the folder should be is said before anything is sent."""
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ResultBook.open(tmp_path / "out")


def test_a_disk_that_refuses_is_a_results_error(tmp_path: Path) -> None:
    """A write that fails says so and leaves the rows in memory and no temporary file behind."""
    book = ResultBook.open(tmp_path)
    book.path.mkdir()
    with pytest.raises(ResultsError, match="cannot be written"):
        book.append(DONE)
    with pytest.raises(ResultsError, match="cannot be written"):
        book.rewrite([])
    assert book.rows == {DONE.key: DONE}
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
