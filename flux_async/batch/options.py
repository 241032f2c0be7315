"""The options of a batch, by name and type, where one function passes them on to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

from flux_async.api.models_table import Model
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.progress import ProgressObserver
from flux_async.files.sink import Sink
from flux_async.journal.store import Journal
from flux_async.models import InDoubtPolicy, Job
from flux_async.policy.retry import RetryPolicy


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
