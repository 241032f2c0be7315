"""What every worker does beside its jobs: queue jobs, find tasks left, delete workflows, read balances."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

from flux_async.api_errors import InsufficientCreditsError
from flux_async.client import FluxClient
from flux_async.engine.accounts import Accounts
from flux_async.engine.database import Database, in_words
from flux_async.engine.queues import SUBMIT, WATCH, feed, has_waiting, watch_left
from flux_async.errors import FluxError
from flux_async.job_state import Problem

logger: logging.Logger = logging.getLogger("flux_async.engine")

BALANCE_S = 60.0
"""Seconds between two looks at a balance."""
_KEPT_S, _TIDY_S = 14 * 86_400.0, 3600.0
_LEFT_S = 60.0
_FEED_S, _LOOK_S = 0.5, 10.0


async def queue_jobs(database: Database, has_new: asyncio.Event) -> None:
    """Give jobs to DBOS as it has room, until cancelled; ``has_new`` is set when there are new ones."""
    while True:
        has_new.clear()
        pause_s = _FEED_S
        try:
            if not await feed(database) and not await has_waiting(database):
                pause_s = _LOOK_S
        except Exception as error:  # noqa: BLE001 - of two database libraries; it must go on
            logger.warning("jobs cannot be queued now: %s", in_words(error))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await (has_new if pause_s == _LOOK_S else asyncio.Event()).wait()


async def watch_tasks_left(database: Database) -> None:
    """Have each submitted job worked on that no workflow works on, until cancelled."""
    while True:
        try:
            if count := await watch_left(database, age_s=_LEFT_S):
                logger.warning("%d submitted jobs had no worker: their tasks are polled again", count)
        except Exception as error:  # noqa: BLE001 - of two database libraries; it must go on
            logger.warning("submitted jobs cannot be looked for now: %s", in_words(error))
        await database.clock.sleep(_LEFT_S)


async def tidy(database: Database) -> None:
    """Delete old workflows every hour, until cancelled."""
    while True:
        with suppress(Exception):  # the next time
            await delete_old_workflows(database)
        await database.clock.sleep(_TIDY_S)


async def delete_old_workflows(database: Database) -> None:
    """Delete the workflows that ended two weeks ago; what became of their jobs is kept."""
    before = datetime.fromtimestamp(database.clock.wall() - _KEPT_S, UTC).isoformat()
    while ended := await database.client.list_workflows_async(
        name=[SUBMIT, WATCH],
        status=["SUCCESS", "ERROR"],
        completed_before=before,
        limit=1000,
        load_input=False,
        load_output=False,
    ):
        await database.client.delete_workflows_async([workflow.workflow_id for workflow in ended])


async def check_credits(accounts: Accounts, clients: Iterable[FluxClient], least: float) -> None:
    """Halt the submits of each account whose balance is below ``least``, for the next two minutes."""
    for client in clients:
        try:
            balance = await client.credits()
        except FluxError as error:
            logger.info("a balance cannot be read: %s", error.message)
            continue
        if balance < least:
            words = f"The balance is {balance:g} credits, and submits pause below {least:g}."
            problem = Problem.of(InsufficientCreditsError(words))
            await accounts.halt(client.fingerprint, problem, 2 * BALANCE_S)
