"""httpx and httpx2 only, and downloads; ``test_transport_conformance.py`` holds for all transports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from flux_async import (
    ConfigurationError,
    DownloadCutShort,
    DownloadError,
    FluxClient,
    InvalidInput,
    Limits,
)
from flux_async.api.envelope import WireRequest
from flux_async.transport import Answered, NotSent, Unknown
from flux_async.transport.credentials import Credentials
from flux_async.transport.httpx_ import NEVER_SENT, HttpxTransport, family_of

KEY = "k-secret-0123456789"
GET = WireRequest(method="GET", path="/api/v1/flux/kontext/record-info", keep_alive=True)
POST = WireRequest(method="POST", path="/api/v1/flux/kontext/generate", body=b'{"prompt":"x"}')
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x04\x00\x00"  # SOI, APP0
    b"\xff\xc0\x00\x0b\x08\x00\x10\x00\x20\x01\x01\x11\x00"  # SOF0: 32 by 16
    b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(200_000) + b"\xff\xd9"  # SOS, EOI
)


def _all_of(family: Any) -> list[type[Exception]]:
    exported = [getattr(family, name) for name in family.__all__]
    return [kind for kind in exported if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("family", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_every_exception_of_the_library_is_not_sent_or_unknown(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map covers every exception the library exports, and only pre-send ones count as not sent.

    Of a client of the caller's none counts without the reports of the library's own carrier.
    """
    never_sent = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
    assert never_sent == NEVER_SENT
    kinds = _all_of(family)
    assert len(kinds) > 20
    for kind in kinds:

        async def handle(self: Any, request: Any, kind: type[Exception] = kind) -> Any:
            error = kind.__new__(kind)
            error.args = (f"echo {KEY}",)
            raise error

        monkeypatch.setattr(family.AsyncHTTPTransport, "handle_async_request", handle)
        transport = HttpxTransport(
            Credentials(KEY, "http://127.0.0.1:1"), version="1", family=family.__name__
        )
        result = await transport.exchange(POST, timeout_s=60)
        assert isinstance(result, NotSent if kind.__name__ in never_sent else Unknown), kind
        assert KEY not in result.reason
        async with family.AsyncClient() as given:
            transport = HttpxTransport(Credentials(KEY, "http://127.0.0.1:1"), version="1", client=given)
            assert isinstance(await transport.exchange(POST, timeout_s=60), Unknown)


class SmallPool(httpx.AsyncHTTPTransport):
    """A pool of one connection, which a submit gets at once or not at all, whatever time is allowed."""

    def __init__(self) -> None:
        super().__init__(limits=httpx.Limits(max_connections=1))
        self.allowed_s: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Take the time for a slot out of a submit."""
        if request.method == "POST":
            self.allowed_s.append(request.extensions["timeout"]["pool"])
            request.extensions["timeout"]["pool"] = 0.001
        return await super().handle_async_request(request)


async def test_a_request_that_gets_no_connection_of_the_callers_client_is_not_sent(
    raw_server: Any, make: Any
) -> None:
    """An earlier request has shown that the client has a pool. A wait for a slot ends before the deadline."""
    busy = asyncio.Event()

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if busy.is_set():
            await asyncio.Event().wait()
        writer.write(make.http(b"{}"))
        return True

    pool = SmallPool()
    async with raw_server(behave) as server, httpx.AsyncClient(transport=pool) as given:
        transport = HttpxTransport(Credentials(KEY, server.url), version="1", client=given)
        assert isinstance(await transport.exchange(GET, timeout_s=60), Answered)
        busy.set()
        async with asyncio.TaskGroup() as group:
            poll = group.create_task(transport.exchange(GET, timeout_s=60))
            while len(server.requests) < 2:
                await asyncio.sleep(0.001)
            assert isinstance(await transport.exchange(POST, timeout_s=60), NotSent)
            poll.cancel()
    assert len(server.requests) == 2
    assert pool.allowed_s == [30]


class ForeignTransport(httpx.AsyncBaseTransport):
    """A transport of another package that raises ConnectTimeout for a delivered request."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raise an exception that does not fit."""
        raise httpx.ConnectTimeout("delivered all the same")


