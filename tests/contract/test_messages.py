"""Messages advise what their reader can do: commands at the command line, calls in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import flux_async
from flux_async import ClientClosed, FluxError, WrongEventLoop
from flux_async.advice import ACTIONS, fill, python_words
from flux_async.cli.advice import with_commands
from flux_async.cli.commands import cli

PACKAGE = Path(flux_async.__file__).parent
FOR_COMMANDS = {"cli", "sandbox"}
FOR_PYTHON = re.compile(
    r"client\.\w+|run_batch|journal=|max_credits|FluxClient|DownloadLimits|\bapi_key\b|same_account=|\bawait\b"
)
AN_OPTION = re.compile(r"(?<![\w-])--[a-z]|flux-async [a-z]")
NO_COMMANDS = ("pip install", "flux-async journal")  # the latter is a thread
ONLY_IN_PYTHON = (ClientClosed, WrongEventLoop)
ELSEWHERE = re.compile(
    r"(own|another|new|other) (journal|folder|directory)|(journal|folder|directory) of its own"
)


def literals(node: ast.AST) -> Iterator[ast.Constant]:
    """Yield the strings of a file that are no docstrings."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child
        yield from literals(child)


def messages(*, of_commands: bool) -> list[tuple[str, str]]:
    """Return the strings that can be shown to a user of the one surface, with their places."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        if (path.parts[0] in FOR_COMMANDS) is of_commands and path.parts[0] not in {"testing", "imaging"}:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found += [(f"{path}:{text.lineno}", str(text.value)) for text in literals(tree)]
    return found


def family(kind: type[FluxError]) -> Iterator[type[FluxError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from family(below)


def test_no_message_of_the_library_names_an_option_of_the_command_line() -> None:
    """Callers of the library are advised in calls."""
    wrong = [
        (place, text)
        for place, text in messages(of_commands=False)
        if AN_OPTION.search(text) and not any(other in text for other in NO_COMMANDS)
    ]
    assert wrong == []


def test_no_message_of_the_command_line_gives_python_advice() -> None:
    """Users of the command line are advised in commands."""
    wrong = [(place, text) for place, text in messages(of_commands=True) if says_python(text)]
    assert wrong == []


def says_python(text: str) -> bool:
    return " " in text and FOR_PYTHON.search(text) is not None


@pytest.mark.parametrize("folder", [None, Path("my run")])
@pytest.mark.parametrize("kind", dict.fromkeys(family(FluxError)), ids=lambda kind: kind.__name__)
def test_the_advice_of_every_error_is_worded_for_its_reader(
    kind: type[FluxError], folder: Path | None
) -> None:
    """No option in Python, no call at the command line, no brace in either, and each ends as a sentence."""
    template = kind.default_advice
    python = fill(template, python_words("t1"))
    commands = with_commands(template, folder, "t1")
    assert not AN_OPTION.search(python)
    assert issubclass(kind, ONLY_IN_PYTHON) or not says_python(commands)
    for words in (python, commands):
        assert "{" not in words
        assert "task_id" not in words.lower()
        assert not re.search(r"\.\.|  | [.,;:]", words), words
    if folder is not None and "flux-async" in commands:
        assert "'my run'" in commands or "t1" in commands or "upload" in commands


def test_every_action_has_advice_on_both_surfaces() -> None:
    """An action without advice on one surface would be shown in braces."""
    template = " ".join(f"{{{action}}}" for action in sorted(ACTIONS))
    assert "{" not in fill(template, python_words(None))
    assert "{" not in with_commands(template, None, None)
    assert python_words(None).keys() == ACTIONS == python_words(None, in_memory=True).keys()


def test_every_action_in_a_message_is_known() -> None:
    """A mistyped action is found here, not by a user."""
    known = {f"{{{action}}}" for action in ACTIONS}
    used = {
        brace
        for place, text in messages(of_commands=False)
        if not place.startswith(
            ("advice.py", "journal/store", "telemetry/otel_metrics")
        )  # the last has units
        for brace in re.findall(r"\{[a-z_]+\}", text)
    }
    assert used <= known


@pytest.mark.parametrize("of_commands", [False, True])
def test_no_message_leads_to_another_journal_for_a_folder_with_paid_work(of_commands: bool) -> None:
    """Another journal or folder pays again for this one's work; only a message that says so may name it."""
    wrong = [
        (place, text)
        for place, text in messages(of_commands=of_commands)
        if ELSEWHERE.search(text) and "pay" not in text and not place.startswith("cli/demo")
    ]
    assert wrong == []


@pytest.mark.parametrize("words", [[], *([name] for name in cli.commands)], ids=" ".join)
def test_no_line_of_a_help_text_is_cut(words: list[str]) -> None:
    """In a terminal of 80 columns every help text ends where its sentence does."""
    reported = CliRunner().invoke(cli, [*words, "--help"], terminal_width=80)
    assert reported.exit_code == 0
    lines = [line for line in reported.output.splitlines() if not line.startswith("Usage:")]
    assert [line for line in lines if line.endswith(("...", "…"))] == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("It broke.", "It broke."),
        ("It broke..", "It broke."),
        ("The API answered 402: no credits!.", "The API answered 402: no credits!"),
        ("Busy, please wait....", "Busy, please wait..."),
        ("Please wait...", "Please wait..."),
        ("What?.", "What?"),
        ("It broke", "It broke"),
    ],
)
def test_quoted_messages_at_the_end_get_no_second_full_stop(given: str, shown: str) -> None:
    """Of the vendor and of system calls."""
    assert FluxError(given).message == shown
