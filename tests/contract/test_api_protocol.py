"""Requirements of every vendor API, so that client and batch work over each in the same way.

A new API needs its module in ``load_api``, its models in the table, and its answers in ``ANSWERS``.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any, get_args

import attrs
import pytest

from flux_async import (
    Charge,
    EditRequest,
    FluxError,
    GenerateRequest,
    InsufficientCreditsError,
    InvalidInput,
    LocalImage,
    Model,
    NotFoundError,
    TaskId,
    TaskStatus,
    UnexpectedResponse,
)
from flux_async.api import Api, load_api, webhooks
from flux_async.api.echo import compare
from flux_async.api.envelope import Host, WireResponse
from flux_async.api.models_table import ApiName
from flux_async.api.parsing import image_of
from flux_async.api.stored_requests import store_request, with_input
from flux_async.models import Echo

TASK = TaskId("c0d0c0d0c0d0c0d0c0d0c0d0c0d0c0d0")
OTHER = TaskId("0d0c0d0c0d0c0d0c0d0c0d0c0d0c0d0c")
IMAGE = "https://example.com/a b.jpg?x=ü".replace(" ", "%20")
RESULT = "https://files.example/result.png"
CALLBACK = "https://ours.example/hook?c=0123456789abcdef0123456789abcdef"
APIS: tuple[ApiName, ...] = get_args(ApiName)


@attrs.frozen
class Answers:
    """Answers of one API, as JSON; ``task`` is the task's id.

    Attributes:
        accepted: To a submit.
        at_work: To a poll of a task that has no end yet.
        succeeded: To a poll of a task whose image is at ``RESULT``; ``sent`` is the body of its submit.
        failed: To a poll of a task that ended without an image.
        unknown: To a poll of a task that does not exist.
        callback: The body of a callback.
    """

    accepted: Any
    at_work: Any
    succeeded: Any
    failed: Any
    unknown: Any
    callback: Any


def _data(data: object, code: int = 200) -> dict[str, object]:
    return {"code": code, "msg": "success", "data": data}


ANSWERS: dict[ApiName, Answers] = {
    "kontext": Answers(
        accepted=lambda task: _data({"taskId": task}),
        at_work=lambda task: _data({"taskId": task, "successFlag": 0, "createTime": 1_790_000_000_000}),
        succeeded=lambda task, sent: _data(
            {
                "taskId": task,
                "paramJson": json.dumps(sent),
                "createTime": 1_790_000_000_000,
                "completeTime": 1_790_000_010_000,
                "successFlag": 1,
                "response": {"resultImageUrl": RESULT},
            }
        ),
        failed=lambda task: _data({"taskId": task, "successFlag": 3, "errorCode": 500, "errorMessage": "no"}),
        unknown=lambda _: {"code": 422, "msg": "recordInfo is null", "data": None},
        callback=lambda task: _data({"taskId": task, "info": {"resultImageUrl": RESULT}}),
    ),
    "jobs": Answers(
        accepted=lambda task: _data({"taskId": task, "recordId": task}),
        at_work=lambda task: _data(
            {"taskId": task, "state": "waiting", "resultJson": "", "createTime": 1_790_000_000_000}
        ),
        succeeded=lambda task, sent: _data(
            {
                "taskId": task,
                "state": "success",
                "param": json.dumps(sent | {"input": json.dumps(sent["input"])}),
                "resultJson": json.dumps({"resultUrls": [RESULT]}),
                "createTime": 1_790_000_000_000,
                "completeTime": 1_790_000_010_000,
            }
        ),
        failed=lambda task: _data({"taskId": task, "state": "fail", "failCode": "500", "failMsg": "no"}),
        unknown=lambda _: {"code": 422, "msg": "recordInfo is null", "data": None},
        callback=lambda task: _data({"taskId": task, "state": "success", "recordId": task}),
    ),
}


def answer(body: object, status: int = 200) -> WireResponse:
    return WireResponse(status=status, body=json.dumps(body).encode())


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> Api:
    return load_api(request.param)


@pytest.fixture
def answers(api: Api) -> Answers:
    return ANSWERS[api.NAME]


def models_of(api: Api) -> list[Model]:
    return [model for model in Model if api.NAME in model.row.apis]


def test_every_api_has_a_name_models_and_answers() -> None:
    """Each API answers to its name, has a model, and is tested here."""
    assert ANSWERS.keys() == set(APIS)
    for name in APIS:
        assert name == load_api(name).NAME
        assert models_of(load_api(name))


def removal(model: Model, image: str = IMAGE, **options: Any) -> str:
    """Return the stored request that removes the text from an image with a model."""
    needed = dict.fromkeys(model.row.required, "9:16")
    return store_request(EditRequest.text_removal(image, model=model, **(needed | options)))


def sent(api: Api, body: str, callback_url: str | None = None) -> Any:
    wire = api.build_submit(body, callback_url)
    assert (wire.method, wire.host, wire.stream, wire.keep_alive) == ("POST", Host.API, None, False)
    assert PurePosixPath(wire.path).is_absolute()
    return json.loads(wire.body or b"")


def test_a_submit_carries_the_whole_request(api: Api) -> None:
    """Whatever a request sets, for each model, is in the one POST; what it does not set is not."""
    for model in models_of(api):
        plain = sent(api, removal(model))
        ratio = {"aspect_ratio": "9:16"} if "aspect_ratio" in model.row.options else {}
        full = sent(api, removal(model, prompt="Ä \U0001f600", **ratio), CALLBACK)
        assert "null" not in json.dumps(plain)
        assert IMAGE in json.dumps(plain, ensure_ascii=False)
        assert model.row.apis[api.NAME].model in json.dumps(plain)
        assert CALLBACK not in json.dumps(plain)
        for value in (IMAGE, CALLBACK, *ratio.values(), "Ä \U0001f600"):
            assert value in json.dumps(full, ensure_ascii=False)


def test_a_request_without_image_can_be_submitted(api: Api) -> None:
    """Words alone make a submit, too."""
    assert "A lighthouse" in json.dumps(sent(api, store_request(GenerateRequest(prompt="A lighthouse"))))


def test_the_same_request_is_the_same_submit(api: Api) -> None:
    """A submit is a function of the stored request and the callback address."""
    body = store_request(EditRequest.text_removal(IMAGE))
    assert api.build_submit(body, CALLBACK) == api.build_submit(body, CALLBACK)


def test_a_file_is_not_submitted_before_it_is_uploaded(api: Api) -> None:
    """The digest of a file is no address; with the address of its upload it can be submitted."""
    body = store_request(EditRequest.text_removal(LocalImage(sha256="a" * 64)))
    with pytest.raises(InvalidInput, match="not been uploaded"):
        api.build_submit(body)
    assert IMAGE in json.dumps(sent(api, with_input(body, IMAGE)), ensure_ascii=False)


def test_a_model_that_the_api_does_not_have_is_refused(api: Api) -> None:
    """Before anything is sent: a journal may hold a model of another API or release."""
    body = json.dumps({"prompt": "x", "model": "another-model"})
    with pytest.raises(InvalidInput, match=f"{api.NAME} API does not have the model another-model"):
        api.build_submit(body)


def test_an_accepted_submit_is_its_task_id(api: Api, answers: Answers) -> None:
    """The id is given as the vendor sent it."""
    assert api.parse_submit(answer(answers.accepted(TASK))) == TASK


def test_a_refused_submit_is_marked_as_not_charged(api: Api) -> None:
    """The table of codes decides."""
    with pytest.raises(InsufficientCreditsError) as caught:
        api.parse_submit(answer({"code": 402, "msg": "Credits insufficient", "data": None}))
    assert caught.value.charge is Charge.NO


@pytest.mark.parametrize(
    "response",
    [
        answer(_data(None)),
        answer(_data({})),
        answer(_data({"taskId": ""})),
        answer([]),
        WireResponse(status=200, body=b""),
        WireResponse(status=200, body=b'{"code":200,"data":{"taskId":"'),
        WireResponse(status=502, body=b"<html>"),
        answer({"code": 500, "msg": "Server exception", "data": None}),
        answer({"code": 402, "msg": "x", "data": {"taskId": TASK}}),
        answer({"code": 402, "msg": "x", "data": None}, status=500),
    ],
    ids=lambda response: f"{response.status}-{response.body.decode()[:40]}",
)
def test_a_submit_that_may_be_charged_is_marked(api: Api, response: WireResponse) -> None:
    """An answer that does not rule a task out leaves the charge open."""
    with pytest.raises(FluxError) as caught:
        api.parse_submit(response)
    assert caught.value.charge is Charge.MAYBE


@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_poll_names_its_task_and_sends_nothing(api: Api, *, keep_alive: bool) -> None:
    """A GET without a body; over a kept connection only where that is asked for."""
    wire = api.build_status(TASK, keep_alive=keep_alive)
    assert (wire.method, wire.host, wire.body, wire.keep_alive) == ("GET", Host.API, None, keep_alive)
    assert TASK in wire.query.values()


def test_what_is_no_task_id_is_not_polled(api: Api) -> None:
    """Refused before any request."""
    with pytest.raises(InvalidInput, match="not a task id"):
        api.build_status(TaskId("a\nb"))


def test_a_task_at_work_is_generating(api: Api, answers: Answers) -> None:
    """The poll says the same as the whole record, and when the task was created."""
    for parse in (api.parse_status, api.parse_poll):
        record = parse(answer(answers.at_work(TASK)), TASK)
        assert (record.task_id, record.status) == (TASK, TaskStatus.GENERATING)
        assert record.created_at is not None
        assert record.created_at.timestamp() == 1_790_000_000


def test_a_finished_task_has_its_image_and_the_echo_of_its_submit(api: Api, answers: Answers) -> None:
    """For each model the echo confirms the stored request, however the API spells it."""
    for model in models_of(api):
        body = removal(model)
        done = answer(answers.succeeded(TASK, sent(api, body)))
        record = api.parse_status(done, TASK)
        assert api.parse_poll(done, TASK) == record
        assert record.status is TaskStatus.SUCCESS
        assert image_of(record).result_url == RESULT
        assert compare(record.params, body).echo is Echo.CONFIRMED
        other = removal(model, "https://example.com/other.jpg")
        assert compare(record.params, other).echo is Echo.UNRECOGNISED


def test_a_failed_task_is_a_record_and_no_error(api: Api, answers: Answers) -> None:
    """The poll succeeded; what it found is a failure."""
    for parse in (api.parse_status, api.parse_poll):
        record = parse(answer(answers.failed(TASK)), TASK)
        assert record.status.is_failure
        assert record.error_message == "no"


def test_a_task_that_is_unknown_is_not_found(api: Api, answers: Answers) -> None:
    """It may not be visible yet; the error costs nothing."""
    for parse in (api.parse_status, api.parse_poll):
        with pytest.raises(NotFoundError) as caught:
            parse(answer(answers.unknown(TASK)), TASK)
        assert caught.value.charge is Charge.NO


def test_the_record_of_another_task_is_refused(api: Api, answers: Answers) -> None:
    """Also where it succeeded: its image is another's."""
    done = answers.succeeded(OTHER, sent(api, store_request(EditRequest.text_removal(IMAGE))))
    for body in (answers.at_work(OTHER), done):
        for parse in (api.parse_status, api.parse_poll):
            with pytest.raises(UnexpectedResponse) as caught:
                parse(answer(body), TASK)
            assert caught.value.charge is Charge.NO


def test_an_answer_over_a_kept_connection_is_recognised(api: Api, answers: Answers) -> None:
    """A record that names the task is its own; one that names another may be an earlier poll's."""
    assert api.is_for_task(answer(answers.at_work(TASK)), TASK)
    assert not api.is_for_task(answer(answers.at_work(OTHER)), TASK)


def test_a_callback_names_its_task(api: Api, answers: Answers) -> None:
    """One receiver reads the callbacks of every API."""
    event = webhooks.parse(json.dumps(answers.callback(TASK)).encode())
    assert (event.task_id, event.code) == (TASK, 200)
