"""Uploads over real sockets: to the sandbox, and to hosts that drop, cut, redirect, refuse and stall."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import random
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_http
from flux_async import (
    AuthenticationError,
    Charge,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    EditRequest,
    FluxClient,
    FluxError,
    InvalidInput,
    LocalImage,
    PollPolicy,
    RequestNotSent,
    RetryPolicy,
    Scope,
    ServerError,
    UnexpectedResponse,
    UploadRejected,
)
from flux_async.files.image_source import identify

POLLING = PollPolicy(first_s=0.05, interval_s=0.05, jitter=0)
QUICK = RetryPolicy(base_s=0.001, window_s=0.001)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


def padded(size: int) -> bytes:
    """An image of so many bytes."""
    return PNG + random.Random(1).randbytes(size - len(PNG))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A file with an image."""
    path = tmp_path / "my holiday.png"
    path.write_bytes(PNG)
    return path


def stored(url: str = "https://files.example/x.png", **data: Any) -> bytes:
    """The body of a success."""
    body = {"success": True, "code": 200, "msg": "ok", "data": {"success": True, "downloadUrl": url} | data}
    return json.dumps(body).encode()


def served(url: str) -> tuple[bytes, str]:
    """What an address serves, and as what."""
    answer = local_http.get(url)
    return answer.content, answer.headers["content-type"]


# --- the sandbox ------------------------------------------------------------------------------------------


async def test_an_upload_arrives_as_it_is(sandbox_url: str, photo: Path) -> None:
    """Path, text, bytes and a stream: the address serves the same bytes, and each has its own."""

    async def stream() -> AsyncIterator[bytes]:
        yield PNG[:10]
        yield PNG[10:]

    reported: list[tuple[int, int]] = []
    async with FluxClient("test", sandbox_url) as client:
        made = [
            await client.upload(photo, on_progress=lambda sent, size: reported.append((sent, size))),
            await client.upload(str(photo)),
            await client.upload(PNG, name="scan one.PNG"),
            await client.upload(stream()),
            await client.upload(LocalImage(path="my holiday.png", folder=str(photo.parent))),
        ]
    assert reported == [(len(PNG), len(PNG))]
    assert len({one.url for one in made}) == 5
    assert "/scan-one-" in made[2].url
    for one in made:
        assert served(one.url) == (PNG, "image/png")
        assert (one.size, one.content_type, one.sha256) == (
            len(PNG),
            "image/png",
            hashlib.sha256(PNG).hexdigest(),
        )
        assert one.expires_at - one.uploaded_at == timedelta(hours=24)
        assert len(one.url.rpartition("/")[2].removesuffix(".png").rpartition("-")[2]) == 32


async def test_upload_from_url_lets_the_host_fetch_the_image(sandbox_url: str, image_host: Any) -> None:
    """An address without an image is refused, free of charge."""
    async with FluxClient("test", sandbox_url) as client:
        uploaded = await client.upload_from_url(f"{image_host.url}/poster.png")
        with pytest.raises(UploadRejected) as caught:
            await client.upload_from_url(f"{image_host.url}/none.png")
        with pytest.raises(InvalidInput):
            await client.upload_from_url("poster.png")
    content = image_host.files["/poster.png"][1]
    assert served(uploaded.url)[0] == content
    assert (uploaded.size, uploaded.content_type, uploaded.sha256) == (len(content), "image/png", None)
    assert caught.value.charge is Charge.NO


async def test_a_wrong_key_stops(sandbox_url: str, photo: Path) -> None:
    """401 has the scope of the whole batch."""
    async with FluxClient("wrong", sandbox_url) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.upload(photo)
    assert caught.value.scope is Scope.STOP


