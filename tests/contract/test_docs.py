"""The documents match the package: errors, commands, options, exit codes, keys, tests, links.

``python tests/contract/test_docs.py`` rewrites the tables of ``docs/errors.md`` and ``docs/architecture.md``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flux_async import Charge, FluxError, Model, Scope, api_errors
from flux_async.advice import fill, python_words
from flux_async.sandbox.settings import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "flux_async"  # as the documents describe it: a wheel keeps the pytest plugin elsewhere
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ERRORS = ROOT / "docs" / "errors.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
COMMANDS = ROOT / "docs" / "command_line.md"
MODELS = ROOT / "docs" / "models.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"

TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
CHARGES = {Charge.NO: "no", Charge.MAYBE: "perhaps", Charge.YES: "yes"}
SCOPES = {
    Scope.THIS_JOB: "this image",
    Scope.ACCOUNT_PAUSED: "every submit, for now",
    Scope.STOP: "every submit, until you act",
}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# --- errors -----------------------------------------------------------------------------------------------


def below(kind: type[FluxError], depth: int = 0) -> Iterator[tuple[type[FluxError], int]]:
    """Yield ``kind`` and the tree below it, depth first, in the order of definition."""
    yield kind, depth
    for child in kind.__subclasses__():
        is_ours = child.__module__ in {FluxError.__module__, api_errors.__name__}
        if is_ours and child.__bases__[0] is kind:
            yield from below(child, depth + 1)


def error_table() -> str:
    """Return the table that ``docs/errors.md`` holds, made from the tree itself."""
    lines = ["", "| error | what happened | charged? | concerns | what to do |", "|---|---|---|---|---|"]
    for kind, depth in below(FluxError):
        what = str(kind.__doc__).partition("\n")[0]
        charged, concerns = CHARGES[kind.default_charge], SCOPES[kind.default_scope]
        name = "&emsp;" * depth + f"`{kind.__name__}`"
        advice = fill(kind.default_advice, python_words(None))
        lines.append(f"| {name} | {what} | {charged} | {concerns} | {advice} |")
    return "\n".join([*lines, "", ""])


def test_error_page_shows_the_tree() -> None:
    """The table of ``docs/errors.md`` is made from the error classes; running this file rewrites it."""
    shown = TABLE.search(read(ERRORS))
    assert shown is not None
    assert shown[0] == error_table()


def test_every_error_is_raised_somewhere() -> None:
    """A module besides its own mentions each class of the tree."""
    homes = {PACKAGE / f"{name}.py" for name in ("api_errors", "errors", "public")}
    code = "\n".join(read(path) for path in PACKAGE.rglob("*.py") if path not in homes)
    assert [
        kind.__name__ for kind, _ in below(FluxError) if not re.search(rf"\b{kind.__name__}\b", code)
    ] == []


# --- modules ----------------------------------------------------------------------------------------------


def first_sentence(module: Path) -> str:
    """Return the first sentence of a module's docstring, as Markdown."""
    paragraph = " ".join((ast.get_docstring(ast.parse(read(module))) or "").partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?!])\s", paragraph)[0].replace("``", "`").replace("|", "\\|")
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", sentence)


def module_table() -> str:
    """Return the table of ``docs/architecture.md``: each module with the first sentence of its docstring."""
    lines = ["", "| module | |", "|---|---|"]
    for folder in [PACKAGE, *sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))]:
        prefix = "" if folder == PACKAGE else f"{folder.name}/"
        if prefix:
            lines.append(f"| **`{prefix}`** | {first_sentence(folder / '__init__.py')} |")
        modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        lines += [f"| `{prefix}{path.name}` | {first_sentence(path)} |" for path in modules]
    return "\n".join([*lines, "", ""])


def test_architecture_names_every_module() -> None:
    """The table of ``docs/architecture.md`` is made from the docstrings; running this file rewrites it."""
    shown = TABLE.search(read(ARCHITECTURE))
    assert shown is not None
    assert shown[0] == module_table()


# --- the command line -------------------------------------------------------------------------------------


def options_of(command: Any) -> set[str]:
    """Return the long options of a command, with those of its subcommands."""
    own = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    return own.union(*(options_of(part) for part in getattr(command, "commands", {}).values()))


def commands() -> dict[str, set[str]]:
    """Return the commands of ``flux-async``, each with its long options."""
    from flux_async.cli.commands import cli  # noqa: PLC0415 - needs the extra
    from flux_async.sandbox.server import parser  # noqa: PLC0415 - as above

    found = {name: options_of(command) for name, command in cli.commands.items() if not command.hidden}
    found["sandbox"] |= set(re.findall(r"--[a-z][a-z-]*", parser("sandbox").format_usage()))
    return found


def sandbox_table() -> str:
    """Return the table of the sandbox's options in ``docs/command_line.md``, made from their declaration."""
    lines = ["", "| option | default | meaning |", "|---|---|---|"]
    lines += [f"| `{option.flag}` | {option.default} | {option.help} |" for option in OPTIONS]
    return "\n".join([*lines, "", ""])


def test_options_of_the_sandbox_are_documented() -> None:
    """The table of ``docs/command_line.md`` is made from the options; running this file rewrites it."""
    shown = TABLE.search(read(COMMANDS))
    assert shown is not None
    assert shown[0] == sandbox_table()


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading of the second level."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_has_a_section_and_no_other_has() -> None:
    """``docs/command_line.md`` has one section for each command, under its name."""
    documented = {title.strip("`") for title in sections(read(COMMANDS)) if title.startswith("`")}
    assert documented == set(commands())


def test_every_option_is_documented_where_it_belongs() -> None:
    """The section of a command names exactly the options the command has."""
    documented = {
        title.strip("`"): set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help"}
        for title, text in sections(read(COMMANDS)).items()
        if title.startswith("`")
    }
    assert documented == {name: options - {"--help"} for name, options in commands().items()}


