"""The commands of ``flux-async`` and their options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from flux_async import (
    AspectRatio,
    CustomModel,
    EditRequest,
    GenerateRequest,
    InDoubtPolicy,
    MissingExtra,
    Model,
    __version__,
)
from flux_async.cli.check_commands import CHECK_COMMANDS
from flux_async.cli.common_options import (
    API,
    FILE,
    FOLDER,
    FOLDER_PATH,
    JSON,
    MODEL,
    MODEL_FILE,
    OUTPUT_FOLDER,
    OUTPUT_FORMAT,
    RUN_OPTIONS,
    TIMEOUT,
    TRANSPORT,
    VERBOSE,
    choice,
    read_run_options,
    with_options,
    without_none,
)
from flux_async.cli.destination import RunOutput, split_output
from flux_async.cli.engine_commands import ENGINE_COMMANDS
from flux_async.cli.input_rows import ListOptions
from flux_async.cli.inputs import gather_inputs, image_of
from flux_async.cli.list_files import STDIN
from flux_async.cli.option_values import ModelChoice, Number, own_models, refuse_preserve_format
from flux_async.cli.terminal import Command, Commands, Exit, can_ask, printable

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


# --- runs -------------------------------------------------------------------------------------------------


@click.group(cls=Commands, context_settings=_SETTINGS, no_args_is_help=True)
@click.version_option(__version__, prog_name="flux-async")
def cli() -> None:
    """Remove text from images, or make and edit them, with KIE AI's Flux Kontext.

    The key is taken from KIE_API_KEY, the API's address from KIE_BASE_URL (default https://api.kie.ai), which
    of the vendor's two APIs from KIE_API (kontext or jobs, default kontext), the HTTP library from
    KIE_TRANSPORT (default httpx).

    Exit codes: 0 all succeeded, 1 some failed or are in doubt, 2 usage or settings, 3 halted (key, credits,
    maintenance), 130 interrupted.
    """


@cli.command("remove-text")
@click.argument("images", nargs=-1)
@click.option(
    "--from",
    "lists",
    multiple=True,
    type=click.Path(exists=True, allow_dash=True),
    help="List of images: one a line, CSV, JSON or Parquet; - is standard input; repeatable.",
    metavar="FILE",
)
@click.option(
    "--column", help="Column of a CSV list, or name in JSON, that holds the images.", metavar="NAME"
)
@click.option(
    "--split", help="Separator of several images in one cell: makes one job of each.", metavar="SEPARATOR"
)
@click.option(
    "-o",
    "--output",
    type=RunOutput(),
    default=Path("flux-out"),
    help="Folder for the results, or an address: s3://bucket/prefix, gs://…, az://….",
    metavar="DIR|URL",
)
@click.option(
    "--journal-dir",
    type=FOLDER_PATH,
    help="Folder for journal and report, where -o is an address; named after it if left out.",
)
@RUN_OPTIONS
@click.option(
    "--on-doubt",
    type=choice(InDoubtPolicy),
    default=InDoubtPolicy.HOLD.value,
    help="Submits whose answer was lost: hold them, or resubmit, perhaps for a second charge.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what would be submitted, with its cost; send and change nothing."
)
@MODEL
@click.option("--prompt", help="Ask for the removal in other words.")
@click.option("--aspect-ratio", type=choice(AspectRatio), help="Crop or pad to this width to height.")
@OUTPUT_FORMAT
def remove_text(
    *,
    images: tuple[str, ...],
    lists: tuple[str, ...],
    column: str | None,
    split: str | None,
    output: Path | str,
    journal_dir: Path | None,
    on_doubt: str,
    dry_run: bool,
    as_json: bool,
    model: str | CustomModel,
    prompt: str | None,
    aspect_ratio: str | None,
    output_format: str | None,
    **run: Any,
) -> int:
    """Remove the text from IMAGES.

    IMAGES are http(s) URLs, files, folders, or - to read them from standard input. Files are uploaded first,
    free of charge: JPEG, PNG or WebP up to 20 MB. A folder stands for the images in it, without those in
    folders below; a quoted pattern like 'photos/**/*.jpg' goes deeper. The same file again is the same job,
    whatever its name. In a list, files are relative to the list's own folder.

    Lists in CSV have a column of images, found by its usual names (url, image, image_url, src, link) or named
    by --column, and may have key, prompt, model, aspect_ratio and output_format; JSON holds images or objects
    with those names; Parquet files, or a folder of them, are read like CSV. A row that cannot be read fails
    alone.

    The folder gets journal.sqlite3, images/ and results.jsonl with one JSON object per image. stdout gets the
    paths of the images, everything else goes to stderr. With an address the images go there, and the rest to
    a folder of this machine, which the other commands take.

    Run the same command again to resume, however the last run ended. Images that succeeded are not submitted
    again; a task that was submitted is waited for or downloaded, never resubmitted. Images that failed, or
    that are in doubt (the answer to their submit was lost), stay as they are: see retry and adopt.
    """
    from flux_async.cli.dry_run import run_dry  # noqa: PLC0415 - loads rich
    from flux_async.cli.run_command import run_remove_text  # noqa: PLC0415 - loads rich

    context = click.get_current_context()
    if not run["preserve"]:  # retry may compose without being asked to
        refuse_preserve_format(context)
    folder, destination = split_output(output, journal_dir)
    context.params["folder"] = folder  # named by the advice of errors
    options = read_run_options(
        **run,
        folder=folder,
        destination=destination,
        asks=can_ask() and STDIN not in (*images, *lists),
        in_doubt=InDoubtPolicy(on_doubt),
        repeats=("--on-doubt resubmit",) if on_doubt == InDoubtPolicy.RESUBMIT else (),
        request_options=without_none(
            {"model": model, "prompt": prompt, "aspect_ratio": aspect_ratio, "output_format": output_format}
        ),
    )
    reading = ListOptions(column=column, split=split or None)
    inputs = gather_inputs(
        images,
        lists,
        sys.stdin,
        options=reading,
        note=lambda words: click.echo(printable(words), err=True),
        on_close=click.get_current_context().call_on_close,
    )
    if dry_run:
        return run_dry(options, inputs, as_json=as_json)
    return run_remove_text(options, inputs, as_json=as_json)


@cli.command()
@FOLDER
@JSON
def status(folder: Path, as_json: bool) -> int:
    """Show how the run in FOLDER stands, also while it is running."""
    from flux_async.cli.status import show_status  # noqa: PLC0415 - loads rich

    return show_status(folder, as_json=as_json)


@cli.command()
@FOLDER
@click.option("--watch", is_flag=True, help="Keep the page up to date until the run in FOLDER ends.")
@click.option(
    "--contact-sheet", is_flag=True, help="Also draw up to 60 images before and after as contact_sheet.png."
)
def report(folder: Path, *, watch: bool, contact_sheet: bool) -> int:
    """Write a page to look at the images of FOLDER.

    It is FOLDER/report.html, for any browser, also while the run is going on: before and after, failures,
    times and credits. Its path is printed. Small copies of the images go to FOLDER/thumbnails.
    """
    try:
        from flux_async.cli.report import show_report  # noqa: PLC0415 - needs an extra
    except ImportError as missing:
        raise MissingExtra.for_extra("The report", "report") from missing
    return show_report(folder, watch=watch, contact_sheet=contact_sheet)


@cli.command()
@FOLDER
@click.option("--failed", is_flag=True, help="Pay for another task for every image that failed.")
@click.option("--in-doubt", is_flag=True, help="Submit images in doubt again: some may be paid for twice.")
@click.option("--text-left", is_flag=True, help="Pay for another task for every image with text left.")
@click.option("--damaged", is_flag=True, help="Pay for another task for every damaged or cropped image.")
@click.option(
    "--model",
    type=ModelChoice(),
    help="Use this model for these tasks; `flux-async models` lists them.",
    metavar="NAME",
)
@RUN_OPTIONS
def retry(
    *,
    failed: bool,
    in_doubt: bool,
    text_left: bool,
    damaged: bool,
    model: str | CustomModel | None,
    as_json: bool,
    **run: Any,
) -> int:
    """Resume the run in FOLDER without its list.

    Without an option this is the run's own command once more: nothing is paid twice. --failed, --in-doubt,
    --text-left and --damaged pay for images again, each time they are given; how many, and what it may cost,
    is said first. With --text-left and --damaged the new images are verified, and the better one of both is
    the result; the other is kept in images/earlier/. Where an attempt fails, the earlier image stays.
    """
    from flux_async.cli.folder_commands import run_retry  # noqa: PLC0415 - loads rich

    wanted = {"failed": failed, "in_doubt": in_doubt, "text_left": text_left, "damaged": damaged}
    repeats = tuple(f"--{name.replace('_', '-')}" for name, is_given in wanted.items() if is_given)
    if model is not None and (in_doubt or not repeats):
        raise click.UsageError(
            "--model goes with --failed, --text-left or --damaged, and not with --in-doubt."
        )
    if (text_left or damaged) and run["no_download"]:
        raise click.UsageError("--text-left and --damaged need the images: leave --no-download out.")
    if model is not None:
        repeats += ("--model",)  # the run that resumes has it from the journal, and refuses it alone
    options = read_run_options(**run, repeats=repeats, asks=can_ask())
    chosen = None if model is None else model if isinstance(model, CustomModel) else Model(model)
    return run_retry(options, as_json=as_json, **wanted, model=chosen)


@cli.command()
@FOLDER
@click.argument("job")
@click.argument("task_id")
@with_options(API, TRANSPORT, VERBOSE)
def adopt(folder: Path, job: str, task_id: str, **connection: Any) -> int:
    """Record that TASK_ID is the task of JOB in FOLDER.

    JOB is in doubt; it is its key, or how its key begins. The task's record is read first: it must exist and
    be made from the same image. Nothing is submitted.
    """
    from flux_async.cli.folder_commands import run_adopt  # noqa: PLC0415 - loads rich

    return run_adopt(folder, job, task_id, **connection)


@cli.command()
@FOLDER
@click.option("--yes", "same_account", is_flag=True, help="The account is the same, where no task proves it.")
@with_options(API, TRANSPORT, VERBOSE)
def rekey(folder: Path, same_account: bool, **connection: Any) -> int:
    """Let the run in FOLDER go on with a new key.

    The new key, of the same account, is taken from KIE_API_KEY. It must be valid, and tasks of the folder are
    read with it: one that it can read shows that the account is the same. Nothing is submitted.
    """
    from flux_async.cli.folder_commands import run_rekey  # noqa: PLC0415 - loads rich

    return run_rekey(folder, same_account=same_account, **connection)


@cli.command()
@FOLDER
@click.option("--yes", is_flag=True, help="Do not ask.")
@VERBOSE
def recover(folder: Path, *, yes: bool) -> int:
    """Go on with a journal that lost records of submits.

    Images that may have been submitted without a record in the journal are put in doubt; nothing is sent. A
    journal loses records where its -wal file is not copied along, or an older copy is put in its place. The
    file journal.sqlite3.submits beside it lists the images that were submitted.
    """
    from flux_async.cli.folder_commands import run_recover  # noqa: PLC0415 - loads rich

    return run_recover(folder, yes=yes)


# --- one image, one task, the account ---------------------------------------------------------------------


@cli.command()
@click.argument("prompt")
@click.option("--aspect-ratio", type=choice(AspectRatio), help="Width to height.")
@with_options(MODEL, MODEL_FILE, OUTPUT_FORMAT, TIMEOUT, FILE, JSON, API, TRANSPORT, VERBOSE)
def generate(prompt: str, timeout: float, **options: Any) -> int:
    """Make an image from the words of PROMPT.

    Its URL is printed, or with -o the path of the file.
    """
    from flux_async.cli.single_commands import Reply, run_request  # noqa: PLC0415 - loads rich

    reply = Reply.of(options)
    return run_request(GenerateRequest(prompt=prompt, **without_none(options)), timeout, reply)


@cli.command()
@click.argument("prompt")
@click.argument("image")
@click.option("--aspect-ratio", type=choice(AspectRatio), help="Crop or pad to this width to height.")
@with_options(MODEL, MODEL_FILE, OUTPUT_FORMAT, TIMEOUT, FILE, JSON, API, TRANSPORT, VERBOSE)
def edit(prompt: str, image: str, timeout: float, **options: Any) -> int:
    """Change IMAGE, an http(s) URL or a file, as PROMPT says.

    The URL of the result is printed, or with -o the path of the file.
    """
    from flux_async.cli.single_commands import Reply, run_request  # noqa: PLC0415 - loads rich

    reply = Reply.of(options)
    request = EditRequest(prompt=prompt, input_image=image_of(image), **without_none(options))
    return run_request(request, timeout, reply)


@cli.command()
@click.argument("task_id")
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@with_options(TIMEOUT, FILE, JSON, API, TRANSPORT, VERBOSE)
def task(task_id: str, wait: bool, timeout: float, **options: Any) -> int:
    """Show how the task TASK_ID stands.

    The URL of its image is printed, or with -o the path of the file.
    """
    from flux_async.cli.single_commands import Reply, show_task  # noqa: PLC0415 - loads rich

    return show_task(task_id, wait=wait, timeout=timeout, reply=Reply.of(options))


@cli.command()
@click.argument("image")
@click.option(
    "--max-mb", type=Number(min=0, min_open=True, max=1e6), default=20.0, help="Refuse a larger file."
)
@with_options(TIMEOUT, JSON, API, TRANSPORT, VERBOSE)
def upload(image: str, max_mb: float, timeout: float, **options: Any) -> int:
    """Put IMAGE where the vendor can fetch it for 24 hours.

    IMAGE is a file or an http(s) URL; the address to give the vendor is printed. It costs nothing. The
    address cannot be guessed; everyone who has it can fetch the image.
    """
    from flux_async.cli.single_commands import Reply, upload_image  # noqa: PLC0415 - loads rich

    return upload_image(image_of(image), int(max_mb * 1024 * 1024), timeout, Reply.of(options))


@cli.command("credits")
@with_options(JSON, API, TRANSPORT, VERBOSE)
def show_balance(**options: Any) -> int:
    """Print the account's balance in credits."""
    from flux_async.cli.single_commands import Reply, show_credits  # noqa: PLC0415 - loads rich

    return show_credits(Reply.of(options))


