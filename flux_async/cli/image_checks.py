"""The commands that check results against their originals. Nothing here costs credits."""

from __future__ import annotations

from pathlib import Path

import attrs

from flux_async import FluxClient, Preserved, Verdict, VerdictKind, preserve, verify
from flux_async.batch.check_stage import require_extra
from flux_async.cli.display import RunDisplay, message_console
from flux_async.cli.run_command import RunCommand
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, Output, as_json, printable
from flux_async.files.image_writer import finish_part, part_beside, write_part
from flux_async.job_state import JobState, WantedChecks
from flux_async.journal.reader import JournalReader, read_at_rest
from flux_async.verification.preserve import PreserveFormat

_NO_KEY = "not-used"


def show_verdict(original: Path, result: Path, *, as_json: bool) -> Exit:
    """Print the verdict on one result."""
    verdict = verify(original, result)
    Output().line(_json(verdict) if as_json else _line(verdict))
    return Exit.SUCCEEDED if verdict.kind is VerdictKind.CLEAN else Exit.SOME_FAILED


def _line(verdict: Verdict) -> str:
    """Return the verdict as text: ``text_left: 28% of the text's area still reads as text: SALE``."""
    no_text = "no text was found in the original" if verdict.no_text else ""
    words = "; ".join(filter(None, [verdict.reason, no_text]))
    return printable(f"{verdict.kind}: {words}" if words else verdict.kind)


def _json(verdict: Verdict) -> str:
    """Return the verdict as a JSON object; its kind is named as in ``results.jsonl``."""
    figures = attrs.asdict(verdict)
    return as_json({"verdict": figures.pop("kind"), **figures})


# --- one result -------------------------------------------------------------------------------------------


def write_preserved(
    original: Path,
    result: Path,
    file: Path,
    *,
    preserve_format: PreserveFormat,
    fallback: bool,
    mask_out: Path | None,
    as_json: bool,
) -> Exit:
    """Write the composed image; where composing is refused, nothing, or the result as it is.

    Raises:
        InvalidInput: An image cannot be read.
        DownloadError: A file cannot be written.
    """
    done = preserve(original, result, format=preserve_format)
    report, is_composed, console = done.report, done.report.refusal is None, message_console()
    if is_composed or fallback:
        _write(file, done.image)
    if mask_out is not None and report.hole is not None and is_composed:
        from flux_async.imaging.image_codec import encode_image  # noqa: PLC0415 - loads numpy

        _write(mask_out, encode_image(report.hole.astype("uint8") * 255))
    if is_composed:
        words = f"{report.replaced or 0:.1%} of it was replaced"
        console.note(f"Outside the text the image is untouched: {words} (written as {done.format}).")
    else:
        kept = f"{file} is the result as it came ({done.format})." if fallback else "Nothing was written."
        console.note(f"Not composed: {report.reason}. {kept}", "yellow")
    written = file if is_composed or fallback else None
    if as_json:
        Output().line(_report_json(done, written))
    elif written is not None:
        Output().line(str(written))
    return Exit.SUCCEEDED if is_composed else Exit.SOME_FAILED


def _write(file: Path, content: bytes) -> None:
    """Write a file whole, or not at all.

    Raises:
        DownloadError: The disk refuses it.
    """
    part = part_beside(file)
    try:
        write_part(part, content, file)
        finish_part(part, file)
    finally:
        part.unlink(missing_ok=True)


def _report_json(done: Preserved, file: Path | None) -> str:
    report = attrs.asdict(done.report, filter=lambda field, _: field.name not in {"hole", "refusal"})
    head = {"verdict": done.report.verdict, "reason": done.report.reason or None}
    return as_json({**head, "file": None if file is None else str(file), "format": done.format, **report})


# --- a folder ---------------------------------------------------------------------------------------------


def run_checks_of(
    folder: Path, checks: WantedChecks, *, as_json: bool, preserve_format: PreserveFormat = "png"
) -> Exit:
    """Check the images of a folder that are done, and return the exit code; no key is needed.

    Raises:
        JournalError: The folder has no journal, or a run uses it.
        MissingExtra: The checks cannot be made.
    """
    read_at_rest(folder / JOURNAL, JournalReader.newest)  # no folder is made
    require_extra(checks)
    options = RunOptions(
        folder=folder, checks=checks, preserve_format=preserve_format, only_checks=True, report=True
    )
    display = RunDisplay(output=Output(), as_json=as_json, show_path=lambda file: str(folder / file))

    async def command(interruption: Interruption) -> Exit:
        return await RunCommand(
            options=options,
            select=lambda reader, _: reader.select(reader.folder.reader.jobs(JobState.DONE)),
            make_client=lambda: FluxClient(_NO_KEY),
            display=display,
            interruption=interruption,
        ).run()

    return run_interruptible(command)
