"""The price of each model is measured with the first image of a run; an unexpected one stops the run."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import (
    BudgetExhausted,
    Charge,
    EditRequest,
    Failed,
    FluxError,
    Journal,
    Model,
    Outcome,
    Succeeded,
    UnexpectedPrice,
)
from flux_async.api.envelope import WireRequest
from flux_async.batch.progress import BatchProgress
from flux_async.batch.runner import run_batch
from flux_async.job_state import JobState
from flux_async.journal.reader import JournalReader
from flux_async.testing import FluxSandbox
from flux_async.transport import Answered, SendResult
from scripted_vendor import ScriptedVendor, answer

pytestmark = pytest.mark.both_apis
"""The scripted vendor's records have no figures, as those of April 2026: the balance decides over both."""

URLS = [f"https://pictures.example/{n}.jpg" for n in range(8)]


@pytest.fixture
def vendor(vendor: Any) -> Any:
    """A vendor whose tasks take twelve seconds."""
    vendor.generation_s = 12.0
    return vendor


async def run(
    client: Any, images: Any = URLS, **options: Any
) -> tuple[list[Outcome], FluxError | None, BatchProgress]:
    """Run a batch to its end or its halt."""
    outcomes: list[Outcome] = []
    halted = None
    async with run_batch(client, images, **options) as batch:
        try:
            async with asyncio.timeout(60):
                async for outcome in batch:
                    outcomes.append(outcome)
        except FluxError as error:
            halted = error
    return outcomes, halted, batch.progress


def costs(outcomes: list[Outcome]) -> list[float]:
    """Return the measured costs of images."""
    images = [outcome.image for outcome in outcomes if isinstance(outcome, Succeeded)]
    return [image.credits for image in images if image.credits is not None]


