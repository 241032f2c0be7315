"""The table of the vendor's codes: the error of each, and what it means for a poll.

Sources: API page, "Error Handling" and "Callback Status Codes"; 408 and 433 appear on the vendor's other
pages. The jobs API has the same codes: a failed task is 501 in its callbacks, ``failCode`` in its records.
The numbers are *envelope* codes: the vendor sends nearly all of them with HTTP 200. An HTTP status stands in
only where there is no readable envelope.

Rules:

1. A code that is not in the table is treated as "maybe charged, this job only, poll again later".
2. A submit is charged MAYBE unless the vendor answers so before it makes a task.
3. ``Scope`` and ``Charge`` of a row are those of its error class, so an error carries them with it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from flux_async.api_errors import (
    ApiError,
    AuthenticationError,
    ContentPolicyError,
    FeatureDisabledError,
    InsufficientCreditsError,
    InvalidRequestError,
    KeyLimitError,
    MaintenanceError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
)
from flux_async.errors import Charge, ConfigurationError, FluxError, Scope

OK = 200


class PollMeaning(enum.Enum):
    """Meaning of a code for a task when a poll is answered with it."""

    POLL_AGAIN = "poll again later"
    NOT_VISIBLE = "not visible yet, or no such task"
    TASK_FAILED = "the task ended without an image"
    FATAL = "no later poll can help until a person acts"


@attrs.frozen
class CodeRule:
    """One row: the error of a code, and its meaning for a poll."""

    error: type[ApiError]
    poll: PollMeaning

    @property
    def charge(self) -> Charge:
        """Whether a submit answered with this code may have been charged."""
        return self.error.default_charge

    @property
    def scope(self) -> Scope:
        """Which jobs a submit answered with this code affects."""
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
        429: CodeRule(RateLimitedError, PollMeaning.POLL_AGAIN),
        433: CodeRule(KeyLimitError, PollMeaning.FATAL),
        455: CodeRule(MaintenanceError, PollMeaning.POLL_AGAIN),
        500: CodeRule(ServerError, PollMeaning.POLL_AGAIN),
        501: CodeRule(ServerError, PollMeaning.TASK_FAILED),
        502: CodeRule(ServerError, PollMeaning.POLL_AGAIN),
        503: CodeRule(ServerError, PollMeaning.POLL_AGAIN),
        504: CodeRule(ServerError, PollMeaning.POLL_AGAIN),
        505: CodeRule(FeatureDisabledError, PollMeaning.FATAL),
    }
)

UNLISTED = CodeRule(ApiError, PollMeaning.POLL_AGAIN)


def rule_for(code: int) -> CodeRule:
    """Return the row of ``code``; an undocumented code has the cautious row."""
    return CODES.get(code, UNLISTED)


def poll_meaning(error: FluxError) -> PollMeaning:
    """Return what the error of a poll means for the wait.

    Lost connections and undocumented answers mean "poll again": the task continues at the vendor.
    """
    if isinstance(error, ApiError) and not isinstance(error, ServerError):
        return rule_for(error.code).poll
    ours = isinstance(error, ConfigurationError)  # the client was closed meanwhile
    return PollMeaning.FATAL if ours or error.scope is Scope.STOP else PollMeaning.POLL_AGAIN


def error_for(
    code: int, msg: str, *, http_status: int | None = None, retry_after_s: float | None = None, **extra: Any
) -> ApiError:
    """Return the error of ``code`` with the vendor's message.

    ``extra`` is passed to the error, for a charge or an advice other than the table's.
    """
    kind = rule_for(code).error
    fields: dict[str, Any] = {"code": code, "msg": msg, "http_status": http_status}
    if issubclass(kind, RateLimitedError):
        fields["retry_after_s"] = retry_after_s
    fields |= extra
    return kind(f"The API answered {code}: {msg.strip().rstrip('.') or 'no message'}.", **fields)
