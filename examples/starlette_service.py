"""A web backend with Starlette, under Hypercorn: an image is added by one request, another one waits for it.

    pip install 'flux-async[webhook]' starlette hypercorn
    export KIE_API_KEY=…
    hypercorn starlette_service:app --workers 0 --graceful-timeout 5

``--workers 0`` is one process: it has the journal.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flux_async import (
    DeadlineExceeded,
    EditRequest,
    FluxClient,
    InvalidInput,
    JobService,
    QueueFull,
    Succeeded,
    UnknownJob,
)

service = JobService(FluxClient(), journal="jobs.sqlite3", directory="results")


async def add(request: Request) -> Response:
    """Take an image; it is on disk before this is answered."""
    body = await request.json()
    key = await service.add(
        EditRequest.text_removal(body["image"])
    )  # an address; never a path of a file here
    return JSONResponse({"key": key}, 202)


async def result(request: Request) -> Response:
    """Wait for an image, but no longer than the server waits for requests when it stops; then ask again."""
    outcome = await service.result(request.path_params["key"], timeout=4)
    if isinstance(outcome, Succeeded):
        return JSONResponse({"state": "Succeeded", "file": str(outcome.file)})
    return JSONResponse({"state": type(outcome).__name__, "problem": str(outcome.error)})


async def ready(request: Request) -> Response:  # noqa: ARG001 - Starlette gives it
    """Say whether new images are taken and submitted."""
    return Response(status_code=204 if service.snapshot().is_ready else 503)


async def refused(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette gives it
    """Answer 422 to what is no image."""
    return JSONResponse({"error": str(error)}, 422)


async def unknown(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette gives it
    """Answer 404 about what was never added."""
    return JSONResponse({"error": str(error)}, 404)


async def later(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette gives it
    """Answer 503 while too many images wait, and where an outcome takes longer."""
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})


app = Starlette(
    lifespan=service.lifespan,
    routes=[
        Route("/images", add, methods=["POST"]),
        Route("/images/{key}/result", result),
        Route("/readyz", ready),
    ],
    exception_handlers={
        InvalidInput: refused,
        UnknownJob: unknown,
        QueueFull: later,
        DeadlineExceeded: later,
    },
)
