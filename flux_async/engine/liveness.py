"""Whether a worker lives: an advisory lock that PostgreSQL releases with its connection.

Rules:

1. A worker holds the lock of its name before it claims any work, on a connection of its own. No clocks are
   compared: the lock ends with the connection, at the latest when keepalive finds a dead host.
2. Every worker looks for locks that nobody holds. It declares their workers dead, so that these start no
   submit any more, and only then gives their workflows to others.
3. A worker that has lost its connection starts no submit until it holds the lock again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable

import attrs
import psycopg

from flux_async.engine.database import Database, in_words
from flux_async.engine.queues import SUBMIT, WATCH
from flux_async.engine.store import CHANNEL

logger: logging.Logger = logging.getLogger("flux_async.engine")

CHECK_S = 2.0
"""Seconds between two looks for dead workers."""
_FRESH_S = 15.0
"""A worker whose last look is older was suspended: it looks again before it submits."""
_AGAIN_S = 1.0
_SERVER_KEEPALIVE = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
_MINE = "hashtext('flux_async'), hashtext(%s)"


@attrs.define(kw_only=True, eq=False)
class Liveness:
    """The lock of one worker, and the care for the work of dead ones.

    Attributes:
        database: Where the workers meet.
        executor: The worker's name, unique among processes.
        on_news: Called with a job's number and a task for which a callback came.
    """

    database: Database
    executor: str
    on_news: Callable[[int, str], None]
    _checked_at: float | None = attrs.field(default=None, init=False)

    @property
    def is_held(self) -> bool:
        """Whether the worker certainly held its lock a moment ago."""
        now = self.database.clock.monotonic()
        return self._checked_at is not None and now - self._checked_at < _FRESH_S

    async def run(self, held: Callable[[], None]) -> None:
        """Hold the lock until cancelled; calls ``held`` each time it was taken."""
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self.database.conninfo,
                    autocommit=True,
                    application_name=self.executor,
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                )
                async with connection:
                    await self._take(connection)
                    held()
                    await self._keep(connection)
            except Exception as error:  # noqa: BLE001 - of two database libraries; the lock must be taken again
                self._checked_at = None
                logger.warning("worker %s lost its lock: %s", self.executor, in_words(error))
                await self.database.clock.sleep(_AGAIN_S)

    async def _take(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        for name, value in _SERVER_KEEPALIVE.items():  # so that the server finds a host that is gone
            await connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        await connection.execute(f"SELECT pg_advisory_lock({_MINE})", (self.executor,))
        await connection.execute(
            "INSERT INTO flux_async.worker (executor, started_at) "
            "VALUES (%s, extract(epoch FROM clock_timestamp())) "
            "ON CONFLICT (executor) DO UPDATE SET is_dead = false",
            (self.executor,),
        )
        await connection.execute(f"LISTEN {CHANNEL}")
        self._checked_at = self.database.clock.monotonic()

    async def _keep(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        while True:
            async for news in connection.notifies(timeout=CHECK_S):
                number, _, task_id = news.payload.partition(" ")
                self.on_news(int(number), task_id)
            found = await connection.execute(
                "SELECT executor FROM flux_async.worker WHERE executor <> %s", (self.executor,)
            )
            self._checked_at = self.database.clock.monotonic()
            for (executor,) in await found.fetchall():
                await self._recover_if_dead(connection, str(executor))

    async def _recover_if_dead(
        self, connection: psycopg.AsyncConnection[tuple[object, ...]], executor: str
    ) -> None:
        """Give the work of a worker to the others if nobody holds its lock."""
        tried = await connection.execute(f"SELECT pg_try_advisory_lock({_MINE})", (executor,))
        if (await tried.fetchone()) != (True,):
            return
        try:
            await connection.execute(
                "UPDATE flux_async.worker SET is_dead = true WHERE executor = %s", (executor,)
            )
            count = await hand_over(self.database, executor)
            await connection.execute("DELETE FROM flux_async.worker WHERE executor = %s", (executor,))
            logger.warning("worker %s has died: %d jobs go to other workers", executor, count)
        finally:
            await connection.execute(f"SELECT pg_advisory_unlock({_MINE})", (executor,))


async def hand_over(database: Database, executor: str) -> int:
    """Put the workflows that a worker has begun back into their queues; return how many there are."""
    begun = await database.client.list_workflows_async(
        status="PENDING", executor_id=executor, name=[SUBMIT, WATCH], load_input=False, load_output=False
    )
    by_queue = defaultdict[str, list[str]](list)
    for workflow in begun:
        if workflow.queue_name is not None:
            by_queue[workflow.queue_name].append(workflow.workflow_id)
    for queue, ids in by_queue.items():
        await database.client.resume_workflows_async(ids, queue_name=queue)
    return len(begun)
