"""What the vendor's APIs for images have in common: the answer to a submit, and how a record is opened.

A record itself has other fields in each API: ``kontext`` and ``jobs`` read it.
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
from flux_async.api.models_table import ApiName
from flux_async.api.stored_requests import stored_name
from flux_async.api_errors import NotFoundError
from flux_async.errors import Charge, shown
from flux_async.models import TaskId, TaskRecord, TaskStatus

_NO_TASK = (
    "Check the task id, and that the key belongs to the account that made it; a task of the last minute may "
    "not be visible yet. {other_api}"
)
_READERS: Mapping[Any, Callable[[object], object]] = {
    parsing.Text: parsing.text,
    parsing.WholeNumber: parsing.whole_number,
    parsing.Moment: parsing.moment,
    parsing.JsonObject: parsing.json_object,
    parsing.Link: parsing.link,
    parsing.Amount: parsing.amount,
    parsing.Raw: lambda value: value,
}
"""The reader of each kind of field."""


def make_converter(*bodies: type) -> cattrs.Converter:
    """Return the converter of bodies: the vendor's names, no coercion, None for an unknown shape."""
    converter = cattrs.Converter()
    for kind, read in _READERS.items():
        # Registered for the whole union with None: else cattrs would decide between the two at each value.
        converter.register_structure_hook_func(partial(eq, kind | None), _reading(read))
    for body in bodies:
        names = {a.name: override(rename=stored_name(a.name)) for a in attrs.fields(body)}
        converter.register_structure_hook(
            body, make_dict_structure_fn(body, converter, **cast("dict[str, Any]", names))
        )
    return converter


def _reading(read: Callable[[object], object]) -> Callable[[object, object], object]:
    return lambda value, _: read(value)


# --- submits ----------------------------------------------------------------------------------------------


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


# --- records ----------------------------------------------------------------------------------------------


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


def status_request(path: str, task_id: TaskId, *, keep_alive: bool) -> WireRequest:
    """Return the GET of a task's record."""
    query = {"taskId": parsing.check_task_id(task_id)}
    return WireRequest(method="GET", path=path, query=query, keep_alive=keep_alive)


def open_record(response: WireResponse, task_id: TaskId, api: ApiName) -> TaskRecord | dict[str, Any]:
    """Return the record as JSON, or the record of a failure in the envelope.

    A failed task is a record, not an error, also if the envelope itself has the failure (400, 408, 501).

    Raises:
        NotFoundError: No such task, or not visible yet (404, 422, ``data: null``).
        ApiError: Any other refusal; ``api/error_codes.py`` holds its meaning for a wait.
        UnexpectedResponse: No documented shape.
    """
    code, envelope = read_envelope(response)
    if code is not None and rule_for(code).poll is PollMeaning.TASK_FAILED:
        return TaskRecord(
            task_id=task_id,
            api=api,
            status=TaskStatus.GENERATE_FAILED,
            error_code=code,
            error_message=message_of(envelope) or None,
            raw=envelope,
        )
    if code is not None and rule_for(code).poll is PollMeaning.NOT_VISIBLE:
        msg = message_of(envelope)
        why = f"the API answered {code}: {msg or 'no message'}"
        raise _no_task(response, task_id, api, why, code=code, msg=msg)
    data = data_of(response, code, envelope, reading=True)
    if not data:
        raise _no_task(response, task_id, api, "the API has nothing under this id")
    if not isinstance(data, dict):
        raise unexpected(response, "The API answered with something other than a record", reading=True)
    return data


def _no_task(
    response: WireResponse, task_id: TaskId, api: ApiName, why: str, *, code: int = 404, msg: str = ""
) -> NotFoundError:
    error = NotFoundError(
        f"No task {shown(str(task_id))}: {why}.",
        advice=_NO_TASK,
        code=code,
        msg=msg,
        http_status=response.status,
        task_id=task_id,
    )
    error.api = api  # it is not known whether one API has the tasks of the other
    return error


def check_owner(response: WireResponse, data: dict[str, Any], asked: TaskId) -> None:
    """Raise if a record does not name the task: over a kept connection it may be another task's.

    Raises:
        UnexpectedResponse: It names another task or none.
    """
    named = parsing.task_id(data.get("taskId"))
    if named is None:
        raise unexpected(response, "The API answered with a record that names no task", reading=True)
    if named != asked:
        raise unexpected(response, "The API answered with the record of another task", reading=True)


def status_of_flag(flag: object) -> tuple[TaskStatus, object]:
    """Return the status of a flag, and the flag if it is unknown; missing and unknown mean generating."""
    if flag is None or flag == "":
        return TaskStatus.GENERATING, None
    number = parsing.whole_number(flag)
    try:
        return TaskStatus(-1 if number is None else number), None
    except ValueError:
        return TaskStatus.GENERATING, flag
