"""Measures what observers cost: the same batch without one, with log lines, and with OpenTelemetry.

Each run is a process of its own, which runs ``run_batch`` with a journal on a file, against a server in
another (``harness/vendor.py``), as in ``batch.py``. No image is downloaded, so that a task costs as little as
it can. Runs take turns, in another order in every round. ``log lines`` writes all of them from INFO on to a
file; ``OpenTelemetry`` has the SDK, samples all spans and drops them in batches: what an exporter does is not
included; ``without an SDK`` has the observer only.

The CPU of a task is that of the whole process without its start (imports, a client made), per finished task.
In the long form it exits 1 where log lines add more than 5 % to it, or OpenTelemetry more than 10 %.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import attrs

from harness.processes import child, serving
from harness.report import exit_code, introduce, parser, spread

HERE = Path(__file__).parent / "harness"
LONGEST_S = 3_600.0


@attrs.frozen
class Observer:
    """One that is measured.

    Attributes:
        title: What it is called in the table.
        name: What it is called in ``batch_clients.py``.
        most: The share of the CPU of a task that it may add, where there is a limit.
    """

    title: str
    name: str = ""
    most: float | None = None


NONE = Observer("none")
OBSERVERS = (
    NONE,
    Observer("log lines", "log", most=0.05),
    Observer("OpenTelemetry", "otel", most=0.10),
    Observer("OpenTelemetry without an SDK", "no-sdk"),
)


def cpu_ms(observer: Observer, client: str, tasks: int, *, seed: int) -> float:
    """Return the CPU of a finished task of one run, in milliseconds."""
    with (
        serving(HERE / "vendor.py", "--speed", 10.0, "--seed", seed, "--trip", 0.05) as url,
        tempfile.TemporaryDirectory(prefix="observers-") as folder,
        child(
            *(HERE / "batch_clients.py", client, url, "--tasks", tasks, "--slots", 100, "--speed", 10.0),
            *("--journal", f"{folder}/journal.sqlite3"),
            *(("--observer", observer.name) if observer.name else ()),
        ) as process,
    ):
        said, _ = process.communicate(timeout=LONGEST_S)
        if process.returncode:
            raise SystemExit(f"observers: the run with {observer.title} failed")
        figures = json.loads(said)
    if figures["finished"] != tasks:
        raise SystemExit(f"observers: {figures['finished']} of {tasks} with {observer.title}")
    spent: float = (figures["cpu_s"] - figures["start_s"]) / tasks * 1000
    return spent


def main() -> int:
    """Measure, print, judge."""
    options = parser(
        __doc__,
        short="2 rounds of 100 tasks, 100 in flight",
        long="5 rounds of 1,000 tasks, 100 in flight: ten minutes",
    )
    options.add_argument("--client", default="ours-httpx", help="as batch_clients.py names it")
    asked = options.parse_args()
    rounds, tasks = (5, 1_000) if asked.long else (2, 100)
    about = f"{asked.client}: {rounds} rounds of {tasks:,} tasks, 100 in flight; medians (lowest-highest)"
    introduce(about, ("httpx", "opentelemetry-api", "opentelemetry-sdk"))
    taken: dict[Observer, list[float]] = {observer: [] for observer in OBSERVERS}
    for number in range(rounds):
        first = number % len(OBSERVERS)
        for observer in OBSERVERS[first:] + OBSERVERS[:first]:
            taken[observer].append(cpu_ms(observer, asked.client, tasks, seed=number))
            print(f"round {number + 1}, {observer.title}: {taken[observer][-1]:.2f} ms", file=sys.stderr)
    print(f"{'observer':<30}{'CPU, ms a task':>24}{'of the run without':>24}{'limit':>8}")
    good = True
    for observer, found in taken.items():
        shares = [mine / base for mine, base in zip(found, taken[NONE], strict=True)]
        limit = "" if observer.most is None else f"{1 + observer.most:.2f}"
        print(f"{observer.title:<30}{spread(found):>24}{spread(shares, '.3f'):>24}{limit:>8}")
        good = good and (observer.most is None or statistics.median(shares) <= 1 + observer.most)
    return exit_code(good=good, long=asked.long)


if __name__ == "__main__":
    raise SystemExit(main())
