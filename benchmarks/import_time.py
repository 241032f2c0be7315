"""How long ``import flux_async`` and ``flux-async --help`` take, next to ``import openai`` in the same run.

Everything happens in fresh interpreters that take turns, and medians are compared, so that a machine that is
busy for a moment is busy for all. Imports are timed inside the interpreter, without its own start; commands
from outside, from their start to their end, and so is ``python -c "import openai"``: openai has no command
any more. For comparison there are ``httpx --help``, which loads click and rich, and an interpreter that does
nothing. In the long form it exits 1 where the import takes 0.4 times what openai takes or more, or the
command 0.6 times.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from harness.report import exit_code, introduce, parser

LIMITS = (0.40, 0.60)

CHILD = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
PAIRS = (("import flux_async", "import openai"), ("flux-async --help", "python, import openai"))


def import_ms(module: str) -> float:
    """Return the milliseconds one import takes in a fresh interpreter."""
    command = [sys.executable, "-I", "-c", CHILD.format(module)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) * 1000


def run_ms(*command: str) -> float:
    """Return the milliseconds a command takes from its start to its end."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return (time.perf_counter() - began) * 1000


def script(name: str) -> str:
    """Return the path of a command that is installed beside this interpreter."""
    return str(Path(sysconfig.get_path("scripts"), name))


MEASURED: dict[str, Callable[[], float]] = {
    "import flux_async": lambda: import_ms("flux_async.public"),
    "import openai": lambda: import_ms("openai"),
    "flux-async --help": lambda: run_ms(script("flux-async"), "--help"),
    "python, import openai": lambda: run_ms(sys.executable, "-c", "import openai"),
    "httpx --help": lambda: run_ms(script("httpx"), "--help"),
    "python": lambda: run_ms(sys.executable, "-c", "pass"),
}


def main() -> int:
    """Measure, print one line for each and the ratios."""
    options = parser(__doc__, short="5 rounds", long="40 rounds").parse_args()
    rounds = 40 if options.long else 5
    introduce(f"{rounds} rounds; medians", ["openai", "httpx"])

    times: dict[str, list[float]] = {name: [] for name in MEASURED}
    for measure in MEASURED.values():
        measure()  # writes the bytecode files
    for _ in range(rounds):
        for name, measure in MEASURED.items():
            times[name].append(measure())

    for name, taken in times.items():
        print(f"{name:<23}{statistics.median(taken):8.1f} ms   ({min(taken):.1f}-{max(taken):.1f})")
    ratios = [statistics.median(times[ours]) / statistics.median(times[theirs]) for ours, theirs in PAIRS]
    print(f"ratios: import {ratios[0]:.2f}, --help {ratios[1]:.2f}; limits {LIMITS[0]:.2f}, {LIMITS[1]:.2f}")
    good = all(ratio < limit for ratio, limit in zip(ratios, LIMITS, strict=True))
    return exit_code(good=good, long=options.long)


if __name__ == "__main__":
    raise SystemExit(main())
