"""The vendor's answers and the values that are read from them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async import (
    Charge,
    Echo,
    EditRequest,
    FluxError,
    GenerateRequest,
    InvalidInput,
    InvalidRequestError,
    Model,
    NotFoundError,
    TaskId,
    TaskStatus,
    UnexpectedResponse,
)
from flux_async.api.common_api import build_credit, build_download_url, parse_credit, parse_download_url
from flux_async.api.echo import compare
from flux_async.api.envelope import WireResponse
from flux_async.api.kontext import (
    build_status,
    build_submit,
    is_for_task,
    parse_poll,
    parse_status,
    parse_submit,
)
from flux_async.api.models_table import ModelRow, OnWire
from flux_async.api.parsing import image_of
from flux_async.api.stored_requests import store_request
from tests.support.samples import TASK, check_sample, samples_in

pytestmark = pytest.mark.usefixtures("parser")

SAMPLES = samples_in("wire")
QUIRKS_OF_ANSWERS = {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 18, 19, 20, 21, 22}


def read(phase: str, response: WireResponse) -> Any:
    """Give the answer to the parser of its phase."""
    if phase == "submit":
        return parse_submit(response)
    return parse_status(response, TASK) if phase == "record" else parse_credit(response)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_each_sample_is_read_as_its_file_expects(path: Path) -> None:
    """Each recorded answer becomes the value or the error that its file expects."""
    check_sample(path, read)


def test_every_quirk_of_an_answer_has_a_sample() -> None:
    """No numbered quirk of the vendor's answers is without a sample file."""
    assert {json.loads(path.read_text())["quirk"] for path in SAMPLES} == QUIRKS_OF_ANSWERS


def test_image_keeps_the_record_it_was_read_from() -> None:
    """A finished image has its URLs and its record."""
    body = {
        "code": 200,
        "data": {"taskId": TASK, "successFlag": 1, "response": {"resultImageUrl": "https://h/r.jpg"}},
    }
    record = parse_status(WireResponse(status=200, body=json.dumps(body).encode()), TASK)
    image = image_of(record)
    assert (image.task_id, image.result_url, image.origin_url) == (TASK, "https://h/r.jpg", None)
    assert image.record is record


def test_submit_leaves_unset_fields_out() -> None:
    """Text removal sends the prompt, the model, the image and no translation, and nothing else."""
    wire = build_submit(store_request(EditRequest.text_removal("https://example.com/a.jpg")))
    assert (wire.method, wire.path) == ("POST", "/api/v1/flux/kontext/generate")
    assert json.loads(wire.body or b"") == {
        "prompt": "Remove all text from this image while preserving the background",
        "model": "flux-kontext-pro",
        "enableTranslation": False,
        "inputImage": "https://example.com/a.jpg",
    }


def test_submit_uses_the_vendors_names() -> None:
    """Every field a caller can set goes out under the vendor's own name."""
    request = GenerateRequest(
        prompt="Ein Leuchtturm",
        model="flux-kontext-max",
        aspect_ratio="16:21",
        output_format="png",
        enable_translation=True,
        prompt_upsampling=False,
        safety_tolerance=6,
        upload_cn=False,
        watermark="w1",
        callback_url="https://example.com/hook",
    )
    assert json.loads(build_submit(store_request(request)).body or b"") == {
        "prompt": "Ein Leuchtturm",
        "model": "flux-kontext-max",
        "aspectRatio": "16:21",
        "outputFormat": "png",
        "enableTranslation": True,
        "promptUpsampling": False,
        "safetyTolerance": 6,
        "uploadCn": False,
        "watermark": "w1",
        "callBackUrl": "https://example.com/hook",
    }


def test_polls_are_gets() -> None:
    """record-info and the balance are read with GET and without a body."""
    poll = build_status(TASK)
    assert (poll.method, poll.path, dict(poll.query), poll.body) == (
        "GET",
        "/api/v1/flux/kontext/record-info",
        {"taskId": TASK},
        None,
    )
    assert (build_credit().method, build_credit().path) == ("GET", "/api/v1/chat/credit")


