"""Learns how long tasks take from every task that is waited for; older ends count less.

For each kind of task (model and mode) there is a life table: how many ended at which age, and how many were
still generating. From it follows the *hazard*, the probability that a task which has reached an age ends
then, and from that the best time of the next poll (:func:`best_polls`). A kind with few ends is taken to be
like all kinds together, and those like a first guess, which is low: expecting ends too early costs a few
polls, expecting them too late costs every caller time.

The vendor's times are not trusted. A task has ended between the last poll that found it generating and the
first that did not; the vendor's own times count only inside these bounds.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
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
"""After so many later ends an end counts half: the service changes with load and releases."""
FULL_MEMORY = HALF_LIFE / math.log(2.0)
"""Largest sum of the weights of all ends."""

_GUESSED_MEDIAN_S, _GUESSED_SPREAD = 8.0, 0.7
_WEIGHT_OF_GUESS = 5.0
_STRAGGLER_S, _STRAGGLER_HAZARD = 60.0, 0.05
_NEWS, _NEWS_OF_A_POLL, _NEWS_AT_FIRST = 64.0, 0.125, 0.25
_GENERATIONS = 2
_EVENLY = 0.02
_WHOLE_SECOND, _FRACTION = 1.0, 0.1
_MOST_KINDS, _MOST_SCHEDULES = 32, 8
_VERSION = 1
_HEAVIEST = 1e6
_UNREADABLE = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)

Schedules = dict[tuple[float, float], list[float]]


def kind_of(request: ImageRequest) -> str:
    """Return the kind of a request's task: model and mode."""
    mode = "edit" if isinstance(request, EditRequest) else "generate"
    return f"{request.model}/{mode}"


