"""Results from hostile hosts, over real sockets: each attack has its own error, and leaves no file."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shutil
import ssl
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpcore
import httpx
import httpx2
import pytest

from flux_async import (
    AddressForbidden,
    DownloadCutShort,
    DownloadError,
    DownloadLimits,
    DownloadTimedOut,
    FluxClient,
    FluxError,
    NotAnImage,
    ResultTooLarge,
    SavedFile,
)
from flux_async.transport.credentials import Credentials
from flux_async.transport.file_client import FileClient, GuardedBackend
from flux_async.transport.httpx_ import HttpxTransport
from flux_async.transport.ssrf_guard import AddressGuard

KEY = "k-secret-0123456789"
PUBLIC = "93.184.216.34"
MB = 1024 * 1024
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x04\x00\x00"  # SOI, APP0
    b"\xff\xc0\x00\x0b\x08\x00\x10\x00\x20\x01\x01\x11\x00"  # SOF0: 32 by 16
    b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(50_000) + b"\xff\xd9"  # SOS, EOI
)
PNG_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
HUGE_PNG = PNG_HEAD + struct.pack(">II", 50_000, 50_000) + bytes(9)
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def client() -> AsyncIterator[FluxClient]:
    """A client of an API on this machine, which therefore may send us to this machine."""
    limits = DownloadLimits(max_bytes=8 * MB, stall_s=60)
    async with FluxClient(KEY, "http://127.0.0.1:1", download_limits=limits) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for results; neither in it nor beside it is anything left."""
    made = tmp_path / "results"
    made.mkdir()
    yield made
    assert list(made.iterdir()) == []
    assert list(tmp_path.iterdir()) == [made]


@attrs.define(eq=False)
class Net(httpcore.AsyncNetworkBackend):
    """A stand-in for the world: names have the addresses that a test chooses, and our server answers for all.

    Attributes:
        port: Where our server listens.
        names: What each name has for addresses, look-up by look-up; the last answer stays.
        asked: Names that were looked up.
        called: Addresses that were connected to.
    """

    port: int
    names: dict[str, list[list[str]]] = attrs.field(factory=dict)
    asked: list[str] = attrs.field(factory=list)
    called: list[str] = attrs.field(factory=list)
    unreachable: set[str] = attrs.field(factory=set)
    secure: ssl.SSLContext = attrs.field(factory=httpx.create_ssl_context)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Look a name up."""
        self.asked.append(host)
        if host not in self.names:
            raise OSError("no such name")
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, to our server."""
        self.called.append(host)
        if host in self.unreachable:
            raise httpcore.ConnectTimeout("no server there")
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port, timeout)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[FluxClient]:
        """A client of the vendor's own API in this world."""
        guard = AddressGuard("api.kie.ai", is_public=True, resolve=self.resolve)
        files = FileClient("flux-async/1", guard, lambda: self.secure, self)
        transport = HttpxTransport(Credentials(KEY, None), version="1", files=files)
        async with FluxClient(KEY, transport=transport) as made:
            yield made


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def moved(location: str, status: str = "302 Found") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nlocation: {location}\r\n\r\n".encode()


def saying(said: bytes, *, on: bool = True) -> Callable[..., Awaitable[bool]]:
    """A server that always says the same."""

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(said)
        await writer.drain()
        return on

    return behave


# --- where to ---------------------------------------------------------------------------------------------

FORBIDDEN = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]:{port}/",
    "http://10.0.0.1/",
    "http://127.0.0.1:{port}/r.jpg",
    "http://localhost:{port}/r.jpg",
    "http://2130706433:{port}/",
    "http://0x7f.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://0.0.0.0:{port}/",
    "http://[::]:{port}/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://user:password@127.0.0.1:{port}/",
    "http://\N{FULLWIDTH DIGIT ONE}27.0.0.1:{port}/",
    "http://evil.example@127.0.0.1:{port}/",
]


async def once(client: FluxClient, url: str, path: Path) -> SavedFile:
    """Try one download, once."""
    return await client.download(url, path, timeout=60, retry=False)


@pytest.mark.parametrize("url", FORBIDDEN)
async def test_private_addresses_are_forbidden(raw_server: Any, folder: Path, url: str) -> None:
    """In any spelling, and with the machine's own name resolution: no connection is opened."""
    async with raw_server(saying(OK)) as server, FluxClient(KEY) as client:
        with pytest.raises(AddressForbidden) as caught:
            await client.download(
                url.format(port=port_of(server.url)), folder / "r.jpg", timeout=60, retry=False
            )
    assert server.connections == 0
    assert caught.value.charge == "yes"
    assert "own network" in caught.value.advice


