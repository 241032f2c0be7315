"""The scripted vendor in the shapes that batches need: polled, calling back, echoing."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import FluxClient, Outcome
from flux_async.api.models_table import ApiName
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.runner import run_batch
from flux_async.journal.store import Journal
from flux_async.testing import VirtualClock
from scripted_vendor import ScriptedVendor, answer, echo, one_task
from tests.support.file_host import FileAnswer

_ENDLESS_S = 3600.0


@attrs.define(kw_only=True, eq=False, slots=False)
class BatchVendor(ScriptedVendor):
    """A scripted vendor that also runs batches, whose callbacks arrive in the journal of the run."""

    endpoint: CallbackEndpoint = attrs.field(
        factory=lambda: CallbackEndpoint("https://ours.example/flux-callback", key="hook")
    )
    images: list[str] = attrs.field(factory=lambda: [f"https://pictures.example/{n}.jpg" for n in range(12)])

    async def collect(
        self,
        client: FluxClient,
        path: Path | str,
        images: Iterable[Any] | AsyncIterable[Any] | None = None,
        **options: Any,
    ) -> list[Outcome]:
        """Run a batch with callbacks; return its outcomes."""
        options = {"callbacks": self.endpoint} | options
        async with Journal(path, clock=client.session.clock) as journal:
            await journal.aclose()
            await journal.open(account=client.fingerprint)
            self.inbox = journal
            wanted = self.images if images is None else images
            async with run_batch(client, wanted, journal=journal, **options) as batch:
                with self.patience():
                    return [outcome async for outcome in batch]

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Fail the test if the block does not end."""
        waiter, was_late = asyncio.current_task(), False
        assert waiter is not None
        assert self._group is not None

        async def cancel_late() -> None:
            nonlocal was_late
            await self.sleep(_ENDLESS_S)
            was_late = waiter.cancel()

        timeout = self._group.create_task(cancel_late())
        try:
            yield
        except asyncio.CancelledError:
            if was_late:
                waiter.uncancel()
                pytest.fail("The batch does not end.")
            raise
        finally:
            timeout.cancel()

    @staticmethod
    def kinds(outcomes: list[Outcome]) -> dict[type, int]:
        """Count outcomes by their class."""
        return dict(Counter(type(outcome) for outcome in outcomes))

    def add_foreign_task(self, task_id: str) -> None:
        """Add an ended task of the same account that another client made from another image."""
        self.add_task(task_id, {"prompt": "p", "inputImage": "https://x.example/"})


@pytest.fixture
def transport(clock: VirtualClock, api: ApiName) -> BatchVendor:
    """A scripted vendor on virtual time, with one task that has ended at the third poll."""
    return BatchVendor(clock=clock, api=api, script=one_task(), latency_s=0.1)


@pytest.fixture
def vendor(transport: BatchVendor) -> BatchVendor:
    """A vendor that makes a new task of every submit and has its image at the second poll."""
    transport.script["generate"] = [transport.generate]
    transport.script["record-info"] = [transport.record]
    transport.script["credit"] = [lambda _: answer(transport.balance)]
    return transport


@pytest.fixture
def hosted(vendor: Any) -> Any:
    """A vendor whose results, and whose users' images, can be downloaded; ``fetched`` has their addresses."""
    fetched: list[str] = []

    @contextlib.asynccontextmanager
    async def fetch(url: str) -> AsyncIterator[FileAnswer]:
        fetched.append(url)
        yield FileAnswer()

    vendor.files, vendor.fetched = fetch, fetched
    return vendor


@pytest.fixture
def echoing(vendor: BatchVendor) -> BatchVendor:
    """A vendor that echoes verbatim and has each image at the first poll."""
    vendor.polls, vendor.shows = 1, echo
    return vendor


def _calls_back(vendor: BatchVendor) -> BatchVendor:
    vendor.generation_s, vendor.shows = 12.0, echo
    return vendor


@pytest.fixture
def make_calling(clock: VirtualClock, api: ApiName) -> Callable[[], BatchVendor]:
    """Make vendors that call back, for tests that need several."""
    return lambda: _calls_back(BatchVendor(clock=clock, api=api, latency_s=0.1))


@pytest.fixture
async def calling(vendor: BatchVendor) -> AsyncIterator[BatchVendor]:
    """A vendor that calls back 12 s after each submit."""
    async with _calls_back(vendor):
        yield vendor
