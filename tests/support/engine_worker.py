"""A worker of the engine, in a process that tests kill: ``engine_worker.py DSN API FOLDER [CALLBACK]``.

With ``HANGS_IN=verify`` it composes and verifies results, and does not come back from the first ``verify``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from check_workers import CheckWorkers
from flux_async import CallbackEndpoint, FluxClient, FolderSink, Limits, PollPolicy
from flux_async.engine import WORKER_LIMITS, Engine, Worker

POLLING = PollPolicy(first_s=0.2, interval_s=0.2, jitter=0)


def hanging_checks(name: str) -> dict[str, Any]:
    """Return the options of a worker whose check of this name never ends."""

    def behave(kind: str, _: Path) -> None:
        if kind == name:
            print(name, flush=True)  # noqa: T201 - it has begun
            time.sleep(3600)

    return {"verify": True, "preserve": True, "checks": CheckWorkers(behave=behave)}


async def main(dsn: str, api: str, folder: Path, callback_url: str | None = None) -> None:
    """Work until the process is killed."""
    submits = int(os.environ.get("SUBMITS_IN_10_S", "400"))
    wait_s = float(os.environ.get("DOUBT_WAIT_S", "30"))
    hangs_in = os.environ.get("HANGS_IN")
    options = {} if hangs_in is None else hanging_checks(hangs_in)
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
            **options,
        ) as worker,
    ):
        print(worker.executor, flush=True)  # noqa: T201 - it has begun
        await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
