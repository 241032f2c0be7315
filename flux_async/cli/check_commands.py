"""The commands verify and preserve, and their options."""

from __future__ import annotations

from pathlib import Path

import click

from flux_async.cli.option_values import PRESERVE_FORMAT, OutputFile
from flux_async.cli.terminal import Command
from flux_async.job_state import WantedChecks
from flux_async.verification.preserve import PreserveFormat

_PLACE = click.Path(exists=True, path_type=Path)
_IMAGE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("verify", cls=Command)
@click.argument("original", type=_PLACE, metavar="DIR|ORIGINAL")
@click.argument("result", type=_IMAGE_FILE, required=False)
@_json
def verify_images(original: Path, result: Path | None, as_json: bool) -> int:
    """Check that the text is gone, and nothing else.

    In DIR, the folder of a run, every image that is done and not verified yet is verified, and its verdict is
    in results.jsonl and the report. For ORIGINAL and RESULT the verdict is printed: clean, text_left,
    damaged, cropped or unsure. Exit 0 if all are clean, else 1. Nothing is submitted or paid.
    """
    from flux_async.cli.image_checks import run_checks_of, show_verdict  # noqa: PLC0415 - loads rich

    if original.is_dir():
        if result is not None:
            raise click.UsageError("Give the folder of a run, or an original and its result.")
        return run_checks_of(original, WantedChecks(verify=True), as_json=as_json)
    if result is None:
        raise click.UsageError(f"Which result is to be compared with {original}? Give its file, too.")
    return show_verdict(original, result, as_json=as_json)


@click.command("preserve", cls=Command)
@click.argument("original", type=_PLACE, metavar="DIR|ORIGINAL")
@click.argument("result", type=_IMAGE_FILE, required=False)
@PRESERVE_FORMAT
@click.option("-o", "--output", "file", type=OutputFile(), help="Write the composed image to this file.")
@click.option("--fallback", is_flag=True, help="Write RESULT as it is where it cannot be composed.")
@click.option("--mask-out", type=OutputFile(), help="Write a mask of the replaced pixels, as PNG.")
@_json
def preserve_images(
    *,
    original: Path,
    result: Path | None,
    preserve_format: PreserveFormat,
    file: Path | None,
    fallback: bool,
    mask_out: Path | None,
    as_json: bool,
) -> int:
    """Put every pixel that was not text back.

    Only the text areas of an original are taken from its result. In DIR, the folder of a run, every image
    that is done and not composed yet is composed; the vendor's images go to images/vendor/. For ORIGINAL and
    RESULT the composed image is written to the file of -o.

    Exit 0 if all are composed, 1 if one was refused: nothing is written for it, and the reason is said.
    Nothing is submitted or paid.
    """
    from flux_async.cli.image_checks import run_checks_of, write_preserved  # noqa: PLC0415 - loads rich

    if original.is_dir():
        if result is not None or file is not None or fallback or mask_out is not None:
            raise click.UsageError("Give the folder of a run alone, or an original, its result and -o FILE.")
        checks = WantedChecks(preserve=True)
        return run_checks_of(original, checks, as_json=as_json, preserve_format=preserve_format)
    if result is None or file is None:
        raise click.UsageError("Give an original, its result, and the file of the composed image with -o.")
    return write_preserved(
        original,
        result,
        file,
        preserve_format=preserve_format,
        fallback=fallback,
        mask_out=mask_out,
        as_json=as_json,
    )


CHECK_COMMANDS = (verify_images, preserve_images)
