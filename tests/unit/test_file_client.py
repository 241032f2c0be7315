"""When the connections of downloads are opened and closed."""

from __future__ import annotations

import ssl
from typing import Any

import attrs
import httpcore
import pytest

from flux_async import DownloadCutShort
from flux_async.transport.file_client import FileClient
from flux_async.transport.ssrf_guard import AddressGuard

URL = "http://127.0.0.1:8000/a.png"


class FakeStream(httpcore.AsyncMockStream):
    """Sends an answer; counts closings, which fail if it is broken."""

    def __init__(self, answer: bytes, *, is_broken: bool) -> None:
        super().__init__([answer])
        self.is_broken = is_broken
        self.closed = 0

    async def aclose(self) -> None:
        """Close it."""
        self.closed += 1
        if self.is_broken:
            raise OSError("the connection is dead")


@attrs.define(eq=False)
class FakeBackend(httpcore.AsyncNetworkBackend):
    """Opens such connections."""

    answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    is_broken: bool = False
    streams: list[FakeStream] = attrs.field(factory=list)

    async def connect_tcp(self, *_: Any, **__: Any) -> FakeStream:
        """Open one."""
        self.streams.append(FakeStream(self.answer, is_broken=self.is_broken))
        return self.streams[-1]


def client_over(backend: FakeBackend) -> FileClient:
    return FileClient("test", AddressGuard("127.0.0.1"), ssl.create_default_context, backend)


async def read(client: FileClient) -> bytes:
    async with client.fetch(URL, timeout_s=60, stall_s=60) as file:
        return b"".join([chunk async for chunk in file.chunks()])


async def test_each_download_has_a_connection_of_its_own_that_is_closed() -> None:
    """Also after an answer that breaks off."""
    backend = FakeBackend()
    client = client_over(backend)
    assert [await read(client), await read(client)] == [b"ok", b"ok"]
    backend.answer = backend.answer[:-1]
    with pytest.raises(DownloadCutShort):
        await read(client)
    assert len(backend.streams) == 3
    assert all(stream.closed for stream in backend.streams)


async def test_an_error_while_closing_does_not_fail_a_download() -> None:
    """The file was received."""
    backend = FakeBackend(is_broken=True)
    assert await read(client_over(backend)) == b"ok"


async def test_closing_the_client_closes_the_connections_of_downloads_in_progress() -> None:
    """Closing again does nothing."""
    backend = FakeBackend()
    client = client_over(backend)
    async with client.fetch(URL, timeout_s=60, stall_s=60):
        assert not backend.streams[0].closed
        await client.aclose()
        assert backend.streams[0].closed
        await client.aclose()
