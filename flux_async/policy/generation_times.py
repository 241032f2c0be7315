"""How long do tasks take? Learned from every task that is waited for, and forgotten by and by.

For each kind of task (model and mode) there is a life table: how many ended at which age, and how many were
still at work. From it follows the *hazard*, the chance that a task which has come so far ends now, and from
that the best time of the next look (:func:`best_looks`). A kind of which little is known is taken to be
like all kinds together, and those to be like a first guess, which is low: to expect ends too early costs a
few looks, to expect them too late costs every caller his time.

No single word of the vendor is trusted. A task has ended between our last look that found it at work and our
first that did not; the vendor's own times count only inside those bounds.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import attrs

from flux_async.models import EditRequest, ImageRequest

FIRST_EDGE_S = 0.5
LAST_EDGE_S = 900.0
_RATIO = 1.05
BINS = math.ceil(math.log(LAST_EDGE_S / FIRST_EDGE_S, _RATIO)) + 1
EDGES = (0.0, *(min(FIRST_EDGE_S * _RATIO**step, LAST_EDGE_S) for step in range(BINS)))
"""Ages in seconds, ``BINS + 1`` of them: bin ``b`` reaches from ``EDGES[b]`` to ``EDGES[b + 1]``."""

SHORTEST_GAP_S = 0.3

HALF_LIFE = 300.0
"""After so many ends, an end counts half: the service changes with load and releases."""
FULL_MEMORY = HALF_LIFE / math.log(2.0)
"""The ends that are remembered at most, each as far as it still counts."""

_GUESSED_MEDIAN_S, _GUESSED_SPREAD = 8.0, 0.7
_WEIGHT_OF_GUESS = 5.0
_STRAGGLER_S, _STRAGGLER_HAZARD = 60.0, 0.05
_NEWS, _NEWS_OF_A_LOOK, _NEWS_AT_FIRST = 64.0, 0.125, 0.25
_GENERATIONS = 2
_EVENLY = 0.02
_WHOLE_SECOND, _FRACTION = 1.0, 0.1
_MOST_KINDS, _MOST_SCHEDULES = 32, 8
_VERSION = 1
_HEAVIEST = 1e6
_UNREADABLE = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)

Schedules = dict[tuple[float, float], list[float]]


def kind_of(request: ImageRequest) -> str:
    """Name what decides how long a task takes: model and mode."""
    mode = "edit" if isinstance(request, EditRequest) else "generate"
    return f"{request.model}/{mode}"


def _guess() -> list[float]:
    """Return the hazard where nothing is known: log-normal, but stragglers are not looked at eagerly."""
    scale = _GUESSED_SPREAD * math.sqrt(2.0)
    left = [1.0, *(math.erfc(math.log(age / _GUESSED_MEDIAN_S) / scale) / 2 for age in EDGES[1:])]
    hazard = [1.0 - after / before for before, after in pairwise(left)]
    return [
        min(chance, _STRAGGLER_HAZARD) if age >= _STRAGGLER_S else chance
        for age, chance in zip(EDGES, hazard, strict=False)
    ]


_GUESS = _guess()


@attrs.define(eq=False, repr=False)
class LifeTable:
    """The ends of one kind of task.

    Attributes:
        prior: The hazard of what it is taken to be like.
        ended: How many ended in each bin, as far as they still count.
        lost: How many were last seen at work in each bin, and then no more.
        at_work: How many that are waited for were last seen at work in each bin.
    """

    prior: Callable[[], Sequence[float]]
    ended: list[float] = attrs.field(factory=lambda: [0.0] * BINS)
    lost: list[float] = attrs.field(factory=lambda: [0.0] * BINS)
    at_work: list[int] = attrs.field(factory=lambda: [0] * BINS)
    _news: float = attrs.field(default=0.0, init=False)
    _enough_news: float = attrs.field(default=0.0, init=False)
    _forgets: float = attrs.field(default=0.0, init=False)
    _hazard: list[float] = attrs.field(factory=list, init=False, repr=False)
    _curve: list[float] = attrs.field(factory=list, init=False, repr=False)
    _schedules: Schedules = attrs.field(factory=dict, init=False, repr=False)

    @property
    def weight(self) -> float:
        """How many ends are remembered, each as far as it still counts."""
        return sum(self.ended)

    def hazard(self) -> list[float]:
        """Return the chance for each bin that a task which has come to it ends in it."""
        self._refresh()
        return self._hazard

    def curve(self) -> list[float]:
        """Return for every edge the share of tasks that have ended by that age."""
        self._refresh()
        return self._curve

    def schedule(self, poll_cost_s: float, longest_gap_s: float) -> list[float]:
        """Return for every edge the age of the best next look."""
        self._refresh()
        terms = (poll_cost_s, longest_gap_s)
        found = self._schedules.get(terms)
        if found is None:
            if len(self._schedules) >= _MOST_SCHEDULES:
                self._schedules.clear()
            found = best_looks(self._curve, poll_cost_s=poll_cost_s, longest_gap_s=longest_gap_s)
            self._schedules[terms] = found
        return found

    def seen_at_work(self, before: int, now: int) -> None:
        """Take note of a look that found a task at work, which was last so in bin ``before``."""
        self.at_work[before] -= 1
        self.at_work[now] += 1
        self._news += _NEWS_OF_A_LOOK

    def end(self, low: float, high: float) -> None:
        """Take note of an end between two ages: spread over them as ends are now believed to come."""
        low, high = min(low, EDGES[-1]), min(high, EDGES[-1])
        first, last = bin_of(low), bin_of(high)
        if first == last:
            self.ended[first] += 1.0
        else:
            self._spread(first, last, low, high)
        self._forgets += 1.0
        self._news += 1.0

    def merge(self, ended: Sequence[float], lost: Sequence[float]) -> None:
        """Add what was learned elsewhere, as far as there is room in the memory."""
        total = sum(ended)
        room = max(0.0, FULL_MEMORY - self.weight)
        share = min(1.0, room / total) if total else 0.0
        self.ended = [mine + share * other for mine, other in zip(self.ended, ended, strict=True)]
        self.lost = [mine + share * other for mine, other in zip(self.lost, lost, strict=True)]
        self._enough_news = 0.0

    def _spread(self, first: int, last: int, low: float, high: float) -> None:
        curve, even = self._curve or self.curve(), _EVENLY / (high - low)
        shares = []
        for place in range(first, last + 1):
            left, right = EDGES[place], EDGES[place + 1]
            width = min(right, high) - max(left, low)
            shares.append(width * ((curve[place + 1] - curve[place]) / (right - left) + even))
        total = sum(shares)
        for place, share in enumerate(shares, first):
            self.ended[place] += share / total

    def _refresh(self) -> None:
        """Fit the hazard anew where enough has happened; at first every few ends, later every fifty."""
        if self._news < self._enough_news:
            return
        # Of tasks that began together, the ends of one age follow those of another: remember them all.
        half_life = max(HALF_LIFE, _GENERATIONS * sum(self.at_work))
        kept, self._forgets = 0.5 ** (self._forgets / half_life), 0.0
        self.ended = [count * kept for count in self.ended]
        self.lost = [count * kept for count in self.lost]
        self._news, self._enough_news = 0.0, min(_NEWS, 1.0 + _NEWS_AT_FIRST * self.weight)
        self._fit()
        self._schedules.clear()

    def _fit(self) -> None:
        """Make hazard and curve from the table, the prior counting like five tasks in every bin."""
        prior, came_so_far = self.prior(), 0.0
        hazard = [0.0] * BINS
        for place in range(BINS - 1, -1, -1):
            ended, left = self.ended[place], self.lost[place] + self.at_work[place]
            came_so_far += ended
            weight = (
                came_so_far + 0.5 * left + _WEIGHT_OF_GUESS
            )  # who left in this bin was there for half of it
            hazard[place] = (ended + _WEIGHT_OF_GUESS * prior[place]) / weight
            came_so_far += left
        hazard = _smooth(_smooth(hazard))
        curve, at_work = [0.0], 1.0
        for chance in hazard:
            at_work *= 1.0 - chance
            curve.append(1.0 - at_work)
        self._hazard, self._curve = hazard, curve


@attrs.define(eq=False, repr=False)
class TaskObservation:
    """What is seen of one task that is waited for. However many wait for it, it counts once.

    Attributes:
        since: When the task was accepted, in monotonic seconds; where that is unknown, when the wait began.
        age_is_known: Which of the two it is.
    """

    _tables: tuple[LifeTable, ...]
    since: float
    age_is_known: bool
    _seen: float = attrs.field(default=0.0, init=False)
    _bin: int = attrs.field(default=0, init=False)
    _over: bool = attrs.field(default=False, init=False)

    @property
    def seen_at(self) -> float:
        """When the task was last seen at work; before that, when it began."""
        return self.since + self._seen

    def age_is(self, age: float, now: float) -> None:
        """Take the vendor's word for the age of a task, where it is unknown and the word can be true."""
        if not self.age_is_known and now - self.since <= age <= EDGES[-1]:
            self.since = now - age
            self.age_is_known = True

    def gap(self, since: float, poll_cost_s: float, longest_gap_s: float) -> float:
        """Return the seconds from a look at ``since`` that found nothing to the best next one."""
        age = max(0.0, since - self.since)
        if age >= EDGES[-1]:
            return longest_gap_s
        schedule = self._tables[0].schedule(poll_cost_s, longest_gap_s)
        return min(longest_gap_s, at_age(schedule, age) - age)

    def chance(self, now: float) -> float:
        """Return the chance that the task has ended since it was last seen at work."""
        curve = self._tables[0].curve()
        before, after = at_age(curve, self._seen), at_age(curve, max(now - self.since, self._seen))
        return (after - before) / (1.0 - before) if before < 1.0 else 1.0

    def at_work(self, now: float) -> None:
        """Take note of a look that found the task at work."""
        age = now - self.since
        if self._over or not age > self._seen:
            return
        self._seen = age
        if self.age_is_known:  # else it tells nothing about ages
            before, self._bin = self._bin, bin_of(age)
            for table in self._tables:
                table.seen_at_work(before, self._bin)

    def ended(self, now: float, vendor_s: float | None = None) -> None:
        """Take note of the first look that found the task ended.

        Args:
            now: Monotonic seconds.
            vendor_s: How long it took by the vendor's clock, as far as he says.
        """
        if self._over:
            return
        self._close()
        if not self.age_is_known:
            return
        low, high = self._seen, max(self._seen, now - self.since)
        if vendor_s is not None and math.isfinite(vendor_s):
            slack = _WHOLE_SECOND if vendor_s == int(vendor_s) else _FRACTION  # times are cut to the second
            near, far = max(low, vendor_s - slack), min(high, vendor_s + slack)
            low, high = (near, far) if near <= far else (low, high)
        for table in self._tables:
            table.end(low, high)

    def left(self) -> None:
        """Take note that nobody waits for the task any more."""
        if self._over:
            return
        self._close()
        if self._bin:
            for table in self._tables:
                table.lost[self._bin] += 1.0

    def _close(self) -> None:
        self._over = True
        for table in self._tables:
            table.at_work[self._bin] -= 1


