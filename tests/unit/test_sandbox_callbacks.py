"""The sandbox's callbacks and faults: contents, times and numbers, without clock or socket."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from flux_async.sandbox.callbacks import CallbackQueue, CallbackRequest, sign
from flux_async.sandbox.faults import Fault, FaultPlan
from flux_async.sandbox.files import Blob
from flux_async.sandbox.simulator import Failure, Task, TaskImages, Vendor

NOW = 1_787_093_500.25
UNIX = 1_769_670_760.9
BASE = "http://sandbox"
HOOK = "http://receiver/hook?a=%7e&b=1"
KEY = "test-webhook-key"
IMAGE = "https://example.com/poster.jpg"
MINUTE = 60.0
IMAGES = TaskImages(
    origin=Blob(name="1", content_type="image/png"), result=Blob(name="2", content_type="image/jpeg")
)


@attrs.frozen
class Posted:
    """One delivery as a receiver sees it."""

    at: float
    letter: CallbackRequest
    fault: Fault | None

    @property
    def body(self) -> dict[str, Any]:
        """The decoded body."""
        body: dict[str, Any] = json.loads(self.letter.body)
        return body

    @property
    def named(self) -> str:
        """The task it names."""
        return str(self.body["data"]["taskId"])

    @property
    def result(self) -> str:
        """Where it says the result is."""
        return str(self.body["data"]["info"]["resultImageUrl"])

    def is_signed(self, age: int = 0) -> bool:
        """Whether the signature is that of the key, the task named and the time of sending."""
        timestamp = str(int(UNIX) - age)
        digest = hmac.digest(KEY.encode(), f"{self.named}.{timestamp}".encode(), hashlib.sha256)
        return self.letter.headers.items() >= {
            ("X-Webhook-Timestamp", timestamp),
            ("X-Webhook-Signature", base64.b64encode(digest).decode()),
        }

    @property
    def has_signature(self) -> bool:
        """Whether there is any signature."""
        return any(name.startswith("X-Webhook") for name in self.letter.headers)


class World:
    """A vendor and its callbacks, with a clock that jumps from one event to the next."""

    def __init__(self, *faults: Fault, key: str | None = KEY) -> None:
        self.vendor = Vendor(random.Random(7), FaultPlan.parse(",".join(faults)))
        self.account = self.vendor.open_account(["test"], 100.0)
        self.book = CallbackQueue(key)
        self.posted: list[Posted] = []
        self.answer: Callable[[Posted], int | None] = lambda _posted: 200

    def submit(self, **body: object) -> Task:
        """Create a task."""
        full = {"prompt": "Remove all text", "inputImage": IMAGE, "callBackUrl": HOOK} | body
        task = self.vendor.submit("test", full, NOW, BASE).task
        assert task is not None
        if (early := self.book.early(task)) is not None:
            self._post(early, NOW)
        return task

    def finish(self, made: TaskImages | Failure = IMAGES, **body: object) -> Task:
        """Create a task, end it, and let a day pass."""
        task = self.submit(**body)
        if isinstance(made, Failure):
            self.vendor.complete(task.task_id, made, NOW)
        else:
            self.vendor.complete(task.task_id, made, NOW)
        self.book.expect(task)
        while (due := self.book.due_at) is not None:
            self.vendor.advance(due)
            for callback in self.book.take(due):
                self._post(callback, due)
        return task

    def _post(self, callback: Any, now: float) -> None:
        posted = Posted(now, self.book.write(callback, UNIX), callback.left[0])
        self.posted.append(posted)
        self.book.settle(callback, self.answer(posted), now, now)

    @property
    def only(self) -> Posted:
        """The only delivery."""
        [posted] = self.posted
        return posted


def answers(*statuses: int | None) -> Callable[[Posted], int | None]:
    left: Iterator[int | None] = iter(statuses)
    return lambda _posted: next(left)


# What is sent


def test_success() -> None:
    """A success is sent at the task's end, byte for byte as documented, with the submit's own address."""
    world = World(key=None)
    task = world.finish()
    assert (world.only.at, world.only.letter.url) == (task.ended_at, HOOK)
    assert world.only.letter.headers == {"Content-Type": "application/json"}
    assert task.origin is not None
    assert task.result is not None
    assert world.only.letter.body.decode() == (
        f'{{"code":200,"msg":"BFL image generated successfully.","data":{{"taskId":"{task.task_id}","info":'
        f'{{"originImageUrl":"{BASE}{task.origin.path}","resultImageUrl":"{BASE}{task.result.path}"}}}}}}'
    )


@pytest.mark.parametrize("code", [400, 500, 501])
def test_failure(code: int) -> None:
    """A failure is sent with its code and message, and with empty links."""
    world = World(key=None)
    task = world.finish(Failure(code=code, message="Image generation task failed"))
    assert world.only.letter.body.decode() == (
        f'{{"code":{code},"msg":"Image generation task failed","data":{{"taskId":"{task.task_id}",'
        '"info":{"originImageUrl":"","resultImageUrl":""}}}'
    )


def test_nothing_without_an_address() -> None:
    """A task without callBackUrl is never called back, with any faults."""
    world = World(*(fault for fault in Fault if fault.startswith("callback-")))
    world.finish(callBackUrl=None)
    assert world.posted == []
    world = World(Fault.CALLBACK_EARLY)
    world.finish(callBackUrl=None)
    assert world.posted == []


def test_no_callback_before_the_image_is_made() -> None:
    """A task whose images are not made yet is not called back."""
    world = World()
    world.book.expect(world.submit())
    assert world.book.due_at is None


# Signatures


@pytest.mark.parametrize(
    ("task_id", "signature"),
    [
        ("task12345", "j3ngumcFdjBvBIReb1zSLGr3F1geqRahGXHkwJv/UVo="),
        ("e730dcfe4e5d59332daf52c08a960085", "MTikmZdXH4EBXUUsYkviuKcK8EtghrGJajVOrRUpJDE="),
    ],
)
def test_signature_vectors(task_id: str, signature: str) -> None:
    """Signatures are those computed elsewhere."""
    assert sign(KEY, task_id, 1_769_670_760) == {
        "X-Webhook-Timestamp": "1769670760",
        "X-Webhook-Signature": signature,
    }


def test_every_delivery_is_signed_anew() -> None:
    """With a key every callback is signed, a failure too; a retry at its own time of sending."""
    world = World()
    task = world.submit()
    world.vendor.complete(task.task_id, IMAGES, NOW)
    world.book.expect(task)
    timestamps = []
    for unix_time in (UNIX, UNIX + 3):
        due = world.book.due_at
        assert due is not None
        world.vendor.advance(due)
        [callback] = world.book.take(due)
        timestamps.append(world.book.write(callback, unix_time).headers["X-Webhook-Timestamp"])
        world.book.settle(callback, 500 if unix_time == UNIX else 200, due, due)
    assert timestamps == ["1769670760", "1769670763"]
    world = World()
    world.finish(Failure(code=501, message="x"))
    assert world.only.is_signed()


# When it is sent, and how often


@pytest.mark.parametrize("failure", [None, 500, 404, 302, 201, 204])
def test_given_up_after_four(failure: int | None) -> None:
    """Anything but 200 is tried again 1, 5 and 15 minutes after the failure before it, then given up."""
    world = World()
    world.answer = lambda _posted: failure
    task = world.finish()
    assert task.ended_at is not None
    begin = task.ended_at
    assert [posted.at - begin for posted in world.posted] == pytest.approx([0, 60, 6 * MINUTE, 21 * MINUTE])
    book = world.account.ledger
    assert attrs.asdict(book.callbacks) == {"sent": 4, "accepted": 0, "failed": 4, "given_up": 1}
    assert book.images[IMAGE].callbacks == 4
    assert [(attempt.status, attempt.fault) for attempt in task.callbacks] == [(failure, None)] * 4


def test_accepted_in_the_end() -> None:
    """A delivery that is accepted is the last."""
    world = World()
    world.answer = answers(None, 503, 200)
    task = world.finish()
    assert [attempt.status for attempt in task.callbacks] == [None, 503, 200]
    assert [attempt.at for attempt in task.callbacks] == [posted.at for posted in world.posted]
    counts = attrs.asdict(world.account.ledger.callbacks)
    assert counts == {"sent": 3, "accepted": 1, "failed": 2, "given_up": 0}


def test_retry_counts_from_the_failure() -> None:
    """The wait for a retry begins when the failure is known, not when the delivery was posted."""
    world = World()
    task = world.submit()
    world.vendor.complete(task.task_id, IMAGES, NOW)
    world.book.expect(task)
    world.vendor.advance(task.ready_at)
    [callback] = world.book.take(task.ready_at)
    assert world.book.due_at is None
    world.book.write(callback, UNIX)
    assert not world.book.settle(callback, None, task.ready_at, task.ready_at + 15)
    assert world.book.due_at == task.ready_at + 15 + MINUTE


def test_a_callback_waits_for_late_images() -> None:
    """If the images take longer than the drawn time."""
    world = World()
    task = world.submit()
    world.vendor.complete(task.task_id, IMAGES, task.ready_at + 5)
    world.book.expect(task)
    assert world.book.due_at == task.ready_at + 5
    assert list(world.book.take(task.ready_at + 4.9)) == []


# Faults


def test_missing() -> None:
    """A missing callback is never sent, not even early."""
    world = World(Fault.CALLBACK_MISSING, Fault.CALLBACK_EARLY)
    world.finish()
    assert world.posted == []


def test_duplicate() -> None:
    """A duplicate callback is delivered three times, each properly signed; copies are not tried again."""
    world = World(Fault.CALLBACK_DUPLICATE)
    world.answer = answers(500, 200, 500, 200)
    task = world.finish()
    assert [posted.fault for posted in world.posted] == [None, None, *[Fault.CALLBACK_DUPLICATE] * 2]
    assert len({posted.letter.body for posted in world.posted}) == 1
    assert all(posted.is_signed() for posted in world.posted)
    assert task.ended_at is not None
    assert world.posted[-1].at == task.ended_at + MINUTE


def test_late() -> None:
    """A late callback leaves two minutes after the end, and its retries are later still."""
    world = World(Fault.CALLBACK_LATE)
    world.answer = answers(500, 200)
    task = world.finish()
    assert task.ended_at is not None
    assert [posted.at - task.ended_at for posted in world.posted] == pytest.approx([120, 180])
    assert task.callbacks[0].fault is Fault.CALLBACK_LATE


def test_early() -> None:
    """An early callback claims a success when the task is created, once, and no other follows."""
    world = World(Fault.CALLBACK_EARLY)
    world.answer = answers(500)
    task = world.finish(Failure(code=500, message="x"))
    assert (world.only.at, world.only.body["code"], world.only.named) == (NOW, 200, task.task_id)
    assert world.only.is_signed()
    path = world.only.result.removeprefix(BASE)
    assert path.startswith("/files/result/")
    assert world.vendor.files.find(path, NOW) is None


@pytest.mark.parametrize("key", [KEY, None])
def test_forged(key: str | None) -> None:
    """A forged callback comes first, with a signature of another key and another result."""
    world = World(Fault.CALLBACK_FORGED, key=key)
    world.answer = answers(401, 200)
    task = world.finish()
    forged, true = world.posted
    assert (forged.fault, true.fault) == (Fault.CALLBACK_FORGED, None)
    assert (forged.at, true.at) == (task.ended_at, task.ended_at)
    assert forged.has_signature
    assert not forged.is_signed()
    assert (forged.named, true.named) == (task.task_id, task.task_id)
    assert forged.result.startswith("https://attacker.example/")
    assert true.result.startswith(BASE)
    assert true.is_signed() is (key is not None)


def test_replayed() -> None:
    """A replayed callback repeats the signature of the true one over another result."""
    world = World(Fault.CALLBACK_REPLAYED)
    world.answer = answers(500, 200, 500)
    world.finish()
    _, true, replayed = world.posted
    assert (true.fault, replayed.fault) == (None, Fault.CALLBACK_REPLAYED)
    assert true.letter.headers == replayed.letter.headers
    assert replayed.is_signed()
    assert replayed.named == true.named
    assert replayed.result.startswith("https://attacker.example/")


def test_no_replay_of_what_was_given_up() -> None:
    """Where the true callback is given up, nothing follows it."""
    world = World(Fault.CALLBACK_REPLAYED, Fault.CALLBACK_DUPLICATE)
    world.answer = lambda _posted: 500
    world.finish()
    assert len(world.posted) == 4


def test_stale() -> None:
    """A stale callback is signed as if sent ten minutes ago, and is the only one."""
    world = World(Fault.CALLBACK_STALE)
    world.answer = answers(401)
    world.finish()
    assert world.only.is_signed(age=600)
    assert world.only.result.startswith(BASE)


def test_wrong_id() -> None:
    """A callback with the id of a task that does not exist is signed for it, and is the only one."""
    world = World(Fault.CALLBACK_WRONG_ID)
    world.answer = answers(404)
    task = world.finish()
    assert world.only.is_signed()
    assert world.only.named != task.task_id
    assert len(world.only.named) == len(task.task_id)
    assert world.vendor.record_info("test", world.only.named, NOW, BASE).body["code"] == 422


def test_unsigned() -> None:
    """An unsigned callback is the true one without signature, at every try."""
    world = World(Fault.CALLBACK_UNSIGNED)
    world.answer = answers(401, 200)
    world.finish()
    assert not any(posted.has_signature for posted in world.posted)
    assert [posted.fault for posted in world.posted] == [Fault.CALLBACK_UNSIGNED] * 2


def test_several_faults_at_once() -> None:
    """All that add something come together: late, forged first, then true, copies, replay; eight at most."""
    world = World(
        Fault.CALLBACK_LATE, Fault.CALLBACK_FORGED, Fault.CALLBACK_DUPLICATE, Fault.CALLBACK_REPLAYED
    )
    world.answer = answers(500, 500, 500, 500, 200, 200, 200, 200)
    task = world.finish()
    assert task.ended_at is not None
    assert world.posted[0].at == task.ended_at + 120
    assert [posted.fault for posted in world.posted] == [
        Fault.CALLBACK_FORGED,
        *[Fault.CALLBACK_LATE] * 4,
        *[Fault.CALLBACK_DUPLICATE] * 2,
        Fault.CALLBACK_REPLAYED,
    ]
