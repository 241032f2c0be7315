"""Every model over the jobs API, against the sandbox, which has a price list of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    CustomModel,
    Echo,
    EditRequest,
    Failed,
    InDoubt,
    InvalidInput,
    Model,
    Succeeded,
    UnexpectedPrice,
    run_batch,
)
from flux_async.api.models_table import ApiName
from flux_async.testing import FluxSandbox, VirtualClock

IMAGE = "https://pictures.example/poster.jpg"
OWN = CustomModel(
    id="nano-banana-pro",
    credits=18,
    image_field="image_input",
    image_is_list=True,
    extras={"aspect_ratio": "auto", "resolution": "1K"},
)
MODELS: list[Model | CustomModel] = [model for model in Model if "jobs" in model.row.apis] + [OWN]


@pytest.fixture
def sandbox(clock: VirtualClock) -> Any:
    with FluxSandbox(clock=clock) as box:
        yield box


@pytest.mark.parametrize("model", MODELS, ids=str)
async def test_text_is_removed_with_every_model(sandbox: FluxSandbox, model: Model | CustomModel) -> None:
    """The submit is accepted, the record confirms it, and both price lists agree."""
    needed: Any = dict.fromkeys(model.row.required, "4:3")
    client = sandbox.client(api="jobs")
    image = await client.remove_text(IMAGE, model=model, **needed)
    assert image.echo is Echo.CONFIRMED
    assert image.record is not None
    assert image.record.credits == model.row.credits
    assert sandbox.ledger.charged == model.row.credits


async def test_max_is_refused_over_jobs_before_anything_is_sent(sandbox: FluxSandbox) -> None:
    """And over the default it works."""
    with pytest.raises(InvalidInput, match="flux-kontext-max: .* Pro might be made instead"):
        await sandbox.client(api="jobs").remove_text(IMAGE, model="flux-kontext-max")
    assert sandbox.ledger.submits == 0
    await sandbox.client().remove_text(IMAGE, model="flux-kontext-max")
    assert sandbox.ledger.charged == 10


async def test_a_task_of_max_is_read_by_a_client_of_the_jobs_api(sandbox: FluxSandbox) -> None:
    """It is paid, and only one API can have made it: the request names that one."""
    request = EditRequest.text_removal(IMAGE, model=Model.MAX)
    task = await sandbox.client().submit(request)
    assert (await sandbox.client(api="jobs").wait(task, request=request)).echo is Echo.CONFIRMED


async def test_an_aspect_ratio_of_the_other_api_only_waits_for_that_api(
    sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """It is no submit and no end of the job: a run over the API that has it submits it."""
    requests = [EditRequest.text_removal(IMAGE, aspect_ratio="16:21")]

    async def outcomes(api: ApiName) -> list[Succeeded | Failed | InDoubt]:
        journal = tmp_path / "run.sqlite3"
        async with run_batch(sandbox.client(api=api), requests, journal=journal) as batch:
            return [outcome async for outcome in batch]

    (refused,) = await outcomes("jobs")
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, InvalidInput)
    assert sandbox.ledger.submits == 0
    assert [type(outcome) for outcome in await outcomes("kontext")] == [Succeeded]


async def test_a_batch_mixes_models_of_both_apis_and_resumes(sandbox: FluxSandbox, tmp_path: Path) -> None:
    """Each task is read through its own API, and the run that resumes pays nothing again."""
    requests = [
        EditRequest.text_removal(f"{IMAGE}?{number}", model=model)
        for number, model in enumerate((Model.PRO, Model.MAX, Model.NANO_BANANA_EDIT, OWN))
    ]

    async def run(most: int) -> list[type]:
        ended: list[type] = []
        client = sandbox.client()
        async with run_batch(client, requests, journal=tmp_path / "run.sqlite3") as batch:
            async for outcome in batch:
                ended.append(type(outcome))
                if len(ended) == most:
                    break
        return ended

    assert [*await run(1), *await run(4)] == [Succeeded] * 4
    assert await run(4) == []
    assert sandbox.ledger.charged == 5 + 10 + 4 + 18
    assert sandbox.ledger.double_charges == {}


async def test_a_wrong_price_of_a_callers_model_halts_after_one_image(
    sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """Given as a price, or corrected in the model, the real one goes on with the same jobs."""
    wrong = attrs.evolve(OWN, credits=3)
    journal = tmp_path / "run.sqlite3"

    def requests(model: CustomModel) -> list[EditRequest]:
        return [EditRequest.text_removal(f"{IMAGE}?{number}", model=model) for number in range(3)]

    with pytest.raises(UnexpectedPrice, match="18"):
        async with run_batch(sandbox.client(), requests(wrong), journal=journal) as batch:
            assert [type(outcome) async for outcome in batch] == [Succeeded]
    assert sandbox.ledger.accepted == 1
    async with run_batch(sandbox.client(), requests(wrong)[:2], journal=journal, prices={wrong: 18}) as batch:
        assert [type(outcome) async for outcome in batch] == [Succeeded]
    async with run_batch(sandbox.client(), requests(OWN), journal=journal) as batch:
        assert [type(outcome) async for outcome in batch] == [Succeeded]
    assert sandbox.ledger.charged == 3 * 18
