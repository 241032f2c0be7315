"""THE table: what each of the vendor's codes means, once, for every part of this package.

Sources: API page, "Error Handling" and "Callback Status Codes"; 408 and 433 appear on the vendor's other
pages. The numbers are *envelope* codes: the vendor sends nearly all of them with HTTP 200. An HTTP status
stands in only where there is no readable envelope.

Rules:

1. A code the table does not hold is treated as "maybe charged, this job only, look again later".
2. A submit is charged MAYBE unless the vendor is known to answer so before making a task.
3. ``Scope`` and ``Charge`` of a row are those of its error class, so an error carries them with it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from flux_async.errors import (
    ApiError,
    AuthenticationError,
    Charge,
    ConfigurationError,
    ContentPolicyError,
    FeatureDisabledError,
    FluxError,
    InsufficientCreditsError,
    InvalidRequestError,
    KeyLimitError,
    MaintenanceError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    Scope,
    ServerError,
)

OK = 200


class PollMeaning(enum.Enum):
    """What a code says about a task when record-info answers with it."""

    LOOK_AGAIN = "look again later"
    NOT_VISIBLE = "not visible yet, or no such task"
    TASK_FAILED = "the task ended without an image"
    FATAL = "looking again cannot help until a person acts"


@attrs.frozen
class CodeRule:
    """One row: the error a code becomes, and what it means for a task being waited for."""

    error: type[ApiError]
    poll: PollMeaning

    @property
    def charge(self) -> Charge:
        """Whether a submit answered with this code may have been charged."""
        return self.error.default_charge

    @property
    def scope(self) -> Scope:
        """Whom a submit answered with this code concerns."""
        return self.error.default_scope


CODES: Mapping[int, CodeRule] = MappingProxyType(
    {
        400: CodeRule(ContentPolicyError, PollMeaning.TASK_FAILED),
        401: CodeRule(AuthenticationError, PollMeaning.FATAL),
        402: CodeRule(InsufficientCreditsError, PollMeaning.FATAL),
        403: CodeRule(PermissionDeniedError, PollMeaning.FATAL),
        404: CodeRule(NotFoundError, PollMeaning.NOT_VISIBLE),
        408: CodeRule(ServerError, PollMeaning.TASK_FAILED),
        422: CodeRule(InvalidRequestError, PollMeaning.NOT_VISIBLE),
        429: CodeRule(RateLimitedError, PollMeaning.LOOK_AGAIN),
        433: CodeRule(KeyLimitError, PollMeaning.FATAL),
        455: CodeRule(MaintenanceError, PollMeaning.LOOK_AGAIN),
        500: CodeRule(ServerError, PollMeaning.LOOK_AGAIN),
        501: CodeRule(ServerError, PollMeaning.TASK_FAILED),
        502: CodeRule(ServerError, PollMeaning.LOOK_AGAIN),
        503: CodeRule(ServerError, PollMeaning.LOOK_AGAIN),
        504: CodeRule(ServerError, PollMeaning.LOOK_AGAIN),
        505: CodeRule(FeatureDisabledError, PollMeaning.FATAL),
    }
)

UNLISTED = CodeRule(ApiError, PollMeaning.LOOK_AGAIN)


def rule_for(code: int) -> CodeRule:
    """Return the row of ``code``, or the cautious row for codes nobody documented."""
    return CODES.get(code, UNLISTED)


def poll_meaning(error: FluxError) -> PollMeaning:
    """Say what ``error``, met while looking at a task, means for the wait.

    Lost connections and answers without shape mean "look again": the task goes on without us.
    """
    if isinstance(error, ApiError) and not isinstance(error, ServerError):
        return rule_for(error.code).poll
    ours = isinstance(error, ConfigurationError)  # the client was closed meanwhile
    return PollMeaning.FATAL if ours or error.scope is Scope.STOP else PollMeaning.LOOK_AGAIN


def error_for(
    code: int, msg: str, *, http_status: int | None = None, retry_after_s: float | None = None, **extra: Any
) -> ApiError:
    """Make the error that ``code`` means, with the vendor's own words in it.

    ``extra`` goes to the error as it is, for a charge or an advice other than the table's.
    """
    kind = rule_for(code).error
    fields: dict[str, Any] = {"code": code, "msg": msg, "http_status": http_status}
    if issubclass(kind, RateLimitedError):
        fields["retry_after_s"] = retry_after_s
    fields |= extra
    return kind(f"The API answered {code}: {msg.strip().rstrip('.') or 'no message'}.", **fields)
