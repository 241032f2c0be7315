"""Answers of the vendor in files, each with what is read from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from flux_async import FluxError, TaskId, TaskStatus
from flux_async.api.envelope import WireResponse
from flux_async.api.error_codes import PollMeaning, poll_meaning
from flux_async.api.parsing import image_of

FOLDER = Path(__file__).parents[1] / "samples"
TASK = TaskId("c0d0c0d0c0d0c0d0c0d0c0d0c0d0c0d0")

Read: TypeAlias = Callable[[str, WireResponse], Any]
"""Gives an answer to the parser of its phase: submit, record or credit."""


def samples_in(folder: str) -> list[Path]:
    """Return the files of one API."""
    return sorted((FOLDER / folder).glob("*.json"))


def response_of(sample: dict[str, Any]) -> WireResponse:
    """Make the answer that a sample file describes."""
    return WireResponse(status=sample["http_status"], headers=sample["headers"], body=sample["body"].encode())


def check_sample(path: Path, read: Read) -> None:
    """Check that an answer becomes the value or the error that its file expects."""
    sample = json.loads(path.read_text(encoding="utf-8"))
    expect = sample["expect"]
    if "error" in expect:
        _check_error(sample, expect, read)
    elif sample["phase"] == "submit":
        assert read("submit", response_of(sample)) == expect["task_id"]
    elif sample["phase"] == "credit":
        assert read("credit", response_of(sample)) == expect["credits"]
    else:
        _check_record(sample, expect, read)


def _check_error(sample: dict[str, Any], expect: dict[str, Any], read: Read) -> None:
    """Check the error's class, charge, scope, code, message, and its meaning for a wait."""
    with pytest.raises(FluxError) as caught:
        read(sample["phase"], response_of(sample))
    error = caught.value
    assert type(error).__name__ == expect["error"]
    for name in ("charge", "scope", "code", "retry_after_s"):
        if name in expect:
            assert getattr(error, name) == expect[name], name
    assert expect.get("says", "") in str(error)
    if "poll" in expect:
        assert poll_meaning(error) is PollMeaning[expect["poll"]]


def _check_record(sample: dict[str, Any], expect: dict[str, Any], read: Read) -> None:
    """Check the record's fields; fields that the file does not name are not compared."""
    record = read("record", response_of(sample))
    for name, value in expect.items():
        if name == "status":
            assert record.status is TaskStatus[value]
        elif name in {"created_at", "completed_at"}:
            moment = getattr(record, name)
            assert (moment and moment.isoformat()) == value
        elif name == "image":
            with pytest.raises(FluxError, match="without a result URL") as caught:
                image_of(record)
            assert type(caught.value).__name__ == value
            assert caught.value.charge == "yes"
            assert caught.value.task_id == TASK
        elif name == "raw_has":
            assert value in record.raw
        elif name == "other_urls":
            assert record.other_urls == tuple(value)
        else:
            assert getattr(record, name) == value, name
