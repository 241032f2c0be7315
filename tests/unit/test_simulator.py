"""The simulated vendor: every rule of the API page, without clock, socket or image."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flux_async.sandbox import SandboxSettings
from flux_async.sandbox.files import DAY, MINUTE, Blob
from flux_async.sandbox.ledger import WINDOW, ledger_table
from flux_async.sandbox.requests import Kind, Order, asks_to_remove_text, read_task_request
from flux_async.sandbox.simulator import (
    SUBMITS_PER_WINDOW,
    Account,
    Failure,
    Flag,
    Task,
    TaskImages,
    Upload,
    Vendor,
)

NOW = 1_787_093_500.25
BASE = "http://sandbox"
IMAGE = "https://example.com/poster.jpg"
BAD_KEY = (
    "Unauthorized \N{EN DASH} Authentication failed. "
    "Please check that your Authorization and Content-Type headers are correctly set."
)
IMAGES = TaskImages(
    origin=Blob(name="1", content_type="image/png"), result=Blob(name="2", content_type="image/jpeg")
)
FLAGGED = Failure(code=400, message="Your prompt was flagged by Website as violating content policies.")


@pytest.fixture
def vendor() -> Vendor:
    vendor = Vendor(random.Random(7))
    vendor.open_account(["test", "second"], 100.0)
    vendor.open_account(["other"], 100.0)
    return vendor


def submit(vendor: Vendor, now: float = NOW, key: str | None = "test", **body: object) -> Task:
    task = vendor.submit(key, {"prompt": "Remove all text", "inputImage": IMAGE} | body, now).task
    assert task is not None
    return task


def record(vendor: Vendor, task: Task, now: float, key: str = "test") -> dict[str, Any]:
    data = vendor.record_info(key, task.task_id, now, BASE).body["data"]
    assert isinstance(data, dict)
    return data


def code(body: Mapping[str, object]) -> object:
    return body["code"]


def refused(vendor: Vendor, body: object) -> tuple[object, object]:
    submission = vendor.submit("test", body, NOW)
    assert submission.task is None
    assert submission.reply.body["data"] is None
    return submission.reply.body["code"], submission.reply.body["msg"]


# Keys


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "You do not have access permissions"),
        (
            "wrong",
            BAD_KEY,
        ),
    ],
)
@pytest.mark.parametrize("call", ["submit", "record_info", "credit", "download_url"])
def test_wrong_key(vendor: Vendor, call: str, key: str | None, message: str) -> None:
    """A missing or wrong key is answered with HTTP 200, code 401 and no data at all."""
    reply = {
        "submit": lambda: vendor.submit(key, {"prompt": "x"}, NOW).reply,
        "record_info": lambda: vendor.record_info(key, "x", NOW, BASE),
        "credit": lambda: vendor.credit(key, NOW),
        "download_url": lambda: vendor.download_url(key, {"url": IMAGE}, NOW, BASE),
    }[call]()
    assert (reply.status, reply.body) == (200, {"code": 401, "msg": message})


def test_keys_share_their_account(vendor: Vendor) -> None:
    """Two keys of one account share balance and tasks; another account sees neither."""
    task = submit(vendor, key="test")
    assert vendor.credit("second", NOW).body["data"] == 95.0
    assert record(vendor, task, NOW, key="second")["taskId"] == task.task_id
    assert vendor.credit("other", NOW).body["data"] == 100.0
    assert vendor.record_info("other", task.task_id, NOW, BASE).body["msg"] == "The record does not exist"


# Submitting


def test_submit_answers_with_a_task_id(vendor: Vendor) -> None:
    """A good submit is answered with 32 lowercase hexadecimal digits."""
    reply = vendor.submit("test", {"prompt": "A lighthouse"}, NOW).reply
    task = next(vendor.newest(NOW))
    assert reply.encode() == b'{"code":200,"msg":"success","data":{"taskId":"%s"}}' % task.task_id.encode()
    assert len(task.task_id) == 32
    assert set(task.task_id) <= set("0123456789abcdef")


def test_seed_repeats_everything() -> None:
    """The same seed draws the same ids and times, another seed others."""

    def draw(seed: int) -> tuple[str, float]:
        vendor = Vendor(random.Random(seed))
        vendor.open_account(["test"], 100.0)
        task = submit(vendor)
        return task.task_id, task.ready_at

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (None, (422, "The request body must be a JSON object.")),
        ([], (422, "The request body must be a JSON object.")),
        ({}, (422, "Please enter prompt.")),
        ({"prompt": "  "}, (422, "Please enter prompt.")),
        ({"prompt": None}, (422, "Please enter prompt.")),
        ({"prompt": 5}, (422, "prompt must be a string.")),
        ({"prompt": "x", "enableTranslation": "yes"}, (422, "enableTranslation must be a boolean.")),
        ({"prompt": "x", "safetyTolerance": True}, (422, "safetyTolerance must be an integer.")),
        ({"prompt": "x", "safetyTolerance": 1.5}, (422, "safetyTolerance must be an integer.")),
        (
            {"prompt": "x", "inputImage": "data:image/png;base64,AAAA"},
            (422, "inputImage must be a publicly accessible http or https URL."),
        ),
        (
            {"prompt": "x", "inputImage": "http://[broken"},
            (422, "inputImage must be a publicly accessible http or https URL."),
        ),
        (
            {"prompt": "x", "inputImage": "https://example.com/" + "a" * 2100},
            (422, "inputImage must be a publicly accessible http or https URL."),
        ),
        (
            {"prompt": "x", "callBackUrl": "ftp://example.com"},
            (422, "callBackUrl must be a publicly accessible http or https URL."),
        ),
        ({"prompt": "x", "model": "flux-2"}, (500, "model is not within the range of allowed options")),
        (
            {"prompt": "x", "aspectRatio": "5:4"},
            (500, "aspectRatio is not within the range of allowed options"),
        ),
        (
            {"prompt": "x", "outputFormat": "webp"},
            (500, "outputFormat is not within the range of allowed options"),
        ),
    ],
)
def test_refused_parameters(vendor: Vendor, body: object, expected: tuple[int, str]) -> None:
    """A submit with bad parameters makes no task and costs nothing."""
    assert refused(vendor, body) == expected
    assert vendor.credit("test", NOW).body["data"] == 100.0


@pytest.mark.parametrize(
    ("tolerance", "image", "accepted"),
    [
        (-1, None, False),
        (0, None, True),
        (6, None, True),
        (7, None, False),
        (-1, IMAGE, False),
        (0, IMAGE, True),
        (2, IMAGE, True),
        (3, IMAGE, False),
    ],
)
def test_safety_tolerance(vendor: Vendor, tolerance: int, image: str | None, *, accepted: bool) -> None:
    """The safety tolerance goes to 6 when generating and to 2 when editing."""
    body = {"prompt": "x", "safetyTolerance": tolerance, "inputImage": image}
    if accepted:
        assert vendor.submit("test", body, NOW).task is not None
    else:
        message = "The security tolerance level is out of range and should be 0-2 or 0-6."
        assert refused(vendor, body) == (500, message)


def test_unreachable_image_is_accepted(vendor: Vendor) -> None:
    """An input image is not fetched when it is submitted."""
    assert submit(vendor, inputImage="http://no.such.host.invalid/x.jpg").flag is Flag.GENERATING


def test_nulls_and_unknown_fields_are_ignored(vendor: Vendor) -> None:
    """A null counts as left out and an unknown field as not sent."""
    task = submit(vendor, aspectRatio=None, seed=42)
    assert record(vendor, task, NOW)["paramJson"] == f'{{"inputImage":"{IMAGE}","prompt":"Remove all text"}}'


def test_call_back_url_is_kept(vendor: Vendor) -> None:
    """The callback address is stored with the task."""
    task = submit(vendor, callBackUrl="https://example.com/hook")
    assert task.request.call_back_url == "https://example.com/hook"


# Money


@pytest.mark.parametrize(("model", "price"), [("flux-kontext-pro", 5.0), ("flux-kontext-max", 10.0)])
def test_price(vendor: Vendor, model: str, price: float) -> None:
    """The price is taken when the task is created."""
    submit(vendor, model=model)
    assert vendor.credit("test", NOW).encode() == b'{"code":200,"msg":"success","data":%.1f}' % (
        100.0 - price
    )


def test_short_balance(vendor: Vendor) -> None:
    """A submit the balance does not cover is answered with 402 and makes no task."""
    poor = vendor.open_account(["poor"], 4.99)
    reply = vendor.submit("poor", {"prompt": "x"}, NOW).reply
    assert (reply.status, reply.body["code"], reply.body["data"]) == (200, 402, None)
    assert poor.balance == 4.99


def test_failure_gives_credits_back(vendor: Vendor) -> None:
    """A failed task gives its credits back when it fails, not before."""
    task = submit(vendor)
    vendor.complete(task.task_id, FLAGGED, NOW)
    assert vendor.credit("test", task.ready_at - 0.01).body["data"] == 95.0
    assert vendor.credit("test", task.ready_at).body["data"] == 100.0


# The rate limit


def test_twenty_submits_in_ten_seconds(vendor: Vendor) -> None:
    """The 21st submit within 10 s is refused with HTTP 429, charged nothing and forgotten."""
    for number in range(SUBMITS_PER_WINDOW):
        assert vendor.submit("test", {"prompt": "x"}, NOW + number / 4).task
    reply = vendor.submit("test", {"prompt": "x"}, NOW + 9.99).reply
    assert (reply.status, reply.body["code"], reply.body["data"]) == (429, 429, None)
    assert vendor.credit("test", NOW + 9.99).body["data"] == 0.0
    assert vendor.account("test").ledger.refused == {429: 1}  # type: ignore[union-attr]


def test_window_slides(vendor: Vendor) -> None:
    """As the oldest submit leaves the window one more is let in, and only one."""
    for number in range(SUBMITS_PER_WINDOW):
        vendor.submit("other", {"prompt": ""}, NOW + number / 10)
    assert code(vendor.submit("other", {"prompt": "x"}, NOW + WINDOW).reply.body) == 200
    assert code(vendor.submit("other", {"prompt": "x"}, NOW + WINDOW).reply.body) == 429


def test_window_belongs_to_the_account(vendor: Vendor) -> None:
    """The keys of an account share the window; other accounts have their own."""
    for number in range(SUBMITS_PER_WINDOW):
        vendor.submit(("test", "second")[number % 2], {"prompt": "x"}, NOW)
    assert code(vendor.submit("test", {"prompt": "x"}, NOW).reply.body) == 429
    assert code(vendor.submit("other", {"prompt": "x"}, NOW).reply.body) == 200


def test_polls_are_not_limited(vendor: Vendor) -> None:
    """Reading records does not count against the limit."""
    task = submit(vendor)
    assert all(record(vendor, task, NOW) for _ in range(50))
    assert vendor.submit("test", {"prompt": "x"}, NOW).task


# Records


def test_record_while_generating(vendor: Vendor) -> None:
    """A pending record has the vendor's key order, epoch milliseconds of whole seconds, and nulls."""
    task = submit(vendor)
    body = vendor.record_info("test", task.task_id, NOW + 1, BASE).encode().decode()
    assert body == (
        f'{{"code":200,"msg":"success","data":{{"taskId":"{task.task_id}",'
        f'"paramJson":"{{\\"inputImage\\":\\"{IMAGE}\\",\\"prompt\\":\\"Remove all text\\"}}",'
        '"response":null,"completeTime":null,"createTime":1787093500000,'
        '"successFlag":0,"errorCode":null,"errorMessage":null}}'
    )


