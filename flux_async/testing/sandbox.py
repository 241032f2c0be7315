"""The sandbox of one test, in a thread and an event loop of its own, for every kind of test."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib.util
import os
import random
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import attrs
from anyio.from_thread import BlockingPortal, start_blocking_portal

from flux_async.api import VARIABLE, choose_api
from flux_async.api.models_table import ApiName
from flux_async.client import FluxClient
from flux_async.errors import MissingExtra
from flux_async.policy.polling import PollPolicy
from flux_async.policy.rate_limit import Limits
from flux_async.testing.callbacks import WEBHOOK_KEY
from flux_async.testing.clock import VirtualClock
from flux_async.testing.ledger import FluxLedger
from flux_async.testing.transport import (
    IN_REQUEST,
    URL,
    AppResponse,
    AppTransport,
    ManagedTransport,
    RawHeaders,
    call_app,
    marking_requests,
)
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import TransportName, make_transport

if TYPE_CHECKING:
    import httpx

    from flux_async.sandbox import Sandbox, SandboxSettings
    from flux_async.sandbox.ledger import Ledger

T = TypeVar("T")

SPEED: Final = 100.0
"""Speed of the vendor's clock in a test on real time: a task takes about a tenth of a second."""

_SERVING: Final = ("starlette", "uvicorn", "python_multipart")
_IMAGES: Final = ("numpy", "cv2", "PIL", "rapidocr", "onnxruntime")
_WINDOW_S: Final = 10.0


