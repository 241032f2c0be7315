"""The shared rate limiter on a real Redis server: spacing across connections, and a server that is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import anyio
import pytest

from flux_async import ConfigurationError, Limits, RedisRateLimiter, RequestNotSent, RetryPolicy
from flux_async.testing import FluxSandbox
from servers import Redis, RunningServer

LIMITS = Limits(submits=20, window_s=0.4)


@pytest.fixture
async def limiters(redis_url: str, request: pytest.FixtureRequest) -> AsyncIterator[list[RedisRateLimiter]]:
    """Three limiters of one account, as three processes have."""
    made = [RedisRateLimiter(redis_url, limits=LIMITS, name=request.node.name) for _ in range(3)]
    yield made
    for limiter in made:
        await limiter.aclose()


async def take(limiter: RedisRateLimiter, times: int) -> None:
    """Take permits as a submitter does."""
    for _ in range(times):
        while (wait := await limiter.take()) > 0:
            assert wait <= limiter.spacing_s
            await anyio.sleep(wait)


async def test_permits_of_all_processes_keep_their_distance(limiters: list[RedisRateLimiter]) -> None:
    """However they compete, 31 permits take at least 30 spacings: no window holds more than it may."""
    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for limiter, times in zip(limiters, (10, 10, 11), strict=True):
            group.start_soon(take, limiter, times)
    assert time.monotonic() - began >= 30 * limiters[0].spacing_s - 0.001


async def test_accounts_do_not_wait_for_each_other(redis_url: str, limiters: list[RedisRateLimiter]) -> None:
    """Each name has permits of its own."""
    slow = Limits(submits=1, window_s=600)
    async with (
        RedisRateLimiter(redis_url, limits=slow, name="a") as one,
        RedisRateLimiter(redis_url, limits=slow, name="b") as other,
    ):
        assert [await one.take(), await other.take()] == [0.0, 0.0]
        assert 600 < await one.take() <= one.spacing_s


async def test_a_server_that_is_away_stops_submits_until_it_is_back(
    redis: tuple[Redis, RunningServer], redis_url: str, flux_sandbox: FluxSandbox
) -> None:
    """No submit without a permit; the same limiter goes on when the server is there again."""
    server, process = redis
    async with (
        RedisRateLimiter(redis_url, limits=LIMITS, name="away") as limiter,
        flux_sandbox.client(rate_limiter=limiter, retry=RetryPolicy(max_tries=1)) as client,
    ):
        assert (await client.remove_text("https://example.com/a.jpg")).task_id
        process.stop()
        with pytest.raises(RequestNotSent, match="shared rate limiter does not answer"):
            await client.remove_text("https://example.com/b.jpg")
        assert flux_sandbox.ledger.submits == 1
        process.start()
        assert server.answers()
        assert (await client.remove_text("https://example.com/b.jpg")).task_id
    assert flux_sandbox.ledger.accepted == 2


async def test_an_address_of_another_kind_is_refused() -> None:
    """With an example of one."""
    with pytest.raises(ConfigurationError, match=r"Redis URL must specify.*redis://host:6379/0"):
        RedisRateLimiter("127.0.0.1:6379")
