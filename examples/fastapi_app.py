"""A web backend: a picture is submitted in one request, its result comes by webhook, a restart loses nothing.

    POST /pictures {"image": "https://…"}   → 202 {"key": "…"}      on disk before it is answered
    GET  /pictures/{key}                    → the state, and the result when it is there
    POST /flux-callback                     ← the vendor

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
    """One endless batch, fed by requests; what it is given is in the journal first."""

    def __init__(self, client: FluxClient, journal: Journal) -> None:
        self.client = client
        self.journal = journal
        self.queue: asyncio.Queue[Job] = asyncio.Queue()

    async def add(self, image: str) -> str:
        """Keep a picture; from here on nothing loses it."""
        job = Job(request=EditRequest.text_removal(image))
        await self.journal.add_jobs([job])
        self.queue.put_nowait(job)
        return job.key

    async def jobs(self) -> AsyncIterator[Job]:
        """What an earlier process kept and did not begin, then what requests bring, for ever."""
        async for job in self.journal.pending_jobs():
            yield job
        while True:
            yield await self.queue.get()

    async def run(self) -> None:
        """Drive everything, until cancelled. What halts it (key, credits) is tried again: nothing is lost."""
        while True:
            try:
                await self._run_batch()
            except FluxError as error:
                logger.error("halted: %s", error)  # noqa: TRY400 - the words say it all
            except Exception:  # requests are taken as long as the server runs, so this must run, too
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


class Picture(BaseModel):
    """What is to be cleaned."""

    image: str


@app.post("/pictures", status_code=202)
async def submit(picture: Picture) -> dict[str, str]:
    """Take a picture on."""
    try:
        return {"key": await app.state.service.add(picture.image)}
    except InvalidInput as error:
        raise HTTPException(422, str(error)) from error


@app.get("/pictures/{key}")
async def look(key: str) -> dict[str, Any]:
    """Say how it stands."""
    stored = await app.state.service.journal.job(key)
    if stored is None:
        raise HTTPException(404, "no such picture")
    job = stored.job
    problem = job.problem and job.problem.message
    return {"state": job.state, "task_id": job.task_id, "result_url": job.result_url, "problem": problem}
