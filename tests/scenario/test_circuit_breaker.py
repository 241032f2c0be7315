"""Answers that make no sense: how many submits they cost, and how a client resumes."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    Charge,
    ConnectionLost,
    FluxClient,
    FluxError,
    InDoubt,
    Limits,
    RateLimitedError,
    Scope,
    Succeeded,
    TooManyUnknownAnswers,
    UnexpectedResponse,
    run_batch,
)
from flux_async.api.envelope import WireResponse
from flux_async.job_state import JobState
from flux_async.journal.store import Journal
from flux_async.policy.rate_limit import HALT_S
from flux_async.transport import Answered, Unknown

URLS = [f"https://pictures.example/{number}.jpg" for number in range(300)]
SENSELESS = {
    "reply lost": Unknown("the connection was lost"),
    "HTTP 502": Answered(WireResponse(status=502, headers={}, body=b"<h1>Bad gateway</h1>")),
    "web page": Answered(WireResponse(status=200, headers={}, body=b"<html>Welcome to the hotel</html>")),
    "redirect to a web page": Answered(WireResponse(status=302, headers={"location": "/login"}, body=b"")),
    "taskId renamed": Answered(
        WireResponse(status=200, headers={}, body=json.dumps({"code": 200, "data": {"job": "j1"}}).encode())
    ),
}


async def collect(client: FluxClient, images: list[str], **options: Any) -> list[Any]:
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


def client_of(transport: Any, clock: Any, **limits: Any) -> FluxClient:
    return transport.client(
        rng=random.Random(7),
        limits=Limits(**limits),
    )


@pytest.mark.parametrize("kind", SENSELESS)
async def test_a_vendor_that_never_answers_well_costs_five_submits(
    client: FluxClient, vendor: Any, kind: str, tmp_path: Path
) -> None:
    """Of 120 images 5 may have been charged; the rest stays pending, and so it does in a second run."""
    images = URLS[:120]  # more than are in progress at once
    task = vendor.script["generate"][0]
    vendor.script["generate"] = [SENSELESS[kind]]
    outcomes: list[Any] = []
    async with Journal(tmp_path / "run.sqlite3", clock=client.session.clock) as journal:
        async with run_batch(client, images, journal=journal) as batch:
            with pytest.raises(TooManyUnknownAnswers) as halt:
                async for outcome in batch:
                    outcomes.append(outcome)
        assert vendor.count("generate") == 5
        assert (halt.value.unknown, halt.value.scope, halt.value.charge) == (5, Scope.STOP, Charge.NO)
        assert "5 submits may have been charged" in str(halt.value)
        assert len(outcomes) == 5
        assert all(isinstance(outcome, InDoubt) for outcome in outcomes)
        assert (await journal.counts())[JobState.PENDING] > 0
        with pytest.raises(TooManyUnknownAnswers):
            await collect(client, images, journal=journal)
        assert vendor.count("generate") == 6
        vendor.script["generate"] = [task]
        assert (
            sum(isinstance(each, Succeeded) for each in await collect(client, images, journal=journal)) == 114
        )
    assert vendor.count("generate") == 120


async def test_another_process_after_a_halt_stops_at_the_first_answer_that_makes_no_sense(
    vendor: Any, clock: Any, tmp_path: Path
) -> None:
    """The journal keeps that a run ended so, until a submit is accepted."""
    task, path = vendor.script["generate"][0], tmp_path / "run.sqlite3"
    vendor.script["generate"] = [SENSELESS["web page"]]
    for submits in (5, 6, 7):
        async with client_of(vendor, clock) as client:
            with pytest.raises(TooManyUnknownAnswers):
                await collect(client, URLS[:30], journal=path)
        assert vendor.count("generate") == submits
    vendor.script["generate"] = [task]
    async with client_of(vendor, clock) as client:
        await collect(client, URLS[:30], journal=path)
    async with Journal(path, clock=clock) as journal:
        assert not await journal.ended_in_halt()


async def test_answers_that_stop_making_sense_in_the_middle_cost_eleven_submits_at_most(
    vendor: Any, clock: Any
) -> None:
    """Five that are counted, five already in flight, and the single one after the pause."""
    task, made = vendor.script["generate"][0], 50
    vendor.latency_s = 8.0

    def submit(request: Any) -> Any:
        return task(request) if vendor.count("generate") <= made else SENSELESS["HTTP 502"]

    vendor.script["generate"] = [submit]
    async with client_of(vendor, clock) as client:
        outcomes: list[Any] = []
        async with run_batch(client, URLS) as batch:
            with pytest.raises(TooManyUnknownAnswers):
                async for outcome in batch:
                    outcomes.append(outcome)
    assert vendor.most_in_flight >= 6
    in_doubt = sum(isinstance(outcome, InDoubt) for outcome in outcomes)
    assert vendor.count("generate") <= made + 11
    assert len(outcomes) == vendor.count("generate")  # those that are paid are brought home
    assert 5 <= in_doubt <= 11 + 6


async def test_replies_that_fail_together_do_not_halt(vendor: Any, clock: Any) -> None:
    """A connection that breaks with six submits on it: the next one is accepted, and the batch goes on."""
    task, losing = vendor.script["generate"][0], range(30, 36)
    vendor.latency_s = 4.0
    numbers = iter(range(10_000))
    vendor.script["generate"] = [
        lambda request: SENSELESS["reply lost"] if next(numbers) in losing else task(request)
    ]
    async with client_of(vendor, clock) as client:
        outcomes = await collect(client, URLS[:100])
    assert sum(isinstance(outcome, InDoubt) for outcome in outcomes) == 6
    assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == 94


async def test_scattered_unknown_answers_do_not_halt(vendor: Any, clock: Any) -> None:
    """5 % of all answers are dropped at random: those images are in doubt, and all others succeed."""
    task, chance = vendor.script["generate"][0], random.Random(5)
    vendor.script["generate"] = [
        lambda request: SENSELESS["reply lost"] if chance.random() < 0.05 else task(request)
    ]
    async with client_of(vendor, clock, submits=1000) as client:
        outcomes = await collect(client, URLS)
    in_doubt = sum(isinstance(outcome, InDoubt) for outcome in outcomes)
    assert in_doubt > 0
    assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == 300 - in_doubt


async def test_the_limit_can_be_set(vendor: Any, clock: Any) -> None:
    """With unknown_answers=2 the second one halts."""
    vendor.script["generate"] = [SENSELESS["reply lost"]]
    async with client_of(vendor, clock, unknown_answers=2) as client:
        with pytest.raises(TooManyUnknownAnswers):
            await collect(client, URLS)
    assert vendor.count("generate") == 2


async def test_a_client_without_a_batch_is_halted_too(client: FluxClient, transport: Any, clock: Any) -> None:
    """Ten minutes later one call finds out; another unknown answer halts again, an accepted one ends it."""
    task = transport.script["generate"]
    transport.script["generate"] = [SENSELESS["reply lost"]]

    async def ends_in(error: type[Exception]) -> None:
        with pytest.raises(error):
            await client.remove_text(URLS[0])

    for _ in range(5):
        await ends_in(ConnectionLost)
    for _ in range(20):
        await ends_in(TooManyUnknownAnswers)
    assert transport.count("generate") == 5
    await clock.sleep(HALT_S)
    await ends_in(ConnectionLost)
    await ends_in(TooManyUnknownAnswers)
    assert transport.count("generate") == 6
    await clock.sleep(HALT_S)
    transport.script["generate"] = task
    await client.remove_text(URLS[0])
    assert transport.count("generate") == 7


async def test_calls_that_wait_are_halted_with_the_rest(client: FluxClient, transport: Any) -> None:
    """Thirty calls at once: five submits, and no call waits for ten minutes."""
    transport.script["generate"] = [SENSELESS["web page"]]
    ended: list[Exception] = []

    async def remove_text(url: str) -> None:
        try:
            await client.remove_text(url)
        except FluxError as error:
            ended.append(error)

    async with asyncio.TaskGroup() as group:
        for url in URLS[:30]:
            group.create_task(remove_text(url))
    assert sum(isinstance(error, UnexpectedResponse) for error in ended) == 5
    assert sum(isinstance(error, TooManyUnknownAnswers) for error in ended) == 25
    assert transport.count("generate") == 5


async def test_429_counts_neither_way(client: FluxClient, transport: Any, make: Any) -> None:
    """It is no answer to this submit: five unknown answers halt, however many 429 come in between."""
    lost, busy = SENSELESS["reply lost"], make.answer(None, 429, msg="slow down")
    transport.script["generate"] = [lost, busy, busy, lost, busy, lost, lost, busy, lost]
    kinds: list[type[BaseException]] = []
    for _ in range(30):
        with pytest.raises((ConnectionLost, TooManyUnknownAnswers, RateLimitedError)) as ended:
            await client.remove_text(URLS[0])
        kinds.append(ended.type)
    assert kinds == [ConnectionLost] * 5 + [TooManyUnknownAnswers] * 25


@pytest.mark.parametrize("status", [404, 405])
async def test_an_address_that_is_not_the_api_halts_at_the_first_submit(
    client: FluxClient, transport: Any, status: int
) -> None:
    """A web server's 404: nothing is charged, one submit is made, and the message names the address."""
    page = b"<html><h1>Not found</h1></html>"
    transport.script["generate"] = [Answered(WireResponse(status=status, headers={}, body=page))]
    async with Journal(clock=client.session.clock) as journal:
        with pytest.raises(UnexpectedResponse) as halt:
            await collect(client, URLS[:20], journal=journal)
        assert await journal.counts() == {JobState.PENDING: 20}
    assert (halt.value.scope, halt.value.charge) == (Scope.STOP, Charge.NO)
    assert "http://127.0.0.1:1" in str(halt.value)
    assert transport.count("generate") == 1
