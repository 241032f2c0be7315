"""Permits for submits that several processes share: the protocol :class:`RateLimiter`, and one with Redis.

A session spaces its own submits (:class:`flux_async.policy.rate_limit.SubmitSpacing`); with a shared limiter
each submit needs a permit of it as well. Nothing waits between the permit and the POST, and no permit is
given in advance: a process that dies blocks no other.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, Self

import attrs

from flux_async.errors import ConfigurationError, MissingExtra, shown
from flux_async.policy import check_function
from flux_async.policy.rate_limit import Limits

SLACK = 0.02
"""Share by which permits are further apart than the limit: requests take different times to arrive."""
_ANSWER_S = 5.0
_MICROSECONDS = 1_000_000

_TAKE = """
local time = redis.call('TIME')
local now, spacing = time[1] * 1000000 + time[2], tonumber(ARGV[1])
local next_at = tonumber(redis.call('GET', KEYS[1]) or '0')
if next_at > now then
  return math.min(next_at - now, spacing)
end
redis.call('SET', KEYS[1], string.format('%.0f', now + spacing), 'PX', math.ceil(spacing / 1000))
return 0
"""
"""The generic cell rate algorithm with a burst of one, by the clock of the server, in microseconds."""


class RateLimiter(Protocol):
    """Gives permits for submits to all processes that share one account."""

    async def take(self) -> float:
        """Take a permit and return 0, or return the seconds after which to ask again.

        The permit is used at once, or never. While this raises, nothing is submitted: the submits pause as
        for a vendor that cannot be reached, and a batch halts when that lasts.
        """
        ...


def check_rate_limiter(given: RateLimiter | None) -> RateLimiter | None:
    """Return a limiter, or None for none.

    Raises:
        InvalidInput: It has no ``async def take(self)``.
    """
    if given is not None:
        words = f"rate_limiter must be an object with `async def take(self) -> float`, not {shown(given)}"
        take: object = getattr(given, "take", None)
        check_function(take, words, takes=0, is_async=True, advice="Use RedisRateLimiter(url), for example.")
    return given


@attrs.define(eq=False)
class RedisRateLimiter:
    """Spaces the submits of all processes that use one name on one Redis server.

    It belongs to one event loop. A server that is restarted without its data gives one permit early, at most.

    Args:
        url: Address of the server: ``redis://host:6379/0``.
        limits: Submits of the account in a window; left out, 20 in 10 s.
        name: Name of the account; two accounts on one server need two.

    Raises:
        MissingExtra: The extra ``redis`` is not installed.
        ConfigurationError: ``url`` is no address of a Redis server.
    """

    url: str = attrs.field(repr=False)
    limits: Limits = attrs.field(factory=Limits, kw_only=True)
    name: str = attrs.field(default="default", kw_only=True)
    _redis: Any = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        try:
            from redis.asyncio import Redis  # noqa: PLC0415 - needs an extra
        except ImportError as missing:
            raise MissingExtra.for_extra("RedisRateLimiter", "redis") from missing
        try:
            self._redis = Redis.from_url(self.url)
        except ValueError as bad:
            raise ConfigurationError(
                f"The address of the Redis server cannot be used: {bad}.",
                advice="Write redis://host:6379/0, rediss://… or unix://….",
            ) from None

    @property
    def spacing_s(self) -> float:
        """Seconds between two permits: 0.51 s for 20 submits in 10 s."""
        return self.limits.window_s / self.limits.submits * (1.0 + SLACK)

    async def take(self) -> float:
        """Take a permit and return 0, or return the seconds until the next one."""
        spacing = round(self.spacing_s * _MICROSECONDS)
        async with asyncio.timeout(_ANSWER_S):
            wait: int = await self._redis.eval(_TAKE, 1, f"flux-async:submits:{self.name}", spacing)
        return wait / _MICROSECONDS

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
