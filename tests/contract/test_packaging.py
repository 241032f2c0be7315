"""The installed package: four dependencies, types, one version."""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import Distribution, distribution
from pathlib import Path

import flux_async

PACKAGE = Path(flux_async.__file__).parent
CORE = {"anyio", "attrs", "cattrs", "httpx"}


def is_editable(installed: Distribution) -> bool:
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    return bool(origin.get("dir_info", {}).get("editable"))


def test_core_depends_on_four_packages() -> None:
    """Without extras exactly anyio, attrs, cattrs and httpx are required."""
    required = distribution("flux-async").requires or []
    core = {re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line}
    assert core == CORE


def test_version_is_one() -> None:
    """The installed metadata and ``flux_async.__version__`` name the same version."""
    assert distribution("flux-async").version == flux_async.__version__


def test_types_are_shipped() -> None:
    """The marker that lets type checkers read our annotations lies beside the code."""
    assert (PACKAGE / "py.typed").is_file()


def test_licence_is_shipped() -> None:
    """The installed metadata names the MIT licence."""
    assert distribution("flux-async").metadata["License-Expression"] == "MIT"


def test_command_is_installed() -> None:
    """The distribution provides the command ``flux-async``."""
    scripts = distribution("flux-async").entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts} == {"flux-async": "flux_async.cli:main"}


def test_the_package_under_test_is_the_installed_one() -> None:
    """Under nox the tests import the wheel, file for file, and never the checkout beside them."""
    installed = distribution("flux-async")
    editable = is_editable(installed)
    if os.environ.get("FLUX_ASYNC_EXPECT_WHEEL"):
        assert not editable
    if not editable:
        assert Path(str(installed.locate_file("flux_async"))).resolve() == PACKAGE.resolve()
        assert Path(__file__).resolve().parents[2] / "flux_async" != PACKAGE.resolve()
