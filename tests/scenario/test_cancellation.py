"""Cancelling at every await point: nothing is lost, nothing leaks, nothing is left running."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest

from flux_async import ClientClosed, EditRequest, FluxClient, ImageResult, Limits, PollPolicy, TaskId

URL = "https://example.com/poster.jpg"
QUICK = PollPolicy(first_s=0.001, interval_s=0.001, jitter=0.0)
TIGHT = Limits(submits=1000, window_s=1.0, in_flight=1, concurrent_submits=1, connections=1)
ENOUGH = 60


class CancelAt:
    """Awaits a coroutine, and strikes just as it is suspended for the n-th time."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], suspension: int, strike: Callable[[], Any]
    ) -> None:
        self._coroutine = coroutine
        self._left = suspension
        self._strike = strike
        self.struck = False

    def __await__(self) -> Generator[Any, Any, Any]:
        send, value = self._coroutine.send, None
        while True:
            try:
                waited_for = send(value)
            except StopIteration as done:
                return done.value
            self._left -= 1
            if self._left == 0:
                self.struck = True
                self._strike()
            try:
                value, send = (yield waited_for), self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - handed on to the coroutine
                value, send = error, self._coroutine.throw


@pytest.fixture
async def vendor(raw_server: Any, make: Any) -> Any:
    """A vendor over sockets whose tasks have ended at the second poll; every answer is delayed."""
    polls: dict[str, int] = {}
    made: list[str] = []

    async def behave(first: str, headers: Any, body: bytes, writer: Any) -> bool:
        if first.startswith("POST"):
            made.append(f"task{len(made)}")
            data: Any = {"taskId": made[-1]}
        elif "record-info" in first:
            task = first.split("taskId=")[1].split(maxsplit=1)[0]
            polls[task] = polls.get(task, 0) + 1
            flag = int(polls[task] > 1)
            data = {
                "taskId": task,
                "successFlag": flag,
                "response": {"resultImageUrl": f"http://h/{task}.jpg"},
            }
        else:
            data = 5.5
        await asyncio.sleep(0.001)
        strikes.pop(len(server.requests), lambda: None)()
        await asyncio.sleep(0.001)
        writer.write(make.http(json.dumps({"code": 200, "msg": "success", "data": data}).encode()))
        return True

    strikes: dict[int, Callable[[], Any]] = {}
    async with raw_server(behave) as server:
        yield server, made, strikes


async def settled(client: FluxClient) -> None:
    """Wait until the exchanges that went on without their caller have ended."""
    async with asyncio.timeout(60):
        while client.session.background.in_flight:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)


def other_coroutines() -> set[str]:
    """Return all tasks except the test, its server's connections and its fixtures."""
    mine = asyncio.current_task()
    return {
        str(task.get_coro())
        for task in asyncio.all_tasks()
        if task is not mine and "connected" not in str(task.get_coro())
    }


async def strike_natively(call: Coroutine[Any, Any, Any], suspension: int) -> tuple[CancelAt, Any]:
    """Cancel the asyncio task that awaits the call."""

    async def body() -> Any:
        me = asyncio.current_task()
        assert me is not None
        driver = CancelAt(call, suspension, me.cancel)
        try:
            return driver, await driver
        except asyncio.CancelledError as gone:
            return driver, gone

    return await asyncio.get_running_loop().create_task(body())


async def strike_through_a_scope(call: Coroutine[Any, Any, Any], suspension: int) -> tuple[CancelAt, Any]:
    """Cancel the anyio scope around the call."""
    seen: Any = None
    with anyio.CancelScope() as scope:
        driver = CancelAt(call, suspension, scope.cancel)
        try:
            seen = await driver
        except asyncio.CancelledError as gone:
            seen = gone
            raise
    return driver, seen


OURS = ["httpx", "httpx2", "aiohttp"]
STRIKES = [strike_natively, strike_through_a_scope]
STACKS: list[Any] = [*OURS, httpx.AsyncClient, httpx2.AsyncClient]
STACK_NAMES = [*OURS, "client of httpx", "client of httpx2"]


@asynccontextmanager
async def client_of(stack: Any, key: str, url: str, **options: Any) -> AsyncIterator[FluxClient]:
    """A client over a transport of ours, by its name, or over a client of the caller's, by its class."""
    if isinstance(stack, str):
        async with FluxClient(key, url, transport=stack, **options) as client:  # type: ignore[arg-type]
            yield client
        return
    async with stack() as given, FluxClient(key, url, http_client=given, **options) as client:
        yield client


