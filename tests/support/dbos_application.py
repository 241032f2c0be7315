"""An application that launches DBOS and then starts a worker: ``dbos_application.py DSN API FOLDER NAME``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from dbos import DBOS

from flux_async import FluxClient, FolderSink, Limits, PollPolicy
from flux_async.engine import WORKER_LIMITS, Engine, Worker

POLLING = PollPolicy(first_s=0.1, interval_s=0.1, jitter=0)


@DBOS.workflow()
async def own_work() -> str:
    """Do the application's own work."""
    return "done"


async def work(dsn: str, api: str, folder: Path) -> None:
    """Submit three images and print how they end."""
    async with (
        FluxClient(base_url=api, limits=WORKER_LIMITS, polling=POLLING) as client,
        Engine(dsn) as engine,
        Worker(engine, client, lambda name: FolderSink(folder / name), rate=Limits(submits=1000)) as worker,
    ):
        batch = await engine.submit([f"https://example.com/{n}.jpg" for n in range(3)], batch="posters")
        ends = [type(outcome).__name__ async for outcome in batch]
        handle = await DBOS.start_workflow_async(own_work)
        print(worker.executor, ends, await handle.get_result())  # noqa: T201 - the test reads it


def main(dsn: str, api: str, folder: str, executor: str) -> None:
    """Launch DBOS outside of an event loop, so that its workflows run on a loop of its own."""
    DBOS(
        config={
            "name": "application",
            "system_database_url": dsn.replace("postgresql:", "postgresql+psycopg:"),
            "executor_id": executor,
            "application_version": "7",
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    try:
        asyncio.run(work(dsn, api, Path(folder)))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
