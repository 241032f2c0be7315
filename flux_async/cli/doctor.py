"""What can be wrong before a run, looked at one by one. Nothing here costs credits."""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import ipaddress
import os
import platform
import re
import shutil
import ssl
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import anyio
import attrs
import httpx

from flux_async import (
    AuthenticationError,
    ConfigurationError,
    FluxClient,
    FluxError,
    InvalidInput,
    RetryPolicy,
    __version__,
)
from flux_async.cli.advice import with_commands
from flux_async.cli.credits import in_credits
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, Output, printable
from flux_async.clock import Clock, SystemClock
from flux_async.models import check_http_url
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import TransportName, make_transport
from flux_async.transport.http_settings import tls_context

TIMEOUT_S = 15.0

_EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cli": ("click", "rich"),
        "sandbox": ("starlette", "uvicorn", "python_multipart"),
        "imaging": ("numpy", "cv2", "PIL", "rapidocr", "onnxruntime"),
        "demo": ("skimage",),
        "webhook": ("uvicorn",),
        "httpx2": ("httpx2",),
        "aiohttp": ("aiohttp",),
    }
)
_SKEW_SEEN_S, _SKEW_REFUSED_S = 30.0, 300.0
_LITTLE_B, _TOO_LITTLE_B = 1_000_000_000, 50_000_000
_AN_IMAGE = 5.0
_GIGA = 1e9
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")
# One grey pixel: the smallest honest picture.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


