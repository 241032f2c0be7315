"""The command doctor: one line for each thing that a run depends on. Nothing here costs credits."""

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
    NotFoundError,
    RetryPolicy,
    __version__,
)
from flux_async.api import APIS, VARIABLE, choose_api
from flux_async.api.models_table import ApiName
from flux_async.cli.advice import with_commands
from flux_async.cli.credits import in_credits
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, Output, printable
from flux_async.clock import Clock, SystemClock
from flux_async.images import check_http_url
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import TransportName, make_transport
from flux_async.transport.http_settings import tls_context

_TIMEOUT_S = 15.0
_EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cli": ("click", "rich"),
        "sandbox": ("starlette", "uvicorn", "python_multipart"),
        "imaging": ("numpy", "cv2", "PIL", "rapidocr", "onnxruntime"),
        "report": ("jinja2", "PIL"),
        "demo": ("skimage",),
        "webhook": ("uvicorn",),
        "httpx2": ("httpx2",),
        "aiohttp": ("aiohttp",),
        "storage": ("obstore",),
        "parquet": ("pyarrow",),
        "redis": ("redis",),
        "engine": ("dbos",),
    }
)
_CHECKS = (
    *("versions", "settings", "key", "balance", "api", *(f"api {name}" for name in APIS), "clock"),
    *("uploads", "callback", "certificates", "disk"),
)
"""All checks in the order in which they are printed."""
_SKEW_SEEN_S, _SKEW_REFUSED_S = 30.0, 300.0  # signatures of callbacks are valid for 300 s on either side
_LITTLE_B, _TOO_LITTLE_B = 1_000_000_000, 50_000_000
_CHEAPEST_IMAGE = 5.0
_NO_TASK = "test"
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")
"""The names that ``c_rehash`` gives to certificates in a folder."""
# One grey pixel.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


