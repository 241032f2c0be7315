"""Downloads that recover or end cleanly: breaks, expired links, full disks, killed processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    DiskFull,
    DownloadCutShort,
    DownloadError,
    DownloadLimits,
    DownloadTimedOut,
    FluxClient,
    FolderNotWritable,
    ImageResult,
    InvalidInput,
    PollPolicy,
    ResultExpired,
    ResultTooLarge,
    SavedFile,
    Scope,
    TaskId,
    TaskRecord,
    TaskStatus,
)
from flux_async.api.common_api import build_download_url, parse_download_url
from flux_async.session import DOWNLOADS

KEY = "k-secret-0123456789"
SIZE = 300_000
_NOBODY = 65_534
HEAD = (
    b"\xff\xd8\xff\xe0\x00\x04\x00\x00"  # SOI, APP0
    b"\xff\xc0\x00\x0b\x08\x00\x10\x00\x20\x01\x01\x11\x00"  # SOF0: 32 by 16
    b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"  # SOS
)
PARTS = re.compile(r"\.[0-9a-f]{12}-[0-9a-f]{8}\.part")


def make_jpeg(number: int = 1, size: int = SIZE) -> bytes:
    return HEAD + bytes([number]) * (size - len(HEAD) - 2) + b"\xff\xd9"


JPEG = make_jpeg()


@pytest.fixture
async def client(clock: Any) -> AsyncIterator[FluxClient]:
    """A client in virtual time: waits between tries take none."""
    async with FluxClient(KEY, "http://127.0.0.1:1", clock=clock) as made:
        yield made


def answer(status: str, body: bytes = b"", **headers: object) -> bytes:
    headers = {"content-length": len(body)} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


# --- the short form and the long one ----------------------------------------------------------------------


async def test_a_saved_file_is_described(client: FluxClient, raw_server: Any, tmp_path: Path) -> None:
    """Path, digest, bytes and pixels, as they are on the disk."""

    async def behave(*args: Any) -> bool:
        args[3].write(answer("200 OK", JPEG))
        return True

    async with raw_server(behave) as server:
        image = ImageResult(task_id=TaskId("t"), result_url=f"{server.url}/r", origin_url=None)
        saved = await client.download(image, tmp_path / "a" / "clean.png", match_suffix=True)
        assert (await client.download(image, tmp_path / "b.jpg")).path == tmp_path / "b.jpg"
    assert saved == SavedFile(
        path=tmp_path / "a" / "clean.jpg",
        sha256=hashlib.sha256(JPEG).hexdigest(),
        size=SIZE,
        width=32,
        height=16,
    )
    assert saved.path.read_bytes() == JPEG


async def test_limits_are_the_clients(client: FluxClient, raw_server: Any, tmp_path: Path) -> None:
    """``with_options`` changes them, and refuses what are none."""

    async def behave(*args: Any) -> bool:
        args[3].write(answer("200 OK", JPEG))
        return True

    strict = client.with_options(download_limits=DownloadLimits(max_bytes=SIZE - 1))
    async with raw_server(behave) as server:
        with pytest.raises(DownloadError, match="300,000 bytes; at most 299,999 are allowed"):
            await strict.with_options(timeout=60).download(
                f"{server.url}/r.jpg", tmp_path / "r.jpg", retry=False
            )
    with pytest.raises(InvalidInput, match="DownloadLimits"):
        client.with_options(download_limits=3)  # type: ignore[arg-type]


ACUTE = "\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.mark.parametrize("transport", ["httpx", "aiohttp"])
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/my poster.jpg?a=b c", "/my%20poster.jpg?a=b%20c"),
        (f"/{ACUTE}.jpg?q={ACUTE}'", "/%C3%A9.jpg?q=%C3%A9%27"),
        ("/a%2Fb%27%7E.jpg?s=%2F%27%7E+%2b~!'#top", "/a%2Fb%27%7E.jpg?s=%2F%27%7E+%2b~!%27"),
    ],
)
async def test_addresses_are_sent_as_a_browser_would_send_them(
    raw_server: Any, tmp_path: Path, transport: Any, path: str, line: str
) -> None:
    """What must be escaped is, in a result's address and in a redirect; what is escaped stays as it is."""

    async def behave(first: str, _headers: Any, _body: bytes, writer: Any) -> bool:
        moved = answer("302 Found", location="@").replace(b"@", f"/moved{path}".encode())
        writer.write(answer("200 OK", JPEG) if "/moved" in first else moved)
        return True

    client = FluxClient(KEY, "http://127.0.0.1:1", transport=transport)
    async with raw_server(behave) as server, client:
        await client.download(server.url + path, tmp_path / "r.jpg")
    assert [first.split()[1] for first, _, _ in server.requests] == [line, f"/moved{line}"]


