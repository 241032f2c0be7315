"""Calls that type checkers must refuse. Checked by mypy and pyright, never run.

Each comment names the error that is expected on its line; where a checker no longer finds it, the comment is
unused, and that is an error of its own.
"""

from __future__ import annotations

from typing import Unpack

from flux_async import (
    BatchOptions,
    EditRequest,
    FluxClient,
    GenerateRequest,
    ImageResult,
    Model,
    RequestOptions,
    rekey,
    retry,
    run_batch,
)

IMAGE = "https://example.com/a.jpg"


def misspelt_fields() -> None:
    EditRequest(prompt="Remove it", input_image=IMAGE, aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    GenerateRequest(prompt="A lighthouse", aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    EditRequest.text_removal(IMAGE, aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def values_that_do_not_exist() -> None:
    EditRequest(prompt="Remove it", input_image=IMAGE, model="flux-kontext-ultra")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EditRequest.text_removal(IMAGE, model="flux-kontext-ultra")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EditRequest.text_removal(IMAGE, aspect_ratio="16:10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EditRequest.text_removal(IMAGE, output_format="webp")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EditRequest.text_removal(IMAGE, safety_tolerance="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert Model.ULTRA  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def one_image(client: FluxClient) -> None:
    await client.remove_text(IMAGE, aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.remove_text(IMAGE, model="flux-kontext-ultra")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.remove_text(IMAGE, jurnal="run.sqlite3")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.edit("Make it blue", IMAGE, aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.edit("Make it blue", IMAGE, model="flux-kontext-ultra")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("A lighthouse", aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.generate("A lighthouse", aspect_ratio="16:10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def many_images(client: FluxClient) -> None:
    run_batch(client, [IMAGE], jurnal="run.sqlite3")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    run_batch(client, [IMAGE], in_doubt="resubmitt")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.remove_text_many([IMAGE], jurnal="run.sqlite3")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.remove_text_many([IMAGE], in_doubt="resubmitt")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.remove_text_many([IMAGE], aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def passed_on(client: FluxClient, **options: Unpack[RequestOptions]) -> ImageResult:
    return await client.remove_text(IMAGE, **options)


async def passed_on_to_a_batch(client: FluxClient, **options: Unpack[BatchOptions]) -> None:
    await client.remove_text_many([IMAGE], **options)


async def through_a_function_of_the_users(client: FluxClient) -> None:
    await passed_on(client, aspect_ratio="1:1")
    await passed_on(client, aspect_ration="1:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await passed_on_to_a_batch(client, journal="run.sqlite3")
    await passed_on_to_a_batch(client, jurnal="run.sqlite3")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def operations(client: FluxClient) -> None:
    await retry(client, "run.sqlite3", fialed=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await rekey(client, "run.sqlite3", sure=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