class Level(enum.StrEnum):
    """How a checkup ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@attrs.frozen
class Finding:
    """What a checkup found.

    Attributes:
        check: What was looked at.
        level: How it ended.
        message: What was found.
        advice: What to do about it, where something is to be done.
    """

    check: str
    level: Level
    message: str
    advice: str = ""


def failed(check: str, error: FluxError) -> Finding:
    """Return the finding that an error of ours is."""
    return Finding(
        check, Level.FAIL, error.message, with_commands(error.advice_template, None, error.task_id)
    )


def look_at_versions() -> Finding:
    """Say what is installed."""
    extras = [name for name, modules in _EXTRAS.items() if all(map(importlib.util.find_spec, modules))]
    libraries = ", ".join(f"{name} {_version(name)}" for name in ("httpx", "anyio", "attrs", "cattrs"))
    words = f"flux-async {__version__}, Python {platform.python_version()}, {libraries}; extras: "
    return Finding("versions", Level.OK, words + (", ".join(extras) or "none"))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def look_at_certificates() -> Finding:
    """Say whether there are authorities to check a server against, where every transport looks for them."""
    folder = "" if os.environ.get("SSL_CERT_FILE") else os.environ.get("SSL_CERT_DIR", "")
    try:
        count = tls_context().cert_store_stats()["x509_ca"]
        if folder:  # those in a folder are read when they are needed, by names that c_rehash gives them
            count = sum(_HASHED.fullmatch(entry.name) is not None for entry in Path(folder).iterdir())
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "strerror", None) or error
        return Finding(
            "certificates",
            Level.FAIL,
            f"The certificate authorities cannot be read: {why}.",
            "Check SSL_CERT_FILE and SSL_CERT_DIR, or install the package certifi again.",
        )
    if not count:
        return Finding(
            "certificates",
            Level.FAIL,
            f"No certificate authorities are known{f' in {folder}' if folder else ''}.",
            "Check SSL_CERT_FILE and SSL_CERT_DIR, or install the package certifi again.",
        )
    return Finding("certificates", Level.OK, f"{count} authorities{f' in {folder}' if folder else ''}")


def look_at_disk(folder: Path) -> Finding:
    """Say whether results can be written to ``folder``, which need not exist yet."""
    place = folder.absolute()
    while not os.path.lexists(place):  # asks without raising
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding("disk", Level.FAIL, f"{place} is no folder to write to.", "Choose another with -o.")
    free = shutil.disk_usage(place).free
    level = Level.OK if free >= _LITTLE_B else Level.WARN if free >= _TOO_LITTLE_B else Level.FAIL
    advice = "" if level is Level.OK else "A picture has one to three megabytes: make room, or use -o."
    return Finding("disk", level, f"{free / _GIGA:.1f} GB free in {place}", advice)


async def look_at_key(client: FluxClient) -> list[Finding]:
    """Say whether the key is taken, and what the account has."""
    try:
        balance = await client.credits(timeout=TIMEOUT_S)
    except AuthenticationError as error:
        return [failed("key", error)]
    except FluxError as error:
        return [failed("api", error)]
    words = f"{in_credits(balance)} credits"
    poor = Finding("balance", Level.WARN, words, "That is less than an image costs: top up before a run.")
    taken = Finding("key", Level.OK, "accepted")
    return [taken, Finding("balance", Level.OK, words) if balance >= _AN_IMAGE else poor]


async def look_at_upload_host(client: FluxClient, where: str) -> Finding:
    """Upload a picture of one pixel, which is free."""
    try:
        await client.upload(_PIXEL, timeout=TIMEOUT_S)
    except FluxError as error:
        return failed("uploads", error)
    return Finding("uploads", Level.OK, f"{where} took a picture of one pixel")


async def look_at_clock(url: str, clock: Clock | None = None) -> Finding:
    """Compare our clock with the API's; the key is not sent.

    Signatures of callbacks are good for 300 s on either side.
    """
    clock = clock or SystemClock()
    try:
        begun = clock.wall()
        answer = await _get(url)
        ours = (begun + clock.wall()) / 2
    except Exception as error:  # noqa: BLE001 - a proxy, a name, a socket: whatever is wrong, it is not reached
        return Finding(
            "api",
            Level.FAIL,
            f"{url} cannot be reached: {_in_words(error)}",
            "Check the network, a proxy, and KIE_BASE_URL.",
        )
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return Finding("clock", Level.WARN, f"{url} does not tell the time, so the clock was not checked.")
    skew = abs(ours - theirs)
    if skew <= _SKEW_SEEN_S:
        return Finding("clock", Level.OK, f"within {max(1.0, skew):.0f} s of the API's")
    words = f"{skew:.0f} s {'ahead of' if ours > theirs else 'behind'} the API's"
    level = Level.WARN if skew < _SKEW_REFUSED_S else Level.FAIL
    return Finding("clock", level, words, "Set the clock: callbacks signed 300 s away are refused.")


async def look_at_callback(url: str, *, api_is_here: bool) -> Finding:
    """Say whether something answers at the address the vendor is to call. Whether he can, only he can say."""
    try:
        parts = urlsplit(check_http_url(url, "--callback-url"))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = await anyio.getaddrinfo(parts.hostname, port)
        answer = await _get(url)
    except InvalidInput as error:
        return failed("callback", error)
    except Exception as error:  # noqa: BLE001 - as above
        return Finding(
            "callback",
            Level.FAIL,
            f"Nothing answers at {url}: {_in_words(error)}.",
            "Start the receiver, and check name, port and firewall; without callbacks, tasks are polled.",
        )
    words = f"{url} answers from here, with HTTP {answer.status_code}"
    private = any(not ipaddress.ip_address(address[0].partition("%")[0]).is_global for *_, address in found)
    if private and not api_is_here:
        return Finding("callback", Level.WARN, words, "Its address is private: the vendor cannot reach it.")
    if parts.scheme == "http" and not api_is_here:
        return Finding(
            "callback", Level.WARN, words, "Use https: what the vendor sends can be read on its way."
        )
    return Finding("callback", Level.OK, words)


async def _get(url: str) -> httpx.Response:
    here = urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
    headers = {"User-Agent": f"flux-async/{__version__} doctor"}
    async with (
        httpx.AsyncClient(timeout=TIMEOUT_S, headers=headers, trust_env=not here) as web,
        web.stream("GET", url) as answer,  # of which the head is enough
    ):
        return answer


def _in_words(error: Exception) -> str:
    """Return what a library has met, on one line."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


# --- the command ----------------------------------------------------------------------------------------


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
