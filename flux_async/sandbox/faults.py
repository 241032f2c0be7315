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
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

import attrs


class Target(enum.StrEnum):
    """What a fault strikes, in the order of a task's life."""

    CALL = "every call"
    SUBMIT = "a submit, before there is a task"
    REPLY = "the answer to a submit, after the charge"
    POLL = "the answers of record-info"
    RECORD = "what is written in a record"
    END = "how a task ends"
    RESULT = "what the result shows"
    FILE = "the result's link"
    LINK = "the fresh link"
    CREDITS = "the answer of credit"
    UPLOAD = "an upload"
    CALLBACK = "the callback"


ALWAYS: Final = math.inf


class Fault(enum.StrEnum):
    """One thing that goes wrong; its value is its name in ``--faults``. Seconds are the vendor's.

    Attributes:
        target: What it strikes.
        description: What it does, in one sentence.
        number: The default for N of the sentence.
    """

    target: Target
    description: str
    number: float

    def __new__(cls, name: str, target: Target, description: str, number: float = ALWAYS) -> Self:
        """Return the member with these attributes."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.target = target
        member.description = description
        member.number = number
        return member

    # Every call
    MAINTENANCE = "maintenance", Target.CALL, "Every call of the API is answered 455."
    KEY_DISABLED = "key-disabled", Target.CALL, "After N submits the key is answered 401 always.", 0
    BALANCE_OUT = "balance-out", Target.CALL, "After N tasks the balance drops to nothing.", 0

    # A submit, before there is a task: N is how many submits of one image it strikes
    DROP_REQUEST = "drop-request", Target.SUBMIT, "The connection closes before the submit is read."
    HTTP_429 = "http-429", Target.SUBMIT, "The submit is refused with HTTP 429, without Retry-After."
    ENVELOPE_429 = "envelope-429", Target.SUBMIT, "The submit is refused with HTTP 200 and code 429."
    REFUSE_400 = "400", Target.SUBMIT, "The submit is refused with code 400, for what it asks."
    REFUSE_401 = "401", Target.SUBMIT, "The submit is refused with code 401, as if the key were wrong."
    REFUSE_402 = "402", Target.SUBMIT, "The submit is refused with code 402, as if the balance were empty."
    REFUSE_403 = "403", Target.SUBMIT, "The submit is refused with HTTP 403 and a line of text."
    REFUSE_404 = "404", Target.SUBMIT, "The submit is refused with HTTP 404 and an HTML page."
    REFUSE_422 = "422", Target.SUBMIT, "The submit is refused with code 422, for a parameter."
    REFUSE_433 = "433", Target.SUBMIT, "The submit is refused with code 433, as if the key's cap were hit."
    REFUSE_455 = "455", Target.SUBMIT, "The submit is refused with code 455, for maintenance."
    REFUSE_500 = "500", Target.SUBMIT, "The submit is answered with code 500; no task is made."
    REFUSE_502 = "502", Target.SUBMIT, "The submit is answered with HTTP 502 and HTML; no task is made."
    REFUSE_505 = "505", Target.SUBMIT, "The submit is refused with code 505, as if the feature were off."

    # The answer to a submit, after the charge
    DROP_REPLY = "drop-reply", Target.REPLY, "The task is made and paid; the connection closes."
    PAID_500 = "500-paid", Target.REPLY, "The task is made and paid; the answer is code 500."
    PAID_502 = "502-paid", Target.REPLY, "The task is made and paid; the answer is HTTP 502 and HTML."
    TRUNCATED_REPLY = "truncated-reply", Target.REPLY, "The task is made and paid; the answer is half JSON."
    NO_TASK_ID = "no-task-id", Target.REPLY, "The task is made and paid; the answer is 200 without its id."
    SLOW_REPLY = "slow-reply", Target.REPLY, "The task is made and paid; the answer takes N seconds.", 90
    DRIPPING_REPLY = (
        "dripping-reply",
        Target.REPLY,
        "The task is made and paid; the answer comes one byte every N seconds.",
        2,
    )
    OVERCHARGE = "overcharge", Target.REPLY, "The task costs N times its price.", 11
    CODE_AS_TEXT = "code-as-text", Target.REPLY, 'In every answer about the task the code is a string: "200".'
    MESSAGE_KEY = "message-key", Target.REPLY, "In every answer about the task msg is called message."

    # Polls: N is how many polls of one task it strikes
    LATE_RECORD = "late-record", Target.POLL, "For N seconds the record does not exist: code 422.", 20
    LATE_RECORD_NULL = "late-record-null", Target.POLL, "For N seconds the record is null, with code 200.", 20
    LATE_RECORD_404 = "late-record-404", Target.POLL, "For N seconds HTTP and code are 404: not found.", 20
    POLL_401 = "poll-401", Target.POLL, "Polls are answered with code 401, as if the key were wrong."
    POLL_429 = "poll-429", Target.POLL, "The first N polls are answered with HTTP 429.", 2
    POLL_455 = "poll-455", Target.POLL, "The first N polls are answered with code 455, for maintenance.", 2
    POLL_500 = "poll-500", Target.POLL, "The first N polls are answered with code 500.", 2
    POLL_502 = "poll-502", Target.POLL, "The first N polls are answered with HTTP 502 and HTML.", 2
    POLL_HTML = "poll-html", Target.POLL, "The first N polls are answered with HTTP 200 and HTML.", 2
    POLL_DROP = "poll-drop", Target.POLL, "The connection closes unanswered at the first N polls.", 2
    POLL_TRUNCATED = "poll-truncated", Target.POLL, "The first N polls are answered with half of the JSON.", 2
    POLL_OTHER = "poll-other", Target.POLL, "The first N polls return the record of another task.", 2

    # Fields of a record
    FLAG_MISSING = (
        "flag-missing",
        Target.RECORD,
        "Until the task ends, successFlag and state are missing.",
    )
    FLAG_NULL = "flag-null", Target.RECORD, "Until the task ends, successFlag and state are null."
    FLAG_UNKNOWN = "flag-unknown", Target.RECORD, "Until the task ends, successFlag and state are 9."
    FLAG_AS_TEXT = "flag-as-text", Target.RECORD, 'successFlag is a string: "1".'
    ERROR_AS_TEXT = "error-as-text", Target.RECORD, 'errorCode is a string: "500", or "null" for none.'
    TIMES_ISO = "times-iso", Target.RECORD, "Times are ISO 8601 in UTC, as the API page shows them."
    TIMES_SECONDS = "times-seconds", Target.RECORD, "Times are seconds since the epoch, not milliseconds."
    TIMES_SPACED = "times-spaced", Target.RECORD, 'Times are written "2026-01-06 08:17:04".'
    TIMES_NULL = "times-null", Target.RECORD, "Times are null."
    PARAMS_MISSING = "params-missing", Target.RECORD, "The echo of the request is missing."
    PARAMS_INVALID = (
        "params-invalid",
        Target.RECORD,
        "The echo of the request is cut off, so it is no JSON.",
    )
    NO_URL = "no-url", Target.RECORD, "The task succeeds, but its links are empty strings."
    NO_RESPONSE = "no-response", Target.RECORD, "The task succeeds, but response stays null."
    URL_IN_DATA = "url-in-data", Target.RECORD, "The links are in data itself, and response is null."
    URL_IN_LIST = "url-in-list", Target.RECORD, "The result's link is in response.resultUrls only."
    RESPONSE_AS_TEXT = "response-as-text", Target.RECORD, "response is a string that holds the JSON object."
    RESPONSE_AS_URL = "response-as-url", Target.RECORD, "response is the result's link, as a bare string."

    # The end of a task
    FAIL_400 = "fail-400", Target.END, "The task fails with errorCode 400, for its content; refunded."
    FAIL_500 = "fail-500", Target.END, "The task fails with errorCode 500; refunded."
    FAIL_501 = "fail-501", Target.END, "The task fails with errorCode 501; refunded."
    FAIL_CREATE = "fail-create", Target.END, "The task ends with successFlag 2, never begun; refunded."
    FAIL_ENVELOPE = "fail-envelope", Target.END, "The task fails; record-info returns code 501 without data."
    NO_REFUND = "no-refund", Target.END, "If the task fails, its credits are kept."
    TIMEOUT_FLIPS = (
        "timeout-flips",
        Target.END,
        "The task fails with a time-out, and succeeds after N seconds.",
        60,
    )
    NEVER_ENDS = "never-ends", Target.END, "The task stays GENERATING forever."

    # What the result shows
    TEXT_LEFT = "text-left", Target.RESULT, "The text is still in the result."
    HALLUCINATE = "hallucinate", Target.RESULT, "The result shows an object that the image does not have."
    CROP = "crop", Target.RESULT, "A third of the image is cut off, where most of the text was."

    # The result's link: N is how many downloads it strikes; a fresh link always works
    EXPIRED_RESULT = "expired-result", Target.FILE, "The result is gone at once: 404, and no fresh link."
    FILE_403 = "file-403", Target.FILE, "The result's link answers 403; a fresh link works."
    FILE_404 = "file-404", Target.FILE, "The result's link answers 404; a fresh link works."
    FILE_HTML = "file-html", Target.FILE, "The result's link answers 200 with an HTML page."
    FILE_TRUNCATED = "file-truncated", Target.FILE, "The result and its connection end half way."
    FILE_WRONG_TYPE = "file-wrong-type", Target.FILE, "The result is called application/octet-stream."
    FILE_JPEG_AS_PNG = "file-jpeg-as-png", Target.FILE, "The result is a JPEG whose name ends in .png."
    FILE_REDIRECT = "file-redirect", Target.FILE, "The result's link redirects to a private address."

    # The fresh link
    LINK_REFUSED = "link-refused", Target.LINK, "No fresh link is given: code 422, url is wrong."

    # Calls without a task
    CREDITS_INTEGER = "credits-integer", Target.CREDITS, "The balance is an integer, rounded down."
    CREDITS_AS_TEXT = "credits-as-text", Target.CREDITS, "The balance is a string."
    UPLOAD_DOWN = "upload-down", Target.UPLOAD, "The upload host answers HTTP 503 and HTML."
    UPLOAD_500 = "upload-500", Target.UPLOAD, "The upload is refused with HTTP 500."
    UPLOAD_REFUSED = "upload-refused", Target.UPLOAD, "The upload is answered with HTTP 200, success false."

    # The callback
    CALLBACK_MISSING = "callback-missing", Target.CALLBACK, "No callback is sent."
    CALLBACK_DUPLICATE = "callback-duplicate", Target.CALLBACK, "The callback is delivered three times."
    CALLBACK_LATE = (
        "callback-late",
        Target.CALLBACK,
        "The callback leaves N seconds after the task's end.",
        120,
    )
    CALLBACK_EARLY = (
        "callback-early",
        Target.CALLBACK,
        "The only callback comes before the answer to the submit, and claims a success.",
    )
    CALLBACK_FORGED = (
        "callback-forged",
        Target.CALLBACK,
        "A callback with a wrong signature and another result comes first.",
    )
    CALLBACK_REPLAYED = (
        "callback-replayed",
        Target.CALLBACK,
        "After the true callback its signature is delivered again, over another result.",
    )
    CALLBACK_STALE = "callback-stale", Target.CALLBACK, "The only callback is signed as of ten minutes ago."
    CALLBACK_WRONG_ID = "callback-wrong-id", Target.CALLBACK, "The only callback names an unknown task."
    CALLBACK_UNSIGNED = "callback-unsigned", Target.CALLBACK, "The callback comes without signature headers."


ActiveFaults = Mapping[Fault, float]
"""The faults that strike one request or task, each with its N."""

PARAMETER: Final = "sandbox-fault"
HEADER: Final = "X-Sandbox-Fault"

FAULTS_BY_NAME: Final[Mapping[str, Fault]] = {fault.value: fault for fault in Fault} | {"429": Fault.HTTP_429}
_RULE: Final = re.compile(r"(?P<name>[^=:@]*)(=(?P<number>[^:@]*))?(:(?P<share>[^@]*))?(@(?P<window>.*))?")


def list_of_faults() -> str:
    """Return all faults and their descriptions, for a terminal."""
    lines: list[str] = []
    for target in Target:
        lines += ["", f"{target.value[0].upper()}{target.value[1:]}"]
        for fault in (fault for fault in Fault if fault.target is target):
            default = "" if fault.number == ALWAYS else f" [N: {fault.number:g}]"
            lines.append(f"  {fault.value:<19}{fault.description}{default}")
    return "\n".join([*lines[1:], ""])


@attrs.frozen(kw_only=True)
class Rule:
    """One fault, and when it strikes.

    Attributes:
        share: The share of requests that it strikes, from 0 to 1.
        number: The N of the fault's description.
        since: First vendor second of the sandbox's life in which it strikes; `until` is the first without.
    """

    fault: Fault
    share: float = 1.0
    number: float = attrs.Factory(lambda rule: rule.fault.number, takes_self=True)
    since: float = 0.0
    until: float = ALWAYS


@attrs.frozen(kw_only=True)
class FaultPlan:
    """Decides which faults strike which request.

    Attributes:
        rules: Apply to every request after the script.
        entries: The script: the first submit meets the faults of the first entry and no others, and so on.
        seed: Decides which requests a share strikes.
    """

    rules: tuple[Rule, ...] = ()
    entries: tuple[tuple[Rule, ...], ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> Self:
        """Return the plan of a list such as ``drop-reply:1%,429:5%``; errors as `parse_rules`."""
        return cls(rules=parse_rules(text), seed=seed)

    @classmethod
    def script(cls, entries: Iterable[Iterable[str]], *, then: str = "", seed: int = 0) -> Self:
        """Return a plan with one list of faults for each submit, in order; errors as `parse_rules`.

        After the script, `then` applies, a list as for `parse`.
        """
        return cls(rules=parse_rules(then), entries=parse_entries(entries), seed=seed)

    @property
    def includes_maintenance(self) -> bool:
        """Whether a rule may refuse every call."""
        return any(rule.fault is Fault.MAINTENANCE for rule in self.rules)

    def for_submit(self, number: int, age: float, asked: Iterable[Rule] = ()) -> ActiveFaults:
        """Return the faults of a submit and of its task.

        Args:
            number: The number of the submit, counted from 1.
            age: Vendor seconds since the sandbox began.
            asked: The rules that the submit itself asks for.
        """
        rules = self.entries[number - 1] if number <= len(self.entries) else self.rules
        return self._active([*rules, *asked], f"submit {number}", age)

    def for_call(self, target: Target, number: int, age: float, asked: Iterable[Rule] = ()) -> ActiveFaults:
        """Return the faults of a call without a task; arguments as for a submit."""
        rules = [rule for rule in (*self.rules, *asked) if rule.fault.target is target]
        return self._active(rules, f"{target.name} {number}", age)

    def _active(self, rules: Iterable[Rule], subject: str, age: float) -> ActiveFaults:
        active = (rule for rule in rules if rule.since <= age < rule.until)
        return {rule.fault: rule.number for rule in active if self._strikes(rule, subject)}

    def _strikes(self, rule: Rule, subject: str) -> bool:
        if rule.share >= 1:
            return True
        # One draw for each fault: one more fault in the list leaves those of the others where they were.
        draw = random.Random(f"{self.seed} {rule.fault} {subject}")  # noqa: S311 - a sandbox guards nothing
        return draw.random() < rule.share


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Parse a list such as ``callback-missing:5%,455@30-90``; a name alone strikes every request.

    Raises:
        ValueError: A name is unknown or stands twice, or a share, number or window is invalid.
    """
    rules = tuple(_parse_rule(part.strip()) for part in text.split(",") if text.strip())
    for fault, count in Counter(rule.fault for rule in rules).items():
        if count > 1:
            raise ValueError(f"{fault} is named twice in the faults")
    return rules


