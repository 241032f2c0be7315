"""Measures what observers cost: the same batch without one, with log lines, and with OpenTelemetry.

One process (``harness/observed_runs.py``) runs the batch with each observer in turn, in another order in
every round, with a journal on a file and against a server in another process (``harness/vendor.py``): once
with the results saved in a folder, as the command saves them, and once without any download, where a task
costs as little as it can. A result is one pixel. The CPU is that of all threads of the process, per finished
task; each run is compared with the one without an observer in the same round.

- ``no events`` has the methods of the event stream replaced by ones that do nothing.
- ``log lines`` writes all lines from INFO on to a file, as ``logging.basicConfig(filename=…)`` does.
- ``OpenTelemetry`` has the SDK with its batch processor, samples all spans and exports none.
- ``its SDK alone`` makes as many spans and measurements by hand, in the shortest way there is.
- ``no SDK`` has the observer, and OpenTelemetry's API only.

In the long form it exits 1 where log lines add more than 5 % to a task whose result is saved, or
OpenTelemetry more than 10 %.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import attrs

from harness.processes import child, serving
from harness.report import exit_code, introduce, parser, spread

HERE = Path(__file__).parent / "harness"


@attrs.frozen
class Observer:
    """One that is measured.

    Attributes:
        title: What it is called in the table.
        name: What it is called in ``observed_runs.py``.
        most: The share of the CPU of a task that it may add, where there is a limit.
    """

    title: str
    name: str
    most: float | None = None


NONE = Observer("none", "none")
OBSERVERS = (
    NONE,
    Observer("no events", "without-events"),
    Observer("log lines", "log", most=0.05),
    Observer("OpenTelemetry", "otel", most=0.10),
    Observer("its SDK alone", "by-hand"),
    Observer("no SDK", "no-sdk"),
)


def measured(rounds: int, tasks: int, transport: str, *, saves: bool) -> dict[Observer, list[float]]:
    """Return the CPU of a finished task with each observer, in milliseconds, by rounds."""
    taken: dict[Observer, list[float]] = {observer: [] for observer in OBSERVERS}
    named = {observer.name: observer for observer in OBSERVERS}
    options = (
        "--rounds",
        rounds,
        "--tasks",
        tasks,
        "--transport",
        transport,
        *(("--saves",) if saves else ()),
    )
    with (
        serving(HERE / "vendor.py", "--speed", 10.0, "--seed", 1, "--trip", 0.05) as url,
        child(HERE / "observed_runs.py", url, *options) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            name, cpu_ms = json.loads(line)
            taken[named[name]].append(cpu_ms)
            print(f"{named[name].title}: {cpu_ms:.2f} ms", file=sys.stderr)
        if process.wait():
            raise SystemExit("observers: a run failed")
    return taken


def show(title: str, taken: dict[Observer, list[float]], *, has_limits: bool) -> bool:
    """Print a table; return whether the limits are kept."""
    print(f"\n{title:<40}{'CPU, ms a task':>24}{'of the run without':>24}{'limit':>8}")
    good = True
    for observer, found in taken.items():
        shares = [mine / base for mine, base in zip(found, taken[NONE], strict=True)]
        most = observer.most if has_limits else None
        limit = "" if most is None else f"{1 + most:.2f}"
        print(f"{observer.title:<40}{spread(found):>24}{quartiles(shares):>24}{limit:>8}")
        good = good and (most is None or statistics.median(shares) <= 1 + most)
    return good


def quartiles(values: list[float]) -> str:
    """Return the median, and the quartiles where there are as many values."""
    if len(values) < 4:
        return spread(values, ".3f")
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def main() -> int:
    """Measure, print, judge."""
    options = parser(
        __doc__,
        short="one round of 50 tasks, all in flight, twice",
        long="40 and 20 rounds of 100 tasks, all in flight: half an hour",
    )
    options.add_argument("--transport", default="httpx", help="httpx, httpx2 or aiohttp")
    asked = options.parse_args()
    saved, not_downloaded, tasks = (40, 20, 100) if asked.long else (1, 1, 50)
    about = f"{asked.transport}: rounds of {tasks} tasks, all in flight; medians (lowest-highest; quartiles"
    introduce(f"{about} of what is compared)", ("httpx", "opentelemetry-api", "opentelemetry-sdk"))
    good = True
    for rounds, saves in ((saved, True), (not_downloaded, False)):
        taken = measured(rounds, tasks, asked.transport, saves=saves)
        title = f"results {'saved' if saves else 'not downloaded'}, {rounds} rounds"
        good = show(title, taken, has_limits=saves) and good
    return exit_code(good=good, long=asked.long)


if __name__ == "__main__":
    raise SystemExit(main())
