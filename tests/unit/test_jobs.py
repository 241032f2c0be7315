"""Submits and answers of the jobs API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flux_async import Echo, EditRequest, GenerateRequest, InvalidInput, Model
from flux_async.api import webhooks
from flux_async.api.echo import compare, is_of_attempt
from flux_async.api.envelope import WireResponse
from flux_async.api.jobs import (
    build_status,
    build_submit,
    is_for_task,
    parse_status,
    parse_submit,
)
from flux_async.api.parsing import amount
from flux_async.api.stored_requests import store_request
from tests.support.samples import TASK, check_sample, samples_in

pytestmark = pytest.mark.usefixtures("parser")

IMAGE = "https://example.com/a.jpg"
WORDS = "Remove all text from this image while preserving the background"
PROMPT = {"prompt": WORDS}


def read(phase: str, response: WireResponse) -> Any:
    """Give the answer to the parser of its phase."""
    return parse_submit(response) if phase == "submit" else parse_status(response, TASK)


@pytest.mark.parametrize("path", samples_in("jobs"), ids=lambda path: path.stem)
def test_each_sample_is_read_as_its_file_expects(path: Path) -> None:
    """Each answer becomes the value or the error that its file expects."""
    check_sample(path, read)


# --- submits ----------------------------------------------------------------------------------------------

SUBMITS: dict[Model, tuple[dict[str, Any], dict[str, Any]]] = {
    # The options of a request that removes text, and the `input` that is sent besides the prompt.
    Model.PRO: ({}, {"enable_translation": False, "input_image": IMAGE}),
    Model.NANO_BANANA_EDIT: (
        {"output_format": "png"},
        {"image_urls": [IMAGE], "aspect_ratio": "auto", "output_format": "png"},
    ),
    Model.NANO_BANANA_2_LITE: ({}, {"image_urls": [IMAGE], "aspect_ratio": "auto"}),
    Model.NANO_BANANA_2: ({}, {"image_input": [IMAGE], "aspect_ratio": "auto", "resolution": "1K"}),
    Model.QWEN_2_EDIT: ({"aspect_ratio": "4:3"}, {"image_url": IMAGE, "image_size": "4:3"}),
    Model.FLUX_2_PRO: (
        {"aspect_ratio": "1:1"},
        {"input_urls": [IMAGE], "aspect_ratio": "1:1", "resolution": "1K"},
    ),
    Model.SEEDREAM_4_5_EDIT: (
        {"aspect_ratio": "3:4"},
        {"image_urls": [IMAGE], "aspect_ratio": "3:4", "quality": "basic"},
    ),
    Model.SEEDREAM_5_LITE: (
        {"aspect_ratio": "16:9"},
        {"image_urls": [IMAGE], "aspect_ratio": "16:9", "quality": "basic"},
    ),
    Model.GPT_IMAGE_2_5_FLARE: ({}, {"input_urls": [IMAGE]}),
}


@pytest.mark.parametrize("model", list(SUBMITS))
def test_the_submit_of_each_model(model: Model) -> None:
    """The image has the model's own field; a field that the model needs is there, as set or as ``auto``."""
    options, expected = SUBMITS[model]
    wire = build_submit(store_request(EditRequest.text_removal(IMAGE, model=model, **options)))
    assert (wire.method, wire.path) == ("POST", "/api/v1/jobs/createTask")
    wire_id = "flux1-kontext" if model is Model.PRO else model.value
    assert json.loads(wire.body or b"") == {"model": wire_id, "input": PROMPT | expected}


def test_a_submit_of_all_options() -> None:
    """They are in ``input`` by their Python names; the callback address is beside it."""
    request = GenerateRequest(
        prompt="A boat",
        aspect_ratio="21:9",
        output_format="png",
        enable_translation=True,
        prompt_upsampling=True,
        safety_tolerance=6,
        upload_cn=False,
        watermark="ours",
        callback_url="https://ours.example/old",
    )
    body = json.loads(build_submit(store_request(request), "https://ours.example/new").body or b"")
    assert body == {
        "model": "flux1-kontext",
        "callBackUrl": "https://ours.example/new",
        "input": {
            "prompt": "A boat",
            "aspect_ratio": "21:9",
            "output_format": "png",
            "enable_translation": True,
            "prompt_upsampling": True,
            "safety_tolerance": 6,
            "upload_cn": False,
            "watermark": "ours",
        },
    }


def test_an_aspect_ratio_that_the_api_does_not_list_is_refused() -> None:
    """Before anything is sent; the kontext API has it."""
    stored = store_request(EditRequest.text_removal(IMAGE, aspect_ratio="16:21"))
    with pytest.raises(
        InvalidInput, match=r"flux-kontext-pro over the jobs API has the aspect ratios 21:9, .*, not 16:21\."
    ):
        build_submit(stored)


