"""Builds the submits and polls of the jobs API, and reads its answers; fulfils ``flux_async.api.Api``.

Since September 2026 the vendor documents all its models on this API. Rules, beside those of ``kontext``:

1. ``state`` decides; ``successFlag``, which newer records have too, stands in for a missing or unknown state.
   A failed task with the flag of a success and an image is a success: the image is paid.
2. The results are JSON in a string (``resultJson``), in newer records in ``response`` too. The first is the
   image.
3. The echo of the request is JSON in a string, whose ``input`` is again JSON in a string.
4. ``costTime`` is not read: its unit differs between the vendor's pages, and ``completeTime`` says the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from flux_async.api import parsing, task_answers
from flux_async.api.envelope import WireRequest, WireResponse, read_envelope, unexpected
from flux_async.api.models_table import ApiName, model_of, on_wire
from flux_async.api.stored_requests import IMAGE_FIELD, encode, field_name, fields_to_send, stored_name
from flux_async.api.task_answers import check_owner, make_converter, open_record, status_of_flag
from flux_async.api.task_answers import is_for_task as is_for_task  # noqa: PLC0414 - part of the Api
from flux_async.models import TaskId, TaskRecord, TaskStatus

NAME: ApiName = "jobs"
"""Name of this API for users and in the table of models."""
SHOWS_COST = True
"""Whether its records show what a task cost."""

CREATE_TASK_PATH = "/api/v1/jobs/createTask"
RECORD_INFO_PATH = "/api/v1/jobs/recordInfo"

_MODEL, _CALLBACK, _INPUT = "model", "callBackUrl", "input"
_STATES = {
    "waiting": TaskStatus.GENERATING,
    "queuing": TaskStatus.GENERATING,
    "generating": TaskStatus.GENERATING,
    "success": TaskStatus.SUCCESS,
    "fail": TaskStatus.GENERATE_FAILED,
}


# --- building ---------------------------------------------------------------------------------------------


def build_submit(body: str, callback_url: str | None = None) -> WireRequest:
    """POST createTask of a stored request.

    Raises:
        InvalidInput: Its image has not been uploaded, or this API does not have its model or aspect ratio.
    """
    fields = fields_to_send(body, callback_url)
    row = on_wire(NAME, fields.pop(_MODEL), fields.get(stored_name("aspect_ratio")))
    callback = {_CALLBACK: fields.pop(_CALLBACK)} if _CALLBACK in fields else {}
    image = fields.pop(IMAGE_FIELD, None)
    ours = {field_name(name): value for name, value in fields.items()}
    given = {row.names.get(name, name): value for name, value in ours.items()}
    if image is not None:
        given[row.image_field] = [image] if row.image_is_list else image
    sent = {_MODEL: row.model} | callback | {_INPUT: row.with_extras(given)}
    return WireRequest(method="POST", path=CREATE_TASK_PATH, body=encode(sent).encode())


def build_status(task_id: TaskId, *, keep_alive: bool = False) -> WireRequest:
    """GET recordInfo."""
    return task_answers.status_request(RECORD_INFO_PATH, task_id, keep_alive=keep_alive)


# --- reading ----------------------------------------------------------------------------------------------


def parse_submit(response: WireResponse) -> TaskId:
    """Return the id of the task that a submit made, and that was charged.

    Raises:
        ApiError: The vendor refused; ``charge`` and ``scope`` hold the consequences.
        UnexpectedResponse: No documented shape, no task id, or a ``recordId`` that differs from it: charge
            MAYBE.
    """
    task_id = task_answers.parse_submit(response)
    _, envelope = read_envelope(response)
    if parsing.task_id(envelope["data"].get("recordId")) not in {None, task_id}:
        raise unexpected(response, "The API reported success with two different ids")
    return task_id


def parse_status(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Return the record of ``task_id`` from an answer to recordInfo.

    Raises:
        FluxError: What :func:`flux_async.api.task_answers.open_record` and ``check_owner`` raise.
    """
    found = open_record(response, task_id, NAME)
    return found if isinstance(found, TaskRecord) else _record(response, found, task_id)


