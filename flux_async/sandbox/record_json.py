"""How a task is written down for record-info, in the vendor's key order, and in spellings other than that."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flux_async.sandbox.faults import Fault

if TYPE_CHECKING:
    from flux_async.sandbox.tasks import Task

_PENDING_FLAGS: Mapping[Fault, object] = {Fault.FLAG_NULL: None, Fault.FLAG_UNKNOWN: 9}


def record_of(task: Task, base_url: str) -> dict[str, object]:
    """Return ``data`` of record-info; links begin with `base_url`."""
    failure = task.failure
    # The echo holds the fields that were sent, in an order of the vendor's own.
    echo = json.dumps(task.order.sent, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    record: dict[str, object] = {
        "taskId": task.task_id,
        "paramJson": echo,
        "response": _response(task, base_url),
        # Rounded up, so that it may lie a moment in the future: seen in recorded traffic.
        "completeTime": None if task.ended_at is None else math.ceil(task.ended_at) * 1000,
        "createTime": math.floor(task.created_at) * 1000,
        "successFlag": int(task.flag),
        "errorCode": failure.code if failure else None,
        "errorMessage": failure.message if failure else "" if task.flag else None,
    }
    return _respelt(record, task) if task.faults else record


def _response(task: Task, base_url: str) -> dict[str, object] | None:
    if task.origin is None or task.result is None:
        return None
    return {
        "originImageUrl": base_url + task.origin.path,
        "resultImageUrl": base_url + task.result.path,
    }


def _respelt(record: dict[str, object], task: Task) -> dict[str, object]:
    """Return the record as the faults of its task have it."""
    faults = task.faults
    for name in ("completeTime", "createTime"):
        record[name] = _time(record[name], task)
    if Fault.PARAMS_INVALID in faults:
        record["paramJson"] = str(record["paramJson"])[:-2]
    if Fault.PARAMS_MISSING in faults:
        del record["paramJson"]
    if Fault.ERROR_AS_TEXT in faults:
        code = record["errorCode"]
        record["errorCode"] = "null" if code is None else str(code)
    _respell_flag(record, task)
    if isinstance(links := record["response"], dict):
        _respell_links(record, links, task)
    return record


def _respell_flag(record: dict[str, object], task: Task) -> None:
    if Fault.FLAG_AS_TEXT in task.faults:
        record["successFlag"] = str(record["successFlag"])
    if task.flag:  # it has ended
        return
    for fault, value in _PENDING_FLAGS.items():
        if fault in task.faults:
            record["successFlag"] = value
    if Fault.FLAG_MISSING in task.faults:
        del record["successFlag"]


def _respell_links(record: dict[str, object], links: dict[str, object], task: Task) -> None:
    faults = task.faults
    if Fault.NO_RESPONSE in faults:
        record["response"] = None
    elif Fault.NO_URL in faults:
        record["response"] = dict.fromkeys(links, "")
    elif Fault.URL_IN_DATA in faults:
        record.update({"response": None} | links)
    elif Fault.URL_IN_LIST in faults:
        record["response"] = {"resultUrls": [links["resultImageUrl"]]}
    elif Fault.RESPONSE_AS_TEXT in faults:
        record["response"] = json.dumps(links, separators=(",", ":"))
    elif Fault.RESPONSE_AS_URL in faults:
        record["response"] = links["resultImageUrl"]


def _time(value: object, task: Task) -> object:
    faults = task.faults
    if not isinstance(value, int) or Fault.TIMES_NULL in faults:
        return None
    moment = datetime.fromtimestamp(value / 1000, UTC)
    if Fault.TIMES_ISO in faults:
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    if Fault.TIMES_SPACED in faults:
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    return value // 1000 if Fault.TIMES_SECONDS in faults else value
