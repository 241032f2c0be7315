"""The client: one image, awaited.

``submit`` spends credits, once; ``record`` and ``wait`` look, as often as it takes; ``download`` brings the
picture home; ``run`` and its short forms do all but the last in one call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, Unpack

import anyio
import attrs

from flux_async.advice import python_words
from flux_async.api.common_api import build_credit, parse_credit
from flux_async.api.echo import compare
from flux_async.api.envelope import WireRequest, WireResponse
from flux_async.api.parsing import check_task_id, encoded_as_by_a_browser
from flux_async.api.stored_requests import store_request
from flux_async.batch.options import BatchOptions
from flux_async.batch.runner import gather
from flux_async.clock import Clock, SystemClock
from flux_async.errors import (
    Charge,
    ConfigurationError,
    FluxError,
    InvalidInput,
    TaskFailed,
    shown,
)
from flux_async.files.download import DownloadOrder, download, download_once, keep_as_file
from flux_async.files.image_check import MAX_UPLOAD_BYTES
from flux_async.files.image_source import Source, choose
from flux_async.files.image_writer import SavedFile, check_destination
from flux_async.files.sink import SavedResult, Sink, path_in, save_in
from flux_async.files.upload import Uploads, too_late
from flux_async.models import (
    TEXT_REMOVAL_PROMPT,
    CallbackEvent,
    Echo,
    EditRequest,
    GenerateRequest,
    ImageRequest,
    ImageResult,
    InputImage,
    Job,
    LocalImage,
    Outcome,
    RequestOptions,
    TaskId,
    TaskRecord,
    UnclaimedTask,
    UploadedFile,
    check_http_url,
    check_request,
    without_query,
)
from flux_async.policy import check_not_negative, check_positive
from flux_async.policy.downloads import DownloadLimits
from flux_async.policy.generation_times import kind_of
from flux_async.policy.image_urls import check_reachable, mistyped_in_words
from flux_async.policy.polling import CallbackHealth, PollPolicy
from flux_async.policy.rate_limit import Limits, RateLimiter
from flux_async.policy.retry import RetryPolicy
from flux_async.poller import Poller, as_paid
from flux_async.session import Call, Session
from flux_async.submitter import log
from flux_async.transport import Transport
from flux_async.transport.background import Deadline
from flux_async.transport.credentials import Credentials
from flux_async.transport.factory import TransportName, make_transport, name_of

if TYPE_CHECKING:
    from flux_async.transport.httpx_ import HttpClient

logger: logging.Logger = logging.getLogger("flux_async")

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 300.0


@attrs.frozen(kw_only=True)
class ClientOptions:
    """Settings of a client that :meth:`FluxClient.with_options` changes.

    Attributes:
        timeout: Seconds a call may take.
        polling: When to poll a task.
        retry: When a request is made again.
        download_limits: Size of a result, and silence of its host.
    """

    timeout: float = DEFAULT_TIMEOUT_S
    polling: PollPolicy = attrs.field(factory=PollPolicy)
    retry: RetryPolicy
    download_limits: DownloadLimits = attrs.field(factory=DownloadLimits)

    def changed(
        self,
        *,
        timeout: float | None,
        polling: PollPolicy | None,
        retry: RetryPolicy | None,
        download_limits: DownloadLimits | None,
    ) -> ClientOptions:
        """Return these options with those that are given in their place.

        Raises:
            InvalidInput: A value of the wrong type, or out of range.
        """
        return ClientOptions(
            timeout=self.timeout if timeout is None else check_positive(timeout, "timeout"),
            polling=_of_kind(polling, PollPolicy, "polling") or self.polling,
            retry=_of_kind(retry, RetryPolicy, "retry") or self.retry,
            download_limits=_of_kind(download_limits, DownloadLimits, "download_limits")
            or self.download_limits,
        )


class FluxClient:
    """Awaitable access to KIE AI's Flux Kontext API.

    Make one per process and event loop, keep it, close it: it holds the connections, the account's pace and
    the ids of tasks whose callers left. Use it as ``async with FluxClient() as client:``.

    Args:
        api_key: The key; left out, the environment variable ``KIE_API_KEY``. It goes to ``base_url`` and
            ``upload_url`` only.
        base_url: The API's origin; left out, ``KIE_BASE_URL``, else ``https://api.kie.ai``.
        upload_url: The upload host's origin; left out, ``KIE_UPLOAD_URL``, else the vendor's beside the
            vendor's API, and ``base_url`` itself beside any other.
        timeout: Seconds a call may take from its start to the finished picture.
        limits: The account's and this process's limits; 20 submits in 10 s unless said otherwise.
        polling: The rhythm of looking at a task; left out, it is learned.
        retry: When a request is made again; never one that may have been charged.
        download_limits: How large a result may be, and how long its host may be silent.
        http_client: An ``httpx.AsyncClient`` or ``httpx2.AsyncClient`` for the API; it stays yours to close.
        transport: Library that makes the requests: ``"httpx"``, ``"httpx2"`` or ``"aiohttp"``; or a
            transport of your own. Left out, ``KIE_TRANSPORT``, else httpx, whatever is installed. Not
            together with ``http_client``.
        clock: The reader of time.
        rng: The source of jitter, for example ``random.Random(1)`` in a test.

    Raises:
        ConfigurationError: No key, or an address, client or transport that cannot be used.
        MissingExtra: The library that ``transport`` names is not installed.
        InvalidInput: A number out of range.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        upload_url: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        limits: Limits | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        download_limits: DownloadLimits | None = None,
        http_client: HttpClient | None = None,
        transport: TransportName | Transport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        try:
            credentials = _find_credentials(api_key, base_url, upload_url)
        except ConfigurationError as refused:
            api_key = None  # here and below: tracebacks can show local variables
            raise refused.with_traceback(None) from None
        api_key = None
        from flux_async import __version__  # noqa: PLC0415 - the package imports this module

        limits = _of_kind(limits, Limits, "limits") or Limits()
        defaults = ClientOptions(retry=RetryPolicy(window_s=limits.window_s))
        self._credentials: Credentials = credentials
        self._options: ClientOptions = defaults.changed(
            timeout=timeout, polling=polling, retry=retry, download_limits=download_limits
        )
        self._session: Session = Session(
            transport=make_transport(transport, credentials, version=__version__, client=http_client),
            rate_limiter=RateLimiter(limits),
            clock=clock or SystemClock(),
            scrub=credentials.scrub,
            rng=_of_kind(rng, random.Random, "rng") or random.Random(),  # noqa: S311 - jitter is no secret
            address=credentials.base_url,
        )
        self._poller: Poller = Poller(
            self._session, CallbackHealth(within_s=self._options.polling.callback_within_s)
        )

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
        """Close: wait for submits in the air (up to 60 s), end all other calls with :class:`ClientClosed`.

        Closing twice does nothing more. Who is cancelled while closing leaves when it is done.
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
        """Return a client with other settings on the same connections, pace and account.

        Closing either closes both.
        """
        options = self._options.changed(
            timeout=timeout, polling=polling, retry=retry, download_limits=download_limits
        )
        return _ClientWithOptions(self._credentials, self._session, self._poller, options)

    @property
    def timeout(self) -> float:
        """Seconds a call may take where it does not say."""
        return self._options.timeout

    @property
    def transport_name(self) -> str:
        """Which library makes the requests; of a transport of your own, the name of its class."""
        return name_of(self._session.transport)

    @property
    def fingerprint(self) -> str:
        """Tells accounts apart without telling the key."""
        return self._credentials.fingerprint

    @property
    def session(self) -> Session:
        """What this client shares with those made from it by :meth:`with_options`."""
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
        """Submits whose callers left before they could be told the task id, oldest first."""
        return self._session.unclaimed

    def check_reachable(self, request: ImageRequest) -> None:
        """Refuse a request whose image the vendor can certainly not fetch.

        ``submit``, ``run`` and batches do this before anything is spent. Beside an API in a private network
        nothing is refused: it may reach what is there.

        Raises:
            InvalidInput: The image is at a private or malformed address, or is a page around an image.
        """
        if isinstance(request, EditRequest) and isinstance(request.input_image, str):
            check_reachable(request.input_image, api_host=self._credentials.host)

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
        async with self._session.call() as call:
            return await self._submit(request, deadline, call)

    async def record(self, task_id: TaskId | str, *, timeout: float | None = None) -> TaskRecord:
        """Look at a task once (API page, "Task Status Query").

        Raises:
            NotFoundError: No such task, or not visible yet.
            FluxError: The look itself failed; the task goes on.
        """
        task = check_task_id(task_id)
        api = self._session.api
        return await self._read(
            api.build_status(task), lambda answer: api.parse_status(answer, task), timeout
        )

    async def wait(
        self,
        task_id: TaskId | str,
        *,
        request: ImageRequest | None = None,
        age: float | None = None,
        timeout: float | None = None,
        expects_callback: bool = False,
    ) -> ImageResult:
        """Wait until the task has its picture.

        For the first 90 s "no such task" means "not visible yet". Lost connections, 429, 455 and server
        errors mean "look again". One deadline ends it. However many wait for one task, one look serves them
        all, and :meth:`notify` wakes them.

        Args:
            task_id: The task.
            request: What was asked for, where you know it: how long such tasks take tells when to look, and
                the task's record is compared with it (:class:`flux_async.Echo`).
            age: Seconds since it was submitted; left out, its record tells.
            timeout: Seconds to wait; left out, the client's.
            expects_callback: The vendor was given an address for this task that leads to :meth:`notify`.
                While callbacks come, such a task is polled rarely.

        Raises:
            TaskFailed: The task ended without a picture.
            PollDeadlineExceeded: ``timeout`` seconds passed. The task may still finish and is paid.
            UnexpectedResponse: The task succeeded without a result URL.
            TaskMismatch: The task's record shows another request of this client's than ``request``, or one
                that is unknown although three records have shown the very request that was sent.
            ApiError: No later look can help (401, 402, 403, 433, 505), or the task does not exist.
        """
        task = check_task_id(task_id)
        kind = None if request is None else kind_of(check_request(request))
        age = None if age is None else check_not_negative(age, "age")
        async with self._session.call():
            image = await self._poller.wait(
                task,
                policy=self._options.polling,
                timeout_s=self._span(timeout),
                deadline=self._deadline(timeout),
                kind=kind,
                age=age,
                expects_callback=expects_callback,
            )
        return image if request is None else self._with_echo(image, request)

    def notify(self, callback: CallbackEvent | TaskId | str) -> None:
        """Say that a callback came for a task: whoever waits for it looks now (API page, "Webhook Callback").

        This is what a :class:`flux_async.WebhookReceiver` in this process is given as ``on_callback``. It is
        only a reason to look, so a false one costs a look or two. One that comes before anybody waits is kept
        for whoever does. It may be called from any thread and any event loop.
        """
        task = callback.task_id if isinstance(callback, CallbackEvent) else check_task_id(callback)
        self._session.run_on_loop(partial(self._poller.notify, task))

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
        retry: bool = True,
    ) -> SavedFile:
        """Download an image to disk; the file appears under its name only when it is whole.

        The file host sees neither key nor cookies. Redirects are followed, at most five, and only to public
        addresses, or to the kind the API itself has. A download that breaks off goes on where it stopped, if
        the host offers that; a link that is refused is replaced by a fresh one of the vendor's. Every failure
        that may pass (:attr:`DownloadError.retryable`) is tried again within ``timeout``, also 404 and 410:
        a result that is seconds old may not be on every server yet.

        Args:
            image: A result, or the http(s) URL of a picture.
            destination: Where to; an existing file is replaced, missing folders are made.
            timeout: Seconds for the whole download; left out, the client's.
            match_suffix: Give the file the ending its content has: a JPEG may arrive where PNG was asked for.
            retry: False makes one try only.

        Returns:
            The path of the file, the digest of its bytes, and its size.

        Raises:
            ResultExpired: The file host refuses it, and it is older than the vendor keeps results (14 days).
            AddressForbidden: Its address leads where a download must not go.
            DownloadCutShort, DownloadTimedOut: Not all of it came.
            NotAnImage, ResultTooLarge: It is no picture, or larger than the limits allow.
            DiskFull, FolderNotWritable: The disk refused it, and would refuse the next one, too.
            DownloadError: It cannot be fetched for another reason.
        """
        path = check_destination(destination)
        order = DownloadOrder(
            url=_result_url(image),
            destination=path,
            name=path.name,
            keep=partial(keep_as_file, path.parent),
            limits=self._options.download_limits,
            span_s=self._span(timeout),
            match_suffix=match_suffix,
        )
        async with self._session.call():
            if retry:
                return await download(self._session, order, _submitted_at(image))
            return await download_once(self._session, order)

    async def save(
        self, image: ImageResult, sink: Sink, *, job: Job, name: str, timeout: float | None = None
    ) -> SavedResult:
        """Download a result once and save it in ``sink``, under ``name`` with the ending its content has.

        The sink receives the image whole and checked. It raises what :meth:`download` raises; what the
        sink raises is a :class:`DownloadError`.
        """
        order = DownloadOrder(
            url=_result_url(image),
            destination=path_in(sink, name),
            name=name,
            keep=partial(save_in, sink, job),
            limits=self._options.download_limits,
            span_s=self._span(timeout),
            match_suffix=True,
        )
        async with self._session.call():
            return await download_once(self._session, order)

    async def upload(
        self,
        source: Source,
        *,
        name: str | None = None,
        timeout: float | None = None,
        max_bytes: int = MAX_UPLOAD_BYTES,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> UploadedFile:
        """Put a picture where the vendor can fetch it, for 24 hours; free of charge.

        Whoever knows the address can fetch it, too; nobody can guess it. An upload that was lost is made
        again under a new name.

        Args:
            source: A path, the bytes of a picture, or an async iterable of them. JPEG, PNG or WebP.
            name: What the address is to contain, for a person to recognise.
            timeout: Seconds for all of it; left out, the client's.
            max_bytes: Refuse a larger file. More than 10 MB is told in the log: the vendor may refuse it.
            on_progress: Told the bytes sent and the bytes in all; a new try begins at zero.

        Raises:
            InvalidInput: It is no such picture, too large, or it changed while it was read.
            AuthenticationError: The key was refused.
            UploadRejected: The upload host refused the file.
            RequestNotSent, ConnectionLost, ServerError, UnexpectedResponse: Every try failed.
            DeadlineExceeded: ``timeout`` seconds passed.
        """
        most = int(check_positive(max_bytes, "max_bytes"))
        deadline = self._deadline(timeout)
        send = self._uploads.send(
            source, deadline=deadline, max_bytes=most, name=name, on_progress=on_progress
        )
        return await self._uploading(send, deadline)

    async def upload_from_url(
        self, url: str, *, name: str | None = None, timeout: float | None = None
    ) -> UploadedFile:
        """Have the upload host fetch a picture from elsewhere, and keep it for 24 hours; free of charge.

        For addresses that the vendor's generator cannot fetch reliably. It raises what :meth:`upload` raises.
        """
        deadline = self._deadline(timeout)
        check_reachable(check_http_url(url, "url"), api_host=self._credentials.host)
        return await self._uploading(self._uploads.send_url(url, deadline=deadline, name=name), deadline)

    # --- all of it ----------------------------------------------------------------------------------------

    async def run(self, request: ImageRequest, *, timeout: float | None = None) -> ImageResult:
        """Submit and wait, within one deadline. Raises what :meth:`submit` and :meth:`wait` raise.

        Cancelled after the submit, it leaves the task id in :attr:`unclaimed`, in the log, and as a note on
        the ``CancelledError``.
        """
        check_request(request)
        deadline = self._deadline(timeout)
        async with self._session.call() as call, self._session.task_in_flight(deadline):
            sent = await self._sendable(request, deadline)
            task_id = await self._submit(sent, deadline, call)
            try:
                image = await self._poller.wait(
                    task_id,
                    policy=self._options.polling,
                    timeout_s=self._span(timeout),
                    deadline=deadline,
                    kind=kind_of(request),
                    age=0.0,
                )
            except FluxError as error:
                if isinstance(error, TaskFailed) and error.record is not None:
                    self._check_echo(error.record, sent)
                log(logging.INFO, "task %s brought no image: %s", task_id, type(error).__name__)
                raise as_paid(error, task_id) from None
            except BaseException as gone:
                again = python_words(task_id)["wait"]
                gone.add_note(f"Task {task_id} was submitted and is paid; {again}.")
                self._session.keep_unclaimed(request, task_id)
                raise
            log(logging.INFO, "task %s succeeded: %s", task_id, without_query(image.result_url))
            return self._with_echo(image, sent)

    async def remove_text(
        self,
        image: InputImage,
        *,
        prompt: str = TEXT_REMOVAL_PROMPT,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> ImageResult:
        """Return ``image``, an http(s) URL or a file, without its text.

        ``options`` are the fields of :class:`EditRequest`.
        """
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
        """Return ``image``, an http(s) URL or a file, changed as ``prompt`` says.

        ``options`` are the fields of :class:`EditRequest`.
        """
        request = EditRequest(prompt=prompt, input_image=await choose(image), **options)
        return await self.run(request, timeout=timeout)

    async def generate(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> ImageResult:
        """Return an image of ``prompt``. ``options`` are the fields of :class:`GenerateRequest`."""
        return await self.run(GenerateRequest(prompt=prompt, **options), timeout=timeout)

    async def remove_text_many(
        self, images: Iterable[InputImage | EditRequest], **options: Unpack[BatchOptions]
    ) -> list[Outcome]:
        """Return one outcome per image, in input order. ``options`` are those of :func:`run_batch`.

        A halt (key, credits …) raises nothing, so that no result is lost: each image that it left undone is a
        ``Failed`` with the error that halted the batch. With a ``journal`` the same call resumes them.

        Raises:
            InvalidInput: ``images`` is one image instead of a list of them.
            ConfigurationError, JournalError: The batch could not start; nothing was sent.
        """
        return await gather(self, images, **options)

    # --- how ----------------------------------------------------------------------------------------------

    def _span(self, timeout: float | None) -> float:
        return self._options.timeout if timeout is None else check_positive(timeout, "timeout")

    def _deadline(self, timeout: float | None) -> float:
        return self._session.clock.monotonic() + self._span(timeout)

    @property
    def _uploads(self) -> Uploads:
        return Uploads(session=self._session, retry=self._options.retry)

    async def _uploading(self, send: Coroutine[Any, Any, UploadedFile], deadline: float) -> UploadedFile:
        """Run an upload as a call of its own, until the deadline."""
        with contextlib.closing(send):  # where the client is closed, it never starts
            async with self._session.call():
                try:
                    async with Deadline(deadline - self._session.clock.monotonic()):
                        return await send
                except TimeoutError:
                    raise too_late() from None

    async def _sendable(self, request: ImageRequest, deadline: float) -> ImageRequest:
        """Upload the request's picture, where that is a file of this machine."""
        if not isinstance(request, EditRequest) or not isinstance(request.input_image, LocalImage):
            return request
        send = self._uploads.send(request.input_image, deadline=deadline, max_bytes=MAX_UPLOAD_BYTES)
        uploaded = await self._uploading(send, deadline)
        return attrs.evolve(request, input_image=uploaded.url)

    async def _submit(self, request: ImageRequest, deadline: float, call: Call) -> TaskId:
        """Submit, and again only where that cannot pay twice; a file is uploaded first."""
        session, tries = self._session, 0
        self.check_reachable(request)
        if (words := mistyped_in_words(request)) is not None:
            log(logging.WARNING, "%s", words)
        request = await self._sendable(request, deadline)
        while True:
            tries += 1
            try:
                task_id = await session.submit(request, deadline=deadline, call=call)
            except FluxError as error:
                delay = self._options.retry.before_next_submit(error, tries, session.rng.random())
                if delay is None or session.clock.monotonic() + delay >= deadline:
                    level = logging.INFO if error.charge is Charge.NO else logging.WARNING
                    words = "submit of %s failed (%s), charge %s"
                    log(level, words, _image_in_log(request), type(error).__name__, error.charge)
                    raise
                words = "submit not accepted (%s), again in %.1f s"
                log(logging.INFO, words, type(error).__name__, delay)
                await session.clock.sleep(delay)
            else:
                words = "submit of %s accepted: task %s, charged"
                log(logging.INFO, words, _image_in_log(request), task_id)
                return task_id

    def _with_echo(self, image: ImageResult, request: ImageRequest) -> ImageResult:
        """Return a result that says whether its record shows the request."""
        echo = None if image.record is None else self._check_echo(image.record, request)
        return attrs.evolve(image, echo=echo)

    def _check_echo(self, record: TaskRecord, request: ImageRequest) -> Echo | None:
        """Compare a record with a request; None for a file, whose address in the submit is not known here.

        Raises:
            TaskMismatch: The record is of another request.
        """
        if isinstance(request, EditRequest) and isinstance(request.input_image, LocalImage):
            return None
        return self._session.submitter.judge_echo(record, compare(record.params, store_request(request)))

    async def _read(self, wire: WireRequest, parse: Callable[[WireResponse], T], timeout: float | None) -> T:
        """Look, and again where the retry policy says so and the deadline allows."""
        session, tries, deadline = self._session, 0, self._deadline(timeout)
        async with session.call():
            while True:
                tries += 1
                try:
                    return parse(await session.read(wire, deadline=deadline))
                except FluxError as error:
                    delay = self._options.retry.before_next_poll(error, tries, session.rng.random())
                    if delay is None or session.clock.monotonic() + delay >= deadline:
                        raise
                    await session.clock.sleep(delay)


