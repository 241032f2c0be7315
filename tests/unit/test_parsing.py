"""Odd answers: the kept part and the ids in it; and percent-encoding of addresses, as browsers do it."""

from __future__ import annotations

import json

import pytest

from flux_async.api import parsing
from flux_async.api.parsing import KEPT_BYTES, encoded_as_by_a_browser, ids_in, kept_answer

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


# --- percent-encoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "encoded"),
    [
        ("https://h/a b.jpg", "https://h/a%20b.jpg"),
        ("https://h/\N{LATIN SMALL LETTER E WITH ACUTE}/\N{SNOWMAN}", "https://h/%C3%A9/%E2%98%83"),
        ("https://h/%2F%27%7E%zz%?q=%2F%27%7E%zz%", "https://h/%2F%27%7E%zz%?q=%2F%27%7E%zz%"),
        ("https://h/%2f%c3%a9", "https://h/%2f%c3%a9"),
        ("https://h/\"<>`{}^|'~[]@:;,+$&=!*()", "https://h/%22%3C%3E%60%7B%7D%5E|'~[]@:;,+$&=!*()"),
        ("https://h/x?\"<>' `{}^|~[]/?@", "https://h/x?%22%3C%3E%27%20`{}^|~[]/?@"),
        ("https://h/x?a=\N{LATIN SMALL LETTER E WITH ACUTE}&b=c d", "https://h/x?a=%C3%A9&b=c%20d"),
        ('https://h/x#a b`<>"', "https://h/x#a%20b%60%3C%3E%22"),
        ("https://h?a b", "https://h?a%20b"),
        ("https://h/x?", "https://h/x?"),
        ("  https://h/a\tb\nc \x00", "https://h/abc"),
        ("https://h/\x01\x7f", "https://h/%01%7F"),
        ("https://h\\a\\b?c\\d", "https://h/a/b?c\\d"),
        ("https://h/\ud83d", "https://h/%EF%BF%BD"),
        ("HTTPS://user:p@H:80/a b", "HTTPS://user:p@H:80/a%20b"),
        ("http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/a b", "http://b\xfccher.example/a%20b"),
        ("javascript:alert(' ')", "javascript:alert(' ')"),
        ("ftp://h/a b", "ftp://h/a b"),
        ("no address", "no address"),
    ],
)
def test_what_a_browser_escapes_is_escaped_and_nothing_twice(given: str, encoded: str) -> None:
    """Escapes that are there stay byte for byte; what is no http(s) address is left alone."""
    assert encoded_as_by_a_browser(given) == encoded
    assert encoded_as_by_a_browser(encoded) == encoded


@pytest.mark.parametrize(
    ("given", "link"),
    [
        ("https://h/my poster.jpg", "https://h/my%20poster.jpg"),
        ("https://h/%2F%27%7E.jpg?s=%2B+/=", "https://h/%2F%27%7E.jpg?s=%2B+/="),
        ("https:// h/x", None),
        ("javascript:alert(1)", None),
        ("", None),
    ],
)
def test_a_record_may_name_its_result_with_raw_spaces(given: str, link: str | None) -> None:
    """A paid result is fetched even if the vendor did not escape its address."""
    assert parsing.link(given) == link
