"""Field names, dates, strictness: models to HTTP and HTTP to models, without I/O.

The vendor's answers are read by these rules (API page, "Core Endpoints" and "Error Handling"; the rest was
seen on the live service):

1. The envelope's ``code`` decides; the HTTP status counts only where there is no readable envelope.
2. Nothing is coerced: ``null`` never becomes ``"None"``, ``"false"`` never becomes ``True``.
3. A field of an unknown shape is read as absent, so that one odd date cannot lose a paid picture.
4. A success without what it promises (task id, result URL, balance) is an error.
5. What is not understood is kept in ``TaskRecord.raw``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NewType, cast

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from flux_async.errors import (
    Charge,
    FluxError,
    InvalidInput,
    NotFoundError,
    Scope,
    ServerError,
    UnexpectedResponse,
)
from flux_async.models import (
    EditRequest,
    GenerateRequest,
    ImageRequest,
    ImageResult,
    TaskId,
    TaskRecord,
    TaskStatus,
    check_http_url,
)
from flux_async.protocol.codes import CODES, OK, PollMeaning, error_for, rule_for

GENERATE_PATH = "/api/v1/flux/kontext/generate"
RECORD_INFO_PATH = "/api/v1/flux/kontext/record-info"
CREDIT_PATH = "/api/v1/chat/credit"

READ_ADVICE = "Looking costs nothing: try again."
_LARGEST_SECONDS = 1e11  # later than the year 5000: a larger number counts milliseconds
_EXCERPT = 200
_SERVER_ERRORS = 500
_REDIRECTS = range(300, 400)
_AMBIGUOUS = frozenset({400, 408})  # as HTTP statuses any proxy sends these, with other meanings


@attrs.frozen(kw_only=True)
class WireRequest:
    """One HTTP request, without host and without key: both belong to the transport."""

    method: str
    path: str
    query: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes | None = None


@attrs.frozen(kw_only=True)
class WireResponse:
    """One HTTP answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes = attrs.field(default=b"", repr=False)


# --- building ---------------------------------------------------------------------------------------------


def _wire_name(field: str) -> str:
    if field == "callback_url":
        return "callBackUrl"  # the capital B is the vendor's
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _make_converter() -> cattrs.Converter:
    """The one converter: the vendor's names, no coercion, absent for what is not understood."""
    converter = cattrs.Converter()
    for kind in (GenerateRequest, EditRequest):
        names = {a.name: override(rename=_wire_name(a.name)) for a in attrs.fields(kind)}
        converter.register_unstructure_hook(
            kind, make_dict_unstructure_fn(kind, converter, **cast("dict[str, Any]", names))
        )
    converter.register_structure_hook(_Text, lambda value, _: _text(value))
    converter.register_structure_hook(_Number, lambda value, _: _whole_number(value))
    converter.register_structure_hook(_Moment, lambda value, _: _moment(value))
    converter.register_structure_hook(_Object, lambda value, _: _object(value))
    converter.register_structure_hook(_Anything, lambda value, _: value)
    converter.register_structure_hook(_Link, lambda value, _: _link(value))
    for body in (_RecordBody, _LinksBody):
        names = {a.name: override(rename=_wire_name(a.name)) for a in attrs.fields(body)}
        converter.register_structure_hook(
            body, make_dict_structure_fn(body, converter, **cast("dict[str, Any]", names))
        )
    return converter


def build_submit(request: ImageRequest) -> WireRequest:
    """POST generate (API page, "Image Generation/Editing"). Unset fields are left out, never null."""
    fields = {name: value for name, value in _converter.unstructure(request).items() if value is not None}
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    return WireRequest(method="POST", path=GENERATE_PATH, body=body.encode())


def build_record_info(task_id: TaskId) -> WireRequest:
    """GET record-info (API page, "Task Status Query")."""
    return WireRequest(method="GET", path=RECORD_INFO_PATH, query={"taskId": check_task_id(task_id)})


def build_credit() -> WireRequest:
    """GET the balance (vendor's common API, "Get account credits")."""
    return WireRequest(method="GET", path=CREDIT_PATH)


def check_task_id(task_id: object) -> TaskId:
    """Return ``task_id`` if it can be one, else raise :class:`InvalidInput`."""
    clean = _task_id(task_id)
    if clean is None:
        raise InvalidInput(f"{task_id!r} is not a task id.", advice="Give the id that submit returned.")
    return clean


# --- reading ----------------------------------------------------------------------------------------------


