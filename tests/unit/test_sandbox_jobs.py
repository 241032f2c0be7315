"""The sandbox's jobs API: its requests, records, prices and callbacks, without clock, socket or image."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_async.sandbox.callbacks import CallbackQueue
from flux_async.sandbox.fault_replies import Answer
from flux_async.sandbox.faults import Fault, FaultPlan
from flux_async.sandbox.files import DAY, Blob
from flux_async.sandbox.jobs_records import RecordShape
from flux_async.sandbox.models import MODELS, Api
from flux_async.sandbox.simulator import Failure, Task, TaskImages, Vendor

NOW = 1_787_093_500.25
BASE = "http://sandbox"
IMAGE = "https://example.com/poster.jpg"
OTHER = "https://example.com/other.jpg"
HOOK = "http://receiver/hook"
REMOVE = "Remove all text"
IMAGES = TaskImages(
    origin=Blob(name="1", content_type="image/png"), result=Blob(name="2", content_type="image/jpeg")
)
FLAGGED = Failure(code=400, message="flagged")

AT_WORK = "taskId model state param resultJson failCode failMsg costTime completeTime createTime"
WHILE_AT_WORK = [*AT_WORK.split(), "creditsConsumed", "operationType", "successFlag", "paramJson"]
FINISHED = [*WHILE_AT_WORK[:12], "response", *WHILE_AT_WORK[12:]]
OLD = WHILE_AT_WORK[:10]

EXTRAS: dict[str, dict[str, str]] = {
    "nano-banana-2-lite": {"aspect_ratio": "auto"},
    "flux-2/pro-image-to-image": {"aspect_ratio": "auto", "resolution": "1K"},
    "seedream/4.5-edit": {"aspect_ratio": "1:1", "quality": "basic"},
}
JOBS = [model for model in MODELS.values() if model.api is Api.JOBS]


def open_vendor(faults: str = "", shape: RecordShape = "new") -> Vendor:
    vendor = Vendor(random.Random(7), FaultPlan.parse(faults), job_records=shape)
    vendor.open_account(["test"], 1000.0)
    return vendor


@pytest.fixture
def vendor() -> Vendor:
    return open_vendor()


def body_for(name: str, **fields: object) -> dict[str, Any]:
    model = MODELS[name]
    image = IMAGE if model.image_is == "one" else [IMAGE]
    return {
        "model": name,
        "input": {"prompt": REMOVE, model.image: image, **EXTRAS.get(name, {}), **fields},
    }


def answer_of(vendor: Vendor, body: object) -> tuple[object, object]:
    reply = vendor.submit("test", body, NOW, api=Api.JOBS).reply
    data = json.loads(reply.encode())
    assert reply.status == 200
    return data["code"], data["msg"]


def submit(vendor: Vendor, name: str = "flux1-kontext", url: str | None = None, **fields: object) -> Task:
    body = body_for(name, **fields) | ({"callBackUrl": url} if url else {})
    task = vendor.submit("test", body, NOW, BASE, api=Api.JOBS).task
    assert task is not None
    return task


def read(vendor: Vendor, task_id: str, now: float) -> Answer:
    return vendor.record_info("test", task_id, now, BASE, api=Api.JOBS)


def record(vendor: Vendor, task: Task, now: float) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(read(vendor, task.task_id, now).encode())["data"]
    return data


def finished(vendor: Vendor, task: Task, made: TaskImages | Failure = IMAGES) -> dict[str, Any]:
    vendor.complete(task.task_id, made, NOW)
    return record(vendor, task, task.ready_at)


# Submitting


def test_a_submit_is_answered_with_its_id_twice(vendor: Vendor) -> None:
    """The answer has taskId and recordId, both equal."""
    body = body_for("flux1-kontext")
    submission = vendor.submit("test", body, NOW, api=Api.JOBS)
    assert submission.task is not None
    name = submission.task.task_id
    assert submission.reply.encode().decode() == (
        f'{{"code":200,"msg":"success","data":{{"taskId":"{name}","recordId":"{name}"}}}}'
    )


@pytest.mark.parametrize("model", JOBS, ids=[model.name for model in JOBS])
def test_every_model_takes_its_own_field_and_price(vendor: Vendor, model: Any) -> None:
    """A minimal request of each model is accepted at its price; without image or extra it is refused."""
    task = submit(vendor, model.name)
    assert (task.request.input_image, task.request.kind, task.price) == (IMAGE, "text removal", model.price)
    assert vendor.credit("test", NOW).body["data"] == 1000.0 - model.price
    needed = ["prompt", *([model.image] if model.needs_image else []), *model.required]
    for name in needed:
        body = body_for(model.name)
        del body["input"][name]
        assert answer_of(vendor, body) == (500, f"{name} is required")
    assert vendor.credit("test", NOW).body["data"] == 1000.0 - model.price


def test_the_price_depends_on_the_resolution(vendor: Vendor) -> None:
    """FLUX.2 costs 5 credits at 1K and 7 at 2K."""
    assert submit(vendor, "flux-2/pro-image-to-image", resolution="2K").price == 7.0


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("flux1-kontext", {"prompt": " "}, (500, "prompt is required")),
        ("flux1-kontext", {"prompt": 7}, (422, "prompt must be a string.")),
        ("flux1-kontext", {"input_image": [IMAGE]}, (422, "input_image must be a string.")),
        ("flux1-kontext", {"input_image": "poster.jpg"}, (422, "input_image must be a publicly")),
        ("flux1-kontext", {"input_image": f"{IMAGE}?sandbox-fault=nonsense"}, (422, "input_image: unknown")),
        ("flux1-kontext", {"aspect_ratio": "16:21"}, (500, "aspect_ratio is not within the range")),
        ("flux1-kontext", {"output_format": "webp"}, (500, "output_format is not within the range")),
        ("flux1-kontext", {"upload_cn": "yes"}, (422, "upload_cn must be a boolean.")),
        ("flux1-kontext", {"safety_tolerance": 3}, (500, "The security tolerance level")),
        ("google/nano-banana-edit", {"image_urls": IMAGE}, (422, "image_urls must be an array of strings.")),
        ("google/nano-banana-edit", {"image_urls": []}, (500, "image_urls is required")),
        ("google/nano-banana-edit", {"image_urls": [1]}, (422, "image_urls must be a publicly")),
        ("flux-2/pro-image-to-image", {"input_urls": [IMAGE] * 9}, (422, "input_urls must not exceed 8")),
        ("seedream/4.5-edit", {"aspect_ratio": "auto"}, (500, "aspect_ratio is not within the range")),
    ],
)
def test_refused_fields(
    vendor: Vendor, name: str, change: dict[str, object], expected: tuple[int, str]
) -> None:
    """A refusal names the field, arrives in HTTP 200 and costs nothing."""
    code, message = answer_of(vendor, body_for(name, **change))
    assert (code, str(message)[: len(expected[1])]) == expected
    assert vendor.credit("test", NOW).body["data"] == 1000.0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (None, (422, "The request body must be a JSON object.")),
        ({}, (422, "The model name you specified is not supported.")),
        ({"model": ["flux1-kontext"]}, (422, "The model name you specified is not supported.")),
        ({"model": "flux-kontext-pro"}, (422, "The model name you specified is not supported.")),
        ({"model": "flux1-kontext"}, (500, "input is required")),
        ({"model": "flux1-kontext", "input": {"prompt": ""}}, (500, "prompt is required")),
        (body_for("flux1-kontext") | {"callBackUrl": "hook"}, (422, "callBackUrl must be")),
    ],
    ids=["null", "empty", "list", "old-model", "no-input", "probe", "callback"],
)
def test_refused_bodies(vendor: Vendor, body: object, expected: tuple[int, str]) -> None:
    """A model of the Kontext API is none of this one; an empty prompt is the free probe."""
    code, message = answer_of(vendor, body)
    assert (code, str(message)[: len(expected[1])]) == expected


def test_the_first_of_several_images_is_edited(vendor: Vendor) -> None:
    """A list holds references as well; a field that takes both shapes takes one address too."""
    assert submit(vendor, "nano-banana-2", image_input=[OTHER, IMAGE]).request.input_image == OTHER
    assert submit(vendor, "qwen2/image-edit", image_url=OTHER).request.input_image == OTHER


def test_ratio_and_format(vendor: Vendor) -> None:
    """``auto`` keeps the shape of the image; jpg is jpeg; the default is PNG, for Kontext JPEG."""
    auto = submit(vendor, "nano-banana-2", aspect_ratio="auto", output_format="jpg").request
    assert (auto.aspect_ratio, auto.output_format) == (None, "jpeg")
    assert submit(vendor, "nano-banana-2", aspect_ratio="1:1").request.aspect_ratio == "1:1"
    assert submit(vendor, "qwen2/image-edit", image_size="4:3").request.aspect_ratio == "4:3"
    assert submit(vendor, "nano-banana-2").request.output_format == "png"
    drawn = submit(vendor, input_image=None).request
    assert (drawn.kind, drawn.aspect_ratio, drawn.output_format) == ("generation", "16:9", "jpeg")
    assert submit(vendor, "nano-banana-2", image_input=[]).request.kind == "generation"


def test_unknown_fields_are_counted(vendor: Vendor) -> None:
    """Also ``input.model``, which one client sends; it is echoed and does not change the price."""
    task = submit(vendor, model="flux-kontext-max")
    assert task.price == 5.0
    echo = json.loads(json.loads(record(vendor, task, NOW)["param"])["input"])
    assert echo == body_for("flux1-kontext", model="flux-kontext-max")["input"]
    assert dict(task.account.ledger.unknown_fields) == {"model": 1}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just(IMAGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(["prompt", "input_image", "image_urls", "aspect_ratio", "safety_tolerance", "x"])
inputs = json_values | st.dictionaries(names, json_values | st.just("x"))
jobs = st.fixed_dictionaries(
    {"model": st.sampled_from(["flux1-kontext", "google/nano-banana-edit"]) | json_values, "input": inputs},
    optional={"callBackUrl": json_values},
)


@settings(max_examples=150, deadline=None)
@given(body=json_values | jobs)
def test_any_body_gets_an_envelope(body: object) -> None:
    """Whatever JSON is submitted, the answer is an envelope with a known code, and a task has a record."""
    vendor = open_vendor()  # one for each body, or the rate limit would refuse most of them
    submission = vendor.submit("test", body, NOW, api=Api.JOBS)
    assert json.loads(submission.reply.encode())["code"] in {200, 422, 500}
    if submission.task is not None:
        assert record(vendor, submission.task, NOW)["state"] == "waiting"


# The ledger


def test_the_ledger_compares_both_apis(vendor: Vendor) -> None:
    """One request that is paid through both APIs is paid twice; another model is another request."""
    old = {"prompt": REMOVE, "inputImage": IMAGE, "outputFormat": "png"}
    first = vendor.submit("test", old, NOW).task
    assert first is not None
    ledger = first.account.ledger
    submit(vendor, "google/nano-banana-edit", output_format="png")
    assert ledger.double_charges == []
    submit(vendor, url=HOOK, output_format="png")
    assert ledger.double_charges == [IMAGE]
    assert ledger.line(IMAGE).apis == {"kontext": 1, "jobs": 2}
    assert ledger.line(IMAGE).most_charges == 2


def test_tasks_are_found_through_their_own_api_only(vendor: Vendor) -> None:
    """It is not known whether the vendor finds them through the other one."""
    job = submit(vendor)
    old = vendor.submit("test", {"prompt": REMOVE}, NOW).task
    assert old is not None
    assert vendor.record_info("test", job.task_id, NOW, BASE).encode().startswith(b'{"code":422')
    for task_id in (old.task_id, "test"):
        assert read(vendor, task_id, NOW).encode() == b'{"code":422,"msg":"recordInfo is null","data":null}'


def test_limits_are_those_of_the_account(vendor: Vendor) -> None:
    """The twenty submits in ten seconds count through both APIs, refused ones too."""
    for _ in range(10):
        vendor.submit("test", {"prompt": REMOVE}, NOW)
        vendor.submit("test", {}, NOW, api=Api.JOBS)
    assert vendor.submit("test", body_for("flux1-kontext"), NOW, api=Api.JOBS).reply.status == 429
    poor = Vendor(random.Random(7))
    poor.open_account(["test"], 4.0)
    assert answer_of(poor, body_for("flux1-kontext"))[0] == 402


def test_a_task_may_cost_a_multiple(vendor: Vendor) -> None:
    """The fault multiplies charge, refund and ``creditsConsumed``; the balance must cover it."""
    vendor = open_vendor("overcharge=11")
    task = submit(vendor)
    assert (task.price, vendor.credit("test", NOW).body["data"]) == (55.0, 945.0)
    assert record(vendor, task, NOW)["creditsConsumed"] == 55.0
    assert finished(vendor, task, FLAGGED)["creditsConsumed"] == 0.0
    assert vendor.credit("test", NOW).body["data"] == 1000.0
    task.account.balance = 54.0
    assert answer_of(vendor, body_for("flux1-kontext"))[0] == 402


# Records


def test_states_of_a_task(vendor: Vendor) -> None:
    """A task waits, queues, generates and ends; the echo is JSON in JSON in JSON."""
    task = submit(vendor, url=HOOK)
    seconds = task.ready_at - NOW
    states = [record(vendor, task, NOW + share * seconds)["state"] for share in (0, 0.1, 0.5, 1.5)]
    assert states == ["waiting", "queuing", "generating", "generating"]
    body = read(vendor, task.task_id, NOW).encode().decode()
    inner = f'{{\\\\\\"prompt\\\\\\":\\\\\\"{REMOVE}\\\\\\",\\\\\\"input_image\\\\\\":\\\\\\"{IMAGE}\\\\\\"}}'
    echo = f'{{\\"input\\":\\"{inner}\\",\\"callBackUrl\\":\\"{HOOK}\\",\\"model\\":\\"flux1-kontext\\"}}'
    assert body == (
        f'{{"code":200,"msg":"success","data":{{"taskId":"{task.task_id}","model":"flux1-kontext",'
        f'"state":"waiting","param":"{echo}","resultJson":"","failCode":null,"failMsg":null,'
        '"costTime":null,"completeTime":null,"createTime":1787093500250,"creditsConsumed":5.0,'
        f'"operationType":null,"successFlag":0,"paramJson":"{echo}"}}}}'
    )
    data = finished(vendor, task)
    assert list(data) == FINISHED
    assert (data["state"], data["successFlag"]) == ("success", 1)
    assert json.loads(data["resultJson"]) == data["response"]
    assert data["response"]["resultUrls"][0].startswith(f"{BASE}/files/result/")
    assert data["costTime"] >= 1
    assert data["completeTime"] > data["createTime"]


def test_record_of_a_failure(vendor: Vendor) -> None:
    """The code is text, and nothing was consumed."""
    data = finished(vendor, submit(vendor), FLAGGED)
    assert list(data) == FINISHED
    assert (data["state"], data["successFlag"], data["response"]) == ("fail", 3, None)
    assert (data["failCode"], data["failMsg"], data["resultJson"]) == ("400", "flagged", "")
    assert data["creditsConsumed"] == 0.0


def test_records_of_april() -> None:
    """The old shape lacks price, flag, response and the second echo."""
    vendor = open_vendor(shape="old")
    task = submit(vendor)
    assert list(record(vendor, task, NOW)) == OLD
    assert list(finished(vendor, task)) == OLD


def test_results_live_a_day(vendor: Vendor) -> None:
    """Pages of the vendor differ on it; a fresh link is given meanwhile."""
    task = submit(vendor)
    (url,) = finished(vendor, task)["response"]["resultUrls"]
    path = url.removeprefix(BASE)
    assert vendor.files.find(path, task.ready_at + DAY - 1)
    assert not vendor.files.find(path, task.ready_at + DAY)
    reply = vendor.download_url("test", {"url": url}, task.ready_at + 1, BASE)
    assert reply.body["code"] == 200


SPELT: dict[str, dict[str, object]] = {
    "flag-missing": {"state": None, "successFlag": None},
    "flag-null": {"state": None, "successFlag": None},
    "flag-unknown": {"state": "9", "successFlag": 9},
    "flag-as-text": {"successFlag": "0"},
    "error-as-text": {"failCode": "null"},
    "times-iso": {"createTime": "2026-08-18T22:51:40Z"},
    "times-seconds": {"createTime": 1787093500},
    "times-null": {"createTime": None},
    "params-missing": {"param": None, "paramJson": None},
}


@pytest.mark.parametrize("fault", SPELT)
def test_records_at_work_with_faults(fault: str) -> None:
    """The faults of a record apply to the fields of this API."""
    vendor = open_vendor(fault)
    data = record(vendor, submit(vendor), NOW)
    assert {name: data.get(name) for name in SPELT[fault]} == SPELT[fault]


@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        ("no-url", {"resultJson": '{"resultUrls":[""]}', "response": {"resultUrls": [""]}}),
        ("no-response", {"resultJson": "", "response": None}),
        ("url-in-list", {"resultJson": "", "response": {"resultUrls": ["LINK"]}}),
        ("response-as-text", {"resultJson": "", "response": '{"resultUrls":["LINK"]}'}),
        ("url-in-data,response-as-url", {"resultJson": '{"resultUrls":["LINK"]}'}),
    ],
)
@pytest.mark.parametrize("shape", ["new", "old"])
def test_finished_records_with_faults(fault: str, kept: dict[str, object], shape: RecordShape) -> None:
    """The links are elsewhere, in records of both shapes."""
    vendor = open_vendor(fault, shape)
    task = submit(vendor)
    data = finished(vendor, task)
    assert task.result is not None
    text = json.dumps({name: data.get(name) for name in kept})
    assert json.loads(text.replace(BASE + task.result.path, "LINK")) == kept


def test_other_faults_apply_as_well() -> None:
    """A late record is this API's unknown task, an echo is cut off, and a failure may be an envelope."""
    late = open_vendor("late-record=5,params-invalid")
    task = submit(late)
    assert read(late, task.task_id, NOW).encode() == b'{"code":422,"msg":"recordInfo is null","data":null}'
    assert not record(late, task, NOW + 6)["param"].endswith("}")
    failing = open_vendor("fail-envelope")
    task = submit(failing)
    failing.complete(task.task_id, IMAGES, NOW)
    assert json.loads(read(failing, task.task_id, task.ready_at).encode())["code"] == 501