@pytest.mark.parametrize(
    "target",
    [url for url in FORBIDDEN if url.isascii() and "\\" not in url]
    + ["file:///etc/passwd", "ftp://files.example/", "gopher://files.example/", "data:image/png;base64,AAAA"],
)
async def test_redirects_to_private_addresses_are_forbidden(
    raw_server: Any, folder: Path, target: str
) -> None:
    """A public host that sends us to a private one, or to another scheme, is not obeyed."""
    async with raw_server(saying(b"")) as server:
        net = Net(port_of(server.url), {"files.example": [[PUBLIC]], "localhost": [["127.0.0.1"]]})
        async with raw_server(saying(moved(target.format(port=net.port)))) as liar, net.client() as client:
            net.port = port_of(liar.url)
            with pytest.raises(AddressForbidden):
                await client.download("http://files.example/r.jpg", folder / "r.jpg", timeout=60, retry=False)
    assert net.called == [PUBLIC]
    assert server.connections == 0


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/", "http://10.0.0.1/", "http://[fe80::1]/", "http://100.64.0.1/"]
)
async def test_a_local_api_allows_only_addresses_of_its_kind(
    client: FluxClient, raw_server: Any, folder: Path, target: str
) -> None:
    """Where the API is on this machine, results may be; metadata and private networks stay shut."""
    async with raw_server(saying(moved(target))) as server:
        with pytest.raises(AddressForbidden):
            await once(client, f"{server.url}/r.jpg", folder / "r.jpg")
    assert server.connections == 1


async def test_a_name_is_resolved_once(raw_server: Any, folder: Path) -> None:
    """A name whose second answer is this machine is asked once, and its first answer is called."""
    async with raw_server(saying(OK + b"content-length: 4\r\n\r\nhtml")) as server:
        net = Net(port_of(server.url), {"rebind.example": [[PUBLIC], ["127.0.0.1"]]})
        async with net.client() as client:
            with pytest.raises(NotAnImage):
                await client.download(
                    "http://rebind.example/r.jpg", folder / "r.jpg", timeout=60, retry=False
                )
            assert (net.asked, net.called) == (["rebind.example"], [PUBLIC])


async def test_a_name_that_moved_to_a_private_address_is_refused_at_the_next_connection(
    raw_server: Any, folder: Path
) -> None:
    """Each new connection resolves and checks anew; the second address is never contacted."""
    async with raw_server(saying(moved("/again") + b"", on=False)) as server:
        net = Net(port_of(server.url), {"rebind.example": [[PUBLIC], ["127.0.0.1"]]})
        async with net.client() as client:
            with pytest.raises(
                AddressForbidden, match=r"rebind.example, which resolves to 127.0.0.1 .loopback."
            ):
                await client.download(
                    "http://rebind.example/r.jpg", folder / "r.jpg", timeout=60, retry=False
                )
    assert net.called == [PUBLIC]


async def test_a_name_with_one_private_address_is_refused(folder: Path) -> None:
    """A name with a public and a private address is not gone to at all."""
    net = Net(1, {"files.example": [[PUBLIC, "192.168.0.1"]]})
    async with net.client() as client:
        with pytest.raises(AddressForbidden, match="192.168.0.1"):
            await once(client, "https://files.example/r.jpg", folder / "r.jpg")
    assert net.called == []


async def test_the_next_address_is_tried(raw_server: Any, tmp_path: Path) -> None:
    """A host with a dead address is reached at its other one."""
    async with raw_server(saying(OK + b"content-length: %d\r\n\r\n" % len(JPEG) + JPEG)) as server:
        net = Net(
            port_of(server.url), {"files.example": [["2606:4700::1", PUBLIC]]}, unreachable={"2606:4700::1"}
        )
        async with net.client() as client:
            await client.download("http://files.example/r.jpg", tmp_path / "r.jpg", timeout=60)
    assert net.called == ["2606:4700::1", PUBLIC]


async def test_an_unknown_name_is_a_download_error(folder: Path) -> None:
    """It names the host, and nothing else of the address."""
    async with Net(1).client() as client:
        with pytest.raises(DownloadError, match="nowhere.example cannot be reached: ConnectError") as caught:
            await client.download(
                "https://nowhere.example/secret?token=1", folder / "r.jpg", timeout=60, retry=False
            )
    assert "secret" not in str(caught.value)
    assert "token" not in str(caught.value)


