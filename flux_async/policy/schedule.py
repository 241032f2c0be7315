"""When is the next look worth most? The best times, for tasks whose ends come as a known curve says.

Ages are cut into bins that grow by 5 % each, because what matters at 5 s is lost at 500 s. The best schedule
is found from the last bin backwards (*dynamic programming*): after a look that found nothing, the next one is
where the cost of that look, the time for which ends stay unseen until then, and all that follows are least in
sum.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

FIRST_EDGE_S = 0.5
LAST_EDGE_S = 900.0
_RATIO = 1.05
BINS = math.ceil(math.log(LAST_EDGE_S / FIRST_EDGE_S, _RATIO)) + 1
EDGES = (0.0, *(min(FIRST_EDGE_S * _RATIO**step, LAST_EDGE_S) for step in range(BINS)))
"""Ages in seconds, ``BINS + 1`` of them: bin ``b`` reaches from ``EDGES[b]`` to ``EDGES[b + 1]``."""

SHORTEST_GAP_S = 0.3


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
