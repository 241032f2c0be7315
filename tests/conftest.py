"""Fixtures of many tests: virtual time, the scripted vendor, a client of it, a server that writes bytes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import certifi
import pytest

import raw_server as raw
from flux_async import FluxClient
from flux_async.testing import VirtualClock
from scripted_vendor import KEY, ScriptedVendor, answer, one_task, task_record

BEGIN = 1_790_001_000.0
END_OF_CERTIFICATE = "-----END CERTIFICATE-----\n"


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one certificate authority instead of 140, which each client reads for 16 ms or more."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    path.write_text(certifi.contents().partition(END_OF_CERTIFICATE)[0] + END_OF_CERTIFICATE, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time; it stands still while a worker thread or the journal is busy."""
    return VirtualClock(BEGIN)


@pytest.fixture
def transport(clock: VirtualClock) -> ScriptedVendor:
    """A scripted vendor on virtual time, with one task that has ended at the third poll."""
    return ScriptedVendor(clock=clock, script=one_task(), latency_s=0.1)


@pytest.fixture
async def client(clock: VirtualClock, transport: ScriptedVendor) -> AsyncIterator[FluxClient]:
    """A client of that vendor."""
    async with FluxClient(
        KEY, "http://127.0.0.1:1", transport=transport, clock=clock, rng=random.Random(7)
    ) as made:
        yield made


@pytest.fixture
def raw_server() -> Callable[..., AbstractAsyncContextManager[raw.RawServer]]:
    """Serve with a behaviour; see ``support/raw_server.py``."""
    return raw.raw_server


class Make:
    """Answers, for tests that take them from the fixture ``make``."""

    answer = staticmethod(answer)
    record = staticmethod(task_record)
    http = staticmethod(raw.http_response)
    key = KEY


@pytest.fixture
def make() -> Any:
    """Makers of answers."""
    return Make
