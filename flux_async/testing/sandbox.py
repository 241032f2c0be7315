"""A sandbox for one test: in a thread and an event loop of its own, whatever kind of test it is."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib.util
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import attrs
from anyio.from_thread import BlockingPortal, start_blocking_portal

from flux_async.client import FluxClient
from flux_async.errors import MissingExtra
from flux_async.policy.polling import PollPolicy
from flux_async.policy.rate_limit import Limits
from flux_async.testing.callbacks import WEBHOOK_KEY
from flux_async.testing.clock import VirtualClock
from flux_async.testing.in_process import IN_REQUEST, URL, Heard, InProcess, RawHeaders, as_answering, ask
from flux_async.testing.ledger import FluxLedger
from flux_async.testing.managed_client import LentClient, LentTransport
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import TransportName, make_transport

if TYPE_CHECKING:
    import httpx

    from flux_async.sandbox import Sandbox, SandboxSettings
    from flux_async.sandbox.ledger import Ledger

T = TypeVar("T")

SPEED: Final = 100.0
"""How fast the vendor's clock runs in a test on real time: a task takes about a tenth of a second."""

_SERVING: Final = ("starlette", "uvicorn", "python_multipart")
_PICTURES: Final = ("numpy", "cv2", "PIL", "rapidocr", "onnxruntime")
_WINDOW_S: Final = 10.0


@attrs.frozen
class _VendorTime:
    """The clock of the test, as the sandbox reads it."""

    clock: VirtualClock

    def __call__(self) -> float:
        """Return the present."""
        return self.clock.wall()

    async def sleep(self, seconds: float) -> None:
        """Wait; who waits for the answer to a request lets time pass meanwhile."""
        waited_for = self.clock.release() if IN_REQUEST.get() else contextlib.nullcontext()
        with waited_for:
            await self.clock.sleep(seconds)

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Say that something is being done which takes real time."""
        return self.clock.hold()


class FluxSandbox:
    """The vendor, for one test: ``with FluxSandbox() as sandbox: ...``; the fixture ``flux_sandbox`` is one.

    Args:
        sockets: Listen on a port of this machine, for clients of any kind; else only the clients that are
            made here reach it, without a socket.
        clock: Virtual time, for the vendor and for the clients made here; left out, real time, in which the
            vendor is ``speed`` times as fast.
        options: The fields of :class:`flux_async.sandbox.SandboxSettings`. Those left out are made for
            tests: ``pictures="none"``, ``seed=1``, ``speed=100``, and a key that signs callbacks.

    Attributes:
        url: Its address, for ``KIE_BASE_URL`` or ``base_url``.
        key: An API key that it takes.
        webhook_key: Signs its callbacks; None where they are not signed.
        settings: How it behaves.
        ledger: What was submitted and charged.

    Raises:
        MissingExtra: What it needs is not installed.
        ValueError, TypeError: An option is none, or has no such value.
    """

    def __init__(self, *, sockets: bool = False, clock: VirtualClock | None = None, **options: Any) -> None:
        _require("testing", _SERVING)
        self.settings: SandboxSettings = _settings(clock, options)
        if self.settings.pictures == "real":
            _require("sandbox", _PICTURES)
        self.clock: VirtualClock | None = clock
        self.url: str = URL
        self.key: str = self.settings.keys[0]
        self.webhook_key: str | None = self.settings.webhook_key
        self.ledger: FluxLedger = FluxLedger(self._copy_of_ledger)
        self._sockets = sockets
        self._open: ExitStack = ExitStack()
        self._lent: list[LentClient] = []
        self._asked: set[Future[Heard]] = set()

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
            self._box: Sandbox = self._here(lambda: Sandbox(self.settings, **time))
            self._open.enter_context(self._portal.wrap_async_context_manager(self._box))
            if self._sockets:
                served = listening(as_answering(self._box.app), port=0)
                self.url = self._open.enter_context(self._portal.wrap_async_context_manager(served))
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        while self._lent:
            self._lent.pop().take_back()
        for asked in tuple(self._asked):
            asked.cancel()  # nobody waits for the answer any more, and it may be slow
        self._open.close()

    @property
    def credits(self) -> float:
        """The balance."""
        return self._here(lambda: self._box.credits)

    def record(self) -> dict[str, Any]:
        """Return the whole book, tasks included, as ``GET /__sandbox/ledger`` shows it."""
        return self._here(self._box.record)

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
        options = self._pace() | {"rng": random.Random(1)} | options  # noqa: S311 - jitter is no secret
        origin = Credentials(api_key or self.key, self.url)
        name = transport if self._sockets else "httpx"
        inner = make_transport(name, origin, version="testing")
        if not self._sockets:
            inner = InProcess(origin, self._hand_over, inner)
        lent = LentTransport(inner, self.clock)
        client = FluxClient(api_key or self.key, self.url, transport=lent, **options)
        self._lent.append(LentClient(client, lent))
        return client

    def http_client(self, **options: Any) -> httpx.AsyncClient:
        """Return an ``httpx.AsyncClient`` whose relative addresses lead here; it is yours to close."""
        import httpx  # noqa: PLC0415 - the kit loads what a test uses

        if not self._sockets:
            options = {"transport": httpx.MockTransport(self.respond)} | options
        return httpx.AsyncClient(**({"base_url": self.url} | options))

    async def respond(self, request: httpx.Request) -> httpx.Response:
        """Answer a request, whatever host it names: a side effect for respx, a handler for ``MockTransport``.

        Raises:
            httpx.RemoteProtocolError: The vendor hangs up.
        """
        import httpx  # noqa: PLC0415 - the kit loads what a test uses

        body = await request.aread()
        meanwhile = self.clock.hold() if self.clock is not None else contextlib.nullcontext()
        with meanwhile:
            heard = await self._hand_over(request.method, str(request.url), request.headers.raw, body)
        if not heard.is_whole:
            raise httpx.RemoteProtocolError(
                "Server disconnected without sending a response.", request=request
            )
        headers = list(heard.headers)
        return httpx.Response(heard.status, headers=headers, content=heard.body, request=request)

    async def _hand_over(self, method: str, url: str, headers: RawHeaders, body: bytes) -> Heard:
        """Have a request answered, from any event loop."""
        asked = self._portal.start_task_soon(ask, self._box.app, method, url, headers, body)
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        return await asyncio.wrap_future(asked)  # a cancellation is carried over

    def _here(self, work: Callable[[], T]) -> T:
        """Do something in the sandbox's own loop, where nothing else happens meanwhile."""

        async def do() -> T:
            return work()

        begin: Callable[[], Coroutine[Any, Any, T]] = do
        done: T = self._portal.call(begin)
        return done

    def _copy_of_ledger(self) -> Ledger:
        return self._here(lambda: copy.deepcopy(self._box.ledger))

    def _pace(self) -> dict[str, Any]:
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
    strangers = sorted(options.keys() - set(known))
    if strangers:
        raise TypeError(
            f"no option of a sandbox: {', '.join(strangers)}; there are sockets, {', '.join(known)}"
        )
    if clock is not None and "speed" in options:
        raise ValueError("speed means nothing on virtual time: leave it out, or flux_clock")
    made_for_tests: dict[str, Any] = {"pictures": "none", "seed": 1, "webhook_key": WEBHOOK_KEY}
    if clock is None:
        made_for_tests["speed"] = SPEED
    return SandboxSettings(**(made_for_tests | options))


def _require(extra: str, modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra.for_extra(f"A sandbox in a test ({', '.join(missing)} not installed)", extra)
