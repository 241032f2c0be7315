"""Every error of the tree is a value: it can be pickled and copied, and ends with its advice."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from flux_async import Charge, FluxError, JobKey, Scope, TaskId, TaskRecord, TaskStatus


def family(kind: type[FluxError]) -> list[type[FluxError]]:
    """Return ``kind`` and every class of the tree below it, each once."""
    below = [kind, *(grandchild for child in kind.__subclasses__() for grandchild in family(child))]
    return [k for k in dict.fromkeys(below) if k.__module__ == FluxError.__module__]


RECORD = TaskRecord(
    task_id=TaskId("task-1"),
    status=TaskStatus.GENERATE_FAILED,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    error_code=501,
    error_message="no",
    params={"prompt": "x"},
    raw={"successFlag": 3},
)
SAMPLES: dict[str, object] = {
    # A value, different from the default, for every field an error can have.
    "advice": "Do this.",
    "belongs_to": JobKey("job-2"),
    "body_excerpt": "<html>",
    "charge": Charge.YES,
    "code": 499,
    "expected": 5.0,
    "http_status": 502,
    "model": "flux-kontext-pro",
    "msg": "words",
    "price": 55.0,
    "record": RECORD,
    "refused_task_id": TaskId("task-2"),
    "retry_after_s": 7.5,
    "retryable": False,
    "scope": Scope.STOP,
    "task_id": TaskId("task-1"),
    "unknown": 7,
}
every_error = pytest.mark.parametrize("kind", family(FluxError), ids=lambda kind: kind.__name__)


def fields_of(kind: type[FluxError]) -> dict[str, Any]:
    """Return a sample value for each keyword that ``kind`` or a base of it takes."""
    names = {
        parameter.name
        for base in kind.__mro__
        if issubclass(base, FluxError) and "__init__" in vars(base)
        for parameter in inspect.signature(vars(base)["__init__"]).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return {name: SAMPLES[name] for name in names}


def seen_of(error: FluxError) -> dict[str, Any]:
    """Return everything a caller can read off ``error``: its fields and those of its bases."""
    names = [n for n in dir(error) if not n.startswith("_") and not callable(getattr(error, n))]
    return {name: getattr(error, name) for name in names}


@every_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_type_message_and_every_field(kind: type[FluxError], protocol: int) -> None:
    """An error with every field set comes back from pickle as it was."""
    error = kind("It broke.", **fields_of(kind))
    error.add_note("seen in a test")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is kind
    assert (str(back), back.args, back.__notes__) == (str(error), error.args, error.__notes__)
    assert seen_of(back) == seen_of(error)
    assert fields_of(kind).items() <= seen_of(back).items()


@every_error
def test_copy_keeps_every_field(kind: type[FluxError]) -> None:
    """A copy of an error has the fields of the original."""
    error = kind("It broke.", **fields_of(kind))
    assert seen_of(copy.copy(error)) == seen_of(error)


@every_error
def test_message_alone_is_enough(kind: type[FluxError]) -> None:
    """An error made from a message alone has a charge, a scope, no task, and survives pickle."""
    error = pickle.loads(pickle.dumps(kind("It broke.")))
    assert isinstance(error.charge, Charge)
    assert isinstance(error.scope, Scope)
    assert error.task_id is None
    assert error.message == "It broke."


@every_error
def test_messages_end_with_the_advice(kind: type[FluxError]) -> None:
    """``str(error)`` is what happened, then a sentence with the advice."""
    error = kind("It broke.")
    assert error.advice.strip()
    assert error.advice.endswith(".")
    assert str(error) == f"It broke. {error.advice}"


@every_error
def test_every_class_has_advice_of_its_own(kind: type[FluxError]) -> None:
    """No class takes over the advice of its base by neglect."""
    assert "default_advice" in vars(kind)
