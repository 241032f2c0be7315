"""Results of a run in an object store: ``-o s3://bucket/prefix``, and the folder of its journal.

The journal, ``results.jsonl`` and the report stay in a folder of this machine, which the other commands take.
``destination.txt`` in it says where the results are.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import anyio.to_thread
import click

from flux_async import ConfigurationError, FluxError
from flux_async.files.object_store import ObjectStoreSink, folder_of, sink_for
from flux_async.files.sink import FolderSink
from flux_async.job_state import NO_CHECKS, WantedChecks

FILE_NAME = "destination.txt"
_LONGEST_NAME = 120


class RunOutput(click.Path):
    """The folder of a run, or an address in an object store; ``file://`` is a folder."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a path, or an address as text; or raise the usage error."""
        if "://" not in str(value):
            return super().convert(value, param, ctx)
        try:
            if str(value).startswith("file://"):
                return super().convert(folder_of(value), param, ctx)
            sink_for(value)
        except FluxError as error:
            self.fail(str(error), param, ctx)
        if value.startswith("memory://"):
            self.fail("memory:// ends with the command, and paid results with it. Give a folder.", param, ctx)
        return value.rstrip("/")


def split_output(output: Path | str, journal_dir: Path | None) -> tuple[Path, str | None]:
    """Return the folder of a run, and the address of its results if they do not go into it.

    Raises:
        click.UsageError: ``--journal-dir`` is given without an address.
    """
    if isinstance(output, str):
        return journal_dir or folder_beside(output), output
    if journal_dir is not None:
        raise click.UsageError("--journal-dir is for results in an object store: -o s3://bucket/prefix.")
    return output, None


def folder_beside(url: str) -> Path:
    """Return the folder of the journal of ``s3://my-bucket/clean``: ``flux-out-s3-my-bucket-clean``."""
    return Path("flux-out-" + re.sub(r"[^A-Za-z0-9._-]+", "-", url)[:_LONGEST_NAME].strip("-."))


def settle_destination(folder: Path, given: str | None, *, has_jobs: bool) -> ObjectStoreSink | None:
    """Return where the results of a folder go, as its first run settled it; None for the folder itself.

    Raises:
        ConfigurationError: Another destination is given; nothing was sent.
        FluxError: The store cannot be opened.
    """
    path = folder / FILE_NAME
    try:
        kept = path.read_text("utf-8").strip() if path.exists() else None
        if given is not None and (given != kept if kept else has_jobs):
            place = kept or folder / "images"
            raise ConfigurationError(
                f"The results of the run in {folder} are in {place}, not in {given}.",
                advice=f"Go on with {place}, and copy the results to {given} at the end; nothing was sent.",
            )
        if given is not None and kept is None:
            path.write_text(f"{given}\n", "utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be used: {error.strerror or error}.",
            advice="Check its permissions and the disk, then run the same command again; nothing was sent.",
        ) from None
    return None if (url := kept or given) is None else ObjectStoreSink(url)


async def check_results(destination: str, checks: WantedChecks) -> None:
    """Check the destination of a worker: a folder is made and written to; see :func:`check_destination`.

    Raises:
        ConfigurationError: It is not writable, or cannot be used with these checks; nothing was sent.
    """
    sink = sink_for(destination)
    if isinstance(sink, FolderSink):
        await anyio.to_thread.run_sync(_check_folder, sink.folder)
    await check_destination(sink if isinstance(sink, ObjectStoreSink) else None, checks, download=True)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be used: {error.strerror or error}.",
            advice="Check its permissions and the disk, then run the same command again; nothing was sent.",
        ) from None


async def check_destination(sink: ObjectStoreSink | None, checks: WantedChecks, *, download: bool) -> None:
    """Refuse, before anything is sent, options that a store cannot serve, and a store that is not writable.

    Raises:
        ConfigurationError: Either; nothing was sent.
    """
    if sink is None:
        return
    if checks != NO_CHECKS:
        raise ConfigurationError(
            f"Checks of images need the results in a folder, and these are in {sink.url}.",
            advice=f"Leave out {_in_words(checks)}, or give a folder; nothing was sent.",
        )
    if not download:
        raise ConfigurationError(
            f"The results of this run go to {sink.url}.", advice="Leave --no-download out; nothing was sent."
        )
    await sink.check()


def _in_words(checks: WantedChecks) -> str:
    given = {
        "--preserve": checks.preserve,
        "--verify": checks.verify and checks.until_clean == 1,
        "--until-clean": checks.until_clean > 1,
        "--skip-textless": checks.skip_textless,
    }
    return " and ".join(name for name, is_given in given.items() if is_given)
