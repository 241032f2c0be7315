"""Field names and shapes: models to HTTP requests, HTTP answers to models, without I/O.

Rules (API page, "Core Endpoints"; the rest was seen on the live service):

1. Nothing is coerced, and a field of an unknown shape is read as absent (``api/parsing.py``).
2. A success without what it promises (task id, result URL, balance) is an error.
3. A failed task is a record, not an error: the look at it succeeded.
4. What is not understood is kept in ``TaskRecord.raw``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from operator import eq
from typing import Any, cast

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from flux_async.api import parsing
from flux_async.api.envelope import (
    EXCERPT,
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
from flux_async.api.models_table import Model
from flux_async.errors import Charge, InvalidInput, NotFoundError, UnexpectedResponse, shown
from flux_async.models import (
    EditRequest,
    GenerateRequest,
    ImageRequest,
    ImageResult,
    LocalImage,
    TaskId,
    TaskRecord,
    TaskStatus,
)

GENERATE_PATH = "/api/v1/flux/kontext/generate"
RECORD_INFO_PATH = "/api/v1/flux/kontext/record-info"
CREDIT_PATH = "/api/v1/chat/credit"
DOWNLOAD_URL_PATH = "/api/v1/common/download-url"


# --- building ---------------------------------------------------------------------------------------------


def _wire_name(field: str) -> str:
    if field == "callback_url":
        return "callBackUrl"  # the capital B is the vendor's
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


_NO_TASK = (
    "Check the task id, and that the key is of the account that made it; a task of the last minute may not "
    "be visible yet."
)
_OUR_NAMES = {
    kind: {_wire_name(a.name): a.name for a in attrs.fields(kind)} for kind in (GenerateRequest, EditRequest)
}


_READERS: Mapping[Any, Callable[[object], object]] = {
    parsing.Text: parsing.text,
    parsing.WholeNumber: parsing.whole_number,
    parsing.Moment: parsing.moment,
    parsing.JsonObject: parsing.json_object,
    parsing.Link: parsing.link,
    parsing.Raw: lambda value: value,
}
"""How each kind of field is read."""


def _make_converter() -> cattrs.Converter:
    """The one converter: the vendor's names, no coercion, absent for what is not understood."""
    converter = cattrs.Converter()
    for kind in (GenerateRequest, EditRequest):
        names = {a.name: override(rename=_wire_name(a.name)) for a in attrs.fields(kind)}
        converter.register_unstructure_hook(
            kind, make_dict_unstructure_fn(kind, converter, **cast("dict[str, Any]", names))
        )
    converter.register_unstructure_hook(LocalImage, lambda image: image.reference)
    for kind, read in _READERS.items():
        # Of "or None" as a whole: cattrs would find out at each value which of the two it is to be.
        converter.register_structure_hook_func(partial(eq, kind | None), _reading(read))
    for body in (_RecordBody, _LinksBody):
        names = {a.name: override(rename=_wire_name(a.name)) for a in attrs.fields(body)}
        converter.register_structure_hook(
            body, make_dict_structure_fn(body, converter, **cast("dict[str, Any]", names))
        )
    return converter


def _reading(read: Callable[[object], object]) -> Callable[[object, object], object]:
    return lambda value, _: read(value)


def build_submit(request: ImageRequest) -> WireRequest:
    """POST generate (API page, "Image Generation/Editing"). Unset fields are left out, never null.

    Raises:
        InvalidInput: It is about a file that has not been uploaded.
    """
    if isinstance(request, EditRequest) and isinstance(request.input_image, LocalImage):
        raise InvalidInput(f"{request.input_image} has not been uploaded.", advice="Upload it first.")
    return WireRequest(method="POST", path=GENERATE_PATH, body=store_request(request).encode())


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def store_request(request: ImageRequest) -> str:
    """Return a request as a journal keeps it: the body of its submit, with a file named by its content.

    Raises:
        InvalidInput: It is about a file that has not been read.
    """
    sent = {name: value for name, value in _converter.unstructure(request).items() if value is not None}
    return _ENCODER.encode(sent)


