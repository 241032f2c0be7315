"""Every fault of the sandbox, and the plan that decides which submit, task or call it strikes.

A rule is written ``name=N:share@from-to``; all but the name may be left out. ``http-429=1:5%@30-90`` strikes
one in twenty submits, if it is the first of its image, in vendor seconds 30 to 90 of the sandbox's life.
What a fault makes of an answer is in `flux_async.sandbox.fault_replies`.
"""

from __future__ import annotations

import enum
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

import attrs


class Place(enum.StrEnum):
    """What a fault spoils, in the order of a task's life."""

    DOOR = "every call"
    GATE = "a submit, before there is a task"
    REPLY = "the answer to a submit, after the charge"
    LOOK = "the answers of record-info"
    RECORD = "what is written in a record"
    END = "how a task ends"
    FILE = "the result's link"
    LINK = "the fresh link"
    BALANCE = "the answer of credit"
    UPLOAD = "an upload"
    CALLBACK = "the callback"


ALWAYS: Final = math.inf


class Fault(enum.StrEnum):
    """One thing that goes wrong; its value is its name in ``--faults``.

    Attributes:
        place: What it spoils.
        description: What it does, in one sentence.
        number: The N of the sentence, where nobody gives another.
    """

    place: Place
    description: str
    number: float

    def __new__(cls, name: str, place: Place, description: str, number: float = ALWAYS) -> Self:
        """Make a member of its name, its place and what it does."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.place = place
        member.description = description
        member.number = number
        return member

    # Every call
    MAINTENANCE = "maintenance", Place.DOOR, "Every call of the API is answered 455."
    KEY_DISABLED = "key-disabled", Place.DOOR, "After N submits the key is answered 401, whatever it asks.", 0
    BALANCE_OUT = "balance-out", Place.DOOR, "After N tasks the balance drops to nothing.", 0

    # A submit, before there is a task: N is how many submits of one image it strikes
    DROP_REQUEST = "drop-request", Place.GATE, "The connection closes before the submit is looked at."
    HTTP_429 = "http-429", Place.GATE, "The submit is refused with HTTP 429, without Retry-After."
    ENVELOPE_429 = "envelope-429", Place.GATE, "The submit is refused with HTTP 200 and code 429."
    REFUSE_400 = "400", Place.GATE, "The submit is refused with code 400, for what it asks."
    REFUSE_401 = "401", Place.GATE, "The submit is refused with code 401, as if the key were wrong."
    REFUSE_402 = "402", Place.GATE, "The submit is refused with code 402, as if the balance were empty."
    REFUSE_403 = "403", Place.GATE, "The submit is refused with HTTP 403 and a line of text, at the door."
    REFUSE_404 = "404", Place.GATE, "The submit is refused with HTTP 404 and an HTML page."
    REFUSE_422 = "422", Place.GATE, "The submit is refused with code 422, for a parameter."
    REFUSE_433 = "433", Place.GATE, "The submit is refused with code 433, as if the key's cap were reached."
    REFUSE_455 = "455", Place.GATE, "The submit is refused with code 455, for maintenance."
    REFUSE_500 = "500", Place.GATE, "The submit is answered with code 500, and no task is made."
    REFUSE_502 = "502", Place.GATE, "The submit is answered with HTTP 502 and HTML, and no task is made."
    REFUSE_505 = "505", Place.GATE, "The submit is refused with code 505, as if the feature were off."

    # The answer to a submit, after the charge
    DROP_REPLY = "drop-reply", Place.REPLY, "The task is made and paid, then the connection closes."
    PAID_500 = "500-paid", Place.REPLY, "The task is made and paid, and the answer is code 500."
    PAID_502 = "502-paid", Place.REPLY, "The task is made and paid, and the answer is HTTP 502 and HTML."
    TRUNCATED_REPLY = (
        "truncated-reply",
        Place.REPLY,
        "The task is made and paid, and the JSON of the answer breaks off in the middle.",
    )
    NO_TASK_ID = "no-task-id", Place.REPLY, "The task is made and paid, and the answer is 200 without its id."
    SLOW_REPLY = "slow-reply", Place.REPLY, "The task is paid; the answer takes N vendor seconds.", 90
    DRIPPING_REPLY = (
        "dripping-reply",
        Place.REPLY,
        "The task is made and paid, and the answer comes one byte every N vendor seconds.",
        2,
    )
    CODE_AS_TEXT = "code-as-text", Place.REPLY, 'In all answers about the task, the code is a string: "200".'
    MESSAGE_KEY = "message-key", Place.REPLY, "In all answers about the task, msg is called message."

    # Looks at the record: N is how many looks at one task it strikes
    LATE_RECORD = (
        "late-record",
        Place.LOOK,
        "For N vendor seconds the record does not exist: code 422.",
        20,
    )
    LATE_RECORD_NULL = (
        "late-record-null",
        Place.LOOK,
        "For N vendor seconds the record is null, with code 200.",
        20,
    )
    LATE_RECORD_404 = (
        "late-record-404",
        Place.LOOK,
        "For N vendor seconds the record is not found: HTTP and code 404.",
        20,
    )
    POLL_401 = "poll-401", Place.LOOK, "Looks are answered with code 401, as if the key were wrong."
    POLL_429 = "poll-429", Place.LOOK, "The first N looks are answered with HTTP 429.", 2
    POLL_455 = "poll-455", Place.LOOK, "The first N looks are answered with code 455, for maintenance.", 2
    POLL_500 = "poll-500", Place.LOOK, "The first N looks are answered with code 500.", 2
    POLL_502 = "poll-502", Place.LOOK, "The first N looks are answered with HTTP 502 and HTML.", 2
    POLL_HTML = "poll-html", Place.LOOK, "The first N looks are answered with HTTP 200 and an HTML page.", 2
    POLL_DROP = "poll-drop", Place.LOOK, "At the first N looks the connection closes unanswered.", 2
    POLL_TRUNCATED = "poll-truncated", Place.LOOK, "At the first N looks the JSON breaks off.", 2
    POLL_OTHER = "poll-other", Place.LOOK, "The first N looks show the record of another task.", 2

    # What is written in a record
    FLAG_MISSING = "flag-missing", Place.RECORD, "While the task is generating, successFlag is missing."
    FLAG_NULL = "flag-null", Place.RECORD, "While the task is generating, successFlag is null."
    FLAG_UNKNOWN = "flag-unknown", Place.RECORD, "While the task is generating, successFlag is 9."
    FLAG_AS_TEXT = "flag-as-text", Place.RECORD, 'successFlag is a string: "1".'
    ERROR_AS_TEXT = "error-as-text", Place.RECORD, 'errorCode is a string: "500", or "null" for none.'
    TIMES_ISO = "times-iso", Place.RECORD, "Times are ISO 8601 in UTC, as the API page shows them."
    TIMES_SECONDS = "times-seconds", Place.RECORD, "Times are seconds since the epoch, not milliseconds."
    TIMES_SPACED = "times-spaced", Place.RECORD, 'Times are written "2026-01-06 08:17:04".'
    TIMES_NULL = "times-null", Place.RECORD, "Times are null."
    PARAMS_MISSING = "params-missing", Place.RECORD, "paramJson is missing."
    PARAMS_INVALID = "params-invalid", Place.RECORD, "paramJson is cut off, so that it is no JSON."
    NO_URL = "no-url", Place.RECORD, "The task succeeds, but its links are empty strings."
    NO_RESPONSE = "no-response", Place.RECORD, "The task succeeds, but response stays null."
    URL_IN_DATA = "url-in-data", Place.RECORD, "The links stand in data itself, and response is null."
    URL_IN_LIST = "url-in-list", Place.RECORD, "The result's link stands in response.resultUrls only."
    RESPONSE_AS_TEXT = "response-as-text", Place.RECORD, "response is a string that holds the JSON object."
    RESPONSE_AS_URL = "response-as-url", Place.RECORD, "response is the result's link, as a bare string."

    # How a task ends
    FAIL_400 = "fail-400", Place.END, "The task fails with errorCode 400, for its content; refunded."
    FAIL_500 = "fail-500", Place.END, "The task fails with errorCode 500; refunded."
    FAIL_501 = "fail-501", Place.END, "The task fails with errorCode 501; refunded."
    FAIL_CREATE = "fail-create", Place.END, "The task ends with successFlag 2, never begun; refunded."
    FAIL_ENVELOPE = (
        "fail-envelope",
        Place.END,
        "The task fails; record-info says so with code 501, without data.",
    )
    NO_REFUND = "no-refund", Place.END, "If the task fails, its credits are kept."
    TIMEOUT_FLIPS = (
        "timeout-flips",
        Place.END,
        "The task fails, worded as a time-out, and N vendor seconds later it has succeeded.",
        60,
    )
    NEVER_ENDS = "never-ends", Place.END, "The task stays GENERATING for ever."

    # The result's link: N is how many fetches of it are spoiled; a fresh link is always good
    EXPIRED_RESULT = (
        "expired-result",
        Place.FILE,
        "The result is gone at once: its link is 404, none is fresh.",
    )
    FILE_403 = "file-403", Place.FILE, "The result's link answers 403; a fresh link works."
    FILE_404 = "file-404", Place.FILE, "The result's link answers 404; a fresh link works."
    FILE_HTML = "file-html", Place.FILE, "The result's link answers 200 with an HTML page."
    FILE_TRUNCATED = "file-truncated", Place.FILE, "The result breaks off half way, with the connection."
    FILE_WRONG_TYPE = "file-wrong-type", Place.FILE, "The result is called application/octet-stream."
    FILE_JPEG_AS_PNG = "file-jpeg-as-png", Place.FILE, "The result is a JPEG, under a name that ends in .png."
    FILE_REDIRECT = "file-redirect", Place.FILE, "The result's link redirects to a private address."
    LINK_REFUSED = "link-refused", Place.LINK, "No fresh link is given: code 422, url is wrong."

    # Calls that no task belongs to
    CREDITS_INTEGER = "credits-integer", Place.BALANCE, "The balance is an integer, rounded down."
    CREDITS_AS_TEXT = "credits-as-text", Place.BALANCE, "The balance is a string."
    UPLOAD_DOWN = "upload-down", Place.UPLOAD, "The upload host answers HTTP 503 and HTML."
    UPLOAD_500 = "upload-500", Place.UPLOAD, "The upload is refused with HTTP 500."
    UPLOAD_REFUSED = "upload-refused", Place.UPLOAD, "The upload is answered with HTTP 200 and success false."

    # The callback
    CALLBACK_MISSING = "callback-missing", Place.CALLBACK, "No callback is sent."
    CALLBACK_DUPLICATE = "callback-duplicate", Place.CALLBACK, "The callback is delivered three times."
    CALLBACK_LATE = (
        "callback-late",
        Place.CALLBACK,
        "The first delivery leaves N vendor seconds after the task's end.",
        120,
    )
    CALLBACK_EARLY = (
        "callback-early",
        Place.CALLBACK,
        "The only callback comes before the reply to the submit, and claims a success.",
    )
    CALLBACK_FORGED = (
        "callback-forged",
        Place.CALLBACK,
        "Before the true callback one is delivered with a wrong signature and another result.",
    )
    CALLBACK_REPLAYED = (
        "callback-replayed",
        Place.CALLBACK,
        "After the true callback its signature is delivered again, over another result.",
    )
    CALLBACK_STALE = "callback-stale", Place.CALLBACK, "The only callback is signed as of ten minutes ago."
    CALLBACK_WRONG_ID = (
        "callback-wrong-id",
        Place.CALLBACK,
        "The only callback names, and signs, a task that does not exist.",
    )
    CALLBACK_UNSIGNED = "callback-unsigned", Place.CALLBACK, "The callback comes without signature headers."


Struck = Mapping[Fault, float]
"""The faults that befall one subject, each with its N."""

_ALIASES: Final = {"429": Fault.HTTP_429}
_BY_NAME: Final[Mapping[str, Fault]] = {fault.value: fault for fault in Fault} | _ALIASES


def parse_fault(name: str) -> Fault:
    """Return the fault of a name.

    Raises:
        ValueError: If there is none; the message lists those there are.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown fault {name!r}; known are {', '.join(Fault)}")
    return _BY_NAME[name]


def list_of_faults() -> str:
    """Return all faults with what they do, for a terminal."""
    lines: list[str] = []
    for place in Place:
        members = [fault for fault in Fault if fault.place is place]
        lines += ["", f"{place.value[0].upper()}{place.value[1:]}"]
        lines += [f"  {fault.value:<19}{fault.description}{_default(fault)}" for fault in members]
    return "\n".join([*lines[1:], ""])


def _default(fault: Fault) -> str:
    return "" if fault.number == ALWAYS else f" [N: {fault.number:g}]"


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
