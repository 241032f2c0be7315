"""The fan-out: bounds, one bad image, a halt, an interruption. The vendor is a transport in this process."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from flux_async import Charge, EditRequest, FluxClient, Limits, PollPolicy, RetryPolicy
from flux_async.cli.fanout import Fanout, FanoutOptions
from flux_async.cli.planning import plan
from flux_async.cli.progress import Progress
from flux_async.cli.results import ResultBook, ResultRow, Status
from flux_async.clock import SystemClock
from flux_async.protocol.envelope import WireRequest, WireResponse
from flux_async.transport import Answered, NotSent, Truth, Unknown

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)
QUICK = PollPolicy(first_s=0.001, interval_s=0.001, cap_s=0.002)

Submit = Callable[[str], Awaitable[Truth | int]]


def answer(code: int, data: object) -> Answered:
    body = json.dumps({"code": code, "msg": "words", "data": data}).encode()
    return Answered(WireResponse(status=200, headers={}, body=body))


@attrs.define
class _File:
    content: bytes
    status: int = 200

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.content


@attrs.define
class Vendor:
    """Speaks the vendor's API, as a transport; ``on_submit`` may answer otherwise than with a task."""

    on_submit: Submit | None = None
    flags: dict[str, int] = attrs.Factory(dict)
    bad_files: set[str] = attrs.Factory(set)
    looks_needed: int = 1
    record_code: int = 200
    submits: list[str] = attrs.Factory(list)
    looks: Counter[str] = attrs.Factory(Counter)
    running: set[str] = attrs.Factory(set)
    most_running: int = 0
    downloads: int = 0
    most_downloads: int = 0

    async def exchange(self, request: WireRequest, *, timeout_s: float) -> Truth:
        """Answer a submit or a look."""
        await asyncio.sleep(0)
        if request.method == "POST":
            return await self._submit(json.loads(request.body or b"{}")["inputImage"])
        return self._record(dict(request.query)["taskId"])

    async def _submit(self, image: str) -> Truth:
        self.submits.append(image)
        other = await self.on_submit(image) if self.on_submit else 200
        if not isinstance(other, int):
            return other
        if other != 200:
            return answer(other, None)
        task = image.rpartition("/")[2]
        self.running.add(task)
        self.most_running = max(self.most_running, len(self.running))
        return answer(200, {"taskId": task})

    def _record(self, task: str) -> Truth:
        self.looks[task] += 1
        if self.record_code != 200:
            return answer(self.record_code, None)
        if self.looks[task] < self.looks_needed:
            return answer(200, {"taskId": task, "successFlag": 0})
        self.running.discard(task)
        flag = self.flags.get(task, 1)
        response = {"resultImageUrl": f"https://files/{task}.png"} if flag == 1 else None
        return answer(200, {"taskId": task, "successFlag": flag, "response": response, "errorCode": 501})

    @asynccontextmanager
    async def fetch(self, url: str, *, timeout_s: float) -> AsyncIterator[_File]:
        """Open a file."""
        self.downloads += 1
        self.most_downloads = max(self.most_downloads, self.downloads)
        await asyncio.sleep(0.001)
        bad = url in self.bad_files
        yield _File(b"<html>" if bad else PNG)
        self.downloads -= 1

    async def aclose(self) -> None:
        """Nothing is open."""


def urls(count: int) -> list[str]:
    return [f"https://host/{number}" for number in range(count)]


@attrs.define
class Run:
    """One fan-out over a vendor, and what it told."""

    folder: Path
    vendor: Vendor
    settled: list[ResultRow] = attrs.Factory(list)
    progress: list[Progress] = attrs.Factory(list)

    def client(self) -> FluxClient:
        """Make a client without a network."""
        return FluxClient(
            "key",
            "https://api.test",
            transport=self.vendor,
            limits=Limits(submits=100_000, window_s=1.0, in_flight=1000),
            polling=QUICK,
            retry=RetryPolicy(max_tries=1),
        )

    def fanout(self, client: FluxClient, images: list[str], options: FanoutOptions) -> Fanout:
        """Plan a run in the folder."""
        book = ResultBook.open(self.folder)
        items = plan(
            images, book.rows, EditRequest.text_removal, folder=self.folder, download=options.download
        )
        return Fanout(
            client=client,
            items=tuple(items),
            book=book,
            options=options,
            clock=SystemClock(),
            on_progress=self.progress.append,
            on_row=self.settled.append,
        )

    async def all_of(self, images: list[str], options: FanoutOptions | None = None) -> Fanout:
        """Make the run, from the plan to the rewritten results."""
        async with self.client() as client:
            fanout = self.fanout(client, images, options or FanoutOptions())
            await fanout.run()
        fanout.book.rewrite(item.key for item in fanout.items)
        return fanout

    def states(self, fanout: Fanout) -> list[Status]:
        """Say how the images of a run stand, in order."""
        return [fanout.book.rows[item.key].status for item in fanout.items]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, Vendor())


