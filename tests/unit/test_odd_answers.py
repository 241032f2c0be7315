"""The part of an odd answer that is kept, and the ids found in it."""

from __future__ import annotations

import json

import pytest

from flux_async.api.parsing import KEPT_BYTES, ids_in, kept_answer

HEX = "c0d0c0d0c0d0c0d0c0d0c0d0c0d0c0d0"
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('{"code":200,"data":{"task_id":"abc"}}', ["abc"]),
        ('{"code":200,"data":{"task-id":"abc","recordId":17,"TASKID":"x"}}', ["abc", "17", "x"]),
        ('{"code":200,"data":[{"id":"abc"}]}', ["abc"]),
        ('{"code":200,"data":{"task":{"id":"abc"}}}', ["abc"]),
        (f'{{"code":200,"data":"{HEX}"}}', [HEX]),
        (f'{{"a":"{HEX}","taskId":"b"}}', ["b", HEX]),
        (f'{{"code":200,"uuid":"{UUID}"}}', [UUID]),
        ('{"data":"fluxkontext20261130a"}', ["fluxkontext20261130a"]),
        ('{"code":500,"msg":"task_id=abc123 failed"}', ["abc123"]),
        (f'{{"code":500,"msg":"{"see " * 60}{HEX} there"}}', [HEX]),
        ('{"data":"{\\"taskId\\":\\"xyz1\\"}"}', ["xyz1"]),
        (f'{{"code":200,"data":{{"taskId":"{HEX}"', [HEX]),
        (f'{{"code":200,"data":{{"taskId":"{HEX[:20]}', []),
        (f"<html><p>Task ID: 77ab-99, see {HEX}.</p></html>", ["77ab-99", HEX]),
        ("<html><a href=/assets/c0d0c0d0c0d0c0d0.js>hotel</a></html>", []),
        ('{"code":200,"msg":"success","data":null,"ok":true,"taskId":null,"id":1.5}', []),
        ('{"taskId":"with a blank"}', []),
        ("[" * 5000, []),
        ("", []),
    ],
    ids=lambda value: str(value)[:40],
)
def test_ids_in_an_odd_answer(text: str, ids: list[str]) -> None:
    """Values beside the name of an id come first, then values of its form; a cut id is none."""
    assert ids_in(text) == ids


def test_at_most_ten_ids_each_once() -> None:
    """A list of ids is no answer to one submit."""
    assert ids_in(json.dumps([{"id": f"t{number // 2}"} for number in range(40)])) == [
        f"t{number}" for number in range(10)
    ]


def test_a_short_answer_is_kept_whole() -> None:
    """Text as it came; what is no text, and what would move a cursor, is replaced."""
    assert kept_answer(b'{"a": "\xff\x1b[2J"}\n') == '{"a": "\ufffd [2J"}\n'


def test_the_beginning_and_the_ids_of_a_long_answer_are_kept() -> None:
    """Four kilobytes, and an id far behind them; at most 64 kB are searched."""
    answer = {"trace": "é" * 9000, "data": {"task_id": "abc", "x": HEX}}
    body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
    kept = kept_answer(body)
    assert len(kept.encode()) <= KEPT_BYTES
    assert kept.startswith('{"trace":"é')
    assert ids_in(kept) == ["abc", HEX]
    endless = b"x" * 5_000_000 + b'"taskId":"abc"'
    assert len(kept_answer(endless)) <= KEPT_BYTES
    assert ids_in(kept_answer(endless)) == []
