"""Fixtures of many tests: virtual time, the scripted vendor, a client of it, a server that writes bytes."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import certifi
import pytest
from hypothesis import HealthCheck, settings

import raw_server as raw
from flux_async import FluxClient
from flux_async.api import APIS, VARIABLE, choose_api
from flux_async.api.models_table import ApiName
from flux_async.testing import VirtualClock
from loggers import unchanged_loggers
from scripted_vendor import KEY, ScriptedVendor, answer, one_task, task_record

LONGEST = ("torture", "demo", "until_clean_killed", "cli_disk", "checks_end_to_end", "examples")
"""Modules whose tests take longest, most of it waiting: begun last, they would leave the other cores idle."""

BEGIN = 1_790_001_000.0
END_OF_CERTIFICATE = "-----END CERTIFICATE-----\n"

# No result depends on how fast real time passes.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line("markers", "both_apis: runs over each of the vendor's APIs, by the fixture api")
    config.addinivalue_line("markers", "one_api(why): does not, in a module that is marked so")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked ``both_apis`` over both; nothing else depends on the wire format."""
    marked = metafunc.definition.get_closest_marker
    if "api" in metafunc.fixturenames and marked("both_apis") and not marked("one_api"):
        metafunc.parametrize("api", APIS, indirect=True)


@pytest.fixture
def api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ApiName:
    """The vendor's API of all clients of the test; ``KIE_API=jobs pytest …`` runs any test over jobs."""
    name = choose_api(getattr(request, "param", None), os.environ.get(VARIABLE, ""))
    monkeypatch.setenv(VARIABLE, name)
    return name


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one certificate authority instead of 140, which each client reads for 16 ms or more."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    path.write_text(certifi.contents().partition(END_OF_CERTIFICATE)[0] + END_OF_CERTIFICATE, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(autouse=True)
def own_loggers() -> Iterator[None]:
    """Undo what a test that runs a command in this process does to the loggers."""
    with unchanged_loggers():
        yield


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time; it stands still while a worker thread or the journal is busy."""
    return VirtualClock(BEGIN)


@pytest.fixture
def transport(clock: VirtualClock, api: ApiName) -> ScriptedVendor:
    """A scripted vendor on virtual time, with one task that has ended at the third poll."""
    return ScriptedVendor(clock=clock, api=api, script=one_task(), latency_s=0.1)


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
