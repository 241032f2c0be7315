"""The table of codes, row by row."""

from __future__ import annotations

import pytest

from flux_async import ApiError, Charge, Scope, UnexpectedResponse
from flux_async.api.error_codes import CODES, PollMeaning, error_for, poll_meaning, rule_for

NO, MAYBE = Charge.NO, Charge.MAYBE
JOB, NOW, STOP = Scope.THIS_JOB, Scope.ACCOUNT_PAUSED, Scope.STOP
AGAIN, HIDDEN = PollMeaning.POLL_AGAIN, PollMeaning.NOT_VISIBLE
FAILED, FATAL = PollMeaning.TASK_FAILED, PollMeaning.FATAL

# Charge and scope of a submit so answered, meaning for a wait: the table, written a second time.
EXPECTED = {
    400: (NO, JOB, FAILED),
    401: (NO, STOP, FATAL),
    402: (NO, STOP, FATAL),
    403: (NO, STOP, FATAL),
    404: (NO, JOB, HIDDEN),
    408: (MAYBE, JOB, FAILED),
    422: (NO, JOB, HIDDEN),
    429: (NO, NOW, AGAIN),
    433: (NO, STOP, FATAL),
    455: (NO, NOW, AGAIN),
    500: (MAYBE, JOB, AGAIN),
    501: (MAYBE, JOB, FAILED),
    502: (MAYBE, JOB, AGAIN),
    503: (MAYBE, JOB, AGAIN),
    504: (MAYBE, JOB, AGAIN),
    505: (NO, STOP, FATAL),
}


def test_the_table_is_complete() -> None:
    """Every documented code has its row, and no other."""
    assert set(CODES) == set(EXPECTED)


@pytest.mark.parametrize("code", EXPECTED)
def test_a_row_has_charge_scope_and_poll_meaning(code: int) -> None:
    """The error carries them with it."""
    rule, error = rule_for(code), error_for(code, "words")
    assert (rule.charge, rule.scope, rule.poll) == EXPECTED[code]
    assert (error.charge, error.scope, error.code, error.msg) == (rule.charge, rule.scope, code, "words")


def test_an_undocumented_code_is_taken_cautiously() -> None:
    """It may have been charged, concerns this job only, and a wait polls again."""
    rule = rule_for(999)
    assert (rule.error, rule.charge, rule.scope, rule.poll) == (ApiError, MAYBE, JOB, AGAIN)


def test_a_redirect_is_fatal_for_a_wait() -> None:
    """An address that redirects every poll cannot recover by polling."""
    assert poll_meaning(UnexpectedResponse("redirect", scope=STOP)) is FATAL
    assert poll_meaning(UnexpectedResponse("html")) is AGAIN


def test_the_vendors_message_is_quoted_and_punctuated_once() -> None:
    """A trailing full stop is not doubled; a missing message is reported."""
    assert error_for(402, "Top up. ").message == "The API answered 402: Top up."
    assert error_for(402, "").message == "The API answered 402: no message."