@pytest.mark.parametrize("stack", STACKS, ids=STACK_NAMES)
@pytest.mark.parametrize("strike", STRIKES, ids=["native", "anyio"])
async def test_remove_text_cancelled_at_every_await_point(
    vendor: Any, make: Any, strike: Any, stack: Any
) -> None:
    """At every point: the pool serves the next call, no coroutine stays, each paid task is known."""
    server, made, _ = vendor
    struck_with_a_post = 0
    async with client_of(stack, make.key, server.url, limits=TIGHT, polling=QUICK) as client:
        await client.credits()
        background = other_coroutines()
        for suspension in range(1, ENOUGH):
            before = len(made)
            driver, outcome = await strike(client.remove_text(URL), suspension)
            await settled(client)
            assert other_coroutines() <= background
            async with asyncio.timeout(60):
                assert await client.credits() == 5.5, "one connection: a leaked one would block this"
            known = {unclaimed.task_id for unclaimed in client.unclaimed}
            if isinstance(outcome, ImageResult):
                known.add(outcome.task_id)
            assert set(made[before:]) <= known, f"lost at suspension {suspension}"
            struck_with_a_post += driver.struck and len(made) > before
            if not driver.struck:
                break
        else:
            pytest.fail("the call has more await points than were tried")
        assert suspension > 2, "at the submit, at the wait, and not at all"
        assert struck_with_a_post > 1


@pytest.mark.parametrize("stack", STACKS, ids=STACK_NAMES)
async def test_remove_text_cancelled_while_the_vendor_handles_each_request(
    vendor: Any, make: Any, stack: Any
) -> None:
    """Cancelled during the POST or any poll: the task is recorded, the connection still works."""
    server, made, strikes = vendor
    async with client_of(stack, make.key, server.url, limits=TIGHT, polling=QUICK) as client:
        for number in range(1, 4):
            call = asyncio.get_running_loop().create_task(client.remove_text(URL))
            strikes[len(server.requests) + number] = call.cancel
            with pytest.raises(asyncio.CancelledError):
                await call
            await settled(client)
            async with asyncio.timeout(60):
                assert await client.credits() == 5.5
            assert made == [unclaimed.task_id for unclaimed in client.unclaimed]
            assert len(made) == number


@pytest.mark.parametrize("strike", STRIKES, ids=["native", "anyio"])
async def test_the_cancelled_error_of_a_waiter_names_the_task(vendor: Any, make: Any, strike: Any) -> None:
    """Once the submit was answered, the CancelledError itself carries the paid task's id."""
    server, _, _ = vendor
    notes = []
    async with FluxClient(make.key, server.url, limits=TIGHT, polling=QUICK) as client:
        for suspension in range(1, ENOUGH):
            driver, outcome = await strike(client.remove_text(URL), suspension)
            await settled(client)
            if isinstance(outcome, asyncio.CancelledError):
                notes += getattr(outcome, "__notes__", [])
            if not driver.struck:
                break
        assert notes
        assert all("is paid" in note and "task" in note for note in notes)
        unclaimed = client.unclaimed[0]
        assert unclaimed.task_id is not None
        image = await client.wait(unclaimed.task_id)
        assert image.task_id == unclaimed.task_id
        assert unclaimed not in client.unclaimed, "claimed, it is no longer unclaimed"


async def test_a_timeout_counts_as_a_cancellation(vendor: Any, make: Any) -> None:
    """asyncio.timeout around a call loses neither a connection nor a task."""
    server, made, _ = vendor
    async with FluxClient(make.key, server.url, limits=TIGHT, polling=QUICK) as client:
        done = []
        for number in range(12):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.0007 * number):
                    done.append((await client.remove_text(URL)).task_id)
        await settled(client)
        assert set(made) == {unclaimed.task_id for unclaimed in client.unclaimed} | set(done)
        assert await client.credits() == 5.5


@pytest.mark.parametrize("transport", OURS)
async def test_closing_waits_for_a_submit_in_flight(vendor: Any, make: Any, transport: Any) -> None:
    """A submit whose caller was cancelled finishes before the client closes."""
    server, made, _ = vendor
    client = FluxClient(make.key, server.url, transport=transport, limits=TIGHT, polling=QUICK)
    async with client:
        call = asyncio.get_running_loop().create_task(client.submit(EditRequest.text_removal(URL)))
        while not client.session.background.in_flight:
            await asyncio.sleep(0)
        call.cancel()
    assert [unclaimed.task_id for unclaimed in client.unclaimed] == made == ["task0"]
    assert client.session.background.in_flight == 0