# Callbacks


def posted(vendor: Vendor, task: Task, made: TaskImages | Failure = IMAGES) -> dict[str, Any]:
    queue = CallbackQueue("hook-key")
    vendor.complete(task.task_id, made, NOW)
    queue.expect(task)
    vendor.advance(task.ready_at + 200)
    (callback,) = queue.take(task.ready_at + 200)
    request = queue.write(callback, 1_769_670_760.0)
    assert {"X-Webhook-Timestamp", "X-Webhook-Signature"} <= request.headers.keys()
    body: dict[str, Any] = json.loads(request.body)
    return body


CALLBACK = [*WHILE_AT_WORK[:10], "updateTime", "creditsConsumed"]


def test_callback_of_a_success(vendor: Vendor) -> None:
    """It has the fields of the record, and is signed as those of the Kontext API."""
    task = submit(vendor, url=HOOK)
    body = posted(vendor, task)
    assert (list(body), body["code"]) == (["code", "msg", "data"], 200)
    data = body["data"]
    assert list(data) == CALLBACK
    assert (data["taskId"], data["state"], data["creditsConsumed"]) == (task.task_id, "success", 5.0)
    assert json.loads(data["resultJson"])["resultUrls"][0].startswith(f"{BASE}/files/result/")
    assert json.loads(json.loads(data["param"])["input"])["input_image"] == IMAGE


