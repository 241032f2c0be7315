"""The client over a scripted vendor and virtual time."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import random
import traceback
from typing import Any

import pytest

from flux_async import (
    AuthenticationError,
    Charge,
    ClientClosed,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    EditRequest,
    FluxClient,
    FluxError,
    InsufficientCreditsError,
    InvalidInput,
    InvalidRequestError,
    Limits,
    MaintenanceError,
    NotFoundError,
    PollDeadlineExceeded,
    PollPolicy,
    RateLimitedError,
    RequestNotSent,
    RetryPolicy,
    ServerError,
    TaskFailed,
    TaskStatus,
    UnexpectedResponse,
    WrongEventLoop,
)
from flux_async.transport import NotSent, Unknown

pytestmark = pytest.mark.both_apis

URL = "https://example.com/poster.jpg"


async def test_remove_text_submits_once_and_waits(client: Any, transport: Any) -> None:
    """One POST, polls until the image exists, and its URLs."""
    image = await client.remove_text(URL)
    assert (image.task_id, image.result_url) == ("t1", "https://files.example/t1.jpg")
    assert transport.count("generate") == 1
    assert transport.count("record-info") == 3


def modules_on_the_way() -> set[str]:
    """Return the modules of the package in which a coroutine waits for the request that is being made."""
    frames = {frame.f_globals["__name__"] for frame, _ in traceback.walk_stack(None)}
    for task in asyncio.all_tasks():
        waiting: Any = task.get_coro()
        while waiting is not None:
            frame = getattr(waiting, "cr_frame", None)
            frames |= set() if frame is None else {frame.f_globals["__name__"]}
            waiting = getattr(waiting, "cr_await", None)
    return {name for name in frames if name.startswith("flux_async.") and ".testing." not in name}


@pytest.mark.one_api("the way is the same")
async def test_a_call_passes_few_modules_on_the_way_to_its_requests(client: Any, vendor: Any) -> None:
    """A reader who follows a call to its submit and its polls opens these files, and the transport's."""
    passed: set[str] = set()

    def answered(answer: Any) -> Any:
        return lambda request: passed.update(modules_on_the_way()) or answer(request)

    vendor.script |= {"generate": [answered(vendor.generate)], "record-info": [answered(vendor.record)]}
    await client.remove_text(URL)
    names = {name.removeprefix("flux_async.") for name in passed}
    assert names == {"client", "clock", "observed", "poller", "session", "submitter", "transport.background"}


@pytest.mark.one_api("the jobs API has no Kontext Max")
async def test_edit_and_generate_send_their_own_requests(client: Any, vendor: Any) -> None:
    """The prompt, the image and the options arrive; nothing unset does."""
    transport = vendor
    await client.edit("Make the sky orange", URL, model="flux-kontext-max", safety_tolerance=1)
    await client.generate("A lighthouse at dusk", aspect_ratio="16:9")
    bodies = [request.body for _, request in transport.seen if request.body]
    assert bodies == [
        (
            b'{"prompt":"Make the sky orange","model":"flux-kontext-max","safetyTolerance":1,'
            b'"inputImage":"https://example.com/poster.jpg"}'
        ),
        b'{"prompt":"A lighthouse at dusk","model":"flux-kontext-pro","aspectRatio":"16:9"}',
    ]


async def test_bad_input_is_refused_before_any_request(client: Any, transport: Any) -> None:
    """No request leaves for what could not succeed."""
    for attempt in (
        lambda: client.remove_text("photo.jpg"),
        lambda: client.edit(" ", URL),
        lambda: client.generate("x", safety_tolerance=9),
        lambda: client.submit(URL),
        lambda: client.run({"prompt": "x"}),
        lambda: client.wait(""),
        lambda: client.record("a\nb"),
        lambda: client.remove_text(URL, timeout=0),
        lambda: client.wait("t1", timeout=float("nan")),
        lambda: client.download("photo.jpg", "x.jpg"),
    ):
        with pytest.raises(InvalidInput):
            await attempt()
    assert transport.seen == []


async def test_steps_one_by_one(client: Any, make: Any, transport: Any) -> None:
    """submit, record, wait and credits each do one thing."""
    transport.script["credit"] = [make.answer(5916.25)]
    task_id = await client.submit(EditRequest.text_removal(URL))
    assert task_id == "t1"
    assert (await client.record(task_id)).status is TaskStatus.GENERATING
    assert (await client.wait(task_id, timeout=60)).task_id == "t1"
    assert await client.credits() == 5916.25


