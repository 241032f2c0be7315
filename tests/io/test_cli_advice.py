"""Every advised command is run, and pays for nothing twice unless the advice says so."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async.cli.advice import AfterRun
from flux_async.cli.commands import cli
from flux_async.cli.report import read_report
from flux_async.cli.terminal import run_cli
from flux_async.testing import FluxSandbox

OK, OTHER = "https://example.com/ok.jpg", "https://example.com/other.jpg"
FAILS = "https://example.com/fails.jpg?sandbox-fault=fail-500"
LOST, LOST_TOO = (f"https://example.com/{name}.jpg?sandbox-fault=drop-reply" for name in ("lost", "too"))
LATE, LATER = (f"https://example.com/late.jpg?sandbox-fault=file-html={tries}" for tries in (2, 4))
IMPATIENT = ("--patience", "0.1")
QUICK = ("--rate", "20/0.2")
PAY_AGAIN = ("--failed", "--in-doubt", "--text-left", "--damaged", "resubmit")
SAYS_SO = re.compile(r"\bpay for another\b|\bsecond charge\b")


@attrs.frozen(kw_only=True)
class Case:
    """What is run, what happens, and which commands are then advised.

    Attributes:
        command: The command whose advice is tested.
        first: A command that is run before it.
        script: What befalls each submit, in order.
        faults: What befalls all.
        advised: The commands of its advice; KEY is the key of the image in doubt.
    """

    command: Sequence[str]
    first: Sequence[str] = ()
    script: Sequence[Sequence[str]] = ()
    faults: str = ""
    advised: Sequence[str] = ()


def remove(*images: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    return ("remove-text", *images, "-o", "out", *QUICK, *more)


def retry(*options: str) -> tuple[str, ...]:
    return ("retry", "out", *options, *QUICK)


RESUBMIT = ("--on-doubt", "resubmit")
ADOPT_OR_RESUBMIT = ("adopt out KEY TASK_ID", "retry out --in-doubt")
CASES = {
    "success": Case(command=remove(OK)),
    "failure": Case(command=remove(OK, FAILS), advised=("retry out --failed",)),
    "doubt": Case(command=remove(OK, LOST), advised=ADOPT_OR_RESUBMIT),
    "in doubt": Case(
        command=remove(LOST, LOST_TOO),
        advised=("status out", "adopt out JOB TASK_ID", "retry out --in-doubt"),
    ),
    "failure and doubt": Case(
        command=remove(FAILS, LOST), advised=("retry out --failed", *ADOPT_OR_RESUBMIT)
    ),
    "empty balance": Case(command=remove(OK, OTHER), script=[[], ["402"]], advised=("again",)),
    "budget": Case(command=remove(OK, OTHER, more=("--max-credits", "5")), advised=("again",)),
    "key refused": Case(command=remove(OK, OTHER), script=[[], ["401"]], advised=("rekey out", "again")),
    "key's cap": Case(command=remove(OK, OTHER), script=[[], ["433"]], advised=("rekey out", "again")),
    "feature off": Case(command=remove(OK, OTHER), script=[[], ["505"]], advised=("again",)),
    "resubmit: doubt": Case(command=remove(LOST, more=RESUBMIT), advised=ADOPT_OR_RESUBMIT),
    "resubmit: halted": Case(
        first=remove(LOST),
        command=remove(LOST, more=RESUBMIT),
        script=[["drop-reply"], ["402"]],
        advised=("without",),
    ),
    "retry: failure": Case(first=remove(FAILS), command=retry("--failed"), advised=("retry out --failed",)),
    "retry: doubt": Case(first=remove(LOST), command=retry("--in-doubt"), advised=ADOPT_OR_RESUBMIT),
    "retry: failure halted": Case(
        first=remove(FAILS), command=retry("--failed"), script=[[], ["402"]], advised=("without",)
    ),
    "retry: doubt halted": Case(
        first=remove(LOST),
        command=retry("--in-doubt"),
        script=[["drop-reply"], ["402"]],
        advised=("without",),
    ),
    "retry: both halted": Case(
        first=remove(FAILS, LOST),
        command=retry("--failed", "--in-doubt"),
        script=[["fail-500"], ["drop-reply"], ["401"]],
        advised=("rekey out", "without"),
    ),
    "resume: halted": Case(first=remove(OK), command=retry(), script=[["402"], ["402"]], advised=("again",)),
    "resume: doubt": Case(first=remove(LOST), command=retry(), advised=ADOPT_OR_RESUBMIT),
    "download failed": Case(command=remove(LATE, more=IMPATIENT), advised=("retry out", "again")),
    "retry: download failed": Case(
        first=remove(LATER, more=IMPATIENT),
        command=retry("--failed", *IMPATIENT),
        advised=("retry out", "without"),
    ),
    "single: refused poll": Case(
        command=("generate", "A lighthouse"), faults="poll-401", advised=("task TASK_ID --wait",)
    ),
}


@attrs.frozen
class Advice:
    """A command in the output, and the sentence that it stands in."""

    sentence: str
    words: tuple[str, ...]

    @property
    def consents(self) -> bool:
        """Whether it pays again for what is paid."""
        return any(word in PAY_AGAIN for word in self.words)


def advice_in(output: str, command: Sequence[str]) -> Iterator[Advice]:
    """Yield the commands that an output advises."""
    for sentence in re.split(r"(?<=\.)\s+(?=[A-Z])|\n", output):
        if "same command again" in sentence:
            yield Advice(sentence, tuple(command))
        if left_out := re.search(r"same command without (.*?) to resume", sentence):
            options = shlex.split(left_out[1].replace(" and ", " "))
            yield Advice(sentence, tuple(word for word in command if word not in options))
        for quoted in re.findall(r"`flux-async ([^`]*)`", sentence):
            yield Advice(sentence, tuple(shlex.split(quoted)))


@attrs.define
class Terminal:
    """Runs commands in this process, against a sandbox, and counts the tasks of each image."""

    sandbox: FluxSandbox
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, words: Sequence[str]) -> str:
        """Run a command; return what it printed to stderr."""
        self.monkeypatch.setattr(sys, "argv", ["flux-async", *words])
        self.capsys.readouterr()
        run_cli(cli)
        return self.capsys.readouterr().err

    def tasks(self) -> Counter[str]:
        """Return how many tasks there are of each image."""
        return Counter(str(task["image"]) for task in self.sandbox.record()["tasks"])

    def completed(self, advice: Advice) -> tuple[str, ...]:
        """Return the command with the id that its reader would find at the vendor."""
        ids = [str(task["taskId"]) for task in self.sandbox.record()["tasks"]]
        return tuple(ids[-1] if word == "TASK_ID" else word for word in advice.words)


@pytest.fixture
def terminal(
    request: pytest.FixtureRequest,
    make_cli: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Terminal]:
    case: Case = request.param
    with FluxSandbox(sockets=True, script=case.script, faults=case.faults, keys=("test", "other")) as sandbox:
        make_cli().teach_times()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KIE_BASE_URL", sandbox.url)
        monkeypatch.setenv("KIE_API_KEY", "test")
        monkeypatch.setenv("COLUMNS", "1000")
        yield Terminal(sandbox, monkeypatch, capsys)


def named(advice: Advice, case: Case) -> str:
    """Return a command as the table has it."""
    if advice.words == tuple(case.command):
        return "again"
    if "without" in advice.sentence:
        return "without"
    words = ["KEY" if re.fullmatch(r"[0-9a-f]{64}", word) else word for word in advice.words]
    return " ".join("TASK_ID" if re.fullmatch(r"[0-9a-f]{32}", word) else word for word in words)


@pytest.mark.parametrize(
    ("terminal", "case"),
    [pytest.param(case, case, id=name) for name, case in CASES.items()],
    indirect=["terminal"],
)
def test_advice_pays_for_nothing_twice_without_saying_so(terminal: Terminal, case: Case) -> None:
    """Each advised command is run: an image has one task, and one more for each command that announces it."""
    consents = 0
    for words in filter(None, (case.first, case.command)):
        told = terminal.run(words)
        consents += any(word in PAY_AGAIN for word in words)
    found = list(advice_in(told, case.command))
    assert [named(advice, case) for advice in found] == list(case.advised), told
    for advice in found:
        assert advice.consents <= bool(SAYS_SO.search(advice.sentence)), advice
        consents += advice.consents
        if advice.words[0] == "rekey":
            terminal.monkeypatch.setenv("KIE_API_KEY", "other")
        ended = terminal.run(terminal.completed(advice))
        assert "Usage" not in ended, ended
        assert "Traceback" not in ended, ended
        assert max(terminal.tasks().values()) <= 1 + consents, (advice, ended)


@pytest.mark.parametrize("terminal", [Case(command=())], indirect=True, ids=["report"])
def test_commands_of_the_report_pay_for_nothing_twice_without_saying_so(terminal: Terminal) -> None:
    """Each is run; what it pays for again is what its sentence says."""
    terminal.run(remove(OK, FAILS, LOST))
    paid_again = {}
    for name, step in read_report(Path("out")).head.next_steps.items():
        if step.command is not None:
            before = terminal.tasks()
            told = terminal.run((*shlex.split(step.command)[1:], *QUICK))
            assert "Usage" not in told, told
            paid_again[name.value] = sorted(terminal.tasks() - before)
            says_so = re.search(r"^Pays for another|\bsecond charge\b", step.words)
            assert bool(paid_again[name.value]) <= bool(says_so), step
    assert {name: images for name, images in paid_again.items() if images} == {
        "failed": [FAILS],
        "in_doubt": [LOST],
    }
    assert "pending" in paid_again


@pytest.mark.parametrize(
    "terminal",
    [Case(command=(), script=[[], ["401"]])],
    indirect=True,
    ids=["second submit refused"],
)
def test_paid_work_survives_a_replaced_key(terminal: Terminal) -> None:
    """The new key is refused with advice; rekey prints its evidence; then each image is paid once."""
    command = remove(OK, OTHER)
    halted = terminal.run(command)
    assert "run `flux-async rekey out` first" in halted
    assert "own" not in halted

    terminal.monkeypatch.setenv("KIE_API_KEY", "other")
    refused = terminal.run(command)
    assert refused.startswith("Error: This journal holds the tasks of another key or address.")
    assert "run `flux-async rekey out` first" in refused
    assert sum(terminal.tasks().values()) == 1

    terminal.monkeypatch.setenv("KIE_API_KEY", "wrong")
    assert "rekey" not in terminal.run(["rekey", "out"])
    terminal.monkeypatch.setenv("KIE_API_KEY", "other")
    found = terminal.run(["rekey", "out"])
    assert re.match(r"The new key can read task \w{32}, which was paid with the old one", found), found
    assert "2" in terminal.run(command)
    assert terminal.tasks() == Counter([OK, OTHER])


@pytest.mark.parametrize("terminal", [Case(command=(), faults="drop-reply")], indirect=True, ids=["doubt"])
def test_rekey_without_evidence_needs_yes(terminal: Terminal) -> None:
    """Images in doubt have no task: --yes is required, and enough; a bad key is not."""
    terminal.run(remove(OK))
    terminal.monkeypatch.setenv("KIE_API_KEY", "wrong")
    assert "401" in terminal.run(["rekey", "out", "--yes"])
    terminal.monkeypatch.setenv("KIE_API_KEY", "other")
    asked = terminal.run(["rekey", "out"])
    assert "Nothing shows that this key is of the account that paid" in asked
    assert "add --yes" in asked
    assert "you say that it is" in terminal.run(["rekey", "out", "--yes"])
    assert "belongs to this key already" in terminal.run(["rekey", "out"])


@pytest.mark.parametrize("terminal", [Case(command=(), faults="slow-reply")], indirect=True, ids=["slow"])
def test_a_task_whose_caller_did_not_wait_for_it_is_named(terminal: Terminal) -> None:
    """A deadline that passes while the submit is on the wire: the task that comes of it is named."""
    told = terminal.run(["generate", "A lighthouse", "--timeout", "0.5"])
    assert told.count("was submitted and is paid: wait for it with `flux-async task") == len(terminal.tasks())
    assert "client." not in told


def test_a_folder_keeps_its_name_in_a_command() -> None:
    """A folder with a space or an apostrophe can be pasted as it is printed."""
    printed = AfterRun(folder=Path("it's mine"), failed=1).lines()
    (advice,) = advice_in(printed[0], ())
    assert advice.words == ("retry", "it's mine", "--failed")


@pytest.mark.parametrize(
    ("repeats", "told"),
    [
        ((), "Run the same command again to resume; nothing is paid twice."),
        (("--failed", "--in-doubt"), "Run the same command without --failed and --in-doubt to resume"),
        (
            ("--text-left", "--damaged", "--model"),
            "Run the same command without --text-left, --damaged and --model",
        ),
    ],
)
def test_an_interrupted_command_is_resumed_without_what_pays_again(repeats: Any, told: str) -> None:
    """Also where nothing is left that the command could count."""
    (line,) = AfterRun(folder=Path("out"), repeats=repeats, interrupted=True).lines()
    assert line.startswith(told)


def test_advice_for_an_image_in_doubt_contains_key_and_task() -> None:
    """Its key, and the task that an odd answer named."""
    (line,) = AfterRun(folder=Path("out"), doubts=1, only_doubt=("cat.jpg", "t1")).lines()
    assert "`flux-async adopt out cat.jpg t1`" in line
    (line,) = AfterRun(folder=Path("out"), doubts=1, only_doubt=("cat.jpg", None)).lines()
    assert "`flux-async adopt out cat.jpg TASK_ID`" in line