def test_record_of_a_success(vendor: Vendor) -> None:
    """A finished record has both links and a whole-second completion time, rounded up."""
    task = submit(vendor)
    vendor.complete(task.task_id, IMAGES, NOW)
    data = record(vendor, task, task.ready_at)
    keys = "taskId paramJson response completeTime createTime successFlag errorCode errorMessage"
    assert " ".join(data) == keys
    assert data["successFlag"] == 1
    assert data["completeTime"] % 1000 == 0
    assert 0 <= data["completeTime"] / 1000 - task.ready_at < 1
    assert (data["errorCode"], data["errorMessage"]) == (None, "")
    assert list(data["response"]) == ["originImageUrl", "resultImageUrl"]
    assert data["response"]["originImageUrl"].startswith(f"{BASE}/files/origin/")
    assert data["response"]["resultImageUrl"].startswith(f"{BASE}/files/result/")


def test_record_of_a_failure(vendor: Vendor) -> None:
    """A failed task is code 200 with flag 3, the error and no response."""
    task = submit(vendor)
    vendor.complete(task.task_id, FLAGGED, NOW)
    data = record(vendor, task, task.ready_at)
    assert (data["successFlag"], data["errorCode"], data["errorMessage"]) == (3, 400, FLAGGED.message)
    assert data["response"] is None
    assert data["completeTime"] is not None


