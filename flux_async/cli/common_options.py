"""Options that several commands have, and the options of a run read from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from flux_async import AspectRatio, CallbackEndpoint, InDoubtPolicy, Limits, Model, OutputFormat
from flux_async.api import APIS
from flux_async.api.models_table import AnyModel
from flux_async.cli.option_values import (
    CHECK_OPTIONS,
    ModelChoice,
    Number,
    OutputFile,
    own_models,
    read_address,
    read_models,
    read_prices,
    read_rate,
    show_log,
)
from flux_async.cli.parquet import load_pyarrow
from flux_async.cli.run_options import CONFIRM_ABOVE, RESULT_FORMATS, ListenAddress, RunOptions, webhook_keys
from flux_async.job_state import NO_CHECKS, WantedChecks
from flux_async.transport.factory import TRANSPORTS
from flux_async.verification.preserve import PreserveFormat

F = TypeVar("F", bound=Callable[..., Any])


def choice(kind: type[AspectRatio | OutputFormat | InDoubtPolicy]) -> click.Choice[str]:
    """Return the values of an enumeration as the values of an option."""
    return click.Choice([member.value for member in kind])


POSITIVE = Number(min=0, min_open=True)
SECONDS = Number(min=0, min_open=True, max=86_400)
FOLDER_PATH = click.Path(file_okay=False, path_type=Path)

MODEL = click.option(
    "--model",
    type=ModelChoice(),
    default=Model.PRO.value,
    help="Which model to use; `flux-async models` lists them.",
    metavar="NAME",
)
MODEL_FILE = click.option(
    "--model-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_models,
    help="TOML file with models of your own, for --model, --price and lists.",
    metavar="FILE",
)
OUTPUT_FORMAT = click.option(
    "--output-format",
    type=choice(OutputFormat),
    help="Format of the result; the vendor decides if left out.",
)
YES = click.option("-y", "--yes", is_flag=True, help="Answer every question with yes.")
ABOVE = click.option(
    "--confirm-above",
    type=Number(min=0),
    default=CONFIRM_ABOVE,
    help="Ask before spending more credits, where standard input is a terminal.",
    metavar="N",
)
PRICES = click.option(
    "--price",
    "prices",
    multiple=True,
    callback=read_prices,
    help="Price of an image of a model, where it is not that of `flux-async models`; repeatable.",
    metavar="MODEL=CREDITS",
)
TIMEOUT = click.option(
    "--timeout", type=SECONDS, default=300.0, help="Seconds an image may take.", metavar="SECONDS"
)
FILE = click.option(
    "-o",
    "--output",
    "file",
    type=OutputFile(),
    help="Download the image to this file.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
TRANSPORT = click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    help="Library that makes the requests; default KIE_TRANSPORT, else httpx.",
)
API = click.option(
    "--api", type=click.Choice(APIS), help="Which of the vendor's APIs; default KIE_API, else kontext."
)
VERBOSE = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=show_log,
    show_default=False,
    help="Log submits and results to stderr; -vv adds polls.",
)
FOLDER = click.argument("folder", type=FOLDER_PATH)
OUTPUT_FOLDER = click.option(
    "-o", "--output", "folder", type=FOLDER_PATH, default=Path("flux-out"), help="Folder for the results."
)


def with_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that gives a command these options, in the order of its help text."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


RUN_OPTIONS = with_options(
    click.option(
        "--callback-url",
        help="Address the vendor calls when a task ends; KIE_WEBHOOK_KEY holds the key it signs with.",
        metavar="URL",
    ),
    click.option(
        "--listen",
        callback=read_address,
        help="Receive the callbacks here; --callback-url must lead to it.",
        metavar="HOST:PORT",
    ),
    click.option(
        "--rate",
        callback=read_rate,
        default="20/10",
        help="Submits per seconds that the account allows.",
        metavar="N/SECONDS",
    ),
    click.option(
        "--in-flight", type=click.IntRange(min=1), default=100, help="Most tasks in flight.", metavar="N"
    ),
    TIMEOUT,
    click.option(
        "--patience",
        type=SECONDS,
        default=600.0,
        help="Seconds to wait for a service that is away, and for paid results whose download fails.",
        metavar="SECONDS",
    ),
    PRICES,
    YES,
    ABOVE,
    click.option(
        "--max-credits", type=POSITIVE, help="Stop submitting before this run spends more.", metavar="N"
    ),
    click.option(
        "--keep-originals",
        is_flag=True,
        help="Download the inputs, too, as the vendor kept them, into originals/.",
    ),
    click.option(
        "--via-upload",
        is_flag=True,
        help="Have the vendor's upload host fetch each URL first, for hosts that are hard to reach.",
    ),
    click.option(
        "--no-download",
        is_flag=True,
        help="Leave the results at the vendor, which keeps them 14 days, those of the jobs API 24 hours.",
    ),
    *CHECK_OPTIONS,
    MODEL_FILE,
    click.option("--no-report", is_flag=True, help="Write no report.html at the end."),
    click.option("--json", "as_json", is_flag=True, help="Print the lines of results.jsonl, not paths."),
    click.option(
        "--results",
        type=click.Choice(RESULT_FORMATS),
        default="jsonl",
        help="Write results.parquet at the end, too, beside results.jsonl.",
    ),
    API,
    TRANSPORT,
    VERBOSE,
)


def read_run_options(
    *,
    rate: tuple[int, float],
    in_flight: int,
    timeout: float,
    patience: float,
    no_download: bool,
    no_report: bool,
    results: str,
    skip_textless: bool,
    preserve: bool,
    preserve_format: PreserveFormat,
    verify: bool,
    until_clean: int,
    escalate: tuple[AnyModel, ...],
    callback_url: str | None,
    listen: ListenAddress | None,
    **more: Any,
) -> RunOptions:
    """Return the options of a run from those of ``RUN_OPTIONS``, and from those of its command."""
    if listen is not None and callback_url is None:
        raise click.UsageError("--listen needs --callback-url: the address at which the vendor reaches it.")
    checks = WantedChecks(
        skip_textless=skip_textless,
        preserve=preserve,
        verify=verify or until_clean > 1,
        until_clean=until_clean,
        escalate=escalate,
    )
    if no_download and checks != NO_CHECKS:
        words = "--preserve, --verify, --until-clean and --skip-textless need the images"
        raise click.UsageError(f"{words}: leave --no-download out.")
    if escalate and len(escalate) >= until_clean:
        models = "1 model" if len(escalate) == 1 else f"{len(escalate)} models"
        raise click.UsageError(
            f"--escalate names {models} for the tasks after the first one: it needs --until-clean "
            f"{len(escalate) + 1} or more."
        )
    if results == "parquet":
        load_pyarrow()  # which may be missing
    return RunOptions(
        results=results,
        limits=Limits(submits=rate[0], window_s=rate[1], in_flight=in_flight),
        timeout_s=timeout,
        patience_s=patience,
        download=not no_download,
        report=not no_report,
        checks=checks,
        preserve_format=preserve_format,
        callbacks=None if callback_url is None else CallbackEndpoint(callback_url, webhook_keys()),
        models=own_models(click.get_current_context()),
        listen=listen,
        **more,
    )


def without_none(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out options that were not given, so that the vendor's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}
