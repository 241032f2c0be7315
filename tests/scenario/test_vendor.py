"""Expectations of every vendor, by each API: the sandbox, in process and over sockets, and the real one.

The real one is asked only where ``FLUX_LIVE=1`` is set, with the key of ``KIE_API_KEY`` and for at most
``FLUX_LIVE_MAX_CREDITS``; see ``docs/testing.md``. A test that passes with the sandbox and fails there says
where the sandbox is wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from PIL import Image, ImageDraw, ImageFont

from flux_async import (
    AuthenticationError,
    Charge,
    Echo,
    EditRequest,
    FluxClient,
    GenerateRequest,
    ImageResult,
    InvalidRequestError,
    NotFoundError,
    TaskStatus,
)
from flux_async.api.common_api import build_download_url, parse_download_url
from flux_async.api.envelope import WireRequest, read_envelope
from flux_async.api.models_table import ApiName
from flux_async.testing import FluxSandbox
from flux_async.transport import Answered

LIVE = os.environ.get("FLUX_LIVE") == "1"
APIS: tuple[ApiName, ...] = get_args(ApiName)
BACKENDS: list[tuple[str, ApiName]] = [
    ("in-process", "kontext"),
    ("sockets", "kontext"),
    ("in-process", "jobs"),
    *(("live", api) for api in APIS if LIVE),
]
PRICE = 5.0
NOBODYS_TASK = "0" * 32
UNUSED_KEY = "0123456789abcdef" * 2
SUBMIT = {"kontext": "/api/v1/flux/kontext/generate", "jobs": "/api/v1/jobs/createTask"}
MAGIC = {b"\xff\xd8\xff": "jpeg", b"\x89PN": "png"}

pytestmark = pytest.mark.timeout(600 if LIVE else 300)


@attrs.define
class Budget:
    """What all tests together may spend at the real vendor."""

    most: float
    spent: float = 0.0
    price: float = PRICE

    def correct(self, paid: float) -> None:
        """Count what a task has really cost, and take that for the price from now on."""
        self.spent += paid - self.price
        self.price = max(self.price, paid)

    def take(self, tasks: int) -> None:
        """Have tasks counted before they are paid."""
        price = tasks * self.price
        if self.spent + price > self.most:
            pytest.fail(
                f"This would spend {self.spent + price:g} credits, and FLUX_LIVE_MAX_CREDITS allows "
                f"{self.most:g}: nothing more was submitted.",
                pytrace=False,
            )
        self.spent += price


BUDGET = Budget(float(os.environ.get("FLUX_LIVE_MAX_CREDITS", "15")))
_MADE: dict[ApiName, ImageResult] = {}
"""An image of the real vendor by each API that later tests use again: each is paid once."""


@attrs.define
class Vendor:
    """One vendor, and a client of it.

    Attributes:
        api: The API of both clients.
        photo: The bytes of an image with text.
    """

    api: ApiName
    client: FluxClient
    stranger: FluxClient
    photo: bytes
    is_live: bool = False

    def spend(self, tasks: int = 1) -> None:
        """Ask whether so many tasks may be paid."""
        if self.is_live:
            BUDGET.take(tasks)

    async def generated(self) -> ImageResult:
        """Return a generated image, paid once."""
        if self.is_live and self.api in _MADE:
            return _MADE[self.api]
        self.spend()
        _MADE[self.api] = await self.client.generate("A red boat on a calm lake", aspect_ratio="1:1")
        return _MADE[self.api]

    async def says(self, body: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
        """Submit what our own checks would refuse; return the code and the envelope."""
        wire = WireRequest(method="POST", path=SUBMIT[self.api], body=json.dumps(body).encode())
        result = await self.client.session.transport.exchange(wire, timeout_s=60)
        assert isinstance(result, Answered)
        return read_envelope(result.response)


@pytest.fixture(scope="module")
def photo() -> bytes:
    """An image with text in it."""
    image = Image.new("RGB", (640, 480), (240, 225, 200))
    ImageDraw.Draw(image).text((90, 180), "AUTUMN MARKET", (40, 40, 60), ImageFont.load_default(56))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(params=BACKENDS, ids="-".join)
async def vendor(request: pytest.FixtureRequest, photo: bytes) -> AsyncIterator[Vendor]:
    """Each vendor that may be asked."""
    backend, api = request.param
    if backend == "live":
        if not os.environ.get("KIE_API_KEY"):
            pytest.fail("FLUX_LIVE=1 needs KIE_API_KEY, the key that pays.", pytrace=False)
        async with FluxClient(api=api) as client, FluxClient(UNUSED_KEY, api=api) as stranger:
            yield Vendor(api, client, stranger, photo, is_live=True)
        return
    with FluxSandbox(sockets=backend == "sockets") as box:
        yield Vendor(api, box.client(api=api), box.client(UNUSED_KEY, api=api), photo)


async def test_credits(vendor: Vendor) -> None:
    """The balance is a number."""
    assert await vendor.client.credits() >= 0


async def test_a_wrong_key(vendor: Vendor) -> None:
    """It is refused with 401, by whatever is asked, and costs nothing."""
    with pytest.raises(AuthenticationError) as asked:
        await vendor.stranger.credits()
    with pytest.raises(AuthenticationError) as submitted:
        await vendor.stranger.submit(GenerateRequest(prompt="A red boat"))
    assert asked.value.code == submitted.value.code == 401
    assert submitted.value.charge is Charge.NO


async def test_an_unknown_task(vendor: Vendor) -> None:
    """Its record is refused with 422: such a record does not exist, or is null."""
    with pytest.raises(NotFoundError, match="does not exist|recordInfo is null") as reported:
        await vendor.client.record(NOBODYS_TASK)
    assert (reported.value.code, reported.value.http_status) == (422, 200)


BOAT = {"prompt": "A red boat"}
EDIT = "https://example.com/a.jpg"
INVALID: dict[ApiName, list[tuple[dict[str, Any], int]]] = {
    "kontext": [
        ({}, 422),
        ({"prompt": ""}, 422),
        ({**BOAT, "model": "no-such-model"}, 500),
        ({**BOAT, "aspectRatio": "5:5"}, 500),
        ({**BOAT, "safetyTolerance": 7}, 500),
        ({**BOAT, "inputImage": EDIT, "safetyTolerance": 6}, 500),
    ],
    "jobs": [
        ({"model": "flux1-kontext", "input": {}}, 500),
        ({"model": "flux1-kontext", "input": {"prompt": ""}}, 500),
        ({"model": "no-such-model", "input": BOAT}, 422),
        ({"model": "flux1-kontext", "input": {**BOAT, "aspect_ratio": "5:5"}}, 500),
        ({"model": "flux1-kontext", "input": {**BOAT, "safety_tolerance": 7}}, 500),
        ({"model": "flux1-kontext", "input": {**BOAT, "input_image": EDIT, "safety_tolerance": 6}}, 500),
    ],
}


@pytest.mark.parametrize("number", range(6))
async def test_invalid_parameters(vendor: Vendor, number: int) -> None:
    """They are refused in an envelope, at HTTP 200, and no task is made."""
    vendor.spend()  # if they are not
    body, code = INVALID[vendor.api][number]
    found, envelope = await vendor.says(body)
    if vendor.is_live and found != 200:
        BUDGET.spent -= BUDGET.price
    assert not envelope.get("data")
    assert found == code


async def test_a_task_from_submit_to_end(vendor: Vendor) -> None:
    """A callback address is accepted; the record goes from generating to success, and the price is taken."""
    vendor.spend()
    before = await vendor.client.credits()
    request = GenerateRequest(
        prompt="A red boat on a calm lake",
        aspect_ratio="1:1",
        callback_url="https://example.com/flux-callback",
    )
    task = await vendor.client.submit(request)
    image = await vendor.client.wait(task, request=request, age=0.0)
    record = await vendor.client.record(task)
    if vendor.is_live:
        _MADE.setdefault(vendor.api, image)
    assert (record.task_id, record.status, record.result_url) == (task, TaskStatus.SUCCESS, image.result_url)
    assert record.created_at is not None
    assert record.completed_at is not None
    assert record.created_at <= record.completed_at
    assert record.error_code is None
    assert record.params is not None
    assert record.params["prompt"] == request.prompt
    paid = before - await vendor.client.credits()
    if vendor.is_live:
        BUDGET.correct(paid)
    assert paid == PRICE
    if vendor.api == "jobs":
        assert record.credits == PRICE
        assert image.echo is Echo.CONFIRMED


async def test_an_uploaded_image_can_be_edited(vendor: Vendor, tmp_path: Path) -> None:
    """An upload can be fetched unchanged, and be edited; the result is an image, the original is kept."""
    uploaded = await vendor.client.upload(vendor.photo, name="poster")
    assert (uploaded.size, uploaded.content_type) == (len(vendor.photo), "image/jpeg")
    fetched = await vendor.client.download(uploaded.url, tmp_path / "poster.jpg")
    assert hashlib.sha256(fetched.path.read_bytes()).hexdigest() == uploaded.sha256
    vendor.spend()
    cleaned = await vendor.client.run(EditRequest.text_removal(uploaded.url))
    assert bool(cleaned.origin_url) is (vendor.api == "kontext")
    saved = await vendor.client.download(cleaned, tmp_path / "clean.jpg")
    assert saved.path.read_bytes()[:3] in MAGIC


async def test_a_download(vendor: Vendor, tmp_path: Path) -> None:
    """A result is a whole image in the requested format, by default JPEG."""
    saved = await vendor.client.download(await vendor.generated(), tmp_path / "boat.jpg")
    assert MAGIC[saved.path.read_bytes()[:3]] == "jpeg"


async def test_a_fresh_link(vendor: Vendor, tmp_path: Path) -> None:
    """A result's address is exchanged for another one with the same image, a foreign address is refused."""
    image = await vendor.generated()

    async def exchanged(url: str) -> str:
        wire = build_download_url(url)
        result = await vendor.client.session.transport.exchange(wire, timeout_s=30)
        assert isinstance(result, Answered)
        return parse_download_url(result.response)

    fresh = await exchanged(image.result_url)
    assert fresh != image.result_url
    both = [await vendor.client.download(url, tmp_path / "a.jpg") for url in (fresh, image.result_url)]
    assert both[0].sha256 == both[1].sha256
    with pytest.raises(InvalidRequestError, match="url is wrong"):
        await exchanged("https://example.com/photo.jpg")