def test_success_needs_time_and_image(vendor: Vendor) -> None:
    """A task is done when its time has passed and its image is made, whichever comes later."""
    slow_image, quick_image = submit(vendor), submit(vendor)
    vendor.complete(quick_image.task_id, IMAGES, NOW)
    assert record(vendor, quick_image, quick_image.ready_at - 0.01)["successFlag"] == 0
    assert record(vendor, quick_image, quick_image.ready_at)["successFlag"] == 1
    late = max(slow_image.ready_at, quick_image.ready_at) + 100
    assert record(vendor, slow_image, late - 1)["successFlag"] == 0
    vendor.complete(slow_image.task_id, IMAGES, late)
    assert record(vendor, slow_image, late)["successFlag"] == 1


def test_the_first_end_of_a_task_is_final(vendor: Vendor) -> None:
    """Later results change nothing."""
    task = submit(vendor)
    vendor.complete(task.task_id, IMAGES, NOW)
    vendor.complete(task.task_id, FLAGGED, NOW)
    before = record(vendor, task, task.ready_at)
    vendor.complete(task.task_id, FLAGGED, task.ready_at + 1)
    assert record(vendor, task, task.ready_at + 100) == before
    assert vendor.credit("test", task.ready_at + 100).body["data"] == 95.0


def test_unknown_task(vendor: Vendor) -> None:
    """An unknown task is HTTP 200 with code 422."""
    reply = vendor.record_info("test", "0" * 32, NOW, BASE)
    assert reply.status == 200
    assert reply.encode() == b'{"code":422,"msg":"The record does not exist","data":null}'