async def test_an_exception_of_a_foreign_transport_proves_nothing() -> None:
    """Of a foreign transport, ConnectTimeout does not prove that nothing was sent."""
    for given in (
        httpx.AsyncClient(transport=ForeignTransport()),
        httpx.AsyncClient(mounts={"http://": ForeignTransport()}),
    ):
        async with given:
            transport = HttpxTransport(Credentials(KEY, "http://127.0.0.1:1"), version="1", client=given)
            assert isinstance(await transport.exchange(POST, timeout_s=60), Unknown)


async def test_an_injected_client_stays_open_and_keeps_its_secrets(raw_server: Any, make: Any) -> None:
    """The caller closes it, and its own credentials do not replace the key."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(b"{}"))
        return True

    async with raw_server(behave) as server, httpx.AsyncClient(auth=("user", "password")) as given:
        transport = HttpxTransport(Credentials(KEY, server.url), version="1", client=given)
        await transport.exchange(GET, timeout_s=60)
        await transport.aclose()
        assert not given.is_closed
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"


def test_only_async_clients_of_the_two_libraries_are_accepted() -> None:
    """Subclasses are accepted; synchronous clients are not."""

    class Mine(httpx.AsyncClient):
        pass

    assert family_of(Mine()) is httpx
    assert family_of(httpx2.AsyncClient()) is httpx2
    with httpx.Client() as sync, pytest.raises(ConfigurationError, match="not Client"):
        family_of(sync)


@pytest.fixture
async def file_client(raw_server: Any) -> Any:
    """A client that only downloads files."""
    async with FluxClient(KEY, "http://127.0.0.1:1") as client:
        yield client


async def test_a_download_is_whole_and_carries_no_key(
    file_client: Any, raw_server: Any, tmp_path: Path, make: Any
) -> None:
    """The file has its name and all its bytes, and the file host received neither key nor cookie."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if first.startswith("GET /moved"):
            writer.write(make.http(b"", "302 Found", "location: /r.jpg\r\nset-cookie: a=b\r\n"))
        else:
            writer.write(make.http(JPEG))
        return True

    async with raw_server(behave) as server:
        saved = await file_client.download(f"{server.url}/moved.jpg", tmp_path / "new" / "clean.jpg")
    path = saved.path
    assert path == tmp_path / "new" / "clean.jpg"
    assert path.read_bytes() == JPEG
    assert [p.name for p in path.parent.iterdir()] == ["clean.jpg"]
    assert all("authorization" not in headers for _, headers, _ in server.requests)
    assert KEY not in str(server.requests)


