"""The commands: each parses its options and hands over."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from flux_async import (
    AspectRatio,
    CallbackEndpoint,
    EditRequest,
    GenerateRequest,
    InDoubtPolicy,
    InvalidInput,
    Limits,
    Model,
    OutputFormat,
    __version__,
)
from flux_async.api.models_table import prices_in_words
from flux_async.batch.options import price_list
from flux_async.cli.input_rows import ListOptions
from flux_async.cli.inputs import gather_inputs, image_of
from flux_async.cli.list_files import STDIN
from flux_async.cli.run_options import Place, RunOptions, webhook_keys
from flux_async.cli.terminal import Commands, Exit, printable
from flux_async.transport.factory import TRANSPORTS, TransportName

F = TypeVar("F", bound=Callable[..., Any])

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


def read_rate(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, float]:
    """Return the numbers of ``20/10``: submits, and seconds."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6}(?:\.\d{1,6})?)", value.strip())
    if found is None or int(found[1]) == 0 or float(found[2]) == 0:
        raise click.BadParameter(f"{value!r} is no rate: write submits/seconds, like 20/10.")
    return int(found[1]), float(found[2])


def read_place(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Place | None:
    """Return the place that ``HOST:PORT`` names."""
    place = None if value is None else Place.read(value)
    if value is not None and place is None:
        raise click.BadParameter(f"{value!r} is no address: write HOST:PORT, like 0.0.0.0:8080.")
    return place


def read_prices(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[Model, float]:
    """Return the numbers of ``flux-kontext-pro=6``: credits, by model."""
    prices = {}
    for value in values:
        model, _, price = value.partition("=")
        try:
            prices[Model(model.strip())] = float(price)
        except ValueError:
            raise click.BadParameter(f"{value!r} is no price: write MODEL=CREDITS.") from None
    try:
        return dict(price_list(prices))
    except InvalidInput as bad:
        raise click.BadParameter(bad.message) from None


def _choice(kind: type[Model | AspectRatio | OutputFormat]) -> click.Choice[str]:
    return click.Choice([member.value for member in kind])


_SECONDS = click.FloatRange(min=0, min_open=True, max=86_400)
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)

_model = click.option("--model", type=_choice(Model), default=Model.PRO.value, help="Which model to use.")
_output_format = click.option(
    "--output-format",
    type=_choice(OutputFormat),
    help="Format of the result; the vendor decides if left out.",
)
_aspect_ratio = click.option("--aspect-ratio", type=_choice(AspectRatio), help="Width to height.")
_timeout = click.option(
    "--timeout", type=_SECONDS, default=300.0, help="Seconds an image may take.", metavar="SECONDS"
)
_file = click.option("-o", "--output", "file", type=_FILE, help="Download the picture to this file.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


_transport = click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    help="Library that makes the requests; default KIE_TRANSPORT, else httpx.",
)


def _set_verbosity(_ctx: click.Context, _param: click.Parameter, value: int) -> None:
    from flux_async.cli.display import show_log  # noqa: PLC0415 - loads rich

    show_log(value)


_verbose = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=_set_verbosity,
    show_default=False,
    help="Log submits and results to stderr; -vv adds polls.",
)

_folder = click.option(
    "-o", "--output", "folder", type=_FOLDER, default=Path("flux-out"), help="Folder for the results."
)


