"""How generation times are learned, and when the next poll is best made."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async import EditRequest, GenerateRequest
from flux_async.policy.generation_times import (
    BINS,
    EDGES,
    FULL_MEMORY,
    SHORTEST_GAP_S,
    GenerationTimes,
    LifeTable,
    TaskObservation,
    at_age,
    best_polls,
    bin_of,
    kind_of,
)

COST_S, CAP_S = 0.5, 30.0
NASTY = [-1.0, 0.0, 1e-300, 1e300, math.nan, math.inf, -math.inf]


def first_poll(times: GenerationTimes, kind: str | None = None) -> float:
    """Return the age at which a new task is best polled first."""
    return times.begin(0.0, kind=kind, age=0.0).gap(0.0, COST_S, CAP_S)


def live(observation: TaskObservation, seconds: float, *, has_times: bool = True) -> int:
    """Poll a task at the best times until it has ended; return the number of polls."""
    now, polls = 0.0, 0
    while True:
        now += max(SHORTEST_GAP_S, observation.gap(now, COST_S, CAP_S))
        polls += 1
        if now >= seconds:
            observation.ended(now, float(int(seconds)) if has_times else None)
            return polls
        observation.generating(now)


def teach(times: GenerationTimes, kind: str, median: float, count: int, *, has_times: bool = True) -> float:
    """Poll tasks of a kind to their ends; return the polls per task."""
    rng = random.Random(3)
    polls = 0
    for _ in range(count):
        seconds = median * math.exp(rng.gauss(0.0, 0.2))
        polls += live(times.begin(0.0, kind=kind, age=0.0), seconds, has_times=has_times)
    return polls / count


def curves(times: GenerationTimes) -> list[list[float]]:
    """Return the curves of all life tables."""
    return [table.curve() for table in (times.overall, *times.kinds.values())]


def assert_sound(times: GenerationTimes) -> None:
    """Shares are shares, they never fall, and the memory is finite."""
    for curve in curves(times):
        assert all(0.0 <= share <= 1.0 for share in curve)
        assert curve == sorted(curve)
    assert 0.0 <= times.weight() < math.inf


# --- the schedule -----------------------------------------------------------------------------------------


@given(st.floats(0, 1e9))
def test_every_age_has_a_bin(age: float) -> None:
    """Bins cover all ages; the last takes what is beyond."""
    place = bin_of(age)
    assert 0 <= place < BINS
    assert EDGES[place] <= age
    assert age < EDGES[place + 1] or place == BINS - 1


@given(st.lists(st.floats(0, 1), min_size=BINS + 1, max_size=BINS + 1), st.floats(0.01, 20), st.floats(1, 60))
def test_the_best_poll_is_always_later(shares: list[float], cost: float, cap: float) -> None:
    """Whatever the curve, the next poll is later than the previous one, at the next edge at the earliest."""
    polls = best_polls(sorted(shares), poll_cost_s=cost, longest_gap_s=cap)
    assert len(polls) == BINS + 1
    assert all(EDGES[index] < poll <= EDGES[-1] for index, poll in enumerate(polls[:-1]))
    assert at_age(polls, 5.0) > 5.0


def test_a_known_end_takes_one_poll() -> None:
    """If all tasks take 10 s, the one poll comes when they have ended, whatever it costs."""
    curve = [0.0 if age < 10 else 1.0 for age in EDGES]
    for cost in (0.1, 0.5, 5.0):
        assert 9.5 <= best_polls(curve, poll_cost_s=cost, longest_gap_s=30.0)[0] <= 11.0


def test_expensive_polls_are_fewer() -> None:
    """The more a poll costs, the later the first."""
    times = GenerationTimes()
    teach(times, "k", 12.0, 200)
    observation = times.begin(0.0, kind="k", age=0.0)
    gaps = [observation.gap(12.0, cost, CAP_S) for cost in (0.1, 0.5, 2.0)]
    assert gaps == sorted(gaps)
    assert gaps[0] < 0.7 * gaps[2]


def test_schedules_are_kept_for_a_few_costs_only() -> None:
    """Clients with other costs share what is learned; their schedules do not pile up."""
    times = GenerationTimes()
    observation = times.begin(0.0, age=0.0)
    for step in range(100):
        assert observation.gap(0.0, 0.1 + step, CAP_S) > 0
    assert len(times.overall.schedules) <= 8


# --- learning ---------------------------------------------------------------------------------------------


def test_the_first_guess_is_low() -> None:
    """With nothing learned, a task of 12 s costs at most five polls, the first of them soon."""
    times = GenerationTimes()
    assert 2.0 < first_poll(times) < 6.0
    assert live(times.begin(0.0, age=0.0), 12.0) <= 5


@pytest.mark.parametrize("has_times", [True, False])
def test_polls_become_fewer(has_times: bool) -> None:
    """With the vendor's times and without, the first poll moves to the age at which ends begin."""
    times = GenerationTimes()
    teach(times, "k", 20.0, 250, has_times=has_times)
    assert 12.0 < first_poll(times, "k") < 20.0
    assert teach(times, "k", 20.0, 100, has_times=has_times) < 3.2


