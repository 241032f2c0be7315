"""A web backend with FastAPI: a form to upload images, live progress, a gallery, health checks.

    pip install 'flux-async[webhook]' fastapi python-multipart
    export KIE_API_KEY=…
    uvicorn fastapi_service:app --timeout-graceful-shutdown 5

Then open http://127.0.0.1:8000. Run one process: it has the journal. For callbacks instead of polls set
``PUBLIC_URL`` to the address under which the vendor can reach this server, and ``KIE_WEBHOOK_KEY``.

For any number of processes and machines, ``pip install 'flux-async[engine]'`` and name a PostgreSQL database
in place of the journal; ``DATA_FOLDER`` is then on a volume that all of them share::

    export FLUX_ASYNC_DSN=postgresql://user@host/flux

Without a key and free of charge, against the sandbox (``flux-async sandbox``, from the extra ``sandbox``)::

    export KIE_API_KEY=test KIE_BASE_URL=http://127.0.0.1:8787
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Annotated, Any

import attrs
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import HttpUrl
from starlette.routing import Route

from flux_async import (
    AlreadySubmitted,
    CallbackEndpoint,
    Failed,
    FluxClient,
    FluxError,
    InDoubt,
    InvalidInput,
    JobConflictError,
    JobService,
    JobStatus,
    JournalError,
    QueueFull,
    RequestNotSent,
    Succeeded,
    UnknownJob,
)

DATA = Path(os.environ.get("DATA_FOLDER", "data"))
UPLOADS, RESULTS = DATA / "uploads", DATA / "results"
DSN = os.environ.get("FLUX_ASYNC_DSN")
PUBLIC_URL = os.environ.get("PUBLIC_URL")
SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
STATUS_CODES: dict[type[FluxError], int] = {
    InvalidInput: 422,
    UnknownJob: 404,
    AlreadySubmitted: 409,
    JobConflictError: 409,
    JournalError: 503,
    QueueFull: 503,
    RequestNotSent: 503,
}
PAGE = """<!doctype html><meta charset="utf-8"><title>Text removal</title>
<style>body {{ font: 1em sans-serif; margin: 2em }} img {{ max-width: 45%; max-height: 20em }}</style>
{body}"""
FORM = """<h1>Remove text from an image</h1>
<form action="/images" method="post" enctype="multipart/form-data">
<input type="file" name="file" accept="image/*"> or <input type="url" name="url" placeholder="https://…">
<button>Remove text</button></form><p><a href="/gallery">Gallery</a>"""
PROGRESS = """<h1>Working …</h1><pre id="log"></pre><script>
const events = new EventSource("/images/{key}/events");
events.onmessage = ({{data}}) => {{
  const {{event, ...more}} = JSON.parse(data);
  document.getElementById("log").append(`${{event}} ${{more.outcome ?? ""}} ${{more.reason ?? ""}}\\n`);
  if (event === "Settled") {{ events.close(); if (more.outcome === "succeeded") location = "/gallery"; }}
}};</script>"""

UPLOADS.mkdir(parents=True, exist_ok=True)
RESULTS.mkdir(parents=True, exist_ok=True)
service = JobService(
    FluxClient(),
    journal=None if DSN else DATA / "jobs.sqlite3",
    engine=DSN,
    directory=RESULTS,
    callbacks=CallbackEndpoint(f"{PUBLIC_URL}/flux-callback", key=os.environ.get("KIE_WEBHOOK_KEY"))
    if PUBLIC_URL
    else None,
)
app = FastAPI(lifespan=service.lifespan)
app.mount("/uploads", StaticFiles(directory=UPLOADS))
app.mount("/results", StaticFiles(directory=RESULTS))
if PUBLIC_URL:
    app.router.routes.append(Route("/flux-callback", service.receiver))  # a mount would redirect


@app.exception_handler(FluxError)
async def refuse(request: Request, error: FluxError) -> Response:  # noqa: ARG001 - FastAPI gives it
    """Answer with the status that belongs to an error."""
    status = next((code for kind, code in STATUS_CODES.items() if isinstance(error, kind)), 500)
    headers = {"Retry-After": f"{error.retry_after_s:.0f}"} if isinstance(error, QueueFull) else None
    return JSONResponse({"error": error.message, "advice": error.advice}, status, headers)


@app.get("/", response_class=HTMLResponse)
async def form() -> str:
    """Show the form."""
    return PAGE.format(body=FORM)


@app.post("/images")
async def add(
    request: Request, file: UploadFile | None = None, url: Annotated[HttpUrl | None, Form()] = None
) -> Response:
    """Take an image; it is stored durably before this is answered."""
    if file and file.filename:
        path = await stored(file)
        key = await service.add(path, key=path.stem)
    elif url:
        key = await service.add(str(url))  # checked to be an address: a string may also be a path
    else:
        raise HTTPException(422, "Choose a file, or give an address.")
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"/images/{key}/progress", 303)
    return JSONResponse({"key": key}, 202)


async def stored(file: UploadFile) -> Path:
    """Keep an upload, named by its content: it is sent when its turn comes, perhaps by the next process."""
    if file.content_type not in SUFFIXES:
        raise HTTPException(422, "Choose a JPEG, PNG or WebP image.")
    content = await file.read()
    path = UPLOADS / (hashlib.sha256(content).hexdigest()[:32] + SUFFIXES[file.content_type])
    await run_in_threadpool(path.write_bytes, content)
    return path


@app.get("/images/{key}")
async def state(key: str) -> dict[str, Any]:
    """Return the outcome of an image, or how far it is."""
    match await service.get(key):
        case JobStatus(state=now, problem=problem):
            return {"state": now, "problem": problem}
        case Succeeded(file=file):
            return {"state": "succeeded", "file": file and f"/results/{file.name}"}
        case Failed(error=error):
            return {"state": "failed", "problem": error.message}
        case InDoubt(error=error):
            return {"state": "in_doubt", "problem": error.message}


@app.delete("/images/{key}", status_code=204)
async def cancel(key: str) -> None:
    """Cancel an image that is not submitted yet."""
    await service.cancel(key)


@app.get("/images/{key}/progress", response_class=HTMLResponse)
async def progress(key: str) -> str:
    """Show the events of an image as they come."""
    return PAGE.format(body=PROGRESS.format(key=escape(key)))


@app.get("/images/{key}/events")
async def events(key: str) -> StreamingResponse:
    """Stream the events of an image, for ``EventSource``."""
    await service.get(key)  # 404 before the stream begins

    async def lines() -> AsyncIterator[str]:
        async for event in service.events(key):
            fields = {"event": type(event).__name__, **attrs.asdict(event)}
            yield f"data: {json.dumps(fields, default=str)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@app.get("/gallery", response_class=HTMLResponse)
def gallery() -> str:
    """Show each result beside what was uploaded."""
    before = {path.stem: f'<img src="/uploads/{path.name}">' for path in UPLOADS.iterdir()}
    results = sorted(RESULTS.glob("[!.]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    rows = (f'<p>{before.get(path.stem, "")} <img src="/results/{path.name}">' for path in results)
    return PAGE.format(body=f'<h1>Gallery</h1><a href="/">Another image</a>{"".join(rows)}')


@app.get("/healthz")
async def healthz() -> dict[str, Any]:
    """Say that the process works, and how it is; makes no request."""
    now = service.snapshot()
    return {
        "waiting": now.waiting,
        "in_flight": now.client.tasks_in_flight,
        "journal_lag_s": now.journal_lag_s,
        "credits": now.client.credits,
        "pauses": [attrs.asdict(pause) for pause in now.client.pauses],
    }


@app.get("/readyz")
async def readyz() -> Response:
    """Say whether new images are taken and submitted."""
    now = service.snapshot()
    return JSONResponse({"halted": now.halted, "reason": now.reason}, 200 if now.is_ready else 503)
