"""The receiver as an ASGI application, called directly: each answer, the order of the checks, its limits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    CallbackEvent,
    InvalidInput,
    JobKey,
    Journal,
    JournalError,
    WebhookReceiver,
    WrongEventLoop,
)
from flux_async.api.webhooks import sign
from flux_async.job_state import JobState
from flux_async.webhook import LARGEST_BODY, MOST_HELD, SMALL_BODY

KEY = "test-webhook-key"
AT = 1769670760
ATTEMPT = "0123456789abcdef" * 2
BODY = json.dumps({"code": 200, "msg": "ok", "data": {"taskId": "task12345"}}).encode()
JSON = {"content-type": "application/json"}
REASONS = {
    400: "not a callback",
    401: "bad signature",
    405: "method not allowed",
    408: "too slow",
    413: "too large",
    415: "not application/json",
    503: "not now",
}


@attrs.define
class StoppedClock:
    """Time that a test sets."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        """Return the seconds that were set."""
        return self.seconds

    def wall(self) -> float:
        """Return the moment of the signatures and the seconds that were set."""
        return AT + self.seconds

    async def sleep(self, seconds: float) -> None:
        """Pass at once."""
        self.seconds += seconds


@attrs.define
class Book:
    """Keeps callbacks in a list, or does what a test wants instead."""

    kept: list[CallbackEvent] = attrs.field(factory=list)
    instead: Callable[[], Awaitable[None]] | None = None

    async def receive(self, event: CallbackEvent) -> None:
        """Keep a callback."""
        if self.instead is not None:
            await self.instead()
        self.kept.append(event)


@attrs.frozen
class Answer:
    """What an application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> object:
        """Why it was turned away."""
        return json.loads(self.body)["reason"]


Messages = AsyncIterator[dict[str, Any]]


async def whole(body: bytes) -> Messages:
    """Deliver a body at once."""
    yield {"type": "http.request", "body": body}


async def pieces(*chunks: bytes, then: str = "end") -> Messages:
    """Deliver a body in pieces, and then end, leave, or wait for ever."""
    for chunk in chunks:
        yield {"type": "http.request", "body": chunk, "more_body": True}
    if then == "leave":
        yield {"type": "http.disconnect"}
    if then == "end":
        yield {"type": "http.request"}
    await asyncio.Event().wait()


async def unread() -> Messages:
    """Fail where anything of the body is asked for."""
    pytest.fail("the body was read")
    yield {}


async def call(
    app: WebhookReceiver,
    body: bytes | Messages = BODY,
    *,
    method: str = "POST",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    query: bytes = f"c={ATTEMPT}".encode(),
    version: str = "1.1",
) -> Answer | None:
    """Make one request; None where it was not answered."""
    messages = whole(body) if isinstance(body, bytes) else body
    pairs = JSON | sign("task12345", KEY, at=AT) if headers is None else headers
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    scope = {
        "type": "http",
        "http_version": version,
        "method": method,
        "path": "/",
        "query_string": query,
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
    }
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, messages.__anext__, send)
    if not sent:
        return None
    start, *rest = sent
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    fields = [(name.decode(), value.decode()) for name, value in start["headers"]]
    assert len(dict(fields)) == len(fields)
    return Answer(start["status"], dict(fields), b"".join(message["body"] for message in rest))


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def stopped() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def app(book: Book, stopped: StoppedClock) -> WebhookReceiver:
    return WebhookReceiver(book, key=KEY, clock=stopped)


def with_length(length: str) -> dict[str, str]:
    return JSON | sign("task12345", KEY, at=AT) | {"content-length": length}


# --- what is received -------------------------------------------------------------------------------------


async def test_a_signed_callback(app: WebhookReceiver, book: Book) -> None:
    """A signed callback is kept with its attempt and answered 200, on a connection that goes on."""
    answer = await call(app)
    assert answer == Answer(
        200, {"content-type": "application/json", "content-length": "21"}, b'{"status":"received"}'
    )
    assert book.kept == [
        CallbackEvent(task_id="task12345", code=200, message="ok", attempt_id=ATTEMPT, signed=True)
    ]


