"""``import flux_async`` is light: what only some users need is loaded when they use it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SERVER_AND_PICTURES = {"starlette", "uvicorn", "cv2", "numpy", "PIL", "rapidocr"}
HEAVY = SERVER_AND_PICTURES | {"click", "rich", "sqlite3", "httpx", "httpx2"}


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after ``statement``."""
    # Coverage would start itself in the child, and it uses sqlite3.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=clean)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import flux_async", "import flux_async.sandbox, flux_async.imaging"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    """Importing the package, the sandbox or imaging loads no optional dependency, no httpx and no sqlite3."""
    loaded = modules_after(statement)
    assert "flux_async" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_a_client_loads_httpx_and_no_more() -> None:
    """The first client loads httpx, but neither the server, nor the pictures, nor a database."""
    loaded = modules_after("import flux_async; flux_async.FluxClient('key')")
    assert "httpx" in loaded
    assert loaded.isdisjoint(SERVER_AND_PICTURES | {"sqlite3"})