# --- breaks -----------------------------------------------------------------------------------------------


@attrs.define
class Host:
    """A file host whose connections break off.

    Attributes:
        breaks: How many bytes come before each break; when used up, all the rest comes.
        etag: Version of the file, or None to offer no ranges.
        change: What a request changes, given its number.
    """

    breaks: list[int]
    etag: str | None = '"v1"'
    content: bytes = JPEG
    change: Callable[[Host, int], None] = lambda _host, _number: None
    ranges: list[str | None] = attrs.field(factory=list)
    lie: bytes | None = None

    async def behave(self, _first: str, headers: dict[str, str], _body: bytes, writer: Any) -> bool:
        """Answer with the file or its rest."""
        self.change(self, len(self.ranges))
        asked = headers.get("range") if headers.get("if-range") == self.etag else None
        self.ranges.append(headers.get("range"))
        if self.lie is not None and asked:
            writer.write(self.lie)
            return True
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        rest = self.content[start:]
        offer = {"accept_ranges": "bytes", "etag": self.etag} if self.etag else {}
        if asked:
            offer["content_range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        sent = self.breaks.pop(0) if self.breaks else len(rest)
        writer.write(
            answer("206 Partial Content" if asked else "200 OK", rest, **offer)[: -len(rest) + sent or None]
        )
        await writer.drain()
        return sent == len(rest)


async def test_a_broken_download_goes_on_where_it_stopped(
    client: FluxClient, raw_server: Any, tmp_path: Path
) -> None:
    """Three breaks, four requests, each byte once, the digest over all of them."""
    host = Host([100_000, 50_000, 70_001])
    async with raw_server(host.behave) as server:
        saved = await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg")
    assert host.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=220001-"]
    assert saved.path.read_bytes() == JPEG
    assert saved.sha256 == hashlib.sha256(JPEG).hexdigest()
    assert list(tmp_path.iterdir()) == [saved.path]


async def test_a_download_is_not_taken_up_for_ever(
    client: FluxClient, raw_server: Any, tmp_path: Path
) -> None:
    """After three resumes that broke off, too, it is given up."""
    host = Host([40_000] * 9)
    async with raw_server(host.behave) as server:
        with pytest.raises(DownloadCutShort, match="broke off|closed the connection"):
            await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", retry=False)
    assert len(host.ranges) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"], ids=["silence", "head"]
)
@pytest.mark.parametrize(("breaks", "comes"), [(3, True), (4, False)])
async def test_what_broke_off_before_its_first_byte_is_begun_again(
    client: FluxClient, raw_server: Any, tmp_path: Path, head: bytes, breaks: int, comes: bool
) -> None:
    """A host that hangs up is asked three times more: nothing of the file has to be gone on with."""
    asked = 0

    async def behave(_first: str, _headers: dict[str, str], _body: bytes, writer: Any) -> bool:
        nonlocal asked
        asked += 1
        writer.write(answer("200 OK", JPEG) if asked > breaks else head)
        await writer.drain()
        return asked > breaks

    async with raw_server(behave) as server:
        if comes:
            saved = await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg")
            assert saved.path.read_bytes() == JPEG
        else:
            with pytest.raises(DownloadCutShort, match="broke off|closed the connection"):
                await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", retry=False)
            assert list(tmp_path.iterdir()) == []
    assert asked == 4


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_without_range_support_nothing_is_resumed(
    client: FluxClient, raw_server: Any, tmp_path: Path, etag: str | None
) -> None:
    """Two halves of a file are joined only if the host can prove that they belong together."""
    host = Host([100_000], etag)
    async with raw_server(host.behave) as server:
        with pytest.raises(DownloadCutShort):
            await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", retry=False)
    assert host.ranges == [None]


