"""The vendor as an ASGI application, and `Sandbox`: the same in this process, for tests.

Serve the application with `flux_async.sandbox.serve` or call it in-process; images and callbacks need its
lifespan to run.
"""

from __future__ import annotations

import asyncio
import http
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.to_thread
import attrs
import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flux_async.sandbox import envelopes
from flux_async.sandbox.clock import ScaledTime, VendorClock, VirtualTime, as_clock
from flux_async.sandbox.fault_replies import answer
from flux_async.sandbox.faults import HEADER, FaultPlan
from flux_async.sandbox.handlers import Handlers
from flux_async.sandbox.ledger import Ledger
from flux_async.sandbox.requests import BodyTooLargeError, UnknownFaultError
from flux_async.sandbox.settings import SandboxSettings
from flux_async.sandbox.state import State

_MOST_READ: Final = 128 * 1024 * 1024
"""More than the largest upload."""


@attrs.frozen
class _BrowserCheck:
    """Refuses urllib's default User-Agent with 403 and this text, as the vendor's proxy does."""

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
        settings: Its options.
        plan: The faults; left out, those of the settings.
        clock: The vendor's time, such as a `VirtualTime`; left out, real time, scaled by ``settings.speed``.
            A function without ``sleep`` must run at that speed.
        wall: Real seconds since the epoch, for the timestamps of signatures.
    """
    state = State(settings.state) if settings.state else None
    began = state.facts.now if state and state.facts else None
    handlers = Handlers(settings, plan or settings.plan, _clock(settings, clock, began), wall, state)
    app = Starlette(
        routes=[
            Route("/api/v1/flux/kontext/generate", handlers.generate, methods=["POST"]),
            Route("/api/v1/flux/kontext/record-info", handlers.record_info),
            Route("/api/v1/jobs/createTask", handlers.create_task, methods=["POST"]),
            Route("/api/v1/jobs/recordInfo", handlers.job_record_info),
            Route("/api/v1/models", handlers.models),
            Route("/api/v1/chat/credit", handlers.credit),
            Route("/api/v1/common/download-url", handlers.download_url, methods=["POST"]),
            Route("/api/file-stream-upload", handlers.upload_stream, methods=["POST"]),
            Route("/api/file-base64-upload", handlers.upload_base64, methods=["POST"]),
            Route("/api/file-url-upload", handlers.upload_url, methods=["POST"]),
            Route("/files/{rest:path}", handlers.file),
            Route("/kieai/{rest:path}", handlers.file),
            Route("/samples/", _samples),
            Route("/samples/{name}.png", _sample),
            Route("/__sandbox/ledger", handlers.ledger),
            Route("/__sandbox/clock", handlers.advance, methods=["POST"]),
            Route("/__sandbox/tasks", handlers.page_tasks),
            Route("/__sandbox/thumbnails/{task_id}/{side}.jpg", handlers.thumbnail),
            Route("/", handlers.page),
        ],
        middleware=[Middleware(_BodyReader), Middleware(_BrowserCheck)],
        exception_handlers={
            http.HTTPStatus.NOT_FOUND: _not_found,
            BodyTooLargeError: _too_large,
            ClientDisconnect: _client_gone,
            UnknownFaultError: _unknown_fault,
        },
        lifespan=handlers.running,
    )
    app.state.handlers = handlers
    return app


def _clock(
    settings: SandboxSettings, given: Callable[[], float] | VendorClock | None, begin: float | None
) -> VendorClock:
    if given is not None:
        return as_clock(given, settings.speed)
    if settings.virtual_clock:
        return VirtualTime() if begin is None else VirtualTime(begin)
    return ScaledTime(settings.speed, not_before=begin or 0.0)


def handlers_of(app: Starlette) -> Handlers:
    """Return the handlers of an application made by `create_app`."""
    handlers = app.state.handlers
    assert isinstance(handlers, Handlers)  # noqa: S101 - put there by create_app
    return handlers


async def _samples(request: Request) -> Response:
    titles = await anyio.to_thread.run_sync(_sample_titles)
    address = handlers_of(request.app).address(request)
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
    """Return a sample as PNG."""
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


async def _client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=http.HTTPStatus.BAD_REQUEST)


T = TypeVar("T")

IN_PROCESS: Final = "http://sandbox.test"


class Sandbox:
    """One sandbox in this process: ``async with Sandbox(SandboxSettings(images="none")) as sandbox: ...``.

    Args:
        settings: Its options; left out, ``images="none"``.
        plan: The faults; left out, those of the settings.
        clock: The vendor's time, such as a `VirtualTime`; left out, real time.
        wall: Seconds since the epoch, for the timestamps of signatures; left out, real ones.

    Attributes:
        app: The ASGI application.
        clock: The vendor's time.
    """

    def __init__(
        self,
        settings: SandboxSettings | None = None,
        *,
        plan: FaultPlan | None = None,
        clock: Callable[[], float] | VendorClock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        settings = settings or SandboxSettings(images="none")
        self.app: Starlette = create_app(settings, plan=plan, clock=clock, wall=wall)
        self._handlers = handlers_of(self.app)
        self.clock: VendorClock = self._handlers.now
        self._held: list[_EnteredContext] = []

    async def __aenter__(self) -> Self:
        await self._hold(self.app.router.lifespan_context(self.app))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._held:
            await self._held.pop().close()

    async def _hold(self, manager: AbstractAsyncContextManager[T]) -> T:
        held = _EnteredContext()
        value = await held.open(manager)
        self._held.append(held)
        return value

    @property
    def ledger(self) -> Ledger:
        """Submits, charges, polls and callbacks up to now."""
        self._handlers.vendor.advance(self.clock())
        return self._handlers.account.ledger

    @property
    def credits(self) -> float:
        """The balance."""
        self._handlers.vendor.advance(self.clock())
        return self._handlers.account.balance

    def record(self) -> dict[str, Any]:
        """Return ledger, balance and tasks, as ``GET /__sandbox/ledger`` does."""
        return self._handlers.record()

    async def advance(self, seconds: float) -> None:
        """Advance virtual time, and do all that is due meanwhile.

        Raises:
            TypeError: If this sandbox does not run on `VirtualTime`.
            ValueError: `seconds` is negative or infinite.
        """
        if not isinstance(self.clock, VirtualTime):
            raise TypeError("only VirtualTime can be advanced: give the sandbox one as its clock")
        await self.clock.advance(seconds)

    def http_client(self, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
        """Return a client whose requests reach this sandbox without a socket, whatever host they name."""
        return httpx.AsyncClient(transport=InProcess(self.app), base_url=IN_PROCESS, headers=headers)

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve it on a socket as well, until the sandbox is closed, and return the address.

        Raises:
            SandboxError: If the port is taken or the address cannot be used.
        """
        from flux_async.sandbox.server import listening  # noqa: PLC0415 - needs the web server

        return await self._hold(listening(self.app, host, port))


class _EnteredContext:
    """A context manager in its own task: a test's fixture may begin and end in different tasks."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def open(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enter the context manager and return its value."""
        entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                async with manager as value:
                    entered.set_result(value)
                    await self._over.wait()
            except Exception as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        self._running = asyncio.create_task(run())  # noqa: TID251 - no task group can span a fixture
        return await entered

    async def close(self) -> None:
        """Exit the context manager."""
        self._over.set()
        if self._running is not None:
            await self._running


class InProcess(httpx.AsyncBaseTransport):
    """Sends requests to an ASGI application in this process."""

    def __init__(self, app: Starlette) -> None:
        self._inner = httpx.ASGITransport(app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            httpx.RemoteProtocolError: The application closes the connection.
        """
        try:
            return await self._inner.handle_async_request(request)
        except ConnectionResetError:
            words = "Server disconnected without sending a response."
            raise httpx.RemoteProtocolError(words, request=request) from None
