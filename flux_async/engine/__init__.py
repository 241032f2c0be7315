"""The same jobs on several machines: queues by DBOS, state in PostgreSQL. Needs the extra ``engine``.

::

    process that has work                  PostgreSQL                          workers, on any machine
    Engine.submit(jobs) ────────▶ flux_async.job, queue flux.submit ◀──── Worker: permit, intent, POST
    async for outcome in batch ◀── flux_async.job                   ◀──── queue flux.watch.ACCOUNT: poll, save
    WebhookReceiver(engine) ────▶ flux_async.inbox, NOTIFY ─────────────▶ wakes the worker that waits
"""

from flux_async.errors import MissingExtra

try:
    import dbos as _dbos
except ImportError:
    raise MissingExtra.for_extra("flux_async.engine", "engine") from None
del _dbos

# ruff: noqa: E402 - after the check
from flux_async.engine.batch import BatchRow as BatchRow
from flux_async.engine.batch import BatchStatus as BatchStatus
from flux_async.engine.batch import EngineBatch as EngineBatch
from flux_async.engine.engine import Engine as Engine
from flux_async.engine.worker import WORKER_LIMITS as WORKER_LIMITS
from flux_async.engine.worker import Worker as Worker

__all__ = ["WORKER_LIMITS", "BatchRow", "BatchStatus", "Engine", "EngineBatch", "Worker"]
