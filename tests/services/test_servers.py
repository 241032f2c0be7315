"""The servers themselves: each test has its own database or bucket, and what they hold outlives a restart."""

from __future__ import annotations

import signal
import subprocess

from servers import Bucket, Postgres, Redis, RunningServer


def query(postgres: Postgres, dsn: str, sql: str) -> str:
    """Run one statement with psql, and return what it prints."""
    command = [str(postgres.bin / "psql"), "-X", "-A", "-t", "-c", sql, dsn]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_a_database_outlives_a_killed_server(
    postgres: tuple[Postgres, RunningServer], fresh_dsn: str
) -> None:
    """Rows that are committed are there after SIGKILL and a start on the same port."""
    server, process = postgres
    assert query(server, fresh_dsn, "create table t as select 7 as n") == "SELECT 1"
    process.restart(signal.SIGKILL)
    assert query(server, fresh_dsn, "select n from t") == "7"


def test_redis_answers(redis: tuple[Redis, RunningServer], redis_url: str) -> None:
    """It is there again after a restart, on the same port."""
    server, process = redis
    process.restart()
    assert server.answers()
    assert redis_url == server.url


def test_objects_outlive_a_restart(s3: Bucket) -> None:
    """Names, bytes and media types of a bucket are the same after the server was down."""
    s3.put("in/one.png", b"bytes")
    s3.stop()
    s3.start()
    assert s3.names() == ["in/one.png"]
    assert s3.get("in/one.png").content == b"bytes"
    assert s3.get("in/one.png").headers["content-type"] == "image/png"