def parse_entries(entries: Iterable[Iterable[str]]) -> tuple[tuple[Rule, ...], ...]:
    """Parse a script: for each submit the names of its faults.

    Raises:
        ValueError: As `parse_rules`, or an entry is a string.
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
        ValueError: The file cannot be read, or a line is not a list of names.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"the fault script {path} cannot be read: {error.strerror or error}") from None
    entries: list[list[str]] = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                entries.append(_read_entry(line))
        except ValueError as error:
            raise ValueError(f"line {number} of the fault script {path}: {error}") from None
    return entries


def _read_entry(line: str) -> list[str]:
    entry = json.loads(line)
    if not isinstance(entry, list) or not all(isinstance(name, str) for name in entry):
        raise ValueError("not a list of names")
    parse_entries([entry])
    return entry


def faults_of_url(url: str) -> tuple[Rule, ...]:
    """Return the faults that a URL asks for: ``?sandbox-fault=callback-missing,late-record=5``.

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
    name = found["name"].strip()
    if name not in FAULTS_BY_NAME:
        raise ValueError(f"unknown fault {name!r}; known are {', '.join(Fault)}")
    fault, options = FAULTS_BY_NAME[name], {}
    if (number := found["number"]) is not None:
        options["number"] = value = _float(number)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"the number of {fault} must be at least 0, as in {fault}=3, not {number!r}")
    if (share := found["share"]) is not None:
        share = share.strip()
        options["share"] = value = _float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
        if not 0 <= value <= 1:  # also refuses NaN
            raise ValueError(f"the share of {fault} must be like 5% or 0.05, from 0% to 100%, not {share!r}")
    if (window := found["window"]) is not None:
        since, dash, until = window.strip().partition("-")
        begin, end = _float(since), _float(until) if until.strip() else ALWAYS
        if not (dash and 0 <= begin < end):
            raise ValueError(
                f"the window of {fault} must be like 30-90 or 30-, in vendor seconds, not {window.strip()!r}"
            )
        options |= {"since": begin, "until": end}
    return Rule(fault=fault, **options)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