def test_max_is_not_submitted() -> None:
    """Nothing in this API chooses it, and Pro is not what was asked for."""
    with pytest.raises(InvalidInput, match="jobs API does not have the model flux-kontext-max: "):
        build_submit(store_request(EditRequest.text_removal(IMAGE, model="flux-kontext-max")))


def test_a_poll_is_a_get() -> None:
    """With the id of the task."""
    wire = build_status(TASK)
    assert (wire.path, dict(wire.query)) == ("/api/v1/jobs/recordInfo", {"taskId": TASK})


# --- records ----------------------------------------------------------------------------------------------


def answer(data: object, code: int = 200) -> WireResponse:
    return WireResponse(status=200, body=json.dumps({"code": code, "msg": "x", "data": data}).encode())


def test_an_answer_of_another_task_is_detected() -> None:
    """Over a kept connection."""
    assert is_for_task(answer({"taskId": TASK}), TASK)
    assert not is_for_task(answer({"taskId": "0" * 32}), TASK)
    assert is_for_task(answer(None, 422), TASK)


def record_of(sent: Any, **changes: Any) -> Any:
    """Return what a record shows of a submit, of which some fields were changed on the way."""
    param = {**sent, "input": json.dumps({**sent["input"], **changes})}
    return parse_status(answer({"taskId": TASK, "state": "success", "param": json.dumps(param)}), TASK).params


@pytest.mark.parametrize("model", [model for model in Model if "jobs" in model.row.apis])
def test_extras_and_lists_are_no_contradiction(model: Model) -> None:
    """What the API needs besides the request confirms it; another image or prompt does not."""
    needed: Any = dict.fromkeys(model.row.required, "4:3")
    stored = store_request(EditRequest.text_removal(IMAGE, model=model, **needed))
    sent = json.loads(build_submit(stored).body or b"")
    field = model.row.apis["jobs"].image_field
    for same in ({}, {field: IMAGE}, {field: [IMAGE]}, {"nsfw_checker": False}):
        compared = compare(record_of(sent, **same), stored)
        assert (compared.echo, compared.is_verbatim, compared.rest_is_same) == (Echo.CONFIRMED, True, True)
    other = "https://example.com/b.jpg"
    for changed in ({field: other}, {field: [IMAGE, other]}, {"prompt": "Make it blue"}):
        assert compare(record_of(sent, **changed), stored).echo is Echo.UNRECOGNISED
    assert compare(record_of({**sent, "model": "another"}), stored).is_other_model


def test_the_submit_of_an_attempt_is_recognised_by_its_callback_address() -> None:
    """The address is beside ``input``, and is compared as in the kontext API."""
    stored = store_request(EditRequest.text_removal(IMAGE))
    sent = json.loads(build_submit(stored, "https://ours.example/?c=abc").body or b"")
    assert is_of_attempt(record_of(sent), stored, "abc") is True
    assert is_of_attempt(record_of(sent), stored, "def") is False
    assert is_of_attempt(record_of(sent), stored) is True


@pytest.mark.parametrize(
    ("value", "credits_"),
    [
        *((5, 5.0), (5.6, 5.6), ("5.6", 5.6), (" 8 ", 8.0), (0, 0.0)),
        *((None, None), ("", None), ("-5", None), (-0.5, None), (True, None), ("5,6", None), ("1e3", None)),
        *((float("nan"), None), (float("inf"), None), ([5], None)),
        *((1e9, 1e9), (1e308, None)),
    ],
    ids=repr,
)
def test_credits_are_a_number_or_a_string_of_one(value: object, credits_: float | None) -> None:
    """Nothing else, never below 0, and never so large that a sum of them is infinite."""
    assert amount(value) == credits_


# --- callbacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "state", "more"),
    [
        (200, "success", {"resultJson": '{"resultUrls":["https://files.example/r.png"]}', "failCode": None}),
        (501, "fail", {"resultJson": None, "failCode": "501", "failMsg": "the model failed"}),
    ],
    ids=["success", "failure"],
)
def test_a_callback_names_its_task(code: int, state: str, more: dict[str, Any]) -> None:
    """The documented body, signed as ``taskId.timestamp``; its content is not read."""
    data = {"taskId": TASK, "model": "flux1-kontext", "state": state, "param": "{}", "costTime": 16}
    data |= {"completeTime": 2, "createTime": 1, "updateTime": 2, "creditsConsumed": 5, **more}
    body = json.dumps({"code": code, "msg": "Playground task ended.", "data": data}).encode()
    headers = webhooks.sign(TASK, "key", at=1_790_000_000)
    webhooks.verify(headers, TASK, "key", now=1_790_000_001)
    event = webhooks.parse(body)
    assert (event.task_id, event.code) == (TASK, code)
