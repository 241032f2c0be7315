"""The client: one image, awaited.

``submit`` spends credits, once; ``record`` and ``wait`` look, as often as it takes; ``download`` brings the
picture home; ``run`` and its short forms do all but the last in one call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import anyio

from flux_async.account import Account, Call
from flux_async.clock import Clock, SystemClock
from flux_async.errors import (
    Charge,
    ConfigurationError,
    DownloadError,
    FluxError,
    InvalidInput,
    PollDeadlineExceeded,
    ResultExpired,
    TaskFailed,
    shown,
)
from flux_async.files import check_destination, write_picture
from flux_async.models import (
    AspectRatio,
    CallbackEvent,
    EditRequest,
    GenerateRequest,
    ImageRequest,
    ImageResult,
    Outcome,
    TaskId,
    TaskRecord,
    UnclaimedTask,
    check_http_url,
    check_request,
)
from flux_async.policy.admission import Admission, Limits
from flux_async.policy.learning import kind_of
from flux_async.policy.numbers import check_not_negative, check_positive
from flux_async.policy.polling import CallbackHealth, PollPolicy
from flux_async.policy.retry import RetryPolicy
from flux_async.protocol.envelope import WireRequest, WireResponse
from flux_async.protocol.wire import (
    build_credit,
    build_record_info,
    check_task_id,
    parse_credit,
    parse_record,
)
from flux_async.transport import Transport
from flux_async.transport.origin import ApiOrigin
from flux_async.waiting import LOOK_TIMEOUT_S, SHORTEST_LOOK_S, Waiting

if TYPE_CHECKING:
    from flux_async.transport.httpx_ import HttpClient

logger: logging.Logger = logging.getLogger("flux_async")

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 300.0
_OK = 200
_GONE = frozenset({404, 410})


class FluxClient:
    """Awaitable access to KIE AI's Flux Kontext API.

    Make one per process and event loop, keep it, close it: it holds the connections, the account's pace and
    the ids of tasks whose callers left. Use it as ``async with FluxClient() as client:``.

    Args:
        api_key: The key; left out, the environment variable ``KIE_API_KEY``. It goes to ``base_url`` only.
        base_url: The API's origin; left out, ``KIE_BASE_URL``, else ``https://api.kie.ai``.
        timeout: Seconds a call may take from its start to the finished picture.
        limits: The account's and this process's limits; 20 submits in 10 s unless said otherwise.
        polling: The rhythm of looking at a task; left out, it is learned.
        retry: When a request is made again; never one that may have been charged.
        http_client: An ``httpx.AsyncClient`` or ``httpx2.AsyncClient`` for the API; it stays yours to close.
        transport: Another way to make requests altogether, in place of ``http_client``.
        clock: The reader of time.
        rng: The source of jitter, for example ``random.Random(1)`` in a test.

    Raises:
        ConfigurationError: No key, or an address or client that cannot be used.
        InvalidInput: A number out of range.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        limits: Limits | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        http_client: HttpClient | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        try:
            origin = _find_origin(api_key, base_url)
        except ConfigurationError as refused:
            api_key = None  # here and below: tracebacks can show local variables
            raise refused.with_traceback(None) from None
        api_key = None
        limits = _of_kind(limits, Limits, "limits") or Limits()
        self._base_url: str = origin.base_url
        self._fingerprint: str = origin.fingerprint
        self._timeout: float = check_positive(timeout, "timeout")
        self._polling: PollPolicy = _of_kind(polling, PollPolicy, "polling") or PollPolicy()
        self._retry: RetryPolicy = _of_kind(retry, RetryPolicy, "retry") or RetryPolicy(
            window_s=limits.window_s
        )
        self._account: Account = Account(
            transport=transport or _make_transport(origin, limits, http_client),
            admission=Admission(limits),
            clock=clock or SystemClock(),
            rng=_of_kind(rng, random.Random, "rng") or random.Random(),  # noqa: S311 - jitter is no secret
        )
        self._waiting: Waiting = Waiting(
            self._account, CallbackHealth(within_s=self._polling.callback_within_s)
        )

    def __repr__(self) -> str:
        return f"<FluxClient {getattr(self, '_base_url', '(not made)')}>"

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "A client cannot be pickled: it holds the key and connections.",
            advice="Make one in each process.",
        )

    async def __aenter__(self) -> Self:
        self._account.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close: wait for submits in the air (up to 60 s), end all other calls with :class:`ClientClosed`.

        Closing twice does nothing more. Who is cancelled while closing leaves when it is done.
        """
        with anyio.CancelScope(shield=True):
            await self._account.aclose()

    def with_options(
        self,
        *,
        timeout: float | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
    ) -> FluxClient:
        """Return a client with other settings on the same connections, pace and account.

        Closing either closes both.
        """
        other = object.__new__(type(self))
        other._base_url = self._base_url
        other._fingerprint = self._fingerprint
        other._timeout = self._timeout if timeout is None else check_positive(timeout, "timeout")
        other._polling = _of_kind(polling, PollPolicy, "polling") or self._polling
        other._retry = _of_kind(retry, RetryPolicy, "retry") or self._retry
        other._account = self._account
        other._waiting = self._waiting
        return other

    @property
    def timeout(self) -> float:
        """Seconds a call may take where it does not say."""
        return self._timeout

    @property
    def fingerprint(self) -> str:
        """Tells accounts apart without telling the key."""
        return self._fingerprint

    @property
    def account(self) -> Account:
        """What this client shares with those made from it by :meth:`with_options`."""
        return self._account

    @property
    def unclaimed(self) -> tuple[UnclaimedTask, ...]:
        """Submits whose callers left before they could be told the task id, oldest first."""
        return self._account.unclaimed

    # --- one step each ------------------------------------------------------------------------------------

    async def submit(self, request: ImageRequest, *, timeout: float | None = None) -> TaskId:
        """Ask for one picture and return the id of the task, which is now charged.

        Waits for the account's pace first. A submit that was certainly not charged (never connected, 429,
        455) is made again by the retry policy; one whose answer is unknown never is. Cancelling this call
        does not cancel a request that has left: its task id then turns up in :attr:`unclaimed` and in the
        log.

        Raises:
            ConnectionLost, ServerError, UnexpectedResponse: Charge MAYBE: the task may exist.
            ApiError: The vendor refused.
            RequestNotSent: No connection could be made.
            DeadlineExceeded: ``timeout`` seconds passed before it could be sent.
        """
        check_request(request)
        deadline = self._deadline(timeout)
        async with self._account.call() as call:
            return await self._submit(request, deadline, call)

    async def record(self, task_id: TaskId | str, *, timeout: float | None = None) -> TaskRecord:
        """Look at a task once (API page, "Task Status Query").

        Raises:
            NotFoundError, InvalidRequestError: No such task, or not visible yet.
            FluxError: The look itself failed; the task goes on.
        """
        task = check_task_id(task_id)
        return await self._read(build_record_info(task), lambda answer: parse_record(answer, task), timeout)

    async def wait(
        self,
        task_id: TaskId | str,
        *,
        request: ImageRequest | None = None,
        age: float | None = None,
        timeout: float | None = None,
    ) -> ImageResult:
        """Wait until the task has its picture.

        For the first 90 s "no such task" means "not visible yet". Lost connections, 429, 455 and server
        errors mean "look again". One deadline ends it. However many wait for one task, one look serves them
        all, and :meth:`ring` wakes them.

        Args:
            task_id: The task.
            request: What was asked for, where you know it: how long such tasks take tells when to look.
            age: Seconds since it was submitted; left out, its record tells.
            timeout: Seconds to wait; left out, the client's.

        Raises:
            TaskFailed: The task ended without a picture.
            PollDeadlineExceeded: ``timeout`` seconds passed. The task may still finish and is paid.
            UnexpectedResponse: The task succeeded without a result URL.
            ApiError: No later look can help (401, 402, 403, 433, 505), or the task does not exist.
        """
        task = check_task_id(task_id)
        kind = None if request is None else kind_of(check_request(request))
        age = None if age is None else check_not_negative(age, "age")
        deadline = self._deadline(timeout)
        async with self._account.call():
            return await self._wait(task, deadline, self._span(timeout), kind, age)

    def ring(self, callback: CallbackEvent | TaskId | str) -> None:
        """Say that a callback came for a task: whoever waits for it looks now (API page, "Webhook Callback").

        This is what a :class:`flux_async.WebhookReceiver` in this process is given as ``on_callback``. It is
        only a reason to look, so a false one costs a look or two. One that comes before anybody waits is kept
        for whoever does.
        """
        task = callback.task_id if isinstance(callback, CallbackEvent) else check_task_id(callback)
        self._waiting.ring(task)

    async def credits(self, *, timeout: float | None = None) -> float:
        """Return the account's balance in credits."""
        return await self._read(build_credit(), parse_credit, timeout)

    async def download(
        self,
        image: ImageResult | str,
        destination: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        match_suffix: bool = False,
    ) -> Path:
        """Bring a picture to disk; the file appears under its name only when it is complete.

        The key is not sent. Redirects of the file host are followed, at most five.

        Args:
            image: A result, or the http(s) URL of a picture.
            destination: Where to; an existing file is replaced, missing folders are made.
            timeout: Seconds for the whole download; left out, the client's.
            match_suffix: Give the file the ending its content has: a JPEG may arrive where PNG was asked for.

        Returns:
            The path written.

        Raises:
            ResultExpired: The file host no longer has it.
            DownloadError: It cannot be fetched, is no picture, or the disk refused it.
        """
        url = check_http_url(image.result_url if isinstance(image, ImageResult) else image)
        path, deadline = check_destination(destination), self._deadline(timeout)
        caller_left = asyncio.Event()
        fetch = partial(self._fetch, url, path, deadline, caller_left, match_suffix=match_suffix)
        async with self._account.call():
            try:
                async with asyncio.timeout(self._span(timeout)):
                    return await self._account.download(fetch, deadline=deadline)
            except TimeoutError:
                raise DownloadError(f"The download took longer than {self._span(timeout):g} s.") from None
            finally:
                caller_left.set()

    # --- all of it ----------------------------------------------------------------------------------------

    async def run(self, request: ImageRequest, *, timeout: float | None = None) -> ImageResult:
        """Submit and wait, within one deadline. Raises what :meth:`submit` and :meth:`wait` raise.

        Cancelled after the submit, it leaves the task id in :attr:`unclaimed`, in the log, and as a note on
        the ``CancelledError``.
        """
        check_request(request)
        deadline = self._deadline(timeout)
        async with self._account.call() as call, self._account.task_in_flight(deadline):
            task_id = await self._submit(request, deadline, call)
            try:
                return await self._wait(task_id, deadline, self._span(timeout), kind_of(request), 0.0)
            except FluxError as error:
                raise _paid(error, task_id) from None
            except BaseException as gone:
                gone.add_note(f"Task {task_id} was submitted and is paid; take it up with client.wait().")
                self._account.leave(request, task_id)
                raise

    async def remove_text(self, image: str, *, timeout: float | None = None, **options: Any) -> ImageResult:
        """Return ``image`` without its text. ``options`` are the fields of :class:`EditRequest`."""
        return await self.run(EditRequest.text_removal(image, **options), timeout=timeout)

    async def edit(
        self, prompt: str, image: str, *, timeout: float | None = None, **options: Any
    ) -> ImageResult:
        """Return ``image`` changed as ``prompt`` says. ``options`` are the fields of :class:`EditRequest`."""
        return await self.run(EditRequest(prompt=prompt, input_image=image, **options), timeout=timeout)

    async def generate(
        self,
        prompt: str,
        *,
        aspect_ratio: AspectRatio | str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> ImageResult:
        """Return a picture of ``prompt``. ``options`` are the fields of :class:`GenerateRequest`."""
        request = GenerateRequest(prompt=prompt, aspect_ratio=aspect_ratio, **options)
        return await self.run(request, timeout=timeout)

    async def remove_text_many(self, images: Iterable[str | EditRequest], **options: Any) -> list[Outcome]:
        """Return one outcome per picture, in input order. ``options`` are those of :func:`run_batch`.

        Raises:
            FluxError: The batch was halted (key, credits …); with a ``journal`` the same call resumes it.
        """
        from flux_async.batch.gathered import gather  # noqa: PLC0415 - the batch is built upon the client

        return await gather(self, list(images), **options)

    # --- how ----------------------------------------------------------------------------------------------

    def _span(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_positive(timeout, "timeout")

    def _deadline(self, timeout: float | None) -> float:
        return self._account.clock.monotonic() + self._span(timeout)

    async def _submit(self, request: ImageRequest, deadline: float, call: Call) -> TaskId:
        """Submit, and again only where that cannot pay twice."""
        account, tries = self._account, 0
        while True:
            tries += 1
            try:
                return await account.submit(request, deadline=deadline, call=call)
            except FluxError as error:
                delay = self._retry.before_next_submit(error, tries, account.rng.random())
                if delay is None or account.clock.monotonic() + delay >= deadline:
                    raise
                logger.info("submit not accepted (%s), again in %.1f s", type(error).__name__, delay)
                await account.clock.sleep(delay)

    async def _read(self, wire: WireRequest, parse: Callable[[WireResponse], T], timeout: float | None) -> T:
        """Look, and again where the retry policy says so and the deadline allows."""
        account, tries, deadline = self._account, 0, self._deadline(timeout)
        async with account.call():
            while True:
                tries += 1
                try:
                    return parse(await self._look(wire, deadline))
                except FluxError as error:
                    delay = self._retry.before_next_look(error, tries, account.rng.random())
                    if delay is None or account.clock.monotonic() + delay >= deadline:
                        raise
                    await account.clock.sleep(delay)

    async def _look(self, wire: WireRequest, deadline: float) -> WireResponse:
        remaining = max(SHORTEST_LOOK_S, deadline - self._account.clock.monotonic())
        return await self._account.look(wire, timeout_s=min(LOOK_TIMEOUT_S, remaining), deadline=deadline)

    async def _wait(
        self, task_id: TaskId, deadline: float, span: float, kind: str | None, age: float | None
    ) -> ImageResult:
        return await self._waiting.wait(
            task_id, policy=self._polling, timeout_s=span, deadline=deadline, kind=kind, age=age
        )

    async def _fetch(
        self, url: str, path: Path, deadline: float, caller_left: asyncio.Event, *, match_suffix: bool
    ) -> Path:
        """The download itself. Its caller cannot cancel it: when he has left, it ends at the next chunk."""
        remaining = max(SHORTEST_LOOK_S, deadline - self._account.clock.monotonic())

        async def wanted(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for chunk in chunks:
                if caller_left.is_set():
                    raise DownloadError("The download was given up by its caller.")
                yield chunk

        async with self._account.transport.fetch(url, timeout_s=remaining) as file:
            if file.status in _GONE:
                raise ResultExpired("The file host no longer has this picture.", http_status=file.status)
            if file.status != _OK:
                raise DownloadError(f"The file host answered HTTP {file.status}.", http_status=file.status)
            return await write_picture(
                wanted(file.chunks()), path, match_suffix=match_suffix, given_up=caller_left.is_set
            )


def _find_origin(api_key: str | None, base_url: str | None) -> ApiOrigin:
    key = api_key if api_key is not None else os.environ.get("KIE_API_KEY")
    origin = ApiOrigin(key, base_url or os.environ.get("KIE_BASE_URL"))
    if origin.sends_key_in_clear:
        logger.warning("%s is plain http: the key crosses the network unencrypted", origin.base_url)
    return origin


def _make_transport(origin: ApiOrigin, limits: Limits, client: HttpClient | None) -> Transport:
    from flux_async import __version__  # noqa: PLC0415 - the package imports this module
    from flux_async.transport.httpx_ import HttpxTransport  # noqa: PLC0415 - httpx is slow to import

    return HttpxTransport(origin, limits, version=__version__, client=client)


def _of_kind(value: T | None, kind: type[T], name: str) -> T | None:
    if value is not None and not isinstance(value, kind):
        raise InvalidInput(f"{name} must be a {kind.__name__}, not {shown(value)}.")
    return value


def _paid(error: FluxError, task_id: TaskId) -> FluxError:
    """An error met while looking costs nothing, but the call it ends has paid for a task."""
    error.task_id = task_id
    if error.charge is Charge.NO and not isinstance(error, TaskFailed):
        error.charge = Charge.YES
        error.advice = f"{error.advice} {PollDeadlineExceeded.default_advice}"
    return error
