"""The cost of a run, the account's balance, and the questions before credits are spent.

Inputs are submitted while they are read, so that the cost grows. It is checked, for the inputs read so far,
before they may be submitted.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio.to_thread
import attrs

from flux_async import (
    AuthenticationError,
    BudgetExhausted,
    Charge,
    FluxClient,
    FluxError,
    RetryPolicy,
    Scope,
    UnexpectedResponse,
)
from flux_async.api.models_table import AnyModel
from flux_async.cli.list_files import InputStopped, LiveInputs
from flux_async.cli.run_folder import Selection
from flux_async.cli.run_options import RunOptions
from flux_async.clock import Clock
from flux_async.journal.store import StoredJob
from flux_async.transport.credentials import DEFAULT_BASE_URL

_TIMEOUT_S = 10.0
_READ_ON_S = 3.0
"""Seconds that a question waits for the rest of a list, to name the whole cost."""

SKIPS = "Those without text are not submitted, and cost nothing."

Ask: TypeAlias = Callable[[str], Awaitable[bool]]


def in_credits(amount: float) -> str:
    """Return an amount as text, with up to ten digits."""
    return f"{amount:.10g}"


def cost_in_words(
    counts: Counter[AnyModel], cost: float, most: float | None, have: float, *, at_most: float = 0.0
) -> tuple[str, bool]:
    """Return the message about the cost of a run, and whether it is a warning.

    Args:
        counts: Images to be paid for, by model.
        cost: Their cost by the price list.
        most: The most that the run may spend.
        have: The balance.
        at_most: Their cost if every image has all attempts that it may have.
    """
    need = _need(counts.total(), cost, most, at_most)
    words = f"{need[0].upper()}{need[1:]}; the account has {in_credits(have)}."
    if have >= (cost if most is None else min(cost, most)):
        return words, False
    return f"{words} It will stop when they are used up; the rest stays pending.", True


def _need(count: int, cost: float, most: float | None, at_most: float, least: str = "") -> str:
    """Return how many images need what; of a run that only makes further attempts, what these may cost."""
    if not count and at_most:
        return f"further attempts for images that are done need {least}up to {_bounded(at_most, most)}"
    return f"{least}{_images_need(count)} about {least}{_bounded(cost, most, at_most)}"


def _images_need(count: int) -> str:
    return "1 image needs" if count == 1 else f"{count} images need"


def _bounded(cost: float, most: float | None, at_most: float = 0.0) -> str:
    more = f", with all their further attempts up to {in_credits(at_most)}" if at_most > cost else ""
    is_bound = most is not None and most < max(cost, at_most)
    bound = f", of which this run may spend {in_credits(most)}" if is_bound and most is not None else ""
    return f"{in_credits(cost)} credits{more}{bound}"


# --- the balance ------------------------------------------------------------------------------------------


async def _read(client: FluxClient) -> float:
    return await client.with_options(retry=RetryPolicy(max_tries=1)).credits(timeout=_TIMEOUT_S)


def _is_web_page(error: FluxError) -> bool:
    """Return whether the answer was no JSON at all, or a redirect."""
    if not isinstance(error, UnexpectedResponse):
        return False
    is_redirect = error.http_status is not None and 300 <= error.http_status < 400  # noqa: PLR2004
    return is_redirect or error.body_excerpt.strip()[:1] not in {"", "{", "["}


def _not_the_api(error: FluxError) -> UnexpectedResponse:
    address = os.environ.get("KIE_BASE_URL", DEFAULT_BASE_URL)
    return UnexpectedResponse(
        f"{address} answered the question for the balance with a web page, not as the API does: "
        f"{error.message.rstrip('.')}. It is not the API, or a login page of this network (a portal) answers "
        "in its place. Nothing was submitted.",
        advice="Open a web page in a browser to log in to the network, or {check_network}. Then run the same "
        "command again.",
        charge=Charge.NO,
        scope=Scope.STOP,
    )


# --- what a run may spend ---------------------------------------------------------------------------------


@attrs.define(kw_only=True, eq=False)
class Spending:
    """Decides whether the inputs read so far may be submitted.

    The difference of the two balances is an estimate of what the run cost: the account may do other work, and
    refunds come late.

    Attributes:
        client: Reads the balance.
        options: The options of the run.
        ask: Asks the user; None where there is none.
        note: Prints a message in a colour.
        clock: The reader of time.
        before: The account's credits before the run, or None where they could not be read.
        after: The account's credits after the run, or None.
    """

    client: FluxClient
    options: RunOptions
    ask: Ask | None
    note: Callable[[str, str], None]
    clock: Clock
    before: float | None = attrs.field(default=None, init=False)
    after: float | None = attrs.field(default=None, init=False)
    _was_read: bool = attrs.field(default=False, init=False)
    _asks_at: float | None = attrs.field(default=None, init=False)
    _is_confirmed: bool = attrs.field(default=False, init=False)
    _warned: bool = attrs.field(default=False, init=False)

    def cost(self, selection: Selection) -> float:
        """Return the credits that the images read so far need."""
        return self._price_of(selection.needs)

    def most(self, selection: Selection) -> float:
        """Return the credits that they need if every image has all attempts that it may have."""
        return self.cost(selection) + self._price_of(selection.further)

    def _price_of(self, counts: Counter[AnyModel]) -> float:
        return sum(self.options.expected_prices[model] * count for model, count in counts.items())

    async def may_submit(self, selection: Selection, *, is_last: bool) -> bool:
        """Return whether the inputs read so far may be submitted.

        Raises:
            AuthenticationError: The key was refused, as every submit would be.
            UnexpectedResponse: A web page was the answer, as it would be to every submit.
            BudgetExhausted: The user's answer was no.
        """
        if not selection.needs and not selection.further:
            return True
        await self._read_before(is_last=is_last)
        if not await self._confirm(selection, is_last=is_last):
            return False
        self._report_cost(selection, is_last=is_last)
        return True

    async def may_pay_again(self, count: int, place: str, paid_as: StoredJob) -> bool:
        """Return whether images are paid for that were submitted, perhaps under another signature."""
        words = _differing(count, "in the signature of the address", place, paid_as)
        if self.options.yes:
            self.note(f"{words} They are paid for again.", "yellow")
            return True
        if self.ask is not None:
            return await self.ask(f"{words} Pay for such images again?")
        self.note(f"{words} Such images are not paid for again without --yes.", "yellow")
        return False

    async def may_pay_similar(self, count: int, place: str, similar: StoredJob) -> bool:
        """Return whether images are paid for whose address differs only in its query from a submitted one.

        They may well be other images (``?id=17``, ``?id=18``): without a user to ask, they are paid for.
        """
        words = _differing(count, "in the query of the address", place, similar)
        if self.ask is not None and not self.options.yes:
            return await self.ask(f"{words} Are they other images, to be paid for?")
        self.note(f"{words} They are taken for other images and paid for.", "yellow")
        return True

    async def read_after(self) -> None:
        """Read the balance again, where it was read before; a failure is ignored."""
        if self.before is not None:
            with contextlib.suppress(FluxError):
                self.after = await _read(self.client)

    async def _read_before(self, *, is_last: bool) -> None:
        """Read the balance once. A failure does not stop a run, unless every submit would fail, too."""
        if self._was_read:
            return
        self._was_read = True
        try:
            self.before = await _read(self.client)
        except AuthenticationError:
            raise
        except FluxError as error:
            if _is_web_page(error):
                raise _not_the_api(error) from None
            self.note(
                f"Could not read the balance ({type(error).__name__}); continuing without it.", "yellow"
            )
            return
        if not is_last:
            have = in_credits(self.before)
            self.note(f"The account has {have} credits. The inputs are submitted while they are read.", "")

    async def _confirm(self, selection: Selection, *, is_last: bool) -> bool:
        """Ask once whether a large cost is agreed to; False while that waits for the rest of the list."""
        most = self.most(selection)
        need = most if self.options.max_credits is None else min(most, self.options.max_credits)
        if self.ask is None or self.options.yes or self._is_confirmed or need <= self.options.confirm_above:
            return True
        now = self.clock.monotonic()
        if self._asks_at is None:
            self._asks_at = now + _READ_ON_S
        if not is_last and now < self._asks_at:
            return False
        cost, bound, least = self.cost(selection), self.options.max_credits, "" if is_last else "at least "
        words = _need(selection.needs.total(), cost, bound, most, least)
        have = self.before
        known = "" if have is None else f"; the account has {in_credits(have)}"
        skips = f" {SKIPS}" if self.options.checks.skip_textless else ""
        if not await self.ask(f"{words[0].upper()}{words[1:]}{known}.{skips} Submit them?"):
            raise not_agreed(self.options.confirm_above)
        self._is_confirmed = True
        return True

    def _report_cost(self, selection: Selection, *, is_last: bool) -> None:
        if self.before is None:
            return
        words, is_short = cost_in_words(
            selection.needs,
            self.cost(selection),
            self.options.max_credits,
            self.before,
            at_most=self.most(selection),
        )
        if self.options.checks.skip_textless:
            words = f"{words} {SKIPS}"
        if is_last:
            self.note(words, "yellow" if is_short else "")
        elif is_short and not self._warned:
            self._warned = True
            self.note(f"So far: {words}", "yellow")


def not_agreed(confirm_above: float) -> BudgetExhausted:
    """Return the error of a user whose answer was no."""
    return BudgetExhausted(
        f"More than {in_credits(confirm_above)} credits were not agreed to.",
        advice="Answer y the next time, or add --yes or --confirm-above.",
    )


def _differing(count: int, where: str, place: str, other: StoredJob) -> str:
    images, differ = ("1 image", "differs") if count == 1 else (f"{count} images", "differ")
    return (
        f"{images} of the rows read so far {differ} only {where} from one that this folder has submitted "
        f"(first: {place}, job {other.job.key})."
    )


# --- questions --------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Questions:
    """Asks the user at the terminal.

    Attributes:
        show: Prints the question.
        descriptor: The file that the answer is read from.
    """

    show: Callable[[str], None]
    descriptor: int = 0

    async def ask(self, words: str) -> bool:
        """Return whether the answer begins with y. A cancelled caller does not wait for an answer."""
        self.show(f"{words} Type y and Enter to go on, only Enter to stop.")
        live = LiveInputs()

        def read() -> str:
            try:
                return live.open(self.descriptor, closefd=False).readline().decode(errors="replace")
            except InputStopped:
                return ""

        try:
            answer = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
        finally:
            live.stop()  # ends the thread
        return answer.strip().lower()[:1] == "y"
