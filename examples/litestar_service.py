"""A web backend with Litestar: images with priorities, and the events of all of them as a stream.

pip install 'flux-async[webhook]' litestar
export KIE_API_KEY=…
uvicorn litestar_service:app --timeout-graceful-shutdown 5
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from litestar import Litestar, Response, get, post
from litestar.response import ServerSentEvent, ServerSentEventMessage

from flux_async import (
    EditRequest,
    FluxClient,
    FluxError,
    InvalidInput,
    JobService,
    JobStatus,
    QueueFull,
    UnknownJob,
)

service = JobService(FluxClient(), journal="jobs.sqlite3", directory="results")


@post("/images", status_code=202)
async def add(data: dict[str, str], priority: int = 0) -> dict[str, str]:
    """Take an image; it is on disk before this is answered."""
    return {"key": await service.add(EditRequest.text_removal(data["image"]), priority=priority)}


@get("/images/{key:str}")
async def state(key: str) -> dict[str, str]:
    """Return the outcome of an image, or how far it is."""
    found = await service.get(key)
    return {"state": found.state if isinstance(found, JobStatus) else type(found).__name__}


@get("/events")
async def events() -> ServerSentEvent:
    """Stream what happens to all images."""

    async def messages() -> AsyncIterator[ServerSentEventMessage]:
        async for event in service.events():
            yield ServerSentEventMessage(event=type(event).__name__, data=event.job or "")

    return ServerSentEvent(messages())


def refuse(_: object, error: FluxError) -> Response[dict[str, str]]:
    """Answer with the status that belongs to an error."""
    codes: dict[type[FluxError], int] = {InvalidInput: 422, UnknownJob: 404, QueueFull: 503}
    return Response({"error": error.message}, status_code=codes.get(type(error), 500))


app = Litestar([add, state, events], lifespan=[service.lifespan], exception_handlers={FluxError: refuse})
