"""``flux-async demo``: remove-text on sample images, against a sandbox in a child process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Self

import anyio
import anyio.to_thread
import attrs
import httpx
from anyio.abc import Process
from rich import box
from rich.table import Table
from rich.text import Text

from flux_async import ConfigurationError, FluxClient, FluxError, Limits, MissingExtra, PollPolicy
from flux_async.batch.result_files import VENDOR
from flux_async.cli.display import RunDisplay
from flux_async.cli.input_rows import InputRow
from flux_async.cli.results import FILE_NAME, IMAGES, ResultFile, ResultRow, image_of
from flux_async.cli.run_command import RunCommand
from flux_async.cli.run_folder import JOURNAL, ORIGINALS
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, Output
from flux_async.job_state import WantedChecks
from flux_async.journal.lock import lock_owner_of
from flux_async.journal.reader import JournalReader

SPEED = 10

_COMMAND = ("-m", "flux_async.sandbox", "--port", "0", "--speed", str(SPEED), "--until-eof")
_READY = "sandbox ready at "
_START_S = 60.0
_STOP_S = 5.0
_TAIL = 2000


class SandboxChildError(FluxError):
    """The sandbox did not start, or ended early."""

    default_advice = "Run  flux-async sandbox  to see what it says."


@attrs.define(eq=False)
class SandboxChild:
    """A sandbox in a child process, in a session of its own, so that Ctrl-C reaches only the parent.

    It ends with its parent, because its standard input is then closed.
    """

    process: Process
    _errors: IO[bytes]
    url: str = ""

    @classmethod
    async def start(cls, quality: str) -> Self:
        """Start it with a quality of text removal; :meth:`ready` waits until it listens."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        process = await anyio.open_process(
            [sys.executable, *_COMMAND, "--quality", quality],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            start_new_session=True,
        )
        return cls(process, errors)

    async def ready(self) -> None:
        """Wait until it listens, and read its address.

        Raises:
            SandboxChildError: It ended, or took longer than a minute.
        """
        line = ""
        with anyio.move_on_after(_START_S):
            line = await self._first_line()
        if not line.startswith(_READY):
            self.kill()
            await self.ended()
            raise SandboxChildError(f"The sandbox did not start: {self.errors() or line or 'silence'}.")
        self.url = line.removeprefix(_READY).strip()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    async def ended(self) -> None:
        """Wait for its end."""
        await self.process.wait()

    def errors(self) -> str:
        """Return the end of its stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-_TAIL:].strip()

    def kill(self) -> None:
        """Kill it; its workers notice and end, too."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    async def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self.terminate()
        with anyio.move_on_after(_STOP_S):
            await self.ended()
        if self.is_running:
            self.kill()
        await self.process.aclose()
        self._errors.close()

    async def _first_line(self) -> str:
        line = b""
        if self.process.stdout is not None:
            async for chunk in self.process.stdout:
                line += chunk
                if b"\n" in line:
                    break
        return line.decode(errors="replace").partition("\n")[0]


def _environment() -> dict[str, str]:
    """Return this process's environment without ``KIE_…``: the sandbox must not get the key."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("KIE_")}


# --- the demo ---------------------------------------------------------------------------------------------


CONTACT_SHEET = "contact_sheet.png"
REPORT = "report.html"

_KEY = "test"
_NEEDED = (
    "PIL",
    "cv2",
    "jinja2",
    "numpy",
    "onnxruntime",
    "python_multipart",
    "rapidocr",
    "skimage",
    "starlette",
    "uvicorn",
)
_SANDBOX = "http://127.0.0.1:"
_SAMPLES_S = 60.0
_COPIES_S = 20.0
_LIMITS = Limits(submits=20, window_s=10 / SPEED)
_POLLING = PollPolicy(first_s=0.5, interval_s=1.0)
_CHECKS = WantedChecks(preserve=True, verify=True)
_BESIDE = ("-wal", "-shm", ".lock", ".submits")
SAMPLES = 12
"""Four rows of the sheet; two cores need less than a minute for them."""


@attrs.frozen(kw_only=True)
class Sample:
    """One sample image of the sandbox."""

    title: str
    url: str


def run_demo(folder: Path, quality: str = "good", samples: int = SAMPLES) -> Exit:
    """Run the demo in ``folder``, with a quality of text removal and so many images; return the exit code.

    Raises:
        MissingExtra: The extra ``demo`` is not installed.
        ConfigurationError: ``folder`` holds the results of a real run.
        SandboxChildError: The sandbox did not start, or ended early.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra.for_extra(f"The demo ({', '.join(missing)} not installed)", "demo")
    _start_fresh(folder)
    display = RunDisplay(output=Output(), prints_results=False)
    demo = Demo(folder=folder, quality=quality, samples=samples, display=display)
    return run_interruptible(demo.run)