async def test_the_suffix_matches_the_content_on_request(
    file_client: Any, raw_server: Any, tmp_path: Path, make: Any
) -> None:
    """A JPEG that was requested as PNG gets the suffix .jpg."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(JPEG))
        return True

    async with raw_server(behave) as server:
        saved = await file_client.download(f"{server.url}/r", tmp_path / "clean.png", match_suffix=True)
    assert saved.path.name == "clean.jpg"


HOSTILE_FILES = {
    "gone": (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", DownloadError, "HTTP 404"),
    "forbidden": (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", DownloadError, "HTTP 403"),
    "a web page": (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", DownloadError, "no JPEG"),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", DownloadError, "empty"),
    "cut off": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n\xff\xd8\xff\xe0",
        DownloadError,
        "broke off",
    ),
    "silence": (b"", DownloadCutShort, "closed the connection without an answer"),
    "round and round": (
        b"HTTP/1.1 302 Found\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n",
        DownloadError,
        "more than 5 times",
    ),
}


@pytest.mark.parametrize(("said", "kind", "says"), HOSTILE_FILES.values(), ids=HOSTILE_FILES)
async def test_a_bad_file_leaves_nothing_behind(
    file_client: Any,
    raw_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: bytes,
    kind: type,
    says: str,
) -> None:
    """No partial file, and no web page under the name of an image; the error says what happened."""
    monkeypatch.setattr("flux_async.policy.downloads.RESUME_BASE_S", 0.0)

    async def behave(*args: Any) -> bool:
        args[3].write(said)
        await args[3].drain()
        return b"302" in said

    async with raw_server(behave) as server:
        with pytest.raises(kind, match=says):
            await file_client.download(f"{server.url}/r.jpg", tmp_path / "clean.jpg", retry=False)
    assert list(tmp_path.iterdir()) == []


async def test_a_slow_file_ends_at_the_timeout(file_client: Any, raw_server: Any, tmp_path: Path) -> None:
    """The timeout holds for the whole download."""

    async def behave(*args: Any) -> bool:
        args[3].write(b"HTTP/1.1 200 OK\r\ncontent-length: 60000000\r\n\r\n" + JPEG[:-2])
        while True:
            args[3].write(bytes(300_000))
            await args[3].drain()
            await asyncio.sleep(0.01)

    async with raw_server(behave) as server:
        for timeout_s in (0.1, 1.0, 10.0):  # a busy machine may need longer to connect
            with pytest.raises(DownloadError) as caught:
                await file_client.download(
                    f"{server.url}/r.jpg", tmp_path / "clean.jpg", timeout=timeout_s, retry=False
                )
            if server.requests:
                break
        assert f"longer than {timeout_s:g} s" in str(caught.value)
        async with asyncio.timeout(60):
            while file_client.session.background.in_flight:
                await asyncio.sleep(0.005)
    assert list(tmp_path.iterdir()) == []


async def test_an_error_of_the_disk_is_reported(
    file_client: Any, raw_server: Any, tmp_path: Path, make: Any
) -> None:
    """The error names the path and says that the paid result is still available."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(JPEG))
        return True

    (tmp_path / "file").write_text("in the way")
    async with raw_server(behave) as server:
        with pytest.raises(DownloadError, match="cannot be written.*kept for 14 days"):
            await file_client.download(f"{server.url}/r.jpg", tmp_path / "file" / "clean.jpg", retry=False)


async def test_a_cancelled_download_ends_soon_and_leaves_nothing(
    file_client: Any, raw_server: Any, tmp_path: Path
) -> None:
    """It stops at the next chunk."""
    started = asyncio.Event()

    async def behave(*args: Any) -> bool:
        args[3].write(b"HTTP/1.1 200 OK\r\ncontent-length: 60000000\r\n\r\n" + JPEG[:-2])
        while True:
            args[3].write(bytes(300_000))
            await args[3].drain()
            started.set()
            await asyncio.sleep(0.005)

    async with raw_server(behave) as server:
        url, loop = f"{server.url}/r.jpg", asyncio.get_running_loop()
        call = loop.create_task(file_client.download(url, tmp_path / "clean.jpg", retry=False))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(60):
            while file_client.session.background.in_flight:
                await asyncio.sleep(0.005)
    assert list(tmp_path.iterdir()) == []


async def test_a_hook_that_fails_after_the_answer_does_not_make_it_unsent(raw_server: Any, make: Any) -> None:
    """A response hook that fails to connect does not prove anything about the submit: one POST only."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(b'{"code":200,"data":{"taskId":"t1"}}'))
        return True

    async def report(response: Any) -> None:
        raise httpx.ConnectError("the metrics host is down")

    class Mine(httpx.AsyncClient):
        async def send(self, *args: Any, **kwargs: Any) -> Any:
            await super().send(*args, **kwargs)
            raise httpx.ConnectError("the metrics host is down")

    async with raw_server(behave) as server:
        for given in (httpx.AsyncClient(event_hooks={"response": [report]}), Mine()):
            async with given:
                transport = HttpxTransport(Credentials(KEY, server.url), version="1", client=given)
                assert isinstance(await transport.exchange(POST, timeout_s=60), Unknown)


async def test_a_closed_client_and_an_impossible_address_are_not_sent() -> None:
    """Nothing was sent, so nothing is charged."""
    given = httpx.AsyncClient()
    await given.aclose()
    transport = HttpxTransport(Credentials(KEY, "http://127.0.0.1:1"), version="1", client=given)
    assert isinstance(await transport.exchange(POST, timeout_s=60), NotSent)
    transport = HttpxTransport(Credentials(KEY, "http://xn--a"), version="1")
    assert isinstance(await transport.exchange(POST, timeout_s=60), NotSent)


async def test_default_parameters_of_the_callers_client_do_not_replace_ours(
    raw_server: Any, make: Any
) -> None:
    """The task id is sent whatever parameters the client adds to each request."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(b"{}"))
        return True

    poll = WireRequest(method="GET", path="/record-info", query={"taskId": "a b"})
    async with raw_server(behave) as server, httpx.AsyncClient(params={"v": "1"}) as given:
        transport = HttpxTransport(Credentials(KEY, server.url), version="1", client=given)
        await transport.exchange(poll, timeout_s=60)
    assert "taskId=a+b" in server.requests[0][0] or "taskId=a%20b" in server.requests[0][0]