def _run_options(command: F) -> F:
    """Give a command the options that say how a run goes about it."""
    for option in (
        _verbose,
        _transport,
        click.option("--json", "as_json", is_flag=True, help="Print the lines of results.jsonl, not paths."),
        click.option(
            "--no-download", is_flag=True, help="Leave the results at the vendor, which keeps them 14 days."
        ),
        click.option(
            "--via-upload",
            is_flag=True,
            help="Have the vendor's upload host fetch each URL first, for hosts that are hard to reach.",
        ),
        click.option(
            "--keep-originals",
            is_flag=True,
            help="Download the inputs, too, as the vendor kept them, into originals/.",
        ),
        click.option(
            "--max-credits",
            type=click.FloatRange(min=0, min_open=True),
            help="Stop submitting before this run spends more.",
            metavar="N",
        ),
        click.option(
            "--confirm-above",
            type=click.FloatRange(min=0),
            default=1_000.0,
            help="Ask before spending more credits, where standard input is a terminal.",
            metavar="N",
        ),
        click.option("-y", "--yes", is_flag=True, help="Answer every question with yes."),
        click.option(
            "--price",
            "prices",
            multiple=True,
            callback=read_prices,
            help=f"What an image of a model costs now, where not {prices_in_words()}; repeatable.",
            metavar="MODEL=CREDITS",
        ),
        click.option(
            "--patience",
            type=_SECONDS,
            default=600.0,
            help="Seconds to wait for a service that is away, and for paid results that do not come.",
            metavar="SECONDS",
        ),
        _timeout,
        click.option(
            "--in-flight",
            type=click.IntRange(min=1),
            default=100,
            help="Tasks at once, at most.",
            metavar="N",
        ),
        click.option(
            "--rate",
            callback=read_rate,
            default="20/10",
            help="Submits per seconds that the account allows.",
            metavar="N/SECONDS",
        ),
        click.option(
            "--listen",
            callback=read_place,
            help="Receive the callbacks here; --callback-url must lead to it.",
            metavar="HOST:PORT",
        ),
        click.option(
            "--callback-url",
            help="Address the vendor calls when a task ends; KIE_WEBHOOK_KEY holds the key it signs with.",
            metavar="URL",
        ),
    ):
        command = option(command)
    return command


def _order(
    *,
    folder: Path,
    rate: tuple[int, float],
    in_flight: int,
    timeout: float,
    patience: float,
    max_credits: float | None,
    no_download: bool,
    keep_originals: bool,
    callback_url: str | None,
    listen: Place | None,
    **more: Any,
) -> RunOptions:
    if listen is not None and callback_url is None:
        raise click.UsageError("--listen needs --callback-url: the address at which the vendor reaches it.")

    return RunOptions(
        folder=folder,
        limits=Limits(submits=rate[0], window_s=rate[1], in_flight=in_flight),
        timeout_s=timeout,
        patience_s=patience,
        download=not no_download,
        keep_originals=keep_originals,
        max_credits=max_credits,
        callbacks=None if callback_url is None else CallbackEndpoint(callback_url, webhook_keys()),
        listen=listen,
        **more,
    )


@click.group(cls=Commands, context_settings=_SETTINGS, no_args_is_help=True)
@click.version_option(__version__, prog_name="flux-async")
def cli() -> None:
    """Remove text from images, or make and edit them, with KIE AI's Flux Kontext.

    The key is taken from KIE_API_KEY, the API's address from KIE_BASE_URL (default https://api.kie.ai), the
    HTTP library from KIE_TRANSPORT (default httpx).

    Exit codes: 0 all succeeded, 1 some failed or are in doubt, 2 usage or settings, 3 halted (key, credits,
    maintenance), 130 interrupted.
    """


