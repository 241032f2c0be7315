"""The key is sent to the API's origin in one header, and nowhere else.

No local variable of this module may show the key: tracebacks are taken here with all local variables.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import pickle
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from flux_async import (
    ConfigurationError,
    EditRequest,
    FluxClient,
    FluxError,
    InDoubt,
    InvalidInput,
    RetryPolicy,
    run_batch,
)
from flux_async.api.envelope import WireResponse
from flux_async.transport import Answered
from flux_async.transport.factory import TransportName

KEY = "sk-3f9a-not-to-be-seen"
PACKED = tuple(base64.b64encode(f"{words}{KEY}".encode()).decode() for words in ("", "Bearer ", "a "))
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1" + bytes(13) + b"IEND\xaeB`\x82"
ENVELOPE = '{"code":401,"msg":"You do not have access permissions"}'

Responder = Callable[[httpx.Request], httpx.Response]
Call = Callable[[FluxClient], Awaitable[object]]


def reply(status: int, body: str) -> httpx.Response:
    """Answer with a body that is read as it comes, as that of a real server is."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body.encode()

    return httpx.Response(status, content=pieces())


def echo_envelope(_request: httpx.Request) -> httpx.Response:
    return reply(200, json.dumps({"code": 401, "msg": f"the key {KEY} is not known"}))


def echo_page(_request: httpx.Request) -> httpx.Response:
    return reply(502, f"<html>Authorization: Bearer {KEY}</html>")


def echo_odd_answer(_request: httpx.Request) -> httpx.Response:
    return reply(200, json.dumps({"code": 200, "data": {"task_id": "t", "seen": [KEY, *PACKED]}}))


def echo_record(request: httpx.Request) -> httpx.Response:
    data: dict[str, object] = {
        "successFlag": 3,
        "errorMessage": f"bad {KEY}",
        "paramJson": f'{{"k":"{KEY}"}}',
    }
    if request.url.path.endswith("record-info"):
        data["taskId"] = "t"
    return reply(200, json.dumps({"code": 200, "data": data}))


def refuse_connection(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError(f"cannot connect with Bearer {KEY}", request=request)


def drop_connection(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError(f"lost with Bearer {KEY}", request=request)


def fall_over(_request: httpx.Request) -> httpx.Response:
    raise RuntimeError(f"some library's bug, with Bearer {KEY}")


async def submit(client: FluxClient) -> object:
    return await client.submit(EditRequest.text_removal("https://example.com/a.jpg"))


async def wait(client: FluxClient) -> object:
    return await client.wait("t", timeout=0.05)


async def credits_(client: FluxClient) -> object:
    return await client.credits()


async def run(client: FluxClient) -> object:
    return await client.remove_text("https://example.com/a.jpg", timeout=0.05)


async def upload(client: FluxClient) -> object:
    return await client.upload(PNG, timeout=0.05)


async def upload_from_url(client: FluxClient) -> object:
    return await client.upload_from_url("https://example.com/a.jpg", timeout=0.05)


CALLS: tuple[Call, ...] = (submit, wait, credits_, run, upload, upload_from_url)
RESPONDERS: tuple[Responder, ...] = (
    echo_envelope,
    echo_page,
    echo_odd_answer,
    echo_record,
    refuse_connection,
    drop_connection,
    fall_over,
)


def contains_no_key(error: BaseException) -> bool:
    """Return whether the error's message, pickle and traceback with locals are free of the key."""
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    seen = (shown, str(error), repr(error), repr(vars(error)), repr(pickle.dumps(error)))
    return not any(secret in text for text in seen for secret in (KEY, *PACKED))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("respond", RESPONDERS, ids=lambda respond: respond.__name__)
async def test_a_failed_call_reveals_no_key(
    respond: Responder, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    """However a call fails, also where server or library echo the key, the error and the log hold no key."""
    caplog.set_level(logging.DEBUG)
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(respond)) as http_client,
        FluxClient(KEY, http_client=http_client, retry=RetryPolicy(max_tries=1)) as client,
    ):
        with pytest.raises(FluxError) as caught:
            await call(client)
        assert KEY not in repr(client)
    assert contains_no_key(caught.value)
    assert KEY not in caplog.text


async def test_a_kept_answer_contains_no_key(tmp_path: Path) -> None:
    """The journal keeps an odd answer to a submit, without the key that the server echoed in it."""
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(echo_odd_answer)) as http_client,
        FluxClient(KEY, http_client=http_client) as client,
        run_batch(client, ["https://example.com/a.jpg"], journal=tmp_path / "run.sqlite3") as batch,
    ):
        (outcome,) = [outcome async for outcome in batch]
    assert isinstance(outcome, InDoubt)
    assert "***" in outcome.error.answer
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"task_id" in kept
    assert not any(secret.encode() in kept for secret in (KEY, *PACKED))
    assert contains_no_key(outcome.error)