@pytest.mark.parametrize("how", ["text", "path", "edit", "submit"])
async def test_a_file_is_taken_where_a_url_is(
    sandbox_url: str, tmp_path: Path, image_host: Any, how: str
) -> None:
    """remove_text, edit and submit upload a file first; the sandbox then works on it."""
    content = image_host.files["/poster.png"][1]
    photo = tmp_path / "poster.png"
    photo.write_bytes(content)
    async with FluxClient("test", sandbox_url, polling=POLLING) as client:
        match how:
            case "text":
                image = await client.remove_text(str(photo))
            case "path":
                image = await client.remove_text(photo, output_format="png")
            case "edit":
                image = await client.edit("Make it blue", photo)
            case _:
                image = await client.wait(await client.submit(EditRequest.text_removal(photo)))
        assert image.record is not None
        assert image.record.params is not None
        assert served(str(image.record.params["inputImage"]))[0] == content


async def test_nothing_is_sent_for_what_is_neither_url_nor_file(raw_server: Any, tmp_path: Path) -> None:
    """Typing mistakes, folders, other files and other types are refused before any request, with advice."""
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    gif = tmp_path / "a.gif"
    gif.write_bytes(b"GIF89a" + bytes(40))
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)

    async def behave(*_: Any) -> bool:
        return False

    async with raw_server(behave) as server, FluxClient("k", server.url) as client:
        for bad in (
            "no-such.png",
            str(tmp_path),
            text,
            gif,
            fifo,
            tmp_path / "no.png",
            7,
            None,
            "a\0b",
            b"x",
        ):
            with pytest.raises(InvalidInput) as caught:
                await client.remove_text(bad)  # type: ignore[arg-type]
            assert caught.value.advice
        for bad in (7, b"", b"no image", ["a"], "https://example.com/a.png", text):
            with pytest.raises(InvalidInput):
                await client.upload(bad)  # type: ignore[arg-type]
        for call in (client.remove_text, partial(client.edit, "Make it blue")):
            with pytest.raises(InvalidInput, match=r"bytes of an image .* client\.upload") as caught:
                await call(PNG)  # type: ignore[operator]
            assert "PNG" not in str(caught.value)
        with pytest.raises(InvalidInput, match="upload_from_url"):
            await client.upload("https://example.com/a.png")
        with pytest.raises(InvalidInput):
            await client.remove_text("data:image/png;base64,AAAA")
        with pytest.raises(InvalidInput):
            await client.remove_text(text, safety_tolerance=9)
    assert server.requests == []


# --- hostile hosts ----------------------------------------------------------------------------------------