@attrs.define(kw_only=True, eq=False)
class Demo:
    """One run of the demo."""

    folder: Path
    quality: str
    samples: int
    display: RunDisplay

    async def run(self, interruption: Interruption) -> Exit:
        """Start the sandbox, remove the text from its samples, show the results."""
        self.display.note("Starting a sandbox on this machine …")
        sandbox = await SandboxChild.start(self.quality)
        interruption.before_exit.append(sandbox.terminate)
        try:
            return await self._with(sandbox, interruption)
        finally:
            with anyio.CancelScope(shield=True):
                await sandbox.stop()

    async def _with(self, sandbox: SandboxChild, interruption: Interruption) -> Exit:
        samples: list[Sample] = []
        with interruption.scope():
            await sandbox.ready()
            self.display.note(f"It listens at {sandbox.url}; its sample images are the input …")
            samples = await _fetch_samples(sandbox.url, self.samples)
        if interruption.happened:
            return Exit.INTERRUPTED

        async def watch() -> None:
            await sandbox.ended()
            interruption.cancel()

        interruption.run_beside(watch)
        rows, code = await self._remove_text(sandbox, samples, interruption)
        if not sandbox.is_running:
            raise SandboxChildError(f"The sandbox ended early: {sandbox.errors() or 'silence'}.")
        if code is not Exit.INTERRUPTED:
            await self._show(samples, rows)
        return code

    async def _remove_text(
        self, sandbox: SandboxChild, samples: list[Sample], interruption: Interruption
    ) -> tuple[list[ResultRow], Exit]:
        """Run remove-text on the samples."""
        self.display.note(
            f"Removing the text from {len(samples)} images, putting every other pixel back, verifying …"
        )
        inputs = [
            InputRow(source="sample", line=number, image=sample.url)
            for number, sample in enumerate(samples, start=1)
        ]
        code = await RunCommand(
            options=RunOptions(folder=self.folder, limits=_LIMITS, checks=_CHECKS),
            select=lambda reader, _: reader.read(inputs),
            make_client=lambda: FluxClient(_KEY, sandbox.url, limits=_LIMITS, polling=_POLLING),
            display=self.display,
            interruption=interruption,
            is_resumable=False,
            vendor_speed=SPEED,
        ).run()
        return list(ResultFile(self.folder).rows()), code

    async def _show(self, samples: list[Sample], rows: list[ResultRow]) -> None:
        """Write the report, draw the contact sheet, print the table and where both are."""
        page, sheet = await anyio.to_thread.run_sync(_write_report, self.folder)
        self.display.console.show(_table(samples, rows, self.folder))
        self.display.output.line(f"Before and after, side by side: {sheet.resolve()}")
        self.display.output.line(f"The report, with sliders; open it in a browser: {page.resolve().as_uri()}")


async def _fetch_samples(url: str, count: int) -> list[Sample]:
    try:
        # The sandbox is on this machine: a proxy of the environment must not be used.
        async with httpx.AsyncClient(timeout=_SAMPLES_S, trust_env=False) as web:
            listed = (await web.get(f"{url}/samples/")).raise_for_status().json()["samples"][:count]
        return [Sample(title=entry["title"], url=entry["url"]) for entry in listed]
    except httpx.HTTPError as error:
        raise SandboxChildError(f"The sandbox shows no samples: {type(error).__name__}: {error}.") from None


def _start_fresh(folder: Path) -> None:
    """Remove the files of an earlier demo from ``folder``, and nothing else."""
    journal = folder / JOURNAL
    images: list[Path] = []
    if journal.exists() and journal.stat().st_size:
        with JournalReader(journal) as reader:
            for stored in reader.jobs():
                if not image_of(stored).startswith(_SANDBOX):
                    raise _a_real_run(folder)
                images.extend(_files_of(folder, stored.job.file) if stored.job.file else [])
    elif (folder / FILE_NAME).exists():
        raise _a_real_run(folder)
    if lock_owner_of(journal) is not None:
        raise ConfigurationError(f"Another demo is running in {folder}.", advice="Choose another with -o.")
    try:
        for name in (JOURNAL, *(f"{JOURNAL}{end}" for end in _BESIDE), FILE_NAME, CONTACT_SHEET, REPORT):
            (folder / name).unlink(missing_ok=True)
        for path in images:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be used: {error.strerror or error}.") from None


def _files_of(folder: Path, file: str) -> list[Path]:
    """Return the images of a job: its result, the vendor's own, and its original."""
    places = (folder / IMAGES, folder / IMAGES / VENDOR, folder / ORIGINALS)
    return [path for place in places for path in place.glob(f"{Path(file).stem}.*")]


def _a_real_run(folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{folder} holds the results of a real run.", advice="Choose another folder for the demo with -o."
    )


def _write_report(folder: Path) -> tuple[Path, Path]:
    from flux_async.cli.report import write_contact_sheet, write_report  # noqa: PLC0415 - needs the extra

    return write_report(folder, copies_s=_COPIES_S), write_contact_sheet(folder)


def _table(samples: list[Sample], rows: list[ResultRow], folder: Path) -> Table:
    table = Table(box=box.SIMPLE, caption=f"in {folder / IMAGES}", caption_justify="right")
    table.add_column("image")
    table.add_column("check")
    table.add_column("result file", no_wrap=True)
    for sample, row in zip(samples, rows, strict=True):
        result = Path(row.file).name if row.file else str(row.error.type if row.error else row.status)
        table.add_row(Text(sample.title), _found(row), Text(result))
    return table


def _found(row: ResultRow) -> str:
    """Return what the checks found: ``clean``, and whether all other pixels are the original's."""
    kept = ", composed" if row.vendor_file is not None and row.not_preserved is None else ""
    return f"{(row.verdict or '-').replace('_', ' ')}{kept}"
