"""FluxClient: one image per call. Its parts make the requests: session, poller, batch and files."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar, Unpack

import anyio
import attrs

from flux_async.advice import python_words
from flux_async.api import VARIABLE, choose_api, load_api
from flux_async.api.common_api import build_credit, parse_credit
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.api.models_table import ApiName, api_for
from flux_async.api.parsing import check_task_id
from flux_async.batch.options import BatchOptions
from flux_async.batch.runner import gather
from flux_async.client_options import DEFAULT_TIMEOUT_S, ClientOptions
from flux_async.clock import Clock, SystemClock
from flux_async.errors import ConfigurationError, FluxError, TaskFailed
from flux_async.events import Observer, stream_of
from flux_async.files.download import download_file, download_to_sink
from flux_async.files.image_check import MAX_UPLOAD_BYTES
from flux_async.files.image_source import Source, choose
from flux_async.files.image_writer import SavedFile
from flux_async.files.sink import SavedResult, Sink
from flux_async.files.upload import Uploads
from flux_async.images import InputImage, check_http_url, must_be_uploaded
from flux_async.models import (
    TEXT_REMOVAL_PROMPT,
    CallbackEvent,
    EditRequest,
    GenerateRequest,
    ImageRequest,
    ImageResult,
    Job,
    Outcome,
    RequestOptions,
    TaskId,
    TaskRecord,
    UnclaimedTask,
    UploadedFile,
    check_request,
)
from flux_async.observed import ObservedCall, observed
from flux_async.policy import check_kind, check_not_negative, check_positive
from flux_async.policy.downloads import DownloadLimits
from flux_async.policy.generation_times import kind_of
from flux_async.policy.image_urls import check_reachable, mistyped_in_words
from flux_async.policy.polling import CallbackHealth, PollPolicy
from flux_async.policy.rate_limit import Limits, SubmitSpacing
from flux_async.policy.retry import RetryPolicy
from flux_async.poller import Poller, as_paid
from flux_async.rate_limiter import RateLimiter, check_rate_limiter
from flux_async.session import Call, Session
from flux_async.snapshots import ClientSnapshot, client_snapshot
from flux_async.submitter import log
from flux_async.telemetry.log_lines import LogLines
from flux_async.transport import Transport
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import TransportName, make_transport, name_of

if TYPE_CHECKING:
    from flux_async.transport.httpx_ import HttpClient

T = TypeVar("T")


class FluxClient:
    """Awaitable access to KIE AI's Flux Kontext API: ``async with FluxClient() as client: …``.

    Make one per process and event loop and keep it: it holds the connections, the rate limiter and the ids of
    tasks whose callers were cancelled. ``submit`` spends credits, once; ``record`` and ``wait`` poll;
    ``download`` saves the image; ``run`` and its short forms do all but the last in one call.

    Args:
        api_key: The key, sent to ``base_url`` and ``upload_url`` only; left out, ``KIE_API_KEY``.
        base_url: The API's origin; left out, ``KIE_BASE_URL``, else ``https://api.kie.ai``.
        upload_url: The upload host's origin; left out, ``KIE_UPLOAD_URL``, else the vendor's beside the
            vendor's API, and ``base_url`` itself beside any other.
        api: The vendor's API for submits, ``"kontext"`` or ``"jobs"``; left out, ``KIE_API``, else kontext. A
            model that only jobs has goes there all the same. A task is polled where it was submitted.
        timeout: Seconds a call may take from its start to the finished image.
        limits: The limits of the account and of this process; by default 20 submits in 10 s.
        polling: When to poll a task; left out, it is learned.
        retry: When a request is repeated; never one that may have been charged.
        download_limits: How large a result may be, and how long its host may be silent.
        rate_limiter: Shares the account's limit with other processes, for example
            :class:`flux_async.RedisRateLimiter`; the caller closes it.
        http_client: An ``httpx.AsyncClient`` or ``httpx2.AsyncClient`` for the API; the caller closes it.
        transport: ``"httpx"``, ``"httpx2"`` or ``"aiohttp"``, or a transport of your own, but not with
            ``http_client``; left out, ``KIE_TRANSPORT``, else httpx, whatever is installed.
        clock: The reader of time.
        rng: The source of jitter, for example ``random.Random(1)`` in a test.
        observers: Called with the events of :mod:`flux_async.events`.

    Raises:
        ConfigurationError: No key, or an address, API, client or transport that cannot be used.
        MissingExtra: The library that ``transport`` names is not installed.
        InvalidInput: A number out of range.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        upload_url: str | None = None,
        api: ApiName | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        limits: Limits | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        download_limits: DownloadLimits | None = None,
        rate_limiter: RateLimiter | None = None,
        http_client: HttpClient | None = None,
        transport: TransportName | Transport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        try:
            credentials = Credentials.find(api_key, base_url, upload_url)
        except ConfigurationError as refused:
            api_key = None  # here and below: tracebacks can show local variables
            raise refused.with_traceback(None) from None
        api_key = None
        from flux_async import __version__  # noqa: PLC0415 - the package imports this module

        limits = Limits() if limits is None else check_kind(limits, Limits, "limits")
        rng = random.Random() if rng is None else check_kind(rng, random.Random, "rng")  # noqa: S311 - jitter
        defaults = ClientOptions(retry=RetryPolicy(window_s=limits.window_s))
        self._credentials: Credentials = credentials
        self._options: ClientOptions = defaults.changed(
            timeout=timeout, polling=polling, retry=retry, download_limits=download_limits
        )
        self._session: Session = Session(
            transport=make_transport(transport, credentials, version=__version__, client=http_client),
            spacing=SubmitSpacing(limits),
            rate_limiter=check_rate_limiter(rate_limiter),
            clock=clock or SystemClock(),
            api=choose_api(api, os.environ.get(VARIABLE, "")),
            scrub=credentials.scrub,
            rng=rng,
            address=credentials.base_url,
            upload_address=credentials.upload_url,
            events=stream_of([LogLines(), *observers]),
        )
        health = CallbackHealth(within_s=self._options.polling.callback_within_s)
        self._poller: Poller = Poller(self._session, health)

    def __repr__(self) -> str:
        if not hasattr(self, "_session"):
            return "<FluxClient (not made)>"
        return f"<FluxClient {self._credentials.base_url} through {self.transport_name}>"

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "A client cannot be pickled: it holds the key and connections.",
            advice="Make one in each process.",
        )

    def __enter__(self) -> NoReturn:
        raise ConfigurationError(
            "FluxClient is an asynchronous context manager.",
            advice="Write `async with FluxClient() as client:` inside a coroutine.",
        )

    def __exit__(self, *_: object) -> None:
        """Exist, so that ``with`` reaches :meth:`__enter__` and its advice."""

    async def __aenter__(self) -> Self:
        self._session.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close: wait for submits in flight (up to 60 s), end all other calls with :class:`ClientClosed`.

        A second call does nothing more. A caller cancelled meanwhile waits until all is closed.
        """
        with anyio.CancelScope(shield=True):
            await self._session.aclose()

    def with_options(
        self,
        *,
        timeout: float | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        download_limits: DownloadLimits | None = None,
    ) -> FluxClient:
        """Return a client with other settings on the same session. Closing either closes both."""
        options = self._options.changed(
            timeout=timeout, polling=polling, retry=retry, download_limits=download_limits
        )
        return _ClientWithOptions(self._credentials, self._session, self._poller, options)

    @property
    def timeout(self) -> float:
        """Seconds a call may take by default."""
        return self._options.timeout

    @property
    def transport_name(self) -> str:
        """Library that makes the requests; of a transport of your own, the name of its class."""
        return name_of(self._session.transport)

    @property
    def api(self) -> ApiName:
        """The API that requests are submitted to, where it has their model."""
        return self._session.api

    @property
    def fingerprint(self) -> str:
        """A digest that differs between keys and does not reveal the key."""
        return self._credentials.fingerprint

    @property
    def session(self) -> Session:
        """Connections, limits and unclaimed tasks, shared with clients made by :meth:`with_options`."""
        return self._session

    @property
    def poller(self) -> Poller:
        """Waits for tasks; shared like :attr:`session`."""
        return self._poller

    @property
    def polling(self) -> PollPolicy:
        """When tasks are polled."""
        return self._options.polling

    @property
    def unclaimed(self) -> tuple[UnclaimedTask, ...]:
        """Submits whose callers were cancelled before they received the task id, oldest first."""
        return self._session.unclaimed

    def check_reachable(self, request: ImageRequest) -> None:
        """Refuse a request with an image that the vendor can certainly not fetch.

        ``submit``, ``run`` and batches do this before anything is spent. An API in a private network may
        reach private addresses, so nothing is refused there.

        Raises:
            InvalidInput: The image is at a private or malformed address, or is a page around an image.
        """
        if isinstance(request, EditRequest) and isinstance(request.input_image, str):
            check_reachable(request.input_image, api_host=self._credentials.host)

    # --- one step each ------------------------------------------------------------------------------------

    async def submit(self, request: ImageRequest, *, timeout: float | None = None) -> TaskId:
        """Submit a request and return the id of its task, which is now charged.

        Waits for the rate limiter first. A submit that was certainly not charged (never connected, 429, 455)
        is repeated by the retry policy; one whose answer is unknown never is. Cancelling this call does not
        cancel a request in flight: its task id is then in :attr:`unclaimed` and in the log.

        Raises:
            ConnectionLost, ServerError, UnexpectedResponse: Charge MAYBE: the task may exist.
            ApiError: The vendor refused.
            RequestNotSent: No connection could be made.
            DeadlineExceeded: ``timeout`` seconds passed before it could be sent.
        """
        check_request(request)
        deadline, api = self._deadline(timeout), api_for(request.model, self.api, request.aspect_ratio)
        with observed(self._session, request, api, waits=False) as seen:
            async with self._session.call() as call:
                return (await self._submit(request, deadline, call, seen))[0]

    async def record(
        self, task_id: TaskId | str, *, api: ApiName | None = None, timeout: float | None = None
    ) -> TaskRecord:
        """Poll a task once and return its record (API page, "Task Status Query").

        Args:
            task_id: The task.
            api: The API that it was submitted to; left out, where this client has submitted it, else the
                client's.
            timeout: Seconds to wait; left out, the client's.

        Raises:
            NotFoundError: No such task, or not visible yet.
            FluxError: The poll itself failed; the task continues.
        """
        task = check_task_id(task_id)
        wire = load_api(self._api_of(task, api))
        return await self._read(
            wire.build_status(task), lambda answer: wire.parse_status(answer, task), timeout
        )

    async def wait(
        self,
        task_id: TaskId | str,
        *,
        request: ImageRequest | None = None,
        api: ApiName | None = None,
        age: float | None = None,
        timeout: float | None = None,
        expects_callback: bool = False,
    ) -> ImageResult:
        """Return the task's image when it has one.

        For the first 90 s "no such task" means "not visible yet". After lost connections, 429, 455 and server
        errors it is polled again. One deadline ends it. All callers that wait for one task share its polls,
        and :meth:`notify` wakes them.

        Args:
            task_id: The task.
            request: The request it was made from, if you know it: polls then follow how long such tasks take,
                and the task's record is compared with it (:class:`flux_async.Echo`).
            api: The API that it was submitted to; left out, where this client has submitted it, else where
                ``request`` would go, else the client's.
            age: Seconds since it was submitted; left out, it is read from its record.
            timeout: Seconds to wait; left out, the client's.
            expects_callback: The vendor was given an address for this task that leads to :meth:`notify`.
                While callbacks come, such a task is polled rarely.

        Raises:
            TaskFailed: The task ended without an image.
            PollDeadlineExceeded: ``timeout`` seconds passed. The task may still finish and is paid.
            UnexpectedResponse: The task succeeded without a result URL.
            TaskMismatch: The record shows another request of this client's than ``request``, or an unknown
                one although three records have shown the very request that was sent.
            ApiError: No later poll can help (401, 402, 403, 433, 505), or the task does not exist.
        """
        task = check_task_id(task_id)
        kind = None if request is None else kind_of(check_request(request))
        age = None if age is None else check_not_negative(age, "age")
        span_s = self._span(timeout)
        async with self._session.call():
            image = await self._poller.wait(
                task,
                api=self._api_of(task, api, request),
                policy=self._options.polling,
                timeout_s=span_s,
                deadline=self._session.clock.monotonic() + span_s,
                kind=kind,
                age=age,
                expects_callback=expects_callback,
            )
        return image if request is None else self._session.submitter.with_echo(image, request)

    def notify(self, callback: CallbackEvent | TaskId | str) -> None:
        """Poll a task now, because a callback came for it (API page, "Webhook Callback").

        Give it to a :class:`flux_async.WebhookReceiver` in this process as ``on_callback``. It only triggers
        a poll, so a false one costs a poll or two. Before a caller waits for the task, it is kept for the
        first that does. It may be called from any thread and any event loop.
        """
        task = callback.task_id if isinstance(callback, CallbackEvent) else check_task_id(callback)
        self._session.run_on_loop(partial(self._poller.notify, task))

    async def credits(self, *, timeout: float | None = None) -> float:
        """Return the account's balance in credits."""
        balance = await self._read(build_credit(), parse_credit, timeout)
        self._session.balance = (balance, self._session.clock.wall())
        return balance

    def snapshot(self) -> ClientSnapshot:
        """Return what is in flight, what pauses and what was learned, for health checks; makes no request."""
        return client_snapshot(self._session, self._poller)

    async def download(
        self,
        image: ImageResult | str,
        destination: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        match_suffix: bool = False,
        retry: bool = True,
    ) -> SavedFile:
        """Download an image to disk; return the path of the file, the digest of its bytes, and its size.

        The file appears under its name only when it is whole. Its host receives neither key nor cookies.
        Redirects are followed, at most five, and only to public addresses, or to the kind the API itself has.
        A download that breaks off is resumed, if the host offers that; a refused link is replaced by a fresh
        one of the vendor's. Every failure that may pass (:attr:`DownloadError.retryable`) is retried within
        ``timeout``, also 404 and 410: a new result may not be on every server yet.

        Args:
            image: A result, or the http(s) URL of an image.
            destination: Path of the file; an existing file is replaced, missing folders are made.
            timeout: Seconds for the whole download; left out, the client's.
            match_suffix: Give the file the ending its content has: a JPEG may arrive where PNG was asked for.
            retry: False makes one try only.

        Raises:
            ResultExpired: The file host refuses it, and it is older than the vendor keeps results.
            AddressForbidden: Its address is forbidden, for example a private one.
            DownloadCutShort, DownloadTimedOut: It did not arrive whole.
            NotAnImage, ResultTooLarge: It is no image, or larger than the limits allow.
            DiskFull, FolderNotWritable: The disk refused it, and would refuse the next one, too.
            DownloadError: It cannot be downloaded for another reason.
        """
        return await download_file(
            self._session,
            image,
            destination,
            limits=self._options.download_limits,
            span_s=self._span(timeout),
            match_suffix=match_suffix,
            retry=retry,
        )

    async def save(
        self, image: ImageResult, sink: Sink, *, job: Job, name: str, timeout: float | None = None
    ) -> SavedResult:
        """Download a result once and save it in ``sink``, under ``name`` with the ending its content has.

        The sink receives the image whole and checked. It raises what :meth:`download` raises; what the sink
        raises is a :class:`DownloadError`, and a sink that cannot save is an :class:`InvalidInput`.
        """
        limits, span_s = self._options.download_limits, self._span(timeout)
        return await download_to_sink(
            self._session, image, sink, job=job, name=name, limits=limits, span_s=span_s
        )

    async def upload(
        self,
        source: Source,
        *,
        name: str | None = None,
        timeout: float | None = None,
        max_bytes: int = MAX_UPLOAD_BYTES,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> UploadedFile:
        """Upload an image to an address that the vendor can fetch, for 24 hours; free of charge.

        The address cannot be guessed, but anyone who has it can fetch the image. A lost upload is repeated
        under a new name.

        Args:
            source: A path, the bytes of an image, or an async iterable of them. JPEG, PNG or WebP.
            name: A part of the address, for a person to recognise.
            timeout: Seconds for all of it; left out, the client's.
            max_bytes: Refuse a larger file. The vendor may refuse more than 10 MB, so that is logged.
            on_progress: Called with the bytes sent and the bytes in all; a new try begins at zero.

        Raises:
            InvalidInput: It is no such image, too large, or it changed while it was read.
            AuthenticationError: The key was refused.
            UploadRejected: The upload host refused the file.
            RequestNotSent, ConnectionLost, ServerError, UnexpectedResponse: Every try failed.
            DeadlineExceeded: ``timeout`` seconds passed.
        """
        most = int(check_positive(max_bytes, "max_bytes"))
        return await self._uploads.send(
            source, deadline=self._deadline(timeout), max_bytes=most, name=name, on_progress=on_progress
        )

    async def upload_from_url(
        self, url: str, *, name: str | None = None, timeout: float | None = None
    ) -> UploadedFile:
        """Have the upload host fetch an image from another address and keep it for 24 hours; free of charge.

        For addresses that the vendor's generator cannot fetch reliably. It raises what :meth:`upload` raises.
        """
        check_reachable(check_http_url(url, "url"), api_host=self._credentials.host)
        return await self._uploads.send_url(url, deadline=self._deadline(timeout), name=name)

    # --- all steps ----------------------------------------------------------------------------------------

    async def run(self, request: ImageRequest, *, timeout: float | None = None) -> ImageResult:
        """Submit and wait, within one deadline. Raises what :meth:`submit` and :meth:`wait` raise.

        If this call is cancelled after the submit, the task id is in :attr:`unclaimed`, in the log, and in a
        note on the ``CancelledError``.
        """
        check_request(request)
        api, span_s = api_for(request.model, self.api, request.aspect_ratio), self._span(timeout)
        deadline = self._session.clock.monotonic() + span_s
        with observed(self._session, request, api) as seen:
            async with self._session.call() as call, self._session.task_in_flight(deadline):
                task_id, sent = await self._submit(request, deadline, call, seen)
                try:
                    image = await self._poller.wait(
                        task_id,
                        api=api,
                        policy=self._options.polling,
                        timeout_s=span_s,
                        deadline=deadline,
                        kind=kind_of(request),
                        age=0.0,
                        job=seen.job,
                        trace=seen.trace,
                    )
                except FluxError as error:
                    if isinstance(error, TaskFailed) and error.record is not None:
                        self._session.submitter.check_echo(error.record, sent)
                    raise as_paid(error, task_id, api) from None
                except BaseException as cancelled:
                    advice = python_words(task_id, api)["wait"]
                    cancelled.add_note(f"Task {task_id} was submitted and is paid; {advice}.")
                    self._session.keep_unclaimed(request, api, task_id)
                    raise
                seen.image = self._session.submitter.with_echo(image, sent)
                return seen.image

    async def remove_text(
        self,
        image: InputImage,
        *,
        prompt: str = TEXT_REMOVAL_PROMPT,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> ImageResult:
        """Return ``image``, a URL or a file, without its text. ``options`` are fields of EditRequest."""
        request = EditRequest.text_removal(await choose(image), prompt=prompt, **options)
        return await self.run(request, timeout=timeout)

    async def edit(
        self,
        prompt: str,
        image: InputImage,
        *,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> ImageResult:
        """Return ``image``, a URL or a file, changed by ``prompt``. ``options`` are fields of EditRequest."""
        request = EditRequest(prompt=prompt, input_image=await choose(image), **options)
        return await self.run(request, timeout=timeout)

    async def generate(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> ImageResult:
        """Return an image of ``prompt``. ``options`` are fields of GenerateRequest."""
        return await self.run(GenerateRequest(prompt=prompt, **options), timeout=timeout)

    async def remove_text_many(
        self, images: Iterable[InputImage | EditRequest], **options: Unpack[BatchOptions]
    ) -> list[Outcome]:
        """Return one outcome per image, in input order. ``options`` are those of :func:`run_batch`.

        A halt (key, credits …) raises nothing, so that no result is lost: each image that was not done is a
        ``Failed`` with the error that halted the batch. With a ``journal`` the same call resumes them.

        Raises:
            InvalidInput: ``images`` is one image instead of a list of them.
            ConfigurationError, JournalError: The batch could not start; nothing was sent.
        """
        return await gather(self, images, **options)

    # --- helpers ------------------------------------------------------------------------------------------

    def _span(self, timeout: float | None) -> float:
        return self._options.timeout if timeout is None else check_positive(timeout, "timeout")

    def _api_of(self, task_id: TaskId, api: ApiName | None, request: ImageRequest | None = None) -> ApiName:
        return self._session.api_of(task_id, request) if api is None else choose_api(api)

    def _deadline(self, timeout: float | None) -> float:
        return self._session.clock.monotonic() + self._span(timeout)

    @property
    def _uploads(self) -> Uploads:
        return Uploads(session=self._session, retry=self._options.retry)

    async def _submit(
        self, request: ImageRequest, deadline: float, call: Call, seen: ObservedCall
    ) -> tuple[TaskId, ImageRequest]:
        """Upload the image if it is a file, and submit; return the task and the request as it was sent."""
        self.check_reachable(request)
        if (words := mistyped_in_words(request)) is not None:
            log(logging.WARNING, "%s", words)
        if isinstance(request, EditRequest) and must_be_uploaded(request.input_image):
            uploaded = await self._uploads.send(request.input_image, deadline=deadline)
            request = attrs.evolve(request, input_image=uploaded.url)
        submit = partial(self._session.submit, retry=self._options.retry, job=seen.job, trace=seen.trace)
        seen.task_id = await submit(request, deadline=deadline, call=call)
        return seen.task_id, request

    async def _read(self, wire: WireRequest, parse: Callable[[WireResponse], T], timeout: float | None) -> T:
        """Make a request that costs nothing, with retries, and return its parsed answer."""
        deadline, retry = self._deadline(timeout), self._options.retry
        async with self._session.call():
            return await self._session.read(wire, parse, deadline=deadline, retry=retry)


class _ClientWithOptions(FluxClient):
    """A client with options of its own that shares everything else with another one."""

    def __init__(
        self, credentials: Credentials, session: Session, poller: Poller, options: ClientOptions
    ) -> None:
        self._credentials = credentials
        self._session = session
        self._poller = poller
        self._options = options