def test_each_kind_is_learned_and_a_new_one_is_like_all() -> None:
    """A fast and a slow model have schedules of their own; a kind never seen takes the common one."""
    times = GenerationTimes()
    teach(times, "fast", 5.0, 150)
    teach(times, "slow", 30.0, 150)
    assert first_poll(times, "fast") < 6.0
    assert first_poll(times, "slow") > 18.0
    assert first_poll(times, "new") == pytest.approx(first_poll(times), rel=0.3)
    assert times.weight("new") == times.weight("never") == 0.0
    assert times.weight("fast") > 100


def test_kinds_do_not_pile_up() -> None:
    """Beyond 32 kinds a task counts among all only."""
    times = GenerationTimes()
    for number in range(50):
        live(times.begin(0.0, kind=f"k{number}", age=0.0), 10.0)
    assert len(times.kinds) == 32
    assert times.weight() == pytest.approx(50, rel=0.2)


def test_a_change_of_the_service_is_followed() -> None:
    """Twice as slow, then four times as fast: after some hundred ends the schedule is the new one."""
    times = GenerationTimes()
    for median in (12.0, 24.0, 6.0):
        teach(times, "k", median, 700)
        assert 0.5 * median < first_poll(times, "k") < median
    assert times.weight("k") < 1.2 * FULL_MEMORY


def test_generating_tasks_count() -> None:
    """When no task ends any more, polls become rarer without a single end."""
    times = GenerationTimes()
    teach(times, "k", 10.0, 200)
    observation = times.begin(0.0, kind="k", age=0.0)
    before = observation.gap(15.0, COST_S, CAP_S)
    for _ in range(600):
        times.begin(0.0, kind="k", age=0.0).generating(40.0)
    assert observation.gap(15.0, COST_S, CAP_S) > 1.3 * before


def test_stragglers_are_polled_rarely() -> None:
    """The older a task is, the rarer its polls; beyond the last edge, at the longest gap."""
    times = GenerationTimes()
    teach(times, "k", 12.0, 200)
    observation = times.begin(0.0, kind="k", age=0.0)
    assert observation.gap(14.0, COST_S, CAP_S) < 4.0 < observation.gap(120.0, COST_S, CAP_S)
    assert observation.gap(900.0, COST_S, CAP_S) == observation.gap(1e12, COST_S, CAP_S) == CAP_S


def test_a_task_that_is_no_longer_waited_for_counts_as_generating() -> None:
    """Given up at 300 s, it is evidence against an early end; never seen, it is none at all."""
    times = GenerationTimes()
    observation = times.begin(0.0, kind="k", age=0.0)
    observation.generating(300.0)
    observation.left()
    observation.left()
    times.begin(0.0, kind="k", age=0.0).left()
    assert sum(times.kinds["k"].lost) == 1.0
    assert sum(times.kinds["k"].generating) == 0
    assert_sound(times)


