"""Runs a batch with checks in a process that tests kill: ``checked_run.py API FOLDER IMAGE…``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from check_workers import CheckWorkers
from flux_async import FluxClient, Limits, PollPolicy, run_batch

LIMITS = Limits(submits=20, window_s=0.2)
POLLING = PollPolicy(first_s=0.1, interval_s=0.1, jitter=0)


async def main(url: str, folder: Path, images: list[str]) -> None:
    """Run the batch, or resume it."""
    options = {"journal": folder / "run.sqlite3", "directory": folder / "out", "checks": CheckWorkers()}
    async with (
        FluxClient("test", url, limits=LIMITS, polling=POLLING) as client,
        run_batch(client, images, **options, preserve=True, verify=True) as batch,
    ):
        async for _ in batch:
            pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
