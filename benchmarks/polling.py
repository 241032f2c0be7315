"""Compares learned polling, and other schedules, with the best possible schedule.

A simulation of tasks whose generation times are drawn from a known distribution, on the package's own
``PollPolicy``, ``PollState`` and ``GenerationTimes``; no network, no clock. The price of a schedule is
``c x polls + lag``: ``lag`` is the seconds from a task's end to the poll that sees it, and ``c`` says how
many seconds one poll is worth. The bound is the cheapest schedule for a known distribution; it is found by
dynamic programming on a grid of 50 ms. The vendor's times are cut to the second,
as the real ones are.

What a poll is worth, ``c`` = 0.5 s, is ``PollPolicy.poll_cost_s``: then the bound itself takes about three
polls a task, six a second at the vendor's 20 submits in 10 s. At 0.35 s no fixed interval would be better for
a task of 13 s than the API page's 3 s; ``--long`` shows 0.25 and 1.0 as well. A poll takes no time here.

Exits 1 where the learned schedule, on any of the three lasting distributions, costs over 1.10 times the bound
once 300 tasks have ended, or over 1.25 times over the first 300; or where, after 10,000 tasks were begun at
one moment, any 100 ms hold more than 2.5 times the mean rate of polls from the first poll on, while 10,000
are in flight.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from flux_async import PollPolicy, TaskId, TaskRecord, TaskStatus
from flux_async.policy.generation_times import GenerationTimes
from flux_async.policy.polling import PollState
from harness.charts import write
from harness.report import introduce, parser

POLL_COST_S = PollPolicy().poll_cost_s
COLD = 300
SUBMITS_PER_S = 2.0
LONGEST_S = 290.0
GRID_S = 0.05
MOST_WARM, MOST_COLD, MOST_HERD = 1.10, 1.25, 2.5
HERD, SLICE_S = 10_000, 0.1
EPOCH = 1_790_000_000.0

Draw = Callable[[random.Random], tuple[str, float]]
"""Returns the kind of a task and its generation time."""

RHYTHMS = {
    "learned": PollPolicy(),
    "fixed 3 s": PollPolicy.fixed(3.0, jitter=0.0),
    "backoff": PollPolicy.backoff(1.0, growth=1.5, cap_s=10.0, jitter=0.0),
    "fixed 0.5 s": PollPolicy.fixed(0.5, jitter=0.0),
}
"""The learned one; the API page's; 1 s, times 1.5 up to 10 s; and what replicate's client does."""


# --- the distributions ------------------------------------------------------------------------------------


def log_normal(rng: random.Random, median: float, spread: float) -> float:
    """Draw a generation time."""
    return min(LONGEST_S, median * math.exp(rng.gauss(0.0, spread)))


def lasting(rng: random.Random) -> tuple[str, float]:
    """One kind of task, log-normal."""
    return "pro/edit", log_normal(rng, 12.0, 0.4)


def two_kinds(rng: random.Random) -> tuple[str, float]:
    """Two models, one fast, one slow, in turn as chance has it."""
    if rng.random() < 0.5:
        return "pro/edit", log_normal(rng, 8.0, 0.2)
    return "max/edit", log_normal(rng, 25.0, 0.2)


def heavy_tail(rng: random.Random) -> tuple[str, float]:
    """One task in twenty takes far longer than the others."""
    if rng.random() < 0.95:
        return "pro/edit", log_normal(rng, 10.0, 0.35)
    return "pro/edit", min(LONGEST_S, 20.0 * (1.0 - rng.random()) ** (-1.0 / 1.3))


LASTING: dict[str, Draw] = {
    "log-normal, 12 s": lasting,
    "two kinds, 8 and 25 s": two_kinds,
    "heavy tail": heavy_tail,
}
CHANGES = (12.0, 24.0, 6.0)


# --- the bound --------------------------------------------------------------------------------------------


@attrs.frozen
class Bound:
    """The best schedule for a known distribution, and its price."""

    price: float
    polls: tuple[float, ...]


def best(times: Sequence[float], cost: float) -> Bound:
    """Find the schedule that is cheapest for these generation times: exact, on the grid."""
    ordered = sorted(times)
    steps = int(ordered[-1] / GRID_S) + 2
    ended = [bisect_left(ordered, step * GRID_S) / len(ordered) for step in range(steps)]
    area = [0.0, *itertools.accumulate((a + b) / 2 * GRID_S for a, b in itertools.pairwise(ended))]
    follows, after = [0.0] * steps, [steps - 1] * steps
    totals = area[:]
    latest = steps - 1
    for here in range(steps - 2, -1, -1):
        age, share = here * GRID_S, ended[here]
        least = math.inf
        for there in range(here + 1, latest + 1):  # the best poll after an earlier one is never a later one
            price = totals[there] - share * there * GRID_S
            if price < least:
                least, after[here] = price, there
        latest = after[here]
        follows[here] = cost * (1.0 - share) + least - area[here] + share * age
        totals[here] += follows[here]
    polls, place = [], 0
    while place < steps - 1:
        place = after[place]
        polls.append(place * GRID_S)
    return Bound(follows[0], tuple(polls))


def bound_of(draw: Draw, cost: float, samples: int) -> Bound:
    """Find the bound of a distribution, each kind by itself; the polls are those of the first kind."""
    rng = random.Random(17)
    kinds: dict[str, list[float]] = {}
    for _ in range(samples):
        kind, seconds = draw(rng)
        kinds.setdefault(kind, []).append(seconds)
    bounds = {kind: best(times, cost) for kind, times in kinds.items()}
    price = sum(bounds[kind].price * len(times) for kind, times in kinds.items()) / samples
    return Bound(price, bounds[min(bounds)].polls)


# --- the simulation ---------------------------------------------------------------------------------------


@attrs.frozen
class Job:
    """One task to come: its kind, how long it takes, and when it begins, where it waits for no place."""

    kind: str
    seconds: float
    starts_at: float = 0.0


@attrs.define(eq=False)
class Run:
    """Tasks are begun, polled, and found ended.

    Attributes:
        policy: The rhythm.
        known: What is known of generation times.
        seed: Of the spread of polls.
        tells_times: Whether the vendor's records tell when a task began and ended.
        polls: How many each task took.
        lags: How late each end was seen.
        moments: The moment of every poll.
        seconds: The time that all ``next_poll`` took.
    """

    policy: PollPolicy
    known: GenerationTimes = attrs.field(factory=GenerationTimes)
    seed: int = 5
    tells_times: bool = True
    polls: list[int] = attrs.field(factory=list, init=False)
    lags: list[float] = attrs.field(factory=list, init=False)
    moments: list[float] = attrs.field(factory=list, init=False)
    seconds: float = attrs.field(default=0.0, init=False)
    _rng: random.Random = attrs.field(factory=random.Random, init=False)
    _due: list[tuple[float, int, float, PollState]] = attrs.field(factory=list, init=False)

    def go(self, jobs: Sequence[Job], slots: int | None = None) -> Run:
        """Simulate them all; with ``slots`` that many are in flight, and one begins where another ended."""
        self._rng.seed(self.seed)
        self.polls, self.lags = [0] * len(jobs), [0.0] * len(jobs)
        coming = 0
        while coming < (slots or 0):
            self._begin(coming, jobs[coming].kind, 0.0)
            coming += 1
        while self._due or coming < len(jobs):
            next_at = self._due[0][0] if self._due else math.inf
            if not slots and coming < len(jobs) and jobs[coming].starts_at <= next_at:
                self._begin(coming, jobs[coming].kind, jobs[coming].starts_at)
                coming += 1
                continue
            now, number, started_at, watch = heapq.heappop(self._due)
            self.moments.append(now)
            if not self._look(now, number, started_at, watch, jobs[number].seconds) or not slots:
                continue
            if coming < len(jobs):
                self._begin(coming, jobs[coming].kind, now)
                coming += 1
        return self

    def price(self, first: int = 0, last: int | None = None, *, cost: float = POLL_COST_S) -> float:
        """Return the mean price of some of the tasks."""
        polls, lags = self.polls[first:last], self.lags[first:last]
        return (cost * sum(polls) + sum(lags)) / len(polls)

    def _begin(self, number: int, kind: str, now: float) -> None:
        watch = PollState(
            policy=self.policy,
            task_id=TASK,
            started_at=now,
            deadline=now + FOREVER_S,
            timeout_s=FOREVER_S,
            observation=self.known.begin(now, kind=kind, age=0.0),
        )
        self._plan(now, number, now, watch)

    def _plan(self, now: float, number: int, started_at: float, watch: PollState) -> None:
        draw, began = self._rng.random(), time.perf_counter()
        delay = watch.next_poll(now, draw)
        self.seconds += time.perf_counter() - began
        heapq.heappush(self._due, (now + (delay or 0.0), number, started_at, watch))

    def _look(self, now: float, number: int, started_at: float, watch: PollState, seconds: float) -> bool:
        """Make one poll; say whether the task has ended."""
        self.polls[number] += 1
        ended = now - started_at >= seconds
        record = self._record(started_at, seconds) if ended else AT_WORK
        watch.saw_record(record, now)
        if ended:
            self.lags[number] = now - started_at - seconds
        else:
            self._plan(now, number, started_at, watch)
        return ended

    def _record(self, started_at: float, seconds: float) -> TaskRecord:
        """The vendor's record of an end: his times are cut to the second."""
        if not self.tells_times:
            return DONE
        created, completed = math.floor(EPOCH + started_at), math.floor(EPOCH + started_at + seconds)
        return attrs.evolve(
            DONE,
            created_at=datetime.fromtimestamp(created, UTC),
            completed_at=datetime.fromtimestamp(completed, UTC),
        )


