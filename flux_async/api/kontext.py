"""Builds the submits and polls of the kontext API, and reads its answers; fulfils ``flux_async.api.Api``.

Rules (API page, "Core Endpoints"; the rest was seen on the live service):

1. Nothing is coerced, and a field of an unknown shape is read as absent (``api/parsing.py``).
2. A success without a task id or result URL is an error.
3. A failed task is a record, not an error: the poll succeeded.
4. ``TaskRecord.raw`` keeps the whole record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import eq
from typing import Any, cast

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from flux_async.api import parsing
from flux_async.api.envelope import (
    SERVER_ERRORS,
    WireRequest,
    WireResponse,
    data_of,
    message_of,
    open_envelope,
    read_envelope,
    unexpected,
)
from flux_async.api.error_codes import OK, PollMeaning, rule_for
from flux_async.api.models_table import ApiName, model_of, on_wire
from flux_async.api.stored_requests import IMAGE_FIELD, encode, fields_to_send, stored_name
from flux_async.errors import Charge, NotFoundError, shown
from flux_async.models import TaskId, TaskRecord, TaskStatus

NAME: ApiName = "kontext"
"""Name of this API for users and in the table of models."""

GENERATE_PATH = "/api/v1/flux/kontext/generate"
RECORD_INFO_PATH = "/api/v1/flux/kontext/record-info"

_NO_TASK = (
    "Check the task id, and that the key belongs to the account that made it; a task of the last minute may "
    "not be visible yet."
)
_READERS: Mapping[Any, Callable[[object], object]] = {
    parsing.Text: parsing.text,
    parsing.WholeNumber: parsing.whole_number,
    parsing.Moment: parsing.moment,
    parsing.JsonObject: parsing.json_object,
    parsing.Link: parsing.link,
    parsing.Raw: lambda value: value,
}
"""The reader of each kind of field."""


def _make_converter() -> cattrs.Converter:
    """Return the converter: the vendor's names, no coercion, None for an unknown shape."""
    converter = cattrs.Converter()
    for kind, read in _READERS.items():
        # Registered for the whole union with None: else cattrs would decide between the two at each value.
        converter.register_structure_hook_func(partial(eq, kind | None), _reading(read))
    for body in (_RecordBody, _LinksBody):
        names = {a.name: override(rename=stored_name(a.name)) for a in attrs.fields(body)}
        converter.register_structure_hook(
            body, make_dict_structure_fn(body, converter, **cast("dict[str, Any]", names))
        )
    return converter


def _reading(read: Callable[[object], object]) -> Callable[[object, object], object]:
    return lambda value, _: read(value)


# --- building ---------------------------------------------------------------------------------------------


def build_submit(body: str, callback_url: str | None = None) -> WireRequest:
    """POST generate (API page, "Image Generation/Editing") of a stored request.

    Raises:
        InvalidInput: Its image has not been uploaded, or this API does not have its model.
    """
    fields = fields_to_send(body, callback_url)
    row = on_wire(NAME, fields["model"])
    fields["model"] = row.model
    if row.image_field != IMAGE_FIELD and IMAGE_FIELD in fields:
        fields[row.image_field] = fields.pop(IMAGE_FIELD)
    return WireRequest(method="POST", path=GENERATE_PATH, body=encode(fields | dict(row.extras)).encode())


def build_status(task_id: TaskId, *, keep_alive: bool = False) -> WireRequest:
    """GET record-info (API page, "Task Status Query")."""
    return WireRequest(
        method="GET",
        path=RECORD_INFO_PATH,
        query={"taskId": parsing.check_task_id(task_id)},
        keep_alive=keep_alive,
    )


def is_for_task(response: WireResponse, task_id: TaskId) -> bool:
    """Return False if an answer over a kept connection may belong to an earlier poll of another task.

    Such an answer is a record that does not name the task, or an error that ends a task without a name. Other
    errors end no task, and the next poll replaces them.
    """
    if task_id.encode() in response.body:
        return True
    code, envelope = read_envelope(response)
    if code is None:
        return True
    ends_task = rule_for(code).poll is PollMeaning.TASK_FAILED
    return not ends_task and not (code == OK and isinstance(envelope.get("data"), dict))


# --- reading ----------------------------------------------------------------------------------------------


def parse_submit(response: WireResponse) -> TaskId:
    """Return the id of the task that a submit made, and that was charged.

    Raises:
        ApiError: The vendor refused; ``charge`` and ``scope`` hold the consequences.
        UnexpectedResponse: No documented shape, or a success without a task id: charge MAYBE.
    """
    code, envelope = read_envelope(response)
    data = envelope.get("data")
    task_id = parsing.task_id(data.get("taskId")) if isinstance(data, dict) else None
    if code == OK and task_id is not None:
        return task_id
    if code == OK:
        raise unexpected(response, "The API reported success without a task id")
    _refuse_contradictions(response, code, task_id)
    return cast("TaskId", open_envelope(response))


def _refuse_contradictions(response: WireResponse, code: int | None, task_id: TaskId | None) -> None:
    """Raise if a refusal contains a task id or a server error: then it may have been charged."""
    if code is None:
        return
    if task_id is not None:
        error = unexpected(response, f"The API answered {code} and named a task all the same")
        error.task_id = task_id
        raise error
    if response.status >= SERVER_ERRORS and rule_for(code).charge is Charge.NO:
        raise unexpected(response, f"The API answered {code}, but with a server error")