async def test_a_stopped_request_leaves_no_connection(raw_server: Any) -> None:
    """A connection whose request was stopped in the middle of an answer is closed, and not used again."""

    async def behave(*args: Any) -> bool:
        args[3].write(b"HTTP/1.1 200 OK\r\n")
        while True:
            args[3].write(b"x: y\r\n")
            await args[3].drain()
            await asyncio.sleep(0.005)

    async with raw_server(behave) as server:
        transport = HttpxTransport(Credentials(KEY, server.url), version="1")
        stopped = 0
        async with asyncio.timeout(60):
            while stopped < 3:
                result = await transport.exchange(GET, timeout_s=0.2)
                assert isinstance(result, Unknown | NotSent)  # a busy machine may take longer to connect
                stopped += isinstance(result, Unknown)
            while server.open:
                await asyncio.sleep(0.005)
        assert server.connections >= 3


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
async def test_polls_reuse_connections_and_submits_close_theirs(
    raw_server: Any, make: Any, family: Any
) -> None:
    """Successive polls use the same connection; those of submits are closed at their end."""
    together = asyncio.Barrier(3)

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if first.startswith("POST"):
            await together.wait()
        writer.write(make.http(b"{}"))
        return True

    async with raw_server(behave) as server:
        transport = HttpxTransport(Credentials(KEY, server.url), version="1", family=family)
        for _ in range(5):
            assert isinstance(await transport.exchange(GET, timeout_s=60), Answered)
        assert server.connections == 1
        await asyncio.gather(*(transport.exchange(POST, timeout_s=60) for _ in range(3)))  # noqa: TID251
        assert server.connections == 4
        async with asyncio.timeout(60):
            while server.open > 1:
                await asyncio.sleep(0.001)
        await transport.aclose()


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
async def test_a_connection_that_no_poll_uses_any_more_is_closed(
    raw_server: Any, make: Any, monkeypatch: pytest.MonkeyPatch, family: Any
) -> None:
    """After many polls at once, one poll after another keeps one connection and lets the others expire."""
    together = asyncio.Barrier(5)

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if len(server.requests) <= 5:
            await together.wait()
        writer.write(make.http(b"{}"))
        return True

    async with raw_server(behave) as server:
        transport = HttpxTransport(Credentials(KEY, server.url), version="1", family=family)
        await asyncio.gather(*(transport.exchange(GET, timeout_s=60) for _ in range(5)))  # noqa: TID251
        assert (server.connections, server.open) == (5, 5)
        monkeypatch.setattr("flux_async.transport.httpx_.KEEPALIVE_S", 0.0)
        assert isinstance(await transport.exchange(GET, timeout_s=60), Answered)
        async with asyncio.timeout(60):
            while server.open > 1:
                await asyncio.sleep(0.001)
        assert server.connections == 5
        await transport.aclose()


