"""What a run may cost, and what the account has: told before anything is spent, and again at the end."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskStatus

from flux_async import (
    AuthenticationError,
    BudgetExhausted,
    Charge,
    FluxClient,
    FluxError,
    Model,
    RetryPolicy,
    Scope,
    UnexpectedResponse,
)
from flux_async.cli.list_files import InputStopped, LiveInputs
from flux_async.cli.run_folder import Selection
from flux_async.clock import Clock
from flux_async.journal.store import StoredJob
from flux_async.transport.credentials import DEFAULT_BASE_URL

_TIMEOUT_S = 10.0


@attrs.define
class Balance:
    """The account's credits before and after a run.

    The difference is an estimate of what the run cost: other work may be going on, and refunds come late.

    Attributes:
        before: Credits before, or None where the vendor did not say.
        after: Credits after.
    """

    before: float | None = None
    after: float | None = None

    async def look_before(self, client: FluxClient) -> str | None:
        """Ask for the balance; return why it is not known, where it is not: that is no reason not to run.

        Raises:
            AuthenticationError: The key was refused, as every submit would be.
            UnexpectedResponse: A web page was the answer, as it would be of every submit.
        """
        try:
            self.before = await _ask(client)
        except AuthenticationError:
            raise
        except FluxError as error:
            if _is_web_page(error):
                raise _not_the_api(error) from None
            return f"The balance is not known ({type(error).__name__}); going on without."
        return None

    async def look_after(self, client: FluxClient) -> None:
        """Ask again, where there was an answer before; what it ends in is of no importance."""
        if self.before is None:
            return
        try:
            self.after = await _ask(client)
        except FluxError:
            self.after = None


async def _ask(client: FluxClient) -> float:
    return await client.with_options(retry=RetryPolicy(max_tries=1)).credits(timeout=_TIMEOUT_S)


def _is_web_page(error: FluxError) -> bool:
    """Whether the answer was no JSON at all, or led elsewhere; a server in trouble (5xx) is another thing."""
    if not isinstance(error, UnexpectedResponse):
        return False
    is_redirect = error.http_status is not None and 300 <= error.http_status < 400  # noqa: PLR2004
    return is_redirect or error.body_excerpt.strip()[:1] not in {"", "{", "["}


def _not_the_api(error: FluxError) -> UnexpectedResponse:
    address = os.environ.get("KIE_BASE_URL") or DEFAULT_BASE_URL
    return UnexpectedResponse(
        f"{address} answered the question for the balance with a web page, not as the API does: "
        f"{error.message.rstrip('.')}. It is not the API, or a login page of this network (a portal) answers "
        "in its place. Nothing was submitted.",
        advice="Open a web page in a browser to log in to the network, or {check_network}. Then run the same "
        "command again.",
        charge=Charge.NO,
        scope=Scope.STOP,
    )


def in_credits(amount: float) -> str:
    """Return an amount for a person: all of its digits, where it has no more than ten, and no others."""
    return f"{amount:.10g}"


def cost_in_words(counts: Counter[Model], cost: float, most: float | None, have: float) -> tuple[str, bool]:
    """Return what to say before a run, and whether it is a warning.

    Args:
        counts: Images to be paid for, by model.
        cost: What they cost by the price list.
        most: What the run may spend.
        have: What the account has.
    """
    images = sum(counts.values())
    need = cost if most is None else min(cost, most)
    plural = "1 image needs" if images == 1 else f"{images} images need"
    bounded = "" if need == cost else f", of which this run may spend {in_credits(need)}"
    words = f"{plural} about {in_credits(cost)} credits{bounded}; the account has {in_credits(have)}."
    if have >= need:
        return words, False
    return f"{words} It will stop when they are used up; the rest stays pending.", True


# --- before a run ---------------------------------------------------------------------------------------


_READ_ON_S = 3.0
"""A question waits so long for the rest of a list, to name the whole cost."""

Ask = Callable[[str], Awaitable[bool]]


@attrs.define(kw_only=True, eq=False)
class Spending:
    """Judges what a run needs.

    Attributes:
        client: Is asked for the balance.
        prices: Credits per image, by model.
        max_credits: What the run may spend.
        confirm_above: Credits above which a person is asked, where there is one.
        ask: Asks, or None where nobody is to be asked.
        is_agreed: Whether the answer to every question is yes.
        note: Prints a message in a colour.
        clock: The reader of time.
    """

    client: FluxClient
    prices: Mapping[Model, float]
    max_credits: float | None
    confirm_above: float
    ask: Ask | None
    is_agreed: bool
    note: Callable[[str, str], None]
    clock: Clock
    balance: Balance = attrs.field(factory=Balance, init=False)
    _looked: bool = attrs.field(default=False, init=False)
    _asks_at: float | None = attrs.field(default=None, init=False)
    _confirmed: bool = attrs.field(default=False, init=False)
    _said_short: bool = attrs.field(default=False, init=False)

    def cost(self, selection: Selection) -> float:
        """Return the credits that the images read so far need."""
        return sum(self.prices[model] * count for model, count in selection.needs.items())

    async def may_submit(self, selection: Selection, *, is_last: bool) -> bool:
        """Say whether what has been read so far may be submitted.

        Raises:
            AuthenticationError: The key was refused.
            BudgetExhausted: The answer was no.
        """
        if not selection.needs:
            return True
        if not self._looked:
            self._looked = True
            await self._look(is_last=is_last)
        if not await self._is_confirmed(selection, is_last=is_last):
            return False
        self._say(selection, is_last=is_last)
        return True

    async def may_pay_again(self, count: int, place: str, paid_as: StoredJob) -> bool:
        """Say whether images are paid for that were submitted, perhaps under another signature."""
        words = _differing(count, "in the signature of the address", place, paid_as)
        if self.is_agreed:
            self.note(f"{words} They are paid for again.", "yellow")
            return True
        if self.ask is not None:
            return await self.ask(f"{words} Pay for such images again?")
        self.note(f"{words} Such images are not paid for again without --yes.", "yellow")
        return False

    async def may_pay_similar(self, count: int, place: str, similar: StoredJob) -> bool:
        """Say whether images are paid for whose address differs only in its query from a submitted one.

        They may well be others (``?id=17``, ``?id=18``): where there is nobody to ask, they are paid for.
        """
        words = _differing(count, "in the query of the address", place, similar)
        if self.ask is not None and not self.is_agreed:
            return await self.ask(f"{words} Are they other images, to be paid for?")
        self.note(f"{words} They are taken for other images and paid for.", "yellow")
        return True

    # --- how ----------------------------------------------------------------------------------------------

    async def _look(self, *, is_last: bool) -> None:
        trouble = await self.balance.look_before(self.client)
        if self.balance.before is None:
            self.note(trouble or "", "yellow")
        elif not is_last:
            have = in_credits(self.balance.before)
            self.note(f"The account has {have} credits. The inputs are submitted while they are read.", "")

    async def _is_confirmed(self, selection: Selection, *, is_last: bool) -> bool:
        cost = self.cost(selection)
        need = cost if self.max_credits is None else min(cost, self.max_credits)
        if self.ask is None or self.is_agreed or self._confirmed or need <= self.confirm_above:
            return True
        now = self.clock.monotonic()
        if self._asks_at is None:
            self._asks_at = now + _READ_ON_S
        if not is_last and now < self._asks_at:
            return False
        images = selection.needs.total()
        least = "" if is_last else "at least "
        words = f"{least}{images} images need about {least}{in_credits(cost)} credits"
        bounded = "" if need == cost else f", of which this run may spend {in_credits(need)}"
        have = self.balance.before
        known = "" if have is None else f"; the account has {in_credits(have)}"
        if not await self.ask(f"{words[0].upper()}{words[1:]}{bounded}{known}. Submit them?"):
            raise BudgetExhausted(
                f"More than {in_credits(self.confirm_above)} credits were not agreed to.",
                advice="Answer y the next time, or add --yes or --confirm-above.",
            )
        self._confirmed = True
        return True

    def _say(self, selection: Selection, *, is_last: bool) -> None:
        if self.balance.before is None:
            return
        words, is_short = cost_in_words(
            selection.needs, self.cost(selection), self.max_credits, self.balance.before
        )
        if is_last:
            self.note(words, "yellow" if is_short else "")
        elif is_short and not self._said_short:
            self._said_short = True
            self.note(f"So far: {words}", "yellow")


def _differing(count: int, where: str, place: str, other: StoredJob) -> str:
    images, differ = ("1 image", "differs") if count == 1 else (f"{count} images", "differ")
    return (
        f"{images} of the rows read so far {differ} only {where} from one that this folder has submitted "
        f"(first: {place}, job {other.job.key})."
    )


# --- questions ------------------------------------------------------------------------------------------


def can_ask() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


@attrs.frozen(kw_only=True)
class Questions:
    """Asks yes or no.

    Attributes:
        show: Prints the question.
        descriptor: Where the answer is read from.
    """

    show: Callable[[str], None]
    descriptor: int = 0

    async def ask(self, words: str) -> bool:
        """Return whether the answer begins with y; a cancelled caller does not wait for one."""
        self.show(f"{words} Type y and Enter to go on, only Enter to stop.")
        answer = ""
        live = LiveInputs()

        async def end_with_me(task_status: TaskStatus[None]) -> None:
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                live.stop()

        def read() -> str:
            try:
                return live.open(self.descriptor, closefd=False).readline().decode(errors="replace")
            except InputStopped:
                return ""

        async with anyio.create_task_group() as group:
            await group.start(end_with_me)
            answer = await anyio.to_thread.run_sync(read)
            group.cancel_scope.cancel()
        return answer.strip().lower()[:1] == "y"