def parse_status(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Return the record of ``task_id`` from an answer to record-info.

    A failed task is a record, not an error, also if the envelope itself has the failure (400, 408, 501).

    Raises:
        NotFoundError: No such task, or not visible yet (404, 422, ``data: null``).
        ApiError: Any other refusal; ``api/error_codes.py`` holds its meaning for a wait.
        UnexpectedResponse: No documented shape, or a record of another task or of none.
    """
    found = _open_record(response, task_id)
    return found if isinstance(found, TaskRecord) else _record(response, found, task_id)


def parse_poll(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Return the part of a record that a wait needs; raises what :func:`parse_status` raises.

    Most polls find the task generating, and their records are discarded soon: only flag, id and creation time
    are read, the rest stays in ``raw``.
    """
    found = _open_record(response, task_id)
    if isinstance(found, TaskRecord):
        return found
    status, unknown = _status(found.get("successFlag"))
    if status is not TaskStatus.GENERATING:
        return _record(response, found, task_id)
    _check_owner(response, found, task_id)
    created_at = parsing.moment(found.get("createTime"))
    return TaskRecord(task_id=task_id, status=status, unknown_flag=unknown, created_at=created_at, raw=found)


def _open_record(response: WireResponse, task_id: TaskId) -> TaskRecord | dict[str, Any]:
    """Return the record as JSON, or the record of a failure in the envelope."""
    code, envelope = read_envelope(response)
    if code is not None and rule_for(code).poll is PollMeaning.TASK_FAILED:
        return TaskRecord(
            task_id=task_id,
            status=TaskStatus.GENERATE_FAILED,
            error_code=code,
            error_message=message_of(envelope) or None,
            raw=envelope,
        )
    if code is not None and rule_for(code).poll is PollMeaning.NOT_VISIBLE:
        msg = message_of(envelope)
        raise _no_task(response, task_id, f"the API answered {code}: {msg or 'no message'}", code, msg)
    data = data_of(response, code, envelope, reading=True)
    if not data:
        raise _no_task(response, task_id, "record-info has nothing under this id")
    if not isinstance(data, dict):
        raise unexpected(response, "record-info answered with something other than a record", reading=True)
    return data


def _no_task(
    response: WireResponse, task_id: TaskId, why: str, code: int = 404, msg: str = ""
) -> NotFoundError:
    return NotFoundError(
        f"No task {shown(str(task_id))}: {why}.",
        advice=_NO_TASK,
        code=code,
        msg=msg,
        http_status=response.status,
        task_id=task_id,
    )


# --- the record -------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _RecordBody:
    """``data`` of record-info, field by field as the vendor names them."""

    param_json: parsing.JsonObject | None = None
    response: parsing.Raw | None = None
    complete_time: parsing.Moment | None = None
    create_time: parsing.Moment | None = None
    success_flag: parsing.Raw | None = None
    error_code: parsing.WholeNumber | None = None
    error_message: parsing.Text | None = None


@attrs.frozen(kw_only=True)
class _LinksBody:
    """Addresses of images: ``response`` of a record, or the record itself."""

    origin_image_url: parsing.Link | None = None
    result_image_url: parsing.Link | None = None
    result_urls: parsing.Raw | None = None


def _record(response: WireResponse, data: dict[str, Any], asked: TaskId) -> TaskRecord:
    body = _converter.structure(data, _RecordBody)
    _check_owner(response, data, asked)
    status, unknown = _status(body.success_flag)
    origin, result = _links(body.response, data)
    return TaskRecord(
        task_id=asked,
        status=status,
        unknown_flag=unknown,
        result_url=result,
        origin_url=origin,
        created_at=body.create_time,
        completed_at=body.complete_time,
        error_code=body.error_code,
        error_message=body.error_message,
        params=_as_stored(body.param_json),
        raw=data,
    )


def _as_stored(echo: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the echo of a submit in the names of a stored request."""
    model = None if echo is None else model_of(NAME, echo.get("model"))
    if echo is None or model is None:
        return echo
    image_field = model.row.apis[NAME].image_field
    image = {IMAGE_FIELD: echo[image_field]} if image_field in echo else {}
    return echo | {"model": model.value} | image


def _check_owner(response: WireResponse, data: dict[str, Any], asked: TaskId) -> None:
    """Raise if a record does not name the task: over a kept connection it may be another task's."""
    named = parsing.task_id(data.get("taskId"))
    if named is None:
        raise unexpected(response, "record-info answered with a record that names no task", reading=True)
    if named != asked:
        raise unexpected(response, "record-info answered with the record of another task", reading=True)


def _status(flag: object) -> tuple[TaskStatus, object]:
    """Return the status of a flag, and the flag if it is unknown; missing and unknown mean generating."""
    if flag is None or flag == "":
        return TaskStatus.GENERATING, None
    number = parsing.whole_number(flag)
    try:
        return TaskStatus(-1 if number is None else number), None
    except ValueError:
        return TaskStatus.GENERATING, flag


def _links(response: object, data: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return (origin, result) from ``response`` (object, JSON string, bare URL), else from the record."""
    if isinstance(response, str) and parsing.link(response):
        return None, parsing.link(response)
    inner = _converter.structure(parsing.json_object(response) or {}, _LinksBody)
    outer = _converter.structure(data, _LinksBody)
    listed: object = inner.result_urls
    links = map(parsing.link, listed) if isinstance(listed, list) else iter(())
    return (
        inner.origin_image_url or outer.origin_image_url,
        inner.result_image_url or outer.result_image_url or next(filter(None, links), None),
    )


_converter = _make_converter()