async def test_closing_survives_the_cancellation_of_the_closer(vendor: Any, make: Any) -> None:
    """A cancelled scope around ``async with`` still lets the submit in flight finish."""
    server, made, _ = vendor
    client = FluxClient(make.key, server.url, limits=TIGHT, polling=QUICK)
    with anyio.CancelScope() as scope:
        async with client, anyio.create_task_group() as group:
            group.start_soon(client.submit, EditRequest.text_removal(URL))
            while not client.session.background.in_flight:
                await anyio.lowlevel.checkpoint()
            scope.cancel()
    assert [unclaimed.task_id for unclaimed in client.unclaimed] == made == ["task0"]


@pytest.mark.parametrize("transport", OURS)
async def test_closing_ends_polls_with_client_closed(raw_server: Any, make: Any, transport: Any) -> None:
    """A call that waits for an answer while the client is closed raises ClientClosed; it is not cancelled."""
    asked = asyncio.Event()

    async def behave(*args: Any) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return False

    async with raw_server(behave) as server:
        client = FluxClient(make.key, server.url, transport=transport)
        call = asyncio.get_running_loop().create_task(client.record("t1"))
        await asked.wait()
        await client.aclose()
        with pytest.raises(ClientClosed):
            await call


async def test_a_submit_in_doubt_whose_caller_left_is_unclaimed(raw_server: Any, make: Any) -> None:
    """If the answer never comes, the request is kept with the reason."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def behave(*args: Any) -> bool:
        asked.set()
        await go.wait()
        return False

    request = EditRequest.text_removal(URL)
    async with raw_server(behave) as server, FluxClient(make.key, server.url) as client:
        call = asyncio.get_running_loop().create_task(client.submit(request))
        await asked.wait()
        call.cancel()
        go.set()
        await settled(client)
        (unclaimed,) = client.unclaimed
        assert unclaimed.request == request
        assert unclaimed.task_id is None
        assert unclaimed.error is not None
        assert unclaimed.error.charge == "maybe"


@pytest.mark.parametrize("transport", OURS)
async def test_many_random_cancellations_leave_a_working_client(
    vendor: Any, make: Any, transport: Any
) -> None:
    """Hundreds of calls cancelled at random moments, then everything still works at full width."""
    server, made, _ = vendor
    limits = Limits(submits=10_000, window_s=1.0, in_flight=40, concurrent_submits=4, connections=4)
    done: list[TaskId] = []
    async with FluxClient(make.key, server.url, transport=transport, limits=limits, polling=QUICK) as client:

        async def one(number: int) -> None:
            with anyio.move_on_after(0.001 * (number * 7919 % 97)):
                done.append((await client.remove_text(f"{URL}?{number}")).task_id)

        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(one, number)
        await settled(client)
        assert set(made) == {unclaimed.task_id for unclaimed in client.unclaimed} | set(done)
        async with asyncio.timeout(60), anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(client.credits)


@pytest.mark.parametrize("transport", OURS)
async def test_paid_tasks_are_logged_when_every_coroutine_is_cancelled(
    raw_server: Any, make: Any, transport: Any
) -> None:
    """A submit in doubt is logged even if the program cancels all its tasks."""
    asked = asyncio.Event()

    async def behave(*args: Any) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return False

    request = EditRequest.text_removal(URL)
    async with raw_server(behave) as server:
        client = FluxClient(make.key, server.url, transport=transport)
        call = asyncio.get_running_loop().create_task(client.submit(request))
        await asked.wait()
        mine = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not mine and "connected" not in str(task.get_coro()):
                task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await settled(client)
        (unclaimed,) = client.unclaimed
        assert unclaimed.request == request
        assert unclaimed.error is not None
        await client.aclose()


@pytest.mark.parametrize("transport", OURS)
async def test_a_cancelled_closer_returns_only_after_everything_is_closed(
    vendor: Any, make: Any, transport: Any
) -> None:
    """A cancelled aclose loses no submit and leaves no pool open; a second closer waits as well."""
    server, made, _ = vendor
    client = FluxClient(make.key, server.url, transport=transport, limits=TIGHT, polling=QUICK)
    loop = asyncio.get_running_loop()
    call = loop.create_task(client.submit(EditRequest.text_removal(URL)))
    while not client.session.background.in_flight:
        await asyncio.sleep(0)
    call.cancel()
    first, second = loop.create_task(client.aclose()), loop.create_task(client.aclose())
    await asyncio.sleep(0)
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert client.session.background.in_flight == 0
    assert [unclaimed.task_id for unclaimed in client.unclaimed] == made == ["task0"]
