"""Which faults befall whom: rules with shares and windows of time, scripts, what single requests ask for.

A rule is written ``name=N:share@from-to``; all but the name may be left out. ``http-429=1:5%@30-90`` strikes
one in twenty submits, if it is the first of its image, in vendor seconds 30 to 90 of the sandbox's life.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

import attrs

from flux_async.sandbox.faults import ALWAYS, Fault, Place, Struck, parse_fault

PARAMETER: Final = "sandbox-fault"
HEADER: Final = "X-Sandbox-Fault"

_RULE = re.compile(r"(?P<name>[^=:@]*)(=(?P<number>[^:@]*))?(:(?P<share>[^@]*))?(@(?P<window>.*))?")


@attrs.frozen(kw_only=True)
class Rule:
    """One fault, and when it strikes.

    Attributes:
        share: Of how many subjects, from 0 to 1.
        number: The N of the fault's description.
        since: From which vendor second of the sandbox's life; `until` likewise, exclusive.
    """

    fault: Fault
    share: float = 1.0
    number: float = attrs.field()
    since: float = 0.0
    until: float = ALWAYS

    @number.default
    def _of_the_fault(self) -> float:
        return self.fault.number


@attrs.frozen(kw_only=True)
class FaultPlan:
    """Which faults befall whom.

    Attributes:
        rules: Hold for every subject, once the script is over.
        entries: The script: the first submit meets the first entry and nothing else, and so on.
        seed: Decides whom a share strikes.
    """

    rules: tuple[Rule, ...] = ()
    entries: tuple[tuple[Rule, ...], ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> Self:
        """Return the plan of a list such as ``drop-reply:1%,429:5%``.

        Raises:
            ValueError: As `parse_rules`.
        """
        return cls(rules=parse_rules(text), seed=seed)

    @classmethod
    def script(cls, entries: Iterable[Iterable[str]], *, then: str = "", seed: int = 0) -> Self:
        """Return a plan with one entry per submit, in order, and what holds afterwards.

        Args:
            entries: For each submit the faults that befall it; an empty list for none.
            then: A list as for `parse`.
            seed: As for the plan.

        Raises:
            ValueError: As `parse_rules`.
        """
        return cls(rules=parse_rules(then), entries=parse_entries(entries), seed=seed)

    @property
    def closes_the_door(self) -> bool:
        """Whether there is a rule that may turn away every call."""
        return any(rule.fault is Fault.MAINTENANCE for rule in self.rules)

    def for_submit(self, number: int, age: float, asked: Iterable[Rule] = ()) -> Struck:
        """Return the faults of the submit of this number, counted from 1, and of its task.

        Args:
            number: The submit's.
            age: Vendor seconds since the sandbox began.
            asked: What the submit itself asks for.
        """
        scripted = number <= len(self.entries)
        rules = self.entries[number - 1] if scripted else self.rules
        return self._struck([*rules, *asked], f"submit {number}", age)

    def for_call(self, place: Place, number: int, age: float, asked: Iterable[Rule] = ()) -> Struck:
        """Return the faults of a call that no task belongs to; arguments as for a submit."""
        rules = [rule for rule in (*self.rules, *asked) if rule.fault.place is place]
        return self._struck(rules, f"{place.name} {number}", age) if rules else {}

    def _struck(self, rules: Iterable[Rule], subject: str, age: float) -> Struck:
        return {
            rule.fault: rule.number
            for rule in rules
            if rule.since <= age < rule.until and self._strikes(rule, subject)
        }

    def _strikes(self, rule: Rule, subject: str) -> bool:
        if rule.share >= 1:
            return True
        # A draw of its own for each fault: naming one more fault leaves those of the others where they were.
        draw = random.Random(f"{self.seed} {rule.fault} {subject}")  # noqa: S311 - a sandbox guards nothing
        return draw.random() < rule.share


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read a list such as ``callback-missing:5%,455@30-90``; a name alone means always and everybody.

    Raises:
        ValueError: If a name is unknown or named twice, or a share, number or window is none.
    """
    rules = tuple(_parse_rule(part.strip()) for part in text.split(",") if text.strip())
    seen: set[Fault] = set()
    for rule in rules:
        if rule.fault in seen:
            raise ValueError(f"{rule.fault} is named twice in the faults")
        seen.add(rule.fault)
    return rules


def parse_entries(entries: Iterable[Iterable[str]]) -> tuple[tuple[Rule, ...], ...]:
    """Read a script: for each submit the names of its faults.

    Raises:
        ValueError: As `parse_rules`, or if an entry is a string, not several.
    """
    read = []
    for entry in entries:
        if isinstance(entry, str):
            raise ValueError(f"an entry of a script is a list of faults, not {entry!r}")  # noqa: TRY004
        read.append(parse_rules(",".join(map(str, entry))))
    return tuple(read)


def read_script(path: Path) -> list[list[str]]:
    """Read a script from JSON Lines: one list of names for each submit.

    Raises:
        ValueError: If the file cannot be read or a line is no list of names.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"the fault script {path} cannot be read: {error.strerror or error}") from None
    entries: list[list[str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(_read_entry(line))
        except ValueError as error:
            raise ValueError(f"line {number} of the fault script {path}: {error}") from None
    return entries


def _read_entry(line: str) -> list[str]:
    entry = json.loads(line)
    if not isinstance(entry, list) or not all(isinstance(name, str) for name in entry):
        raise ValueError("it is no list of names")
    parse_entries([entry])
    return entry


def asked_for(url: str) -> tuple[Rule, ...]:
    """Return what a URL asks for: ``?sandbox-fault=callback-missing,late-record=5``.

    Raises:
        ValueError: As `parse_rules`.
    """
    if PARAMETER not in url:
        return ()
    values = (value for name, value in parse_qsl(urlsplit(url).query) if name == PARAMETER)
    return parse_rules(",".join(values))


def _parse_rule(text: str) -> Rule:
    found = _RULE.fullmatch(text)
    assert found is not None  # noqa: S101 - the expression matches everything
    fault = parse_fault(found["name"].strip())
    return Rule(fault=fault, **dict(_options(fault, found.groupdict())))


def _options(fault: Fault, found: Mapping[str, str | None]) -> Iterator[tuple[str, float]]:
    if (number := found["number"]) is not None:
        yield "number", _parse_number(fault, number)
    if (share := found["share"]) is not None:
        yield "share", _parse_share(fault, share.strip())
    if (window := found["window"]) is not None:
        since, until = _parse_window(fault, window.strip())
        yield "since", since
        yield "until", until


def _parse_number(fault: Fault, text: str) -> float:
    value = _float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"the number of {fault} must be at least 0, as in {fault}=3, not {text!r}")
    return value


def _parse_share(fault: Fault, text: str) -> float:
    share = _float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= share <= 1:  # also refuses NaN
        raise ValueError(f"the share of {fault} must be like 5% or 0.05, from 0% to 100%, not {text!r}")
    return share


def _parse_window(fault: Fault, text: str) -> tuple[float, float]:
    since, dash, until = text.partition("-")
    begin, end = _float(since), _float(until) if until.strip() else ALWAYS
    if not (dash and 0 <= begin < end):
        raise ValueError(f"the window of {fault} must be like 30-90 or 30-, in vendor seconds, not {text!r}")
    return begin, end


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