@pytest.mark.parametrize("task_id", [None, ""])
def test_missing_task_id(vendor: Vendor, task_id: str | None) -> None:
    """A record asked for without a task id is refused."""
    reply = vendor.record_info("test", task_id, NOW, BASE)
    assert reply.body == {"code": 422, "msg": "Please enter taskId.", "data": None}


def test_max_model_is_slower() -> None:
    """Tasks take about 12 s, those of the max model longer."""
    vendor = Vendor(random.Random(3))
    vendor.open_account(["test"], 1e6)
    medians = []
    for begin, model in ((NOW, "flux-kontext-pro"), (NOW + 1000, "flux-kontext-max")):
        tasks = [submit(vendor, begin + n, model=model) for n in range(400)]
        medians.append(sorted(task.ready_at - task.created_at for task in tasks)[200])
    assert medians[0] == pytest.approx(12, rel=0.1)
    assert medians[1] > 1.3 * medians[0]


def test_lone_surrogates_are_answered(vendor: Vendor) -> None:
    """A prompt that is no valid Unicode comes back with question marks instead of breaking the answer."""
    task = submit(vendor, prompt="a\ud800b")
    assert b"a?b" in vendor.record_info("test", task.task_id, NOW, BASE).encode()


# Links


def test_links_expire(vendor: Vendor) -> None:
    """The origin lives 10 minutes, the result 14 days."""
    task = submit(vendor)
    vendor.complete(task.task_id, IMAGES, NOW)
    vendor.advance(task.ready_at)
    assert task.origin is not None
    assert task.result is not None
    for link, life in ((task.origin, 10 * MINUTE), (task.result, 14 * DAY)):
        assert vendor.files.find(link.path, task.ready_at + life - 1) is link
        assert vendor.files.find(link.path, task.ready_at + life) is None
    assert list(vendor.files.sweep(task.ready_at + 10 * MINUTE)) == [IMAGES.origin]
    assert list(vendor.files.sweep(task.ready_at + 14 * DAY)) == [IMAGES.result]


