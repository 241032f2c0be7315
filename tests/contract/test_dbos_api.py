"""The public API of DBOS that the engine uses: a release that lacks a part fails here, not in a worker."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import pytest

dbos = pytest.importorskip("dbos", reason="the extra engine is not installed")

LISTED = {"load_input", "load_output", "limit", "name", "queue_name", "status", "workflow_id_prefix"}

CALLS: dict[str, set[str]] = {
    "DBOS.workflow": {"name", "max_recovery_attempts"},
    "DBOS.listen_queues": {"queues"},
    "DBOS.launch": set(),
    "DBOS.destroy": set(),
    "DBOS.migrate": {"system_database_url"},
    "DBOS.register_queue_async": {"name", "worker_concurrency", "polling_interval_sec", "on_conflict"},
    "DBOS.retrieve_queue_async": {"name"},
    "DBOSClient": {"system_database_url", "lazy"},
    "DBOSClient.destroy": set(),
    "DBOSClient.enqueue_async": {"options", "args"},
    "DBOSClient.enqueue_in_transaction": {"conn_or_session", "options", "args"},
    "DBOSClient.list_workflows_async": LISTED | {"executor_id", "completed_before"},
    "DBOSClient.resume_workflows_async": {"workflow_ids", "queue_name"},
    "DBOSClient.cancel_workflows_async": {"workflow_ids"},
    "DBOSClient.delete_workflows_async": {"workflow_ids"},
}
"""What is called, with the parameters that are given."""


def part(path: str) -> Any:
    found: Any = dbos
    for name in path.split("."):
        found = inspect.getattr_static(found, name) if inspect.isclass(found) else getattr(found, name)
        found = found.__func__ if isinstance(found, classmethod) else found
    return found


@pytest.mark.parametrize("path", CALLS)
def test_calls_have_the_parameters_that_are_given(path: str) -> None:
    """Each of them is public."""
    assert set(inspect.signature(part(path)).parameters) >= CALLS[path]


def test_values_have_the_fields_that_are_used() -> None:
    """Options of a workflow, settings of an instance, and what a list holds."""
    options = {"workflow_name", "queue_name", "workflow_id", "priority"}
    assert set(dbos.EnqueueOptions.__annotations__) >= options
    settings = {"name", "system_database_url", "executor_id", "application_version", "log_level"}
    assert set(dbos.DBOSConfig.__annotations__) >= settings | {"max_executor_threads"}
    assert set(dbos.WorkflowStatus.__annotations__) >= {"workflow_id", "queue_name"}
    assert {"PENDING", "ENQUEUED", "SUCCESS", "ERROR", "CANCELLED"} <= {
        status.value for status in dbos.WorkflowStatusString
    }
    assert issubclass(dbos.error.DBOSException, Exception)
    assert isinstance(dbos.DBOS.executor_id, str)


def test_the_major_release_is_the_one_that_is_pinned() -> None:
    """DBOS renames parts of its API in major releases."""
    assert version("dbos").split(".")[0] == "3"
