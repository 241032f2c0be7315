"""The transport of a client that a test is lent: it keeps to virtual time, and closes with its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs

from flux_async.api.envelope import WireRequest
from flux_async.client import FluxClient
from flux_async.testing.clock import VirtualClock
from flux_async.transport import FileStream, SendResult, Transport, Unknown
from flux_async.transport.factory import name_of


@attrs.define(eq=False)
class LentTransport:
    """Requests through another transport.

    Where there is a clock, it stands still during a request, and the patience of a request is counted in its
    seconds. Connections belong to the event loop that used them first: they are closed with it, whether or
    not anybody closes the client, as fixtures are often torn down when the loop is gone already.

    Args:
        inner: Makes the requests.
        clock: Virtual time; None for real time.
    """

    inner: Transport
    clock: VirtualClock | None = None
    loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    _late: set[asyncio.Future[SendResult]] = attrs.field(factory=set, init=False, repr=False)
    _over: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)
    _keeper: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        """The library."""
        return name_of(self.inner)

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Make one request; see :class:`flux_async.transport.Transport`."""
        self._settle_in()
        if self.clock is None:
            return await self.inner.exchange(request, timeout_s=timeout_s)
        with self.clock.hold():
            return await self._in_virtual_time(self.clock, request, timeout_s)

    async def _in_virtual_time(
        self, clock: VirtualClock, request: WireRequest, timeout_s: float
    ) -> SendResult:
        # Both run beside this coroutine: a request that is cancelled may cost its pool a connection.
        asking = asyncio.ensure_future(self.inner.exchange(request, timeout_s=timeout_s))  # noqa: TID251
        patience = asyncio.ensure_future(clock.sleep(timeout_s))  # noqa: TID251
        try:
            await asyncio.wait({asking, patience}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            patience.cancel()
            if not asking.done():
                self._late.add(asking)
                asking.add_done_callback(self._late.discard)
        return asking.result() if asking.done() else Unknown(f"no whole answer within {timeout_s:g} s")

    def fetch(
        self, url: str, *, timeout_s: float, stall_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[FileStream]:
        """Open a file; see :class:`flux_async.transport.Transport`."""
        self._settle_in()
        opened = self.inner.fetch(url, timeout_s=timeout_s, stall_s=stall_s, headers=headers)
        return opened if self.clock is None else _held(self.clock, opened)

    async def aclose(self) -> None:
        """Close all connections."""
        self._over.set()
        if self._keeper is None:
            await self._close()
        else:
            await self._keeper

    def _settle_in(self) -> None:
        if self._keeper is None:
            self.loop = asyncio.get_running_loop()
            self._keeper = asyncio.create_task(self._keep())  # noqa: TID251 - ends with the event loop

    async def _keep(self) -> None:
        try:
            await self._over.wait()
        finally:
            await self._close()

    async def _close(self) -> None:
        late = tuple(self._late)
        for asking in late:
            asking.cancel()
        if late:
            await asyncio.wait(late)
        await self.inner.aclose()


@asynccontextmanager
async def _held(
    clock: VirtualClock, opened: AbstractAsyncContextManager[FileStream]
) -> AsyncIterator[FileStream]:
    with clock.hold():
        async with opened as file:
            yield file


@attrs.frozen
class LentClient:
    """A client and its transport, to be taken back."""

    client: FluxClient
    transport: LentTransport

    def take_back(self) -> None:
        """Close it, outside of its event loop, if that is still there."""
        loop = self.transport.loop
        if loop is not None and not loop.is_closed() and not loop.is_running():
            loop.run_until_complete(self.client.aclose())