# --- what the vendor says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [*NASTY, 3.0, 80.0, None])
def test_a_lie_does_not_leave_the_bounds_of_what_we_saw(said: float | None) -> None:
    """Whatever duration is claimed, the end lies between the last poll before it and the first after it."""
    times = GenerationTimes()
    for _ in range(300):
        observation = times.begin(0.0, kind="k", age=0.0)
        observation.generating(10.0)
        observation.ended(14.0, said)
    table = times.kinds["k"]
    assert sum(table.ended[: bin_of(10.0)]) == 0.0
    assert sum(table.ended[bin_of(14.0) + 1 :]) == 0.0
    assert_sound(times)


def test_a_believable_time_counts_to_the_second() -> None:
    """Whole seconds are rounded ones: true within one; others are exact."""
    times = GenerationTimes()
    for said in (12.0, 12.25):
        observation = times.begin(0.0, kind=str(said), age=0.0)
        observation.generating(5.0)
        observation.ended(30.0, said)
    ended = {kind: [EDGES[b] for b, n in enumerate(t.ended) if n] for kind, t in times.kinds.items()}
    assert 10.0 < min(ended["12.0"]) < 12.0 < max(ended["12.0"]) < 13.1
    assert max(ended["12.25"]) - min(ended["12.25"]) < 0.7


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(allow_nan=True, allow_infinity=True),
            st.one_of(st.none(), st.sampled_from(NASTY), st.floats()),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_no_number_poisons_the_model(facts: list[tuple[float, float, float | None, bool]]) -> None:
    """Whatever ages and durations are claimed, shares stay shares and gaps stay gaps."""
    times = GenerationTimes()
    for seen, ended, said, known in facts:
        observation = times.begin(0.0, kind="k", age=0.0 if known else None)
        observation.age_is(seen, 1.0)
        observation.generating(seen if math.isfinite(seen) else 1.0)
        observation.ended(ended, said)
    assert_sound(times)
    for age in (0.0, 1.0, 30.0, 899.0, 1e6):
        assert 0.0 < times.begin(0.0, kind="k", age=0.0).gap(age, COST_S, CAP_S) <= CAP_S


def test_an_end_counts_once() -> None:
    """However many callers wait for the task, and whatever they see afterwards."""
    times = GenerationTimes()
    observation = times.begin(0.0, age=0.0)
    for _ in range(5):
        observation.ended(10.0, 9.0)
        observation.generating(12.0)
        observation.left()
    assert times.weight() == pytest.approx(1.0)
    assert sum(times.overall.generating) == 0


# --- age --------------------------------------------------------------------------------------------------


def test_a_task_of_unknown_age_teaches_nothing_until_its_record_has_the_age() -> None:
    """The vendor's statement is taken if it can be true."""
    times = GenerationTimes()
    observation = times.begin(100.0)
    observation.generating(103.0)
    observation.ended(110.0, 5.0)
    assert times.weight() == 0.0
    observation = times.begin(100.0)
    for impossible in (-1.0, 2.0, 1e9, math.nan):
        observation.age_is(impossible, 103.0)
        assert not observation.age_is_known
    observation.age_is(33.0, 103.0)
    observation.age_is(500.0, 103.0)
    assert (observation.age_is_known, observation.since) == (True, 70.0)
    observation.generating(103.0)
    observation.ended(110.0, 36.0)
    assert times.weight() == pytest.approx(1.0)


def test_the_chance_of_an_end_grows_with_time() -> None:
    """It starts at 0 with the last poll."""
    times = GenerationTimes()
    teach(times, "k", 12.0, 200)
    observation = times.begin(0.0, kind="k", age=0.0)
    chances = [observation.chance(age) for age in (0.0, 6.0, 10.0, 12.0, 15.0, 60.0)]
    assert chances == sorted(chances)
    assert chances[0] == 0.0
    assert chances[-1] > 0.95
    observation.generating(12.0)
    assert observation.chance(12.0) == 0.0