@attrs.frozen
class _VendorTime:
    """The clock of the test, with the interface that the sandbox expects."""

    clock: VirtualClock

    def __call__(self) -> float:
        """Return the present."""
        return self.clock.wall()

    async def sleep(self, seconds: float) -> None:
        """Wait; time passes meanwhile also if a request waits for it."""
        with self.clock.release() if IN_REQUEST.get() else contextlib.nullcontext():
            await self.clock.sleep(seconds)

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Hold time during work."""
        return self.clock.hold()


class FluxSandbox:
    """The vendor, for one test: ``with FluxSandbox() as sandbox: ...``; the fixture ``flux_sandbox`` is one.

    Args:
        sockets: Listen on a port of this machine, for clients of any kind; else only the clients that are
            made here reach it, without a socket.
        clock: Virtual time, for the vendor and for the clients made here; left out, real time, in which the
            vendor is ``speed`` times as fast.
        api: The vendor's API that the clients made here use; left out, ``KIE_API``, else kontext. The sandbox
            serves both.
        options: The fields of :class:`flux_async.sandbox.SandboxSettings`. Those left out are made for
            tests: ``images="none"``, ``seed=1``, ``speed=100``, and a key that signs callbacks.

    Attributes:
        url: Its address, for ``KIE_BASE_URL`` or ``base_url``.
        key: An API key that it accepts.
        webhook_key: Key that signs its callbacks; None if they are not signed.
        settings: Its settings.
        ledger: Its submits and charges.

    Raises:
        MissingExtra: A package that it needs is not installed.
        TypeError: An option does not exist.
        ValueError: An option cannot have that value.
    """

    def __init__(
        self,
        *,
        sockets: bool = False,
        clock: VirtualClock | None = None,
        api: ApiName | None = None,
        **options: Any,
    ) -> None:
        _require("testing", _SERVING)
        self.settings: SandboxSettings = _settings(clock, options)
        if self.settings.images == "real":
            _require("sandbox", _IMAGES)
        self.clock: VirtualClock | None = clock
        self.url: str = URL
        self.key: str = self.settings.keys[0]
        self.webhook_key: str | None = self.settings.webhook_key
        self.ledger: FluxLedger = FluxLedger(self._copy_of_ledger)
        self._sockets, self._api = sockets, choose_api(api, os.environ.get(VARIABLE, ""))
        self._open: ExitStack = ExitStack()
        self._clients: list[tuple[FluxClient, ManagedTransport]] = []
        self._requests: set[Future[AppResponse]] = set()

    def __repr__(self) -> str:
        return f"<FluxSandbox at {self.url}>"

    def __enter__(self) -> Self:
        from flux_async.sandbox import Sandbox  # noqa: PLC0415 - needs the extra
        from flux_async.sandbox.server import listening  # noqa: PLC0415 - as above

        with self._open:
            self._portal: BlockingPortal = self._open.enter_context(start_blocking_portal("asyncio"))
            time: dict[str, Any] = {}
            if self.clock is not None:
                time = {"clock": _VendorTime(self.clock), "wall": self.clock.wall}
            self._box: Sandbox = self._call(lambda: Sandbox(self.settings, **time))
            self._open.enter_context(self._portal.wrap_async_context_manager(self._box))
            if self._sockets:
                served = listening(marking_requests(self._box.app), port=0)
                self.url = self._open.enter_context(self._portal.wrap_async_context_manager(served))
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        while self._clients:
            client, transport = self._clients.pop()
            transport.run_in_its_loop(client.aclose)
            client.session.mark_closed()
        for request in tuple(self._requests):
            request.cancel()  # no client waits for the answer, which can be slow
        self._open.close()

    @property
    def credits(self) -> float:
        """The balance."""
        return self._call(lambda: self._box.credits)

    def record(self) -> dict[str, Any]:
        """Return the whole ledger, tasks included, as ``GET /__sandbox/ledger`` shows it."""
        return self._call(self._box.record)

    def client(
        self, api_key: str | None = None, *, transport: TransportName | None = None, **options: Any
    ) -> FluxClient:
        """Return a client of this sandbox; it is closed at the end of the test at the latest.

        Args:
            api_key: Left out, the sandbox's.
            transport: Library that makes the requests, where there are sockets; left out, ``KIE_TRANSPORT``,
                else httpx.
            options: The other arguments of :class:`flux_async.FluxClient`. On real time, ``limits`` and
                ``polling`` are as fast as the vendor unless given.
        """
        rng = random.Random(1)  # noqa: S311 - jitter is no secret
        options = self._timing() | {"rng": rng, "api": self._api} | options
        credentials = Credentials(api_key or self.key, self.url)
        inner = make_transport(transport if self._sockets else "httpx", credentials, version="testing")
        if not self._sockets:
            inner = AppTransport(credentials, self._request, inner)
        managed = ManagedTransport(inner, self.clock)
        client = FluxClient(api_key or self.key, self.url, transport=managed, **options)
        self._clients.append((client, managed))
        return client

    def http_client(self, **options: Any) -> httpx.AsyncClient:
        """Return an ``httpx.AsyncClient`` whose relative addresses lead here; the caller closes it."""
        import httpx  # noqa: PLC0415 - the kit loads what a test uses

        if not self._sockets:
            options = {"transport": httpx.MockTransport(self.respond)} | options
        return httpx.AsyncClient(**({"base_url": self.url} | options))

    async def respond(self, request: httpx.Request) -> httpx.Response:
        """Answer a request to any host: a side effect for respx, a handler for ``MockTransport``.

        Raises:
            httpx.RemoteProtocolError: The vendor closes the connection.
        """
        import httpx  # noqa: PLC0415 - the kit loads what a test uses

        body = await request.aread()
        with self.clock.hold() if self.clock is not None else contextlib.nullcontext():
            found = await self._request(request.method, str(request.url), request.headers.raw, body)
        if not found.is_whole:
            raise httpx.RemoteProtocolError(
                "Server disconnected without sending a response.", request=request
            )
        headers = list(found.raw_headers)
        return httpx.Response(found.status, headers=headers, content=found.body, request=request)

    async def _request(self, method: str, url: str, headers: RawHeaders, body: bytes) -> AppResponse:
        """Make a request to the sandbox, from any event loop."""
        request = self._portal.start_task_soon(call_app, self._box.app, method, url, headers, body)
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)
        return await asyncio.wrap_future(request)  # passes a cancellation on

    def _call(self, work: Callable[[], T]) -> T:
        """Call a function in the sandbox's own loop, where nothing else runs meanwhile."""

        async def call() -> T:
            return work()

        result: T = self._portal.call(call)
        return result

    def _copy_of_ledger(self) -> Ledger:
        return self._call(lambda: copy.deepcopy(self._box.ledger))

    def _timing(self) -> dict[str, Any]:
        if self.clock is not None:
            return {"clock": self.clock}
        speed = self.settings.speed
        polling = PollPolicy(
            interval_s=3.0 / speed, cap_s=30.0 / speed, sweep_s=30.0 / speed, not_found_grace_s=90.0 / speed
        )
        return {"limits": Limits(window_s=_WINDOW_S / speed), "polling": polling}


def _settings(clock: VirtualClock | None, options: dict[str, Any]) -> SandboxSettings:
    from flux_async.sandbox import SandboxSettings  # noqa: PLC0415 - the kit loads what a test uses

    known = [field.name for field in attrs.fields(SandboxSettings) if field.name != "virtual_clock"]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise TypeError(
            f"Unknown option of the sandbox: {', '.join(unknown)}. Options: sockets, api, {', '.join(known)}."
        )
    if clock is not None and "speed" in options:
        raise ValueError("speed has no effect on virtual time: leave out speed or flux_clock.")
    made_for_tests: dict[str, Any] = {"images": "none", "seed": 1, "webhook_key": WEBHOOK_KEY}
    if clock is None:
        made_for_tests["speed"] = SPEED
    return SandboxSettings(**(made_for_tests | options))


def _require(extra: str, modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra.for_extra(f"A sandbox in a test ({', '.join(missing)} not installed)", extra)