async def test_the_same_again(app: WebhookReceiver) -> None:
    """A delivery that comes again is answered as the first one was."""
    assert await call(app) == await call(app)


@pytest.mark.parametrize("chunks", [(BODY,), (BODY[:5], b"", BODY[5:]), tuple(b"%c" % b for b in BODY)])
async def test_a_body_in_pieces(app: WebhookReceiver, chunks: tuple[bytes, ...]) -> None:
    """However a body is cut, it is one."""
    answer = await call(app, pieces(*chunks))
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON", "application/json;charset=utf-8", " application/json ; x=1"],
)
async def test_content_types_of_json(app: WebhookReceiver, kind: str) -> None:
    """The content type has no case and may have parameters."""
    answer = await call(app, headers=with_length(str(len(BODY))) | {"content-type": kind})
    assert answer is not None
    assert answer.status == 200


async def test_on_callback_comes_after_the_commit(book: Book, stopped: StoppedClock) -> None:
    """on_callback gets the event once it is kept."""
    seen: list[tuple[CallbackEvent, int]] = []
    app = WebhookReceiver(
        book, key=KEY, clock=stopped, on_callback=lambda event: seen.append((event, len(book.kept)))
    )
    await call(app)
    assert seen == [(book.kept[0], 1)]


async def test_on_callback_may_fail(
    book: Book, stopped: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What on_callback raises is logged, and the answer is the same."""

    def fail(_event: CallbackEvent) -> None:
        raise ZeroDivisionError("a bug")

    answer = await call(WebhookReceiver(book, key=KEY, clock=stopped, on_callback=fail))
    assert answer is not None
    assert answer.status == 200
    assert "on_callback failed for task task12345" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text


async def test_nothing_is_kept_without_a_journal(stopped: StoppedClock) -> None:
    """Without a journal only on_callback learns of a callback."""
    seen: list[CallbackEvent] = []
    app = WebhookReceiver(None, key=KEY, clock=stopped, on_callback=seen.append)
    assert await call(app)
    assert [event.task_id for event in seen] == ["task12345"]
    assert await call(WebhookReceiver(None, key=KEY, clock=stopped))


async def test_without_a_key_it_warns_once(
    book: Book, stopped: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a key every callback of the right shape is accepted as unsigned, with one log line."""
    app = WebhookReceiver(book, clock=stopped)
    for headers in (JSON, JSON | sign("task12345", KEY, at=AT)):
        assert await call(app, headers=headers)
    assert [event.signed for event in book.kept] == [False, False]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_wrong_key_is_logged_once(
    book: Book, stopped: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason why no callback is accepted."""
    app = WebhookReceiver(book, key="another", clock=stopped)
    for _ in range(3):
        await call(app, headers=JSON | sign("task12345", KEY, at=AT))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "kie.ai/settings" in warnings[0]
    assert "another" not in warnings[0]


async def test_one_key_replaces_another(book: Book, stopped: StoppedClock) -> None:
    """Each of several keys is right."""
    app = WebhookReceiver(book, key=["new", KEY.encode()], clock=stopped)
    for key, status in (("new", 200), (KEY, 200), ("other", 401)):
        answer = await call(app, headers=JSON | sign("task12345", key, at=AT))
        assert answer is not None
        assert answer.status == status


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (405, {"method": "GET", "body": b"", "headers": {}}),
        (405, {"method": "PUT"}),
        (405, {"method": "post"}),
        (415, {"headers": {}}),
        (415, {"headers": {"content-type": "text/plain"}}),
        (415, {"headers": {"content-type": "application/jsonp"}}),
        (415, {"headers": {"content-type": "application/json, text/plain"}}),
        (415, {"headers": [("content-type", "application/json")] * 2}),
        (400, {"body": b""}),
        (400, {"body": b"{}"}),
        (400, {"body": b"\xff"}),
        (400, {"body": b"[" * LARGEST_BODY}),
        (400, {"body": b'{"taskId":"a","task_id":"b"}'}),
        (401, {"headers": JSON}),
        (401, {"headers": JSON | sign("task12345", "wrong", at=AT)}),
        (401, {"headers": JSON | sign("task54321", KEY, at=AT)}),
        (401, {"headers": JSON | sign("task12345", KEY, at=AT - 301)}),
        (401, {"headers": JSON | sign("task12345", KEY, at=AT + 301)}),
        (
            401,
            {
                "headers": [*JSON.items(), *sign("task12345", KEY, at=AT).items()] * 1
                + [("x-webhook-timestamp", "1")]
            },
        ),
        (413, {"body": b" " * (LARGEST_BODY + 1)}),
    ],
)
async def test_answers_of_what_was_read_whole(
    app: WebhookReceiver, book: Book, status: int, request_: dict[str, Any]
) -> None:
    """Each fault has its status and its fixed text; nothing is kept, and the connection stays open."""
    answer = await call(app, **request_)
    assert answer is not None
    assert (answer.status, answer.reason) == (status, REASONS[status])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)
    assert "connection" not in answer.headers
    assert book.kept == []


@pytest.mark.parametrize(
    ("status", "method", "headers"),
    [
        (405, "PUT", with_length("5")),
        (405, "GET", {"transfer-encoding": "chunked"}),
        (415, "POST", {"content-length": "5"}),
        (413, "POST", with_length(str(LARGEST_BODY + 1))),
        (413, "POST", with_length("1073741824")),
        (400, "POST", with_length("-1")),
        (400, "POST", with_length("+5")),
        (400, "POST", with_length("5_0")),
        (400, "POST", with_length("5, 5")),
        (400, "POST", with_length("")),
        (400, "POST", with_length("٣")),
        (400, "POST", with_length("9" * 5000)),
        (400, "POST", [*with_length("5").items(), ("content-length", "5")]),
    ],
)
async def test_answers_before_the_body(
    app: WebhookReceiver, status: int, method: str, headers: dict[str, str]
) -> None:
    """Faults of the head are answered without reading a byte, and end the connection."""
    answer = await call(app, unread(), method=method, headers=headers)
    assert answer is not None
    assert (answer.status, answer.reason) == (status, REASONS[status])
    assert answer.headers["connection"] == "close"


async def test_only_http_1_has_the_connection_header(app: WebhookReceiver) -> None:
    """HTTP/2 and HTTP/3 forbid the header."""
    for version in ("2", "3"):
        answer = await call(app, unread(), headers=with_length("1073741824"), version=version)
        assert answer is not None
        assert (answer.status, "connection" in answer.headers) == (413, False)


async def test_head_has_no_body(app: WebhookReceiver) -> None:
    """HEAD is answered as GET is, without the body."""
    answer = await call(app, b"", method="HEAD", headers={})
    assert answer is not None
    assert (answer.status, answer.body, answer.headers["content-length"]) == (405, b"", "51")


async def test_the_order_of_the_checks(app: WebhookReceiver) -> None:
    """Of several faults the first in order is answered: method, type, length, body, shape, signature."""
    bad_type, bad_length = {"content-type": "text/plain"}, {"content-length": "999999"}
    faults: list[tuple[int, dict[str, Any]]] = [
        (405, {"method": "GET", "headers": bad_type | bad_length, "body": unread()}),
        (415, {"headers": bad_type | bad_length, "body": unread()}),
        (413, {"headers": JSON | bad_length, "body": unread()}),
        (413, {"headers": JSON, "body": pieces(b"x" * LARGEST_BODY, b"x")}),
        (400, {"headers": JSON, "body": b"x"}),
        (401, {"headers": JSON, "body": BODY}),
    ]
    for status, request in faults:
        answer = await call(app, **request)
        assert answer is not None
        assert answer.status == status


async def test_answers_contain_nothing_secret(app: WebhookReceiver) -> None:
    """Neither answers nor the receiver's repr have the key, the right signature or text of the body."""
    right = sign("task12345", KEY, at=AT)["X-Webhook-Signature"]
    answer = [await call(app, headers=JSON), await call(app, b'"private"'), await call(app, method="GET")]
    for text in (KEY, right, "private", "flux"):
        assert all(one is not None and text not in repr(one) for one in answer)
    assert KEY not in repr(app)


# --- limits of time and memory ----------------------------------------------------------------------------


async def test_a_body_stops_at_the_cap(app: WebhookReceiver) -> None:
    """A body of unknown length that goes on is stopped at the cap, and the connection ends."""
    asked = 0

    async def endless() -> Messages:
        nonlocal asked
        while True:
            asked += 1
            yield {"type": "http.request", "body": b" " * 65536, "more_body": True}

    answer = await call(app, endless())
    assert answer is not None
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert asked == LARGEST_BODY // 65536 + 1


async def test_the_largest_body_is_read(app: WebhookReceiver) -> None:
    """A body of exactly the cap is read."""
    answer = await call(app, BODY + b" " * (LARGEST_BODY - len(BODY)), headers=with_length(str(LARGEST_BODY)))
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize("chunks", [(), (BODY[:9],)])
async def test_a_slow_body(book: Book, stopped: StoppedClock, chunks: tuple[bytes, ...]) -> None:
    """A body that does not arrive in time is answered 408, and the connection ends."""
    app = WebhookReceiver(book, key=KEY, clock=stopped, body_timeout_s=0.01)
    answer = await call(app, pieces(*chunks, then="wait"))
    assert answer is not None
    assert (answer.status, answer.reason, answer.headers["connection"]) == (408, "too slow", "close")


async def test_a_body_that_drips(book: Book, stopped: StoppedClock) -> None:
    """The time is for the whole body: a byte now and then does not prolong it."""
    app = WebhookReceiver(book, key=KEY, clock=stopped, body_timeout_s=0.05)

    async def drip() -> Messages:
        while True:
            await asyncio.sleep(0.01)
            yield {"type": "http.request", "body": b" ", "more_body": True}

    answer = await call(app, drip())
    assert answer is not None
    assert answer.status == 408


@pytest.mark.parametrize("chunks", [(), (BODY,)])
async def test_a_client_that_disconnects_gets_no_answer(
    app: WebhookReceiver, book: Book, chunks: tuple[bytes, ...]
) -> None:
    """If it leaves before its body is whole, it is forgotten."""
    assert await call(app, pieces(*chunks, then="leave")) is None
    assert book.kept == []


async def test_slow_senders_cannot_fill_the_memory(app: WebhookReceiver, book: Book) -> None:
    """When bodies use all allowed memory, large ones are refused and small ones pass until it is free."""
    senders = MOST_HELD // LARGEST_BODY
    full = asyncio.Event()

    async def hold() -> Messages:
        yield {"type": "http.request", "body": b" " * LARGEST_BODY, "more_body": True}
        full.set()
        await asyncio.Event().wait()

    large = BODY + b" " * (SMALL_BODY + 1 - len(BODY))
    async with asyncio.TaskGroup() as group:
        holding = [group.create_task(call(app, hold())) for _ in range(senders)]
        await full.wait()
        answer = await call(app, large)
        assert answer is not None
        assert (answer.status, answer.reason, answer.headers["retry-after"]) == (503, "not now", "10")
        small = await call(app, BODY + b" " * (SMALL_BODY - len(BODY)))
        assert small is not None
        assert small.status == 200
        for request in holding:
            request.cancel()
    again = await call(app, large)
    assert again is not None
    assert again.status == 200
    assert len(book.kept) == 2


# --- commits ----------------------------------------------------------------------------------------------


async def _disk_full() -> None:
    raise JournalError("The journal could not be written: database or disk is full.")


async def _bug() -> None:
    raise RuntimeError("a bug")


async def _never() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("instead", [_disk_full, _bug, _never])
async def test_commits_that_fail(
    book: Book, stopped: StoppedClock, instead: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a callback could not be kept, whatever the reason, the vendor is asked to come again."""
    caplog.set_level(logging.INFO)
    seen: list[CallbackEvent] = []
    timeout_s = 0.01 if instead is _never else 60.0
    app = WebhookReceiver(book, key=KEY, clock=stopped, on_callback=seen.append, commit_timeout_s=timeout_s)
    book.instead = instead
    answer = await call(app)
    assert answer is not None
    assert (answer.status, answer.reason, answer.headers["retry-after"]) == (503, "not now", "10")
    assert seen == []
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    book.instead = None
    again = await call(WebhookReceiver(book, key=KEY, clock=stopped))
    assert again is not None
    assert again.status == 200


async def test_cancelling_passes_through(book: Book, stopped: StoppedClock) -> None:
    """A request that is cancelled ends so, while it reads and while it commits."""
    app = WebhookReceiver(book, key=KEY, clock=stopped)
    book.instead = _never
    for body in (pieces(then="wait"), whole(BODY)):
        async with asyncio.TaskGroup() as group:
            request = group.create_task(call(app, body))
            await asyncio.sleep(0.01)
            request.cancel()
        assert request.cancelled()


async def test_a_commit_outlives_its_request(tmp_path: Path) -> None:
    """A commit that has begun comes to pass, though the request is cancelled."""
    async with Journal(tmp_path / "run.sqlite3") as journal:
        begun = asyncio.Event()

        class Slow:
            async def receive(self, event: CallbackEvent) -> None:
                begun.set()
                await journal.add([(JobKey(event.task_id), "{}")])

        app = WebhookReceiver(Slow(), key=KEY, clock=StoppedClock())
        async with asyncio.TaskGroup() as group:
            request = group.create_task(call(app))
            await begun.wait()
            request.cancel()
        assert request.cancelled()
        assert await journal.counts() == {JobState.PENDING: 1}


# --- the log ----------------------------------------------------------------------------------------------


async def test_the_log_has_one_line_a_second(
    app: WebhookReceiver, stopped: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However many are turned away, the log has a line a second, with what and how often."""
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "INFO"]

    for _ in range(100):
        await call(app, headers=JSON)
    await call(app, b"private")
    assert lines() == ["webhook: refused: 1 bad signature"]
    stopped.seconds += 1
    await call(app, b"private")
    assert lines()[1:] == ["webhook: refused: 99 bad signature, 2 not a callback"]
    await call(app, method="GET")
    await app.aclose()
    await app.aclose()
    assert lines()[2:] == ["webhook: refused: 1 method not allowed"]
    assert KEY not in caplog.text
    assert "private" not in caplog.text


async def test_failures_are_logged_once_a_second(
    book: Book, app: WebhookReceiver, stopped: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that fails does not fill the log either."""
    book.instead = _disk_full
    for _ in range(10):
        await call(app)
    stopped.seconds += 1
    await call(app)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert "disk is full" in errors[0]


# --- its own journal --------------------------------------------------------------------------------------


async def test_a_path_is_opened_by_the_first_callback(tmp_path: Path, stopped: StoppedClock) -> None:
    """The journal of a path is opened when it is needed, once for all callbacks, and closed."""
    path = tmp_path / "new" / "run.sqlite3"
    app = WebhookReceiver(path, key=KEY, clock=stopped)
    assert repr(app) == f"<WebhookReceiver with 1 key(s) into <Inbox of {path}>>"
    await call(app, headers=JSON)
    assert not path.exists()
    async with asyncio.TaskGroup() as group:
        several = [group.create_task(call(app)) for _ in range(20)]
    assert {answer.status for task in several if (answer := task.result())} == {200}
    await app.aclose()
    await app.aclose()
    async with Journal(path) as journal:
        assert await journal.newest_callback() == 0  # no attempt of this journal was named


async def test_async_with_opens_at_once(tmp_path: Path, stopped: StoppedClock) -> None:
    """``async with`` opens the journal of a path and closes it; a bad one fails there."""
    path = tmp_path / "run.sqlite3"
    async with WebhookReceiver(str(path), key=KEY, clock=stopped) as app:
        assert path.exists()
        assert await call(app)
    async with WebhookReceiver(None, key=KEY):
        pass
    path.write_text("no journal")
    with pytest.raises(JournalError, match="is not a journal"):
        async with WebhookReceiver(path, key=KEY):
            pass


async def test_a_path_that_fails_is_tried_again(tmp_path: Path, stopped: StoppedClock) -> None:
    """While the journal cannot be opened the answer is 503, and 200 as soon as it can."""
    path = tmp_path / "run.sqlite3"
    path.write_text("no journal")
    app = WebhookReceiver(path, key=KEY, clock=stopped)
    first = await call(app)
    path.unlink()
    second = await call(app)
    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (503, 200)
    await app.aclose()


def test_a_journal_belongs_to_one_loop(
    tmp_path: Path, stopped: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Another event loop gets 503 and an error that says why, until the first has closed the journal."""
    app = WebhookReceiver(tmp_path / "run.sqlite3", key=KEY, clock=stopped)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(call(app)).status == 200  # type: ignore[union-attr]
        assert second.run(call(app)).status == 503  # type: ignore[union-attr]
        assert "opened on another event loop" in caplog.text
        with pytest.raises(WrongEventLoop):
            second.run(app.aclose())
        first.run(app.aclose())
        assert second.run(call(app)).status == 200  # type: ignore[union-attr]
        second.run(app.aclose())


@pytest.mark.parametrize("journal", [5, b"run.sqlite3", object(), [], Path])
def test_journals_that_are_none(journal: Any) -> None:
    """What can keep no callbacks is refused when the receiver is made."""
    with pytest.raises(InvalidInput, match="journal must be"):
        WebhookReceiver(journal, key=KEY)


@pytest.mark.parametrize("path", [":memory:", "a\0b"])
def test_paths_that_are_none(path: str) -> None:
    """A path that can be no file others see is refused when the receiver is made."""
    with pytest.raises(JournalError):
        WebhookReceiver(path, key=KEY)


async def _coroutine(_event: CallbackEvent) -> None: ...


class _Coroutine:
    async def __call__(self, _event: CallbackEvent) -> None: ...


@pytest.mark.parametrize("observer", [5, "ring", _coroutine, partial(_coroutine), _Coroutine()])
def test_on_callback_must_be_a_plain_function(observer: Any) -> None:
    """A coroutine would never be awaited."""
    with pytest.raises(InvalidInput, match="on_callback must be a plain function"):
        WebhookReceiver(None, key=KEY, on_callback=observer)


@pytest.mark.parametrize("key", ["", " ", [""], 5])
def test_keys_that_are_none(key: Any) -> None:
    """A blank key is refused, not taken for none."""
    with pytest.raises(InvalidInput, match="webhook key"):
        WebhookReceiver(None, key=key)


# --- the other scopes -------------------------------------------------------------------------------------


async def run_scope(app: WebhookReceiver, kind: str, *messages: str) -> list[dict[str, Any]]:
    """Serve a scope of another type."""
    waiting = iter(messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.{next(waiting)}"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": kind, "headers": []}, receive, send)
    return sent


async def test_lifespan_opens_and_closes(tmp_path: Path, stopped: StoppedClock) -> None:
    """Served by itself, the receiver opens its journal when the server starts and closes it when it stops."""
    path = tmp_path / "run.sqlite3"
    app = WebhookReceiver(path, key=KEY, clock=stopped)
    sent = await run_scope(app, "lifespan", "startup", "shutdown")
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert path.exists()
    assert not path.with_name(path.name + "-wal").exists()


async def test_the_lifespan_reports_its_failure(tmp_path: Path) -> None:
    """A server does not start upon a journal that cannot be opened."""
    path = tmp_path / "run.sqlite3"
    path.write_text("no journal")
    sent = await run_scope(WebhookReceiver(path, key=KEY), "lifespan", "startup", "shutdown")
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert str(path) in sent[0]["message"]


async def test_websockets_are_closed(app: WebhookReceiver) -> None:
    """A websocket is closed before it is open."""
    assert await run_scope(app, "websocket", "connect") == [{"type": "websocket.close"}]


async def test_unknown_scopes_are_errors(app: WebhookReceiver) -> None:
    """As ASGI wants it, a scope of an unknown type is an error."""
    with pytest.raises(InvalidInput, match="only http"):
        await run_scope(app, "gopher")
