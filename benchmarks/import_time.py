"""How long ``import flux_async`` takes, next to ``import openai`` in the same run.

Each import happens in a fresh interpreter, the two take turns, and medians are compared, so that a machine
that is busy for a moment is busy for both. In the long form it
exits 1 where the ratio reaches the limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from harness.report import exit_code, introduce, parser

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
    options = parser(__doc__, short="5 imports each", long="40 imports each").parse_args()
    rounds = 40 if options.long else 5
    introduce(f"{rounds} imports each; medians", [THEIRS])

    names = (OURS, THEIRS)
    for name in names:
        import_ms(name)  # writes the bytecode files
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(import_ms(name))

    for name, taken in times.items():
        print(f"import {name:<12} {statistics.median(taken):7.1f} ms   ({min(taken):.1f}-{max(taken):.1f})")
    ratio = statistics.median(times[OURS]) / statistics.median(times[THEIRS])
    print(f"ratio {ratio:.2f}, limit {LIMIT:.2f}")
    return exit_code(good=ratio < LIMIT, long=options.long)


if __name__ == "__main__":
    raise SystemExit(main())
