"""The options of a batch, by name and type, where one function passes them on to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, Protocol, TypedDict

from flux_async.api.models_table import Model
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.progress import ProgressObserver
from flux_async.errors import InvalidInput, shown
from flux_async.files.image_source import Source
from flux_async.files.image_writer import SavedFile
from flux_async.files.sink import SavedResult, Sink
from flux_async.journal.store import Journal
from flux_async.models import ImageRequest, ImageResult, InDoubtPolicy, Job, TaskId, TaskRecord, UploadedFile
from flux_async.policy import check_positive
from flux_async.policy.polling import PollPolicy
from flux_async.policy.retry import RetryPolicy
from flux_async.poller import Poller
from flux_async.session import Session


class BatchOptions(TypedDict, total=False):
    """Options of :func:`flux_async.run_batch`, which tells their meaning."""

    journal: str | os.PathLike[str] | Journal
    directory: str | os.PathLike[str] | None
    sink: Sink | None
    originals: str | os.PathLike[str] | None
    name_file: Callable[[Job], str] | None
    in_doubt: InDoubtPolicy | Literal["hold", "resubmit"]
    max_credits: float | None
    prices: Mapping[Model, float] | None
    timeout: float | None
    retry: RetryPolicy | None
    patience: float
    callbacks: CallbackEndpoint | None
    via_upload: bool
    on_progress: ProgressObserver | None


class BatchClient(Protocol):
    """One API key with its connections, limits and settings; the methods are those of ``FluxClient``."""

    @property
    def session(self) -> Session:
        """Connections, rate limiter, slots and clock."""
        ...

    @property
    def poller(self) -> Poller:
        """Waits for tasks."""
        ...

    @property
    def polling(self) -> PollPolicy:
        """When tasks are polled."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds a task may take where a run does not say."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells accounts apart without telling the key."""
        ...

    def check_reachable(self, request: ImageRequest) -> None:
        """Refuse a request whose image the vendor can certainly not fetch."""
        ...

    async def credits(self) -> float:
        """Return the balance in credits."""
        ...

    async def record(self, task_id: TaskId | str) -> TaskRecord:
        """Poll a task once."""
        ...

    async def upload(self, source: Source, *, timeout: float | None = None) -> UploadedFile:
        """Upload an image."""
        ...

    async def upload_from_url(self, url: str, *, timeout: float | None = None) -> UploadedFile:
        """Have the upload host fetch an image."""
        ...

    async def save(self, image: ImageResult, sink: Sink, *, job: Job, name: str) -> SavedResult:
        """Download a result once and save it in a sink."""
        ...

    async def download(
        self,
        image: ImageResult | str,
        destination: str | os.PathLike[str],
        *,
        match_suffix: bool = False,
        retry: bool = True,
    ) -> SavedFile:
        """Download an image to disk."""
        ...


def price_list(prices: Mapping[Model, float] | None) -> Mapping[Model, float]:
    """Return the price of every model: those given, and for the others the price of the table.

    Raises:
        InvalidInput: A model that does not exist, or a price that is none.
    """
    try:
        given = {Model(model): check_positive(price, "a price") for model, price in (prices or {}).items()}
    except (AttributeError, ValueError) as bad:
        if isinstance(bad, InvalidInput):
            raise
        raise InvalidInput(f"prices must give credits by model, not {shown(prices)}.") from None
    return MappingProxyType({model: given.get(model, model.row.credits) for model in Model})
