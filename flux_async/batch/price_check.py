"""Measures the price of each model with the first image of a run, before a second one is submitted.

Rules:

1. While a price is measured, the job that measures is the only one of the run that submits.
2. Most often that lasts until its submit is accepted: the vendor charges then, and the balance shows it. Only
   if the balance shows something else, it lasts until the task has ended, or for a minute.
3. A job whose submit brings no task leaves the measurement to the next one.
4. Nothing that goes wrong here stops a run: a price that cannot be measured is unknown, which is logged once.
   What a measurement proves is decided in :mod:`flux_async.policy.price`.
"""

from __future__ import annotations

import contextlib
import logging
import math

import attrs

from flux_async.api import Api, load_api
from flux_async.api.common_api import build_credit, parse_credit
from flux_async.api.models_table import AnyModel, ApiName
from flux_async.batch.active_job import ActiveJob
from flux_async.batch.job_store import JobStore
from flux_async.batch.run_control import Budget
from flux_async.errors import (
    FluxError,
    JournalError,
    RequestNotSent,
    TaskFailed,
    UnexpectedPrice,
)
from flux_async.job_state import JobState
from flux_async.models import ImageResult
from flux_async.policy.price import Balances, PriceGuard, differs, drop
from flux_async.policy.retry import RetryPolicy
from flux_async.session import Session

logger: logging.Logger = logging.getLogger("flux_async")

_READ_TIMEOUT_S = 10.0
_TRIES = RetryPolicy(max_tries=3)
_FRESH_S, _UNREAD_FRESH_S = 30.0, 5.0
"""The balance is read again if the submit comes later than this; shorter while the API cannot be reached."""
_LONGEST_WAIT_S = 60.0
"""Seconds that the others wait for the end of the first task; most tasks take a quarter of that."""
_DOUBT_S = 120.0
"""Seconds after a submit in doubt in which the vendor may still charge it."""


@attrs.frozen(kw_only=True)
class _Before:
    """The balance before a submit, None if it cannot be read; and what could move it.

    That is submits, and refunds of failed tasks.
    """

    balance: float | None
    read_at: float
    submits: int
    failures: int


@attrs.define(eq=False)
class _Measurement:
    """A measurement in progress.

    Attributes:
        job: The job whose submit is measured.
        api: The API that it is submitted to.
        before: What was read before it; None until then.
        after: The balance after its submit, None if it cannot be read.
        ends_at: When the others wait no longer for the end of its task.
        is_over: Whether it has been decided.
    """

    job: ActiveJob
    api: Api
    before: _Before | None = None
    after: float | None = None
    ends_at: float = math.inf
    is_over: bool = False