async def test_every_image_gets_its_file_and_its_row(run: Run) -> None:
    """Each image ends as a succeeded row with a file that is there."""
    fanout = await run.all_of(urls(20))
    rows = [fanout.book.rows[item.key] for item in fanout.items]
    assert {row.status for row in rows} == {Status.SUCCEEDED}
    assert all((run.folder / str(row.file)).read_bytes() == PNG for row in rows)
    assert len(run.settled) == 20
    assert run.progress[-1].succeeded == run.progress[-1].submitted == 20


async def test_never_more_are_in_flight_than_agreed(run: Run) -> None:
    """Tasks in flight and downloads each keep within their own bound."""
    run.vendor.looks_needed = 3
    await run.all_of(urls(60), FanoutOptions(in_flight=5))
    assert run.vendor.most_running == 5
    assert 1 < run.vendor.most_downloads <= 8


async def test_one_bad_image_never_ends_the_others(run: Run) -> None:
    """A refused address, a failed task, a file that is none: each fails alone."""
    run.vendor.flags["1"] = 3
    run.vendor.bad_files.add("https://files/2.png")
    fanout = await run.all_of(["nonsense", *urls(4)])
    rows = [fanout.book.rows[item.key] for item in fanout.items]
    assert [row.error and row.error.type for row in rows] == [
        "InvalidInput",
        None,
        "TaskFailed",
        "DownloadError",
        None,
    ]
    assert [row.charge for row in rows] == ["no", "yes", "maybe", "yes", "yes"]
    assert [row.attempts for row in rows] == [0, 1, 1, 1, 1]
    assert len(run.vendor.submits) == 4


async def test_a_second_run_asks_for_nothing(run: Run) -> None:
    """What succeeded is carried over without a request."""
    await run.all_of(urls(5))
    again = Run(run.folder, Vendor())
    fanout = await again.all_of(urls(5))
    assert again.states(fanout) == [Status.SUCCEEDED] * 5
    assert (again.vendor.submits, again.vendor.looks, again.vendor.most_downloads) == ([], {}, 0)


async def test_a_failed_download_is_made_up_for_without_a_submit(run: Run) -> None:
    """A picture that was made but not fetched is fetched by the next run, and nothing is paid."""
    run.vendor.bad_files.add("https://files/0.png")
    assert run.states(await run.all_of(urls(1))) == [Status.FAILED]
    again = Run(run.folder, Vendor())
    assert again.states(await again.all_of(urls(1))) == [Status.SUCCEEDED]
    assert (again.vendor.submits, again.vendor.looks) == ([], {})


async def test_a_wait_that_ran_out_is_taken_up_without_a_submit(run: Run) -> None:
    """A task that outlives its deadline is failed and paid; the next run waits for it again."""
    run.vendor.looks_needed = 10**9
    fanout = await run.all_of(urls(1), FanoutOptions(timeout_s=0.02))
    row = fanout.book.rows[fanout.items[0].key]
    assert (row.status, row.charge, row.task_id) == (Status.FAILED, Charge.YES, "0")
    again = Run(run.folder, Vendor())
    assert again.states(await again.all_of(urls(1))) == [Status.SUCCEEDED]
    assert again.vendor.submits == []


async def test_an_unknown_answer_leaves_the_image_in_doubt_for_good(run: Run) -> None:
    """A submit whose answer never came is in doubt, and no later run submits it unasked."""

    async def lost(image: str) -> Truth:
        return Unknown("the line went dead")

    run.vendor.on_submit = lost
    fanout = await run.all_of(urls(1))
    row = fanout.book.rows[fanout.items[0].key]
    assert (row.status, row.charge, row.attempts) == (Status.IN_DOUBT, Charge.MAYBE, 1)
    again = Run(run.folder, Vendor())
    assert again.states(await again.all_of(urls(1))) == [Status.IN_DOUBT]
    assert again.vendor.submits == []


async def test_a_failure_that_cost_nothing_is_tried_again(run: Run) -> None:
    """An image that was never sent is submitted by the next run, and its attempts are counted on."""

    async def unreachable(image: str) -> Truth:
        return NotSent("refused")

    run.vendor.on_submit = unreachable
    assert run.states(await run.all_of(urls(1))) == [Status.FAILED]
    again = Run(run.folder, Vendor())
    fanout = await again.all_of(urls(1))
    assert fanout.book.rows[fanout.items[0].key].attempts == 2


async def test_an_empty_balance_stops_the_submits_and_lets_tasks_finish(run: Run) -> None:
    """After 402 nothing more is submitted, what runs ends well, and the rest stays pending."""

    async def three_then_broke(image: str) -> int:
        return 200 if len(run.vendor.submits) <= 3 else 402

    run.vendor.on_submit = three_then_broke
    run.vendor.looks_needed = 20
    fanout = await run.all_of(urls(50))
    states = Counter(run.states(fanout))
    assert states == {Status.SUCCEEDED: 3, Status.PENDING: 47}
    assert type(fanout.halted_by).__name__ == "InsufficientCreditsError"
    assert len(run.vendor.submits) < 12
    assert {row.attempts for row in fanout.book.rows.values() if row.status is Status.PENDING} == {0}


