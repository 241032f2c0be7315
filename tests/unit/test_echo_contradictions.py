"""When a record contradicts its submit, and what a session remembers of its submits."""

from __future__ import annotations

import pytest

from flux_async.api.echo import CONFIRMED_ENOUGH, SubmitLog, is_contradiction
from flux_async.models import Echo, TaskId


@pytest.mark.parametrize(
    ("echo", "is_anothers", "is_reworded", "confirmed", "expected"),
    [
        (Echo.CONFIRMED, False, False, 9, False),
        (Echo.CONFIRMED, True, False, 0, True),
        (Echo.ABSENT, False, False, 9, False),
        (Echo.UNRECOGNISED, True, False, 0, True),
        (Echo.UNRECOGNISED, True, True, 0, True),
        (Echo.UNRECOGNISED, False, False, CONFIRMED_ENOUGH - 1, False),
        (Echo.UNRECOGNISED, False, False, CONFIRMED_ENOUGH, True),
        (Echo.UNRECOGNISED, False, True, CONFIRMED_ENOUGH, False),
    ],
)
def test_a_contradiction(
    echo: Echo, is_anothers: bool, is_reworded: bool, confirmed: int, expected: bool
) -> None:
    """Another's request always; an unknown prompt once three records have shown what was sent."""
    assert expected is is_contradiction(
        echo,
        is_anothers=is_anothers,
        is_other_image=False,
        is_reworded=is_reworded,
        confirmed=confirmed,
        confirmed_images=0,
    )


@pytest.mark.parametrize(
    ("confirmed", "confirmed_images", "expected"),
    [
        (9, 0, False),
        (0, CONFIRMED_ENOUGH - 1, False),
        (0, CONFIRMED_ENOUGH, True),
    ],
)
def test_an_unknown_image_is_judged_by_records_that_showed_images(
    confirmed: int, confirmed_images: int, expected: bool
) -> None:
    """Three verbatim images are enough, whatever their prompts; prompts alone are not."""
    assert expected is is_contradiction(
        Echo.UNRECOGNISED,
        is_anothers=False,
        is_other_image=True,
        is_reworded=False,
        confirmed=confirmed,
        confirmed_images=confirmed_images,
    )


def test_a_session_remembers_its_latest_submits() -> None:
    """Ten thousand task ids and requests; older ones are forgotten."""
    log = SubmitLog()
    assert log.is_new(TaskId("t0"), "kontext")
    assert not log.is_new(TaskId("t0"), "kontext")
    log.record_submit(("https://h/a.jpg", "p"))
    assert log.has_sent(("https://h/a.jpg", "p"))
    assert not log.has_sent(("https://h/b.jpg", "p"))
    assert log.has_sent_image("https://h/a.jpg")
    assert not log.has_sent_image("https://h/b.jpg")
    log.record_submit((None, "a lighthouse"))
    assert not log.has_sent_image(None)
    for number in range(1, 10_001):
        assert log.is_new(TaskId(f"t{number}"), "kontext")
    assert log.is_new(TaskId("t0"), "kontext")
