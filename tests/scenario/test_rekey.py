"""A key that was replaced: a journal goes on with a new key of the same account, and with no other."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    AuthenticationError,
    Charge,
    FluxClient,
    FluxError,
    Journal,
    JournalBusyError,
    JournalError,
    RekeyEvidence,
    ServerError,
    Succeeded,
    rekey,
    run_batch,
)
from flux_async.transport import Unknown

pytestmark = pytest.mark.both_apis

URL = "https://example.com/a.jpg"
MINUTES_S = 120.0


@pytest.fixture
async def renewed(clock: Any, transport: Any) -> AsyncIterator[FluxClient]:
    """A client with another key, on the same transport."""
    async with FluxClient(
        "k-other-0123456789", "http://127.0.0.1:1", transport=transport, clock=clock, rng=random.Random(7)
    ) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def run(client: FluxClient, path: Path, **options: Any) -> list[Any]:
    async with run_batch(client, [URL], journal=path, **options) as batch:
        return [outcome async for outcome in batch]


async def leave_a_live_task(client: FluxClient, path: Path, transport: Any, make: Any) -> None:
    """Run until a deadline, with a task that is still generating."""
    transport.script["record-info"] = [make.record(0)]
    (outcome,) = await run(client, path, timeout=5.0)
    assert outcome.error.charge is Charge.YES


async def test_a_task_that_the_new_key_can_read_is_proof_of_the_account(
    client: Any, renewed: FluxClient, transport: Any, make: Any, path: Path
) -> None:
    """The other key is refused, with what to do; then the paid task is fetched and not paid again."""
    await leave_a_live_task(client, path, transport, make)
    with pytest.raises(JournalError, match="another key") as refused:
        await run(renewed, path)
    assert "rekey(client, path)" in str(refused.value)

    found = await rekey(renewed, path)
    assert (found.evidence, found.task_id) == (RekeyEvidence.TASK_SEEN, "t1")
    transport.script["record-info"] = [make.record(1)]
    (outcome,) = await run(renewed, path)
    assert isinstance(outcome, Succeeded)
    assert transport.count("generate") == 1
    with pytest.raises(JournalError, match="another key"):
        await run(client, path)


async def test_a_journal_in_which_nothing_was_paid_goes_on_with_any_key(
    client: Any, renewed: FluxClient, transport: Any, make: Any, path: Path
) -> None:
    """A first key with a typing mistake strands nothing."""
    transport.script["generate"] = [make.answer(None, 401, msg="no"), make.answer({"taskId": "t1"})]
    with pytest.raises(AuthenticationError) as refused:
        await run(client, path)
    assert "rekey(client, path)" in str(refused.value)
    (outcome,) = await run(renewed, path)
    assert isinstance(outcome, Succeeded)


async def test_rekeying_a_journal_in_which_nothing_was_paid_asks_for_no_task(
    client: Any, renewed: FluxClient, transport: Any, path: Path
) -> None:
    """The result says so, and the second time that the journal belongs to this key."""
    async with await Journal(path, clock=client.session.clock).open(account=client.fingerprint):
        pass
    assert (await rekey(renewed, path)).evidence is RekeyEvidence.NOTHING_PAID
    assert (await rekey(renewed, path)).evidence is RekeyEvidence.SAME_KEY
    assert transport.count("record-info") == 0


@pytest.mark.parametrize("sure", [False, True])
async def test_a_key_of_another_account_is_refused(
    client: Any, renewed: FluxClient, transport: Any, make: Any, path: Path, clock: Any, sure: bool
) -> None:
    """It cannot read a paid task that must exist, and ``sure=True`` does not change that."""
    await leave_a_live_task(client, path, transport, make)
    await clock.sleep(MINUTES_S)
    transport.script["record-info"] = [make.answer(None, 422, msg="The record does not exist")]
    with pytest.raises(JournalError, match="another account: for it there is no task t1") as refused:
        await rekey(renewed, path, same_account=sure)
    assert "Nothing was changed" in str(refused.value)
    with pytest.raises(JournalError, match="another key"):
        await run(renewed, path)


@pytest.mark.parametrize("age_s", [1.0, 15 * 86_400.0])
async def test_if_no_task_proves_the_account_the_caller_can_assert_it(
    client: Any, renewed: FluxClient, transport: Any, make: Any, path: Path, clock: Any, age_s: float
) -> None:
    """A task too new to be visible, or too old to be kept, proves nothing."""
    await leave_a_live_task(client, path, transport, make)
    await clock.sleep(age_s)
    transport.script["record-info"] = [make.answer(None, 422, msg="The record does not exist")]
    with pytest.raises(JournalError, match="Nothing shows that this key is of the account") as refused:
        await rekey(renewed, path)
    assert "same_account=True" in str(refused.value)
    assert "--" not in str(refused.value)
    assert (await rekey(renewed, path, same_account=True)).evidence is RekeyEvidence.CALLER


async def test_images_in_doubt_alone_prove_nothing(
    client: Any, renewed: FluxClient, transport: Any, path: Path
) -> None:
    """A submit without an answer has no task id to poll."""
    transport.script["generate"] = [Unknown("cut off")]
    await run(client, path)
    with pytest.raises(JournalError, match="no task of the last 14 days"):
        await rekey(renewed, path)
    async with Journal(path, clock=client.session.clock) as journal:
        assert (await rekey(renewed, journal, same_account=True)).evidence is RekeyEvidence.CALLER


async def test_a_key_that_is_refused_changes_nothing(
    client: Any, renewed: FluxClient, transport: Any, make: Any, path: Path
) -> None:
    """The balance is asked for first; a vendor that fails while tasks are read changes nothing either."""
    await leave_a_live_task(client, path, transport, make)
    transport.script["credit"] = [make.answer(None, 401, msg="no")]
    polls = transport.count("record-info")
    with pytest.raises(AuthenticationError):
        await rekey(renewed, path, same_account=True)
    assert transport.count("record-info") == polls
    transport.script["credit"] = [make.answer(42.5)]
    transport.script["record-info"] = [make.answer(None, 500, msg="oops")]
    with pytest.raises(ServerError, match="Nothing was changed"):
        await rekey(renewed, path, same_account=True)
    transport.script["record-info"] = [make.answer(None, 401, msg="no")]
    with pytest.raises(AuthenticationError):
        await rekey(renewed, path, same_account=True)
    with pytest.raises(JournalError, match="another key"):
        await run(renewed, path)


async def test_a_journal_in_use_is_refused(client: Any, renewed: FluxClient, path: Path) -> None:
    """Whether its run is in another process or in this one."""
    async with await Journal(path, clock=client.session.clock).open(account=client.fingerprint) as journal:
        with pytest.raises(JournalBusyError):
            await rekey(renewed, path)
        with journal.one_run(), pytest.raises(JournalBusyError):
            await rekey(renewed, journal)


async def test_a_journal_that_is_not_there_is_not_made(renewed: FluxClient, path: Path) -> None:
    """A mistyped path is an error."""
    with pytest.raises(JournalError, match="There is no journal"):
        await rekey(renewed, path)
    assert not path.exists()


@pytest.mark.parametrize("code", [401, 433])
@pytest.mark.parametrize("refused_call", ["credit", "record-info"])
async def test_an_error_of_rekey_does_not_advise_rekey(
    client: Any, renewed: FluxClient, transport: Any, make: Any, path: Path, code: int, refused_call: str
) -> None:
    """The advice for a key that is refused is to use another one; nothing was changed."""
    await leave_a_live_task(client, path, transport, make)
    transport.script[refused_call] = [make.answer(None, code, msg="no")]
    with pytest.raises(FluxError) as refused:
        await rekey(renewed, path)
    assert "rekey" not in str(refused.value)
    assert "{" not in str(refused.value)
    assert str(refused.value).endswith("Nothing was changed.")
