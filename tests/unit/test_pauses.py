"""How long all requests of one kind pause, and when a run halts because of it."""

from __future__ import annotations

import math

import pytest

from flux_async import Charge, MaintenanceError, RateLimitedError, RequestNotSent, Scope
from flux_async.policy.rate_limit import Pause

REFUSED = RequestNotSent("The API could not be reached: refused.")
MAINTENANCE = MaintenanceError("The API answered 455: maintenance.", code=455)
BEGAN = 100.0


def outage(*, took: float = 0.0, at: float = BEGAN) -> Pause:
    pause = Pause()
    pause.saw_unreachable(REFUSED, at, at + took, 0.0)
    return pause


def test_tries_at_an_unreachable_service_become_rarer() -> None:
    """After 1, 2, 4, 8, then 15 s, less up to half by the draw."""
    pause, delays = Pause(), []
    for _ in range(6):
        pause.saw_unreachable(REFUSED, BEGAN, BEGAN, 0.0)
        delays.append(pause.delay(BEGAN))
    assert delays == [1, 2, 4, 8, 15, 15]
    pause.saw_unreachable(REFUSED, BEGAN, BEGAN, 1.0)
    assert pause.delay(BEGAN) == 7.5
    for _ in range(2000):
        pause.saw_unreachable(REFUSED, BEGAN, BEGAN, 0.0)
    assert pause.delay(BEGAN) == 15


def test_a_try_holds_the_others_back() -> None:
    """Other requests wait for its end, or longer if the pause lasts longer."""
    pause = outage()
    pause.hold(BEGAN, 60.0)
    pause.hold(BEGAN, 5.0)
    assert pause.delay(BEGAN) == 60.0


def test_an_answer_ends_a_pause_if_its_request_is_younger() -> None:
    """A request that began before the last failure proves nothing."""
    pause = outage(took=2.0)
    assert not Pause().saw_answer(BEGAN, BEGAN)
    assert not pause.saw_answer(BEGAN + 1.0, BEGAN + 3.0)
    assert pause.is_on
    assert pause.saw_answer(BEGAN + 2.5, BEGAN + 3.0)
    assert (pause.is_on, pause.delay(BEGAN), pause.tries) == (False, 0.0, 0)


def test_the_time_of_all_outages_is_summed() -> None:
    """Requests to wait are no outage: polls get through meanwhile."""
    pause = outage()
    assert pause.outage_s(BEGAN + 7) == 7
    pause.saw_answer(BEGAN + 9, BEGAN + 10)
    assert pause.outage_s(BEGAN + 50) == 10
    pause.saw_unreachable(REFUSED, BEGAN + 60, BEGAN + 60, 0.0)
    pause.saw_request_to_wait(MAINTENANCE, BEGAN + 65, BEGAN + 65, 30.0)
    assert pause.outage_s(BEGAN + 80) == 15
    assert pause.since == BEGAN + 65


def test_of_two_requests_to_wait_the_longer_holds() -> None:
    """A short one does not shorten the pause."""
    pause = Pause()
    pause.saw_request_to_wait(MAINTENANCE, BEGAN, BEGAN, 60.0)
    pause.saw_request_to_wait(RateLimitedError("429"), BEGAN, BEGAN, 10.0)
    assert pause.delay(BEGAN) == 60.0


@pytest.mark.parametrize(
    ("took", "reached", "patience", "expected"),
    [
        (0.0, True, 600.0, 600.0),
        (0.0, False, 600.0, 20.0),
        (10.0, False, 600.0, 10.0),  # the next try would end after 30 s
        (0.0, False, 5.0, 5.0),
        (10.0, True, 5.0, 5.0),
    ],
)
def test_a_run_gives_up_an_unreachable_service(
    took: float, reached: bool, patience: float, expected: float
) -> None:
    """Within 30 s where nothing was reached yet, else after its patience."""
    pause = outage(took=took)
    assert pause.gives_up_at(BEGAN - 50, patience, reached=reached) == BEGAN + expected
    assert pause.gives_up_at(BEGAN + 3, patience, reached=reached) == BEGAN + 3 + expected


def test_a_run_gives_up_a_service_that_asks_for_more_time_than_there_is() -> None:
    """At once, for nothing would be tried before its patience is over."""
    pause = Pause()
    assert pause.gives_up_at(0.0, 600.0, reached=True) == math.inf
    pause.saw_request_to_wait(MAINTENANCE, BEGAN, BEGAN, 60.0)
    assert pause.gives_up_at(0.0, 600.0, reached=True) == BEGAN + 600
    assert pause.gives_up_at(0.0, 59.0, reached=True) == BEGAN


@pytest.mark.parametrize(
    ("pause", "words"), [(outage(), "Check the network"), (Pause(), "when the service takes submits again")]
)
def test_the_error_of_a_halt_says_what_running_again_does(pause: Pause, words: str) -> None:
    """It has the scope of the batch, costs nothing, and leaves the original error unchanged."""
    if not pause.is_on:
        pause.saw_request_to_wait(MAINTENANCE, BEGAN, BEGAN, 60.0)
    halt = pause.as_halt(42.4)
    assert (halt.scope, halt.charge) == (Scope.STOP, Charge.NO)
    assert "waited 42 s" in str(halt)
    assert "submits them, and fetches what is already paid" in str(halt)
    assert words in str(halt)
    assert pause.error is not None
    assert pause.error.scope is not Scope.STOP


def test_the_error_of_a_halt_has_the_requested_wait() -> None:
    """A wait of a day is not waited for at all: "waited 0 s" alone would be misleading."""
    pause = Pause()
    pause.saw_request_to_wait(RateLimitedError("Too many."), 0.0, 1.0, 100_000.0)
    assert "The service asked for a pause of 100000 s. The run waited 0 s and halted." in str(
        pause.as_halt(0.0)
    )
