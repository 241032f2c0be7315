"""Imports point down only: what each module and package directly under ``flux_async`` may import.

::

    L6  cli → report
    L5  service → client  engine
    L4  client → batch  webhook  telemetry  engine        sandbox, verification → imaging
    L3  files/download, files/upload, poller → session → submitter → observed    imaging   L0 only
    L2  transport  files  journal  clock         testing   for users' tests
    L1  events → job_state  policy  api          pure: no await, no time, no randomness
    L0  models → images → errors → advice        api_errors → errors

A new module or package needs a row in each table.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

import flux_async

PACKAGE = Path(flux_async.__file__).parent
TESTS = Path(__file__).parents[1]

L0 = {"advice", "api_errors", "errors", "images", "models"}
L1 = {"api", "events", "job_state", "policy"}
L2 = {"clock", "files", "journal", "rate_limiter", "transport"}
L3 = {
    *("files.download", "files.upload", "observed", "poll_rate", "poller"),
    *("session", "snapshots"),
    "submitter",
}
L4 = {"batch", "client", "client_options", "engine", "telemetry", "verification", "webhook"}

ALLOWED: dict[str, set[str]] = {
    # What each may import, besides itself; a dotted name allows that module only.
    "advice": set(),
    "errors": {"advice"},
    "api_errors": {"errors"},
    "images": {"errors"},
    # Requests are checked by the table of models, which itself stands on the errors.
    "models": {"errors", "images", "api.models_table"},
    "api.models_table": {"errors"},
    "api": L0,
    "policy": L0 | {"api.error_codes"},
    "job_state": L0 | {"policy", "api.error_codes", "api.models_table"},
    "events": L0 | {"job_state", "policy", "api.models_table"},
    "clock": set(),
    "files": L0 | {"policy"},
    # Downloads and uploads are made by a session; the rest of the package needs none.
    "files.download": L0 | L1 | {"files", "observed", "session", "submitter", "transport"},
    "files.upload": L0 | L1 | {"files", "session", "submitter", "transport"},
    "journal": L0 | L1 | {"clock"},
    "transport": L0 | L1 | {"clock"},
    "rate_limiter": L0 | L1,
    "session": L0 | L1 | {"clock", "observed", "rate_limiter", "submitter", "transport"},
    "submitter": L0 | L1 | {"clock", "observed", "rate_limiter", "transport"},
    "poller": L0 | L1 | {"clock", "poll_rate", "session", "submitter"},
    "poll_rate": {"clock"},
    "observed": L0 | L1 | {"clock", "transport"},
    "snapshots": {"poller", "session"},
    "client": L0 | L1 | L2 | L3 | {"batch", "client_options", "telemetry", "__version__"},
    "client_options": L0 | L1,
    "batch": L0 | L1 | L2 | L3 | {"telemetry", "verification"},
    "webhook": L0 | L1 | L2,
    "telemetry": L0 | L1 | {"__version__"},
    "service": L0 | L1 | L2 | L3 | {"batch", "client", "engine", "telemetry", "webhook"},
    "engine": L0 | L1 | L2 | L3 | {"batch", "client", "telemetry", "verification"},
    "imaging": L0,
    "verification": L0 | {"imaging"},
    "sandbox": {"imaging"},
    # Outlines of composed results, where the extra for that is there.
    "report": L0 | L1 | L2 | {"verification.outlines"},
    "testing": L0 | L1 | L2 | L3 | L4 | {"sandbox"},
    "cli": L0 | L1 | L2 | L3 | L4 | {"__init__", "__version__", "imaging", "report", "sandbox"},
    "__init__": {"public"},
    "public": L0 | L1 | L2 | L3 | L4 | {"service"},
    "__main__": {"cli"},
}
ALLOWED_FOR_TYPING: dict[str, set[str]] = {
    # What only type checkers see, under `if TYPE_CHECKING:`, may also point sideways here.
    "errors": {"api.models_table", "models"},
    "models": {"verification.verdict"},
}
OUTSIDE: dict[str, set[str]] = {
    # The third-party packages it may import.
    "advice": set(),
    "errors": set(),
    "api_errors": set(),
    "images": {"attrs"},
    "models": {"attrs"},
    "api.models_table": {"attrs"},
    "api": {"attrs", "cattrs", "orjson"},
    "policy": {"attrs"},
    "job_state": {"attrs"},
    "events": {"attrs"},
    "clock": {"attrs"},
    "files": {"anyio", "attrs", "obstore"},
    "journal": {"anyio", "attrs"},
    "transport": {"aiohttp", "anyio", "attrs", "certifi", "httpcore", "httpx", "yarl"},
    "rate_limiter": {"attrs", "redis"},
    "session": {"anyio", "attrs"},
    "submitter": {"attrs"},
    "poller": {"attrs"},
    "poll_rate": {"attrs"},
    "observed": {"attrs"},
    "snapshots": {"attrs"},
    "client": {"anyio", "attrs"},
    "client_options": {"attrs"},
    "files.download": {"anyio", "attrs"},
    "files.upload": {"attrs"},
    "batch": {"anyio", "attrs"},
    "webhook": {"anyio", "attrs"},
    "telemetry": {"attrs", "opentelemetry"},
    "service": {"attrs"},
    "engine": {"anyio", "attrs", "dbos", "psycopg", "sqlalchemy"},
    "imaging": {"PIL", "attrs", "cv2", "numpy", "rapidocr"},
    "verification": {"PIL", "anyio", "attrs", "cv2", "numpy"},
    "sandbox": {"PIL", "anyio", "attrs", "cattrs", "cv2", "httpx", "numpy", "starlette", "uvicorn"},
    "report": {"PIL", "attrs", "jinja2", "markupsafe"},
    "testing": {"anyio", "attrs", "httpx", "pytest"},
    "cli": {"anyio", "attrs", "click", "h11", "httpx", "pyarrow", "rich", "uvicorn"},
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
    "jinja2": {"report/page.py"},
    "obstore": {"files/object_store.py"},
    "opentelemetry": {"telemetry"},
    "orjson": {"api/envelope.py"},
    "pyarrow": {"cli/parquet.py"},
    "redis": {"rate_limiter.py"},
    "rich": {"cli"},
    "sqlite3": {"journal", "sandbox/state.py"},
    "dbos": {"engine"},
    "h11": {"cli/webhook_server.py"},
    "psycopg": {"engine"},
    "sqlalchemy": {"engine"},
    "uvicorn": {"sandbox", "cli/webhook_server.py"},
    "yarl": {"transport/aiohttp_.py"},
    "time": {"clock", "sandbox", "imaging", "cli", "testing"},
}
PURE = L0 | L1 | {"api.models_table"}
BANNED_IN_PURE = {"anyio", "asyncio", "httpx", "random", "sqlite3", "time"}


class Import(NamedTuple):
    """One imported name."""

    line: int
    name: str
    typing_only: bool


def entry_of(path: PurePosixPath) -> str:
    """Return the row that a file of the package belongs to: its own, or `api` for `api/kontext.py`."""
    module = ".".join(path.with_suffix("").parts)
    return module if module in ALLOWED else path.parts[0].removesuffix(".py")


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


DOCUMENTED = {"_replace", "_asdict", "_fields", "_make", "_value_", "_name_", "_repr_html_"}
"""Names of namedtuples, enums and notebooks that are public despite their underscore; so is ``os._exit``."""
OWN = {"self", "cls", "super()"}
BY_NAME = {"getattr", "setattr", "delattr", "hasattr"}
GLOBAL_CALLS = {
    *("logging.basicConfig", "logging.captureWarnings", "logging.disable", "logging.setLoggerClass"),
    *("logging.config.dictConfig", "logging.config.fileConfig"),
    *("os.chdir", "os.putenv", "os.umask", "os.unsetenv"),
    *("signal.set_wakeup_fd", "signal.setitimer", "signal.signal"),
    *("asyncio.set_event_loop", "asyncio.set_event_loop_policy", "locale.setlocale", "random.seed"),
    *(
        "socket.setdefaulttimeout",
        "sys.setrecursionlimit",
        "warnings.filterwarnings",
        "warnings.simplefilter",
    ),
}
MUTATORS = {"clear", "pop", "popitem", "setdefault", "update"}
LOGGER_SETTINGS = {"addFilter", "addHandler", "removeHandler", "setLevel"}
MAY_CHANGE_THE_PROCESS = {"cli", "sandbox/server.py"}
"""They run in a process of their own: the command line, and the server that it starts."""
RESTORE = {"imaging/image_codec.py"}
"""They change a setting for one call or one test, and restore it."""


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def private_faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each use of a private part of another class or package, also by import or by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in DOCUMENTED:
            if ast.unparse(node.value) not in OWN and ast.unparse(node) != "os._exit":
                yield node.lineno, f"{ast.unparse(node)} is private"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "object.__new__":
            yield node.lineno, "a class makes its objects"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME and len(node.args) > 1:
            owner, name = node.args[:2]
            if isinstance(name, ast.Constant) and is_private(name.value) and ast.unparse(owner) not in OWN:
                yield node.lineno, f"{ast.unparse(owner)}.{name.value} is private"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            parts = ".".join([getattr(node, "module", None) or "", *names]).split(".")
            if any(is_private(part) for part in parts):
                yield node.lineno, f"{'.'.join(parts).strip('.')} is private"


def patched_private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the private names in dotted strings that ``monkeypatch`` is given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr") and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and any(map(is_private, str(target.value).split("."))):
                yield node.lineno, f"{target.value} is private"


def imported_names(tree: ast.AST) -> set[str]:
    """Return the names that a file's imports bind."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return {(a.asname or a.name).partition(".")[0] for node in imports for a in node.names}