def test_fresh_link(vendor: Vendor) -> None:
    """A fresh link is a bare string, leads to the same bytes and lives 20 minutes."""
    task = submit(vendor)
    vendor.complete(task.task_id, IMAGES, NOW)
    now = task.ready_at + DAY
    url = record(vendor, task, now)["response"]["resultImageUrl"]
    fresh = vendor.download_url("test", {"url": url}, now, BASE).body["data"]
    assert isinstance(fresh, str)
    path = fresh.removeprefix(BASE)
    found = vendor.files.find(path, now + 20 * MINUTE - 1)
    assert found is not None
    assert found.blob == IMAGES.result
    assert vendor.files.find(path, now + 20 * MINUTE) is None
    assert IMAGES.result not in vendor.files.sweep(now + 21 * MINUTE)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.jpg", "nonsense", "http://[broken", f"{BASE}/files/result/0.jpg"]
)
def test_fresh_link_to_a_foreign_url(vendor: Vendor, url: str) -> None:
    """A fresh link to anything but a living result is refused."""
    reply = vendor.download_url("test", {"url": url}, NOW, BASE)
    assert reply.encode() == b'{"code":422,"msg":"url is wrong","data":null}'


def test_fresh_link_to_an_origin_or_another_host(vendor: Vendor) -> None:
    """An origin, and a result's path on another host, are foreign URLs."""
    task = submit(vendor)
    vendor.complete(task.task_id, IMAGES, NOW)
    response = record(vendor, task, task.ready_at)["response"]
    moved = response["resultImageUrl"].replace("sandbox", "elsewhere")
    for url in (response["originImageUrl"], moved):
        assert vendor.download_url("test", {"url": url}, task.ready_at, BASE).body["msg"] == "url is wrong"


@pytest.mark.parametrize("body", [None, [], {}, {"url": 5}, {"url": ""}])
def test_fresh_link_without_url(vendor: Vendor, body: object) -> None:
    """A fresh link asked for without a URL is refused."""
    assert vendor.download_url("test", body, NOW, BASE).body["msg"] == "Please enter url."


# Uploads


def upload(vendor: Vendor, name: str | None, blob: str, now: float = NOW) -> dict[str, Any]:
    account = vendor.account("test")
    assert account is not None
    file = Upload(folder="images/in", name=name, blob=Blob(name=blob, content_type="image/png"), size=70)
    data = vendor.upload(account, file, now, BASE).body["data"]
    assert isinstance(data, dict)
    return data


def test_upload_reply(vendor: Vendor) -> None:
    """An upload is answered with success at two levels and no expiry."""
    data = upload(vendor, "a b.png", "1")
    number = data["filePath"].split("/")[1]
    assert data == {
        "success": True,
        "fileName": "a b.png",
        "filePath": f"kieai/{number}/images/in/a b.png",
        "downloadUrl": f"{BASE}/kieai/{number}/images/in/a%20b.png",
        "fileSize": 70,
        "mimeType": "image/png",
        "uploadedAt": "2026-08-18T22:51:40.250Z",
    }


def test_upload_without_name(vendor: Vendor) -> None:
    """A nameless upload is named by the time and 11 characters."""
    time, rest = upload(vendor, None, "1")["fileName"].split("-")
    assert time == "1787093500250"
    assert len(rest.removesuffix(".png")) == 11


def test_upload_replaces_same_name(vendor: Vendor) -> None:
    """The same name overwrites, and the older bytes are let go."""
    upload(vendor, "a.png", "1")
    path = "/" + upload(vendor, "a.png", "2", NOW + DAY / 2)["filePath"]
    found = vendor.files.find(path, NOW + DAY)
    assert found is not None
    assert found.blob.name == "2"
    assert [blob.name for blob in vendor.files.sweep(NOW + DAY)] == ["1"]
    assert [blob.name for blob in vendor.files.sweep(NOW + 2 * DAY)] == ["2"]


# What the prompt asks for


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Remove all text from this image while preserving the background", True),
        ("remove text", True),
        ("Please erase the words", True),
        ("Delete the watermark in the corner.", True),
        ("Get rid of the handwriting", True),
        ("Erase the logo, the text and the frame", True),
        ("Cleaning up subtitles", True),
        ("Removal of captions", True),
        ("Make it text-free", True),
        ("watermark removal", True),
        ("Remove the car but keep the text", False),
        ("Remove the tree behind the lettering", False),
        ("Do not remove the text", False),
        ("Don't erase the words", False),
        ("Add stripes to the text", False),
        ("A clean text on white", False),
        ("Make the sky orange", False),
        ("Replace the words with a poem", False),
        ("Remove everything except the text", False),
        ("Remove the context menu", False),
    ],
)
def test_text_removal_is_recognised_by_its_prompt(prompt: str, *, expected: bool) -> None:
    """By verb and object of the prompt."""
    assert asks_to_remove_text(prompt) is expected