def unknown(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about prices that are unknown."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [line for line in lines if "is unknown" in line]


# --- what is expected, and what is not --------------------------------------------------------------------


async def test_the_expected_price_costs_two_requests_and_no_time(client: Any, vendor: Any) -> None:
    """The others are submitted while the first image is still at work; its measured cost is returned."""
    outcomes, halted, progress = await run(client)
    assert (halted, len(outcomes), costs(outcomes)) == (None, 8, [5.0])
    assert (progress.credits, progress.measured) == (40.0, 5.0)
    assert (vendor.count("credit"), vendor.most_unfinished) == (2, 8)
    assert vendor.submitted == URLS


@pytest.mark.parametrize("at_end", [False, True], ids=["at its submit", "at its end"])
@pytest.mark.parametrize("price", [55.0, 5.6, 4.4])
async def test_an_unexpected_price_is_paid_for_one_image(
    client: Any, vendor: Any, tmp_path: Path, price: float, at_end: bool
) -> None:
    """Whenever it is charged. The same run halts before its first submit; with the price given it goes on."""
    vendor.price, vendor.charges_at_end, path = (lambda _: price), at_end, tmp_path / "run.sqlite3"
    outcomes, halted, progress = await run(client, journal=path)
    assert isinstance(halted, UnexpectedPrice)
    assert (halted.model, halted.price, halted.expected) == ("flux-kontext-pro", price, 5.0)
    assert halted.message == f"An image with flux-kontext-pro cost {price:g} credits, not 5."
    assert "in prices" in halted.advice
    assert halted.charge is Charge.NO
    assert (vendor.submits, costs(outcomes)) == (1, [price])
    assert (progress.credits, progress.measured) == (price, price)
    assert vendor.count("credit") == 3

    outcomes, halted, progress = await run(client, journal=path)
    assert isinstance(halted, UnexpectedPrice)
    assert (outcomes, vendor.submits, progress.credits) == ([], 1, 0.0)

    outcomes, halted, progress = await run(client, journal=path, prices={Model.PRO: price})
    assert (halted, len(outcomes)) == (None, 7)
    assert set(vendor.charged.values()) == {1}
    assert progress.credits == pytest.approx(7 * price)
    with JournalReader(path) as reader:
        (spent,) = reader.spending()
    assert (spent.tasks, spent.measured, spent.credits, spent.price) == (8, 2, 2 * price, price)


async def test_a_single_image_at_another_price_is_no_failure(
    client: Any, vendor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no second submit to stop: the image is returned, and the price is logged."""
    vendor.price = lambda _: 55.0
    outcomes, halted, _ = await run(client, URLS[:1])
    assert (halted, costs(outcomes)) == (None, [55.0])
    assert "An image with flux-kontext-pro cost 55 credits, not 5." in caplog.messages


async def test_the_budget_counts_the_measured_price(client: Any, vendor: Any) -> None:
    """The first image, and all after it."""
    vendor.price = lambda _: 5.4
    outcomes, halted, progress = await run(client, max_credits=16.0)
    assert isinstance(halted, BudgetExhausted)
    assert (vendor.submits, len(outcomes), progress.credits) == (2, 2, 10.8)


@pytest.mark.one_api("only the kontext API has Max")
async def test_each_model_has_its_price(client: Any, vendor: Any) -> None:
    """One image of the dear one is paid, while tasks of the other are in flight."""
    kinds = [Model.PRO, Model.PRO, Model.MAX, Model.PRO, Model.MAX, Model.MAX]
    images = [EditRequest.text_removal(url, model=kind) for url, kind in zip(URLS, kinds, strict=False)]
    vendor.price = lambda number: 110.0 if vendor.sent[number]["model"] == "flux-kontext-max" else 5.0
    outcomes, halted, progress = await run(client, images)
    assert isinstance(halted, UnexpectedPrice)
    assert (halted.model, halted.price, halted.expected) == ("flux-kontext-max", 110.0, 10.0)
    sent = [body["model"] for body in vendor.sent]
    assert (sent.count("flux-kontext-max"), costs(outcomes)) == (1, [5.0, 110.0])
    assert progress.credits == 5.0 * sent.count("flux-kontext-pro") + 110.0


async def test_inputs_that_come_later_are_not_paid(client: Any, vendor: Any) -> None:
    """A stream whose second image arrives when the first has long ended is stopped before it."""

    async def slowly() -> AsyncIterator[str]:
        for url in URLS:
            yield url
            await vendor.sleep(60.0)

    vendor.price = lambda _: 55.0
    outcomes, halted, _ = await run(client, slowly())
    assert isinstance(halted, UnexpectedPrice)
    assert (vendor.submits, len(outcomes)) == (1, 1)


# --- what the balance does not show -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [answer(None, 404, msg="no"), answer("plenty"), answer(None, 401, msg="no")],
    ids=["absent", "no number", "refused"],
)
async def test_a_balance_that_cannot_be_read_stops_nothing(
    client: Any, vendor: Any, caplog: pytest.LogCaptureFixture, found: Any
) -> None:
    """It is said once, and the others are submitted."""
    vendor.script["credit"] = [found]
    outcomes, halted, progress = await run(client)
    assert (halted, len(outcomes), costs(outcomes)) == (None, 8, [])
    assert (progress.credits, progress.measured) == (40.0, 0.0)
    reads, together = (1, 8) if vendor.api == "kontext" else (3, 7)  # the record might have shown it
    assert (len(unknown(caplog)), vendor.count("credit"), vendor.most_unfinished) == (1, reads, together)


async def test_one_server_error_does_not_blind_the_run(client: Any, vendor: Any) -> None:
    """The balance is read again."""
    vendor.script["credit"].insert(0, answer(None, 500, msg="oops"))
    vendor.price = lambda _: 55.0
    _, halted, _ = await run(client)
    assert isinstance(halted, UnexpectedPrice)
    assert vendor.submits == 1


@pytest.mark.parametrize(
    "moved",
    [
        lambda seconds: 5.0 * int(seconds / 0.3),
        lambda seconds: 5.0 * int(seconds / 7.0),
        lambda seconds: -7.0 * int(seconds / 5.0),
        lambda seconds: seconds,
    ],
    ids=["many others", "some others", "topped up", "drifting"],
)
@pytest.mark.parametrize("price", [5.0, 55.0])
async def test_an_account_that_others_use_stops_nothing(
    client: Any, vendor: Any, caplog: pytest.LogCaptureFixture, moved: Any, price: float
) -> None:
    """A balance that moves without this run proves no price: at most three images are measured."""
    began = vendor.now()
    vendor.price = lambda _: price
    vendor.script["credit"] = [lambda _: answer(vendor.balance - moved(vendor.now() - began))]
    outcomes, halted, _ = await run(client)
    if price == 5.0:
        assert (halted, len(outcomes)) == (None, 8)
        assert len(unknown(caplog)) <= 1
    elif halted is not None:  # quiet for long enough to show it
        assert isinstance(halted, UnexpectedPrice)
        assert halted.price == price


async def test_a_balance_that_never_moves_is_unknown(
    client: Any, vendor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As for a tariff without credits."""
    vendor.script["credit"] = [answer(42.5)]
    outcomes, halted, progress = await run(client)
    assert (halted, len(outcomes), costs(outcomes), progress.credits) == (None, 8, [], 40.0)
    assert len(unknown(caplog)) == 1


# --- first images that end otherwise ----------------------------------------------------------------------


async def test_a_failed_first_image_that_is_refunded_has_cost_nothing(client: Any, vendor: Any) -> None:
    """Charge and refund show the price, and nothing at all is paid."""
    vendor.price, vendor.ends, vendor.refunds = (lambda _: 55.0), (lambda _: 3), True
    outcomes, halted, progress = await run(client)
    assert isinstance(halted, UnexpectedPrice)
    assert ([type(outcome) for outcome in outcomes], vendor.submits) == ([Failed], 1)
    assert (progress.credits, progress.measured, progress.refundable) == (0.0, 0.0, 0.0)


async def test_a_failed_first_image_at_the_expected_price_stops_nothing(client: Any, vendor: Any) -> None:
    """Whether it was refunded is not measured."""
    vendor.ends, vendor.refunds = (lambda number: 3 if number == 0 else 1), True
    outcomes, halted, progress = await run(client)
    assert (halted, len(outcomes), vendor.submits, costs(outcomes)) == (None, 8, 8, [])
    assert (progress.credits, progress.refundable) == (40.0, 5.0)


@pytest.mark.parametrize("price", [5.0, 55.0])
async def test_a_submit_that_is_rejected_leaves_the_measurement_to_the_next(
    client: Any, vendor: Any, price: float
) -> None:
    """It has cost nothing: the balance that was read before it still counts."""
    vendor.script["generate"] = [*[answer(None, 422, msg="no")] * 3, vendor.generate]
    vendor.price = lambda _: price
    outcomes, halted, _ = await run(client)
    assert len(outcomes) == (8 if halted is None else 4)
    assert (halted is None, vendor.submits) == ((True, 5) if price == 5.0 else (False, 1))
    assert vendor.count("credit") == (2 if halted is None else 3)


@pytest.mark.parametrize(("price", "submits"), [(5.0, 8), (55.0, 3)])
async def test_a_submit_in_doubt_is_no_measure(client: Any, vendor: Any, price: float, submits: int) -> None:
    """It may be charged later: the price counts when two images after it have shown the same."""
    vendor.loses_answer = lambda number: number == 0
    vendor.price = lambda _: price
    _, halted, progress = await run(client)
    assert (halted is None, vendor.submits, progress.in_doubt) == (price == 5.0, submits, 1)


async def test_a_submit_in_doubt_that_is_charged_later_is_no_alarm(client: Any, vendor: Any) -> None:
    """Two charges of five are not one of ten."""
    vendor.makes_task = lambda number: number != 0
    late = iter([0.0, 0.0, 0.0])

    def balance(_: Any) -> Any:
        return answer(vendor.balance - next(late, 5.0))

    vendor.script["credit"] = [balance]
    outcomes, halted, _ = await run(client)
    assert (halted, vendor.submits, len(outcomes)) == (None, 8, 8)


@pytest.mark.one_api("only the kontext API has Max")
async def test_a_refund_of_an_older_task_is_no_alarm(client: Any, vendor: Any, tmp_path: Path) -> None:
    """A task of an earlier run fails while the price is measured: ten less five is not a price of five."""
    path = tmp_path / "run.sqlite3"
    async with run_batch(client, URLS[:1], journal=path) as batch:
        await vendor.wait_for_submits(1)
        del batch
    vendor.refunds, vendor.ends = True, (lambda number: 3 if number == 0 else 1)
    reads = iter([0.0, 5.0])  # its refund arrives between the first two readings
    vendor.script["credit"] = [lambda _: answer(vendor.balance + next(reads, 5.0) - refunded())]

    def refunded() -> float:
        return 5.0 if vendor.tasks[0].has_ended else 0.0

    images = [EditRequest.text_removal(url, model=Model.MAX) for url in URLS[1:]]
    vendor.price = lambda number: 5.0 if number == 0 else 10.0
    outcomes, halted, _ = await run(client, images, journal=path)
    assert (halted, vendor.submits, len(outcomes)) == (None, 8, 8)


async def test_an_outage_at_the_start_blinds_no_run(client: Any, vendor: Any) -> None:
    """The balance is read when the service is back, before the first submit."""
    began = vendor.now()
    vendor.is_reachable = lambda now: now > began + 8.0
    vendor.price = lambda _: 55.0
    _, halted, _ = await run(client)
    assert isinstance(halted, UnexpectedPrice)
    assert vendor.submits <= 2


# --- ends of a run while it measures ----------------------------------------------------------------------


async def test_a_run_that_ends_while_it_measures_is_resumed(client: Any, vendor: Any, tmp_path: Path) -> None:
    """Left or killed before the first image was there: the next run measures with the next image."""
    path = tmp_path / "run.sqlite3"
    vendor.price = lambda _: 55.0
    async with run_batch(client, URLS, journal=path):
        await vendor.wait_for_submits(1)
        await vendor.sleep(3.0)
    assert vendor.submits == 1
    outcomes, halted, _ = await run(client, journal=path)
    assert isinstance(halted, UnexpectedPrice)
    assert (vendor.submits, len(outcomes), set(vendor.charged.values())) == (2, 2, {1})
    async with Journal(path) as journal:
        assert await journal.prices() == {"flux-kontext-pro": 55.0}
        assert await journal.counts() == {JobState.DONE: 2, JobState.PENDING: 6}


async def test_two_runs_of_one_client_raise_no_alarm(client: Any, vendor: Any) -> None:
    """Each sees that the other has submitted."""
    vendor.latency_s = 0.5
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(run(client, images)) for images in (URLS[:4], URLS[4:])]
    assert [one.result()[1] for one in runs] == [None, None]
    assert vendor.submits == 8


@pytest.mark.parametrize(("price", "submits"), [(0.0, 8), (55.0, 1)], ids=["none", "unexpected"])
async def test_a_first_task_that_takes_long_holds_the_others_for_a_minute(
    client: Any, vendor: Any, price: float, submits: int
) -> None:
    """By then the balance shows the price, or the next image measures."""
    vendor.price, vendor.generation_s = (lambda _: price), (lambda number: 200.0 if number < 2 else 12.0)
    began = vendor.now()
    outcomes, halted, _ = await run(client)
    assert (halted is None, vendor.submits, len(outcomes)) == (price == 0.0, submits, submits)
    assert costs(outcomes) == ([] if halted is None else [55.0])
    others = [at - began for at, request in vendor.seen if request.path.endswith("generate")][3:]
    assert all(at < 150.0 for at in others)


# --- over both APIs ---------------------------------------------------------------------------------------


@pytest.mark.one_api("its own parameters")
@pytest.mark.parametrize(
    ("name", "records"),
    [("kontext", "new"), ("jobs", "new"), ("jobs", "old")],
    ids=["kontext", "jobs", "jobs without figures"],
)
async def test_each_api_shows_the_price(flux_clock: Any, tmp_path: Path, name: Any, records: str) -> None:
    """The records of the jobs API have the cost of each image, except older ones."""
    path = tmp_path / "run.sqlite3"
    with FluxSandbox(clock=flux_clock, faults="overcharge=11", job_records=records) as sandbox:
        async with sandbox.client(api=name) as client:
            outcomes, halted, progress = await run(client, journal=path)
            assert isinstance(halted, UnexpectedPrice)
            assert (halted.price, sandbox.ledger.accepted, costs(outcomes)) == (55.0, 1, [55.0])
            assert (progress.credits, progress.measured) == (55.0, 55.0)
            outcomes, halted, progress = await run(client, journal=path, prices={Model.PRO: 55})
            assert (halted, len(outcomes)) == (None, 7)
            assert sandbox.ledger.charged == 8 * 55.0
            measured = 7 if (name, records) == ("jobs", "new") else 1
            assert costs(outcomes) == [55.0] * measured
            assert (progress.credits, progress.measured) == (7 * 55.0, measured * 55.0)
        sandbox.ledger.check()


@pytest.mark.one_api("against the sandbox")
async def test_a_figure_of_the_vendor_needs_no_balance(flux_clock: Any, caplog: Any) -> None:
    """It comes with the end of the first task, for which the others wait."""
    with FluxSandbox(clock=flux_clock, faults="overcharge=11, credits-as-text") as sandbox:
        async with sandbox.client(api="jobs") as client:
            outcomes, halted, progress = await run(client)
        accepted, charged = sandbox.ledger.accepted, sandbox.ledger.charged
    assert isinstance(halted, UnexpectedPrice)
    assert (costs(outcomes), accepted, charged) == ([55.0], 1, 55.0)
    assert (progress.credits, progress.measured, unknown(caplog)) == (55.0, 55.0, [])


@pytest.mark.one_api("against the sandbox")
async def test_a_failed_task_costs_what_its_record_shows(flux_clock: Any) -> None:
    """Nothing, where it was refunded."""
    with FluxSandbox(clock=flux_clock, faults="fail-500") as sandbox:
        async with sandbox.client(api="jobs") as client:
            outcomes, halted, progress = await run(client)
    assert (halted, [type(outcome) for outcome in outcomes]) == (None, [Failed] * 8)
    assert (progress.credits, progress.measured, progress.refundable) == (0.0, 0.0, 0.0)


@pytest.mark.one_api("against the sandbox")
@pytest.mark.parametrize(("price", "submits"), [(1, 8), (11, 1)], ids=["expected", "unexpected"])
async def test_a_figure_of_the_vendor_is_certain(flux_clock: Any, price: int, submits: int) -> None:
    """Whatever others do to the balance."""
    with FluxSandbox(clock=flux_clock, faults=f"overcharge={price}") as sandbox:
        async with sandbox.client(api="jobs") as client, sandbox.client(api="jobs") as other:

            async def spend() -> None:
                async with asyncio.TaskGroup() as group:
                    for number in range(20):
                        group.create_task(
                            other.submit(EditRequest.text_removal(f"https://x.example/{number}"))
                        )

            async with asyncio.TaskGroup() as group:
                group.create_task(spend())
                running = group.create_task(run(client))
            outcomes, halted, _ = running.result()
    assert (halted is None, len(outcomes), len(costs(outcomes))) == (price == 1, submits, submits)


@pytest.mark.one_api("against the sandbox")
async def test_models_of_the_jobs_api_need_no_balance(flux_clock: Any) -> None:
    """Each record has a figure, and the prices of the table are those of the sandbox."""
    with FluxSandbox(clock=flux_clock, faults="credits-as-text") as sandbox:
        async with sandbox.client(api="jobs") as client:
            kinds = [Model.PRO, Model.NANO_BANANA_EDIT, Model.FLUX_2_PRO]
            images = [
                EditRequest.text_removal(url, model=kinds[number % 3]) for number, url in enumerate(URLS)
            ]
            outcomes, halted, progress = await run(client, images)
        charged = sandbox.ledger.charged
    assert (halted, len(outcomes), len(costs(outcomes))) == (None, 8, 8)
    assert progress.credits == progress.measured == sum(costs(outcomes)) == charged


class DearerInRecords(ScriptedVendor):
    """A vendor whose balance shows 5 credits an image, and whose records say 55."""

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> SendResult:
        """Answer a request."""
        found = await super().exchange(request, timeout_s=timeout_s)
        if not request.path.endswith("recordInfo") or not isinstance(found, Answered):
            return found
        envelope = json.loads(found.response.body)
        envelope["data"]["creditsConsumed"] = 55.0
        return Answered(attrs.evolve(found.response, body=json.dumps(envelope).encode()))


@pytest.mark.one_api("only the jobs API has figures")
async def test_a_figure_of_the_vendor_outweighs_an_expected_balance(flux_clock: Any, tmp_path: Path) -> None:
    """It ends the run when the first image has ended; a price that is given goes on."""
    vendor = DearerInRecords(clock=flux_clock, generation_s=12.0)
    images = [f"{URLS[0]}?{number}" for number in range(60)]
    path = tmp_path / "run.sqlite3"
    async with vendor.client(api="jobs") as client:
        outcomes, halted, _ = await run(client, images, journal=path)
        assert isinstance(halted, UnexpectedPrice)
        assert (halted.price, len(outcomes), set(costs(outcomes))) == (55.0, vendor.submits, {55.0})
        paid = vendor.submits
        assert 1 < paid <= 40  # as many as the rate limit allows until the first has ended
        assert isinstance((await run(client, images, journal=path))[1], UnexpectedPrice)
        assert vendor.submits == paid
        outcomes, halted, _ = await run(client, images, journal=path, prices={Model.PRO: 55})
    assert (halted, len(outcomes), vendor.submits) == (None, 60 - paid, 60)