def with_input(body: str, input_url: str | None) -> str:
    """Return a stored request as it is sent, with the address its picture has been uploaded to."""
    if input_url is None:
        return body
    sent = json.loads(body) | {"inputImage": input_url}
    return json.dumps(sent, separators=(",", ":"), ensure_ascii=False)


def build_stored_submit(body: str, callback_url: str | None = None) -> WireRequest:
    """POST generate with the body of an earlier :func:`store_request`, and the address of its callback."""
    if callback_url is not None:
        field = json.dumps({_wire_name("callback_url"): callback_url}, separators=(",", ":"))
        body = f"{body[:-1]},{field[1:]}"
    return WireRequest(method="POST", path=GENERATE_PATH, body=body.encode())


def read_submit(body: str) -> ImageRequest:
    """Read back the body of an earlier :func:`store_request`; of a file only the content is told.

    Raises:
        InvalidInput: Another release wrote it, with fields that are unknown here.
    """
    try:
        sent: dict[str, Any] = json.loads(body)
        kind = EditRequest if "inputImage" in sent else GenerateRequest
        names = _OUR_NAMES[kind]
        given = {names[name]: value for name, value in sent.items()}
        if kind is EditRequest:
            given["input_image"] = LocalImage.of_reference(str(sent["inputImage"])) or sent["inputImage"]
        return kind(**given)
    except (KeyError, TypeError, ValueError) as bad:
        raise InvalidInput(f"A stored request cannot be read: {shown(bad)}.") from None


def read_model(body: str) -> Model:
    """Read only the model from the body of an earlier :func:`store_request`."""
    return Model(json.loads(body)["model"])


def read_image(body: str) -> str:
    """Read only the picture's address from the body of an earlier :func:`store_request`; it may have none."""
    return str(json.loads(body).get("inputImage", ""))


def build_record_info(task_id: TaskId, *, keep_alive: bool = False) -> WireRequest:
    """GET record-info (API page, "Task Status Query").

    Of an answer over a kept connection ask :func:`is_for_task` first.
    """
    return WireRequest(
        method="GET",
        path=RECORD_INFO_PATH,
        query={"taskId": check_task_id(task_id)},
        keep_alive=keep_alive,
    )


def is_for_task(response: WireResponse, task_id: TaskId) -> bool:
    """Return False where an answer over a kept connection may belong to an earlier poll of another task.

    A record that does not name the task, or an error that ends a task and names none. Other errors end no
    task: the next poll replaces them.
    """
    if task_id.encode() in response.body:
        return True
    code, envelope = read_envelope(response)
    if code is None:
        return True
    ends_task = rule_for(code).poll is PollMeaning.TASK_FAILED
    return not ends_task and not (code == OK and isinstance(envelope.get("data"), dict))


def build_credit() -> WireRequest:
    """GET the balance (vendor's common API, "Get account credits")."""
    return WireRequest(method="GET", path=CREDIT_PATH)


def build_download_url(url: str) -> WireRequest:
    """POST download-url: ask for a fresh link to a result (vendor's common API, "Get download URL")."""
    body = json.dumps({"url": url}, separators=(",", ":"), ensure_ascii=False)
    return WireRequest(method="POST", path=DOWNLOAD_URL_PATH, body=body.encode())


def check_task_id(task_id: object) -> TaskId:
    """Return ``task_id`` if it can be one, else raise :class:`InvalidInput`."""
    clean = parsing.task_id(task_id) if isinstance(task_id, str) else None
    if clean is None:
        raise InvalidInput(f"{shown(task_id)} is not a task id.", advice="Give the id that submit returned.")
    return clean


# --- reading ----------------------------------------------------------------------------------------------