@pytest.mark.parametrize(
    ("body", "kind", "ratio"),
    [
        ({"prompt": "Remove the text"}, Kind.GENERATION, "16:9"),
        ({"prompt": "Remove the text", "inputImage": IMAGE}, Kind.TEXT_REMOVAL, None),
        ({"prompt": "Paint it black", "inputImage": IMAGE, "aspectRatio": "16:21"}, Kind.EDIT, "16:21"),
    ],
)
def test_kind_and_ratio(body: dict[str, object], kind: Kind, ratio: str | None) -> None:
    """An input image makes an edit, which keeps its own ratio unless another is requested."""
    order = read_task_request(body)
    assert isinstance(order, Order)
    assert (order.kind, order.aspect_ratio) == (kind, ratio)


# The ledger


def test_the_ledger_is_by_image(vendor: Vendor) -> None:
    """Submits, charges, refunds and polls of each image."""
    first, second = submit(vendor), submit(vendor)
    submit(vendor, inputImage=None, prompt="A tree", model="flux-kontext-max")
    refused(vendor, {"prompt": "x", "inputImage": IMAGE, "model": "nope"})
    vendor.complete(first.task_id, FLAGGED, NOW)
    record(vendor, first, first.ready_at)
    vendor.record_info("test", "unknown", NOW, BASE)
    account = vendor.account("test")
    assert account is not None
    assert account.ledger.as_json() == {
        "submits": 4,
        "accepted": 3,
        "refused": {"500": 1},
        "dropped": 0,
        "charged": 20.0,
        "refunded": 5.0,
        "polls": 2,
        "callbacks": {"sent": 0, "accepted": 0, "failed": 0, "given_up": 0},
        "faults": {},
        "unknown_fields": {},
        "busiest_window": {"submits": 4, "accepted": 3},
        "double_charges": [],
        "images": {
            IMAGE: {
                "submits": 2,
                "tasks": [first.task_id, second.task_id],
                "refunds": 1,
                "charged": 10.0,
                "refunded": 5.0,
                "polls": 1,
                "callbacks": 0,
                "apis": {"kontext": 2},
                "requests": {first.request.digest: 1},
            },
            "prompt:A tree": {
                "submits": 1,
                "tasks": [next(vendor.newest(NOW)).task_id],
                "refunds": 0,
                "charged": 10.0,
                "refunded": 0.0,
                "polls": 0,
                "callbacks": 0,
                "apis": {"kontext": 1},
                "requests": {next(vendor.newest(NOW)).request.digest: 1},
            },
        },
    }


def test_two_edits_of_one_image_are_not_paid_twice(vendor: Vendor) -> None:
    """Paid twice is the same request paid twice; where its end is reported is no part of it."""
    account = vendor.account("test")
    assert account is not None
    submit(vendor, prompt="Remove the text")
    submit(vendor, prompt="Make the sky orange")
    submit(vendor, prompt="Remove the text", model="flux-kontext-max")
    assert account.ledger.double_charges == []
    submit(vendor, prompt="Remove the text", callBackUrl="https://example.com/hook?attempt=2")
    assert account.ledger.double_charges == [IMAGE]
    assert account.ledger.images[IMAGE].most_charges == 2


def test_unknown_fields_are_counted(vendor: Vendor) -> None:
    """The vendor ignores them silently; a misspelled field is visible here."""
    submit(vendor, aspect_ratio="16:9", **{"\ud800": 1})
    submit(vendor, aspect_ratio="1:1")
    account = vendor.account("test")
    assert account is not None
    assert account.ledger.as_json()["unknown_fields"] == {"?": 1, "aspect_ratio": 2}
    assert "unknown fields: aspect_ratio 2, ? 1" in ledger_table(account.ledger)


# Settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": 0}, "above 0"),
        ({"public_url": "tunnel.example"}, "http"),
        ({"public_url": "https://user@tunnel.example"}, "http"),
        ({"public_url": "https://tunnel.example/path"}, "end with its host"),
        ({"speed": float("inf")}, "above 0"),
        ({"speed": float("nan")}, "above 0"),
        ({"credits": -1}, "at least 0"),
        ({"keys": ()}, "at least one key"),
        ({"keys": ("a b",)}, "visible ASCII"),
        ({"keys": ("",)}, "visible ASCII"),
        ({"workers": 0}, "at least 1"),
        ({"quality": "best"}, "quality"),
        ({"images": "some"}, "images"),
        ({"latency": -1}, "latency must be a number of at least 0"),
        ({"latency": float("inf")}, "latency must be a number of at least 0"),
        ({"faults": "drop-reply:1.5"}, "the share of drop-reply"),
        ({"faults": "drop-reply:nan"}, "the share of drop-reply"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str) -> None:
    """A setting out of range is refused at once, with a message that names it."""
    with pytest.raises(ValueError, match=words):
        SandboxSettings(**options)


def test_keys_must_be_several() -> None:
    """A single string is not taken for a collection of one-letter keys."""
    with pytest.raises(TypeError, match=r"write \('test',\)"):
        SandboxSettings(keys="test")


def test_settings_hide_their_keys() -> None:
    """The keys are not shown."""
    assert "hush" not in repr(SandboxSettings(keys=("hush",)))


# Any order of events


class VendorMachine(RuleBasedStateMachine):
    """Submits, polls, ends and waits in any order, checked against a book kept beside it."""

    @initialize(seed=st.integers(0, 1000), balance=st.sampled_from([0.0, 12.5, 40.0, 1000.0]))
    def open(self, seed: int, balance: float) -> None:
        """Open one account."""
        self.vendor = Vendor(random.Random(seed))
        self.account: Account = self.vendor.open_account(["test"], balance)
        self.start, self.now = balance, NOW
        self.accepted: list[float] = []
        self.tasks: list[Task] = []
        self.ended: dict[str, object] = {}

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule(model=st.sampled_from(["flux-kontext-pro", "flux-kontext-max", "nope"]), count=st.integers(1, 25))
    def submit(self, model: str, count: int) -> None:
        """Submit once or many times at one moment."""
        for _ in range(count):
            submission = self.vendor.submit("test", {"prompt": "x", "model": model}, self.now)
            if submission.task:
                self.accepted.append(self.now)
                self.tasks.append(submission.task)

    @rule(choice=st.integers(0), failing=st.booleans())
    def finish(self, choice: int, failing: bool) -> None:
        """Hand in images or a failure, perhaps not for the first time."""
        if self.tasks:
            task = self.tasks[choice % len(self.tasks)]
            if failing:
                self.vendor.complete(task.task_id, FLAGGED, self.now)
            else:
                self.vendor.complete(task.task_id, IMAGES, self.now)

    @rule()
    def poll(self) -> None:
        """Read records: an end never changes."""
        for task in self.tasks[-30:]:
            data = record(self.vendor, task, self.now)
            if data["successFlag"]:
                assert self.ended.setdefault(task.task_id, json.dumps(data)) == json.dumps(data)
            else:
                assert task.task_id not in self.ended

    @invariant()
    def money_adds_up(self) -> None:
        """The balance is never negative and is what the ledger says."""
        if hasattr(self, "account"):
            ledger = self.account.ledger
            assert self.account.balance >= 0
            assert self.account.balance == self.start - ledger.charged + ledger.refunded
            assert sum(line.charged for line in ledger.images.values()) == ledger.charged
            assert sum(line.refunded for line in ledger.images.values()) == ledger.refunded

    @invariant()
    def no_window_holds_more_than_twenty(self) -> None:
        """No 10 s hold more than 20 accepted submits, wherever they begin."""
        for first in getattr(self, "accepted", [])[-60:]:
            held = [at for at in self.accepted if 0 <= at - first < WINDOW]
            assert len(held) <= SUBMITS_PER_WINDOW


TestVendorMachine = VendorMachine.TestCase
TestVendorMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(
    ["prompt", "inputImage", "model", "aspectRatio", "outputFormat", "safetyTolerance", "callBackUrl", "x"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(body=json_values | st.dictionaries(names, json_values | st.just("x")))
def test_any_body_gets_an_envelope(vendor: Vendor, body: object) -> None:
    """Whatever JSON is submitted, the answer is an envelope with a known code."""
    reply = vendor.submit("other", body, NOW).reply
    decoded = json.loads(reply.encode())
    assert decoded["code"] in {200, 402, 422, 429, 500}