async def test_a_file_that_changed_is_begun_anew(client: FluxClient, raw_server: Any, tmp_path: Path) -> None:
    """The host sends the whole of the new file, and nothing of the old one is left in it."""
    other = make_jpeg(7, SIZE - 1000)

    def change(host: Host, number: int) -> None:
        if number == 1:
            host.etag, host.content = '"v2"', other

    host = Host([200_000], change=change)
    async with raw_server(host.behave) as server:
        saved = await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg")
    assert host.ranges == [None, "bytes=200000-"]
    assert saved.path.read_bytes() == other
    assert saved.sha256 == hashlib.sha256(other).hexdigest()


LIES = {
    "another start": answer("206 Partial Content", JPEG[9:], content_range=f"bytes 9-{SIZE - 1}/{SIZE}"),
    "another length": answer("206 Partial Content", JPEG[:9], content_range="bytes 100000-100008/100009"),
    "another version": answer(
        "206 Partial Content", JPEG[100_000:], content_range=f"bytes 100000-{SIZE - 1}/{SIZE}", etag='"v2"'
    ),
    "no range": answer("206 Partial Content", JPEG[100_000:]),
    "not satisfiable": answer("416 Range Not Satisfiable"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_rest_that_does_not_fit_is_not_appended(
    client: FluxClient, raw_server: Any, tmp_path: Path, lie: bytes
) -> None:
    """Such a host is asked for the whole file instead."""
    host = Host([100_000], lie=lie)
    async with raw_server(host.behave) as server:
        saved = await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg")
    assert host.ranges == [None, "bytes=100000-", None]
    assert saved.path.read_bytes() == JPEG


async def test_nothing_is_taken_up_after_the_deadline(
    client: FluxClient, raw_server: Any, tmp_path: Path, clock: Any
) -> None:
    """The waits between tries count."""

    def change(_host: Host, number: int) -> None:
        clock.now += 60.0 * number

    host = Host([40_000] * 9, change=change)
    async with raw_server(host.behave) as server:
        with pytest.raises(DownloadCutShort):
            await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", timeout=100, retry=False)
    assert len(host.ranges) < 4


@attrs.frozen
class Quiet:
    """A file stream of a custom transport, which ends early without an error."""

    host: str = "files.example"
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=lambda: {"content-length": str(SIZE)})

    async def chunks(self) -> AsyncIterator[bytes]:
        """Send half an image."""
        yield JPEG[:1000]


async def test_bytes_are_counted_for_every_transport(
    client: FluxClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transport that does not notice a missing half does not matter."""
    monkeypatch.setattr(client.session.transport, "fetch", lambda *_, **__: nullcontext(Quiet()))
    with pytest.raises(DownloadCutShort, match="1,000 of 300,000 bytes came"):
        await client.download("https://files.example/r.jpg", tmp_path / "r.jpg", retry=False)


# --- again ------------------------------------------------------------------------------------------------

TROUBLE = {
    "a CDN that lags": answer("404 Not Found"),
    "a CDN that says gone": answer("410 Gone"),
    "a signature that is not valid yet": answer("401 Unauthorized"),
    "a host that is down": answer("503 Service Unavailable"),
    "a host that is busy": answer("429 Too Many Requests", retry_after=7),
    "an empty answer": answer("200 OK"),
    "a web page": answer("200 OK", b"<!DOCTYPE html><html>Log in to the hotel's network</html>"),
    "a head without end": b"HTTP/1.1 200 OK\r\n",
    "half an image": answer("200 OK", JPEG)[:-1000],
    "half an image, sent as whole": answer("200 OK", JPEG[:-1000]),
    "a packed image": answer("200 OK", JPEG, content_encoding="gzip"),
    "no HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "a redirect in a circle": answer("302 Found", location="/r.jpg"),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
async def test_a_download_that_may_succeed_later_is_tried_again_within_the_timeout(
    client: FluxClient, raw_server: Any, clock: Any, tmp_path: Path, trouble: bytes
) -> None:
    """A paid result arrives however its host began; the waits are the policy's."""
    began = clock.now

    async def behave(_first: str, _headers: Any, _body: bytes, writer: Any) -> bool:
        well = clock.now - began > 6.0
        writer.write(answer("200 OK", JPEG) if well else trouble)
        return well or b"302" in trouble

    async with raw_server(behave) as server:
        saved = await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", timeout=60)
    assert saved.path.read_bytes() == JPEG
    assert 6.0 < clock.now - began < 15.0
    assert list(tmp_path.iterdir()) == [saved.path]


async def test_retry_after_of_a_file_host_is_kept(
    client: FluxClient, raw_server: Any, clock: Any, tmp_path: Path
) -> None:
    """Retry-After counts, up to the end of the timeout."""
    seen: list[float] = []

    async def behave(_first: str, _headers: Any, _body: bytes, writer: Any) -> bool:
        seen.append(clock.now)
        asked = {1: 40, 2: 3600}.get(len(seen))
        writer.write(answer("503 Busy", retry_after=asked) if asked else answer("200 OK", JPEG))
        return True

    async with raw_server(behave) as server:
        await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", timeout=100)
    assert [round(at - seen[0], 3) for at in seen] == [0.0, 40.0, 90.0]


async def test_the_timeout_ends_the_tries_with_the_last_error(
    client: FluxClient, raw_server: Any, clock: Any, tmp_path: Path
) -> None:
    """It is the host's answer that is raised; a result is not called expired."""
    began = clock.now

    async def behave(_first: str, _headers: Any, _body: bytes, writer: Any) -> bool:
        writer.write(answer("404 Not Found"))
        return True

    async with raw_server(behave) as server:
        with pytest.raises(DownloadError, match="HTTP 404.*kept for 14 days") as caught:
            await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", timeout=100)
    assert type(caught.value) is DownloadError
    assert 89.0 < clock.now - began <= 100.0
    assert 5 < sum(first.startswith("GET /r.jpg") for first, _, _ in server.requests) < 15


@pytest.mark.parametrize(("age_days", "kind"), [(13.9, DownloadError), (14.1, ResultExpired)])
async def test_a_result_is_expired_only_when_its_record_is_older_than_14_days(
    client: FluxClient, raw_server: Any, clock: Any, tmp_path: Path, age_days: float, kind: type
) -> None:
    """Before that a refusal may pass, whatever its status is."""

    async def behave(_first: str, _headers: Any, _body: bytes, writer: Any) -> bool:
        writer.write(answer("410 Gone"))
        return True

    created = datetime.fromtimestamp(clock.wall() - age_days * 86_400, UTC)
    record = TaskRecord(task_id=TaskId("t"), status=TaskStatus.SUCCESS, created_at=created)
    async with raw_server(behave) as server:
        image = ImageResult(task_id=TaskId("t"), result_url=f"{server.url}/r", origin_url=None, record=record)
        with pytest.raises(DownloadError, match="HTTP 410") as caught:
            await client.download(image, tmp_path / "r.jpg", timeout=100)
    assert type(caught.value) is kind


async def test_what_cannot_pass_is_not_tried_again(
    client: FluxClient, raw_server: Any, clock: Any, tmp_path: Path
) -> None:
    """A file over the limit stays over it."""

    async def behave(_first: str, _headers: Any, _body: bytes, writer: Any) -> bool:
        writer.write(answer("200 OK", JPEG))
        return True

    strict = client.with_options(download_limits=DownloadLimits(max_bytes=SIZE - 1))
    async with raw_server(behave) as server:
        with pytest.raises(ResultTooLarge):
            await strict.download(f"{server.url}/r.jpg", tmp_path / "r.jpg")
    assert len(server.requests) == 1
    assert clock.slept == []


# --- fresh links ------------------------------------------------------------------------------------------


@attrs.define
class Vendor:
    """API and file host in one: files are refused but for fresh links."""

    refusal: str = "403 Forbidden"
    fresh: bytes = b""
    fresh_works: bool = True
    url: str = ""
    asked: list[dict[str, Any]] = attrs.field(factory=list)

    async def behave(self, first: str, headers: dict[str, str], body: bytes, writer: Any) -> bool:
        """Answer."""
        if first.startswith("POST /api/v1/common/download-url "):
            assert headers["authorization"] == f"Bearer {KEY}"
            self.asked.append(json.loads(body))
            writer.write(self.fresh or answer("200 OK", self._link()))
            return bool(self.fresh != b"\0")
        assert "authorization" not in headers
        works = "capability-4711" in first and self.fresh_works
        writer.write(answer("200 OK", JPEG) if works else answer(self.refusal))
        return True

    def _link(self) -> bytes:
        link = f"{self.url}/capability-4711?signature=s3cret"
        return json.dumps({"code": 200, "msg": "success", "data": link}).encode()


async def bring(vendor: Vendor, raw_server: Any, path: Path) -> SavedFile:
    async with raw_server(vendor.behave) as server, FluxClient(KEY, server.url) as client:
        vendor.url = server.url
        return await client.download(f"{server.url}/result.jpg", path, timeout=60, retry=False)


@pytest.mark.parametrize("refusal", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "410 Gone"])
async def test_a_refused_result_is_fetched_by_a_fresh_link(
    raw_server: Any, tmp_path: Path, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One question to the API; the link it gives is in no log, at the most talkative level."""
    vendor = Vendor(refusal)
    with caplog.at_level(logging.DEBUG):
        saved = await bring(vendor, raw_server, tmp_path / "r.jpg")
    assert saved.path.read_bytes() == JPEG
    assert vendor.asked == [{"url": f"{vendor.url}/result.jpg"}]
    assert "httpcore" in caplog.text
    assert "4711" not in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("refusal", ["403 Forbidden", "404 Not Found"])
async def test_a_fresh_link_that_is_refused_ends_the_try(
    raw_server: Any, tmp_path: Path, refusal: str
) -> None:
    """Asked once, not again and again; the error shows the host only."""
    vendor = Vendor(refusal, fresh_works=False)
    with pytest.raises(DownloadError, match=f"HTTP {refusal[:3]}") as caught:
        await bring(vendor, raw_server, tmp_path / "r.jpg")
    assert not isinstance(caught.value, ResultExpired)
    assert len(vendor.asked) == 1
    assert "4711" not in repr(vars(caught.value)) + str(caught.value)
    assert list(tmp_path.iterdir()) == []


NO_LINK = {
    "url is wrong": answer("200 OK", b'{"code":422,"msg":"url is wrong","data":null}'),
    "no access": answer("200 OK", b'{"code":401,"msg":"no"}'),
    "a crash": answer("500 Internal Server Error", b"<html>"),
    "no link": answer("200 OK", b'{"code":200,"msg":"success","data":{"url":"http://x/"}}'),
    "a hang-up": b"\0",
}


@pytest.mark.parametrize("fresh", NO_LINK.values(), ids=NO_LINK)
@pytest.mark.parametrize("refusal", ["401 Unauthorized", "403 Forbidden", "404 Not Found"])
async def test_after_a_failed_refresh_the_first_error_is_raised(
    raw_server: Any, tmp_path: Path, fresh: bytes, refusal: str
) -> None:
    """The file host's refusal is the error."""
    vendor = Vendor(refusal, fresh)
    with pytest.raises(DownloadError, match=f"HTTP {refusal[:3]}") as caught:
        await bring(vendor, raw_server, tmp_path / "r.jpg")
    assert type(caught.value) is DownloadError
    assert len(vendor.asked) == 1


async def test_other_refusals_ask_for_no_link(raw_server: Any, tmp_path: Path) -> None:
    """A file host that is down is not helped by a new address."""
    vendor = Vendor("503 Service Unavailable")
    with pytest.raises(DownloadError, match="HTTP 503"):
        await bring(vendor, raw_server, tmp_path / "r.jpg")
    assert vendor.asked == []


async def test_the_sandbox_gives_fresh_links(sandbox_url: str, tmp_path: Path) -> None:
    """The request is understood, and the new link leads to the same image."""
    async with FluxClient("test", sandbox_url, polling=PollPolicy(first_s=0.05, interval_s=0.05)) as client:
        image = await client.generate("A lighthouse at dusk")
        wire, deadline = build_download_url(image.result_url), client.session.clock.monotonic() + 60
        fresh = await client.session.read(wire, parse_download_url, deadline=deadline)
        assert fresh != image.result_url
        saved = [await client.download(url, tmp_path / "r.jpg") for url in (fresh, image.result_url)]
    assert saved[0] == saved[1]


# --- disks ------------------------------------------------------------------------------------------------


async def serve_images(_first: str, _headers: Any, _body: bytes, writer: Any) -> bool:
    """Send an image of two megabytes."""
    writer.write(answer("200 OK", make_jpeg(size=2_000_000)))
    await writer.drain()
    return True


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small disk; only root can."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk-{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("no disk can be mounted here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_is_full(client: FluxClient, raw_server: Any, mounted: Any) -> None:
    """A class of its own, which halts a batch; the disk is left as it was."""
    folder = mounted("size=1m")
    async with raw_server(serve_images) as server:
        with pytest.raises(DiskFull, match="No space left.*nothing is lost") as caught:
            await client.download(f"{server.url}/r.jpg", folder / "r.jpg", retry=False)
    assert caught.value.scope is Scope.STOP
    assert list(folder.iterdir()) == []


async def test_a_disk_that_can_only_be_read(client: FluxClient, raw_server: Any, mounted: Any) -> None:
    """The same for a folder in which nothing can be made."""
    folder = mounted("ro")
    async with raw_server(serve_images) as server:
        with pytest.raises(FolderNotWritable, match="Read-only") as caught:
            await client.download(f"{server.url}/r.jpg", folder / "r.jpg", retry=False)
    assert caught.value.scope is Scope.STOP


async def test_a_write_to_a_full_device(
    client: FluxClient, raw_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, for machines where nothing can be mounted: the device that is always full."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no such device here")
    monkeypatch.setattr(Path, "open", lambda _path, _mode: open(full, "wb"))  # noqa: PTH123, SIM115 - as above
    async with raw_server(serve_images) as server:
        with pytest.raises(DiskFull):
            await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", retry=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def not_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do without the privileges of root, who may write anywhere."""
    monkeypatch.delenv("SSL_CERT_FILE")  # in a folder that only its owner may enter
    was = os.geteuid()
    if was == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


async def test_a_folder_without_permission(
    client: FluxClient, raw_server: Any, tmp_path: Path, not_root: None
) -> None:
    """No permission."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    async with raw_server(serve_images) as server:
        with pytest.raises(FolderNotWritable, match="denied"):
            await client.download(f"{server.url}/r.jpg", folder / "r.jpg", retry=False)
    folder.rmdir()


async def test_a_file_in_place_of_a_folder_stops_the_batch(
    client: FluxClient, raw_server: Any, tmp_path: Path
) -> None:
    """No image can be saved there: nothing more is to be paid for."""
    (tmp_path / "images").touch()
    async with raw_server(serve_images) as server:
        for place in ("images/r.jpg", "images/below/r.jpg"):
            with pytest.raises(FolderNotWritable, match="a file is where its folder should be") as caught:
                await client.download(f"{server.url}/r.jpg", tmp_path / place, retry=False)
            assert caught.value.scope is Scope.STOP


async def test_a_folder_in_the_way_concerns_one_job(
    client: FluxClient, raw_server: Any, tmp_path: Path, make: Any
) -> None:
    """A folder that appears under the file's name meanwhile does not halt the batch."""

    async def behave(*args: Any) -> bool:
        (tmp_path / "r.jpg").mkdir()
        args[3].write(answer("200 OK", JPEG))
        return True

    async with raw_server(behave) as server:
        with pytest.raises(DownloadError, match="cannot be written") as caught:
            await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", retry=False)
    assert caught.value.scope is Scope.THIS_JOB
    assert [path.name for path in tmp_path.iterdir()] == ["r.jpg"]


# --- parts ------------------------------------------------------------------------------------------------


async def test_part_files_of_dead_processes_are_deleted_after_a_day(
    client: FluxClient, raw_server: Any, tmp_path: Path
) -> None:
    """Old part files go, young ones and everything else stay; each folder is searched once."""
    old, young = tmp_path / ".0123456789ab-01234567.part", tmp_path / ".0123456789ab-89abcdef.part"
    kept = [young, tmp_path / "notes.part", tmp_path / ".x-y.part", tmp_path / "0123456789ab-01234567.part"]
    long_ago = time.time() - 2 * 86_400
    for path in [old, *kept]:
        path.write_bytes(b"x")
        if path is not young:
            os.utime(path, (long_ago, long_ago))
    (tmp_path / ".0123456789ab-00000000.part").mkdir()
    async with raw_server(serve_images) as server:
        await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg")
        assert not old.exists()
        assert all(path.exists() for path in kept)
        os.utime(young, (long_ago, long_ago))
        await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg")
    assert young.exists()


async def test_two_downloads_to_one_name_do_not_meet(
    client: FluxClient, raw_server: Any, tmp_path: Path
) -> None:
    """Each has a part file of its own; whichever ends last is whole."""
    number = 0

    async def behave(*args: Any) -> bool:
        nonlocal number
        number += 1
        args[3].write(answer("200 OK", make_jpeg(number)))
        await args[3].drain()
        return True

    async with raw_server(behave) as server, asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg"))
    assert (tmp_path / "r.jpg").read_bytes() in {make_jpeg(n) for n in range(1, 7)}
    assert len(list(tmp_path.iterdir())) == 1


async def test_waiting_for_a_slot_counts_as_time(raw_server: Any, tmp_path: Path) -> None:
    """A download without a free slot before its deadline times out, like one that began."""

    async def behave(*args: Any) -> bool:
        await asyncio.Event().wait()
        return False

    async with raw_server(behave) as server, FluxClient(KEY, "http://127.0.0.1:1") as client:
        loop = asyncio.get_running_loop()
        held = [
            loop.create_task(client.download(f"{server.url}/{n}.jpg", tmp_path / f"{n}.jpg"))
            for n in range(DOWNLOADS)
        ]
        async with asyncio.timeout(60):
            while len(server.requests) < DOWNLOADS:
                await asyncio.sleep(0.005)
        with pytest.raises(DownloadTimedOut):
            await client.download(f"{server.url}/late.jpg", tmp_path / "late.jpg", timeout=0.05, retry=False)
        assert len(server.requests) == DOWNLOADS
        for each in held:
            each.cancel()
        await asyncio.wait(held)


# --- sudden death -----------------------------------------------------------------------------------------

CHILD = """
    import asyncio, sys
    from pathlib import Path
    from flux_async import FluxClient

    async def main(url, folder):
        async with FluxClient("k", url) as client, asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(client.download(f"{url}/{number}.jpg", Path(folder) / f"{number}.jpg"))

    asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_killed_among_200_downloads_leaves_no_half_file(
    raw_server: Any, tmp_path: Path
) -> None:
    """After SIGKILL every file under a final name is whole; the rest is hidden and recognisable."""
    begun = 0

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        nonlocal begun
        begun += 1
        number = int(re.findall(r"/(\d+)\.jpg", first)[0])
        whole = answer("200 OK", make_jpeg(number % 200))
        for start in range(0, len(whole), 60_000):
            writer.write(whole[start : start + 60_000])
            await writer.drain()
            await asyncio.sleep(0.001)
        return True

    async with raw_server(behave) as server:
        command = [sys.executable, "-c", textwrap.dedent(CHILD), server.url, str(tmp_path)]
        child = await asyncio.create_subprocess_exec(*command)
        try:
            async with asyncio.timeout(100):
                while len(list(tmp_path.glob("*.jpg"))) < 40:
                    await asyncio.sleep(0.002)
        finally:
            child.send_signal(signal.SIGKILL)
            await child.wait()
    left = list(tmp_path.iterdir())
    whole = [path for path in left if path.suffix == ".jpg"]
    assert 40 <= len(whole) < 200
    assert all(path.read_bytes() == make_jpeg(int(path.stem) % 200) for path in whole)
    assert all(PARTS.fullmatch(path.name) for path in set(left) - set(whole))
    assert len(left) - len(whole) <= 8
