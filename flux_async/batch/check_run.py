"""``run_checks``: the checks of a batch for images that a run has saved already."""

from __future__ import annotations

import os
from collections.abc import Callable

from flux_async.batch.check_stage import Checker
from flux_async.batch.options import BatchClient
from flux_async.batch.progress import ProgressObserver
from flux_async.batch.runner import BatchRun, run_batch
from flux_async.errors import InvalidInput
from flux_async.journal.store import Journal
from flux_async.models import Job
from flux_async.verification.preserve import PreserveFormat


def run_checks(
    client: BatchClient,
    journal: str | os.PathLike[str] | Journal,
    directory: str | os.PathLike[str],
    *,
    preserve: bool = False,
    verify: bool = False,
    preserve_format: PreserveFormat = "png",
    originals: str | os.PathLike[str] | None = None,
    name_file: Callable[[Job], str] | None = None,
    checks: Checker | None = None,
    on_progress: ProgressObserver | None = None,
) -> BatchRun:
    """Return a batch that composes and verifies the saved images of a journal, and submits nothing.

    Each image that was not checked so yet is an outcome. The only requests are downloads of originals that
    have an address and are not in ``originals``. The arguments are those of :func:`flux_async.run_batch`.

    Raises:
        InvalidInput: Neither ``preserve`` nor ``verify`` is given, or an argument has a wrong type.
        MissingExtra: The extra ``verify`` is not installed.
    """
    batch = run_batch(
        client,
        (),
        journal=journal,
        directory=directory,
        originals=originals,
        name_file=name_file,
        preserve=preserve,
        verify=verify,
        preserve_format=preserve_format,
        checks=checks,
        on_progress=on_progress,
    )
    if not (preserve or verify):
        raise InvalidInput("There is nothing to check.", advice="Give preserve=True, verify=True, or both.")
    batch.only_checks = True
    return batch