@pytest.mark.parametrize(
    "truth", [Unknown("ReadTimeout"), Unknown("RemoteProtocolError: dropped")], ids=["timeout", "drop"]
)
async def test_an_unknown_answer_is_never_resubmitted(client: Any, transport: Any, truth: Unknown) -> None:
    """One POST, and one error with an unknown charge."""
    transport.script["generate"] = [truth]
    with pytest.raises(ConnectionLost) as caught:
        await client.remove_text(URL)
    assert caught.value.charge is Charge.MAYBE
    assert transport.count("generate") == 1
    assert "kie.ai/logs" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(500, ServerError), (501, ServerError), (422, InvalidRequestError), (402, InsufficientCreditsError)],
)
async def test_refusals_and_server_errors_are_not_repeated(
    client: Any, transport: Any, make: Any, code: int, kind: type
) -> None:
    """Code 500 on a submit may mean a bad parameter or a made task: one POST only."""
    transport.script["generate"] = [make.answer(None, code, msg="words")]
    with pytest.raises(kind):
        await client.remove_text(URL)
    assert transport.count("generate") == 1


async def test_an_accepted_submit_without_a_task_id_is_in_doubt(
    client: Any, transport: Any, make: Any
) -> None:
    """It is a protocol error with an open charge, never "submitted"."""
    transport.script["generate"] = [make.answer({})]
    with pytest.raises(UnexpectedResponse) as caught:
        await client.submit(EditRequest.text_removal(URL))
    assert caught.value.charge is Charge.MAYBE


async def test_429_waits_a_full_window_and_goes_on(client: Any, transport: Any, make: Any) -> None:
    """Rejected submits cost nothing and are made again, ten seconds later at least."""
    transport.script["generate"] = [make.answer(None, 429, status=429), make.answer({"taskId": "t1"})]
    await client.remove_text(URL)
    (first, _), (second, _) = [entry for entry in transport.seen if entry[1].method == "POST"]
    assert 10.0 <= second - first < 12.5


async def test_429_pauses_every_submit_of_the_session(transport: Any, make: Any, clock: Any) -> None:
    """While one submit waits out its window, no other is sent."""
    transport.script["generate"] = [
        make.answer({"taskId": "t1"}),
        make.answer(None, 429),
        *(make.answer({"taskId": f"t{number}"}) for number in range(2, 6)),
    ]
    async with FluxClient(make.key, transport=transport, clock=clock) as client:
        await client.submit(EditRequest.text_removal(URL))
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(client.submit(EditRequest.text_removal(f"{URL}?{number}")))
    times = [at for at, request in transport.seen if request.method == "POST"]
    assert len(times) == 6
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) >= 10.0 - 0.6
    assert sum(gap > 5 for gap in gaps) == 1


async def test_a_long_retry_after_ends_the_retries(client: Any, transport: Any, make: Any) -> None:
    """Retry-After of an hour is an error instead of a silent hour."""
    transport.script["generate"] = [make.answer(None, 429, **{"retry-after": "3600"})]
    with pytest.raises(RateLimitedError) as caught:
        await client.remove_text(URL)
    assert caught.value.retry_after_s == 3600.0


async def test_maintenance_longer_than_the_deadline_is_raised_at_once(
    client: Any, transport: Any, make: Any
) -> None:
    """A pause that would outlast the call's deadline ends it at once."""
    transport.script["generate"] = [make.answer(None, 455)]
    with pytest.raises(MaintenanceError):
        await client.remove_text(URL, timeout=30)
    assert transport.count("generate") == 1


async def test_never_connected_is_tried_again_a_few_times(client: Any, transport: Any, make: Any) -> None:
    """A refused connection cost nothing; a later try may succeed, and they are counted."""
    transport.script["generate"] = [NotSent("refused"), NotSent("refused"), make.answer({"taskId": "t1"})]
    assert (await client.remove_text(URL)).task_id == "t1"
    transport.script["generate"] = [NotSent("ConnectError: refused")]
    with pytest.raises(RequestNotSent) as caught:
        await client.remove_text(URL)
    assert caught.value.charge is Charge.NO
    assert transport.count("generate") == 3 + 5