@attrs.define(eq=False, repr=False)
class GenerationTimes:
    """How long tasks take on one account: a life table of all, and one of each kind."""

    _all: LifeTable = attrs.field(factory=lambda: LifeTable(lambda: _GUESS), init=False)
    _kinds: dict[str, LifeTable] = attrs.field(factory=dict, init=False)
    _tables: dict[str | None, tuple[LifeTable, ...]] = attrs.field(factory=dict, init=False)

    def begin(self, now: float, *, kind: str | None = None, age: float | None = None) -> TaskObservation:
        """Return the trail of a task that is waited for from now on.

        Args:
            now: Monotonic seconds.
            kind: What it is like, for example its model and mode; None: like all.
            age: Seconds since it was accepted, where that is known.
        """
        tables = self._tables_of(kind)
        for each in tables:
            each.at_work[0] += 1
        return TaskObservation(tables, now - max(0.0, age or 0.0), age is not None)

    def weight(self, kind: str | None = None) -> float:
        """Return how many ends are remembered, each as far as it still counts."""
        if kind is None:
            return self._all.weight
        return self._kinds[kind].weight if kind in self._kinds else 0.0

    def dump(self) -> str:
        """Return what was learned, as JSON, for :meth:`merge`."""
        tables = {"": self._all} | self._kinds
        kinds = {kind: [_rounded(table.ended), _rounded(table.lost)] for kind, table in tables.items()}
        return json.dumps({"version": _VERSION, "kinds": kinds}, separators=(",", ":"))

    def merge(self, text: str) -> bool:
        """Add what was learned elsewhere; False, and nothing is changed, where it is not what we wrote."""
        try:
            kinds = _read(json.loads(text))
        except _UNREADABLE:
            return False
        for kind, (ended, lost) in kinds.items():
            table = self._table(kind) if kind else self._all
            if table is not None:
                table.merge(ended, lost)
        return True

    def _tables_of(self, kind: str | None) -> tuple[LifeTable, ...]:
        """Return where a task of that kind counts: one tuple for all of them."""
        table = None if kind is None else self._table(kind)
        if table is None:
            return self._tables.setdefault(None, (self._all,))
        return self._tables.setdefault(kind, (table, self._all))

    def _table(self, kind: str) -> LifeTable | None:
        if kind not in self._kinds:
            if len(self._kinds) >= _MOST_KINDS:
                return None
            self._kinds[kind] = LifeTable(self._all.hazard)
        return self._kinds[kind]