async def test_name_resolution_has_a_timeout() -> None:
    """The time to connect includes the time to find out where."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    backend = GuardedBackend(AddressGuard("api.kie.ai", is_public=True, resolve=resolve))
    with pytest.raises(httpcore.ConnectTimeout):
        await backend.connect_tcp("files.example", 80, timeout=0.02)
    await backend.sleep(0)


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of files.example, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    pem = folder / "files.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-out", pem]
    command += ["-keyout", folder / "key.pem", "-subj", "/CN=files.example"]
    command += ["-addext", "subjectAltName=DNS:files.example"]
    subprocess.run(command, check=True, capture_output=True)
    with pem.open("a") as both:
        both.write((folder / "key.pem").read_text())
    return pem


@pytest.mark.parametrize("name", ["files.example", "other.example"])
async def test_tls_verifies_the_name_and_not_the_address(
    certificate: Path, tmp_path: Path, name: str
) -> None:
    """The server is asked for the original name (SNI) and must prove it, though an address was called."""
    asked: list[str | None] = []
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(certificate)
    server_side.sni_callback = lambda _socket, sent, _context: asked.append(sent)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert f"host: {name}\r\n".encode() in head.lower()
            writer.write(OK + b"content-length: %d\r\n\r\n" % len(JPEG) + JPEG)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side) as listener:
        net = Net(listener.sockets[0].getsockname()[1], {name: [[PUBLIC]]})
        net.secure = ssl.create_default_context(cafile=str(certificate))
        async with net.client() as client:
            download = once(client, f"https://{name}/r.jpg", tmp_path / "r.jpg")
            if name == "files.example":
                await download
            else:
                with pytest.raises(DownloadError, match="cannot be reached"):
                    await download
    assert asked == [name]
    assert net.called == [PUBLIC]


async def test_a_redirect_from_https_to_http_is_refused(certificate: Path, folder: Path) -> None:
    """What was asked for over TLS is not fetched in the clear."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(certificate)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(moved("http://files.example/r.jpg"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side) as listener:
        net = Net(listener.sockets[0].getsockname()[1], {"files.example": [[PUBLIC]]})
        net.secure = ssl.create_default_context(cafile=str(certificate))
        async with net.client() as client:
            with pytest.raises(AddressForbidden, match="from https to http"):
                await client.download(
                    "https://files.example/r.jpg", folder / "r.jpg", timeout=60, retry=False
                )
    assert net.called == [PUBLIC]


# --- what comes -------------------------------------------------------------------------------------------