async def test_a_wrong_key_costs_one_request_however_many_wait(
    client: Any, transport: Any, make: Any
) -> None:
    """The first submit goes alone; those waiting behind it end with its error, unsent."""
    transport.script["generate"] = [make.answer(None, 401)]
    results = []

    async def one(number: int) -> None:
        with pytest.raises(AuthenticationError) as caught:
            await client.submit(EditRequest.text_removal(f"{URL}?{number}"))
        results.append(caught.value)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(one(number))
    assert transport.count("generate") == 1
    assert len(results) == 50
    with pytest.raises(AuthenticationError):
        await client.submit(EditRequest.text_removal(URL))
    assert transport.count("generate") == 2, "a later call asks again: the key may have been mended"


async def test_submits_keep_the_rate_limit_and_the_limit_in_flight(
    transport: Any, make: Any, clock: Any
) -> None:
    """60 images at once: at most 20 submits in any 10 s, few in flight, and at most the allowed tasks."""
    numbers = iter(range(10_000))
    transport.script["generate"] = [lambda request: make.answer({"taskId": f"t{next(numbers)}"})]
    transport.script["record-info"] = [lambda request: make.record(1, request.query["taskId"])]
    transport.latency_s = 1.3
    limits = Limits(in_flight=8, concurrent_submits=3)
    client = FluxClient(make.key, transport=transport, clock=clock, limits=limits)
    async with client, asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(client.remove_text(f"{URL}?{number}", timeout=3000))
    times = [at for at, request in transport.seen if request.method == "POST"]
    assert len(times) == 60
    assert all(sum(start <= at < start + 10 for at in times) <= 20 for start in times)
    assert transport.most_in_flight <= 8


async def test_the_rate_limiter_learns_from_accepted_and_refused_submits(
    transport: Any, make: Any, clock: Any
) -> None:
    """Submits come closer together while none is refused; a 429 spaces them again, for good."""
    numbers = iter(range(10_000))
    taken: Any = lambda request: make.answer({"taskId": f"t{next(numbers)}"})  # noqa: E731
    transport.script["generate"] = [taken] * 250 + [make.answer(None, 429)] + [taken] * 150
    rng = random.Random(7)  # the first submit after the pause comes late by a random time
    async with FluxClient(make.key, transport=transport, clock=clock, rng=rng) as client:
        for number in range(400):
            await client.submit(EditRequest.text_removal(f"{URL}?{number}"))
    times = [at for at, request in transport.seen if request.method == "POST"]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[:99] == pytest.approx([0.51] * 99)
    assert gaps[200:249] == pytest.approx([0.5025] * 49)
    assert gaps[251:] == pytest.approx([0.505] * 149)


async def test_a_task_not_visible_yet_is_waited_for(client: Any, transport: Any, make: Any) -> None:
    """422, null and 404 right after the submit mean "not yet"."""
    transport.script["record-info"] = [
        make.answer(None, 422, msg="The record does not exist"),
        make.answer(None),
        make.answer(None, 404),
        make.record(1),
    ]
    assert (await client.remove_text(URL)).task_id == "t1"


async def test_an_unknown_task_ends_after_the_grace(
    client: Any, transport: Any, make: Any, clock: Any
) -> None:
    """After 90 s a task without a record is an error that names it."""
    transport.script["record-info"] = [make.answer(None)]
    started = clock.now
    with pytest.raises(NotFoundError) as caught:
        await client.wait("mistyped")
    assert caught.value.task_id == "mistyped"
    assert 90 <= clock.now - started < 120


async def test_errors_of_polls_do_not_end_the_wait(client: Any, transport: Any, make: Any) -> None:
    """429, 455, 500, HTML, drops and refused connections are all polled again."""
    transport.script["record-info"] = [
        make.answer(None, 429, status=429),
        make.answer(None, 455),
        make.answer(None, 500),
        Unknown("dropped"),
        NotSent("refused"),
        make.record(1),
    ]
    assert (await client.remove_text(URL, timeout=600)).task_id == "t1"
    assert transport.count("generate") == 1


