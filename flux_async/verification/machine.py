"""What this process may use of the machine: cores and memory, also where a container limits them."""

from __future__ import annotations

import os
from pathlib import Path

WORKER_MEMORY = 1_500_000_000
"""Bytes that a worker needs at most, for images of 12 megapixels."""
MEMORY_SHARE = 0.5
"""Share of the memory that all workers together may need."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of a container."""


def default_workers(cgroup: Path = CGROUP) -> int:
    """Return how many worker processes suit the machine: one for each core, as far as memory allows.

    8 cores and 8 GB give 2: half of the memory holds 2 workers of 1.5 GB.
    """
    by_memory = usable_memory(cgroup) * MEMORY_SHARE // WORKER_MEMORY
    return int(max(1, min(usable_cores(cgroup), by_memory)))


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Return the number of cores, at least 1: those this process may run on, less by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line(cgroup / "cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def usable_memory(cgroup: Path = CGROUP) -> float:
    """Return the bytes of memory: the machine's, or a container's limit; infinite where unknown."""
    names = getattr(os, "sysconf_names", {})
    known = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names)
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if known else float("inf")
    limit = _first_line(cgroup / "memory.max")
    return min(memory, float(limit)) if limit.isdecimal() else memory


def _first_line(file: Path) -> str:
    """Return the first line of a file; empty where there is none."""
    try:
        return file.read_text("ascii").partition("\n")[0]
    except (OSError, ValueError):
        return ""