class Level(enum.StrEnum):
    """The result of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@attrs.frozen
class Finding:
    """What a check found.

    Attributes:
        check: The name of the check.
        level: Its result.
        message: What was found.
        advice: What to do, where something is to be done.
    """

    check: str
    level: Level
    message: str
    advice: str = ""

    @classmethod
    def of(cls, check: str, error: FluxError) -> Finding:
        """Return an error as a finding."""
        advice = with_commands(error.advice_template, None, error.task_id, error.api)
        return cls(check, Level.FAIL, error.message, advice)


# --- on this machine --------------------------------------------------------------------------------------


def check_versions() -> Finding:
    """Return the versions of the package, of Python and of the libraries, and the extras."""
    extras = [name for name, modules in _EXTRAS.items() if all(map(importlib.util.find_spec, modules))]
    libraries = ", ".join(f"{name} {_version(name)}" for name in ("httpx", "anyio", "attrs", "cattrs"))
    words = f"flux-async {__version__}, Python {platform.python_version()}, {libraries}; extras: "
    return Finding("versions", Level.OK, words + (", ".join(extras) or "none"))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def check_certificates() -> Finding:
    """Check that there are certificate authorities where every transport looks for them."""
    folder = "" if os.environ.get("SSL_CERT_FILE") else os.environ.get("SSL_CERT_DIR", "")
    where = f" in {folder}" if folder else ""
    try:
        count = tls_context().cert_store_stats()["x509_ca"]
        if folder:  # OpenSSL reads those only when it needs them
            count = sum(_HASHED.fullmatch(entry.name) is not None for entry in Path(folder).iterdir())
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "strerror", None) or error
        problem = f"The certificate authorities cannot be read: {why}."
    else:
        if count:
            return Finding("certificates", Level.OK, f"{count} authorities{where}")
        problem = f"No certificate authorities are known{where}."
    advice = "Check SSL_CERT_FILE and SSL_CERT_DIR, or install the package certifi again."
    return Finding("certificates", Level.FAIL, problem, advice)


def check_disk(folder: Path) -> Finding:
    """Check that results can be written to ``folder``, which need not exist yet."""
    existing = folder.absolute()
    while not os.path.lexists(existing):  # unlike Path.exists, this never raises
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding("disk", Level.FAIL, f"{existing} is no writable folder.", "Choose another with -o.")
    free = shutil.disk_usage(existing).free
    level = Level.OK if free >= _LITTLE_B else Level.WARN if free >= _TOO_LITTLE_B else Level.FAIL
    advice = "" if level is Level.OK else "An image has one to three megabytes: make room, or use -o."
    return Finding("disk", level, f"{free / 1e9:.1f} GB free in {existing}", advice)


# --- over the network -------------------------------------------------------------------------------------


async def check_key(client: FluxClient) -> list[Finding]:
    """Check that the key is accepted, and that the account has credits."""
    try:
        balance = await client.credits(timeout=_TIMEOUT_S)
    except AuthenticationError as error:
        return [Finding.of("key", error)]
    except FluxError as error:
        return [Finding.of("api", error)]
    words = f"{in_credits(balance)} credits"
    found = Finding("balance", Level.OK, words)
    if balance < _CHEAPEST_IMAGE:
        found = Finding("balance", Level.WARN, words, "An image costs more: top up before a run.")
    return [Finding("key", Level.OK, "accepted"), found]


async def check_api(client: FluxClient, name: ApiName) -> Finding:
    """Look for a task that does not exist, which is free: an API that answers says that there is none."""
    check, chosen = f"api {name}", "; new images go there" if name == client.api else ""
    try:
        await client.record(_NO_TASK, api=name, timeout=_TIMEOUT_S)
    except NotFoundError:
        return Finding(check, Level.OK, f"answers{chosen}")
    except FluxError as error:
        if name == client.api or isinstance(error, AuthenticationError):
            return Finding.of(check, error)
        return Finding(check, Level.WARN, f"does not answer: {error.message}", "It is not the one in use.")
    return Finding(check, Level.WARN, f"has a task {_NO_TASK}, which should not exist{chosen}.")


async def check_upload_host(client: FluxClient, host: str) -> Finding:
    """Upload an image of one pixel, which is free."""
    try:
        await client.upload(_PIXEL, timeout=_TIMEOUT_S)
    except FluxError as error:
        return Finding.of("uploads", error)
    return Finding("uploads", Level.OK, f"{host} accepted an image of one pixel")


async def check_clock(url: str, clock: Clock | None = None) -> Finding:
    """Compare this machine's clock with the API's, without sending the key."""
    clock = clock or SystemClock()
    try:
        began = clock.wall()
        answer = await _get(url)
        ours = (began + clock.wall()) / 2
    except Exception as error:  # noqa: BLE001 - proxies, names and sockets raise many classes
        advice = "Check the network, a proxy, and KIE_BASE_URL."
        return Finding("api", Level.FAIL, f"{url} cannot be reached: {_in_words(error)}", advice)
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return Finding("clock", Level.WARN, f"{url} sends no time, so the clock was not checked.")
    skew = abs(ours - theirs)
    if skew <= _SKEW_SEEN_S:
        return Finding("clock", Level.OK, f"within {max(1.0, skew):.0f} s of the API's")
    words = f"{skew:.0f} s {'ahead of' if ours > theirs else 'behind'} the API's"
    level = Level.WARN if skew < _SKEW_REFUSED_S else Level.FAIL
    return Finding("clock", level, words, "Set the clock: callbacks signed 300 s away are refused.")


async def check_callback(url: str, *, api_is_local: bool) -> Finding:
    """Check that the address of a receiver answers; this cannot prove that the vendor can reach it."""
    try:
        parts = urlsplit(check_http_url(url, "--callback-url"))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = await anyio.getaddrinfo(parts.hostname, port)
        answer = await _get(url)
    except InvalidInput as error:
        return Finding.of("callback", error)
    except Exception as error:  # noqa: BLE001 - as above
        return Finding(
            "callback",
            Level.FAIL,
            f"Nothing answers at {url}: {_in_words(error)}.",
            "Start the receiver, and check name, port and firewall; without callbacks, tasks are polled.",
        )
    words = f"{url} answers from here, with HTTP {answer.status_code}"
    is_private = any(
        not ipaddress.ip_address(address[0].partition("%")[0]).is_global for *_, address in found
    )
    if is_private and not api_is_local:
        return Finding("callback", Level.WARN, words, "Its address is private: the vendor cannot reach it.")
    if parts.scheme == "http" and not api_is_local:
        return Finding("callback", Level.WARN, words, "Use https: callbacks over http can be read by others.")
    return Finding("callback", Level.OK, words)


async def _get(url: str) -> httpx.Response:
    """Return the head of an answer; its body is not read."""
    is_local = urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
    headers = {"User-Agent": f"flux-async/{__version__} doctor"}
    async with (
        httpx.AsyncClient(timeout=_TIMEOUT_S, headers=headers, trust_env=not is_local) as web,
        web.stream("GET", url) as answer,
    ):
        return answer


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


# --- the command ------------------------------------------------------------------------------------------


def run_doctor(
    folder: Path,
    callback_url: str | None,
    transport: TransportName | None = None,
    api: ApiName | None = None,
    *,
    as_json: bool,
) -> Exit:
    """Run all checks, print the findings, and return 1 where a check failed."""
    findings: list[Finding] = []

    async def command(interruption: Interruption) -> Exit:
        with interruption.scope():
            await _check_all(findings, folder, callback_url, transport, api)
        return Exit.INTERRUPTED if interruption.happened else Exit.SUCCEEDED

    code = run_interruptible(command)
    _print(findings, as_json=as_json)
    if code is Exit.SUCCEEDED and any(found.level is Level.FAIL for found in findings):
        return Exit.SOME_FAILED
    return code


async def _check_all(
    findings: list[Finding],
    folder: Path,
    callback_url: str | None,
    transport: TransportName | None,
    api: ApiName | None,
) -> None:
    """Add the findings of all checks; those over the network run at once."""

    async def add(check: Awaitable[Finding]) -> None:
        findings.append(await check)

    async def check_with_client() -> None:
        try:
            client = FluxClient(retry=RetryPolicy(max_tries=1), transport=transport, api=api)
        except ConfigurationError as error:
            findings.append(Finding.of("key", error))
            return
        async with client:
            about_key = await check_key(client)
            findings.extend(about_key)
            if about_key[0].level is Level.OK:  # else it would fail for the same reason
                findings.extend([await check_api(client, name) for name in APIS])
            findings.append(await check_upload_host(client, addresses.upload_url))

    findings += [check_versions(), check_certificates(), check_disk(folder)]
    try:  # the addresses are known also where there is no key
        addresses = Credentials("none", os.environ.get("KIE_BASE_URL"), os.environ.get("KIE_UPLOAD_URL"))
        make_transport(transport, addresses, version=__version__)  # opens no connection
        choose_api(api, os.environ.get(VARIABLE, ""))
    except ConfigurationError as error:
        findings.append(Finding.of("settings", error))
        return
    async with anyio.create_task_group() as group:
        group.start_soon(add, check_clock(addresses.base_url))
        group.start_soon(check_with_client)
        if callback_url is not None:
            group.start_soon(add, check_callback(callback_url, api_is_local=addresses.is_this_machine))


def _print(findings: list[Finding], *, as_json: bool) -> None:
    output = Output()
    # Two checks may find that the API cannot be reached: that is printed once.
    by_check = {
        found.check: found for found in sorted(findings, key=lambda found: _CHECKS.index(found.check))
    }
    if as_json:
        checks = [attrs.asdict(found) for found in by_check.values()]
        output.json({"ok": all(found.level is not Level.FAIL for found in findings), "checks": checks})
        return
    for line in doctor_lines(by_check.values()):
        output.line(line)


def doctor_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield a line for each finding."""
    for found in findings:
        words = f"{found.level:<5}{found.check:<13}{found.message}"
        yield printable(f"{words.rstrip('.')}. {found.advice}" if found.advice else words)