def sized(body: bytes, length: int | None = None, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return OK + f"content-length: {len(body) if length is None else length}\r\n{lines}\r\n".encode() + body


def chunked(body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return OK + b"transfer-encoding: chunked\r\n\r\n" + f"{len(body):x}\r\n".encode() + body + b"\r\n" + end


ATTACKS: dict[str, tuple[bytes, type[FluxError], str]] = {
    "ten gigabytes, declared": (sized(JPEG, 10**10), ResultTooLarge, "has 10,000,000,000 bytes"),
    "a gzip bomb": (
        sized(gzip.compress(bytes(20 * MB)), None, "content-encoding: gzip"),
        NotAnImage,
        "compresses the image",
    ),
    "a coding of the transfer": (
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        DownloadError,
        "cannot be reached: RemoteProtocolError",
    ),
    "a web page": (sized(b"<!doctype html><html>sign in"), NotAnImage, "begins with b'<!doctype ht"),
    "nothing at all": (sized(b""), NotAnImage, "empty file"),
    "cut off, with a length": (sized(JPEG[:-900], len(JPEG)), DownloadCutShort, "broke off"),
    "cut off within a chunk": (chunked(JPEG)[:-900], DownloadCutShort, "broke off"),
    "cut off between chunks": (chunked(JPEG[:-900], b""), DownloadCutShort, "broke off"),
    "cut off, and ended properly": (chunked(JPEG[:-900]), DownloadCutShort, "without its end"),
    "cut off, without a length": (OK + b"\r\n" + JPEG[:-900], DownloadCutShort, "without its end"),
    "cut off, and the length says so": (sized(JPEG[:-900]), DownloadCutShort, "without its end"),
    "cut off, as PNG": (OK + b"\r\n" + PNG_HEAD + b"\0\0\0\1\0\0\0\1", DownloadCutShort, "without its end"),
    "2,500 megapixels": (sized(HUGE_PNG, 5 * MB), ResultTooLarge, "50,000 by 50,000 pixels"),
    "an image without pixels": (sized(PNG_HEAD + bytes(50)), NotAnImage, "0 by 0 pixels"),
    "two lengths": (
        OK + b"content-length: 5\r\ncontent-length: 9\r\n\r\n" + JPEG,
        DownloadError,
        "cannot be reached",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", DownloadError, "cannot be reached: RemoteProtocolError"),
    "a flood of headers": (
        OK + b"x-flood: " + b"y" * 200_000,
        DownloadError,
        "cannot be reached: RemoteProtocolError",
    ),
    "many headers": (OK + b"a: b\r\n" * 40_000, DownloadError, "cannot be reached: RemoteProtocolError"),
    "a redirect to itself": (moved("/again", "301 Moved Permanently"), DownloadError, "more than 5 times"),
    "a redirect to nowhere": (moved("http://"), DownloadError, "more than 5 times"),
    "a redirect to a broken address": (moved("http://[::1"), AddressForbidden, "invalid address"),
    "a redirect without a target": (
        b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n",
        DownloadError,
        "answered HTTP 302",
    ),
    "a part that was not requested": (
        sized(JPEG[9:], None, f"content-range: bytes 9-{len(JPEG) - 1}/{len(JPEG)}").replace(
            b"200", b"206", 1
        ),
        DownloadError,
        "answered HTTP 206",
    ),
}


@pytest.mark.parametrize(("said", "kind", "says"), ATTACKS.values(), ids=ATTACKS)
async def test_each_attack_has_its_error_and_leaves_nothing(
    client: FluxClient, raw_server: Any, folder: Path, said: bytes, kind: type[FluxError], says: str
) -> None:
    """The class decides what to do, the message says what happened."""
    async with raw_server(saying(said, on=b"location" in said)) as server:
        with pytest.raises(kind, match=says) as caught:
            await once(client, f"{server.url}/../../r.jpg", folder / "clean.jpg")
    assert type(caught.value) is kind
    assert len(str(caught.value)) < 400


async def test_two_hundred_redirects_are_six_requests(
    client: FluxClient, raw_server: Any, folder: Path
) -> None:
    """From host to host, each to the next."""
    hops = 0

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        nonlocal hops
        hops += 1
        writer.write(moved(f"/{hops}") if hops < 200 else sized(JPEG))
        return True

    async with raw_server(behave) as server:
        with pytest.raises(DownloadError, match="more than 5 times"):
            await once(client, f"{server.url}/r.jpg", folder / "r.jpg")
    assert hops == 6


async def test_too_many_pixels_are_refused_before_the_rest_is_read(
    client: FluxClient, raw_server: Any, folder: Path
) -> None:
    """The header suffices: the host has sent no more when the connection is closed."""
    hung_up = asyncio.Event()

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(sized(HUGE_PNG, 5 * MB))
        await writer.drain()
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()
        return False

    async with raw_server(behave) as server:
        async with asyncio.timeout(60):
            with pytest.raises(ResultTooLarge, match="pixels"):
                await once(client, f"{server.url}/r.png", folder / "r.png")


async def drip(writer: asyncio.StreamWriter, data: bytes, pause_s: float) -> None:
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(pause_s)


DRIPS = {
    "of an image": (sized(JPEG[:100], 5 * MB), b"\0"),
    "of headers": (OK, b"a: b\r\n"),
    "of hints": (b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
}


@pytest.mark.parametrize(("first", "then"), DRIPS.values(), ids=DRIPS)
async def test_a_slow_download_ends_at_the_deadline(
    client: FluxClient,
    raw_server: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: bytes,
    then: bytes,
) -> None:
    """Each byte is in time, the whole never; nothing of it goes on behind the caller's back."""
    monkeypatch.setattr("flux_async.transport.file_client.HARD_STOP_S", 0.02)

    async def behave(_first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(first)
        await drip(writer, then, 0.005)
        return False

    async with raw_server(behave) as server:
        for timeout_s in (0.1, 1.0, 10.0):  # a busy machine may need longer to connect
            with pytest.raises(DownloadError) as caught:
                await client.download(f"{server.url}/r.jpg", folder / "r.jpg", timeout=timeout_s, retry=False)
            if isinstance(caught.value, DownloadTimedOut):
                break
        assert f"longer than {timeout_s:g} s" in str(caught.value)
        async with asyncio.timeout(60):
            while client.session.background.in_flight:
                await asyncio.sleep(0.005)


async def test_a_stalled_download_ends_before_the_deadline(raw_server: Any, folder: Path) -> None:
    """A host that falls silent in the middle is given up long before the deadline."""

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(sized(JPEG[:20_000], len(JPEG)))
        await writer.drain()
        await asyncio.Event().wait()
        return False

    limits = DownloadLimits(stall_s=0.2)
    async with (
        raw_server(behave) as server,
        FluxClient(KEY, "http://127.0.0.1:1", download_limits=limits) as client,
        asyncio.timeout(60),
    ):
        with pytest.raises(DownloadCutShort, match="stalled"):
            await client.download(f"{server.url}/r.jpg", folder / "r.jpg", timeout=600, retry=False)


FLOODS = {
    "without a length": OK + b"\r\n",
    "in chunks": OK + b"transfer-encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("head", FLOODS.values(), ids=FLOODS)
async def test_an_endless_image_takes_no_memory_and_ends_at_the_limit(
    raw_server: Any, folder: Path, head: bytes
) -> None:
    """The cap bounds the disk; memory stays far below it."""
    piece = bytes(64 * 1024)

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(head)
        data = b"10000\r\n" + piece + b"\r\n" if b"chunked" in head else piece
        begin = JPEG[:-2]
        writer.write(f"{len(begin):x}\r\n".encode() + begin + b"\r\n" if b"chunked" in head else begin)
        await drip(writer, data, 0)
        return False

    limits = DownloadLimits(max_bytes=24 * MB)
    async with (
        raw_server(behave) as server,
        FluxClient(KEY, "http://127.0.0.1:1", download_limits=limits) as client,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(ResultTooLarge, match="too many bytes"):
                await client.download(f"{server.url}/r.jpg", folder / "r.jpg", timeout=60, retry=False)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 * MB, "the image grew to 24 MB on the disk"


async def test_endless_interim_answers_are_refused(raw_server: Any, folder: Path) -> None:
    """Interim answers without end are an error long before the deadline; a few of them are none."""
    hint = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n"
    sent = 0

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        nonlocal sent
        writer.write(hint * 10)
        if "/few" in first:
            writer.write(sized(JPEG + bytes(2 * MB)))
            return True
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(hint * 100)
                await writer.drain()
                sent += 100 * len(hint)
        return False

    async with raw_server(behave) as server, FluxClient(KEY, "http://127.0.0.1:1") as client:
        with pytest.raises(DownloadError, match="RemoteProtocolError"):
            await client.download(f"{server.url}/r.jpg", folder / "r.jpg", timeout=600, retry=False)
        for _ in range(2):
            (await client.download(f"{server.url}/few", folder / "r.jpg")).path.unlink()
    assert sent < 32 * MB, "what the buffers of the sockets hold"


async def test_tiny_chunks_are_refused_and_do_not_block_other_downloads(
    raw_server: Any, folder: Path
) -> None:
    """A file in chunks of one byte costs a thousand times its size: it ends, and others get their turn."""
    chunks = b"1\r\n\0\r\n" * 10_000
    turns = 0

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        begin = JPEG[:-2]
        writer.write(chunked(begin, b"") + chunks)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        return False

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with (
        raw_server(behave) as server,
        FluxClient(KEY, "http://127.0.0.1:1") as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(others)
        with pytest.raises(DownloadError, match="in chunks of"):
            await client.download(f"{server.url}/r.jpg", folder / "r.jpg", timeout=60, retry=False)
        group.cancel_scope.cancel()
    assert turns > 100


# --- what the host sees -----------------------------------------------------------------------------------

FAMILIES = {"own": lambda **_: None, "httpx": httpx.AsyncClient, "httpx2": httpx2.AsyncClient}


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_file_host_receives_four_headers_and_no_secret(
    raw_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """No key, cookie, password or referrer, whatever client is given, before and after a redirect."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password netrc-secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    async def behave(first: str, headers: Any, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if first.startswith("GET /first"):
            writer.write(
                moved(f"{second.url}/second").replace(b"\r\n\r\n", b"\r\nset-cookie: a=b; path=/\r\n\r\n")
            )
        elif first.startswith("GET /second"):
            writer.write(moved("/third").replace(b"\r\n\r\n", b"\r\nset-cookie: c=d; path=/\r\n\r\n"))
        else:
            writer.write(sized(JPEG))
        return True

    given = FAMILIES[family](
        headers={"Authorization": "Bearer other", "X-Api-Key": "other"},
        cookies={"session": "secret"},
        auth=("u", "p"),
    )
    async with (
        raw_server(behave) as first,
        raw_server(behave) as second,
        FluxClient(KEY, first.url, http_client=given) as client,
    ):
        host = first.url.removeprefix("http://")
        for _ in range(2):
            await client.download(f"http://user:password@{host}/first?x=1", tmp_path / "r.jpg", timeout=60)
    if given is not None:
        await given.aclose()
    requests = first.requests + second.requests
    assert len(requests) == 6
    for line, headers, _ in requests:
        assert headers.keys() == {"host", "user-agent", "accept", "accept-encoding"}
        assert headers["user-agent"].startswith("flux-async/")
        assert headers["accept-encoding"] == "identity"
        assert "password" not in line
    assert not {KEY, "secret", "other", "Bearer"} & set(str(requests).replace("'", " ").split())


# --- proxies ----------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Name a proxy in the environment, and no exceptions."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda url: monkeypatch.setenv("http_proxy", url)


async def test_a_proxy_of_the_environment_is_used(raw_server: Any, tmp_path: Path, proxied: Any) -> None:
    """The proxy resolves the name; nothing is resolved here."""
    async with raw_server(saying(sized(JPEG))) as proxy, Net(1).client() as client:
        proxied(proxy.url.replace("http://", "http://me:pass%20word@"))
        await client.download("http://files.example/r.jpg?x=1", tmp_path / "r.jpg", timeout=60)
    ((line, headers, _),) = proxy.requests
    assert line == "GET http://files.example/r.jpg?x=1 HTTP/1.1"
    assert headers["host"] == "files.example"
    assert headers["proxy-authorization"] == "Basic bWU6cGFzcyB3b3Jk"


@pytest.mark.parametrize("host", ["10.0.0.1", "0xa9fea9fe", "db", "metadata.google.internal", "192.168.0.1"])
async def test_a_proxy_is_not_asked_for_private_hosts(
    raw_server: Any, folder: Path, proxied: Any, host: str
) -> None:
    """Names that are evidently private are refused; so is a redirect to them."""
    async with raw_server(saying(moved(f"http://{host}/"))) as proxy, Net(1).client() as client:
        proxied(proxy.url)
        for url in (f"http://{host}/r.jpg", "http://files.example/r.jpg"):
            with pytest.raises(AddressForbidden):
                await once(client, url, folder / "r.jpg")
    assert proxy.connections == 1


async def test_no_proxy_is_used_for_downloads_from_this_machine(
    client: FluxClient, raw_server: Any, tmp_path: Path, proxied: Any
) -> None:
    """Its 127.0.0.1 is not ours."""
    async with raw_server(saying(b"")) as proxy, raw_server(saying(sized(JPEG))) as server:
        proxied(proxy.url)
        await client.download(f"{server.url}/r.jpg", tmp_path / "r.jpg", timeout=60)
    assert proxy.connections == 0


async def test_no_proxy_means_a_direct_checked_connection(
    raw_server: Any, tmp_path: Path, proxied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``NO_PROXY`` means direct, and direct means guarded."""
    monkeypatch.setenv("no_proxy", "files.example")
    async with raw_server(saying(b"")) as proxy, raw_server(saying(sized(JPEG))) as server:
        proxied(proxy.url)
        net = Net(port_of(server.url), {"files.example": [[PUBLIC], ["10.0.0.1"]]})
        async with net.client() as client:
            await client.download("http://files.example/r.jpg", tmp_path / "r.jpg", timeout=60)
    assert proxy.connections == 0
    assert net.called == [PUBLIC]


async def test_an_unsupported_proxy_is_a_download_error(
    folder: Path, proxied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a crash; where only a package is missing, it is named."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    async with Net(1).client() as client:
        proxied("socks9://127.0.0.1:1")
        with pytest.raises(DownloadError, match="cannot be reached"):
            await once(client, "http://files.example/r.jpg", folder / "r.jpg")
        proxied("socks5://127.0.0.1:1")
        with pytest.raises(DownloadError, match="pip install socksio"):
            await once(client, "http://files.example/r.jpg", folder / "r.jpg")
