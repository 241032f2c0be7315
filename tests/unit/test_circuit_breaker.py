"""When answers that make no sense halt submits, and how often chance alone would halt them."""

from __future__ import annotations

from collections import defaultdict

import pytest

from flux_async.policy.rate_limit import HALT_S, CircuitBreaker

NOW = 1000.0


def feed(breaker: CircuitBreaker, answers: str) -> int | None:
    """Give answers, each to a submit that goes as it must; return which of them halts, counted from 1."""
    for number, answer in enumerate(answers, start=1):
        alone = breaker.one_at_a_time
        if answer == "a":
            breaker.saw_accepted()
        elif answer == "r":
            breaker.saw_rejected()
        elif breaker.saw_unknown(NOW, alone=alone):
            return number
    return None


@pytest.mark.parametrize(
    ("limit", "answers", "halts_at"),
    [
        (5, "uuuuuuu", 5),  # from the start: each goes alone
        (5, "auuuuuuuu", 6 + 1),  # later on, the one after the fifth goes alone
        (5, "auuuuu" + "a" * 40, None),  # it is accepted, and so are those that follow
        (5, "auuuuu" + "a" * 6 + "uuu", None),  # by then two of the five are forgotten
        (5, "auuuuu" + "a" + "u", 8),
        (5, "au" * 20, 12),  # every second answer lost
        (5, "aaaaaaaaau" * 20, None),  # one in ten lost
        (5, "aaauaaau" * 20, None),
        (5, "ruruuruu" + "uu", 8),  # never accepted: they go alone, and refusals are answers
        (5, "rrrrrrrrrrr", None),
        (1, "u", 1),
        (1, "auu", 3),
        (20, "a" + "u" * 21, 22),  # a limit above ten counts as many answers
    ],
)
def test_unknown_answers_halt(limit: int, answers: str, halts_at: int | None) -> None:
    """Five of the last ten, the last of which went alone, halt."""
    assert feed(CircuitBreaker(limit), answers) == halts_at


def test_answers_to_submits_already_in_flight_do_not_halt() -> None:
    """Six submits that fail with one connection are one event: only a later single submit may halt."""
    breaker = CircuitBreaker(5)
    breaker.saw_accepted()
    assert not breaker.one_at_a_time
    assert [breaker.saw_unknown(NOW, alone=False) for _ in range(6)] == [False] * 6
    assert breaker.one_at_a_time
    assert not breaker.is_halted(NOW)
    assert (breaker.unknown, breaker.counts()) == (6, (6, 7))


def test_a_halt_of_an_earlier_process_is_gone_on_from_with_one_submit() -> None:
    """The first unknown answer halts again; an accepted submit ends it."""
    breaker = CircuitBreaker(5)
    breaker.resume()
    assert breaker.one_at_a_time
    assert (breaker.has_halted, breaker.is_proven) == (False, False)
    assert feed(breaker, "u") == 1
    assert (breaker.has_halted, breaker.unknown) == (True, 1)
    breaker.saw_accepted()
    breaker.resume()
    assert (breaker.has_halted, breaker.is_proven) == (False, True)
    assert feed(breaker, "aaaaaau") is None


def test_a_halt_ends_after_ten_minutes_with_one_submit() -> None:
    """One submit then finds out: unknown halts at once again, accepted ends it."""
    breaker = CircuitBreaker(5)
    assert feed(breaker, "uuuuu") == 5
    assert breaker.is_halted(NOW + HALT_S - 1)
    assert not breaker.is_halted(NOW + HALT_S)
    assert breaker.one_at_a_time
    assert feed(breaker, "u") == 1
    breaker.saw_accepted()
    assert not breaker.is_halted(NOW)
    assert breaker.one_at_a_time
    assert feed(breaker, "aaaaa") is None
    assert not breaker.one_at_a_time


def test_a_new_batch_releases_a_halt_for_one_submit() -> None:
    """It goes alone, and one more unknown answer halts again."""
    breaker = CircuitBreaker(5)
    feed(breaker, "uuuuu")
    breaker.release()
    assert not breaker.is_halted(NOW)
    assert breaker.one_at_a_time
    assert feed(breaker, "u") == 1


def chance_of_a_halt(loss: float, submits: int) -> float:
    """Return how likely a run of ``submits`` halts whose answers are lost at random, each with ``loss``."""
    states: dict[tuple[bool, ...], float] = {(False,): 1.0}
    halted = 0.0
    for _ in range(submits):
        following: dict[tuple[bool, ...], float] = defaultdict(float)
        for last, share in states.items():
            suspicious = sum(last) >= 5
            following[(*last, False)[-10:]] += share * (1 - loss)
            lost = (*last, True)[-10:]
            if suspicious and sum(lost) >= 5:
                halted += share * loss
            else:
                following[lost] += share * loss
        states = following
    return halted


@pytest.mark.parametrize(("loss", "most"), [(0.01, 2e-6), (0.05, 0.015)])
def test_scattered_unknown_answers_hardly_ever_halt(loss: float, most: float) -> None:
    """5,000 submits with 5 % unknown answers halt in fewer than 15 of 1,000 runs."""
    assert 10 * chance_of_a_halt(loss, 500) < most
