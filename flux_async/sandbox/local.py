"""A sandbox in this process, for tests: without a socket, or on one of its own, and with its books open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
from starlette.applications import Starlette

from flux_async.sandbox.app import create_app, desk_of
from flux_async.sandbox.clock import VendorClock, VirtualTime
from flux_async.sandbox.ledger import Ledger
from flux_async.sandbox.plan import FaultPlan
from flux_async.sandbox.settings import SandboxSettings

T = TypeVar("T")

IN_PROCESS: Final = "http://sandbox.test"


class Sandbox:
    """One sandbox in this process: ``async with Sandbox(SandboxSettings(pictures="none")) as sandbox: ...``.

    Args:
        settings: How it behaves; left out, without pictures.
        plan: What goes wrong; left out, what the settings say.
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
        settings = settings or SandboxSettings(pictures="none")
        self.app: Starlette = create_app(settings, plan=plan, clock=clock, wall=wall)
        self._desk = desk_of(self.app)
        self.clock: VendorClock = self._desk.now
        self._held: list[_Held] = []

    async def __aenter__(self) -> Self:
        await self._hold(self.app.router.lifespan_context(self.app))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._held:
            await self._held.pop().close()

    async def _hold(self, manager: AbstractAsyncContextManager[T]) -> T:
        held = _Held()
        value = await held.open(manager)
        self._held.append(held)
        return value

    @property
    def ledger(self) -> Ledger:
        """What was asked, paid, polled and called back, up to now."""
        self._desk.vendor.advance(self.clock())
        return self._desk.account.ledger

    @property
    def credits(self) -> float:
        """The balance."""
        self._desk.vendor.advance(self.clock())
        return self._desk.account.balance

    def record(self) -> dict[str, Any]:
        """Return the whole book, as ``GET /__sandbox/ledger`` shows it."""
        return self._desk.book()

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass, and everything happen that falls due.

        Raises:
            TypeError: If this sandbox does not run on `VirtualTime`.
            ValueError: If time is to run backwards.
        """
        if not isinstance(self.clock, VirtualTime):
            raise TypeError("only VirtualTime can be advanced: give the sandbox one as its clock")
        await self.clock.advance(seconds)

    def http_client(self, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
        """Return a client whose requests reach this sandbox without a socket, whatever host they name."""
        return httpx.AsyncClient(transport=InProcess(self.app), base_url=IN_PROCESS, headers=headers)

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve it on a socket as well, until it is left, and return its address.

        Raises:
            SandboxError: If the port is taken or the address cannot be used.
        """
        from flux_async.sandbox.server import listening  # noqa: PLC0415 - needs the web server

        return await self._hold(listening(self.app, host, port))


class _Held:
    """A context manager in a coroutine of its own: fixtures of tests may begin and end in different ones."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def open(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enter it and return what it yields."""
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
        """Leave it."""
        self._over.set()
        if self._running is not None:
            await self._running


class InProcess(httpx.AsyncBaseTransport):
    """Requests to an ASGI application in this process; a dropped connection looks like one."""

    def __init__(self, app: Starlette) -> None:
        self._inner = httpx.ASGITransport(app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Have one request answered.

        Raises:
            httpx.RemoteProtocolError: If the application hangs up.
        """
        try:
            return await self._inner.handle_async_request(request)
        except ConnectionResetError:
            words = "Server disconnected without sending a response."
            raise httpx.RemoteProtocolError(words, request=request) from None