TASK = TaskId("t")
AT_WORK = TaskRecord(task_id=TASK, status=TaskStatus.GENERATING)
DONE = TaskRecord(task_id=TASK, status=TaskStatus.SUCCESS)
FOREVER_S = 10_000.0


def paced(draw: Draw, count: int, seed: int) -> list[Job]:
    """Draw tasks that are submitted at the vendor's rate limit."""
    rng = random.Random(seed)
    return [Job(*draw(rng), starts_at=number / SUBMITS_PER_S) for number in range(count)]


# --- the figures ------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Row:
    """What one distribution says. Prices are in bounds."""

    name: str
    bound: float
    cold: float
    warm: float
    silent: float
    polls: float
    lag: float
    others: tuple[float, ...]


def compare(name: str, draw: Draw, *, cost: float, rounds: int, count: int) -> Row:
    """Measure all rhythms on one distribution; the cold figure is the mean of several beginnings."""
    bound = bound_of(draw, cost, 20_000).price
    policy = PollPolicy(poll_cost_s=cost)
    runs = [Run(policy, seed=seed).go(paced(draw, count, seed)) for seed in range(rounds)]
    cold = sum(run.price(0, COLD, cost=cost) for run in runs) / rounds
    warm = sum(run.price(COLD, cost=cost) for run in runs) / rounds
    silent = Run(policy, tells_times=False).go(paced(draw, count, 99)).price(COLD, cost=cost)
    others = (Run(other).go(paced(draw, count, 99)) for other in list(RHYTHMS.values())[1:])
    last = runs[-1]
    return Row(
        name=name,
        bound=bound,
        cold=cold / bound,
        warm=warm / bound,
        silent=silent / bound,
        polls=sum(last.polls[COLD:]) / (count - COLD),
        lag=sum(last.lags[COLD:]) / (count - COLD),
        others=tuple(other.price(COLD, cost=cost) / bound for other in others),
    )