def parse_poll(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Return the part of a record that a wait needs; raises what :func:`parse_status` raises.

    Of a generating task only state, id, creation time and price are read.
    """
    found = open_record(response, task_id, NAME)
    if isinstance(found, TaskRecord):
        return found
    status, unknown = _status(found)
    if status is not TaskStatus.GENERATING:
        return _record(response, found, task_id)
    check_owner(response, found, task_id)
    return TaskRecord(
        task_id=task_id,
        api=NAME,
        status=status,
        unknown_flag=unknown,
        created_at=parsing.moment(found.get("createTime")),
        credits=parsing.amount(found.get("creditsConsumed")),
        raw=found,
    )


# --- the record -------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _RecordBody:
    """``data`` of recordInfo, field by field as the vendor names them."""

    param: parsing.JsonObject | None = None
    param_json: parsing.JsonObject | None = None
    result_json: parsing.Raw | None = None
    response: parsing.Raw | None = None
    fail_code: parsing.Raw | None = None
    fail_msg: parsing.Text | None = None
    complete_time: parsing.Moment | None = None
    create_time: parsing.Moment | None = None
    credits_consumed: parsing.Amount | None = None


_converter = make_converter(_RecordBody)


def _record(response: WireResponse, data: dict[str, Any], asked: TaskId) -> TaskRecord:
    body = _converter.structure(data, _RecordBody)
    check_owner(response, data, asked)
    status, unknown = _status(data)
    results = tuple(dict.fromkeys(_links(body.result_json, body.response)))
    if results and status.is_failure and status_of_flag(data.get("successFlag"))[0] is TaskStatus.SUCCESS:
        status = TaskStatus.SUCCESS
    return TaskRecord(
        task_id=asked,
        api=NAME,
        status=status,
        unknown_flag=unknown,
        result_url=next(iter(results), None),
        other_urls=results[1:],
        created_at=body.create_time,
        completed_at=body.complete_time,
        credits=body.credits_consumed,
        error_code=parsing.whole_number(body.fail_code),
        error_message=body.fail_msg or parsing.text(body.fail_code),
        params=_as_stored(body.param or body.param_json),
        raw=data,
    )


def _status(data: Mapping[str, Any]) -> tuple[TaskStatus, object]:
    """Return the status of a record, and its state or flag if it is unknown."""
    state = parsing.text(data.get("state"))
    if state in _STATES:
        return _STATES[state], None
    status, unknown = status_of_flag(data.get("successFlag"))
    waits = status is TaskStatus.GENERATING and unknown is None
    return status, data.get("state") or None if waits else unknown


def _links(*results: object) -> Iterator[str]:
    """Yield the addresses of results: of ``resultJson`` first, then those that only ``response`` has."""
    for result in results:
        listed = _fields_of(result).get("resultUrls")
        found: Iterable[object] = listed if isinstance(listed, list) else [listed]
        yield from filter(None, map(parsing.link, found))


def _as_stored(echo: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the echo of a submit in the names of a stored request."""
    if echo is None:
        return None
    given = {name: _single(value) for name, value in _fields_of(echo.get(_INPUT)).items() if name != _MODEL}
    model = model_of(NAME, echo.get(_MODEL))
    row = None if model is None else model.row.apis[NAME]
    ours = {} if row is None else {wire: name for name, wire in row.names.items()}
    image_field = _image_field(given, None if row is None else row.image_field)
    stored = {
        IMAGE_FIELD if name == image_field else stored_name(ours.get(name, name)): value
        for name, value in given.items()
    }
    outer = {name: echo[name] for name in (_MODEL, _CALLBACK) if name in echo}
    return stored | outer | ({} if model is None else {_MODEL: model.value})


def _image_field(given: Mapping[str, Any], expected: str | None) -> str | None:
    """Return the field of an echo that holds the image: the expected one, else the only address in it."""
    if expected in given:
        return expected
    links = [name for name, value in given.items() if parsing.link(value)]
    return links[0] if len(links) == 1 else None


def _fields_of(value: object) -> dict[str, Any]:
    """Return a JSON object, or a string that holds one; empty for anything else."""
    return parsing.json_object(value) or {}


def _single(value: object) -> object:
    """Return the only element of a list, else the value: the image may be echoed as either."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
