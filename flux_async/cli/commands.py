"""The commands: each parses its options and hands over."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from flux_async import (
    AspectRatio,
    EditRequest,
    GenerateRequest,
    Limits,
    Model,
    OutputFormat,
    __version__,
)
from flux_async.cli.exits import Exit
from flux_async.cli.inputs import gather_images, refuse_local

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


def read_rate(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, float]:
    """Return the numbers of ``20/10``: submits, and seconds."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6}(?:\.\d{1,6})?)", value.strip())
    if found is None or int(found[1]) == 0 or float(found[2]) == 0:
        raise click.BadParameter(f"{value!r} is no rate: write submits/seconds, like 20/10.")
    return int(found[1]), float(found[2])


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


@click.group(context_settings=_SETTINGS, no_args_is_help=True)
@click.version_option(__version__, prog_name="flux-async")
def cli() -> None:
    """Remove text from images, or make and edit them, with KIE AI's Flux Kontext.

    The key is taken from KIE_API_KEY, the API's address from KIE_BASE_URL (default https://api.kie.ai).

    Exit codes: 0 all succeeded, 1 some failed or are in doubt, 2 usage or settings, 3 halted (key, credits,
    maintenance), 130 interrupted.
    """


@cli.command("remove-text")
@click.argument("images", nargs=-1)
@click.option(
    "-o", "--output", "folder", type=_FOLDER, default=Path("flux-out"), help="Folder for the results."
)
@click.option(
    "--rate",
    callback=read_rate,
    default="20/10",
    help="Submits per seconds that the account allows.",
    metavar="N/SECONDS",
)
@click.option(
    "--in-flight", type=click.IntRange(min=1), default=100, help="Tasks at once, at most.", metavar="N"
)
@_timeout
@_model
@click.option("--prompt", help="Ask for the removal in other words.")
@_output_format
@click.option(
    "--no-download", is_flag=True, help="Leave the results at the vendor, which keeps them 14 days."
)
@click.option("--json", "as_json", is_flag=True, help="Print the lines of results.jsonl instead of paths.")
def remove_text(
    *,
    images: tuple[str, ...],
    folder: Path,
    rate: tuple[int, float],
    in_flight: int,
    no_download: bool,
    as_json: bool,
    timeout: float,
    **request_options: str | None,
) -> int:
    """Remove the text from IMAGES: public http(s) URLs, or - to read them from standard input.

    The folder gets images/ and results.jsonl with one JSON object per image. stdout gets the paths of the
    pictures, everything else goes to stderr.

    Run the same command again to resume. What succeeded is not asked for again; a task that was submitted is
    waited for or downloaded, never submitted anew; a failure that cost nothing is tried again. Images that
    failed and may have been charged, or that are in doubt (the answer to their submit never came), stay as
    they are until you remove their line from results.jsonl.
    """
    from flux_async.cli.remove_text import RemoveTextOrder, run_remove_text  # noqa: PLC0415 - loads rich

    order = RemoveTextOrder(
        images=tuple(gather_images(images, sys.stdin)),
        folder=folder,
        limits=Limits(submits=rate[0], window_s=rate[1], in_flight=in_flight),
        timeout_s=timeout,
        download=not no_download,
        request_options=_given(request_options),
    )
    return run_remove_text(order, as_json=as_json)


@cli.command()
@click.argument("prompt")
@_aspect_ratio
@_model
@_output_format
@_timeout
@_file
@_json
def generate(
    prompt: str, timeout: float, file: Path | None, as_json: bool, **request_options: str | None
) -> int:
    """Make a picture from the words of PROMPT; print its URL, or with -o its path."""
    from flux_async.cli.single import Presentation, make_picture  # noqa: PLC0415

    request = GenerateRequest(prompt=prompt, **_given(request_options))
    return make_picture(request, timeout, Presentation(file=file, as_json=as_json))


@cli.command()
@click.argument("prompt")
@click.argument("image")
@click.option("--aspect-ratio", type=_choice(AspectRatio), help="Crop or pad to this width to height.")
@_model
@_output_format
@_timeout
@_file
@_json
def edit(
    prompt: str, image: str, timeout: float, file: Path | None, as_json: bool, **request_options: str | None
) -> int:
    """Change IMAGE, a public http(s) URL, as PROMPT says; print the result's URL, or with -o its path."""
    from flux_async.cli.single import Presentation, make_picture  # noqa: PLC0415

    refuse_local(image)
    request = EditRequest(prompt=prompt, input_image=image, **_given(request_options))
    return make_picture(request, timeout, Presentation(file=file, as_json=as_json))


@cli.command()
@click.argument("task_id")
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@_timeout
@_file
@_json
def task(task_id: str, wait: bool, timeout: float, file: Path | None, as_json: bool) -> int:
    """Say how the task TASK_ID stands; print the URL of its picture, or with -o the path."""
    from flux_async.cli.single import Presentation, look_at_task  # noqa: PLC0415

    return look_at_task(task_id, wait=wait, timeout=timeout, show=Presentation(file=file, as_json=as_json))


@cli.command("credits")
@_json
def show_balance(as_json: bool) -> int:
    """Print the account's balance in credits."""
    from flux_async.cli.single import Presentation, show_credits  # noqa: PLC0415

    return show_credits(Presentation(as_json=as_json))


@cli.command()
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8787, help="Port; 0 picks a free one.")
@click.option("--speed", type=float, default=1.0, help="How fast the vendor's clock runs.")
@click.option("--seed", type=int, help="Make task ids and times repeatable.")
@click.option("--credits", "balance", type=float, default=10_000.0, help="Balance to start with.")
@click.option("--key", "keys", multiple=True, default=("test",), help="An accepted API key; repeatable.")
@click.option("--quality", type=click.Choice(["fast", "good"]), default="fast", help="Of text removal.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that work on pictures.  [default: 1 or 2]"
)
def sandbox(host: str, port: int, balance: float, workers: int | None, **settings: Any) -> int:
    """Serve the vendor's API on this machine, for tests and dry runs: no real key, no network, no charge."""
    from flux_async.sandbox import SandboxError, SandboxSettings, serve  # noqa: PLC0415

    options = settings if workers is None else settings | {"workers": workers}
    try:
        serve(SandboxSettings(credits=balance, **options), host=host, port=port)
    except (SandboxError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    return Exit.SUCCEEDED


@cli.command()
@click.option(
    "-o", "--output", "folder", type=_FOLDER, default=Path("flux-demo"), help="Folder for the results."
)
def demo(folder: Path) -> int:
    """Watch text vanish from sample pictures: no key, no network, under a minute.

    Starts a sandbox, runs remove-text on its samples and draws a contact sheet of before and after.
    """
    from flux_async.cli.demo import run_demo  # noqa: PLC0415

    return run_demo(folder)


def _given(options: dict[str, str | None]) -> dict[str, Any]:
    """Leave out what was not asked for, so that the vendor's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}