class _ClientWithOptions(FluxClient):
    """A client with options of its own that shares everything else with another one."""

    def __init__(
        self, credentials: Credentials, session: Session, poller: Poller, options: ClientOptions
    ) -> None:
        self._credentials = credentials
        self._session = session
        self._poller = poller
        self._options = options


def _find_credentials(api_key: str | None, base_url: str | None, upload_url: str | None) -> Credentials:
    key = api_key if api_key is not None else os.environ.get("KIE_API_KEY")
    credentials = Credentials(
        key, base_url or os.environ.get("KIE_BASE_URL"), upload_url or os.environ.get("KIE_UPLOAD_URL")
    )
    for url in credentials.in_clear:
        logger.warning("%s is plain http: the key crosses the network unencrypted", url)
    return credentials


def _result_url(image: ImageResult | str) -> str:
    given: object = image.result_url if isinstance(image, ImageResult) else image
    return check_http_url(encoded_as_by_a_browser(given) if isinstance(given, str) else given)


def _submitted_at(image: ImageResult | str) -> float | None:
    """Return when the task of a result was made, in seconds since the epoch, where its record says so."""
    record = image.record if isinstance(image, ImageResult) else None
    return None if record is None or record.created_at is None else record.created_at.timestamp()


def _of_kind(value: T | None, kind: type[T], name: str) -> T | None:
    if value is not None and not isinstance(value, kind):
        raise InvalidInput(f"{name} must be a {kind.__name__}, not {shown(value)}.")
    return value


def _image_in_log(request: ImageRequest) -> str:
    return without_query(str(request.input_image)) if isinstance(request, EditRequest) else "a prompt"
