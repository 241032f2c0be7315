"""Builds the submits and polls of the kontext API, and reads its answers; fulfils ``flux_async.api.Api``.

Rules (API page, "Core Endpoints"; the rest was seen on the live service):

1. Nothing is coerced, and a field of an unknown shape is read as absent (``api/parsing.py``).
2. A success without a task id or result URL is an error.
3. A failed task is a record, not an error: the poll succeeded.
4. ``TaskRecord.raw`` keeps the whole record.
"""

from __future__ import annotations

from typing import Any

import attrs

from flux_async.api import parsing, task_answers
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.api.models_table import ApiName, model_of, on_wire
from flux_async.api.stored_requests import IMAGE_FIELD, encode, fields_to_send
from flux_async.api.task_answers import check_owner, make_converter, open_record, status_of_flag
from flux_async.api.task_answers import is_for_task as is_for_task  # noqa: PLC0414 - part of the Api
from flux_async.api.task_answers import parse_submit as parse_submit  # noqa: PLC0414 - part of the Api
from flux_async.models import TaskId, TaskRecord, TaskStatus

NAME: ApiName = "kontext"
"""Name of this API for users and in the table of models."""
SHOWS_COST = False
"""Whether its records show what a task cost."""

GENERATE_PATH = "/api/v1/flux/kontext/generate"
RECORD_INFO_PATH = "/api/v1/flux/kontext/record-info"


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
    return WireRequest(method="POST", path=GENERATE_PATH, body=encode(row.with_extras(fields)).encode())


def build_status(task_id: TaskId, *, keep_alive: bool = False) -> WireRequest:
    """GET record-info (API page, "Task Status Query")."""
    return task_answers.status_request(RECORD_INFO_PATH, task_id, keep_alive=keep_alive)


# --- reading ----------------------------------------------------------------------------------------------


def parse_status(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Return the record of ``task_id`` from an answer to record-info.

    Raises:
        FluxError: What :func:`flux_async.api.task_answers.open_record` and ``check_owner`` raise.
    """
    found = open_record(response, task_id, NAME)
    return found if isinstance(found, TaskRecord) else _record(response, found, task_id)


def parse_poll(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Return the part of a record that a wait needs; raises what :func:`parse_status` raises.

    Most polls find the task generating, and their records are discarded soon: only flag, id and creation time
    are read, the rest stays in ``raw``.
    """
    found = open_record(response, task_id, NAME)
    if isinstance(found, TaskRecord):
        return found
    status, unknown = status_of_flag(found.get("successFlag"))
    if status is not TaskStatus.GENERATING:
        return _record(response, found, task_id)
    check_owner(response, found, task_id)
    created_at = parsing.moment(found.get("createTime"))
    return TaskRecord(task_id=task_id, status=status, unknown_flag=unknown, created_at=created_at, raw=found)


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
    check_owner(response, data, asked)
    status, unknown = status_of_flag(body.success_flag)
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


_converter = make_converter(_RecordBody, _LinksBody)