def changing(*, rounds: int, count: int) -> Row:
    """The service becomes half, then four times as fast: each time the tasks from the 300th on are warm."""
    bounds, colds, warms, others = 0.0, 0.0, 0.0, [0.0] * (len(RHYTHMS) - 1)
    polls, lag = 0.0, 0.0
    share = 1.0 / (len(CHANGES) * rounds)
    for seed in range(rounds):
        rng = random.Random(seed)
        times = [
            (part, log_normal(rng, median, 0.4)) for part, median in enumerate(CHANGES) for _ in range(count)
        ]
        jobs = [Job("pro/edit", seconds, number / SUBMITS_PER_S) for number, (_, seconds) in enumerate(times)]
        runs = [Run(policy, seed=seed).go(jobs) for policy in RHYTHMS.values()]
        for part in range(len(CHANGES)):
            begin, warm, end = part * count, part * count + COLD, (part + 1) * count
            bound = best([seconds for at, seconds in times if at == part], POLL_COST_S).price
            bounds += bound * share
            colds += runs[0].price(begin, warm) / bound * share
            warms += runs[0].price(warm, end) / bound * share
            polls += sum(runs[0].polls[warm:end]) / (end - warm) * share
            lag += sum(runs[0].lags[warm:end]) / (end - warm) * share
            for place, run in enumerate(runs[1:]):
                others[place] += run.price(warm, end) / bound * share
    return Row(
        name="12, 24, 6 s in turn",
        bound=bounds,
        cold=colds,
        warm=warms,
        silent=math.nan,
        polls=polls,
        lag=lag,
        others=tuple(others),
    )


