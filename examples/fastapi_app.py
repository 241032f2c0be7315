"""A web backend: an image is submitted in one request, its result comes by webhook, a restart loses nothing.

    POST /images {"image": "https://…"}   → 202 {"key": "…"}      on disk before it is answered
    GET  /images/{key}                    → the state, and the result after its end
    POST /flux-callback                   ← the vendor

Run it with one worker, where the vendor can reach it::

    pip install 'flux-async' fastapi uvicorn
    export KIE_API_KEY=… KIE_WEBHOOK_KEY=…  PUBLIC_URL=https://your.host
    uvicorn fastapi_app:app --port 8000

Against the sandbox (``flux-async sandbox --webhook-key hook``)::

    export KIE_BASE_URL=http://127.0.0.1:8787 KIE_API_KEY=test KIE_WEBHOOK_KEY=hook
    uvicorn fastapi_app:app --port 8000
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from flux_async import (
    CallbackEndpoint,
    EditRequest,
    FluxClient,
    FluxError,
    InvalidInput,
    Job,
    Journal,
    WebhookReceiver,
    run_batch,
)

logger = logging.getLogger(__name__)

PAUSE_S = 60.0
JOURNAL = os.environ.get("FLUX_JOURNAL", "flux.sqlite3")
ENDPOINT = CallbackEndpoint(
    os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000") + "/flux-callback",
    key=os.environ.get("KIE_WEBHOOK_KEY"),
)


class Service:
    """One endless batch, fed by requests; each job is in the journal before its request is answered."""

    def __init__(self, client: FluxClient, journal: Journal) -> None:
        self.client = client
        self.journal = journal
        self.queue: asyncio.Queue[Job] = asyncio.Queue()

    async def add(self, image: str) -> str:
        """Store an image as a job; after that it cannot be lost."""
        job = Job(request=EditRequest.text_removal(image))
        await self.journal.add_jobs([job])
        self.queue.put_nowait(job)
        return job.key

    async def jobs(self) -> AsyncIterator[Job]:
        """Yield the pending jobs of an earlier process, then those of requests, for ever."""
        async for job in self.journal.pending_jobs():
            yield job
        while True:
            yield await self.queue.get()

    async def run(self) -> None:
        """Run the batch until cancelled; after a halt (key, credits) it is started again: nothing is lost."""
        while True:
            try:
                await self._run_batch()
            except FluxError as error:
                logger.error("halted: %s", error)  # noqa: TRY400 - the message is enough
            except Exception:  # requests are accepted while the server runs, so this must run, too
                logger.exception("halted")
            await asyncio.sleep(PAUSE_S)

    async def _run_batch(self) -> None:
        async with run_batch(self.client, self.jobs(), journal=self.journal, callbacks=ENDPOINT) as batch:
            async for outcome in batch:
                logger.info("%s: %s", type(outcome).__name__, outcome.job and outcome.job.key)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the service beside the web server."""
    async with FluxClient() as client:
        journal = Journal(JOURNAL)
        await journal.open(account=client.fingerprint)
        try:
            service = app.state.service = Service(client, journal)
            app.add_route(
                "/flux-callback", WebhookReceiver(journal, key=ENDPOINT.keys, on_callback=client.notify)
            )
            async with asyncio.TaskGroup() as group:
                running = group.create_task(service.run())
                yield
                running.cancel()
        finally:
            await journal.aclose()


app = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    """An image whose text is to be removed."""

    image: str


@app.post("/images", status_code=202)
async def submit(order: Order) -> dict[str, str]:
    """Accept an image."""
    try:
        return {"key": await app.state.service.add(order.image)}
    except InvalidInput as error:
        raise HTTPException(422, str(error)) from error


@app.get("/images/{key}")
async def status(key: str) -> dict[str, Any]:
    """Return the state of an image."""
    stored = await app.state.service.journal.job(key)
    if stored is None:
        raise HTTPException(404, "no such image")
    job = stored.job
    problem = job.problem and job.problem.message
    return {"state": job.state, "task_id": job.task_id, "result_url": job.result_url, "problem": problem}
