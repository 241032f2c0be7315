"""How long ``import flux_async`` takes, next to ``import openai`` in the same run.

Each import happens in a fresh interpreter, the two take turns, and medians are compared, so that a machine
that is busy for a moment is busy for both. Exits 1 where the ratio reaches the limit.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

OURS, THEIRS = "flux_async", "openai"
LIMIT = 0.60

CHILD = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def import_ms(module: str) -> float:
    """Return the milliseconds one import takes in a fresh interpreter."""
    command = [sys.executable, "-I", "-c", CHILD.format(module)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) * 1000


def main() -> int:
    """Measure, print one line for each package and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="40 imports each instead of 10")
    rounds = 40 if parser.parse_args().long else 10

    names = (OURS, THEIRS)
    for name in names:
        import_ms(name)  # writes the bytecode files
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(import_ms(name))

    for name, taken in times.items():
        print(f"import {name:<12} {statistics.median(taken):7.1f} ms   (best {min(taken):.1f}, of {rounds})")
    ratio = statistics.median(times[OURS]) / statistics.median(times[THEIRS])
    print(f"ratio {ratio:.2f}, limit {LIMIT:.2f}")
    return 0 if ratio < LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