@cli.command("remove-text")
@click.argument("images", nargs=-1)
@click.option(
    "--from",
    "lists",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="List of images: one a line, CSV or JSON; - is standard input; repeatable.",
    metavar="FILE",
)
@click.option(
    "--column", help="Column of a CSV list, or name in JSON, that holds the images.", metavar="NAME"
)
@click.option(
    "--split", help="Separator of several images in one cell: makes one job of each.", metavar="SEPARATOR"
)
@_folder
@_run_options
@click.option(
    "--on-doubt",
    type=click.Choice([policy.value for policy in InDoubtPolicy]),
    default=InDoubtPolicy.HOLD.value,
    help="Submits whose answer never came: leave them, or pay perhaps twice.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what would be submitted, with its cost; send and change nothing."
)
@_model
@click.option("--prompt", help="Ask for the removal in other words.")
@_output_format
def remove_text(
    *,
    images: tuple[str, ...],
    lists: tuple[str, ...],
    column: str | None,
    split: str | None,
    on_doubt: str,
    dry_run: bool,
    as_json: bool,
    model: str,
    prompt: str | None,
    output_format: str | None,
    **run: Any,
) -> int:
    """Remove the text from IMAGES.

    IMAGES are http(s) URLs, files, folders, or - to read them from standard input. Files are uploaded first,
    free of charge: JPEG, PNG or WebP up to 20 MB. Of a folder its pictures are taken, not those of its
    folders; a quoted pattern like 'photos/**/*.jpg' goes deeper. The same file again is the same job,
    whatever it is called. In a list, files are relative to the list's own folder.

    Lists in CSV have a column of images, found by its usual names (url, image, image_url, src, link) or named
    by --column, and may have key, prompt, model and output_format; JSON holds images or objects with those
    names. A row that cannot be read fails alone.

    The folder gets journal.sqlite3, images/ and results.jsonl with one JSON object per image. stdout gets the
    paths of the pictures, everything else goes to stderr.

    Run the same command again to resume, however the last run ended. What succeeded is not asked for again; a
    task that was submitted is waited for or downloaded, never submitted anew. Images that failed, or that are
    in doubt (the answer to their submit never came), stay as they are: see retry and adopt.
    """
    from flux_async.cli.credits import can_ask  # noqa: PLC0415 - loads anyio
    from flux_async.cli.dry_run import run_dry  # noqa: PLC0415 - loads rich
    from flux_async.cli.run_command import run_remove_text  # noqa: PLC0415 - loads rich

    options = {"model": model, "prompt": prompt, "output_format": output_format}
    repeats = ("--on-doubt resubmit",) if on_doubt == InDoubtPolicy.RESUBMIT else ()
    run["asks"] = can_ask() and STDIN not in (*images, *lists)
    order = _order(**run, in_doubt=InDoubtPolicy(on_doubt), repeats=repeats, request_options=_given(options))
    reading = ListOptions(column=column, split=split or None)
    inputs = gather_inputs(images, lists, sys.stdin, options=reading, note=_note)
    if dry_run:
        return run_dry(order, inputs, as_json=as_json)
    return run_remove_text(order, inputs, as_json=as_json)


@cli.command()
@click.argument("folder", type=_FOLDER)
@_json
def status(folder: Path, as_json: bool) -> int:
    """Say how the run in FOLDER stands, also while it is running."""
    from flux_async.cli.status import show_status  # noqa: PLC0415

    return show_status(folder, as_json=as_json)


@cli.command()
@click.argument("folder", type=_FOLDER)
@click.option("--failed", is_flag=True, help="Pay for another task for every image that failed.")
@click.option("--in-doubt", is_flag=True, help="Submit images in doubt again: some may be paid for twice.")
@_run_options
def retry(*, failed: bool, in_doubt: bool, as_json: bool, **run: Any) -> int:
    """Resume the run in FOLDER without its list.

    Without an option this is the run's own command once more: nothing is paid twice. --failed and --in-doubt
    pay for images again, each time they are given; how many, and what it may cost, is said first.
    """
    from flux_async.cli.credits import can_ask  # noqa: PLC0415
    from flux_async.cli.folder_commands import run_retry  # noqa: PLC0415

    repeats = ("--failed",) * failed + ("--in-doubt",) * in_doubt
    order = _order(**run, repeats=repeats, asks=can_ask())
    return run_retry(order, failed=failed, in_doubt=in_doubt, as_json=as_json)


@cli.command()
@click.argument("folder", type=_FOLDER)
@click.argument("job")
@click.argument("task_id")
@_transport
@_verbose
def adopt(folder: Path, job: str, task_id: str, transport: TransportName | None) -> int:
    """Say that TASK_ID is the task of JOB in FOLDER.

    JOB is in doubt; it is its key, or how its key begins. The task is looked at first: it must exist and be
    made from the same picture. Nothing is submitted.
    """
    from flux_async.cli.folder_commands import run_adopt  # noqa: PLC0415

    return run_adopt(folder, job, task_id, transport=transport)


