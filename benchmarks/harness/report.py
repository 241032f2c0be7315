"""How a benchmark is asked, what it says about itself, and when it fails."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def parser(about: str | None, *, short: str, long: str) -> argparse.ArgumentParser:
    """Return the options that every script takes: the short form, which is the default, or the long one."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = made.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help=f"{short} (the default)")
    form.add_argument("--long", action="store_true", help=long)
    return made


def introduce(rounds: str, libraries: Iterable[str] = ()) -> None:
    """Print the machine, the versions of what is compared, and on what the figures rest."""
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("flux-async", *libraries))
    print(f"{machine()}\n{versions}\n{rounds}", flush=True)


def machine() -> str:
    """Return the cores this process may use, their model, the system and the Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{cores} cores of {_model()}, {platform.system()} {platform.machine()}, {python}"


def version_of(name: str) -> str:
    """Return the version of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median, and the lowest and the highest where there are several."""
    middle = f"{statistics.median(values):{form}}"
    return middle if len(values) < 2 else f"{middle} ({min(values):{form}}-{max(values):{form}})"


def exit_code(*, good: bool, long: bool) -> int:
    """Return 1 where a limit on time was missed in the long form.

    A machine that is busy, as CI is, makes the short form slow without anything being wrong: it fails only
    where something breaks.
    """
    if not good and not long:
        print("a limit was missed; in the short form that is only reported", file=sys.stderr)
    return int(long and not good)


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown model"
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown model")