@pytest.mark.parametrize("bad", ["", "  ", "a\nb", "x" * 201, None, 7])
def test_rubbish_is_no_task_id(bad: Any) -> None:
    """What cannot be a task id is refused before any request."""
    with pytest.raises(InvalidInput, match="is not a task id"):
        build_status(bad)


NAMES = [
    *("code", "msg", "message", "data", "taskId", "successFlag", "response", "resultImageUrl", "resultUrls"),
    *("createTime", "completeTime", "paramJson", "errorCode", "errorMessage"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["200", "1", "https://h/x.jpg", '{"resultImageUrl":"https://h/x.jpg"}', "null"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(NAMES) | st.text(max_size=5),
            inner,
            max_size=8,
        )
    ),
    max_leaves=25,
)
ENVELOPES = st.fixed_dictionaries({"code": st.just(200) | JSON, "data": JSON}, optional={"msg": JSON})


@given(
    st.sampled_from(["submit", "record", "credit"]),
    st.integers(100, 599),
    st.binary(max_size=200) | (JSON | ENVELOPES).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["", "7", "-1", "soon", "9" * 5000, "Sun, 22 Nov 2026 13:00:30 GMT"]),
)
def test_only_flux_errors_come_out(phase: str, status: int, body: bytes, retry_after: str) -> None:
    """Whatever arrives, a parser returns a value or raises a FluxError."""
    response = WireResponse(status=status, headers={"retry-after": retry_after}, body=body)
    with contextlib.suppress(FluxError):
        assert read(phase, response) is not None


@pytest.mark.parametrize("phase", ["submit", "record", "credit"])
@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"a":' * 200_000, b"9" * 100_000, b'{"code":' + b"9" * 5000 + b"}", b"\xff\xfe\x00"],
    ids=["deep list", "deep object", "long number", "long code", "odd bytes"],
)
def test_hostile_json_is_no_crash(phase: str, body: bytes) -> None:
    """Nesting and numbers that break JSON readers are just another unreadable answer."""
    with pytest.raises(FluxError):
        read(phase, WireResponse(status=200, body=body))


def test_a_poll_reads_a_failure_in_the_envelope_as_a_failed_task() -> None:
    """The record of a wait is the same as that of a status request."""
    response = WireResponse(status=200, body=b'{"code":501,"msg":"failed"}')
    record = parse_poll(response, TASK)
    assert record == parse_status(response, TASK)
    assert (record.status, record.error_code) == (TaskStatus.GENERATE_FAILED, 501)


def test_a_missing_record_names_its_task() -> None:
    """The error for a record that is not there carries the id that was asked for."""
    with pytest.raises(NotFoundError) as caught:
        parse_status(WireResponse(status=200, body=b'{"code":200,"msg":"success","data":null}'), TASK)
    assert caught.value.task_id == TASK


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"code":422,"msg":"The record does not exist"}',
            "the API answered 422: The record does not exist.",
        ),
        (b'{"code":404}', "the API answered 404: no message."),
        (b'{"code":200,"data":null}', "the API has nothing under this id."),
    ],
)
def test_the_error_of_an_unknown_task_quotes_the_api(body: bytes, said: str) -> None:
    """In every form of the vendor's answer the error first says that the task does not exist."""
    with pytest.raises(NotFoundError) as caught:
        parse_status(WireResponse(status=200, body=body), TaskId("nope"))
    assert caught.value.message == f"No task 'nope': {said}"
    assert "task id" in caught.value.advice


@pytest.mark.parametrize("number", [0, -5, True, 1.5, 10**200])
def test_what_is_no_number_of_a_task(number: Any) -> None:
    """Only a whole number above zero, of bounded length, is an id."""
    body = json.dumps({"code": 200, "data": {"taskId": number}}).encode()
    with pytest.raises(UnexpectedResponse, match="without a task id"):
        parse_submit(WireResponse(status=200, body=body))


def test_the_record_of_a_task_with_a_number_is_read() -> None:
    """The record names the task as a number, too; that of another number is another task's."""
    body = b'{"code":200,"data":{"taskId":12345,"successFlag":0}}'
    assert parse_status(WireResponse(status=200, body=body), TaskId("12345")).task_id == "12345"
    with pytest.raises(UnexpectedResponse, match="another task"):
        parse_status(WireResponse(status=200, body=body), TaskId("1234"))


