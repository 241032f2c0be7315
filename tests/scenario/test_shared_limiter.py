"""A rate limiter that other processes share: each submit has its permit; without an answer none is made."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable

import anyio
import attrs
import pytest

from flux_async import (
    Charge,
    FluxClient,
    InvalidInput,
    MissingExtra,
    RedisRateLimiter,
    RequestNotSent,
    RetryPolicy,
    Succeeded,
    run_batch,
)
from flux_async.testing import FluxSandbox, VirtualClock

URLS = [f"https://example.com/{number}.jpg" for number in range(6)]


@attrs.define
class Limiter:
    """Gives a permit every ``spacing_s`` seconds; ``fails`` says whether it answers."""

    clock: VirtualClock
    spacing_s: float = 1.0
    fails: Callable[[], bool] = lambda: False
    permits: list[float] = attrs.field(factory=list)
    asked: int = 0

    async def take(self) -> float:
        """Give a permit, or say when."""
        self.asked += 1
        await self.clock.sleep(0.001)
        if self.fails():
            raise OSError("connection refused")
        now = self.clock.monotonic()
        wait = self.permits[-1] + self.spacing_s - now if self.permits else 0.0
        if wait > 0:
            return wait
        self.permits.append(now)
        return 0.0


@pytest.fixture
def sandbox(flux_clock: VirtualClock, flux_sandbox: FluxSandbox) -> FluxSandbox:
    """A sandbox on virtual time."""
    return flux_sandbox


async def test_each_submit_takes_a_permit(flux_clock: VirtualClock, sandbox: FluxSandbox) -> None:
    """Permits are used one after another, by single calls and batches of several clients alike."""
    limiter = Limiter(flux_clock)
    async with sandbox.client(rate_limiter=limiter) as one, sandbox.client(rate_limiter=limiter) as other:
        assert (await one.remove_text(URLS[0])).task_id
        async with run_batch(other, URLS[1:]) as batch:
            assert all([isinstance(outcome, Succeeded) async for outcome in batch])
    assert len(limiter.permits) == sandbox.ledger.accepted == len(URLS)


async def test_the_balance_proves_no_price_while_others_submit(
    flux_clock: VirtualClock, sandbox: FluxSandbox
) -> None:
    """Two batches at once, each of which would see both charges, run through."""
    limiter = Limiter(flux_clock, spacing_s=0.1)
    clients = [sandbox.client(rate_limiter=limiter) for _ in range(2)]
    async with clients[0], clients[1], anyio.create_task_group() as group:
        for client, images in zip(clients, (URLS[:3], URLS[3:]), strict=True):
            group.start_soon(client.remove_text_many, images)
    assert sandbox.ledger.accepted == len(URLS)


async def test_without_an_answer_nothing_is_submitted(flux_clock: VirtualClock, sandbox: FluxSandbox) -> None:
    """A batch waits for the limiter to answer again, and pays once for each image."""
    back_at = flux_clock.monotonic() + 100.0
    limiter = Limiter(flux_clock)
    limiter.fails = lambda: bool(limiter.permits) and flux_clock.monotonic() < back_at
    async with sandbox.client(rate_limiter=limiter) as client, run_batch(client, URLS) as batch:
        assert all([isinstance(outcome, Succeeded) async for outcome in batch])
    assert limiter.permits[1] >= back_at
    assert limiter.asked - len(limiter.permits) < 60  # the tries of the pause, not one for each image
    assert sandbox.ledger.accepted == len(URLS)


@pytest.mark.parametrize(("permits", "waited_s"), [(0, 20), (2, 60)], ids=["at the start", "in the middle"])
async def test_a_limiter_that_stays_away_halts_a_batch(
    flux_clock: VirtualClock, sandbox: FluxSandbox, permits: int, waited_s: int
) -> None:
    """With a message that names it; what has no permit is not paid."""
    limiter = Limiter(flux_clock)
    limiter.fails = lambda: len(limiter.permits) >= permits
    words = r"shared rate limiter does not answer: OSError.*waited (\d+) s and halted.*Check its server"
    async with sandbox.client(rate_limiter=limiter) as client, run_batch(client, URLS, patience=60) as batch:
        with pytest.raises(RequestNotSent, match=words) as halted:
            assert [outcome async for outcome in batch] == []
    assert halted.value.charge is Charge.NO
    assert int(re.search(words, str(halted.value))[1]) == pytest.approx(waited_s, abs=12)  # type: ignore[index]
    assert sandbox.ledger.submits == permits


async def test_a_single_call_makes_the_tries_of_its_retry_policy(
    flux_clock: VirtualClock, sandbox: FluxSandbox
) -> None:
    """Then the error is raised."""
    limiter = Limiter(flux_clock, fails=lambda: True)
    retry = RetryPolicy(max_tries=3)
    async with sandbox.client(rate_limiter=limiter, retry=retry, rng=random.Random(7)) as client:
        with pytest.raises(RequestNotSent, match="Check its server"):
            await client.remove_text(URLS[0])
    assert limiter.asked == 3
    assert sandbox.ledger.submits == 0


@pytest.mark.parametrize("limiter", ["redis://127.0.0.1", 20], ids=["address", "number"])
def test_what_gives_no_permits_is_refused(limiter: object) -> None:
    """With what to give instead."""
    with pytest.raises(InvalidInput, match=r"async def take.*RedisRateLimiter"):
        FluxClient("key", rate_limiter=limiter)  # type: ignore[arg-type]


def test_redis_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingExtra, match=r"flux-async\[redis\]"):
        RedisRateLimiter("redis://127.0.0.1:6379/0")
