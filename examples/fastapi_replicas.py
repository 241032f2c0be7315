"""A web backend with several replicas, which add images and receive callbacks, and a group of workers.

    pip install 'flux-async[cli,engine,webhook]' fastapi
    export FLUX_ASYNC_DSN=postgresql://user@host/flux KIE_WEBHOOK_KEY=…

    uvicorn fastapi_replicas:app --timeout-graceful-shutdown 5
    KIE_API_KEY=… flux-async worker -o results --callback-url https://your.host/flux-callback

Any number of both, on any machines, and any of them may be killed. The replicas need no API key.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, HttpUrl
from starlette.routing import Route

from flux_async import EditRequest, InvalidInput, Job, WebhookReceiver
from flux_async.engine import Engine

engine = Engine(os.environ["FLUX_ASYNC_DSN"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - FastAPI gives it
    """Connect, and make the tables if there are none."""
    async with engine:
        yield


app = FastAPI(lifespan=lifespan)
receiver = WebhookReceiver(engine, key=os.environ.get("KIE_WEBHOOK_KEY"))
app.router.routes.append(Route("/flux-callback", receiver))  # a mount would redirect


class Order(BaseModel):
    """An image whose text is to be removed."""

    image: HttpUrl


@app.post("/images", status_code=202)
async def add(order: Order) -> dict[str, str]:
    """Take an image; it is in the database before this is answered. The same one again is the same job."""
    job = Job(request=EditRequest.text_removal(str(order.image)))
    await engine.submit([job], batch=job.key, priority=10)
    return {"key": job.key}


@app.get("/images/{key}")
async def state(key: str) -> dict[str, str | None]:
    """Return how far an image is; any replica knows it."""
    batch = engine.batch(key)
    try:
        status = await batch.status()
    except InvalidInput:
        raise HTTPException(404, "There is no such image.") from None
    if status.pending or status.in_flight:
        return {"state": "pending" if status.pending else "in flight"}
    (row,) = [row async for row in batch.rows()]
    return {"state": type(row.outcome).__name__, "file": row.stored.job.file}
