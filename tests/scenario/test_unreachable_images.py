"""Images that the vendor can certainly not fetch: refused before anything is spent."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flux_async import EditRequest, Failed, FluxClient, InvalidInput, Succeeded
from flux_async.batch.runner import run_batch

UNREACHABLE = [
    "http://localhost:8000/a.jpg",
    "http://192.168.1.7/a.jpg",
    "http://nas.local/a.jpg",
    "http://intranet/a.jpg",
    "http://pics..example.com/a.jpg",
    "https://drive.google.com/file/d/abc/view",
]


@pytest.fixture
async def client(transport: Any, clock: Any) -> AsyncIterator[FluxClient]:
    """A client of a public API."""
    async with FluxClient(
        api_key="test", base_url="https://api.kie.ai", transport=transport, clock=clock
    ) as client:
        yield client


@pytest.mark.parametrize("url", UNREACHABLE)
async def test_no_call_sends_an_address_that_cannot_be_fetched(client: Any, vendor: Any, url: str) -> None:
    """Not submit, not run, not the short forms, not the upload host: nothing leaves, nothing is charged."""
    request = EditRequest.text_removal(url)
    for call in (
        lambda: client.submit(request),
        lambda: client.run(request),
        lambda: client.remove_text(url),
        lambda: client.edit("Make it blue", url),
        lambda: client.upload_from_url(url),
    ):
        with pytest.raises(InvalidInput, match="Nothing was sent"):
            await call()
    assert vendor.seen == []


async def test_a_batch_refuses_them_alone(client: Any, vendor: Any) -> None:
    """Each is an outcome of its own; the others go on."""
    async with run_batch(client, [*UNREACHABLE, "https://pics.example/a.jpg"]) as batch:
        outcomes = [outcome async for outcome in batch]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(failed) == len(UNREACHABLE)
    assert all(isinstance(outcome.error, InvalidInput) for outcome in failed)
    assert [type(outcome) for outcome in outcomes].count(Succeeded) == 1


async def test_beside_a_local_api_they_are_sent(transport: Any, clock: Any, vendor: Any) -> None:
    """A sandbox may reach what is in its network."""
    async with FluxClient(
        api_key="test", base_url="http://127.0.0.1:9", transport=transport, clock=clock
    ) as client:
        for url in UNREACHABLE:
            await client.submit(EditRequest.text_removal(url))


async def test_an_address_that_may_be_mistyped_is_sent_with_a_warning(
    client: Any, vendor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be right; the log names it without its query."""
    url = "https://pics.example/a.jpg?sig=secret&amp;w=2"
    with caplog.at_level(logging.WARNING, logger="flux_async"):
        await client.submit(EditRequest.text_removal(url))
        async with run_batch(client, [url]) as batch:
            assert [type(outcome) async for outcome in batch] == [Succeeded]
    warnings = [record.getMessage() for record in caplog.records if "mistyped" in record.getMessage()]
    assert len(warnings) == 2
    assert "secret" not in "".join(warnings)