@cli.command()
@click.argument("folder", type=_FOLDER)
@click.option("--yes", "same_account", is_flag=True, help="The account is the same, where no task proves it.")
@_transport
@_verbose
def rekey(folder: Path, same_account: bool, transport: TransportName | None) -> int:
    """Let the run in FOLDER go on with a new key.

    The new key, of the same account, is taken from KIE_API_KEY. It must be valid, and tasks of the folder are
    looked at with it: one that it can read shows that the account is the same. Nothing is submitted.
    """
    from flux_async.cli.folder_commands import run_rekey  # noqa: PLC0415

    return run_rekey(folder, same_account=same_account, transport=transport)


@cli.command()
@click.argument("folder", type=_FOLDER)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_verbose
def recover(folder: Path, *, yes: bool) -> int:
    """Go on with a journal that lost records of submits.

    Images that may have been submitted without the journal's knowing are put in doubt; nothing is sent. A
    journal loses records where its -wal file is not copied along, or an older copy is put in its place. The
    file journal.sqlite3.submits beside it shows which images were submitted.
    """
    from flux_async.cli.folder_commands import run_recover  # noqa: PLC0415

    return run_recover(folder, yes=yes)


@cli.command()
@click.argument("prompt")
@_aspect_ratio
@_model
@_output_format
@_timeout
@_file
@_json
@_transport
@_verbose
def generate(
    *,
    prompt: str,
    timeout: float,
    file: Path | None,
    as_json: bool,
    transport: TransportName | None,
    **request_options: str | None,
) -> int:
    """Make a picture from the words of PROMPT.

    Its URL is printed, or with -o the path of the file.
    """
    from flux_async.cli.single_commands import Presentation, make_picture  # noqa: PLC0415

    request = GenerateRequest(prompt=prompt, **_given(request_options))
    return make_picture(request, timeout, Presentation(file=file, as_json=as_json, transport=transport))


@cli.command()
@click.argument("prompt")
@click.argument("image")
@click.option("--aspect-ratio", type=_choice(AspectRatio), help="Crop or pad to this width to height.")
@_model
@_output_format
@_timeout
@_file
@_json
@_transport
@_verbose
def edit(
    *,
    prompt: str,
    image: str,
    timeout: float,
    file: Path | None,
    as_json: bool,
    transport: TransportName | None,
    **request_options: str | None,
) -> int:
    """Change IMAGE, an http(s) URL or a file, as PROMPT says.

    The URL of the result is printed, or with -o the path of the file.
    """
    from flux_async.cli.single_commands import Presentation, make_picture  # noqa: PLC0415

    request = EditRequest(prompt=prompt, input_image=image_of(image), **_given(request_options))
    return make_picture(request, timeout, Presentation(file=file, as_json=as_json, transport=transport))


@cli.command()
@click.argument("task_id")
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@_timeout
@_file
@_json
@_transport
@_verbose
def task(
    *,
    task_id: str,
    wait: bool,
    timeout: float,
    file: Path | None,
    as_json: bool,
    transport: TransportName | None,
) -> int:
    """Say how the task TASK_ID stands.

    The URL of its picture is printed, or with -o the path of the file.
    """
    from flux_async.cli.single_commands import Presentation, look_at_task  # noqa: PLC0415

    return look_at_task(
        task_id,
        wait=wait,
        timeout=timeout,
        show=Presentation(file=file, as_json=as_json, transport=transport),
    )


@cli.command()
@click.argument("image")
@click.option(
    "--max-mb", type=click.FloatRange(min=0, min_open=True), default=20.0, help="Refuse a larger file."
)
@_timeout
@_json
@_transport
@_verbose
def upload(image: str, max_mb: float, timeout: float, as_json: bool, transport: TransportName | None) -> int:
    """Put IMAGE where the vendor can fetch it for 24 hours.

    IMAGE is a file or an http(s) URL; the address to give the vendor is printed. It costs nothing. Nobody can
    guess the address, but whoever knows it can fetch the picture.
    """
    from flux_async.cli.single_commands import Presentation, upload_image  # noqa: PLC0415

    most = int(max_mb * 1024 * 1024)
    return upload_image(image_of(image), most, timeout, Presentation(as_json=as_json, transport=transport))