def herd(policy: PollPolicy, *, knows: bool) -> float:
    """Begin 10,000 tasks at once; return the fullest 100 ms over the mean, while as many are in flight."""
    known = Run(policy).go(paced(lasting, 1_000, 1)).known if knows else GenerationTimes()
    rng = random.Random(2)
    jobs = [Job(*lasting(rng)) for _ in range(3 * HERD)]
    run = Run(policy, known).go(jobs, slots=HERD)
    cut = run.moments[int(len(run.moments) * 0.7)]
    begin = run.moments[0] - SLICE_S / 2  # ticks lie in the middle of a slice, none on its edge
    counts = Counter(int((at - begin) / SLICE_S) for at in run.moments if at < cut)
    return max(counts.values()) / (sum(counts.values()) * SLICE_S / (cut - begin))


def speed(policy: PollPolicy, count: int) -> float:
    """Return the microseconds of one ``next_poll``, with its share of all learning."""
    empty = Run(policy)
    for _ in range(10_000):
        began = time.perf_counter()
        empty.seconds += time.perf_counter() - began
    run = Run(policy).go(paced(lasting, count, 4))
    return (run.seconds / (len(run.moments) + count) - empty.seconds / 10_000) * 1e6


def plot(path: Path) -> None:
    """Draw when tasks end and when they are polled, before and after learning."""
    run = Run(PollPolicy()).go(paced(lasting, 1_500, 6))
    rng = random.Random(8)
    ends = Counter(int(lasting(rng)[1] * 2) for _ in range(20_000))
    tallest = max(ends.values())
    bars = "".join(
        f'<rect x="{40 + half * 8}" y="{180 - 140 * count / tallest:.1f}" width="7" '
        f'height="{140 * count / tallest:.1f}" fill="#b9c8d9"/>'
        for half, count in sorted(ends.items())
        if half < 80
    )
    rows = {
        "the best there is": bound_of(lasting, POLL_COST_S, 20_000).polls,
        "learned, after 1,500 tasks": planned(PollPolicy(jitter=0.0), run.known),
        "learned, before the first": planned(PollPolicy(jitter=0.0), GenerationTimes()),
        "fixed 3 s": tuple(3.0 * step for step in range(1, 14)),
    }
    marks = ""
    for place, (name, polls) in enumerate(rows.items()):
        y = 215 + 26 * place
        marks += f'<text x="690" y="{y + 4}">{name}</text>'
        marks += "".join(f'<circle cx="{40 + 16 * at:.1f}" cy="{y}" r="4"/>' for at in polls if at < 40)
    scale = "".join(f'<text x="{36 + 16 * at}" y="196">{at}</text>' for at in range(0, 41, 5))
    title = "Generation times (log-normal, median 12 s) and the polls of a task, by its age in seconds"
    drawn = f'<text x="40" y="24">{title}</text>{bars}{scale}<g fill="#24507f">{marks}</g>'
    write(path, 900, 320, drawn)


