"""Lets one worker measure the price of a model by the balance, while no other submits with that key.

Rules:

1. The first image of each model that a worker submits for a batch measures, as the first of a run on one
   machine does: that is :class:`flux_async.batch.price_check.PriceCheck`. What a worker has found in the last
   hour is taken over, also that nothing shows the price.
2. Permits that other workers have taken already, and POSTs in flight, may still move the balance: a second is
   left for them. Where that does not do, the balance shows another amount, and the next image measures again.
3. An unexpected price halts the key for all workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from flux_async.api.models_table import AnyModel
from flux_async.batch.active_job import ActiveJob
from flux_async.batch.run_context import RunContext
from flux_async.engine.worker_jobs import Account, WorkerJobs
from flux_async.errors import UnexpectedPrice
from flux_async.policy.price import PriceGuard

_FRESH_S = 3600.0
_LONGEST_S = 30.0
"""Seconds after which a measurement has ended, whatever has become of its worker."""
_IDLE_S, _LATE_S = 5.0, 1.0
_AGAIN_S = 0.2


@attrs.frozen
class PriceTurns:
    """The measurements of one worker.

    Attributes:
        jobs: The jobs of the worker.
    """

    jobs: WorkerJobs

    @asynccontextmanager
    async def turn(
        self, account: Account, run: RunContext, job: ActiveJob, idle_s: float
    ) -> AsyncIterator[bool]:
        """Hold while a job is submitted; yields False if it may not be now, as another worker measures.

        Args:
            account: The key whose permit was taken.
            run: What the jobs of its batch share.
            job: The job.
            idle_s: Seconds since the permit before.

        Raises:
            UnexpectedPrice: The price of its model is not the expected one, before or after its submit.
        """
        guard, model, clock = run.budget.guard, job.model, self.jobs.database.clock
        if not guard.is_settled(model):
            await _take_over(account, guard, model, clock.wall() - _FRESH_S)
        check_price(guard, model)
        if guard.is_settled(model):
            yield True
            return
        key = account.client.fingerprint
        if not await self.jobs.limiter.begin_measuring(key, _LONGEST_S):
            await clock.sleep(_AGAIN_S)
            yield False
            return
        try:
            if idle_s < _IDLE_S:
                await clock.sleep(_LATE_S)
            yield True
            await run.prices.decide_at_submit(job)
            if guard.is_settled(model):
                await account.store.record_measured(str(model))
        finally:
            await self.jobs.limiter.end_measuring(key)
        check_price(guard, model)


async def _take_over(account: Account, guard: PriceGuard, model: AnyModel, since: float) -> None:
    """Settle the price of a model as another worker has done since a time."""
    was_measured, price = await account.store.measured_since(str(model), since)
    if was_measured and price is not None:
        guard.saw_price(model, price)
    elif was_measured:
        guard.give_up(model)


def check_price(guard: PriceGuard, model: AnyModel) -> None:
    """Refuse a submit with a model that costs another price than expected.

    Raises:
        UnexpectedPrice: It does.
    """
    if (price := guard.unexpected(model)) is not None:
        expected = guard.expected[model]
        words = f"An image with {model} cost {price:.10g} credits, not {expected:.10g}."
        raise UnexpectedPrice(words, model=str(model), price=price, expected=expected)