def parse_submit(response: WireResponse) -> TaskId:
    """Read the answer to a submit: the id of the task that was made and charged.

    Raises:
        ApiError: The vendor refused; ``.charge`` and ``.scope`` say what that means.
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
    """A refusal counts as "not charged" only if nothing else in the answer speaks of a task or a crash."""
    if code is None:
        return
    if task_id is not None:
        error = unexpected(response, f"The API answered {code} and named a task all the same")
        error.task_id = task_id
        raise error
    if response.status >= SERVER_ERRORS and rule_for(code).charge is Charge.NO:
        raise unexpected(response, f"The API answered {code}, but with a server error")


def parse_record(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Read the answer to record-info for ``task_id``.

    A failed task is a record, not an error, also where the envelope itself carries the failure
    (400, 408, 501).

    Raises:
        NotFoundError: No such task, or not visible yet (404, 422, ``data: null``).
        ApiError: Any other refusal; ``protocol.codes`` says what it means for a wait.
        UnexpectedResponse: No documented shape, or a record of another task or of none.
    """
    found = _open_record(response, task_id)
    return found if isinstance(found, TaskRecord) else _record(response, found, task_id)


def parse_look(response: WireResponse, task_id: TaskId) -> TaskRecord:
    """Read the answer to record-info as a wait needs it; raises what :func:`parse_record` raises.

    Most looks find the task at work, and such a record is soon thrown away: of it only the flag, the id and
    the time of creation are read, the rest stays in ``raw``.
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
    """Return the record as JSON, or already as what a failure in the envelope means."""
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
        raise _no_task(response, task_id, "record-info holds nothing under this id")
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


def parse_credit(response: WireResponse) -> float:
    """Read the balance in credits: a bare number, in reality a float.

    Raises:
        ApiError: The vendor refused.
        UnexpectedResponse: No finite number.
    """
    data = open_envelope(response, reading=True)
    number = parsing.finite(data)
    if number is None:
        raise unexpected(response, "The balance is not a number", reading=True)
    return number


def parse_download_url(response: WireResponse) -> str:
    """Read the answer to download-url: a bare string, a link that lets anybody in for 20 minutes.

    Raises:
        ApiError: The vendor refused; 422 where it does not know the file.
        UnexpectedResponse: No link; the answer is not quoted, as it may hold one all the same.
    """
    link = parsing.link(open_envelope(response, reading=True))
    if link is None:
        error = unexpected(response, "download-url answered without a link", reading=True)
        error.body_excerpt = ""
        raise error
    return link


def image_of(record: TaskRecord) -> ImageResult:
    """Return the picture of a SUCCESS record.

    Raises:
        UnexpectedResponse: The record has no usable result URL; the task was paid.
    """
    if record.result_url is None:
        raise UnexpectedResponse(
            f"Task {record.task_id} reports success without a result URL.",
            advice="It is paid: look at it at kie.ai/logs, or {wait}.",
            charge=Charge.YES,
            task_id=record.task_id,
            body_excerpt=str(record.raw)[:EXCERPT],
        )
    return ImageResult(
        task_id=record.task_id, result_url=record.result_url, origin_url=record.origin_url, record=record
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
    """Where the pictures are: ``response`` of a record, or the record itself."""

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
        params=body.param_json,
        raw=data,
    )


def _check_owner(response: WireResponse, data: dict[str, Any], asked: TaskId) -> None:
    """Refuse a record that does not name the task: over a kept connection it may be another task's."""
    named = parsing.task_id(data.get("taskId"))
    if named is None:
        raise unexpected(response, "record-info answered with a record that names no task", reading=True)
    if named != asked:
        raise unexpected(response, "record-info answered with the record of another task", reading=True)


def _status(flag: object) -> tuple[TaskStatus, object]:
    """A missing flag means still generating; an unknown one too, but it is shown."""
    if flag is None or flag == "":
        return TaskStatus.GENERATING, None
    number = parsing.whole_number(flag)
    try:
        return TaskStatus(-1 if number is None else number), None
    except ValueError:
        return TaskStatus.GENERATING, flag


def _links(response: object, data: dict[str, Any]) -> tuple[str | None, str | None]:
    """Find (origin, result): in ``response`` (object, JSON string, bare URL), else in the record itself."""
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
