"""Mistakes of new users of the library end in a sentence that says what to write instead."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flux_async import ConfigurationError, FluxClient, FluxError, InvalidInput, WrongEventLoop, run_batch

URL = "https://example.com/poster.jpg"


async def test_one_address_instead_of_a_list_is_refused(client: FluxClient, vendor: Any) -> None:
    """A string would be read letter by letter, and each letter would be an input."""
    for call in (client.remove_text_many, lambda images: _run(client, images)):
        for images in (URL, URL.encode(), None, 5):
            with pytest.raises(InvalidInput, match=r"list or a stream of images.*\[image\]"):
                await call(images)  # type: ignore[arg-type]
    assert vendor.count("generate") == 0


async def _run(client: FluxClient, images: Any) -> None:
    async with run_batch(client, images):
        pass


async def test_remove_text_many_takes_an_asynchronous_stream(client: FluxClient, vendor: Any) -> None:
    """As run_batch does."""

    async def stream() -> Any:
        for number in range(3):
            yield f"https://example.com/{number}.jpg"

    assert len(await client.remove_text_many(stream())) == 3


def test_with_instead_of_async_with_is_explained(client: FluxClient) -> None:
    """Both of them are asynchronous context managers."""
    with pytest.raises(ConfigurationError, match=r"Write `async with FluxClient\(\)"), client:
        pass
    with pytest.raises(InvalidInput, match=r"Write `async with run_batch"), run_batch(client, [URL]):
        pass


@pytest.mark.parametrize(
    "use",
    [
        lambda client, forgotten: client.download(forgotten, "x.jpg"),
        lambda client, forgotten: client.wait(forgotten),
        lambda client, forgotten: client.record(forgotten),
        lambda client, forgotten: client.submit(forgotten),
        lambda client, forgotten: client.remove_text(forgotten),
        lambda client, forgotten: client.remove_text_many(forgotten),
    ],
)
async def test_a_forgotten_await_is_named(
    client: FluxClient, use: Callable[[FluxClient, Any], Awaitable[object]]
) -> None:
    """The given value is a coroutine that was not awaited."""
    forgotten = client.upload(b"")
    try:
        with pytest.raises(InvalidInput, match=r"FluxClient\.upload\(\) \(is an `await` missing\?\)"):
            await use(client, forgotten)
    finally:
        forgotten.close()


def test_without_asyncio_the_client_raises_one_error(client: FluxClient) -> None:
    """Under trio, or with no event loop at all: the same sentence."""
    for call in (client.credits, client.__aenter__, run_batch(client, [URL]).__aenter__):
        coroutine = call()
        with pytest.raises(WrongEventLoop, match="needs a running asyncio event loop.*trio"):
            coroutine.send(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FluxError):
            client.remove_text(URL).send(None)