@cli.command("credits")
@_json
@_transport
@_verbose
def show_balance(as_json: bool, transport: TransportName | None) -> int:
    """Print the account's balance in credits."""
    from flux_async.cli.single_commands import Presentation, show_credits  # noqa: PLC0415

    return show_credits(Presentation(as_json=as_json, transport=transport))


@cli.command()
@_folder
@click.option(
    "--callback-url", help="Also see whether something answers at this address of a receiver.", metavar="URL"
)
@_json
@_transport
@_verbose
def doctor(folder: Path, callback_url: str | None, as_json: bool, transport: TransportName | None) -> int:
    """Check all that a run depends on, and say what to do.

    Checked are key, balance, clock, uploads, certificates and disk. A picture of one pixel is uploaded;
    nothing is submitted or charged. Exit 1 where something fails.
    """
    from flux_async.cli.doctor import run_doctor  # noqa: PLC0415

    return run_doctor(folder, callback_url, transport, as_json=as_json)


@cli.command()
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8787, help="Port; 0 picks a free one.")
@click.option("--speed", type=float, default=1.0, help="How fast the vendor's clock runs.")
@click.option("--seed", type=int, help="Make task ids and times repeatable.")
@click.option("--credits", type=float, default=10_000.0, help="Balance to start with.")
@click.option("--key", "keys", multiple=True, default=("test",), help="An accepted API key; repeatable.")
@click.option("--quality", type=click.Choice(["fast", "good"]), default="fast", help="Of text removal.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that work on pictures.  [default: 1 or 2]"
)
@click.option(
    "--pictures", type=click.Choice(["real", "none"]), default="real", help="none: every result is one pixel."
)
@click.option("--latency", type=float, default=0.0, help="Vendor's seconds before a submit is answered.")
@click.option(
    "--webhook-key", envvar="KIE_WEBHOOK_KEY", help="Sign callbacks with it; default KIE_WEBHOOK_KEY."
)
@click.option("--faults", default="", help="What goes wrong, such as drop-reply:1%,callback-late:10%.")
@click.option("--fault-script", type=_FILE, help="JSON Lines: the faults of each submit, in order.")
@click.option("--list-faults", is_flag=True, help="Say what can go wrong, and end.")
@click.option("--state", type=_FILE, help="Keep tasks, balance and pictures there, beyond the end.")
@click.option("--public-url", help="Address under which others reach it, as through a tunnel.", metavar="URL")
@click.option("--callbacks-anywhere", is_flag=True, help="Send callbacks to other machines, too.")
@click.option("--ledger", is_flag=True, help="Print what was asked and paid to stderr, in the end.")
@click.option("--virtual-clock", is_flag=True, help="Let time pass by POST /__sandbox/clock only.")
def sandbox(host: str, port: int, ledger: bool, list_faults: bool, **options: Any) -> int:
    """Serve the vendor's API on this machine, without a charge.

    For tests and dry runs: it needs no real key and no network.
    """
    from flux_async.sandbox import SandboxError, SandboxSettings, serve  # noqa: PLC0415
    from flux_async.sandbox.faults import list_of_faults, read_script  # noqa: PLC0415

    if list_faults:
        click.echo(list_of_faults(), nl=False)
        return Exit.SUCCEEDED
    script, settings = options.pop("fault_script"), _given(options)
    try:
        entries = () if script is None else read_script(script)
        serve(SandboxSettings(script=entries, **settings), host=host, port=port, ledger=ledger)
    except (SandboxError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    return Exit.SUCCEEDED


@cli.command()
@click.option(
    "-o", "--output", "folder", type=_FOLDER, default=Path("flux-demo"), help="Folder for the results."
)
def demo(folder: Path) -> int:
    """Watch text vanish from sample pictures, without a key.

    It needs no network and less than a minute. It starts a sandbox, runs remove-text on its samples and draws
    a contact sheet of before and after.
    """
    from flux_async.cli.demo import run_demo  # noqa: PLC0415

    return run_demo(folder)


def _note(words: str) -> None:
    click.echo(printable(words), err=True)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not asked for, so that the vendor's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}