def parse_submit(response: WireResponse) -> TaskId:
    """Read the answer to a submit: the id of the task that was made and charged.

    Raises:
        ApiError: The vendor refused; ``.charge`` and ``.scope`` say what that means.
        UnexpectedResponse: No documented shape, or a success without a task id: charge MAYBE.
    """
    data = _open_envelope(response)
    task_id = _task_id(data.get("taskId")) if isinstance(data, dict) else None
    if task_id is None:
        raise _unexpected(response, "The API reported success without a task id")
    return task_id


def parse_record(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Read the answer to record-info for ``task_id``.

    A failed task is a record, not an error, also where the envelope itself carries the failure
    (400, 408, 501).

    Raises:
        NotFoundError: No such task, or not visible yet (404, ``data: null``).
        ApiError: Any other refusal; ``protocol.codes`` says what it means for a wait.
        UnexpectedResponse: No documented shape, or a record of another task.
    """
    code, envelope = _read_envelope(response)
    if code is not None and rule_for(code).poll is PollMeaning.TASK_FAILED:
        return TaskRecord(
            task_id=task_id,
            status=TaskStatus.GENERATE_FAILED,
            error_code=code,
            error_message=_message(envelope) or None,
            raw=envelope,
        )
    data = _open_envelope(response, reading=True)
    if not data:
        raise NotFoundError(
            "record-info holds nothing under this task id.",
            code=404,
            http_status=response.status,
            task_id=task_id,
        )
    if not isinstance(data, dict):
        raise _unexpected(response, "record-info answered with something other than a record", reading=True)
    return _record(response, data, task_id)


def parse_credit(response: WireResponse) -> float:
    """Read the balance in credits: a bare number, in reality a float.

    Raises:
        ApiError: The vendor refused.
        UnexpectedResponse: No finite number.
    """
    data = _open_envelope(response, reading=True)
    number = _finite(data)
    if number is None:
        raise _unexpected(response, "The balance is not a number", reading=True)
    return number


def image_of(record: TaskRecord) -> ImageResult:
    """Return the picture of a SUCCESS record.

    Raises:
        UnexpectedResponse: The record has no usable result URL; the task was paid.
    """
    if record.result_url is None:
        raise UnexpectedResponse(
            f"Task {record.task_id} reports success without a result URL.",
            advice="It is paid: look at it at kie.ai/logs, or ask record-info again later.",
            charge=Charge.YES,
            task_id=record.task_id,
            body_excerpt=str(record.raw)[:_EXCERPT],
        )
    return ImageResult(
        task_id=record.task_id, result_url=record.result_url, origin_url=record.origin_url, record=record
    )


def _read_envelope(response: WireResponse) -> tuple[int | None, dict[str, Any]]:
    """Return (code, envelope), or (None, {}) where the body is no envelope."""
    try:
        envelope = json.loads(response.body)
    except (ValueError, RecursionError):
        return None, {}
    if not isinstance(envelope, dict):
        return None, {}
    return _whole_number(envelope.get("code")), envelope


def _open_envelope(response: WireResponse, *, reading: bool = False) -> Any:
    """Return ``data`` of a code-200 envelope, else raise what the code means."""
    code, envelope = _read_envelope(response)
    if code is None:
        raise _without_envelope(response, reading=reading)
    if code == OK:
        return envelope.get("data")
    raise error_for(
        code,
        _message(envelope),
        http_status=response.status,
        retry_after_s=_retry_after(response),
        **_for_reading(reading and rule_for(code).charge is Charge.MAYBE),
    )


def _for_reading(reading: bool) -> dict[str, Any]:  # noqa: FBT001
    """The charge and advice of an error speak of a submit; a mere look costs nothing."""
    return {"charge": Charge.NO, "advice": READ_ADVICE} if reading else {}


def _without_envelope(response: WireResponse, *, reading: bool) -> FluxError:
    """What an answer without a readable envelope means: rule 1, second half."""
    status = response.status
    if status in _REDIRECTS:
        return UnexpectedResponse(
            f"The API answered with a redirect (HTTP {status}), which is not followed.",
            advice="Set KIE_BASE_URL to the address it should go to.",
            http_status=status,
            charge=Charge.NO,
            scope=Scope.STOP,
        )
    if status >= _SERVER_ERRORS:
        return ServerError(
            f"The server answered HTTP {status} without the API's envelope.",
            code=status,
            http_status=status,
            **_for_reading(reading),
        )
    if status in CODES and status not in _AMBIGUOUS:
        return error_for(
            status,
            f"HTTP {status} without the API's envelope ({_excerpt(response)!r})",
            http_status=status,
            retry_after_s=_retry_after(response),
        )
    return _unexpected(response, "The answer is not the API's JSON envelope", reading=reading)


def _unexpected(response: WireResponse, what: str, *, reading: bool = False) -> UnexpectedResponse:
    return UnexpectedResponse(
        f"{what} (HTTP {response.status}, {len(response.body)} bytes).",
        http_status=response.status,
        body_excerpt=_excerpt(response),
        **_for_reading(reading),
    )


def _excerpt(response: WireResponse) -> str:
    text = response.body[: 4 * _EXCERPT].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text)[:_EXCERPT]


def _message(envelope: dict[str, Any]) -> str:
    """``msg``, or ``message`` as some of the vendor's services have it."""
    return _text(envelope.get("msg")) or _text(envelope.get("message")) or ""


def _retry_after(response: WireResponse) -> float | None:
    """Seconds of a Retry-After header; a date in it is measured against the answer's own Date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until - parsedate_to_datetime(response.headers["date"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None


# --- the record -------------------------------------------------------------------------------------------

_Text = NewType("_Text", str)
_Number = NewType("_Number", int)
_Moment = NewType("_Moment", datetime)
_Object = NewType("_Object", dict[str, Any])
_Anything = NewType("_Anything", object)
_Link = NewType("_Link", str)


@attrs.frozen(kw_only=True)
class _RecordBody:
    """``data`` of record-info, field by field as the vendor names them."""

    task_id: _Text | None = None
    param_json: _Object | None = None
    response: _Anything | None = None
    complete_time: _Moment | None = None
    create_time: _Moment | None = None
    success_flag: _Anything | None = None
    error_code: _Number | None = None
    error_message: _Text | None = None


@attrs.frozen(kw_only=True)
class _LinksBody:
    """Where the pictures are: ``response`` of a record, or the record itself."""

    origin_image_url: _Link | None = None
    result_image_url: _Link | None = None
    result_urls: _Anything | None = None


def _record(response: WireResponse, data: dict[str, Any], asked: TaskId) -> TaskRecord:
    body = _converter.structure(data, _RecordBody)
    if body.task_id is not None and TaskId(body.task_id) != asked:
        raise _unexpected(response, "record-info answered with the record of another task", reading=True)
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
        params=body.param_json,
        raw=data,
    )


def _status(flag: object) -> tuple[TaskStatus, object]:
    """A missing flag means still generating; an unknown one too, but it is shown."""
    if flag is None or flag == "":
        return TaskStatus.GENERATING, None
    number = _whole_number(flag)
    try:
        return TaskStatus(-1 if number is None else number), None
    except ValueError:
        return TaskStatus.GENERATING, flag


def _links(response: object, data: dict[str, Any]) -> tuple[str | None, str | None]:
    """Find (origin, result): in ``response`` (object, JSON string, bare URL), else in the record itself."""
    if isinstance(response, str) and _link(response):
        return None, _link(response)
    inner = _converter.structure(_object(response) or {}, _LinksBody)
    outer = _converter.structure(data, _LinksBody)
    listed: object = inner.result_urls
    links = map(_link, listed) if isinstance(listed, list) else iter(())
    return (
        inner.origin_image_url or outer.origin_image_url,
        inner.result_image_url or outer.result_image_url or next(filter(None, links), None),
    )


def _text(value: object) -> _Text | None:
    """A string with something in it; the literal ``"null"`` some services send is nothing."""
    if not isinstance(value, str) or value.strip().lower() in {"", "null"}:
        return None
    return _Text(value.strip())


def _task_id(value: object) -> TaskId | None:
    text = _text(value)
    return TaskId(text) if text and len(text) <= _EXCERPT and text.isprintable() else None


def _whole_number(value: object) -> _Number | None:
    """An integer, an integral float or a string of digits; never a bool."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = float(value.strip()[:18])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return _Number(int(value)) if value == int(value) else None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _moment(value: object) -> _Moment | None:
    """Epoch milliseconds or seconds, ISO 8601, ``YYYY-MM-DD HH:MM:SS``; without offset it is UTC."""
    number = _whole_number(value)
    try:
        if number is not None:
            seconds = number / 1000 if number >= _LARGEST_SECONDS else number
            return _Moment(datetime.fromtimestamp(seconds, UTC))
        moment = datetime.fromisoformat(_text(value) or "")
        return _Moment(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))
    except (OverflowError, OSError, ValueError):
        return None


def _object(value: object) -> _Object | None:
    """A JSON object, or a string that holds one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return _Object(value) if isinstance(value, dict) else None


def _link(value: object) -> _Link | None:
    """An http(s) URL; an empty string is none."""
    text = _text(value)
    try:
        return None if text is None else _Link(check_http_url(text))
    except InvalidInput:
        return None


_converter = _make_converter()
