"""The options of the sandbox, and the one error it ends with when it cannot start."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs

from flux_async.sandbox.faults import Fault, FaultPlan, Rule, parse_entries, parse_rules


class SandboxError(Exception):
    """The sandbox cannot start; the message says what to do about it."""


def _default_workers() -> int:
    return max(1, min(2, os.cpu_count() or 1))


def _several(keys: Iterable[str]) -> tuple[str, ...]:
    if isinstance(keys, str):
        raise TypeError(f"keys must be several strings, not one: write ({keys!r},)")
    return tuple(keys)


def _check_keys(_instance: object, _attribute: attrs.Attribute[Any], keys: tuple[str, ...]) -> None:
    if not keys:
        raise ValueError("keys must hold at least one key, or nobody could use the sandbox")
    # Visible ASCII only: anything else could not travel in an Authorization header.
    if not all(key and all("!" <= letter <= "~" for letter in key) for key in keys):
        raise ValueError("every key must be visible ASCII without spaces")


def _check_speed(_instance: object, _attribute: attrs.Attribute[Any], speed: float) -> None:
    if not (math.isfinite(speed) and speed > 0):
        raise ValueError(f"speed must be a number above 0 (1 is real time), not {speed!r}")


def _check_balance(_instance: object, _attribute: attrs.Attribute[Any], balance: float) -> None:
    if not (math.isfinite(balance) and balance >= 0):
        raise ValueError(f"credits must be a number of at least 0, not {balance!r}")


def _check_share(_instance: object, attribute: attrs.Attribute[Any], share: float) -> None:
    if not 0 <= share <= 1:  # also refuses NaN
        raise ValueError(f"{attribute.name} must be a share from 0 to 1, not {share!r}")


def _check_latency(_instance: object, _attribute: attrs.Attribute[Any], latency: float) -> None:
    if not (math.isfinite(latency) and latency >= 0):
        raise ValueError(f"latency must be a number of at least 0, not {latency!r}")


def _check_workers(_instance: object, _attribute: attrs.Attribute[Any], workers: int) -> None:
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers!r}")


def _check_webhook_key(_instance: object, _attribute: attrs.Attribute[Any], key: str | None) -> None:
    if key is not None and not key.encode():  # bytes that are no UTF-8 are a ValueError as well
        raise ValueError("webhook_key must not be empty: leave it out for callbacks without a signature")


def _check_faults(instance: SandboxSettings, _attribute: attrs.Attribute[Any], faults: str) -> None:
    named = {rule.fault for rule in parse_rules(faults)}
    if Fault.DROP_REPLY in named and instance.drop_replies:
        raise ValueError("name the share of lost replies once: as drop_replies, or as drop-reply in faults")


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
    parse_entries(entries)  # refuses what is none
    return tuple(entry for entry in entries if not isinstance(entry, str))


@attrs.frozen(kw_only=True)
class SandboxSettings:
    """How one sandbox behaves; checked at birth.

    Attributes:
        speed: How fast the vendor's clock runs. It scales everything the vendor measures: the time a task
            takes, the 10 s window of the rate limit, the life of files. At 20 a task of 12 s takes 0.6 s and
            20 submits are allowed every 0.5 s. Work on pictures takes the time it takes.
        seed: Makes task ids, file names and task times repeatable. Leave it out where task ids outlive the
            sandbox: two sandboxes with the same seed hand out the same ids.
        credits: The balance the account starts with.
        keys: The API keys that are accepted. They belong to one account, as the vendor's keys do, and share
            its balance and its rate limit.
        quality: How much work text removal puts into a picture.
        workers: How many processes work on pictures.
        images: ``"none"`` skips all work on pictures (inputs are not fetched, every result is one pixel),
            for measuring the client alone.
        latency: Vendor seconds between taking a task's price and the reply to its submit; scaled by `speed`
            like everything the vendor measures.
        drop_replies: Share of submits whose reply is lost on the way: the task is made and paid, then the
            connection is closed. Which ones follows from `seed`. The same as ``drop-reply`` in `faults`.
        webhook_key: The key callbacks are signed with; without one they carry no signature.
        faults: What goes wrong, as ``"drop-reply:1%,http-429=1:5%,455@30-90"``: names from `Fault`, each with
            its number (``=1``), the share of submits it befalls (5% or 0.05; left out, all) and the window
            of vendor seconds in which it may strike. Whom a share befalls follows from `seed`. An input image
            whose URL has ``sandbox-fault=callback-missing`` in its query asks for that fault (or several,
            separated by commas) itself, and so does a request with the header ``X-Sandbox-Fault``.
        virtual_clock: Whether time stands still until ``POST /__sandbox/clock`` lets it pass; `speed` then
            means nothing.
        state: A file in which tasks, balance, ledger and links outlive the sandbox; their pictures lie in a
            folder beside it. What it holds wins over `credits`. Left out, nothing is kept.
        public_url: The address under which others reach this sandbox, such as that of a tunnel or a reverse
            proxy: links that are given out begin with it, and links that begin with it are known as its own.
        callbacks_anywhere: Whether callbacks go to other machines, too; otherwise to this one only.
        script: What befalls the first submits, in order: for each a list of names. Then `faults` holds.

    Raises:
        ValueError: If a value is out of range, or a fault is unknown.
        TypeError: If `keys` is a single string.
    """

    speed: float = attrs.field(default=1.0, converter=float, validator=_check_speed)
    seed: int | None = None
    credits: float = attrs.field(default=10_000.0, converter=float, validator=_check_balance)
    keys: tuple[str, ...] = attrs.field(
        default=("test",), converter=_several, validator=_check_keys, repr=False
    )
    quality: Literal["fast", "good"] = attrs.field(
        default="fast", validator=attrs.validators.in_(("fast", "good"))
    )
    workers: int = attrs.field(factory=_default_workers, validator=_check_workers)
    images: Literal["real", "none"] = attrs.field(
        default="real", validator=attrs.validators.in_(("real", "none"))
    )
    latency: float = attrs.field(default=0.0, converter=float, validator=_check_latency)
    drop_replies: float = attrs.field(default=0.0, converter=float, validator=_check_share)
    webhook_key: str | None = attrs.field(default=None, validator=_check_webhook_key, repr=False)
    faults: str = attrs.field(default="", validator=_check_faults)
    virtual_clock: bool = False
    state: Path | None = None
    public_url: str | None = attrs.field(default=None, converter=_as_origin)
    callbacks_anywhere: bool = False
    script: tuple[tuple[str, ...], ...] = attrs.field(default=(), converter=_as_entries)

    @property
    def plan(self) -> FaultPlan:
        """What goes wrong, `drop_replies` included."""
        dropped = (Rule(fault=Fault.DROP_REPLY, share=self.drop_replies),) if self.drop_replies else ()
        rules = dropped + parse_rules(self.faults)
        return FaultPlan(rules=rules, entries=parse_entries(self.script), seed=self.seed or 0)
