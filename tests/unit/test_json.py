"""What is JSON is what Python's own parser says, whether orjson is installed or not."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async.api import envelope
from flux_async.api.envelope import WireResponse, read_envelope, read_json

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=()))
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)


def outcome(parse: Any, body: bytes) -> str:
    """What a parser makes of a body: its value with all types, or a refusal."""
    try:
        return repr(parse(body))
    except ValueError:
        return "no JSON"


@pytest.mark.parametrize(
    "body",
    [
        b"[NaN]",
        b"[Infinity, -Infinity]",
        b"[1e999]",
        b'["\\ud800"]',
        b'{"code": 200, "code": 500}',
        b'{"n": 18446744073709551615}',
        b'{"n": 18446744073709551616}',
        b'{"a": [{"n": -9223372036854775809}]}',
        b"[1e300, 1e30]",
        b"\xef\xbb\xbf[1]",
        "[1]".encode("utf-16"),
        b'["\xff"]',
        b'["\xed\xa0\x80"]',
        b"[-0, -0.0, 1.0]",
        b"",
        b"[1,]",
        b"<html>",
    ],
)
def test_odd_json_means_the_same_to_both(body: bytes) -> None:
    """What only one of them takes, and what they take for different things."""
    assert outcome(read_json, body) == outcome(json.loads, body)


@given(VALUES)
def test_all_json_means_the_same_to_both(value: Any) -> None:
    """Values of all kinds, their types and the order of keys included."""
    for body in (
        json.dumps(value).encode(),
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"),
    ):
        assert outcome(read_json, body) == outcome(json.loads, body)


@given(st.binary(max_size=40))
def test_rubbish_is_rubbish_to_both(body: bytes) -> None:
    """Bytes of any kind."""
    assert outcome(read_json, body) == outcome(json.loads, body)


def test_an_answer_nested_beyond_reason_is_no_envelope() -> None:
    """It is refused, and ends nothing."""
    assert read_envelope(WireResponse(status=200, body=b"[" * 200_000)) == (None, {})


def test_without_orjson_pythons_own_parser_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, nothing is missing."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "orjson":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    envelope.fast_parser.cache_clear()
    try:
        assert envelope.fast_parser() is None
        assert read_json(b'{"code": 200}') == {"code": 200}
    finally:
        envelope.fast_parser.cache_clear()
