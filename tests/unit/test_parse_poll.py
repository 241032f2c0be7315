"""A poll reads less of a task in progress than a record does, and never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_async import FluxError, TaskRecord, TaskStatus
from flux_async.api import Api, load_api
from flux_async.api.envelope import WireResponse
from tests.support.samples import TASK, response_of, samples_in

pytestmark = pytest.mark.usefixtures("parser")

SAMPLES = [
    *((load_api("kontext"), path) for path in samples_in("wire")),
    *((load_api("jobs"), path) for path in samples_in("jobs")),
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=5), st.just(str(TASK))
)
FIELDS = {
    "kontext": ["taskId", "successFlag", "createTime", "response", "errorCode", "paramJson"],
    "jobs": ["taskId", "successFlag", "createTime", "state", "resultJson", "failCode", "creditsConsumed"],
}


def outcome(parse: Any, response: WireResponse) -> Any:
    """Return a parser's result: a record, or an error's class and message."""
    try:
        return parse(response, TASK)
    except FluxError as error:
        return type(error), str(error), error.charge, error.scope


def assert_same(api: Api, response: WireResponse) -> None:
    """Both results are equal; of a task in progress the poll has what a wait needs."""
    poll, record = outcome(api.parse_poll, response), outcome(api.parse_status, response)
    if not isinstance(record, TaskRecord) or record.status is not TaskStatus.GENERATING:
        assert poll == record
        return
    needed = [(r.task_id, r.status, r.unknown_flag, r.created_at, r.credits, r.raw) for r in (poll, record)]
    assert repr(needed[0]) == repr(needed[1])  # a NaN is a NaN here


@pytest.mark.parametrize(("api", "path"), SAMPLES, ids=[path.stem for _, path in SAMPLES])
def test_every_recorded_answer_means_the_same_to_both(api: Api, path: Path) -> None:
    """Records, refusals and rubbish alike."""
    assert_same(api, response_of(json.loads(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", ["kontext", "jobs"])
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(drawn=st.data())
def test_every_record_means_the_same_to_both(name: Any, drawn: st.DataObject) -> None:
    """Whatever is in its fields, another task's id above all."""
    states = st.sampled_from(["waiting", "generating", "success", "fail", "odd"])
    data = drawn.draw(st.dictionaries(st.sampled_from(FIELDS[name]), st.one_of(VALUES, states)))
    body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
    assert_same(load_api(name), WireResponse(status=200, body=body))