async def test_the_deadline_is_one_and_carries_the_task(
    client: Any, transport: Any, make: Any, clock: Any
) -> None:
    """A task that never finishes ends the call in time, with its id and what it cost."""
    transport.script["record-info"] = [make.record(0)]
    started = clock.now
    with pytest.raises(PollDeadlineExceeded) as caught:
        await client.remove_text(URL, timeout=20)
    assert (caught.value.task_id, caught.value.charge) == ("t1", Charge.YES)
    assert 18 <= clock.now - started <= 20.5
    transport.script["record-info"] = [make.record(1)]
    assert (await client.wait("t1")).task_id == "t1", "the same task can be taken up again"


async def test_an_unknown_flag_is_polled_on_with_one_warning(
    client: Any, transport: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An undocumented flag does not end the wait, and is logged once."""
    transport.script["record-info"] = [make.record(9), make.record(9), make.record(9), make.record(1)]
    with caplog.at_level(logging.WARNING, "flux_async"):
        assert (await client.remove_text(URL)).task_id == "t1"
    assert [r.message for r in caplog.records] == ["task t1 has an unknown successFlag: 9"]


async def test_a_failed_task_is_an_error_with_its_record(client: Any, transport: Any, make: Any) -> None:
    """Code 200 with flag 3 is a failure."""
    transport.script["record-info"] = [
        make.record(3, errorCode=400, errorMessage="Your prompt was flagged by Website")
    ]
    with pytest.raises(TaskFailed, match="flagged") as caught:
        await client.remove_text(URL)
    assert caught.value.record.error_code == 400


async def test_success_without_a_url_is_an_error(client: Any, transport: Any, make: Any) -> None:
    """A success without its image is not an empty success."""
    transport.script["record-info"] = [make.record(1, response=None)]
    with pytest.raises(UnexpectedResponse, match="without a result URL") as caught:
        await client.remove_text(URL)
    assert caught.value.charge is Charge.YES


async def test_reads_are_repeated(client: Any, transport: Any, make: Any) -> None:
    """A read of the balance without an answer is repeated; a lasting error is raised with charge NO."""
    transport.script["credit"] = [Unknown("dropped"), make.answer(None, 500), make.answer(7)]
    assert await client.credits() == 7.0
    transport.script["credit"] = [Unknown("dropped")]
    with pytest.raises(ConnectionLost) as caught:
        await client.credits()
    assert caught.value.charge is Charge.NO
    assert "kie.ai/logs" not in str(caught.value)


async def test_nothing_is_sent_when_the_queue_outlasts_the_deadline(
    transport: Any, make: Any, clock: Any
) -> None:
    """Waiting for the rate limiter is bounded by the call's own deadline, and nothing is spent."""
    async with FluxClient(make.key, transport=transport, clock=clock) as client:
        await client.submit(EditRequest.text_removal(URL))
        with pytest.raises(DeadlineExceeded) as caught:
            await client.submit(EditRequest.text_removal(URL), timeout=0.2)
    assert not isinstance(caught.value, PollDeadlineExceeded)
    assert caught.value.charge is Charge.NO
    assert transport.count("generate") == 1


async def test_waiting_for_a_slot_is_bounded_in_real_time_too(client: Any, transport: Any) -> None:
    """A call that gets no slot before its deadline raises DeadlineExceeded."""
    account = client.session
    for _ in range(account.spacing.limits.in_flight):
        await account.task_slots.acquire()
    with pytest.raises(DeadlineExceeded):
        await client.remove_text(URL, timeout=0.01)
    assert transport.seen == []


async def test_every_call_after_closing_raises_client_closed(client: Any, transport: Any) -> None:
    """Closing again does nothing."""
    await client.aclose()
    await client.aclose()
    assert transport.closed
    for call in (client.credits(), client.remove_text(URL), client.wait("t1"), client.record("t1")):
        with pytest.raises(ClientClosed):
            await call
    with pytest.raises(ClientClosed):
        async with client:
            pass


async def test_closing_ends_submits_that_wait_in_the_queue(transport: Any, make: Any, clock: Any) -> None:
    """A submit that was waiting for its turn when the client was closed is not sent."""
    client = FluxClient(make.key, transport=transport, clock=clock)
    first = asyncio.ensure_future(client.submit(EditRequest.text_removal(URL)))  # noqa: TID251
    second = asyncio.ensure_future(client.submit(EditRequest.text_removal(URL + "?2")))  # noqa: TID251
    for _ in range(3):
        await asyncio.sleep(0)
    await client.aclose()
    assert await first == "t1"
    with pytest.raises(ClientClosed):
        await second
    assert transport.count("generate") == 1


class LoopClock:
    """The time of the loop that runs: there is none before."""

    def monotonic(self) -> float:
        """Ask the loop."""
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """Stand still."""
        return 1_700_000_000.0

    async def sleep(self, seconds: float) -> None:
        """Let others run."""
        await asyncio.sleep(0)


def test_a_client_is_made_where_no_loop_runs(transport: Any, make: Any) -> None:
    """What is made at the top of a module asks its clock for nothing before it is used."""
    client = FluxClient(make.key, transport=transport, clock=LoopClock())
    assert asyncio.run(client.credits()) == 42.5


def test_another_event_loop_is_refused(transport: Any, make: Any, clock: Any) -> None:
    """A client of one loop raises an error on the next, instead of hanging."""
    client = FluxClient(make.key, transport=transport, clock=clock)
    assert asyncio.run(client.credits()) == 42.5
    with pytest.raises(WrongEventLoop, match="per event loop"):
        asyncio.run(client.credits())


def test_settings_come_from_the_environment_or_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments win; without either, the message names the variable."""
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    monkeypatch.delenv("KIE_BASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="KIE_API_KEY"):
        FluxClient()
    monkeypatch.setenv("KIE_API_KEY", "from-environment")
    monkeypatch.setenv("KIE_BASE_URL", "http://127.0.0.1:8787")
    assert repr(FluxClient()) == f"<FluxClient http://127.0.0.1:8787 through {FluxClient().transport_name}>"
    assert "https://api.kie.ai" in repr(FluxClient(base_url="https://api.kie.ai"))
    with pytest.raises(ConfigurationError):
        FluxClient(api_key="")
    with pytest.raises(ConfigurationError, match=r"httpx\.AsyncClient"):
        FluxClient(http_client=object())  # type: ignore[arg-type]


def test_plain_http_to_a_far_host_is_warned_about(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The key would cross a network in the clear."""
    with caplog.at_level(logging.WARNING, "flux_async"):
        FluxClient(make.key, "http://kie.example")
    assert "unencrypted" in caplog.text
    assert make.key not in caplog.text


async def test_with_options_shares_session_and_connections(client: Any, transport: Any, make: Any) -> None:
    """Other settings, same rate limiter, same connections, closed together."""
    other = client.with_options(timeout=5, polling=PollPolicy.fixed(1.0), retry=RetryPolicy(max_tries=1))
    transport.script["record-info"] = [make.record(0)]
    with pytest.raises(PollDeadlineExceeded, match="within 5 s"):
        await other.remove_text(URL)
    await client.aclose()
    with pytest.raises(ClientClosed):
        await other.credits()


@pytest.mark.parametrize("code", [401, 402, 403, 433, 505])
async def test_an_error_after_the_submit_is_marked_as_paid(
    client: Any, transport: Any, make: Any, code: int
) -> None:
    """The poll cost nothing, the call did: charge YES, the task's id, and not "run again"."""
    transport.script["record-info"] = [make.answer(None, code)]
    with pytest.raises(FluxError) as caught:
        await client.remove_text(URL)
    assert (caught.value.charge, caught.value.task_id) == (Charge.YES, "t1")
    assert "do not submit the image again" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"polling": 3.0},
        {"polling": {}},
        {"retry": "often"},
        {"limits": "20/10"},
        {"rng": "dice"},
        {"timeout": 10**400},
        {"timeout": "5"},
    ],
    ids=str,
)
def test_a_setting_of_the_wrong_kind_is_refused_at_once(make: Any, arguments: dict[str, Any]) -> None:
    """Not after the first paid submit."""
    with pytest.raises(InvalidInput):
        FluxClient(make.key, **arguments)


