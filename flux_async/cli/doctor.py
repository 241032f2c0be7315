"""The command doctor: one line for everything that a run depends on, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Iterable, Iterator
from pathlib import Path

import anyio
import attrs

from flux_async import ConfigurationError, FluxClient, RetryPolicy, __version__
from flux_async.cli.checkups import (
    Finding,
    Level,
    failed,
    look_at_callback,
    look_at_certificates,
    look_at_clock,
    look_at_disk,
    look_at_key,
    look_at_upload_host,
    look_at_versions,
)
from flux_async.cli.exits import Exit
from flux_async.cli.output import Output
from flux_async.cli.printable import printable
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import TransportName, make_transport

_ORDER = (
    "versions",
    "settings",
    "key",
    "balance",
    "api",
    "clock",
    "uploads",
    "callback",
    "certificates",
    "disk",
)


def run_doctor(
    folder: Path, callback_url: str | None, transport: TransportName | None = None, *, as_json: bool
) -> Exit:
    """Look at everything, print what was found, and return 1 where something has failed."""
    doctor = Doctor(folder=folder, callback_url=callback_url, transport=transport)

    async def command(interruption: Interruption) -> Exit:
        with interruption.scope():
            await doctor.look()
        return Exit.INTERRUPTED if interruption.happened else Exit.SUCCEEDED

    code = run_interruptible(command)
    _print(doctor.findings, as_json=as_json)
    if code is Exit.SUCCEEDED and any(found.level is Level.FAIL for found in doctor.findings):
        return Exit.SOME_FAILED
    return code


@attrs.define(kw_only=True)
class Doctor:
    """Looks at everything, all at once.

    Attributes:
        folder: Where results would go.
        callback_url: Where the vendor would report, if it is asked to.
        transport: Library that makes the requests; None stands for ``KIE_TRANSPORT``, else httpx.
        findings: What was found so far.
    """

    folder: Path
    callback_url: str | None
    transport: TransportName | None = None
    findings: list[Finding] = attrs.field(factory=list)

    async def look(self) -> None:
        """Do it."""
        self.findings += [look_at_versions(), look_at_certificates(), look_at_disk(self.folder)]
        try:
            credentials = _addresses()
            make_transport(self.transport, credentials, version=__version__)  # opens no connection
        except ConfigurationError as error:
            self.findings.append(failed("settings", error))
            return
        async with anyio.create_task_group() as group:
            group.start_soon(self._note, look_at_clock(credentials.base_url))
            group.start_soon(self._ask_with_key, credentials)
            if self.callback_url is not None:
                look = look_at_callback(self.callback_url, api_is_here=credentials.is_this_machine)
                group.start_soon(self._note, look)

    async def _note(self, look: Awaitable[Finding]) -> None:
        self.findings.append(await look)

    async def _ask_with_key(self, credentials: Credentials) -> None:
        """Look at what only a client can."""
        try:
            client = FluxClient(retry=RetryPolicy(max_tries=1), transport=self.transport)
        except ConfigurationError as error:
            self.findings.append(failed("key", error))
            return
        async with client:
            self.findings += await look_at_key(client)
            self.findings.append(await look_at_upload_host(client, credentials.upload_url))


def _addresses() -> Credentials:
    """Return where API and upload host are, also where there is no key."""
    return Credentials("none", os.environ.get("KIE_BASE_URL"), os.environ.get("KIE_UPLOAD_URL"))


def _print(findings: list[Finding], *, as_json: bool) -> None:
    output = Output()
    # The API may be out of reach for two who ask: said once.
    told = {found.check: found for found in sorted(findings, key=lambda found: _ORDER.index(found.check))}
    if as_json:
        checks = [attrs.asdict(found) for found in told.values()]
        output.json({"ok": all(found.level is not Level.FAIL for found in findings), "checks": checks})
        return
    for line in doctor_lines(told.values()):
        output.line(line)


def doctor_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield a line for each finding."""
    for found in findings:
        words = f"{found.level:<5}{found.check:<13}{found.message}"
        yield printable(f"{words.rstrip('.')}. {found.advice}" if found.advice else words)
