"""A Taskiq worker that only uses ``submit`` and ``wait``, for applications that have a queue already.

    pip install 'flux-async[redis]' taskiq taskiq-redis
    export KIE_API_KEY=… REDIS_URL=redis://127.0.0.1:6379
    taskiq worker taskiq_worker:broker --workers 2

Elsewhere: ``await submit.kiq("https://your.host/poster.jpg", "poster.jpg")``. A submit is paid: this broker
hands it to one worker, once, and it is not retried; one that a worker dies with may have been paid (look at
kie.ai/logs). A fetch is free and is retried. The result of ``submit`` is the id of the task: with it,
``fetch`` can be enqueued again for 14 days.
"""

from __future__ import annotations

import os
from pathlib import Path

from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from flux_async import EditRequest, FluxClient, RedisRateLimiter, TaskId

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
RESULTS = Path("results")

broker = (
    ListQueueBroker(REDIS_URL)  # not RedisStreamBroker, which delivers the task of a dead worker again
    .with_result_backend(RedisAsyncResultBackend(REDIS_URL, result_ex_time=14 * 86_400))
    .with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_client(state: TaskiqState) -> None:
    """Make one client for the process; the rate limit is shared by all workers."""
    state.limiter = await RedisRateLimiter(REDIS_URL).__aenter__()
    state.client = await FluxClient(rate_limiter=state.limiter).__aenter__()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_client(state: TaskiqState) -> None:
    """Wait for submits in flight and close."""
    await state.client.aclose()
    await state.limiter.aclose()


@broker.task
async def submit(image: str, name: str, context: Context = TaskiqDepends()) -> str:  # noqa: B008 - how Taskiq injects
    """Pay for a task, and let its image be fetched; return its id."""
    client: FluxClient = context.state.client
    task_id = await client.submit(EditRequest.text_removal(image))
    await fetch.kiq(task_id, name)
    return task_id


@broker.task(retry_on_error=True)
async def fetch(task_id: str, name: str, context: Context = TaskiqDepends()) -> str:  # noqa: B008 - how Taskiq injects
    """Wait for the image of a task and save it; return its path."""
    client: FluxClient = context.state.client
    saved = await client.download(await client.wait(TaskId(task_id)), RESULTS / name)
    return str(saved.path)