async def test_an_answer_read_by_a_custom_transport_is_kept_without_the_key() -> None:
    """The key is removed from a kept answer, whichever transport has read it."""

    class Bare:
        async def exchange(self, _request: object, *, timeout_s: float) -> Answered:
            body = json.dumps({"code": 200, "data": {"task_id": "t", "seen": [KEY, *PACKED]}})
            return Answered(WireResponse(status=200, body=body.encode()))

        async def aclose(self) -> None:
            """Nothing is open."""

    async with FluxClient(KEY, transport=Bare()) as client:  # type: ignore[arg-type]
        with pytest.raises(FluxError) as caught:
            await submit(client)
    assert '"task_id": "t"' in caught.value.answer
    assert not any(secret in caught.value.answer for secret in (KEY, *PACKED))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"base_url": "ftp://example.com"}, ConfigurationError),
        ({"base_url": "https://example.com/?query=1"}, ConfigurationError),
        ({"upload_url": "ftp://example.com"}, ConfigurationError),
        ({"timeout": -1}, InvalidInput),
        ({"http_client": object()}, ConfigurationError),
        ({"transport": "curl"}, ConfigurationError),
    ],
)
def test_a_refused_setting_reveals_no_key(arguments: dict[str, object], expected: type[FluxError]) -> None:
    """A setting that is refused leaves no key in the traceback, though a good key was given with it."""
    with pytest.raises(expected) as caught:
        FluxClient(KEY, **arguments)  # type: ignore[arg-type]
    assert contains_no_key(caught.value)


def test_a_key_that_cannot_be_sent_is_not_shown() -> None:
    """A key with a stray character is refused without being shown: most of it may be right."""
    with pytest.raises(ConfigurationError) as caught:
        FluxClient(f"{KEY}\N{EN DASH}")
    assert contains_no_key(caught.value)


