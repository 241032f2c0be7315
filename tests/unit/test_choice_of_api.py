"""Which of the vendor's APIs: the client's choice, and what errors and journals say of a task's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flux_async import (
    ConfigurationError,
    EditRequest,
    FluxClient,
    FluxError,
    NotFoundError,
    TaskId,
    UnclaimedTask,
)
from flux_async.api import APIS, choose_api, load_api
from flux_async.api.echo import SubmitLog
from flux_async.api.envelope import WireResponse
from flux_async.api.models_table import RETENTION_S, ApiName
from flux_async.cli.advice import error_text
from flux_async.cli.status import tasks_not_recorded
from flux_async.journal import ownership
from flux_async.journal.schema import connect


@pytest.mark.parametrize(
    ("choice", "environment", "expected"),
    [
        (None, "", "kontext"),
        (None, " jobs ", "jobs"),
        ("kontext", "jobs", "kontext"),
        ("jobs", "wrong", "jobs"),
    ],
    ids=["default", "environment", "argument", "only the argument counts"],
)
def test_the_argument_decides_then_the_environment(
    choice: str | None, environment: str, expected: ApiName
) -> None:
    """Without either it is the API of the API page."""
    assert choose_api(choice, environment) == expected


@pytest.mark.parametrize(
    ("choice", "environment", "words"),
    [
        ("job", "", "api must be kontext or jobs, not 'job'"),
        (None, "JOBS", "KIE_API must be kontext or jobs, not 'JOBS'"),
        (1, "", "api must be kontext or jobs, not 1"),
    ],
    ids=["argument", "environment", "wrong type"],
)
def test_a_wrong_word_is_refused(choice: object, environment: str, words: str) -> None:
    """The error names what was given and what there is."""
    with pytest.raises(ConfigurationError, match=words):
        choose_api(choice, environment)


def test_a_client_has_the_api_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read when the client is made, and a wrong word ends that."""
    monkeypatch.setenv("KIE_API", "jobs")
    assert FluxClient("k").api == "jobs"
    assert FluxClient("k", api="kontext").api == "kontext"
    monkeypatch.setenv("KIE_API", "unified")
    with pytest.raises(ConfigurationError, match="KIE_API must be kontext or jobs"):
        FluxClient("k")


def test_advice_names_the_api_of_a_task_that_is_not_at_the_default_one() -> None:
    """In Python and at the command line."""
    error = FluxError("It failed.", advice="You can {wait}.", task_id=TaskId("t1"))
    assert error.advice == "You can take it up again with client.wait('t1')."
    error.api = "kontext"
    assert error.advice == "You can take it up again with client.wait('t1')."
    error.api = "jobs"
    assert error.advice == "You can take it up again with client.wait('t1', api='jobs')."
    assert "`flux-async task t1 --wait --api jobs`" in error_text(error)


@pytest.mark.parametrize(
    ("api", "words"), [("kontext", "Task t1 is"), ("jobs", "Task t1 of the API jobs is")]
)
def test_a_paid_task_that_could_not_be_written_down_is_named_with_its_api(api: ApiName, words: str) -> None:
    """Only this line still names it."""
    request = EditRequest.text_removal("https://pictures.example/a.jpg")
    lines = tasks_not_recorded([UnclaimedTask(request=request, task_id=TaskId("t1"), api=api)])
    assert [line.partition(" paid")[0] for line in lines] == [words]


@pytest.mark.parametrize("name", APIS)
def test_an_api_that_has_no_such_task_names_the_other(name: ApiName) -> None:
    """It is not known whether one API can read the tasks of the other."""
    answer = WireResponse(status=200, headers={}, body=b'{"code":422,"msg":"recordInfo is null","data":null}')
    with pytest.raises(NotFoundError) as caught:
        load_api(name).parse_status(answer, TaskId("t1"))
    other = next(api for api in APIS if api != name)
    assert caught.value.api == name
    assert caught.value.advice.endswith(f"It may be a task of the API {other}: give api={other!r}.")
    assert error_text(caught.value).endswith(f"It may be a task of the API {other}: add --api {other}.")


def test_a_session_remembers_where_it_has_submitted_a_task() -> None:
    """Tasks of other processes are not known."""
    log = SubmitLog()
    assert log.is_new(TaskId("t0"), "jobs")
    assert (log.api_of(TaskId("t0")), log.api_of(TaskId("t1"))) == ("jobs", None)


def test_echoes_are_counted_for_each_api(tmp_path: Path) -> None:
    """That one API echoes requests verbatim says nothing of the other."""
    with closing(connect(tmp_path / "j.sqlite3")) as connection:
        ownership.count_image_echo(connection, "jobs")
        assert [ownership.confirmed_echoes(connection, api) for api in APIS] == [(0, 0), (0, 1)]


def test_the_schema_of_the_journal_knows_all_apis(tmp_path: Path) -> None:
    """An API that is added needs a new version of the journal."""
    assert set(RETENTION_S) == set(APIS)
    with closing(connect(tmp_path / "j.sqlite3")) as connection:
        for number, api in enumerate(APIS):
            connection.execute("INSERT INTO job (key, request, api) VALUES (?, '{}', ?)", (f"k{number}", api))
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT INTO job (key, request, api) VALUES ('k', '{}', 'other')")