@pytest.mark.parametrize("name", ["httpx", "httpx2", "aiohttp"])
async def test_a_client_makes_no_more_polls_at_once_than_its_limit(
    raw_server: Any, make: Any, name: Any
) -> None:
    """``Limits.connections`` holds whatever the transport."""
    at_once: list[int] = []
    under_way = 0

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        nonlocal under_way
        under_way += 1
        at_once.append(under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        writer.write(make.http(b'{"code":200,"data":1}'))
        return True

    async with (
        raw_server(behave) as server,
        FluxClient(KEY, server.url, transport=name, limits=Limits(connections=2)) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(8):
            group.create_task(client.credits())
    assert len(at_once) == 8
    assert max(at_once) == 2


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
@pytest.mark.parametrize("turns", range(1, 10))
async def test_a_connection_that_is_opened_during_closing_is_closed(
    raw_server: Any, make: Any, family: Any, turns: int
) -> None:
    """Whatever the result of its request."""

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        writer.write(make.http(b"{}"))
        return True

    async with raw_server(behave) as server, asyncio.TaskGroup() as group:
        transport = HttpxTransport(Credentials(KEY, server.url), version="1", family=family)
        exchange = group.create_task(transport.exchange(POST, timeout_s=60))
        for _ in range(turns):
            await asyncio.sleep(0)
        await transport.aclose()
        await exchange
        async with asyncio.timeout(60):
            while server.open:
                await asyncio.sleep(0.005)


BAD_DESTINATIONS = ["", ".", "/", "a\x00b", None, 7, "lone\udc80\ud800"]


@pytest.mark.parametrize("destination", BAD_DESTINATIONS)
async def test_an_invalid_destination_is_refused_before_the_download(
    file_client: Any, destination: Any
) -> None:
    """It raises InvalidInput, and nothing is requested."""
    with pytest.raises(InvalidInput):
        await file_client.download("http://127.0.0.1:1/r.jpg", destination, retry=False)


async def test_a_folder_is_no_destination(file_client: Any, tmp_path: Path) -> None:
    """An existing folder is refused as well."""
    with pytest.raises(InvalidInput, match="does not name a file"):
        await file_client.download("http://127.0.0.1:1/r.jpg", tmp_path, retry=False)


@pytest.mark.parametrize(
    "url", ["http://xn--a/", "http://\N{SNOWMAN}/", "http://[v1.x]/", "http://h/" + "x" * 70_000]
)
async def test_an_invalid_address_is_a_download_error(file_client: Any, tmp_path: Path, url: str) -> None:
    """An address that the HTTP library refuses is a DownloadError with a short message."""
    with pytest.raises((DownloadError, InvalidInput)) as caught:
        await file_client.download(url, tmp_path / "r.jpg", timeout=60, retry=False)
    assert len(str(caught.value)) < 400


async def test_a_cancelled_download_does_not_overwrite_a_newer_file(
    file_client: Any, raw_server: Any, tmp_path: Path, make: Any
) -> None:
    """A cancelled caller gets no file, even after the last byte was received."""
    last, go = asyncio.Event(), asyncio.Event()

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(JPEG)[:-1])
        await args[3].drain()
        last.set()
        await go.wait()
        args[3].write(JPEG[-1:])
        return True

    target = tmp_path / "clean.jpg"
    async with raw_server(behave) as server:
        call = asyncio.get_running_loop().create_task(file_client.download(f"{server.url}/r.jpg", target))
        await last.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        target.write_bytes(b"newer")
        go.set()
        async with asyncio.timeout(60):
            while file_client.session.background.in_flight:
                await asyncio.sleep(0.001)
    assert target.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["clean.jpg"]


async def test_a_suffix_of_no_image_format_is_kept(
    file_client: Any, raw_server: Any, tmp_path: Path, make: Any
) -> None:
    """``photo.1`` and ``photo.2`` are two files; the longest legal name works."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(JPEG))
        return True

    async with raw_server(behave) as server:
        for name in ("photo.1", "photo.2", "x" * 251 + ".jpg"):
            await file_client.download(f"{server.url}/r", tmp_path / name, match_suffix=True)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"photo.1.jpg", "photo.2.jpg", "x" * 251 + ".jpg"}
