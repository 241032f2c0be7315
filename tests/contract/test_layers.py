"""Imports point down only: what each module and package directly under ``flux_async`` may import.

::

    L5  cli  report
    L4  batch  webhook  telemetry  engine        sandbox   island: itself and imaging
    L3  client → download, uploads, poller → session → submit_gate    imaging   models and errors only
    L2  transport  files  journal  clock         testing   for users' tests
    L1  job_state  policy  api                   pure: no await, no time, no randomness
    L0  models → errors → advice

A new module or package needs a row in each table.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

import flux_async

PACKAGE = Path(flux_async.__file__).parent

L0 = {"advice", "errors", "models"}
L1 = {"api", "job_state", "policy"}
L2 = {"clock", "files", "journal", "timing", "transport"}
L3 = {"client", "download", "poller", "session", "submit_gate", "uploads"}
L4 = {"batch", "engine", "telemetry", "webhook"}

ALLOWED: dict[str, set[str]] = {
    # What each may import, besides itself; a dotted name allows that module only.
    "advice": set(),
    "errors": {"advice"},
    "models": {"errors"},
    "api": L0,
    "policy": L0 | {"api.error_codes", "files.image_header"},
    "job_state": L0 | {"policy", "api.error_codes"},
    "clock": set(),
    "files": L0 | {"policy"},
    "journal": L0 | L1 | {"clock"},
    "transport": L0 | L1 | {"clock"},
    "session": L0 | L1 | {"clock", "submit_gate", "timing", "transport"},
    "submit_gate": L0 | L1 | {"clock", "timing"},
    "timing": {"clock"},
    "poller": L0 | L1 | {"session", "timing"},
    # remove_text_many is the batch's short form; it imports it when it is called.
    "client": L0 | L1 | L2 | {"session", "batch.gathered", "download", "uploads", "poller", "__version__"},
    "download": L0 | L1 | {"session", "clock", "files", "transport"},
    "uploads": L0 | L1 | {"clock", "files", "session", "transport"},
    "batch": L0 | L1 | L2 | L3 | {"telemetry"},
    "webhook": L0 | L1 | L2,
    "telemetry": L0 | L1,
    "engine": L0 | L1 | L2 | L3,
    "imaging": L0,
    "sandbox": {"imaging"},
    "report": L0 | L1 | L2,
    "testing": L0 | L1 | L2 | L3 | L4 | {"sandbox"},
    "cli": L0 | L1 | L2 | L3 | L4 | {"__init__", "__version__", "imaging", "report", "sandbox"},
    "__init__": {"public"},
    "public": L0 | L1 | L2 | L3 | L4,
    "__main__": {"cli"},
}
ALLOWED_FOR_TYPING: dict[str, set[str]] = {
    # What only type checkers see, under `if TYPE_CHECKING:`, may also point sideways here.
    "errors": {"models"},
}
OUTSIDE: dict[str, set[str]] = {
    # The third-party packages it may import.
    "advice": set(),
    "errors": set(),
    "models": {"attrs"},
    "api": {"attrs", "cattrs", "orjson"},
    "policy": {"attrs"},
    "job_state": {"attrs"},
    "clock": {"anyio"},
    "files": {"anyio", "attrs"},
    "uploads": {"attrs"},
    "journal": {"anyio", "attrs"},
    "transport": {"aiohttp", "anyio", "attrs", "certifi", "httpcore", "httpx", "yarl"},
    "session": {"anyio", "attrs"},
    "submit_gate": {"attrs"},
    "timing": {"attrs"},
    "poller": {"attrs"},
    "client": {"anyio", "attrs"},
    "download": {"attrs"},
    "batch": {"anyio", "attrs"},
    "webhook": {"anyio", "attrs"},
    "telemetry": {"attrs", "opentelemetry"},
    "engine": {"anyio", "attrs", "temporalio"},
    "imaging": {"PIL", "attrs", "cv2", "numpy"},
    "sandbox": {"PIL", "anyio", "attrs", "cattrs", "cv2", "httpx", "numpy", "starlette", "uvicorn"},
    "report": {"PIL", "attrs"},
    "testing": {"anyio", "attrs", "httpx", "pytest"},
    "cli": {"PIL", "anyio", "attrs", "click", "h11", "httpx", "rich", "uvicorn"},
    "__init__": set(),
    "public": set(),
    "__main__": set(),
}
ONLY_IN: dict[str, set[str]] = {
    # The only places that may import it.
    "aiohttp": {"transport/aiohttp_.py"},
    "certifi": {"transport/http_settings.py"},
    "click": {"cli"},
    "httpcore": {"transport/file_client.py"},
    "httpx": {"transport/httpx_.py", "sandbox", "cli", "testing/sandbox.py"},
    "orjson": {"api/envelope.py"},
    "rich": {"cli"},
    "sqlite3": {"journal", "sandbox/state.py"},
    "h11": {"cli/webhook_server.py"},
    "uvicorn": {"sandbox", "cli/webhook_server.py", "cli/listening.py"},
    "yarl": {"transport/aiohttp_.py"},
    "time": {"clock", "sandbox", "imaging", "cli", "testing"},
}
PURE = L0 | L1
BANNED_IN_PURE = {"anyio", "asyncio", "httpx", "random", "sqlite3", "time"}


class Import(NamedTuple):
    """One imported name."""

    line: int
    name: str
    typing_only: bool


def entry_of(path: PurePosixPath) -> str:
    """Return the row that a file of the package belongs to: `api/kontext.py` is in `api`."""
    return path.parts[0].removesuffix(".py")


def imports_of(tree: ast.AST, path: PurePosixPath, *, typing_only: bool = False) -> Iterator[Import]:
    """Yield every import below ``tree``, those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ("flux_async", *path.parts[: len(path.parts) - node.level])
                base = ".".join((*package, base)).rstrip(".")
            yield from (Import(node.lineno, f"{base}.{alias.name}", typing_only) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from imports_of(ast.Module([child], []), path, typing_only=True)
            yield from imports_of(ast.Module(node.orelse, []), path, typing_only=typing_only)
        else:
            yield from imports_of(node, path, typing_only=typing_only)


def is_below(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def fault_inside(found: Import, entry: str) -> str | None:
    """Judge an import from our own package."""
    target = found.name.removeprefix("flux_async").removeprefix(".") or "__init__"
    if target.partition(".")[0] not in ALLOWED and target != "__version__":
        target = "__init__"  # a public name, taken from the package itself
    allowed = (
        ALLOWED[entry] | {entry} | (ALLOWED_FOR_TYPING.get(entry, set()) if found.typing_only else set())
    )
    return None if any(is_below(target, name) for name in allowed) else f"{entry} may not import {found.name}"


def fault_outside(found: Import, path: PurePosixPath, entry: str) -> str | None:
    """Judge an import from elsewhere."""
    top = found.name.partition(".")[0]
    if entry in PURE and top in BANNED_IN_PURE:
        return f"{entry} is pure and may not import {top}"
    homes = ONLY_IN.get(top)
    if homes is not None and not {entry, str(path)} & homes:
        return f"{top} may be imported in {', '.join(sorted(homes))} only"
    if top in sys.stdlib_module_names or top in OUTSIDE[entry]:
        return None
    return f"{entry} may not import {top}"


def faults_of(path: PurePosixPath, source: str) -> list[str]:
    """Return everything in one file of the package that the tables do not allow."""
    entry = entry_of(path)
    if entry not in ALLOWED:
        return [f"{path}: {entry} is new: give it a row in the tables of this test"]
    tree = ast.parse(source)
    faults = []
    for found in imports_of(tree, path):
        ours = is_below(found.name, "flux_async")
        fault = fault_inside(found, entry) if ours else fault_outside(found, path, entry)
        if fault:
            faults.append(f"{path}:{found.line}: {fault}")
    if entry in PURE:
        coroutines = (node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef))
        faults += [f"{path}:{node.lineno}: {entry} is pure: no async def" for node in coroutines]
    return faults


def faults_in(package: Path) -> list[str]:
    """Return everything in a whole package that the tables do not allow."""
    files = sorted(package.rglob("*.py"))
    relative = ((file, PurePosixPath(file.relative_to(package).as_posix())) for file in files)
    return [fault for file, path in relative for fault in faults_of(path, file.read_text(encoding="utf-8"))]


def test_every_import_points_down() -> None:
    """No module of the package imports what the tables do not allow it."""
    assert faults_in(PACKAGE) == []


def test_tables_have_the_same_rows() -> None:
    """Each module has a row for imports from inside and one for imports from outside."""
    assert ALLOWED.keys() == OUTSIDE.keys()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("errors.py", "from flux_async.models import TaskId"),
        ("models.py", "from flux_async.api import kontext"),
        ("api/kontext.py", "import httpx"),
        ("api/kontext.py", "from flux_async.policy.retry import RetryPolicy"),
        ("api/error_codes.py", "def late():\n    import time"),
        ("policy/retry.py", "import random"),
        ("policy/retry.py", "from flux_async.api.kontext import parse_submit"),
        ("policy/polling.py", "from flux_async.api import kontext"),
        ("policy/polling.py", "async def wait(): ..."),
        ("policy/rate_limit.py", "import asyncio"),
        ("job_state.py", "import sqlite3"),
        ("job_state.py", "from flux_async import FluxClient"),
        ("clock.py", "from flux_async.errors import FluxError"),
        ("transport/background.py", "import httpx"),
        ("transport/factory.py", "import aiohttp"),
        ("transport/httpx_.py", "from flux_async.client import FluxClient"),
        ("transport/credentials.py", "from ..session import Session"),
        ("files/image_writer.py", "from flux_async.transport import Transport"),
        ("files/image_header.py", "from flux_async.api.kontext import parse_submit"),
        ("transport/ssrf_guard.py", "import httpcore"),
        ("download.py", "from flux_async.client import FluxClient"),
        ("session.py", "import time"),
        ("session.py", "from flux_async.client import FluxClient"),
        ("client.py", "import flux_async.cli"),
        ("client.py", "from flux_async import FluxError"),
        ("client.py", "import sqlite3"),
        ("client.py", "import rich.console"),
        ("client.py", "import requests"),
        ("sandbox/app.py", "from flux_async.models import TaskStatus"),
        ("sandbox/app.py", "from flux_async import errors"),
        ("sandbox/app.py", "if TYPE_CHECKING:\n    from flux_async.client import FluxClient"),
        ("imaging/removal.py", "from flux_async.sandbox import samples"),
        ("imaging/removal.py", "import click"),
        ("__init__.py", "from flux_async.cli import main"),
        ("helpers.py", "import json"),
    ],
)
def test_a_forbidden_line_is_found(path: str, line: str) -> None:
    """One forbidden import, however it is written, is one fault."""
    assert len(faults_of(PurePosixPath(path), line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("errors.py", "if TYPE_CHECKING:\n    from flux_async.models import TaskId"),
        ("api/kontext.py", "from flux_async.api import error_codes, parsing\nimport cattrs.gen"),
        ("policy/polling.py", "from flux_async.api.error_codes import poll_meaning"),
        ("policy/polling.py", "from flux_async.api import error_codes"),
        ("transport/httpx_.py", "import httpx"),
        ("client.py", "from flux_async import __version__"),
        ("sandbox/app.py", "import flux_async.imaging.removal"),
        ("imaging/removal.py", "from flux_async.errors import InvalidInput"),
        ("cli/commands.py", "from flux_async import FluxClient, __version__, errors\nimport click"),
    ],
)
def test_an_allowed_line_is_not_a_fault(path: str, line: str) -> None:
    """What the tables allow passes."""
    assert faults_of(PurePosixPath(path), line) == []


def test_a_forbidden_import_added_to_the_tree_is_found(tmp_path: Path) -> None:
    """The whole check fails on a copy of the package to which one upward import was added."""
    copy = tmp_path / "flux_async"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    target = copy / "api" / "error_codes.py"
    target.write_text(target.read_text(encoding="utf-8") + "\nimport httpx\n", encoding="utf-8")
    found = set(faults_in(copy)) - set(faults_in(PACKAGE))
    assert len(found) == 1
    assert "api is pure and may not import httpx" in found.pop()
