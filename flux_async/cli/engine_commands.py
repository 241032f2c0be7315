"""The commands of the engine: enqueue, worker and batch; and their options."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from flux_async import AspectRatio, InDoubtPolicy, MissingExtra
from flux_async.api.models_table import AnyModel
from flux_async.cli.common_options import (
    ABOVE,
    API,
    JSON,
    MODEL,
    MODEL_FILE,
    OUTPUT_FORMAT,
    PRICES,
    TIMEOUT,
    TRANSPORT,
    VERBOSE,
    YES,
    choice,
    with_options,
    without_none,
)
from flux_async.cli.destination import RunOutput
from flux_async.cli.input_rows import ListOptions
from flux_async.cli.inputs import gather_inputs
from flux_async.cli.option_values import (
    PRESERVE,
    PRESERVE_FORMAT,
    VERIFY,
    Number,
    own_models,
    read_address,
    read_rate,
    refuse_preserve_format,
)
from flux_async.cli.run_options import ListenAddress, RunOptions
from flux_async.cli.terminal import Command, Commands, Exit, printable
from flux_async.job_state import WantedChecks
from flux_async.verification.preserve import PreserveFormat

_DSN = click.option(
    "--dsn",
    envvar="FLUX_ASYNC_DSN",
    required=True,
    show_envvar=True,
    help="The PostgreSQL database that all processes share.",
    metavar="postgresql://USER@HOST/NAME",
)
_NAME = click.argument("name")


def _module(name: str) -> Any:
    """Return a module that runs these commands.

    Raises:
        MissingExtra: The extra is not installed.
    """
    try:
        return importlib.import_module(f"flux_async.cli.{name}")
    except MissingExtra:
        raise MissingExtra.for_extra("This command", "engine") from None


@click.command(cls=Command)
@click.argument("list_file", metavar="LIST", type=click.Path(exists=True, allow_dash=True))
@_DSN
@click.option(
    "--batch", "name", required=True, help="Name of the batch that the images belong to.", metavar="NAME"
)
@click.option(
    "--priority",
    type=click.IntRange(1, 10_000),
    default=100,
    help="Images with a lower number are submitted first.",
    metavar="N",
)
@click.option(
    "--column", help="Column of a CSV list, or name in JSON, that holds the images.", metavar="NAME"
)
@click.option(
    "--staging",
    help="Object store into which files of this machine are copied, for workers to read.",
    metavar="URL",
)
@click.option(
    "--on-doubt",
    type=choice(InDoubtPolicy),
    default=InDoubtPolicy.HOLD.value,
    help="Submits whose answer was lost: hold them, or resubmit, perhaps for a second charge.",
)
@MODEL
@click.option("--prompt", help="Ask for the removal in other words.")
@click.option("--aspect-ratio", type=choice(AspectRatio), help="Crop or pad to this width to height.")
@with_options(OUTPUT_FORMAT, TIMEOUT, MODEL_FILE, VERBOSE)
def enqueue(
    *,
    list_file: str,
    dsn: str,
    name: str,
    priority: int,
    column: str | None,
    staging: str | None,
    on_doubt: str,
    timeout: float,
    **request: Any,
) -> int:
    """Put the images of LIST into a database, for workers.

    LIST is read as by remove-text --from; - is standard input; it may be a folder of images. Images are
    addresses, those in object stores included; files of this machine are copied to --staging, as workers
    cannot read them here. No key is needed. The same command again adds what is new, and resumes a batch that
    was cancelled; it pays for nothing twice. The same image in another batch is paid for again.
    """
    runs = _module("engine_runs")
    options = RunOptions(
        folder=Path(),
        in_doubt=InDoubtPolicy(on_doubt),
        timeout_s=timeout,
        models=own_models(click.get_current_context()),
        request_options=without_none(request),
    )
    is_list = not Path(list_file).is_dir() or any(Path(list_file).glob("*.parquet"))
    inputs = gather_inputs(
        () if is_list else (list_file,),
        (list_file,) if is_list else (),
        sys.stdin,
        options=ListOptions(column=column),
        note=lambda words: click.echo(printable(words), err=True),
        on_close=click.get_current_context().call_on_close,
    )
    return int(runs.run_enqueue(dsn, name, inputs, options, priority=priority, staging=staging))


@click.command(cls=Command)
@_DSN
@click.option(
    "-o",
    "--output",
    type=RunOutput(),
    required=True,
    help="Folder or address of the results, in which each batch has a folder.",
    metavar="DIR|URL",
)
@click.option(
    "--rate",
    callback=read_rate,
    default="20/10",
    help="Submits per seconds that an account allows, for all workers together, from now on.",
    metavar="N/SECONDS",
)
@click.option("--until-idle", is_flag=True, help="End when no work is left.")
@click.option(
    "--min-credits",
    type=Number(min=0),
    help="Submit nothing with a key while its balance is lower.",
    metavar="N",
)
@PRICES
@click.option(
    "--callback-url",
    help="Address the vendor calls when a task ends; KIE_WEBHOOK_KEY holds the key it signs with.",
    metavar="URL",
)
@click.option(
    "--listen",
    callback=read_address,
    help="Receive callbacks here, also those for other workers; --callback-url must lead to one that does.",
    metavar="HOST:PORT",
)
@with_options(PRESERVE, PRESERVE_FORMAT, VERIFY, API, TRANSPORT, VERBOSE)
def worker(
    *,
    dsn: str,
    output: Path | str,
    rate: tuple[int, float],
    until_idle: bool,
    min_credits: float | None,
    prices: dict[AnyModel, float],
    callback_url: str | None,
    listen: ListenAddress | None,
    preserve: bool,
    preserve_format: PreserveFormat,
    verify: bool,
    **connection: Any,
) -> int:
    """Work on the images in a database, beside other workers.

    The key is taken from KIE_API_KEY; KIE_API_KEYS holds several, separated by commas, each with a rate of
    its own. A signal ends the worker: submits in flight are answered first, its tasks go to other workers.
    The tasks of a worker that was killed do so within ten seconds.
    """
    if listen is not None and callback_url is None:
        raise click.UsageError("--listen needs --callback-url: the address at which the vendor reaches it.")
    if not preserve:
        refuse_preserve_format(click.get_current_context())
    try:
        runs = _module("engine_runs")
        code: int = runs.run_worker(
            dsn,
            str(output),
            rate,
            callback_url=callback_url,
            listen=listen,
            until_idle=until_idle,
            min_credits=min_credits,
            prices=prices,
            checks=WantedChecks(preserve=preserve, verify=verify),
            preserve_format=preserve_format,
            **connection,
        )
    except KeyboardInterrupt:  # before the worker listens for signals: it has claimed nothing yet
        return Exit.SUCCEEDED
    return code


@click.group(cls=Commands)
def batch() -> None:
    """Show, retry or cancel a batch in a database."""


@batch.command()
@_NAME
@with_options(_DSN, JSON)
def status(name: str, dsn: str, as_json: bool) -> int:
    """Show how many images of batch NAME are where."""
    return int(_module("engine_batches").show_status(dsn, name, as_json=as_json))


@batch.command()
@_NAME
@with_options(_DSN, JSON)
def results(name: str, dsn: str, as_json: bool) -> int:
    """Print one line for each image of batch NAME.

    It is its file, or what became of it; with --json the line of results.jsonl. Exit 1 if some failed or are
    in doubt, 0 also while others are pending.
    """
    return int(_module("engine_batches").show_results(dsn, name, as_json=as_json))


@batch.command()
@_NAME
@with_options(_DSN, JSON)
def cancel(name: str, dsn: str, as_json: bool) -> int:
    """Submit no further image of batch NAME.

    Tasks in flight are paid, and their results are saved. The command that enqueued it resumes it.
    """
    return int(_module("engine_batches").cancel_batch(dsn, name, as_json=as_json))


@batch.command()
@_NAME
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a page about it into DIR/NAME. Give the folder of the workers, whose images it shows.",
    metavar="DIR",
)
@with_options(_DSN, JSON)
def report(name: str, directory: Path | None, dsn: str, as_json: bool) -> int:
    """Summarise batch NAME: counts, credits, times, errors.

    With -o it is the page of `flux-async report`, as DIR/NAME/report.html, and its path is printed. Of images
    that are not in that folder it has the addresses: in an object store, and at the vendor while they are
    kept there.
    """
    if directory is None:
        return int(_module("engine_batches").show_report(dsn, name, as_json=as_json))
    if as_json:
        raise click.UsageError("Give -o for a page, or --json for figures.")
    try:
        pages = _module("engine_report")
    except MissingExtra:
        raise
    except ImportError as missing:
        raise MissingExtra.for_extra("The report", "report") from missing
    return int(pages.write_batch_page(dsn, name, directory))


@batch.command()
@_NAME
@click.option("--failed", is_flag=True, help="Pay for another task for every image that failed.")
@click.option("--in-doubt", is_flag=True, help="Submit images in doubt again: some may be paid for twice.")
@with_options(_DSN, YES, ABOVE, VERBOSE)
def retry(*, name: str, failed: bool, in_doubt: bool, dsn: str, yes: bool, confirm_above: float) -> int:
    """Let workers submit images of batch NAME again.

    Without an option these are the images that could not be submitted, for which nothing was paid. --failed
    and --in-doubt pay for images again, each time they are given; how many, and what it may cost, is said
    first. An image in doubt whose task was found is fetched instead.
    """
    return int(
        _module("engine_batches").retry_batch(
            dsn, name, failed=failed, in_doubt=in_doubt, yes=yes, confirm_above=confirm_above
        )
    )


@batch.command()
@_NAME
@click.argument("job")
@click.argument("task_id")
@with_options(_DSN, API, TRANSPORT, VERBOSE)
def adopt(name: str, job: str, task_id: str, dsn: str, **connection: Any) -> int:
    """Record that TASK_ID is the task of JOB in batch NAME.

    JOB is in doubt; it is its key, or how its key begins. The task's record is read first, with the key in
    KIE_API_KEY: it must exist and be made from the same image. Nothing is submitted.
    """
    return int(_module("engine_batches").adopt_task(dsn, name, job, task_id, **connection))


ENGINE_COMMANDS = (enqueue, worker, batch)
