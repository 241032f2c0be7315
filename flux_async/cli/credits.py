"""What a run may cost, and what the account has: told before anything is spent, and again at the end."""

from __future__ import annotations

import os
from collections import Counter

import attrs

from flux_async import (
    AuthenticationError,
    Charge,
    FluxClient,
    FluxError,
    Model,
    RetryPolicy,
    Scope,
    UnexpectedResponse,
)
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
