"""The vendor as an ASGI application: its routes, and what is answered where there is none.

Run it under a server (`flux_async.sandbox.serve`) or call it in-process; where pictures or callbacks are
wanted its lifespan must be running.
"""

from __future__ import annotations

import http
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import anyio
import anyio.to_thread
import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flux_async.sandbox import envelopes
from flux_async.sandbox.clock import ScaledTime, VendorClock, VirtualTime, as_clock
from flux_async.sandbox.fault_delivery import answer
from flux_async.sandbox.handlers import Desk
from flux_async.sandbox.plan import HEADER, FaultPlan
from flux_async.sandbox.requests import BodyTooLargeError, UnknownFaultError
from flux_async.sandbox.settings import SandboxSettings
from flux_async.sandbox.state import State

_MOST_READ: Final = 128 * 1024 * 1024
"""More than the largest upload."""


@attrs.frozen
class _BrowserCheck:
    """The vendor's front door turns away urllib's default User-Agent with 403 and this text."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(("/api/", "/files/", "/kieai/")):
            agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
            if agent.startswith(b"Python-urllib"):
                await PlainTextResponse("error code: 1010", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


@attrs.frozen
class _BodyReader:
    """Read the rest of a request's body before its answer is sent, as a proxy in front of a server does.

    A socket that is closed with bytes unread resets the connection, and an early answer, such as a 401 to an
    upload, may be lost on its way to the client.
    """

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        more, size = True, 0

        async def receive_part() -> Message:
            nonlocal more, size
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            size += len(message.get("body", b""))
            return message

        async def send_part(message: Message) -> None:
            if message["type"] == "http.response.start":
                while more and size <= _MOST_READ:
                    await receive_part()
            await send(message)

        await self.app(scope, receive_part, send_part)


def create_app(
    settings: SandboxSettings,
    *,
    plan: FaultPlan | None = None,
    clock: Callable[[], float] | VendorClock | None = None,
    wall: Callable[[], float] = time.time,
) -> Starlette:
    """Return the sandbox as an ASGI application.

    Args:
        settings: How it behaves.
        plan: What goes wrong; left out, what the settings say.
        clock: The vendor's time, such as a `VirtualTime`; left out, real time, scaled by ``settings.speed``.
            Where it can only tell the present, ``settings.speed`` of its seconds pass in a real one.
        wall: Real seconds since the epoch, for the timestamps of signatures.
    """
    state = State(settings.state) if settings.state else None
    began = state.facts.now if state and state.facts else None
    desk = Desk(settings, plan or settings.plan, _clock(settings, clock, began), wall, state)
    app = Starlette(
        routes=[
            Route("/api/v1/flux/kontext/generate", desk.generate, methods=["POST"]),
            Route("/api/v1/flux/kontext/record-info", desk.record_info),
            Route("/api/v1/chat/credit", desk.credit),
            Route("/api/v1/common/download-url", desk.download_url, methods=["POST"]),
            Route("/api/file-stream-upload", desk.upload_stream, methods=["POST"]),
            Route("/api/file-base64-upload", desk.upload_base64, methods=["POST"]),
            Route("/api/file-url-upload", desk.upload_url, methods=["POST"]),
            Route("/files/{rest:path}", desk.file),
            Route("/kieai/{rest:path}", desk.file),
            Route("/samples/", _samples),
            Route("/samples/{name}.png", _sample),
            Route("/__sandbox/ledger", desk.ledger),
            Route("/__sandbox/clock", desk.advance, methods=["POST"]),
            Route("/__sandbox/tasks", desk.page_tasks),
            Route("/__sandbox/thumbnails/{task_id}/{side}.jpg", desk.thumbnail),
            Route("/", desk.page),
        ],
        middleware=[Middleware(_BodyReader), Middleware(_BrowserCheck)],
        exception_handlers={
            http.HTTPStatus.NOT_FOUND: _not_found,
            BodyTooLargeError: _too_large,
            ClientDisconnect: _nobody_there,
            UnknownFaultError: _unknown_fault,
        },
        lifespan=desk.running,
    )
    app.state.desk = desk
    return app


def _clock(
    settings: SandboxSettings, given: Callable[[], float] | VendorClock | None, begin: float | None
) -> VendorClock:
    if given is not None:
        return as_clock(given, settings.speed)
    if settings.virtual_clock:
        return VirtualTime() if begin is None else VirtualTime(begin)
    return ScaledTime(settings.speed, not_before=begin or 0.0)


def desk_of(app: Starlette) -> Desk:
    """Return what is behind an application made by `create_app`."""
    desk = app.state.desk
    assert isinstance(desk, Desk)  # noqa: S101 - put there by create_app
    return desk


async def _samples(request: Request) -> Response:
    titles = await anyio.to_thread.run_sync(_sample_titles)
    address = desk_of(request.app).address(request)
    listed = [
        {"name": name, "title": title, "url": f"{address}/samples/{name}.png"}
        for name, title in titles.items()
    ]
    return JSONResponse({"samples": listed})


async def _sample(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in await anyio.to_thread.run_sync(_sample_titles):
        raise HTTPException(http.HTTPStatus.NOT_FOUND)
    content = await anyio.to_thread.run_sync(_draw_sample, name)
    return Response(content, media_type="image/png", headers={"Cache-Control": "max-age=3600"})


def _sample_titles() -> dict[str, str]:
    try:
        from flux_async.sandbox import samples  # noqa: PLC0415 - loads numpy; few callers want samples
    except ImportError as error:
        raise HTTPException(http.HTTPStatus.NOT_FOUND) from error
    return {name: samples.sample_title(name) for name in samples.sample_names()}


@lru_cache(maxsize=64)
def _draw_sample(name: str) -> bytes:
    """Return a sample as PNG; drawn once, as drawing takes a moment."""
    from flux_async.imaging import encode_image  # noqa: PLC0415 - loads numpy
    from flux_async.sandbox import samples  # noqa: PLC0415 - as above

    return encode_image(samples.draw_sample(name).image)


async def _not_found(_request: Request, _error: Exception) -> Response:
    page = "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>404 Not Found</body>\r\n</html>\r\n"
    return HTMLResponse(page, http.HTTPStatus.NOT_FOUND)


async def _too_large(_request: Request, _error: Exception) -> Response:
    page = "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n</html>\r\n"
    return HTMLResponse(page, http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, headers={"Connection": "close"})


async def _unknown_fault(_request: Request, error: Exception) -> Response:
    return answer(envelopes.refusal(422, f"{HEADER}: {error}"))


async def _nobody_there(_request: Request, _error: Exception) -> Response:
    return Response(status_code=http.HTTPStatus.BAD_REQUEST)
