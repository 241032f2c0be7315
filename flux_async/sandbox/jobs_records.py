"""The records and callbacks of the jobs API, in the key order of recorded traffic.

The echo of a request is JSON in a string whose ``input`` is again JSON in a string, and so is the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

from flux_async.sandbox.envelopes import time_as_faulted
from flux_async.sandbox.faults import Fault

if TYPE_CHECKING:
    from flux_async.sandbox.simulator import Failure, Task

RecordShape = Literal["new", "old"]

NO_RECORD: Final = "recordInfo is null"
SUCCEEDED: Final = "Playground task completed successfully."
FAILED: Final = "Playground task failed."
FAILED_CODE: Final = 501

# Shares of a task's duration; recorded tasks leave the first two states within seconds.
_WAITING_UNTIL: Final = 0.05
_QUEUING_UNTIL: Final = 0.15

_NEW_FIELDS: Final = ("creditsConsumed", "operationType", "response", "successFlag", "paramJson")
_TIMES: Final = ("completeTime", "createTime")


def state_of(task: Task, now: float) -> str:
    """Return ``state`` of a task."""
    if task.flag:
        return "success" if task.failure is None else "fail"
    share = (now - task.created_at) / (task.ready_at - task.created_at)
    if share < _WAITING_UNTIL:
        return "waiting"
    return "queuing" if share < _QUEUING_UNTIL else "generating"


def job_record_of(task: Task, base_url: str, now: float, shape: RecordShape) -> dict[str, object]:
    """Return ``data`` of recordInfo; links begin with `base_url`.

    The old shape, of April 2026, lacks the last five fields of the new one.
    """
    state, echo = state_of(task, now), _echo(task)
    urls = None if task.result is None else {"resultUrls": [base_url + task.result.path]}
    record = {
        **_common(task, task.task_id, state, _result_json(urls), task.failure),
        "creditsConsumed": task.consumed,
        "operationType": None,
        "response": urls,
        "successFlag": int(task.flag),
        "paramJson": echo,
    }
    if not task.flag:
        del record["response"]
    if shape == "old":
        record = {name: value for name, value in record.items() if name not in _NEW_FIELDS}
    return _respelt(record, urls, task) if task.faults else record


def job_callback_of(task: Task, named: str, result: str, failure: Failure | None) -> dict[str, object]:
    """Return the body of a callback: about the task of id `named`, with `result` as its link."""
    urls = {"resultUrls": [result]} if failure is None else None
    state = "success" if failure is None else "fail"
    data = _common(task, named, state, _result_json(urls) or None, failure)
    data |= {"updateTime": data["completeTime"], "creditsConsumed": task.consumed}
    code, message = (200, SUCCEEDED) if failure is None else (FAILED_CODE, FAILED)
    return {"code": code, "msg": message, "data": data}


def _common(
    task: Task, named: str, state: str, result_json: str | None, failure: Failure | None
) -> dict[str, object]:
    ended = task.ended_at
    return {
        "taskId": named,
        "model": task.request.model,
        "state": state,
        "param": _echo(task),
        "resultJson": result_json,
        "failCode": str(failure.code) if failure else None,
        "failMsg": failure.message if failure else None,
        "costTime": None if ended is None else math.ceil(ended - task.created_at),
        "completeTime": None if ended is None else math.floor(ended * 1000),
        "createTime": math.floor(task.created_at * 1000),
    }


def _echo(task: Task) -> str:
    """Return the request as it is echoed: its ``input`` is a string within the string."""
    sent = dict(task.request.sent)
    return _compact({**sent, "input": _compact(sent.get("input", {}))})


def _result_json(urls: Mapping[str, object] | None) -> str:
    return "" if urls is None else _compact(urls)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _respelt(
    record: dict[str, object], urls: Mapping[str, list[str]] | None, task: Task
) -> dict[str, object]:
    """Return the record with the faults of its task."""
    faults = task.faults
    for name in _TIMES:
        record[name] = time_as_faulted(record[name], task)
    for name in ("param", "paramJson"):
        if name in record and Fault.PARAMS_INVALID in faults:
            record[name] = str(record[name])[:-2]
        if Fault.PARAMS_MISSING in faults:
            record.pop(name, None)
    if Fault.ERROR_AS_TEXT in faults and record["failCode"] is None:
        record["failCode"] = "null"
    _respell_state(record, task)
    if urls is not None:
        _respell_links(record, urls["resultUrls"][0], task)
    return record


def _respell_state(record: dict[str, object], task: Task) -> None:
    faults = task.faults
    names = [name for name in ("state", "successFlag") if name in record]
    if Fault.FLAG_AS_TEXT in faults and "successFlag" in record:
        record["successFlag"] = str(record["successFlag"])
    if task.flag:  # it has ended
        return
    for name in names:
        if Fault.FLAG_NULL in faults:
            record[name] = None
        if Fault.FLAG_UNKNOWN in faults:
            record[name] = "9" if name == "state" else 9
        if Fault.FLAG_MISSING in faults:
            del record[name]


def _respell_links(record: dict[str, object], link: str, task: Task) -> None:
    faults = task.faults
    empty = _compact({"resultUrls": [""]})
    if Fault.NO_RESPONSE in faults:
        record |= {"resultJson": "", "response": None}
    elif Fault.NO_URL in faults:
        record |= {"resultJson": empty, "response": {"resultUrls": [""]}}
    elif Fault.URL_IN_LIST in faults:
        record |= {"resultJson": "", "response": {"resultUrls": [link]}}
    elif Fault.RESPONSE_AS_TEXT in faults:
        record |= {"resultJson": "", "response": _compact({"resultUrls": [link]})}
