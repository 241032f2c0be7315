"""The jobs API for the scripted vendor: what its kontext answers and submits look like there.

Tests write answers in the shapes of the kontext API. The scripted vendor turns them into those of the API
that was asked, so that one test runs over both.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flux_async.api.envelope import WireResponse
from flux_async.api.models_table import ApiName
from flux_async.transport import Answered, SendResult

SEGMENTS = {"createTask": "generate", "recordInfo": "record-info"}
"""The last segments of this API's paths, and those of the kontext API with the same purpose."""

_MODELS = {"flux-kontext-pro": "flux1-kontext"}
_STATES = {0: "generating", 1: "success", 2: "fail", 3: "fail"}


def api_of(path: str) -> ApiName:
    """Return the API that a path belongs to."""
    return "jobs" if "/jobs/" in path else "kontext"


def segment_of(path: str) -> str:
    """Return the last segment of a path, by its name in the kontext API."""
    last = path.rpartition("/")[2]
    return SEGMENTS.get(last, last)


def flat(sent: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a createTask as one of generate."""
    names = {ours: name for name, ours in _MODELS.items()}
    fields = {_renamed(r"_([a-z])", str.upper, name): value for name, value in sent["input"].items()}
    outer = {name: sent[name] for name in ("callBackUrl",) if name in sent}
    return fields | {"model": names.get(sent["model"], sent["model"])} | outer


def as_jobs(found: SendResult) -> SendResult:
    """Return an answer of the kontext API as the jobs API gives it; one of another shape stays as it is."""
    try:
        envelope = json.loads(found.response.body) if isinstance(found, Answered) else None
    except ValueError:
        return found
    data = envelope.get("data") if isinstance(envelope, dict) else None
    if not isinstance(found, Answered) or not isinstance(data, dict):
        return found
    if data.keys() == {"taskId"}:
        data = {"taskId": data["taskId"], "recordId": data["taskId"]}
    elif "successFlag" in data:
        data = _record(data)
    response, body = found.response, json.dumps(envelope | {"data": data}).encode()
    return Answered(WireResponse(status=response.status, headers=response.headers, body=body))


def _record(data: dict[str, Any]) -> dict[str, Any]:
    """Return a record in the keys of recordInfo, without those that newer records have besides."""
    flag, response, code = data["successFlag"], data.get("response"), data.get("errorCode")
    url = response.get("resultImageUrl") if isinstance(response, dict) else None
    state = {"state": _STATES[flag]} if flag in _STATES else {"successFlag": flag}
    shown = {"param": _param(data["paramJson"])} if "paramJson" in data else {}
    times = {name: data[name] for name in ("completeTime", "createTime") if name in data}
    return {
        **({"taskId": data["taskId"]} if "taskId" in data else {}),
        "model": "flux1-kontext",
        **state,
        **shown,
        "resultJson": "" if url is None else json.dumps({"resultUrls": [url]}),
        "failCode": None if code is None else str(code),
        "failMsg": data.get("errorMessage"),
        **times,
    }


def _param(shown: Any) -> Any:
    """Return the echo of a request: JSON in a string, whose input is again JSON in a string."""
    try:
        fields = json.loads(shown)
        outer = {name: fields.pop(name) for name in ("model", "callBackUrl") if name in fields}
    except (AttributeError, TypeError, ValueError):
        return shown
    if "model" in outer:
        outer["model"] = _MODELS.get(outer["model"], outer["model"])
    given = {_renamed("([A-Z])", _lowered, name): value for name, value in fields.items()}
    return json.dumps(outer | {"input": json.dumps(given)})


def _lowered(letter: str) -> str:
    return f"_{letter.lower()}"


def _renamed(pattern: str, change: Any, name: str) -> str:
    return re.sub(pattern, lambda found: change(found[1]), name)