def _guess() -> list[float]:
    """Return the hazard before anything was learned: log-normal, but small for stragglers."""
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
        prior: The hazard that it starts from.
        ended: Weights of the tasks that ended in each bin.
        lost: Weights of the tasks last seen generating in each bin that are no longer waited for.
        generating: Number of tasks that are waited for and were last seen generating in each bin.
        schedules: The age of the best next poll for every edge, by cost of a poll and longest gap.
    """

    prior: Callable[[], Sequence[float]]
    ended: list[float] = attrs.field(factory=lambda: [0.0] * BINS)
    lost: list[float] = attrs.field(factory=lambda: [0.0] * BINS)
    generating: list[int] = attrs.field(factory=lambda: [0] * BINS)
    _news: float = attrs.field(default=0.0, init=False)
    _enough_news: float = attrs.field(default=0.0, init=False)
    _forgets: float = attrs.field(default=0.0, init=False)
    _hazard: list[float] = attrs.field(factory=list, init=False, repr=False)
    _curve: list[float] = attrs.field(factory=list, init=False, repr=False)
    schedules: Schedules = attrs.field(factory=dict, init=False, repr=False)

    @property
    def weight(self) -> float:
        """Sum of the weights of all ends."""
        return sum(self.ended)

    def hazard(self) -> list[float]:
        """Return for each bin the probability that a task which has reached it ends in it."""
        self._refresh()
        return self._hazard

    def curve(self) -> list[float]:
        """Return for every edge the share of tasks that have ended by that age."""
        self._refresh()
        return self._curve

    def median(self) -> float:
        """Return the age in seconds by which half of the tasks have ended."""
        return EDGES[min(bisect_left(self.curve(), 0.5), BINS)]

    def schedule(self, poll_cost_s: float, longest_gap_s: float) -> list[float]:
        """Return for every edge the age of the best next poll."""
        self._refresh()
        terms = (poll_cost_s, longest_gap_s)
        found = self.schedules.get(terms)
        if found is None:
            if len(self.schedules) >= _MOST_SCHEDULES:
                self.schedules.clear()
            found = best_polls(self._curve, poll_cost_s=poll_cost_s, longest_gap_s=longest_gap_s)
            self.schedules[terms] = found
        return found

    def record_generating(self, before: int, now: int) -> None:
        """Record a poll that found a task generating, which was last so in bin ``before``."""
        self.generating[before] -= 1
        self.generating[now] += 1
        self._news += _NEWS_OF_A_POLL

    def end(self, low: float, high: float) -> None:
        """Record an end between two ages, spread over them by the present curve."""
        low, high = min(low, EDGES[-1]), min(high, EDGES[-1])
        first, last = bin_of(low), bin_of(high)
        if first == last:
            self.ended[first] += 1.0
        else:
            self._spread(first, last, low, high)
        self._forgets += 1.0
        self._news += 1.0

    def merge(self, ended: Sequence[float], lost: Sequence[float]) -> None:
        """Add what was learned elsewhere, up to ``FULL_MEMORY``."""
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
        """Compute the hazard again after enough events: at first every few ends, later every fifty."""
        if self._news < self._enough_news:
            return
        # Tasks that began together end age by age: all of them must be remembered.
        half_life = max(HALF_LIFE, _GENERATIONS * sum(self.generating))
        kept, self._forgets = 0.5 ** (self._forgets / half_life), 0.0
        self.ended = [count * kept for count in self.ended]
        self.lost = [count * kept for count in self.lost]
        self._news, self._enough_news = 0.0, min(_NEWS, 1.0 + _NEWS_AT_FIRST * self.weight)
        self._fit()
        self.schedules.clear()

    def _fit(self) -> None:
        """Compute hazard and curve from the table; the prior counts like five tasks in every bin."""
        prior, reached = self.prior(), 0.0
        hazard = [0.0] * BINS
        for place in range(BINS - 1, -1, -1):
            ended, left = self.ended[place], self.lost[place] + self.generating[place]
            reached += ended
            weight = reached + 0.5 * left + _WEIGHT_OF_GUESS  # a task that left was there for half of the bin
            hazard[place] = (ended + _WEIGHT_OF_GUESS * prior[place]) / weight
            reached += left
        hazard = _smooth(_smooth(hazard))
        curve, generating = [0.0], 1.0
        for chance in hazard:
            generating *= 1.0 - chance
            curve.append(1.0 - generating)
        self._hazard, self._curve = hazard, curve


@attrs.define(eq=False, repr=False)
class TaskObservation:
    """What polls have found of one task. It counts once, however many callers wait for it.

    Attributes:
        since: When the task was accepted, in monotonic seconds; if that is unknown, when the wait began.
        age_is_known: Whether it is the former.
    """

    _tables: tuple[LifeTable, ...]
    since: float
    age_is_known: bool
    _seen: float = attrs.field(default=0.0, init=False)
    _bin: int = attrs.field(default=0, init=False)
    _over: bool = attrs.field(default=False, init=False)

    @property
    def seen_at(self) -> float:
        """When the task was last seen generating; before that, when it began."""
        return self.since + self._seen

    def age_is(self, age: float, now: float) -> None:
        """Set the age that the vendor states, if it is unknown and the statement can be true."""
        if not self.age_is_known and now - self.since <= age <= EDGES[-1]:
            self.since = now - age
            self.age_is_known = True

    def gap(self, since: float, poll_cost_s: float, longest_gap_s: float) -> float:
        """Return the seconds from a poll at ``since`` that found nothing to the best next one."""
        age = max(0.0, since - self.since)
        if age >= EDGES[-1]:
            return longest_gap_s
        schedule = self._tables[0].schedule(poll_cost_s, longest_gap_s)
        return min(longest_gap_s, at_age(schedule, age) - age)

    def chance(self, now: float) -> float:
        """Return the probability that the task has ended since it was last seen generating."""
        curve = self._tables[0].curve()
        before, after = at_age(curve, self._seen), at_age(curve, max(now - self.since, self._seen))
        return (after - before) / (1.0 - before) if before < 1.0 else 1.0

    def generating(self, now: float) -> None:
        """Record a poll that found the task generating."""
        age = now - self.since
        if self._over or not age > self._seen:
            return
        self._seen = age
        if self.age_is_known:  # else it says nothing about ages
            before, self._bin = self._bin, bin_of(age)
            for table in self._tables:
                table.record_generating(before, self._bin)

    def ended(self, now: float, vendor_s: float | None = None) -> None:
        """Record the first poll that found the task ended.

        Args:
            now: Monotonic seconds.
            vendor_s: How long it took by the vendor's clock, if the record says so.
        """
        if self._over:
            return
        self._close()
        if not self.age_is_known:
            return
        low, high = self._seen, max(self._seen, now - self.since)
        if vendor_s is not None and math.isfinite(vendor_s):
            slack = (
                _WHOLE_SECOND if vendor_s == int(vendor_s) else _FRACTION
            )  # the vendor cuts times to the second
            near, far = max(low, vendor_s - slack), min(high, vendor_s + slack)
            low, high = (near, far) if near <= far else (low, high)
        for table in self._tables:
            table.end(low, high)

    def left(self) -> None:
        """Record that no caller waits for the task any more."""
        if self._over:
            return
        self._close()
        if self._bin:
            for table in self._tables:
                table.lost[self._bin] += 1.0

    def _close(self) -> None:
        self._over = True
        for table in self._tables:
            table.generating[self._bin] -= 1


@attrs.define(eq=False, repr=False)
class GenerationTimes:
    """How long tasks take.

    Attributes:
        overall: The life table of all tasks.
        kinds: One of each kind.
    """

    overall: LifeTable = attrs.field(factory=lambda: LifeTable(lambda: _GUESS), init=False)
    kinds: dict[str, LifeTable] = attrs.field(factory=dict, init=False)
    _tables: dict[str | None, tuple[LifeTable, ...]] = attrs.field(factory=dict, init=False)

    def begin(self, now: float, *, kind: str | None = None, age: float | None = None) -> TaskObservation:
        """Return the observation of a task that is waited for from now on.

        Args:
            now: Monotonic seconds.
            kind: Its kind (:func:`kind_of`); None stands for all.
            age: Seconds since it was accepted, if known.
        """
        tables = self._tables_of(kind)
        for each in tables:
            each.generating[0] += 1
        return TaskObservation(tables, now - max(0.0, age or 0.0), age is not None)

    def weight(self, kind: str | None = None) -> float:
        """Return the sum of the weights of all ends."""
        if kind is None:
            return self.overall.weight
        return self.kinds[kind].weight if kind in self.kinds else 0.0

    def dump(self) -> str:
        """Return what was learned, as JSON, for :meth:`merge`."""
        tables = {"": self.overall} | self.kinds
        kinds = {kind: [_rounded(table.ended), _rounded(table.lost)] for kind, table in tables.items()}
        return json.dumps({"version": _VERSION, "kinds": kinds}, separators=(",", ":"))

    def merge(self, text: str) -> bool:
        """Add a dump; return False and change nothing if it is none of ours."""
        try:
            kinds = _read(json.loads(text))
        except _UNREADABLE:
            return False
        for kind, (ended, lost) in kinds.items():
            table = self._table(kind) if kind else self.overall
            if table is not None:
                table.merge(ended, lost)
        return True

    def _tables_of(self, kind: str | None) -> tuple[LifeTable, ...]:
        """Return the tables in which a task of that kind counts."""
        table = None if kind is None else self._table(kind)
        if table is None:
            return self._tables.setdefault(None, (self.overall,))
        return self._tables.setdefault(kind, (table, self.overall))

    def _table(self, kind: str) -> LifeTable | None:
        if kind not in self.kinds:
            if len(self.kinds) >= _MOST_KINDS:
                return None
            self.kinds[kind] = LifeTable(self.overall.hazard)
        return self.kinds[kind]


def _smooth(values: list[float]) -> list[float]:
    """Return a moving average: few ends fall into each bin."""
    around = zip([values[0], *values[:-1]], values, [*values[1:], values[-1]], strict=True)
    return [(left + 2.0 * value + right) / 4.0 for left, value, right in around]


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _read(dumped: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Return the tables of a dump.

    Raises:
        Exception: One of ``_UNREADABLE``: it is no dump.
    """
    if dumped["version"] != _VERSION:
        raise ValueError
    return {str(kind): (_counts(ended), _counts(lost)) for kind, (ended, lost) in dumped["kinds"].items()}


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