def test_callback_of_a_failure(vendor: Vendor) -> None:
    """Code 501 whatever the failure, which is in the data."""
    body = posted(vendor, submit(vendor, url=HOOK), FLAGGED)
    data = body["data"]
    assert (body["code"], data["state"], data["failCode"], data["failMsg"]) == (501, "fail", "400", "flagged")
    assert (data["resultJson"], data["creditsConsumed"]) == (None, 0.0)


def test_callbacks_with_faults() -> None:
    """An early one claims a success with a link that leads nowhere; a forged one names another host."""
    vendor = open_vendor("callback-forged,callback-early")
    task = submit(vendor, url=HOOK)
    queue = CallbackQueue("hook-key")
    early = queue.early(task)
    assert early is not None
    data = json.loads(queue.write(early, 1.0).body)["data"]
    assert (data["state"], data["completeTime"]) == ("success", None)
    forging = open_vendor("callback-forged,fail-500")
    body = posted(forging, submit(forging, url=HOOK))
    assert body["code"] == 200
    assert "attacker.example" in body["data"]["resultJson"]
    assert Fault.CALLBACK_FORGED in task.faults


# The catalogue


def test_the_catalogue(vendor: Vendor) -> None:
    """Every model with its price, filtered by words, provider and task type; a key is needed."""
    data: Any = vendor.models("test", NOW).body["data"]
    assert data["total"] == len(data["models"]) == len(JOBS) - 1
    kontext = next(entry for entry in data["models"] if entry["model"] == "flux1-kontext")
    assert kontext["pricingDesc"] == "An image costs 5 credits (0.025 USD)"

    def names(*filters: str) -> list[str]:
        found: Any = vendor.models("test", NOW, *filters).body["data"]
        return [entry["model"] for entry in found["models"]]

    assert names("banana-2") == ["nano-banana-2-lite", "nano-banana-2"]
    assert names("", "OpenAI") == ["gpt-image-2-5-flare-image-to-image"]
    assert names("", "", "Text to Video") == []
    assert len(names("", "", "Text to Video,Image to Image")) == data["total"]
    assert vendor.models("wrong", NOW).body["code"] == 401