def test_every_model_is_documented_with_its_price() -> None:
    """The table of ``docs/models.md`` has one row for each model, in order, with price and longest prompt."""
    rows = re.findall(r"^\| `([^`]+)` \| ([\d.]+)[^|]*\|.*\| ([^|]+) \|$", read(MODELS), flags=re.MULTILINE)
    limits = {model: model.row.max_prompt for model in Model}
    assert rows == [
        (model.value, f"{model.row.credits:g}", "not known" if limit is None else f"{limit:,}")
        for model, limit in limits.items()
    ]


def test_every_name_of_the_list_of_words_is_used() -> None:
    """The 40 names in CONTRIBUTING are names of the code."""
    words = sections(read(ROOT / "CONTRIBUTING.md"))["Words"]
    rows = re.findall(r"^\| (`[^|]+) \|[^|]+\|[^|]+\|$", words, flags=re.MULTILINE)
    code = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"\w+", read(path))}
    named = re.findall(r"`(\w+)`", " ".join(rows))
    assert (len(rows), [name for name in named if name not in code]) == (40, [])


def test_readme_names_every_command() -> None:
    """Each command is in the README."""
    missing = [name for name in commands() if not re.search(rf"flux-async {name}\b", read(README))]
    assert missing == []


def test_every_exit_code_is_documented() -> None:
    """The table of exit codes has one row for each code, and no other row."""
    from flux_async.cli.terminal import Exit  # noqa: PLC0415 - needs the extra

    rows = re.findall(r"^\| (\d+) \|", sections(read(COMMANDS))["Exit codes"], flags=re.MULTILINE)
    assert sorted(map(int, rows)) == sorted(Exit)


def test_every_key_of_the_results_is_documented() -> None:
    """The keys of ``results.jsonl`` are listed in their order."""
    from flux_async.cli.results import FIELDS  # noqa: PLC0415 - needs the extra

    section = sections(read(COMMANDS))["Results of a run"]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == FIELDS


# --- what is pointed at -----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file that exists."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(document))
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("document", [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_files_that_are_named_exist(document: Path) -> None:
    """A path in code type, such as `api/kontext.py`, is one of the package or of the repository."""
    names = set(re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|sql|md))(?:::\w+)?`", read(document)))
    assert [
        name for name in sorted(names) if not any((top / name).is_file() for top in (PACKAGE, ROOT))
    ] == []


def names_of_tests(path: Path) -> set[str]:
    """Return the names of the tests in a file."""
    nodes = ast.walk(ast.parse(read(path)))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions}


def test_guarantees_name_tests_that_exist() -> None:
    """Each promise names at least one test, all of which exist, or says that it is planned."""
    rows = re.findall(r"^\| (G\d+) \|(.*)$", read(GUARANTEES), flags=re.MULTILINE)
    assert [name for name, _ in rows] == [f"G{number}" for number in range(1, 13)]
    for name, row in rows:
        references = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert references or "planned" in row, name
        for file, test in references:
            assert test in names_of_tests(ROOT / file), f"{name}: {file}::{test}"


if __name__ == "__main__":
    tables = ((ERRORS, error_table()), (ARCHITECTURE, module_table()), (COMMANDS, sandbox_table()))
    for page, table in tables:
        page.write_text(TABLE.sub(lambda _, new=table: new, read(page)), encoding="utf-8")