def planned(policy: PollPolicy, known: GenerationTimes) -> tuple[float, ...]:
    """Return the ages at which a task that never ends is polled."""
    observation, polls = known.begin(0.0, kind="pro/edit", age=0.0), [0.0]
    while polls[-1] < 40.0:
        polls.append(polls[-1] + observation.gap(polls[-1], policy.poll_cost_s, policy.cap_s))
    return tuple(polls[1:])


def show(rows: Sequence[Row], cost: float) -> None:
    """Print a table; prices are in bounds."""
    print(f"c = {cost:g} s a poll; prices as multiples of the bound")
    names = "".join(f"{name:>13}" for name in list(RHYTHMS)[1:])
    print(f"{'':<24}{'bound':>7}{'cold':>7}{'warm':>7}{'silent':>8}{'polls':>7}{'lag, s':>8}{names}")
    for row in rows:
        silent = "-" if math.isnan(row.silent) else f"{row.silent:.3f}"
        others = "".join(f"{price:>13.2f}" for price in row.others)
        figures = (
            f"{row.bound:>7.3f}{row.cold:>7.3f}{row.warm:>7.3f}{silent:>8}{row.polls:>7.2f}{row.lag:>8.2f}"
        )
        print(f"{row.name:<24}{figures}{others}")


def main() -> int:
    """Print the figures and hold them against the limits."""
    short, long = "4 rounds of 1,500 tasks", "20 rounds of 5,000 tasks, and other costs of a poll"
    asked = parser(__doc__, short=short, long=long)
    asked.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the schedules")
    options = asked.parse_args()
    rounds, count = (20, 5_000) if options.long else (4, 1_500)
    introduce(f"{long if options.long else short}; a simulation: seeds decide, not the machine")
    costs = (POLL_COST_S, 0.25, 1.0) if options.long else (POLL_COST_S,)
    good = True
    for cost in costs:
        rows = [compare(name, draw, cost=cost, rounds=rounds, count=count) for name, draw in LASTING.items()]
        if cost == POLL_COST_S:
            good = all(row.warm <= MOST_WARM and row.cold <= MOST_COLD for row in rows)
            show([*rows, changing(rounds=rounds // 2, count=1_500)], cost)
        else:
            show(rows, cost)
    print(
        f"{rounds} rounds of {count:,} tasks; cold: the first {COLD} of each, or of each change; "
        "silent: warm, without the vendor's times"
    )
    herds = {"nothing known": herd(PollPolicy(), knows=False), "learned": herd(PollPolicy(), knows=True)}
    herds["fixed 3 s, no jitter"] = herd(PollPolicy.fixed(3.0, jitter=0.0), knows=False)
    words = "; ".join(f"{name} {most:.2f}" for name, most in herds.items())
    print(f"{HERD:,} at once, fullest 100 ms / mean: {words}")
    mine, plain = (speed(policy, 4_000) for policy in (PollPolicy(), PollPolicy.fixed(3.0)))
    print(f"next_poll, with its share of all learning: {mine:.1f} us; of a fixed rhythm: {plain:.1f} us")
    print(f"limits: warm <= {MOST_WARM}, cold <= {MOST_COLD}, 100 ms <= {MOST_HERD} x mean")
    if options.plot:
        plot(options.plot)
    return 0 if good and max(herds["nothing known"], herds["learned"]) <= MOST_HERD else 1


if __name__ == "__main__":
    raise SystemExit(main())
