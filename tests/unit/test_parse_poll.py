"""A poll reads less of a task in progress than a record does, and never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_async import FluxError, TaskId, TaskRecord, TaskStatus
from flux_async.api.envelope import WireResponse
from flux_async.api.kontext import parse_poll, parse_status

pytestmark = pytest.mark.usefixtures("parser")

SAMPLES = sorted((Path(__file__).parents[1] / "samples" / "wire").glob("*.json"))
TASK = TaskId("c0d0c0d0c0d0c0d0c0d0c0d0c0d0c0d0")
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=5), st.just(str(TASK))
)


def outcome(parse: Any, response: WireResponse) -> Any:
    """Return a parser's result: a record, or an error's class and message."""
    try:
        return parse(response, TASK)
    except FluxError as error:
        return type(error), str(error), error.charge, error.scope


def assert_same(response: WireResponse) -> None:
    """Both results are equal; of a task in progress the poll has what a wait needs."""
    poll, record = outcome(parse_poll, response), outcome(parse_status, response)
    if not isinstance(record, TaskRecord) or record.status is not TaskStatus.GENERATING:
        assert poll == record
        return
    needed = [(r.task_id, r.status, r.unknown_flag, r.created_at, r.raw) for r in (poll, record)]
    assert repr(needed[0]) == repr(needed[1])  # a NaN is a NaN here


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_recorded_answer_means_the_same_to_both(path: Path) -> None:
    """Records, refusals and rubbish alike."""
    sample = json.loads(path.read_text(encoding="utf-8"))
    assert_same(
        WireResponse(status=sample["http_status"], headers=sample["headers"], body=sample["body"].encode())
    )


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["taskId", "successFlag", "createTime", "response", "errorCode", "paramJson"]), VALUES
    )
)
def test_every_record_means_the_same_to_both(data: dict[str, Any]) -> None:
    """Whatever is in its fields, another task's id above all."""
    body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
    assert_same(WireResponse(status=200, body=body))
