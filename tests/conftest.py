"""Fixtures of many tests: virtual time, the scripted vendor, a client of it, a server that writes bytes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

import raw_server as raw
from flux_async import FluxClient
from flux_async.testing import VirtualClock
from scripted_vendor import KEY, ScriptedVendor, answer, one_task, task_record

BEGIN = 1_790_001_000.0


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
