"""The command line while the service is unavailable or answers nonsense: it halts, and no image fails."""

from __future__ import annotations

from typing import Any

import pytest

IMAGES = [f"http://127.0.0.1:9/{number}.png" for number in range(12)]


def statuses(cli: Any) -> dict[str, int]:
    found = [row["status"] for row in cli.rows()]
    return {status: found.count(status) for status in set(found)}


def test_a_service_that_cannot_be_reached_halts(offline: Any) -> None:
    """Exit 3: the address is named, nothing was charged, and every image is still pending."""
    ended = offline.run("remove-text", *IMAGES, "-o", "out", "--patience", "0.2", "--yes")
    assert ended.code == 3, ended.stderr
    assert "could not be reached" in ended.stderr
    assert offline.base_url in ended.stderr
    assert statuses(offline) == {"pending": 12}


@pytest.mark.parametrize("fault", ["502", "no-task-id"])
def test_answers_that_make_no_sense_halt(make_cli: Any, start_sandbox: Any, fault: str) -> None:
    """Exit 3 after five submits: five images are in doubt, the others pending; the same command resumes."""
    cli = make_cli(start_sandbox("--speed", "60", "--images", "none", "--faults", fault).url)
    ended = cli.run("remove-text", *IMAGES, "-o", "out", "--rate", "1000/1", "--no-download", "--yes")
    assert ended.code == 3, ended.stderr
    assert statuses(cli) == {"in_doubt": 5, "pending": 7}
    assert "5 submits may have been charged" in ended.stderr
    assert "kie.ai/logs" in ended.stderr
    assert "doctor" in ended.stderr
    assert "submits the 7 images that are left, one at a time until one is accepted" in ended.stderr
    assert "nothing is paid twice" not in ended.stderr
    assert cli.ledger()["submits"] == 5


def test_an_address_that_is_not_the_api_halts_at_the_first_submit(make_cli: Any, start_sandbox: Any) -> None:
    """Exit 3: one submit, nothing charged, and the address is named."""
    cli = make_cli(start_sandbox("--speed", "60", "--images", "none", "--faults", "404").url)
    ended = cli.run("remove-text", *IMAGES, "-o", "out", "--rate", "1000/1", "--no-download", "--yes")
    assert ended.code == 3, ended.stderr
    assert f"It is {cli.base_url} now" in ended.stderr
    assert statuses(cli) == {"pending": 12}
    assert cli.ledger()["submits"] == 1
