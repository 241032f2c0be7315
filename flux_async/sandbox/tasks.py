"""What the vendor keeps: accounts, and tasks from their creation to their end."""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

import attrs

from flux_async.sandbox import envelopes
from flux_async.sandbox.envelopes import Reply
from flux_async.sandbox.faults import Fault, Struck
from flux_async.sandbox.ledger import Attempt, Ledger
from flux_async.sandbox.links import Blob, PublicFile
from flux_async.sandbox.parameters import Order


class Flag(enum.IntEnum):
    """``successFlag`` (API page, "Status Codes")."""

    GENERATING = 0
    SUCCESS = 1
    CREATE_TASK_FAILED = 2
    GENERATE_FAILED = 3


FAILURES: Final = (Flag.CREATE_TASK_FAILED, Flag.GENERATE_FAILED)


@attrs.frozen(kw_only=True)
class Pictures:
    """The two pictures of a successful task: the one edited (or made) and the result."""

    origin: Blob
    result: Blob


@attrs.frozen(kw_only=True)
class Failure:
    """Why a task failed: ``errorCode`` and ``errorMessage``."""

    code: int
    message: str


FATES: Final = {
    Fault.FAIL_400: Failure(code=400, message=envelopes.FLAGGED),
    Fault.FAIL_500: Failure(code=500, message=envelopes.INTERNAL_AS_RECORDED),
    Fault.FAIL_501: Failure(code=501, message=envelopes.NOT_MADE),
    Fault.FAIL_CREATE: Failure(code=500, message="create task failed"),
    Fault.FAIL_ENVELOPE: Failure(code=501, message=envelopes.NOT_MADE),
}
TIMED_OUT: Final = Failure(code=500, message=envelopes.TIMED_OUT)


@attrs.define(eq=False)
class Account:
    """One customer: the keys share the balance and the window.

    Attributes:
        window: When the submits of the last seconds passed the gate.
        disabled: Whether its keys are refused.
    """

    number: int
    balance: float
    ledger: Ledger = attrs.Factory(Ledger)
    window: deque[float] = attrs.Factory(deque)
    disabled: bool = False


@attrs.define(eq=False, kw_only=True)
class Task:
    """One task, from creation to its end, which is sticky but for one fault.

    Attributes:
        ready_at: When its drawn time has passed.
        base_url: The address its submit was sent to; links in its callbacks begin with it.
        faults: What goes wrong with it.
        made: The pictures or the failure, once known; they count from `ready_at` on.
        ends_at: When it will leave GENERATING, known once `made` is.
        ended_at: When it left GENERATING.
        refunded: Credits given back.
        origin: The link to the origin, once it succeeded; `result` likewise.
        callbacks: The deliveries of its callback; with all faults and retries they are eight.
        told: What record-info answers to this state, once asked, and to whom.
    """

    task_id: str
    account: Account
    order: Order
    created_at: float
    ready_at: float
    base_url: str = ""
    faults: Struck = attrs.Factory(dict)
    made: Pictures | Failure | None = None
    ends_at: float | None = None
    flag: Flag = Flag.GENERATING
    ended_at: float | None = None
    refunded: float = 0.0
    origin: PublicFile | None = None
    result: PublicFile | None = None
    polls: int = 0
    callbacks: list[Attempt] = attrs.Factory(list)
    told: tuple[str, Reply] | None = None

    @property
    def subject(self) -> str:
        """Under which the ledger files it."""
        return subject_of(self.order)

    @property
    def failure(self) -> Failure | None:
        """Why it failed, while it is seen as failed."""
        if self.flag not in FAILURES:
            return None
        return self.made if isinstance(self.made, Failure) else TIMED_OUT

    @property
    def fate(self) -> Failure | None:
        """The failure that awaits it whatever is made of its pictures."""
        return next((failure for fault, failure in FATES.items() if fault in self.faults), None)


def subject_of(order: Order) -> str:
    """Return under which name the ledger files what was ordered."""
    return order.input_image or f"prompt:{order.prompt}"
