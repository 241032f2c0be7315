"""The command line while it is being loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = Path(sysconfig.get_path("scripts"), "flux-async")
COMMANDS = [[sys.executable, "-m", "flux_async"], [str(SCRIPT)]]


@pytest.mark.parametrize("command", COMMANDS, ids=["python -m", "script"])
@pytest.mark.parametrize("module", ["attrs", "anyio", "click", "flux_async_none"])
def test_ctrl_c_while_modules_are_loaded_is_exit_130_without_a_traceback(
    tmp_path: Path, command: list[str], module: str
) -> None:
    """Whichever module is being imported; one that nothing imports shows that the command works."""
    if not Path(command[0]).exists():
        pytest.skip("the command is not installed here")
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    ended = subprocess.run(
        [*command, "--version"],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": str(tmp_path)},
    )
    if module == "flux_async_none":
        assert (ended.returncode, ended.stderr) == (0, "")
    else:
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_ctrl_c_while_the_sandbox_is_loaded_is_exit_130_without_a_traceback(tmp_path: Path) -> None:
    """The sandbox has a command of its own."""
    (tmp_path / "attrs.py").write_text("raise KeyboardInterrupt\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    ended = subprocess.run(
        [sys.executable, "-m", "flux_async.sandbox", "--list-faults"],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": str(tmp_path)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