async def test_a_key_that_dies_meanwhile_leaves_paid_tasks_to_be_taken_up(run: Run) -> None:
    """Turned away while waiting, the run halts; the paid task stays pending and is only waited for later."""
    run.vendor.record_code = 401
    fanout = await run.all_of(urls(1))
    row = fanout.book.rows[fanout.items[0].key]
    assert (row.status, row.charge, row.task_id) == (Status.PENDING, Charge.YES, "0")
    assert type(fanout.halted_by).__name__ == "AuthenticationError"
    again = Run(run.folder, Vendor())
    assert again.states(await again.all_of(urls(1))) == [Status.SUCCEEDED]
    assert again.vendor.submits == []


async def test_a_wrong_key_costs_one_submit(run: Run) -> None:
    """Before the first task is accepted, submits go alone: a dead key is noticed after one."""

    async def wrong(image: str) -> int:
        return 401

    run.vendor.on_submit = wrong
    fanout = await run.all_of(urls(30))
    assert len(run.vendor.submits) == 1
    assert set(run.states(fanout)) == {Status.PENDING}


async def test_an_interruption_loses_no_submit_that_had_left(run: Run) -> None:
    """Cut short with submits on the wire, the run learns their task ids and the next one only waits."""
    wired, answered = asyncio.Event(), asyncio.Event()

    async def slow(image: str) -> int:
        if len(run.vendor.submits) > 1:
            wired.set()
            await answered.wait()
        return 200

    run.vendor.on_submit = slow
    run.vendor.looks_needed = 10**9
    async with run.client() as client:
        fanout = run.fanout(client, urls(40), FanoutOptions())
        async with anyio.create_task_group() as group:
            group.start_soon(fanout.run)
            await wired.wait()
            group.cancel_scope.cancel()
        on_the_wire = fanout.in_air
        fanout.note_in_air()
        assert Counter(run.states(fanout))[Status.IN_DOUBT] == on_the_wire > 0
        answered.set()
        await client.aclose()
        fanout.take_in(client.unclaimed)
    fanout.book.rewrite(item.key for item in fanout.items)
    assert set(run.states(fanout)) == {Status.PENDING}
    with_task = [row for row in fanout.book.rows.values() if row.task_id]
    assert len(with_task) == len(run.vendor.submits)

    again = Run(run.folder, Vendor())
    assert set(again.states(await again.all_of(urls(40)))) == {Status.SUCCEEDED}
    assert sorted(again.vendor.submits + run.vendor.submits) == sorted(urls(40))


async def test_an_interrupted_submit_that_came_to_nothing_is_in_doubt_or_pending(run: Run) -> None:
    """A submit that left and was never answered is in doubt; the one behind it never left."""
    wired, answered = asyncio.Event(), asyncio.Event()

    async def lost(image: str) -> Truth:
        wired.set()
        await answered.wait()
        return Unknown("the line went dead")

    run.vendor.on_submit = lost
    async with run.client() as client:
        fanout = run.fanout(client, urls(2), FanoutOptions())
        async with anyio.create_task_group() as group:
            group.start_soon(fanout.run)
            await wired.wait()
            group.cancel_scope.cancel()
        answered.set()
        await client.aclose()
        fanout.take_in(client.unclaimed)
    assert run.states(fanout) == [Status.IN_DOUBT, Status.PENDING]


async def test_a_display_that_fails_does_not_break_the_run(run: Run) -> None:
    """Listeners may raise; the run goes on."""

    def broken(value: object) -> None:
        raise RuntimeError("no terminal")

    async with run.client() as client:
        fanout = run.fanout(client, urls(3), FanoutOptions(download=False))
        fanout.on_progress = fanout.on_row = broken
        await fanout.run()
    assert run.states(fanout) == [Status.SUCCEEDED] * 3


async def test_results_that_cannot_be_written_end_the_spending(run: Run) -> None:
    """Where rows cannot be kept, nothing more is submitted."""
    async with run.client() as client:
        fanout = run.fanout(client, urls(50), FanoutOptions(download=False))
        fanout.book.path.mkdir()
        await fanout.run()
    assert type(fanout.halted_by).__name__ == "ResultsError"
    assert len(run.vendor.submits) < 10


async def test_a_task_in_flight_is_on_disk_before_it_has_ended(run: Run) -> None:
    """As soon as a submit is answered its task id is on disk, so that a killed run pays nothing twice."""
    run.vendor.looks_needed = 10**9
    async with run.client() as client:
        fanout = run.fanout(client, urls(1), FanoutOptions())
        async with anyio.create_task_group() as group:
            group.start_soon(fanout.run)
            while not run.vendor.looks:
                await asyncio.sleep(0.001)
            (row,) = ResultBook.open(run.folder).rows.values()
            group.cancel_scope.cancel()
    assert (row.status, row.task_id, row.charge) == (Status.PENDING, "0", Charge.YES)
