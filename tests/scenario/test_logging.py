"""One log line per event: INFO for money and settlement, DEBUG for polls, no query strings, no key."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from flux_async import FluxError, run_batch
from flux_async.images import without_query
from flux_async.transport import Unknown

SIGNED = "https://example.com/poster.jpg?X-Amz-Signature=geheim#part"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The records of the package's logger, as level and text."""
    caplog.set_level(logging.DEBUG, logger="flux_async")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_a_single_call_logs_submit_polls_and_result(client: Any, vendor: Any, lines: Any) -> None:
    """Money and settlement at INFO, each poll at DEBUG."""
    await client.remove_text(SIGNED)
    infos = [text for level, text in lines() if level == "INFO"]
    polls = [text for level, text in lines() if level == "DEBUG" and text.startswith("poll of task t0")]
    words = [text.partition(" ")[2] for text in infos]
    assert words == [
        "https://example.com/poster.jpg: submitted (attempt 1, charge yes, task t0 (kontext))",
        "https://example.com/poster.jpg: succeeded (charge yes, task t0 (kontext))",
    ]
    assert infos[0].startswith("call-")
    assert [text.rpartition(" ")[2] for text in polls] == ["GENERATING", "SUCCESS"]


async def test_a_batch_logs_each_move_of_a_job(client: Any, vendor: Any, lines: Any) -> None:
    """The line names image, event, state, charge and task."""
    async with run_batch(client, [SIGNED]) as batch:
        async for _ in batch:
            pass
    moves = [text for _, text in lines() if text.startswith("job ")]
    assert [text.split(": ")[1].split(" (")[0] for text in moves] == [
        "job added",
        "submit started",
        "submitted",
        "succeeded",
    ]
    assert "https://example.com/poster.jpg: submitted (attempt 1, charge yes, task t0 (" in moves[2]


async def test_a_possible_charge_is_a_warning(client: Any, transport: Any, lines: Any) -> None:
    """A submit without an answer is logged at a higher level than the rest."""
    transport.script["generate"] = [Unknown("dropped")]
    async with run_batch(client, [SIGNED]) as batch:
        async for _ in batch:
            pass
    assert any(level == "WARNING" and "submit unknown, now in doubt" in text for level, text in lines())
    with pytest.raises(FluxError):
        await client.remove_text(SIGNED)
    assert any(level == "WARNING" and "charge maybe" in text for level, text in lines())


async def test_the_error_of_an_earlier_run_keeps_its_class(
    client: Any, transport: Any, lines: Any, tmp_path: Path
) -> None:
    """The next run logs what the journal has of it, as the first one did."""
    transport.script["generate"] = [Unknown("dropped")]
    for _ in range(2):
        async with run_batch(client, [SIGNED], journal=tmp_path / "run.sqlite3") as batch:
            async for _ in batch:
                pass
    first, second = [text for _, text in lines() if ": in doubt (" in text]
    assert "ConnectionLost, The request was sent, but no whole answer came: dropped." in first
    assert "ConnectionLost, The request was sent, but no whole answer came: dropped." in second


async def test_a_pause_and_a_halt_are_logged(client: Any, vendor: Any, make: Any, lines: Any) -> None:
    """The log states why nothing is submitted."""
    accepted = vendor.script["generate"][0]
    vendor.script["generate"] = [make.answer(None, 429), accepted]
    await client.remove_text(SIGNED)
    vendor.script["generate"] = [make.answer(None, 402)]
    with pytest.raises(FluxError):
        await client.remove_text(SIGNED)
    warnings = [text for level, text in lines() if level == "WARNING"]
    assert any(text.startswith("all submits pause for ") for text in warnings)
    assert any(text.startswith("all submits are halted: ") for text in warnings)


async def test_no_line_holds_a_query_or_the_key(client: Any, vendor: Any, make: Any, lines: Any) -> None:
    """Signed addresses give access to the image."""
    await client.remove_text(SIGNED)
    async with run_batch(client, [SIGNED]) as batch:
        async for _ in batch:
            pass
    written = "\n".join(text for _, text in lines())
    assert "geheim" not in written
    assert make.key not in written


async def test_a_log_handler_that_fails_loses_nothing(client: Any, vendor: Any) -> None:
    """The id of a paid task reaches its caller all the same."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the log's disk is full")

    logger, handler = logging.getLogger("flux_async"), Broken()
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        assert (await client.remove_text(SIGNED)).task_id == "t0"
        async with run_batch(client, [SIGNED]) as batch:
            outcomes = [outcome async for outcome in batch]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert len(outcomes) == 1


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://user:pw@host:81/a.jpg?sig=1#x", "https://host:81/a.jpg"),
        ("https://host?sig=1", "https://host"),
        ("https://host/a#b?c", "https://host/a"),
        ("https://host/a@b.jpg", "https://host/a@b.jpg"),
        ("photos/what?.jpg", "photos/what?.jpg"),
    ],
)
def test_an_address_is_logged_without_query_and_password(given: str, shown: str) -> None:
    """Queries sign for access."""
    assert without_query(given) == shown