def best_polls(ended: Sequence[float], *, poll_cost_s: float, longest_gap_s: float) -> list[float]:
    """Return, for every edge, the age of the best next poll after one there that found nothing.

    Ages are cut into bins that grow by 5 % each, because a difference that matters at 5 s is nothing at
    500 s. The schedule is found from the last bin backwards (*dynamic programming*): after a poll that found
    nothing, the next one is where the sum of its cost, the time for which ends stay unseen until then, and
    all later costs is least.

    Args:
        ended: For every edge, the share of tasks that have ended by that age.
        poll_cost_s: Seconds of unseen end that one poll is worth.
        longest_gap_s: No gap is longer.
    """
    unseen = _areas(ended)
    follows = [0.0] * (BINS + 1)  # cost of a poll here and of all later ones, over all tasks
    best = [EDGES[-1]] * (BINS + 1)
    totals = unseen[:]  # unseen + follows, where follows is known
    furthest = BINS
    for here in range(BINS - 1, -1, -1):
        age, share = EDGES[here], ended[here]
        latest = bisect_right(EDGES, age + longest_gap_s, here, furthest + 1) - 1
        first = bisect_right(EDGES, age + SHORTEST_GAP_S, here, furthest + 1)
        first = min(first, furthest)
        beyond = max(latest, first) + 1
        # Between two polls at a and b, ends stay unseen for the area of (ended - ended(a)) from a to b.
        costs = [
            total - share * edge
            for total, edge in zip(totals[first:beyond], EDGES[first:beyond], strict=True)
        ]
        least = min(costs)
        place = costs.index(least)
        furthest = first + place  # the best poll after an earlier age is never later
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