def test_a_key_of_the_environment_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for a key that was found in ``KIE_API_KEY``."""
    monkeypatch.setenv("KIE_API_KEY", KEY)
    with pytest.raises(ConfigurationError) as caught:
        FluxClient(base_url="ftp://example.com")
    assert contains_no_key(caught.value)


@pytest.mark.parametrize("transport", ["httpx", "httpx2", "aiohttp"])
def test_a_client_shows_no_key(transport: TransportName) -> None:
    """Neither the client nor what it is made of has the key in its ``repr``."""
    client = FluxClient(KEY, transport=transport)
    account = client.session
    assert KEY not in repr((client, account, account.transport, vars(account.transport)))


def test_a_client_cannot_be_pickled() -> None:
    """The refusal contains no key."""
    with pytest.raises((ConfigurationError, TypeError)) as caught:
        pickle.dumps(FluxClient(KEY))
    assert KEY not in str(caught.value)


# --- over real sockets ------------------------------------------------------------------------------------


class Requests(list[str]):
    """What a server received, key and all, and therefore not shown as a local variable."""

    def __repr__(self) -> str:
        return f"<{len(self)} requests>"


@asynccontextmanager
async def server(answer: str) -> AsyncIterator[tuple[str, Requests]]:
    """Serve one fixed answer; yield the address and the requests as they were received."""
    requests = Requests()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        length = re.search(r"content-length: (\d+)", requests[-1], re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        writer.write(answer.encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        host, port = listener.sockets[0].getsockname()
        yield f"http://{host}:{port}", requests


def answer(status: str, body: str, header: str = "Connection: close") -> str:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{header}\r\n\r\n{body}"


@pytest.mark.parametrize("transport", ["httpx", "httpx2", "aiohttp"])
async def test_no_logger_logs_the_key(caplog: pytest.LogCaptureFixture, transport: TransportName) -> None:
    """With every logger at DEBUG, those of the HTTP libraries too, a real exchange logs no key."""
    for name in (None, "flux_async", "httpx", "httpcore", "httpcore2", "aiohttp", "asyncio"):
        caplog.set_level(logging.DEBUG, name)  # a test before may have quietened one of them
    async with (
        server(answer("401 Unauthorized", ENVELOPE)) as (url, requests),
        FluxClient(KEY, url, transport=transport) as client,
    ):
        with pytest.raises(FluxError) as caught:
            await client.credits()
    assert f"Bearer {KEY}" in requests[0]
    libraries = {"httpx": {"httpcore.http11"}, "httpx2": {"httpcore2.http11"}, "aiohttp": set()}
    assert libraries[transport] <= {record.name for record in caplog.records}
    assert KEY not in caplog.text
    assert contains_no_key(caught.value)


async def test_a_file_host_is_not_given_the_key(tmp_path: Path) -> None:
    """A download sends no key, not even to a host with a name similar to the API's."""
    async with server(answer("200 OK", "no image")) as (url, requests), FluxClient(KEY, url) as client:
        with pytest.raises(FluxError) as caught:
            await client.download(f"{url}/result.jpg", tmp_path / "result.jpg", retry=False)
    assert len(requests) == 1
    assert KEY not in requests[0]
    assert contains_no_key(caught.value)


async def test_a_redirect_of_the_api_is_not_followed() -> None:
    """Where the API answers with a redirect, nothing is sent to its target."""
    async with server(answer("200 OK", ENVELOPE)) as (elsewhere, astray):
        moved = answer("302 Found", "", f"Location: {elsewhere}/")
        async with server(moved) as (url, requests), FluxClient(KEY, url) as client:
            with pytest.raises(FluxError):
                await client.credits()
    assert len(requests) == 1
    assert astray == []


async def test_the_upload_host_is_given_the_key_and_its_redirects_are_not_followed() -> None:
    """An upload goes to the configured upload host only; where that redirects, nothing goes to the target."""
    async with server(answer("200 OK", ENVELOPE)) as (elsewhere, astray):
        moved = answer("307 Temporary Redirect", "", f"Location: {elsewhere}/\r\nConnection: close")
        async with (
            server(moved) as (host, uploads),
            server(answer("401 Unauthorized", ENVELOPE)) as (url, requests),
            FluxClient(KEY, url, upload_url=host) as client,
        ):
            for call in (client.upload(PNG), client.upload_from_url("https://example.com/a.jpg")):
                with pytest.raises(FluxError) as caught:
                    await call
                assert contains_no_key(caught.value)
    assert len(uploads) == 2
    assert all(f"Bearer {KEY}" in request for request in uploads)
    assert (requests, astray) == ([], [])


async def test_the_address_of_an_upload_is_not_given_the_key(tmp_path: Path) -> None:
    """What the upload host names as the file's address is a file host like any other."""
    async with server(answer("200 OK", "no image")) as (files, requests):
        reported = f'{{"success":true,"code":200,"data":{{"downloadUrl":"{files}/a.png"}}}}'
        async with server(answer("200 OK", reported)) as (host, _), FluxClient(KEY, host) as client:
            uploaded = await client.upload(PNG)
            with pytest.raises(FluxError):
                await client.download(uploaded.url, tmp_path / "a.png", retry=False)
    assert KEY not in requests[0]


def test_an_unencrypted_upload_host_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Where the key would cross a network unencrypted, a warning names the host, not the key."""
    FluxClient(KEY, upload_url="http://uploads.example")
    assert "http://uploads.example is plain http" in caplog.text
    assert KEY not in caplog.text
