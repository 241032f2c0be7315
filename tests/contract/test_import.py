"""``import flux_async`` is light: what only some users need is loaded when they use it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SERVER_AND_PICTURES = {"starlette", "uvicorn", "cv2", "numpy", "PIL", "rapidocr", "onnxruntime"}
HTTP = {"httpx", "httpx2", "aiohttp"}
HEAVY = (
    SERVER_AND_PICTURES
    | HTTP
    | {"click", "jinja2", "obstore", "orjson", "pandas", "polars", "pyarrow", "redis", "rich", "sqlite3"}
)


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after ``statement``."""
    # Coverage would start itself in the child, and it uses sqlite3.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=clean)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import flux_async.public", "import flux_async.sandbox, flux_async.imaging"]
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    """Importing the package, the sandbox or imaging loads no optional dependency, no httpx and no sqlite3."""
    loaded = modules_after(statement)
    assert "flux_async" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_commands_need_no_extra_that_only_some_options_use() -> None:
    """Object stores, Parquet, Redis and the engine are loaded by the commands that are asked for them."""
    loaded = modules_after("import flux_async.public, flux_async.cli.commands")
    assert loaded.isdisjoint(
        {"dbos", "obstore", "pandas", "polars", "psycopg", "pyarrow", "redis", "sqlalchemy"}
    )


def test_the_engine_without_its_extra_is_an_error_that_names_it() -> None:
    """Everything else works."""
    modules_after(
        "import sys; sys.modules['dbos'] = None\n"
        "import flux_async\n"
        "try: import flux_async.engine\n"
        "except flux_async.MissingExtra as missing: assert 'engine' in str(missing), missing\n"
        "else: raise AssertionError"
    )


def test_names_are_loaded_with_the_first_that_is_used() -> None:
    """Before that nothing of the package is there but its version; a name that is none is an error."""
    assert "attrs" not in modules_after("import flux_async; flux_async.__version__")
    assert "attrs" in modules_after("from flux_async import *; FluxClient")
    assert "attrs" in modules_after("import flux_async; assert 'FluxClient' in dir(flux_async)")
    modules_after("import flux_async; assert not hasattr(flux_async, 'nothing')")


@pytest.mark.parametrize("name", sorted(HTTP))
def test_a_client_loads_one_http_library_and_no_more(name: str) -> None:
    """The first client loads the library that it uses, but no server, no image library, and no database."""
    loaded = modules_after(f"import flux_async; flux_async.FluxClient('key', transport={name!r})")
    assert loaded & HTTP == {name}
    assert loaded.isdisjoint(SERVER_AND_PICTURES | {"sqlite3"})


def test_a_client_loads_httpx_by_default() -> None:
    """Although aiohttp is installed."""
    assert modules_after("import flux_async; flux_async.FluxClient('key')") & HTTP == {"httpx"}
