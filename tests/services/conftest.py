"""Real servers for the tests of this folder: PostgreSQL, Redis, S3, Azurite, each started once, where used.

A server whose program is missing skips the tests that need it. In CI (``CI=true``) it fails them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import servers
from servers import Bucket, Postgres, RunningServer


def missing(what: str, how: str) -> None:
    """Skip the test, or fail it in CI."""
    words = f"{what} is not installed. {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(words)
    pytest.skip(words)


@pytest.fixture(scope="session")
def postgres() -> Iterator[tuple[Postgres, RunningServer]]:
    """A PostgreSQL server, and its process, for tests that stop and start it."""
    programs = servers.postgres_bin()
    if programs is None:
        missing("PostgreSQL", "On Debian: apt-get install postgresql")
    assert programs is not None
    with servers.running_postgres(programs) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_dsn(postgres: tuple[Postgres, RunningServer]) -> str:
    """The address of the server's own database; for tests that need a server and leave nothing in it."""
    return postgres[0].dsn()


@pytest.fixture
def fresh_dsn(postgres: tuple[Postgres, RunningServer]) -> Iterator[str]:
    """The address of an empty database that is the test's own."""
    server, process = postgres
    name = f"test_{uuid.uuid4().hex}"
    server.create(name)
    yield server.dsn(name)
    if not server.answers():
        process.restart()
    server.drop(name)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[servers.Redis, RunningServer]]:
    """A Redis server, and its process."""
    if shutil.which("redis-server") is None:
        missing("redis-server", "On Debian: apt-get install redis-server")
    folder = tmp_path_factory.mktemp("redis")
    server = servers.Redis(folder)
    with servers.running(server, folder / "log") as process:
        yield server, process


@pytest.fixture
def redis_url(redis: tuple[servers.Redis, RunningServer]) -> str:
    """The address of a Redis server; tests use keys of their own."""
    server, process = redis
    if not server.answers():
        process.restart()
    return server.url


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[servers.S3, RunningServer]]:
    """An S3 server, and its process."""
    if any(importlib.util.find_spec(module) is None for module in ("moto", "flask", "flask_cors")):
        missing(
            "The S3 server", "nox -s tests_services installs it; or pip install 'moto[s3]' flask flask-cors"
        )
    folder: Path = tmp_path_factory.mktemp("s3")
    server = servers.S3(folder)
    with servers.running(server, folder / "log") as process:
        yield server, process


@pytest.fixture
def s3(s3_server: tuple[servers.S3, RunningServer]) -> Bucket:
    """An empty bucket that is the test's own, with its server's address and credentials."""
    server, process = s3_server
    if not server.answers():
        process.restart()
    # moto finds a bucket with a hyphen only where the client does not escape it, as Google's does.
    bucket = Bucket(server.endpoint, f"test{uuid.uuid4().hex}", process.stop, process.start)
    bucket.create()
    return bucket


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Azurite]:
    """A server of Azure Blob Storage; without its program the test is skipped."""
    program = os.environ.get("FLUX_ASYNC_AZURITE") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed. With npm: npm install --global azurite")
    folder = tmp_path_factory.mktemp("azurite")
    server = servers.Azurite(folder, program)
    with servers.running(server, folder / "log"):
        yield server
