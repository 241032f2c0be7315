"""What a batch uses of a client. ``FluxClient`` fulfils it and stands on the batch, never the other way."""

from __future__ import annotations

import os
from typing import Protocol

from flux_async.files.image_source import Source
from flux_async.files.image_writer import SavedFile
from flux_async.files.sink import SavedResult, Sink
from flux_async.models import ImageRequest, ImageResult, Job, TaskId, TaskRecord, UploadedFile
from flux_async.policy.polling import PollPolicy
from flux_async.poller import Poller
from flux_async.session import Session


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