def test_a_task_older_than_any_has_certainly_ended() -> None:
    """If all tasks have ended at the age at which it was last seen, the probability is 1."""
    table = LifeTable(lambda: [1.0] * BINS)
    table.generating[0] = 1
    observation = TaskObservation((table,), 0.0, age_is_known=True)
    observation.generating(12.0)
    assert observation.chance(13.0) == 1.0


def test_the_median_is_learned() -> None:
    """To the width of a bin; before anything was learned it is that of the first guess."""
    times = GenerationTimes()
    assert times.overall.median() == pytest.approx(8.0, rel=0.1)
    teach(times, "pro/edit", 20.0, 200)
    assert times.kinds["pro/edit"].median() == pytest.approx(20.0, rel=0.1)


def test_a_kind_is_model_and_mode() -> None:
    """What decides how long it takes."""
    assert kind_of(EditRequest.text_removal("https://e.example/a.jpg")) == "flux-kontext-pro/edit"
    assert kind_of(GenerateRequest(prompt="x", model="flux-kontext-max")) == "flux-kontext-max/generate"


# --- keeping it -------------------------------------------------------------------------------------------


def test_what_was_learned_can_be_kept() -> None:
    """Written and read back it is the same to three digits, and the next run begins with it."""
    times = GenerationTimes()
    teach(times, "fast", 5.0, 100)
    teach(times, "slow", 30.0, 100)
    again = GenerationTimes()
    assert again.merge(times.dump())
    assert again.dump() == times.dump()
    assert first_poll(again, "slow") > 15.0
    assert first_poll(again, "fast") < 6.0
    assert len(times.dump()) < 10_000


def test_merging_adds_no_more_than_the_memory_holds() -> None:
    """The same journal read twice does not count twice for ever, and fresh knowledge is not washed out."""
    times = GenerationTimes()
    teach(times, "k", 10.0, 900)
    text, again = times.dump(), GenerationTimes()
    for _ in range(5):
        assert again.merge(text)
    assert again.weight("k") <= 1.01 * FULL_MEMORY


def _dump(**changes: Any) -> str:
    return json.dumps({"version": 1, "kinds": {"": [[0.0] * BINS, [0.0] * BINS]}} | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        "{",
        "[" * 100_000,
        _dump(version=2),
        _dump(kinds=[]),
        _dump(kinds={"": []}),
        _dump(kinds={"": [[0.0] * BINS]}),
        _dump(kinds={"": [[0.0] * BINS, [0.0] * 3]}),
        _dump(kinds={"": [[0.0] * BINS, [-1.0] * BINS]}),
        _dump(kinds={"": [[math.nan] * BINS, [0.0] * BINS]}),
        _dump(kinds={"": [[1e9] * BINS, [0.0] * BINS]}),
        _dump(kinds={"": [[10**400] * BINS, [0.0] * BINS]}),
        _dump(kinds={"": [[None] * BINS, [0.0] * BINS]}),
        _dump(kinds={"k": [[1.0] * BINS, [0.0] * BINS], "": "x"}),
    ],
)
def test_what_we_did_not_write_is_refused_whole(text: str) -> None:
    """Garbage, another version, wrong lengths and wrong numbers change nothing."""
    times = GenerationTimes()
    before = times.dump()
    assert not times.merge(text)
    assert times.dump() == before


def test_an_empty_state_is_taken() -> None:
    """Nothing learned is nothing added; kinds beyond the bound are left out."""
    times = GenerationTimes()
    assert times.merge(_dump())
    assert times.weight() == 0.0
    assert times.merge(_dump(kinds={f"k{n}": [[1.0] * BINS, [0.0] * BINS] for n in range(40)}))
    assert len(times.kinds) == 32
