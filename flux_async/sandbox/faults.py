"""What the sandbox can do wrong, and to which tasks: the faults, and the plan that deals them out.

A fault befalls a share of all tasks (``callback-missing:5%``), or the tasks of one image: the one whose URL
asks for it with the query parameter ``sandbox-fault``.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

import attrs

PARAMETER: Final = "sandbox-fault"


class Fault(enum.StrEnum):
    """One thing that goes wrong with one task; its value is its name in ``--faults``."""

    description: str

    def __new__(cls, name: str, description: str) -> Self:
        """Make a member of its name and what it does, in one sentence."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.description = description
        return member

    DROP_REPLY = "drop-reply", "The task is made and paid, then the connection closes without a reply."
    CALLBACK_MISSING = "callback-missing", "No callback is sent."
    CALLBACK_DUPLICATE = "callback-duplicate", "The callback is delivered three times."
    CALLBACK_LATE = "callback-late", "The first delivery leaves two minutes after the task's end."
    CALLBACK_EARLY = (
        "callback-early",
        "The only callback comes before the reply to the submit, and claims a success.",
    )
    CALLBACK_FORGED = (
        "callback-forged",
        "Before the true callback one is delivered with a wrong signature and another result.",
    )
    CALLBACK_REPLAYED = (
        "callback-replayed",
        "After the true callback its signature is delivered again, over another result.",
    )
    CALLBACK_STALE = "callback-stale", "The only callback is signed as if sent ten minutes ago."
    CALLBACK_WRONG_ID = "callback-wrong-id", "The only callback names, and signs, a task that does not exist."
    CALLBACK_UNSIGNED = "callback-unsigned", "The callback comes without signature headers."


_BY_NAME: Final[Mapping[str, Fault]] = {fault.value: fault for fault in Fault}


@attrs.frozen(kw_only=True)
class FaultPlan:
    """Which faults befall which tasks.

    Attributes:
        shares: The share of tasks, from 0 to 1, each fault befalls; those left out befall none.
        seed: Decides which tasks they are.
    """

    shares: Mapping[Fault, float] = attrs.Factory(dict)
    seed: int = 0

    def drawn_for(self, subject: str) -> frozenset[Fault]:
        """Return the faults that befall one subject, such as a task's id: the same ones at every call."""
        return frozenset(fault for fault in self.shares if self._strikes(fault, subject))

    def _strikes(self, fault: Fault, subject: str) -> bool:
        # A draw of its own for each fault: naming one more fault leaves those of the others where they were.
        draw = random.Random(f"{self.seed} {fault} {subject}")  # noqa: S311 - a sandbox guards nothing
        return draw.random() < self.shares[fault]


def parse_shares(text: str) -> dict[Fault, float]:
    """Read a list such as ``callback-missing:5%,callback-late:0.1``; a name alone means every task.

    Raises:
        ValueError: If a name is unknown or named twice, or a share is none.
    """
    shares: dict[Fault, float] = {}
    for part in text.split(",") if text.strip() else ():
        name, colon, share = (piece.strip() for piece in part.partition(":"))
        fault = parse_fault(name)
        if fault in shares:
            raise ValueError(f"{fault} is named twice in the faults")
        shares[fault] = _parse_share(fault, share) if colon else 1.0
    return shares


def parse_fault(name: str) -> Fault:
    """Return the fault of a name.

    Raises:
        ValueError: If there is none; the message lists those there are.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown fault {name!r}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def _parse_share(fault: Fault, text: str) -> float:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:  # also refuses NaN
        raise ValueError(f"the share of {fault} must be like 5% or 0.05, from 0% to 100%, not {text!r}")
    return share


def asked_for(url: str) -> frozenset[Fault]:
    """Return the faults a URL asks for: ``?sandbox-fault=callback-missing,callback-late``.

    Raises:
        ValueError: If it asks for one that is unknown.
    """
    if PARAMETER not in url:
        return frozenset()
    values = (value for name, value in parse_qsl(urlsplit(url).query) if name == PARAMETER)
    return frozenset(parse_fault(name.strip()) for value in values for name in value.split(","))