def _smooth(values: list[float]) -> list[float]:
    """Let neighbouring bins vouch for each other: few ends fall into each."""
    around = zip([values[0], *values[:-1]], values, [*values[1:], values[-1]], strict=True)
    return [(left + 2.0 * value + right) / 4.0 for left, value, right in around]


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _read(told: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Return the tables of a dump.

    Raises:
        Exception: One of ``_UNREADABLE``: it is none.
    """
    if told["version"] != _VERSION:
        raise ValueError
    return {str(kind): (_counts(ended), _counts(lost)) for kind, (ended, lost) in told["kinds"].items()}


def _counts(values: Any) -> list[float]:
    counts = [float(value) for value in values]
    if len(counts) != BINS or not all(0.0 <= count <= _HEAVIEST for count in counts):
        raise ValueError
    return counts


# --- the schedule of polls ------------------------------------------------------------------------------


def bin_of(age: float) -> int:
    """Return the bin that an age, not below 0, falls into; the last one where it is beyond all."""
    return min(bisect_right(EDGES, age) - 1, BINS - 1)


def at_age(values: Sequence[float], age: float) -> float:
    """Return the value at an age, of a curve whose values at the edges are given."""
    place = bin_of(age)
    left, right = EDGES[place], EDGES[place + 1]
    share = min(1.0, (age - left) / (right - left))
    return values[place] + share * (values[place + 1] - values[place])


def best_looks(ended: Sequence[float], *, poll_cost_s: float, longest_gap_s: float) -> list[float]:
    """Return, for every edge, the age of the best next look after one there that found nothing.

    Ages are cut into bins that grow by 5 % each, because a difference that matters at 5 s is nothing at
    500 s. The schedule is found from the last bin backwards (*dynamic programming*): after a look that found
    nothing, the next one is where the cost of that look, the time for which ends stay unseen until then, and
    all that follows are least in sum.

    Args:
        ended: For every edge, the share of tasks that have ended by that age.
        poll_cost_s: How many seconds of unseen end one look is worth.
        longest_gap_s: No gap is longer.
    """
    unseen = _areas(ended)
    follows = [0.0] * (BINS + 1)  # what a look here and all after it cost, over all tasks
    best = [EDGES[-1]] * (BINS + 1)
    totals = unseen[:]  # unseen + follows, where follows is known
    furthest = BINS
    for here in range(BINS - 1, -1, -1):
        age, share = EDGES[here], ended[here]
        latest = bisect_right(EDGES, age + longest_gap_s, here, furthest + 1) - 1
        first = bisect_right(EDGES, age + SHORTEST_GAP_S, here, furthest + 1)
        first = min(first, furthest)
        beyond = max(latest, first) + 1
        # Between two looks at a and b, ends stay unseen for the area of (ended - ended(a)) from a to b.
        costs = [
            total - share * edge
            for total, edge in zip(totals[first:beyond], EDGES[first:beyond], strict=True)
        ]
        least = min(costs)
        place = costs.index(least)
        furthest = first + place  # the best look after an earlier age is never a later one
        follows[here] = poll_cost_s * (1.0 - share) + least - unseen[here] + share * age
        totals[here] += follows[here]
        best[here] = _between(costs, place, furthest)
    return best


def _between(costs: Sequence[float], place: int, best: int) -> float:
    """Return the age at which a parabola through the best edge and its neighbours is lowest."""
    if not 0 < place < len(costs) - 1:
        return EDGES[best]
    left, age, right = EDGES[best - 1 : best + 2]
    low, middle, high = costs[place - 1 : place + 2]
    rise, fall = (low - middle) / (age - left), (high - middle) / (right - age)
    return age + (rise * (right - age) - fall * (age - left)) / (2.0 * (rise + fall))


def _areas(curve: Sequence[float]) -> list[float]:
    """Return the area under a curve up to every edge."""
    areas, total = [0.0], 0.0
    for place in range(BINS):
        total += (curve[place] + curve[place + 1]) / 2 * (EDGES[place + 1] - EDGES[place])
        areas.append(total)
    return areas