@attrs.define(kw_only=True, eq=False)
class PriceCheck:
    """The measurements of one run.

    Attributes:
        session: Reads the balance; is notified when submits may go on.
        journal: Keeps the prices.
        budget: Stops the run at an unexpected price.
    """

    session: Session
    journal: JobStore
    budget: Budget
    _current: _Measurement | None = attrs.field(default=None, init=False)
    _last_before: _Before | None = attrs.field(default=None, init=False)
    _doubt_at: float = attrs.field(default=-math.inf, init=False)

    @property
    def _guard(self) -> PriceGuard:
        return self.budget.guard

    async def load(self) -> None:
        """Take over the prices that earlier runs of the journal have measured."""
        self._guard.load(await self.journal.prices())

    # --- before the submit --------------------------------------------------------------------------------

    async def take_turn(self, job: ActiveJob, api: ApiName) -> None:
        """Return when a job may submit: nothing is measured now, or it is the one that measures.

        An unexpected price stops the run here, so that no second image is paid.
        """
        model = job.model
        while self.budget.control.is_spending:
            if self._current is None:
                if (price := self._guard.unexpected(model)) is not None:
                    self.budget.stop(_error(model, price, self._guard.expected[model]))
                    return
                if self._guard.is_settled(model):
                    return
                self._current = _Measurement(job, load_api(api))
                self.session.changed.set()  # jobs that wait for a permit wait for the measurement instead
            if self._current.job is not job:
                await self._wait_for(self._current)
                continue
            await self._read_before(self._current)
            return

    def may_submit(self, job: ActiveJob) -> bool:
        """Return whether a job may submit now, with what was read before."""
        current = self._current
        if current is None:
            model = job.model
            return self._guard.is_settled(model) and self._guard.unexpected(model) is None
        return current.job is job and self._is_fresh(current.before)

    async def _wait_for(self, current: _Measurement) -> None:
        """Wait until something has changed; decide a measurement whose task takes long."""
        clock = self.session.clock
        if clock.monotonic() < current.ends_at:
            await self.session.changed.wait(clock, current.ends_at - clock.monotonic())
            return
        current.ends_at = math.inf
        try:
            cost = await self._measure_at_end(current, has_image=False)
            current.job.measured = cost or None
        finally:
            self.release(current.job)

    async def _read_before(self, current: _Measurement) -> None:
        """Read the balance, alone: the run has no other submit in flight, and makes none meanwhile."""
        await self.budget.all_posts_recorded()
        submits, failures = self.session.submitter.may_be_charged, self.budget.tally.failures
        last = self._last_before  # of a job whose submit was refused, and so charged nothing
        if last is not None and self._is_fresh(last) and last.submits == submits:
            current.before = last
            return
        try:
            balance = await self._balance()
        except RequestNotSent:  # the submit will most likely not be sent either
            balance = None
        else:
            if balance is None and not current.api.SHOWS_COST:
                self._give_up(current.job.model)
                self.release(current.job)
                return
        now = self.session.clock.monotonic()
        current.before = _Before(balance=balance, read_at=now, submits=submits, failures=failures)
        self._last_before = current.before

    def _is_fresh(self, before: _Before | None) -> bool:
        if before is None:
            return False
        fresh_s = _UNREAD_FRESH_S if before.balance is None else _FRESH_S
        return self.session.clock.monotonic() - before.read_at < fresh_s

    # --- after the submit ---------------------------------------------------------------------------------

    async def submitted(self, job: ActiveJob) -> None:
        """Read the balance after the submit of the job that measures, if it has made a task."""
        if job.state.state is JobState.IN_DOUBT:
            self._doubt_at = self.session.clock.monotonic()
        current = self._current
        if current is None or current.job is not job or current.before is None:
            return
        if job.state.state is not JobState.SUBMITTED:
            return
        model = job.model
        before, current.after = current.before.balance, await self._balance_or_none()
        price = None if before is None or current.after is None else drop(before, current.after)
        if price is None and not current.api.SHOWS_COST:
            await self._saw_doubtful(model, None)
        elif price is None or differs(price, self._guard.expected[model]):
            current.ends_at = self.session.clock.monotonic() + _LONGEST_WAIT_S
            self.session.changed.set()
        else:
            job.measured = price
            self.budget.correct(job, price)
            await self._saw_price(model, price)

    async def decide_at_submit(self, job: ActiveJob) -> None:
        """Decide the measurement of a job that is submitted, without waiting for the end of its task.

        The next image measures again where the balance has shown another amount than expected: of two that
        show the same, it is the price.
        """
        current = self._current
        if current is None or current.job is not job:
            return
        before = None if current.before is None else current.before.balance
        price = None if before is None or current.after is None else drop(before, current.after)
        await self._saw_doubtful(job.model, price or None)
        self.release(job)

    def end_turn(self, job: ActiveJob) -> None:
        """Let the others submit, unless the end of the job's task is needed."""
        if self._current is not None and self._current.ends_at == math.inf:
            self.release(job)

    def release(self, job: ActiveJob) -> None:
        """End the measurement of a job, if it has one."""
        if self._current is not None and self._current.job is job:
            self._current = None
            self.session.changed.set()

    async def cost_of(self, job: ActiveJob, found: ImageResult | Exception) -> float | None:
        """Return what the task of a job has cost, if that is known, once the wait for it is over."""
        has_image = isinstance(found, ImageResult)
        record = found.record if isinstance(found, ImageResult | TaskFailed) else None
        cost = None if record is None else record.credits
        current = self._current
        if current is None or current.job is not job:
            if cost and has_image and job.measured is not None and cost != job.measured:
                self._guard.saw_figure(job.model, cost)
                await self._keep_price(job.model, cost)
            return job.measured if cost is None and has_image else cost
        try:
            if cost and has_image:
                await self._saw_price(job.model, cost)
                return cost
            if isinstance(found, ImageResult | TaskFailed):
                measured = await self._measure_at_end(current, has_image=has_image)
                return measured if cost is None else cost
            await self._saw_doubtful(job.model, None)
        finally:
            self.release(job)
        return None

    async def _measure_at_end(self, current: _Measurement, *, has_image: bool) -> float | None:
        """Decide by the balance after the end of the task; return what the task has cost, if that is sure."""
        if current.is_over:
            return None
        current.is_over = True
        model, before, after = current.job.model, current.before, current.after
        at_end = await self._balance_or_none()
        if before is None or before.balance is None or after is None or at_end is None:
            if at_end is None and has_image:
                self._give_up(model)  # neither the record nor the balance will show it
            else:
                await self._saw_doubtful(model, None)
            return None
        balances = Balances(before=before.balance, after=after, at_end=at_end)
        price = balances.price(has_image=has_image)
        if price is None or self._is_disturbed(before):
            await self._saw_doubtful(model, price)
            return None
        await self._saw_price(model, price)
        return balances.cost(has_image=has_image)

    def _is_disturbed(self, before: _Before) -> bool:
        """Return whether another task of this client may have moved the balance since it was read."""
        tally = self.budget.tally
        return (
            self.session.submitter.may_be_charged != before.submits + 1
            or tally.failures != before.failures
            or tally.generating > 1  # it may have failed, and be refunded, without a poll since
            or self.session.clock.monotonic() - self._doubt_at < _DOUBT_S
        )

    # --- what was found -----------------------------------------------------------------------------------

    async def _saw_price(self, model: AnyModel, price: float) -> None:
        self._guard.saw_price(model, price)
        await self._keep_price(model, price)

    async def _keep_price(self, model: AnyModel, price: float) -> None:
        with contextlib.suppress(JournalError):  # a head start for the next run only
            await self.journal.record_price(str(model), price)
        if self._guard.unexpected(model) is not None:
            logger.warning("%s", _error(model, price, self._guard.expected[model]).message)

    async def _saw_doubtful(self, model: AnyModel, price: float | None) -> None:
        if not self._guard.saw_doubtful(model, price):
            return
        if (known := self._guard.measured(model)) is not None:
            await self._saw_price(model, known)
        else:
            self._give_up(model)

    def _give_up(self, model: AnyModel) -> None:
        self._guard.give_up(model)
        logger.warning(
            "the price of an image with %s is unknown: neither records nor the balance show it. The run goes "
            "on and counts %g credits an image",
            model,
            self._guard.expected[model],
        )

    # --- the balance --------------------------------------------------------------------------------------

    async def _balance_or_none(self) -> float | None:
        try:
            return await self._balance()
        except RequestNotSent:
            return None

    async def _balance(self) -> float | None:
        """Return the balance; None if the answer, after a few tries, is no balance.

        None, too, with a shared rate limiter: then the submits of other processes move it at the same time.

        Raises:
            RequestNotSent: The API cannot be reached.
        """
        session, tries = self.session, 0
        while session.rate_limiter is None:
            tries += 1
            try:
                return await session.read(
                    build_credit(), parse_credit, deadline=session.clock.monotonic() + _READ_TIMEOUT_S
                )
            except RequestNotSent:
                raise  # the pause of submits decides about the next try
            except FluxError as error:
                logger.info("the balance cannot be read: %s", error.message)
                delay = _TRIES.before_next_poll(error, tries, session.rng.random())
            except Exception as failure:  # noqa: BLE001 - a transport of the caller's own
                logger.info("the balance cannot be read: %s", type(failure).__name__)
                delay = None
            if delay is None:
                break
            await session.clock.sleep(delay)
        return None


def _error(model: AnyModel, price: float, expected: float) -> UnexpectedPrice:
    return UnexpectedPrice(
        f"An image with {model} cost {price:.10g} credits, not {expected:.10g}.",
        model=str(model),
        price=price,
        expected=expected,
    )
