"""Nothing that the engine stores, logs or reports contains the key of a worker."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from flux_async import FluxEvent, FolderSink
from flux_async.testing import FluxSandbox

pytest.importorskip("dbos", reason="the extra engine is not installed")
import psycopg

from flux_async.engine import Engine, Worker

KEY = "sk-nobody-should-see-me-4711"
FAULTS = "fail-501:20%,500-paid:10%,poll-500:10%"


async def test_the_engine_keeps_no_key(
    fresh_dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in any table of its database, nor in log lines, events and status."""
    caplog.set_level(logging.DEBUG)
    seen: list[FluxEvent] = []
    with FluxSandbox(sockets=True, webhook_key=None, keys=(KEY,), faults=FAULTS) as sandbox:
        async with Engine(fresh_dsn) as engine, sandbox.client(observers=[seen.append]) as client:
            batch = await engine.submit([f"https://example.com/{n}.jpg" for n in range(8)], batch="posters")
            async with Worker(engine, client, lambda name: FolderSink(tmp_path / name)):
                found = Counter([type(outcome).__name__ async for outcome in batch])
                status = repr((engine, batch, await batch.status(), client))
    assert found["Succeeded"]
    stored = tables(fresh_dsn)
    assert stored.count("https://example.com/0.jpg")
    fields = [repr(vars(record)) for record in caplog.records if record.name.startswith("flux_async")]
    assert fields
    assert KEY not in "".join((stored, status, caplog.text, repr(seen), *fields))


def tables(dsn: str) -> str:
    """Return all rows of all tables of a database as text."""
    with psycopg.connect(dsn) as connection:
        names = connection.execute(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        rows = [connection.execute(f"SELECT t::text FROM {name} AS t").fetchall() for (name,) in names]
    return repr(rows)
