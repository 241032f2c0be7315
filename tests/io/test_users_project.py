"""A user's project: it installs the wheel with its extra, and the documented tests pass in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "testing.md"
BESIDE = ("pytest-asyncio", "respx")
"""What the document installs beside the extra."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel under test: nox has built one, else it is built here, by what is installed."""
    if built := os.environ.get("FLUX_ASYNC_EXPECT_WHEEL"):
        return Path(built)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def declared_by(names: tuple[str, ...], extra: str) -> dict[str, Distribution]:
    """Return what is needed for the package with an extra, and for some others, as far as it is declared."""
    found: dict[str, Distribution] = {}
    asked = [Requirement(f"flux-async[{extra}]"), *map(Requirement, names)]
    while asked:
        wanted = asked.pop()
        name = wanted.name.lower().replace("_", "-")
        dist = distribution(wanted.name)
        key = f"{name}[{','.join(sorted(wanted.extras))}]"
        if key not in found:
            found[key] = dist
            asked += requirements_of(dist, wanted.extras)
    return {key.partition("[")[0]: dist for key, dist in found.items() if not key.startswith("flux-async[")}


def requirements_of(dist: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, dist.requires or []):
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            yield requirement


def lend(dist: Distribution, site: Path) -> None:
    """Let an environment use one distribution of ours, and nothing beside it."""
    for top in {file.parts[0] for file in dist.files or [] if file.parts[0] not in {"..", "__pycache__"}}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(dist.locate_file(top))))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment with what the wheel declares for the extra, and the wheel installed into it."""
    folder = tmp_path_factory.mktemp("project")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    [site] = (folder / "env").glob("lib/python*/site-packages")
    for dist in declared_by(BESIDE, "testing").values():
        lend(dist, site)
    # Without an index: what the wheel demands and the environment lacks would be an error.
    python = folder / "env" / "bin" / "python"
    pip("--python", str(python), "install", "--no-index", f"flux-async[testing] @ {wheel.resolve().as_uri()}")
    return folder


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ours = ("COV", "FLUX_", "KIE_", "PYTEST", "PYTHON", "NOX")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [str(project / "env" / "bin" / "python"), *arguments]
    return subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=240, check=False
    )


def documented_tests() -> list[str]:
    block = re.compile(r"<!-- a test -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return block.findall(DOCUMENT.read_text("utf-8"))


def test_the_documented_tests_pass(project: Path) -> None:
    """Three of them, one with respx, written into files as they are."""
    blocks = documented_tests()
    assert len(blocks) == 3
    assert sum("respx_mock" in block for block in blocks) == 1
    for number, block in enumerate(blocks):
        (project / f"test_{number}.py").write_text(block, encoding="utf-8")
    done = run(project, "-m", "pytest", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_only_what_is_declared_was_there(project: Path) -> None:
    """The package is the wheel's, and neither images nor the command line can be imported."""
    script = (
        "import flux_async, importlib.util as u; print(flux_async.__file__);"
        "print(*[n for n in ('numpy', 'cv2', 'PIL', 'rich', 'aiohttp') if u.find_spec(n)])"
    )
    file, others = run(project, "-c", script).stdout.splitlines()
    assert Path(file).is_relative_to(project)
    assert others == ""


def test_the_plugin_loads_nothing_unless_a_fixture_is_used(project: Path) -> None:
    """The plugin's own file is loaded, and nothing behind it."""
    loaded = '{name.partition(".")[0] for name in sys.modules}'
    test = f"import sys\nheavy = {{'flux_async', 'httpx', 'starlette', 'cattrs'}} & {loaded}\n"
    test += "def test_it():\n    assert 'flux_async_pytest' in sys.modules\n    assert not heavy\n"
    (project / "unused.py").write_text(test, encoding="utf-8")
    done = run(project, "-m", "pytest", "-q", "-p", "no:respx", "unused.py")
    assert done.returncode == 0, done.stdout


def test_every_lender_is_installed_here() -> None:
    """The environment is made of distributions that are declared; one that is not installed is an error."""
    with pytest.raises(PackageNotFoundError):
        declared_by(("no-such-distribution",), "testing")
    assert {"starlette", "uvicorn", "python-multipart", "pytest", "httpx"} <= declared_by(
        (), "testing"
    ).keys()