async def test_a_failed_upload_is_repeated_under_a_new_name(raw_server: Any, make: Any, photo: Path) -> None:
    """Dropped before the answer, cut in the answer, 500, 429: then it succeeds; no name is used twice."""
    names: list[bytes] = []

    async def behave(_: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        names.append(body.partition(b'filename="')[2].partition(b'"')[0])
        answers = [
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{",
            make.http(b'{"success":false,"code":500,"msg":"no"}', "500 Internal Server Error"),
            make.http(b'{"success":false,"code":429,"msg":"no"}', "429 Too Many Requests"),
            make.http(stored(fileSize=len(PNG))),
        ]
        writer.write(answers[len(names) - 1])
        return len(names) > 2

    async with raw_server(behave) as server, FluxClient("k", server.url, retry=QUICK) as client:
        uploaded = await client.upload(photo)
    assert uploaded.url == "https://files.example/x.png"
    assert len(set(names)) == 5
    first, headers, body = server.requests[0]
    assert first == "POST /api/file-stream-upload HTTP/1.1"
    assert headers["content-type"].startswith("multipart/form-data; boundary=")
    assert int(headers["content-length"]) == len(body)
    assert "transfer-encoding" not in headers
    assert PNG in body


@pytest.mark.parametrize(
    ("status", "body", "expected", "requests"),
    [
        ("302 Found", b"", UnexpectedResponse, 1),
        ("400 Bad Request", b'{"success":false,"code":400,"msg":"Missing"}', UploadRejected, 1),
        ("200 OK", b'{"success":false,"code":400,"msg":"Missing"}', UploadRejected, 1),
        ("401 Unauthorized", b'{"success":false,"code":401,"msg":"no"}', AuthenticationError, 1),
        ("502 Bad Gateway", b"<html>", ServerError, 2),
        ("200 OK", b"<html>", UnexpectedResponse, 2),
        ("200 OK", stored(fileSize=1), UnexpectedResponse, 2),
    ],
)
async def test_refused_uploads_are_final_and_failed_ones_are_retried(
    raw_server: Any,
    make: Any,
    photo: Path,
    status: str,
    body: bytes,
    expected: type[FluxError],
    requests: int,
) -> None:
    """Failures that may pass are retried as often as the policy says."""

    async def behave(_: str, __: dict[str, str], ___: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(make.http(body, status, "location: http://127.0.0.1:1/\r\n"))
        return True

    retry = RetryPolicy(base_s=0.001, max_tries=2)
    async with raw_server(behave) as server, FluxClient("k", server.url, retry=retry) as client:
        with pytest.raises(expected) as caught:
            await client.upload(photo)
        # A submit about the file fails with the same, uncharged, and is never made.
        with pytest.raises(expected) as again:
            await client.remove_text(photo)
    assert caught.value.charge is again.value.charge is Charge.NO
    assert len(server.requests) == 2 * requests
    assert all("upload" in first for first, _, _ in server.requests)


async def test_an_unreachable_upload_host_is_request_not_sent(photo: Path) -> None:
    """The error names the right setting."""
    retry = RetryPolicy(base_s=0.001, max_tries=2)
    async with FluxClient("k", "http://127.0.0.1:9", retry=retry) as client:
        with pytest.raises(RequestNotSent, match="KIE_UPLOAD_URL"):
            await client.upload(photo)


async def test_the_answer_of_a_host_that_does_not_read_on_counts(
    raw_server: Any, make: Any, tmp_path: Path
) -> None:
    """A refusal after the head of a large form is used, not taken for a broken connection."""
    large = tmp_path / "large.png"
    large.write_bytes(padded(9_000_000))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(make.http(b'{"success":false,"code":401,"msg":"no"}', "401 Unauthorized"))
        await writer.drain()
        await reader.read(1_000_000)
        writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, FluxClient("k", url, retry=RetryPolicy(max_tries=1)) as client:
        with pytest.raises((AuthenticationError, ConnectionLost)):
            await client.upload(large)


@pytest.fixture
def stalling(raw_server: Any) -> Any:
    """A host that never answers."""

    async def behave(*_: Any) -> bool:
        await asyncio.Event().wait()
        return False

    return raw_server(behave)


async def test_one_deadline_bounds_it(stalling: Any, photo: Path) -> None:
    """A host that never answers costs the time allowed, and nothing else."""
    async with stalling as server, FluxClient("k", server.url) as client:
        # On a busy machine there is not even a connection in that time.
        with pytest.raises((DeadlineExceeded, ConnectionLost, RequestNotSent)) as caught:
            await client.upload(photo, timeout=0.1)
        with pytest.raises(FluxError):
            await client.remove_text(photo, timeout=0.1)
    assert caught.value.charge is Charge.NO


async def test_a_cancelled_upload_leaves_a_working_client(
    stalling: Any, sandbox_url: str, photo: Path
) -> None:
    """Cancelling leaves no file open and no coroutine behind, and the client goes on."""
    async with stalling as server, FluxClient("test", sandbox_url, upload_url=server.url) as client:
        task = asyncio.get_running_loop().create_task(client.upload(photo))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.credits() > 0
    assert client.session.background.in_flight == 0


async def test_closing_the_client_ends_an_upload(stalling: Any, photo: Path) -> None:
    """The caller gets ClientClosed."""
    async with stalling as server:
        client = FluxClient("k", server.url)
        task = asyncio.get_running_loop().create_task(client.upload(photo))
        while not server.requests:
            await asyncio.sleep(0.005)
        await client.aclose()
        with pytest.raises(ClientClosed):
            await task
        with pytest.raises(ClientClosed):
            await client.upload(photo)


async def test_a_file_that_changes_is_refused(raw_server: Any, make: Any, tmp_path: Path) -> None:
    """Grown, cut or rewritten while it is read: refused, and the form is never completed."""
    photo = tmp_path / "a.png"

    async def behave(_: str, __: dict[str, str], ___: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(make.http(stored()))
        return True

    async with raw_server(behave) as server, FluxClient("k", server.url) as client:
        for change in (lambda: photo.write_bytes(padded(400_000)), lambda: os.truncate(photo, 300_000)):
            photo.write_bytes(padded(900_000))
            done: list[int] = []

            def change_once(sent: int, _: int, change: Any = change, done: Any = done) -> None:
                if not done:
                    done.append(sent)
                    change()

            with pytest.raises(InvalidInput, match="changed"):
                await client.upload(photo, on_progress=change_once)
            assert done
        known = await identify(LocalImage(path=photo))
        photo.write_bytes(padded(5000))
        with pytest.raises(InvalidInput, match="has changed since"):
            await client.upload(known)
        photo.unlink()
        with pytest.raises(InvalidInput, match=r"a\.png"):
            await client.upload(known)
        with pytest.raises(InvalidInput, match="No file with the content"):
            await client.upload(LocalImage(sha256="a" * 64))
    assert server.requests == []


async def test_size_is_limited_and_large_files_are_logged(
    sandbox_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond 20 MB all is refused unless allowed; beyond 10 MB the log warns."""
    large = tmp_path / "large.png"
    large.write_bytes(padded(21 * 1024 * 1024))

    async def endless() -> AsyncIterator[bytes]:
        yield PNG
        while True:
            yield bytes(1024 * 1024)

    async with FluxClient("test", sandbox_url) as client:
        for source in (large, endless()):
            with pytest.raises(InvalidInput, match="more than"):
                await client.upload(source)
        assert "may refuse" not in caplog.text
        with caplog.at_level(logging.WARNING):
            uploaded = await client.upload(large, max_bytes=30_000_000)
    assert "may refuse" in caplog.text
    assert uploaded.size == 21 * 1024 * 1024


async def test_memory_stays_flat(sandbox_url: str, tmp_path: Path) -> None:
    """A file is never in memory whole."""
    large = tmp_path / "large.png"
    large.write_bytes(padded(19 * 1024 * 1024))
    async with FluxClient("test", sandbox_url) as client:
        await client.upload(PNG)  # imports and pools
        tracemalloc.start()
        try:
            await client.upload(large)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


async def test_errors_of_a_stream_are_raised_and_of_an_observer_logged(
    sandbox_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are the caller's own code."""

    async def broken() -> AsyncIterator[bytes]:
        yield PNG
        raise ZeroDivisionError

    async def of_text() -> AsyncIterator[str]:
        yield "text"

    def observe(_: int, __: int) -> None:
        raise ZeroDivisionError

    async with FluxClient("test", sandbox_url) as client:
        with pytest.raises(ZeroDivisionError):
            await client.upload(broken())
        with pytest.raises(InvalidInput, match="yielded"):
            await client.upload(of_text())  # type: ignore[arg-type]
        assert (await client.upload(PNG, on_progress=observe)).size == len(PNG)
    assert "progress observer" in caplog.text


async def test_with_a_client_of_the_callers(sandbox_url: str, photo: Path) -> None:
    """An injected httpx or httpx2 client makes the uploads too."""
    httpx2 = pytest.importorskip("httpx2")
    for library in (httpx, httpx2):
        async with library.AsyncClient() as web, FluxClient("test", sandbox_url, http_client=web) as client:
            assert (await client.upload(photo)).size == len(PNG)


def test_the_image_of_these_tests_is_valid() -> None:
    """The smallest PNG of these tests is a real one."""
    from PIL import Image  # noqa: PLC0415 - only where images are opened

    with Image.open(io.BytesIO(PNG)) as image:
        image.load()
        assert image.size == (1, 1)
