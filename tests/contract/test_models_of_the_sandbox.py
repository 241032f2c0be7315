"""Client and sandbox share no code: what one submits for a model, the other makes at the same price."""

from __future__ import annotations

import json
import random
from urllib.parse import parse_qs, urlsplit

import pytest

from flux_async import EditRequest, Model, TaskStatus
from flux_async.api import load_api
from flux_async.api.echo import compare
from flux_async.api.envelope import WireResponse
from flux_async.api.models_table import ApiName
from flux_async.api.stored_requests import store_request
from flux_async.models import Echo
from flux_async.sandbox.fault_replies import Answer
from flux_async.sandbox.files import Blob
from flux_async.sandbox.models import MODELS, Api
from flux_async.sandbox.simulator import TaskImages, Vendor

NOW = 1_787_093_500.25
IMAGE = "https://example.com/poster.jpg"
BASE = "http://sandbox"
PAIRS = [
    (model, name)
    for model in Model
    for name, wire in model.row.apis.items()
    if wire.model in MODELS  # the sandbox need not have every model
]


def received(reply: Answer) -> WireResponse:
    return WireResponse(status=reply.status, body=reply.encode())


def test_the_sandbox_has_most_models() -> None:
    """The default model through both APIs, and the others that take an image and a prompt."""
    assert {(Model.PRO, "kontext"), (Model.PRO, "jobs")} <= set(PAIRS)
    assert len(PAIRS) >= 10


@pytest.mark.parametrize(("model", "name"), PAIRS, ids=[f"{model}-{name}" for model, name in PAIRS])
@pytest.mark.parametrize("shape", ["new", "old"])
def test_a_text_removal_with_every_model(model: Model, name: ApiName, shape: str) -> None:
    """It is accepted at the client's price with no unknown field, and its record is that of the request."""
    api, vendor = load_api(name), Vendor(random.Random(7), job_records="old" if shape == "old" else "new")
    account = vendor.open_account(["test"], 1000.0)
    ratio = {"aspect_ratio": "4:3"} if model.row.required else {}
    stored = store_request(EditRequest.text_removal(IMAGE, model=model, **ratio))  # type: ignore[arg-type]
    body = json.loads(api.build_submit(stored).body or b"")
    reply = vendor.submit("test", body, NOW, api=Api(name)).reply
    task_id = api.parse_submit(received(reply))
    assert account.balance == 1000.0 - model.row.credits
    assert account.ledger.unknown_fields == {}

    made = Blob(name="1", content_type="image/png")
    vendor.complete(task_id, TaskImages(origin=made, result=made), NOW)
    asked = parse_qs(urlsplit(api.build_status(task_id).path).query).get("taskId", [task_id])
    reply_later = vendor.record_info("test", asked[0], NOW + 600, BASE, api=Api(name))
    record = api.parse_status(received(reply_later), task_id)
    assert record.status is TaskStatus.SUCCESS
    assert record.result_url is not None
    assert compare(record.params, stored).echo is Echo.CONFIRMED
    assert record.credits == (model.row.credits if name == "jobs" and shape == "new" else None)


def test_one_request_through_both_apis_is_paid_twice() -> None:
    """A run that goes on over the other API must not submit again what is paid: the ledger would show it."""
    vendor = Vendor(random.Random(7))
    account = vendor.open_account(["test"], 1000.0)
    request = EditRequest.text_removal(IMAGE, output_format="png", safety_tolerance=1, prompt_upsampling=True)
    for name in Api:
        body = json.loads(load_api(name.value).build_submit(store_request(request)).body or b"")
        assert account.ledger.double_charges == []
        vendor.submit("test", body, NOW, api=name)
    assert account.ledger.double_charges == [IMAGE]