# --- how the real vendor is asked --------------------------------------------------------------------------


def run_live(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run these tests in a process of their own, as a person with a key would."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("KIE_", "FLUX_LIVE"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, env=others | env, capture_output=True, text=True, timeout=240, check=False)


def test_live_tests_exist_only_on_request() -> None:
    """Without ``FLUX_LIVE=1`` there is no such test, and none that is skipped."""
    done = run_live("--collect-only", __file__, KIE_API_KEY="some-key")
    assert "test_credits[sockets-kontext]" in done.stdout
    assert "live-" not in done.stdout


def test_no_key_is_an_error() -> None:
    """A live test without a key fails with what is missing."""
    done = run_live(f"{__file__}::test_credits[live-kontext]", FLUX_LIVE="1")
    assert done.returncode == 1
    assert "FLUX_LIVE=1 needs KIE_API_KEY" in done.stdout


def test_the_cap_holds_before_anything_is_spent() -> None:
    """With credits for one task, one is made; the next test fails with the reason."""
    with FluxSandbox(sockets=True) as box:
        vendor = {"KIE_API_KEY": box.key, "KIE_BASE_URL": box.url, "FLUX_LIVE": "1"}
        tests = ("test_a_task_from_submit_to_end", "test_an_uploaded_image_can_be_edited")
        ids = [f"{__file__}::{test}[live-kontext]" for test in tests]
        done = run_live(*ids, FLUX_LIVE_MAX_CREDITS="7", **vendor)
        assert box.ledger.accepted == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "This would spend 10 credits, and FLUX_LIVE_MAX_CREDITS allows 7" in done.stdout
