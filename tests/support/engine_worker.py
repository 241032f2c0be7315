"""A worker of the engine, in a process that tests kill: ``engine_worker.py DSN API FOLDER [CALLBACK]``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from flux_async import CallbackEndpoint, FluxClient, FolderSink, Limits, PollPolicy
from flux_async.engine import WORKER_LIMITS, Engine, Worker

POLLING = PollPolicy(first_s=0.2, interval_s=0.2, jitter=0)


async def main(dsn: str, api: str, folder: Path, callback_url: str | None = None) -> None:
    """Work until the process is killed."""
    submits = int(os.environ.get("SUBMITS_IN_10_S", "400"))
    wait_s = float(os.environ.get("DOUBT_WAIT_S", "10"))
    callbacks = None if callback_url is None else CallbackEndpoint(callback_url, doubt_wait_s=wait_s)
    async with (
        FluxClient(
            os.environ.get("KIE_API_KEY", "test"), api, limits=WORKER_LIMITS, polling=POLLING
        ) as client,
        Engine(dsn) as engine,
        Worker(
            engine,
            client,
            lambda name: FolderSink(folder / name),
            rate=Limits(submits=submits, window_s=10),
            callbacks=callbacks,
        ) as worker,
    ):
        print(worker.executor, flush=True)  # noqa: T201 - it has begun
        await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