@cli.command("models")
@with_options(MODEL_FILE, JSON)
@click.pass_context
def list_models(ctx: click.Context, *, as_json: bool) -> int:
    """List the models, with price, API, longest prompt and options."""
    from flux_async.cli.model_file import show_models  # noqa: PLC0415 - rarely needed

    return show_models(own_models(ctx), as_json=as_json)


# --- checks and trials ------------------------------------------------------------------------------------


for _command in (*CHECK_COMMANDS, *ENGINE_COMMANDS):
    cli.add_command(_command)


@cli.command()
@OUTPUT_FOLDER
@click.option("--callback-url", help="Also request this address of a callback receiver.", metavar="URL")
@with_options(JSON, API, TRANSPORT, VERBOSE)
def doctor(folder: Path, callback_url: str | None, as_json: bool, **connection: Any) -> int:
    """Check what a run depends on, and say what to do.

    Checked are key, balance, both APIs, clock, uploads, certificates and disk. An image of one pixel is
    uploaded; nothing is submitted or charged. Exit 1 where something fails.
    """
    from flux_async.cli.doctor import run_doctor  # noqa: PLC0415 - loads rich

    return run_doctor(folder, callback_url, as_json=as_json, **connection)


class SandboxCommand(Command):
    """A command whose options its own parser reads; here they are only completed."""

    def shell_complete(self, _ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the options that begin so."""
        from flux_async.sandbox.settings import OPTIONS  # noqa: PLC0415 - needs an extra

        options = {option.flag: option.help for option in OPTIONS} | {"--help": "Show this message and exit."}
        return [
            CompletionItem(flag, help=text)
            for flag, text in options.items()
            if incomplete and flag.startswith(incomplete)
        ]


@cli.command(cls=SandboxCommand, add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sandbox(arguments: tuple[str, ...]) -> int:
    """Serve the vendor's API on this machine, without a charge."""
    from flux_async.sandbox import SandboxError  # noqa: PLC0415 - needs an extra
    from flux_async.sandbox.server import parser, run  # noqa: PLC0415 - as above

    try:
        run(parser("flux-async sandbox").parse_args(arguments))
    except (SandboxError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    return Exit.SUCCEEDED


@cli.command()
@click.option(
    "-o", "--output", "folder", type=FOLDER_PATH, default=Path("flux-demo"), help="Folder for the results."
)
def demo(folder: Path) -> int:
    """Watch text vanish from sample images, without a key.

    It needs no network and less than a minute. It starts a sandbox, runs remove-text on its samples, draws a
    contact sheet of before and after, and writes the report: its address, for a browser, is printed.
    """
    from flux_async.cli.demo import run_demo  # noqa: PLC0415 - loads rich

    return run_demo(folder)