@pytest.mark.parametrize("hopeless", [455, 429])
async def test_a_pause_holds_for_all_calls(transport: Any, make: Any, clock: Any, hopeless: int) -> None:
    """Also if the call that received it gives up: no other call receives the same refusal."""
    transport.script["generate"] = [make.answer(None, hopeless)]
    async with FluxClient(
        make.key, transport=transport, clock=clock, retry=RetryPolicy(max_tries=1)
    ) as client:

        async def one(number: int) -> None:
            with pytest.raises((MaintenanceError, RateLimitedError, DeadlineExceeded)):
                await client.submit(EditRequest.text_removal(f"{URL}?{number}"), timeout=9)

        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(one(number))
    assert transport.count("generate") == 1


async def test_a_wrong_key_costs_one_request_with_few_slots_too(
    transport: Any, make: Any, clock: Any
) -> None:
    """Calls that waited for a slot before the key was refused are not sent either."""
    transport.script["generate"] = [make.answer(None, 401)]
    limits = Limits(in_flight=1)
    async with FluxClient(make.key, transport=transport, clock=clock, limits=limits) as client:

        async def one(number: int) -> None:
            with pytest.raises(AuthenticationError):
                await client.remove_text(f"{URL}?{number}")

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(one(number))
    assert transport.count("generate") == 1