def global_faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what changes the process for everyone in it: modules, environment, signals, logging, settings."""
    foreign = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
            for target in targets:
                base = target.value if isinstance(target, ast.Attribute | ast.Subscript) else None
                if base is not None and ast.unparse(base).partition(".")[0] in foreign:
                    yield node.lineno, f"{ast.unparse(target)} belongs to the whole process"
        elif isinstance(node, ast.Call):
            called, owner = ast.unparse(node.func), ast.unparse(getattr(node.func, "value", node.func))
            name = getattr(node.func, "attr", "")
            changes = (
                called in GLOBAL_CALLS
                or (owner in {"os.environ", "sys.modules"} and name in MUTATORS)
                or name in LOGGER_SETTINGS
                or (called == "setattr" and ast.unparse(node.args[0]).partition(".")[0] in foreign)
                or (name == "setattr" and "patch" in owner)
            )
            if changes:
                yield node.lineno, f"{called}() changes the whole process"


def conduct_faults_of(path: PurePosixPath, source: str) -> list[str]:
    """Return where one file reaches into private parts, or changes the process of its user."""
    tree = ast.parse(source)
    found = list(private_faults(tree))
    if not {entry_of(path), str(path)} & MAY_CHANGE_THE_PROCESS and str(path) not in RESTORE:
        found += global_faults(tree)
    return [f"{path}:{line}: {words}" for line, words in found]


@cache
def faults_in(package: Path) -> list[str]:
    """Return everything in a whole package that the tables do not allow."""
    files = sorted(package.rglob("*.py"))
    relative = ((file, PurePosixPath(file.relative_to(package).as_posix())) for file in files)
    sources = ((path, file.read_text(encoding="utf-8")) for file, path in relative)
    return [
        fault
        for path, source in sources
        for fault in (*faults_of(path, source), *conduct_faults_of(path, source))
    ]


def test_every_import_points_down_and_nothing_private_or_global_is_touched() -> None:
    """No import that the tables forbid, no private part of another class or package, no global setting."""
    assert faults_in(PACKAGE) == []


def test_tests_use_nothing_private() -> None:
    """Tests, too, read public attributes only; a patched name in a string counts as read."""
    found = []
    for file in sorted(TESTS.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        faults = (*private_faults(tree), *patched_private_names(tree))
        found += [f"{file.relative_to(TESTS)}:{line}: {words}" for line, words in faults]
    assert found == []


def test_tables_have_the_same_rows() -> None:
    """Each module has a row for imports from inside and one for imports from outside."""
    assert ALLOWED.keys() == OUTSIDE.keys()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("errors.py", "from flux_async.models import TaskId"),
        ("models.py", "from flux_async.api import kontext"),
        ("api/models_table.py", "from flux_async.models import TaskId"),
        ("api/kontext.py", "import httpx"),
        ("api/kontext.py", "from flux_async.policy.retry import RetryPolicy"),
        ("api/error_codes.py", "def late():\n    import time"),
        ("policy/retry.py", "import random"),
        ("policy/retry.py", "from flux_async.api.kontext import parse_submit"),
        ("policy/polling.py", "from flux_async.api import kontext"),
        ("policy/polling.py", "async def wait(): ..."),
        ("policy/rate_limit.py", "import asyncio"),
        ("job_state/states.py", "import sqlite3"),
        ("job_state/steps.py", "from flux_async import FluxClient"),
        ("clock.py", "from flux_async.errors import FluxError"),
        ("transport/background.py", "import httpx"),
        ("transport/factory.py", "import aiohttp"),
        ("transport/httpx_.py", "from flux_async.client import FluxClient"),
        ("transport/credentials.py", "from ..session import Session"),
        ("files/image_writer.py", "from flux_async.transport import Transport"),
        ("files/image_header.py", "from flux_async.api.kontext import parse_submit"),
        ("transport/ssrf_guard.py", "import httpcore"),
        ("files/download.py", "from flux_async.client import FluxClient"),
        ("session.py", "import time"),
        ("session.py", "from flux_async.client import FluxClient"),
        ("client.py", "import flux_async.cli"),
        ("batch/runner.py", "from flux_async.client import FluxClient"),
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


@pytest.mark.parametrize(
    "line",
    [
        "pool._connections",
        "self.carrier._pool = None",
        "self._carrier._pool",
        "getattr(response, '_h11_state')",
        "setattr(client, '_transport', None)",
        "from httpcore._sync import http11",
        "import anyio._backends",
        "other = object.__new__(FluxClient)",
        "import sys\nsys.modules['sniffio'] = None",
        "import sys\ndel sys.modules['sniffio']",
        "import os\nos.environ['NO_PROXY'] = 'x'",
        "import os\nos.environ.setdefault('NO_PROXY', 'x')",
        "import os\nos.environ |= {}",
        "import signal\nsignal.signal(2, print)",
        "import logging\nlogging.basicConfig()",
        "import logging\nlogging.getLogger('httpx').setLevel(30)",
        "import anyio.to_thread\nanyio.to_thread.run_sync = None",
        "import anyio\nsetattr(anyio, 'sleep', None)",
        "monkeypatch.setattr('anyio.sleep', None)",
        "import sys\nsys.stdout = None",
    ],
)
def test_private_parts_and_global_settings_are_found(line: str) -> None:
    """Each of these lines is one fault."""
    assert len(conduct_faults_of(PurePosixPath("transport/httpx_.py"), line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("client.py", "self._session.transport"),
        ("client.py", "super()._close()"),
        ("client.py", "getattr(self, '_session', None)"),
        ("client.py", "parts._replace(query='')"),
        ("client.py", "from __future__ import annotations\nself.__class__"),
        ("client.py", "import os\nkey = os.environ.get('KIE_API_KEY')"),
        ("client.py", "import logging\nlogging.getLogger('flux_async').warning('x')"),
        ("cli/signals.py", "import logging\nlogging.getLogger('flux_async').setLevel(50)"),
        ("sandbox/server.py", "import signal\nsignal.signal(2, print)"),
    ],
)
def test_own_parts_and_documented_names_are_no_fault(path: str, line: str) -> None:
    """A class uses its own private attributes; the command line sets up its own process."""
    assert conduct_faults_of(PurePosixPath(path), line) == []


def test_a_forbidden_import_added_to_the_tree_is_found(tmp_path: Path) -> None:
    """The whole check fails on a copy of the package to which one upward import was added."""
    copy = tmp_path / "flux_async"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    target = copy / "api" / "error_codes.py"
    target.write_text(target.read_text(encoding="utf-8") + "\nimport httpx\n", encoding="utf-8")
    found = set(faults_in(copy)) - set(faults_in(PACKAGE))
    assert len(found) == 1
    assert "api is pure and may not import httpx" in found.pop()
