"""The options of the sandbox, each declared once: for Python, the command line and the documents.

The parser of the command line and the table in ``docs/command_line.md`` are made from `OPTIONS`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import attrs

from flux_async.sandbox.faults import FaultPlan, parse_entries, parse_rules
from flux_async.sandbox.jobs_records import RecordShape

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8787

_QUALITIES: Final = ("fast", "good")
_IMAGES: Final = ("real", "none")
_SHAPES: Final = ("new", "old")

_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


class SandboxError(Exception):
    """The sandbox cannot start; the message names the remedy."""


@attrs.frozen(kw_only=True)
class Option:
    """One option of the command line.

    Attributes:
        name: The field of `SandboxSettings`, or a keyword of the command.
        default: The default as it is shown.
        parsing: Arguments of ``ArgumentParser.add_argument``.
    """

    flag: str
    name: str
    help: str
    default: str = "off"
    parsing: Mapping[str, Any] = {"action": "store_true"}


def _cli(flag: str, text: str, *, shown: str = "none", **parsing: Any) -> dict[str, Any]:
    """Return the metadata of a field that is an option of the command line as well."""
    return {"flag": flag, "help": text, "default": shown, "parsing": parsing}


def _number(minimum: float, *, above: bool = False) -> _Validator:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not (math.isfinite(value) and (value > minimum if above else value >= minimum)):
            bound = f"above {minimum:g}" if above else f"of at least {minimum:g}"
            raise ValueError(f"{attribute.name} must be a number {bound}, not {value!r}")

    return check


def _several(keys: Iterable[str]) -> tuple[str, ...]:
    if isinstance(keys, str):
        raise TypeError(f"keys must be several strings, not one: write ({keys!r},)")
    return tuple(keys)


def _check_keys(_instance: object, _attribute: object, keys: tuple[str, ...]) -> None:
    if not keys:
        raise ValueError("keys must hold at least one key: without one, no request could be accepted")
    # Visible ASCII only: an Authorization header cannot carry anything else.
    if not all(key and all("!" <= letter <= "~" for letter in key) for key in keys):
        raise ValueError("every key must be visible ASCII without spaces")


def _check_webhook_key(_instance: object, _attribute: object, key: str | None) -> None:
    if key is not None and not key.encode():  # text that is not UTF-8 is a ValueError as well
        raise ValueError("webhook_key must not be empty: leave it out for callbacks without a signature")


def _check_faults(_instance: object, _attribute: object, faults: str) -> None:
    parse_rules(faults)


def _as_origin(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError(f"public_url must be an http(s) address, not {url!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"public_url must end with its host, and {url!r} goes on")
    return f"{parts.scheme}://{parts.netloc}"


def _as_entries(script: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    entries = [entry if isinstance(entry, str) else tuple(map(str, entry)) for entry in script]
    parse_entries(entries)  # raises for an entry that is a string
    return tuple(entry for entry in entries if not isinstance(entry, str))


@attrs.frozen(kw_only=True)
class SandboxSettings:
    """How one sandbox behaves; the help of each option is the table of ``docs/command_line.md``.

    `speed` scales everything that the vendor measures: the time a task takes, the 10 s window of the rate
    limit, the life of files. At 20 a task of 12 s takes 0.6 s and 20 submits are allowed every 0.5 s. Work on
    images takes real time. With `virtual_clock` it has no effect.

    The same `seed` gives the same task ids, file names, task times and struck requests. Leave it out where
    task ids outlive the sandbox, so that two sandboxes never give out the same id.

    Results are redrawn as the vendor's are: about a megapixel, slightly moved, in slightly other colours; the
    same seed and image give the same file. With `exact` only the text changes.

    All `keys` belong to one account, as the vendor's do: they share its balance and its rate limit.

    Raises:
        ValueError: A value is out of range, or a fault is unknown.
        TypeError: `keys` is a single string.
    """

    speed: float = attrs.field(
        default=1.0,
        converter=float,
        validator=_number(0, above=True),
        metadata=_cli(
            "--speed",
            "speed of the vendor's clock: task times, rate window, life of files",
            shown="1",
            type=float,
        ),
    )
    seed: int | None = attrs.field(
        default=None, metadata=_cli("--seed", "makes task ids and times repeatable", type=int)
    )
    credits: float = attrs.field(
        default=10_000.0,
        converter=float,
        validator=_number(0),
        metadata=_cli("--credits", "initial balance; a state file keeps its own", shown="10000", type=float),
    )
    keys: tuple[str, ...] = attrs.field(
        default=("test",),
        converter=_several,
        validator=_check_keys,
        repr=False,
        metadata=_cli("--key", "an accepted API key; repeatable", shown="test", action="append"),
    )
    quality: Literal["fast", "good"] = attrs.field(
        default="fast",
        validator=attrs.validators.in_(_QUALITIES),
        metadata=_cli("--quality", "of text removal: fast or good", shown="fast", choices=_QUALITIES),
    )
    workers: int = attrs.field(
        factory=lambda: max(1, min(2, os.cpu_count() or 1)),
        validator=_number(1),
        metadata=_cli("--workers", "processes that work on images", shown="1 or 2", type=int),
    )
    images: Literal["real", "none"] = attrs.field(
        default="real",
        validator=attrs.validators.in_(_IMAGES),
        metadata=_cli(
            "--images",
            "none: inputs are not fetched and every result is one pixel",
            shown="real",
            choices=_IMAGES,
        ),
    )
    exact: bool = attrs.field(
        default=False,
        metadata=_cli(
            "--exact",
            "results keep the input's size, and its pixels outside the text",
            shown="off",
            action="store_true",
        ),
    )
    job_records: RecordShape = attrs.field(
        default="new",
        validator=attrs.validators.in_(_SHAPES),
        metadata=_cli(
            "--job-records",
            "shape of the jobs API's records: new (since September 2026) or old",
            shown="new",
            choices=_SHAPES,
        ),
    )
    latency: float = attrs.field(
        default=0.0,
        converter=float,
        validator=_number(0),
        metadata=_cli(
            "--latency",
            "vendor seconds between a task's charge and the answer to its submit",
            shown="0",
            type=float,
        ),
    )
    webhook_key: str | None = attrs.field(
        default=None,
        validator=_check_webhook_key,
        repr=False,
        metadata=_cli(
            "--webhook-key",
            "key that signs the callbacks; without one they are unsigned",
            shown="KIE_WEBHOOK_KEY",
        ),
    )
    faults: str = attrs.field(
        default="",
        validator=_check_faults,
        metadata=_cli(
            "--faults", "faults, such as drop-reply:1%,callback-late:10%,455@30-90", metavar="LIST"
        ),
    )
    script: tuple[tuple[str, ...], ...] = attrs.field(
        default=(),
        converter=_as_entries,
        metadata=_cli(
            "--fault-script", "JSON Lines: the faults of each submit, in order", metavar="FILE", type=Path
        ),
    )
    state: Path | None = attrs.field(
        default=None,
        metadata=_cli(
            "--state",
            "file that keeps tasks, balance, ledger and links; the images are in a folder beside it",
            metavar="FILE",
            type=Path,
        ),
    )
    public_url: str | None = attrs.field(
        default=None,
        converter=_as_origin,
        metadata=_cli(
            "--public-url",
            "address of a tunnel or reverse proxy in front of it: links begin with it",
            metavar="URL",
        ),
    )
    callbacks_anywhere: bool = attrs.field(
        default=False,
        metadata=_cli(
            "--callbacks-anywhere", "send callbacks to other machines too", shown="off", action="store_true"
        ),
    )
    virtual_clock: bool = attrs.field(
        default=False,
        metadata=_cli(
            "--virtual-clock",
            "time stands still until POST /__sandbox/clock advances it",
            shown="off",
            action="store_true",
        ),
    )

    @property
    def plan(self) -> FaultPlan:
        """The plan of `script` and `faults`."""
        rules, entries = parse_rules(self.faults), parse_entries(self.script)
        return FaultPlan(rules=rules, entries=entries, seed=self.seed or 0)


OPTIONS: Final[tuple[Option, ...]] = (
    Option(flag="--host", name="host", help="address to listen on", default=DEFAULT_HOST, parsing={}),
    Option(
        flag="--port",
        name="port",
        help="port; 0 picks a free one",
        default=str(DEFAULT_PORT),
        parsing={"type": int},
    ),
    *(Option(name=field.name, **field.metadata) for field in attrs.fields(SandboxSettings)),
    Option(flag="--ledger", name="ledger", help="print submits and charges to stderr at the end"),
    Option(flag="--list-faults", name="list_faults", help="print all faults, and exit"),
    Option(flag="--until-eof", name="until_eof", help="exit when standard input ends"),
)
"""Every option of ``flux-async sandbox`` and ``python -m flux_async.sandbox``."""