async def test_closing_ends_calls_that_sleep_between_polls(transport: Any, make: Any) -> None:
    """No call waits for a closed client; the paid task is in ``unclaimed``."""
    transport.script["record-info"] = [make.record(0)]
    client = FluxClient(make.key, transport=transport)
    call = asyncio.get_running_loop().create_task(client.remove_text(URL))
    while not transport.count("generate") or client.session.background.in_flight:
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await client.aclose()
        with pytest.raises(ClientClosed):
            await call
    assert [unclaimed.task_id for unclaimed in client.unclaimed] == ["t1"]


async def test_reads_end_at_their_deadline(client: Any, transport: Any, make: Any, clock: Any) -> None:
    """The balance is not asked for over and over beyond the timeout."""
    transport.script["credit"] = [make.answer(None, 429, **{"retry-after": "100"})]
    started = clock.now
    with pytest.raises(RateLimitedError):
        await client.credits(timeout=5)
    assert clock.now - started < 5.1


async def test_a_submit_that_outlasts_the_deadline_is_unclaimed(make: Any) -> None:
    """The caller gets an error at the deadline, and the later answer is in ``unclaimed``."""
    go = asyncio.Event()

    class Slow:
        async def exchange(self, request: Any, *, timeout_s: float) -> Any:
            await go.wait()
            return make.answer({"taskId": "late"})

        async def aclose(self) -> None:
            pass

    async with FluxClient(make.key, transport=Slow()) as client:  # type: ignore[arg-type]
        with pytest.raises(DeadlineExceeded, match="unclaimed") as caught:
            await client.remove_text(URL, timeout=0.02)
        assert caught.value.charge is Charge.MAYBE
        go.set()
    assert [unclaimed.task_id for unclaimed in client.unclaimed] == ["late"]


async def test_a_failing_transport_of_the_callers_own_leaves_the_charge_open(
    client: Any, transport: Any
) -> None:
    """An unforeseen exception leaves the submit in doubt."""

    def broken(request: Any) -> Any:
        raise RuntimeError("surprise")

    transport.script["generate"] = [broken]
    with pytest.raises(ConnectionLost, match="RuntimeError") as caught:
        await client.submit(EditRequest.text_removal(URL))
    assert caught.value.charge is Charge.MAYBE


async def test_a_task_that_failed_is_no_longer_unclaimed(client: Any, transport: Any, make: Any) -> None:
    """A caller that received the end of a task has claimed it."""
    client.session.keep_unclaimed(EditRequest.text_removal(URL), "kontext", "t1")
    transport.script["record-info"] = [make.record(3)]
    with pytest.raises(TaskFailed):
        await client.wait("t1")
    assert client.unclaimed == ()


async def test_a_log_handler_that_raises_loses_nothing(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The id is stored before it is logged."""

    def raising(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of the caller's")

    logger = logging.getLogger("flux_async")
    logger.addFilter(raising)
    try:
        client.session.keep_unclaimed(EditRequest.text_removal(URL), "kontext", "t1")
    finally:
        logger.removeFilter(raising)
    assert client.unclaimed[0].task_id == "t1"


def test_a_client_is_not_pickled(make: Any) -> None:
    """The error says what to do instead."""
    with pytest.raises(ConfigurationError, match="in each process"):
        pickle.dumps(FluxClient(make.key))