FOR_TASK = {
    "its record": (b'{"code":200,"data":{"taskId":"%s"}}' % TASK.encode(), True),
    "another record": (b'{"code":200,"data":{"taskId":"other"}}', False),
    "a record without a name": (b'{"code":200,"data":{"successFlag":1}}', False),
    "a failure": (b'{"code":501,"msg":"failed","data":null}', False),
    "no record": (b'{"code":200,"data":null}', True),
    "a refusal that ends no task": (b'{"code":429,"msg":"slowly"}', True),
    "no envelope": (b"<html>", True),
}


@pytest.mark.parametrize(("body", "is_ours"), FOR_TASK.values(), ids=FOR_TASK)
def test_an_answer_of_another_task_is_detected(body: bytes, is_ours: bool) -> None:
    """Only answers that would end or confuse the wait have to name the task."""
    assert is_for_task(WireResponse(status=200, body=body), TASK) is is_ours


# --- the body of an attempt -----------------------------------------------------------------

BODY = store_request(EditRequest.text_removal("https://h.example/a.jpg"))
CALLBACK = "0123456789abcdef0123456789abcdef"


def test_a_stored_submit_carries_the_address_of_its_attempt() -> None:
    """The fields are those that were stored, and one more; without an address nothing changes."""
    url = f'https://ours.example/hook?who="me"&c={CALLBACK}'
    body = json.loads(build_submit(BODY, url).body or b"")
    assert body == json.loads(BODY) | {"callBackUrl": url}
    assert (build_submit(BODY).body or b"").decode() == BODY


def test_a_submit_follows_the_row_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Id, image field and extras are the table's; the echo of such a submit is read back as it was stored."""
    row = OnWire(model="max-2", image_field="image", extras={"quality": "high"})
    monkeypatch.setattr(Model.MAX, "row", ModelRow(credits=10, apis={"kontext": row}))
    stored = store_request(EditRequest.text_removal("https://h.example/a.jpg", model="flux-kontext-max"))
    sent = json.loads(build_submit(stored).body or b"")
    assert (sent["model"], sent["image"], sent["quality"]) == ("max-2", "https://h.example/a.jpg", "high")
    assert "inputImage" not in sent
    for echo, expected in ((sent, Echo.CONFIRMED), ({**sent, "model": "max-3"}, Echo.UNRECOGNISED)):
        data = {"taskId": TASK, "successFlag": 1, "paramJson": json.dumps(echo)}
        record = parse_status(envelope(data), TASK)
        assert compare(record.params, stored).echo is expected


# --- fresh links ------------------------------------------------------------------------------------------


def envelope(data: Any) -> WireResponse:
    return WireResponse(status=200, body=json.dumps({"code": 200, "msg": "success", "data": data}).encode())


def test_a_fresh_link_is_asked_for() -> None:
    """The address goes as the one field of the body."""
    request = build_download_url("https://files.example/r.jpg")
    assert (request.method, request.path) == ("POST", "/api/v1/common/download-url")
    assert request.body == b'{"url":"https://files.example/r.jpg"}'


def test_a_fresh_link_is_a_bare_string() -> None:
    """``data`` is the link itself."""
    assert parse_download_url(envelope("https://files.example/fresh")) == "https://files.example/fresh"


@pytest.mark.parametrize(
    "data", [None, "", "no link", 7, {"url": "https://files.example/fresh"}, ["https://x/"]]
)
def test_an_invalid_download_link_is_unexpected_and_not_quoted(data: Any) -> None:
    """An odd answer may contain a link that gives access."""
    with pytest.raises(UnexpectedResponse) as caught:
        parse_download_url(envelope(data))
    assert caught.value.body_excerpt == ""
    assert caught.value.charge is Charge.NO
    assert "fresh" not in str(caught.value)


def test_an_address_that_is_not_the_vendors_is_refused() -> None:
    """As recorded: HTTP 200 with code 422."""
    with pytest.raises(InvalidRequestError, match="url is wrong"):
        parse_download_url(WireResponse(status=200, body=b'{"code":422,"msg":"url is wrong","data":null}'))
