"""Everything that can go wrong, as one tree of values you can act on.

::

    FluxError                      .charge .scope .task_id .advice
    ├── ConfigurationError         no key, a bad base URL, a bad option: nothing was sent
    │   ├── ClientClosed           used after ``aclose``
    │   ├── WrongEventLoop         used on another event loop than its own
    │   └── MissingExtra           an optional dependency is not installed (also an ImportError)
    ├── InvalidInput               refused here, before any request (also a ValueError)
    ├── RequestNotSent             never connected: certainly not charged
    ├── ConnectionLost             maybe delivered: a submit may have been charged
    ├── UnexpectedResponse         an answer of no documented shape          .http_status .body_excerpt
    │   └── TaskMismatch           the answer names the task of another submit  .refused_task_id .belongs_to
    ├── ApiError                   the vendor's own refusal                  .code .msg .http_status
    │   ├── ContentPolicyError     400
    │   ├── AuthenticationError    401
    │   ├── InsufficientCreditsError 402
    │   ├── PermissionDeniedError  403
    │   ├── NotFoundError          404
    │   ├── InvalidRequestError    422
    │   ├── RateLimitedError       429                                       .retry_after_s
    │   ├── KeyLimitError          433
    │   ├── MaintenanceError       455
    │   ├── ServerError            408, 500, 501, 502 …
    │   ├── FeatureDisabledError   505
    │   └── UploadRejected         the upload host's 400: the file cannot be used
    ├── TaskFailed                 the task ended in CREATE_TASK_FAILED or GENERATE_FAILED   .record
    ├── BudgetExhausted            max_credits of a batch is used up
    ├── UnexpectedPrice            the first image cost something else than expected         .model .price
    ├── TooManyUnknownAnswers      nothing is submitted: too many answers made no sense      .unknown
    ├── QueueFull                  a job service takes no more jobs now      .retry_after_s
    ├── UnknownJob                 a job service has no such job (also a LookupError)
    ├── JobCancelled               cancelled before the submit
    ├── AlreadySubmitted           too late to cancel it
    ├── DeadlineExceeded           our own deadline passed
    │   └── PollDeadlineExceeded   … while a task was running: it may still finish, and it is paid
    ├── DownloadError              a result could not be saved to disk       .http_status .retryable
    │   ├── ResultExpired          the vendor no longer has the file
    │   ├── AddressForbidden       the file's address is forbidden, for example a private one
    │   ├── DownloadCutShort       the file stopped before its end
    │   ├── DownloadTimedOut       the deadline passed before the file was whole
    │   ├── NotAnImage            something else came: a web page, a damaged or packed file
    │   ├── ResultTooLarge         more bytes or pixels than ``DownloadLimits`` allow
    │   ├── DiskFull               no room: the batch halts, and loses nothing
    │   └── FolderNotWritable      no permission, or a read-only disk: the batch halts, too
    ├── CheckFailed                an image could not be verified: its worker process ended
    ├── CallbackRejected           a callback with a bad signature or shape  .http_status
    └── JournalError               the journal cannot be used
        ├── JournalBusyError       another process holds the lock
        ├── JournalDisplaced       it was moved, deleted or replaced during a run
        ├── JournalRecordsLost     records of submits are missing, which may be paid
        ├── JobConflictError       one key, two different requests
        └── JournalVersionError    it has an unsupported version

``ApiError`` and the classes below it are in :mod:`flux_async.api_errors`. Every error can be pickled, holds
no key, and ends with advice what to do next.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from flux_async.advice import fill, python_words

if TYPE_CHECKING:
    from flux_async.api.models_table import ApiName
    from flux_async.models import JobKey, TaskId, TaskRecord

E = TypeVar("E", bound="FluxError")


class Charge(enum.StrEnum):
    """Whether an exchange cost credits."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


class Scope(enum.StrEnum):
    """What an error stops: one job, or all submits."""

    THIS_JOB = "this_job"
    """One job; the others go on."""
    ACCOUNT_PAUSED = "account_paused"
    """All submits of the account pause, then go on (429, 455)."""
    STOP = "stop"
    """All submits, until a person acts (401, 402, 433, 505)."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra, from the index and from a checkout."""
    return f"pip install 'flux-async[{extra}]'  (in a checkout: pip install '.[{extra}]')"


_LONGEST_SHOWN = 120
_KEPT = "kept for 14 days (jobs API: 24 hours)"
_TWO_ENDS = re.compile(r"(?:[!?…]|\.\.\.|(?:^|[^.])\.)\.$")


def shown(value: object) -> str:
    """Return ``repr(value)`` for a message, cut to a length a person reads.

    A coroutine in place of a value is named as a call without its ``await``.
    """
    if isinstance(value, Coroutine):
        return f"the coroutine of {getattr(value, '__qualname__', 'a call')}() (is an `await` missing?)"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def _with_one_full_stop(message: str) -> str:
    """Return ``message`` without a full stop after quoted words that end in a mark of their own."""
    return message[:-1] if _TWO_ENDS.search(message) else message


def _restore(cls: type[E], args: tuple[object, ...], state: dict[str, Any]) -> E:
    error = cls.__new__(cls, *args)
    super(FluxError, error).__init__(*args)  # ImportError keeps its message in a slot of its own
    error.__dict__.update(state)
    return error


class FluxError(Exception):
    """Base of every error this package raises.

    Attributes:
        charge: Whether credits were spent by the exchange that failed.
        scope: What it stops: this job, all submits for a while, or all submits until a person acts.
        task_id: The vendor's task, if known; ``client.wait(task_id, api=api)`` waits for it again.
        api: The API that the task was submitted to, or looked for at; None if that is not known.
        advice_template: The advice, with its actions in braces (:mod:`flux_async.advice`).
        answer: The answer to a submit whose charge is not known, up to 4 kB and without the key: it may name
            the task. Empty if no answer came.
        in_memory: Whether it is of a batch whose journal is in memory, so that no other run resumes it.
    """

    default_charge: ClassVar[Charge] = Charge.NO
    default_scope: ClassVar[Scope] = Scope.THIS_JOB
    default_advice: ClassVar[str] = "Report this as a bug, with the message."

    def __init__(
        self,
        message: str,
        *,
        advice: str | None = None,
        charge: Charge | None = None,
        scope: Scope | None = None,
        task_id: TaskId | None = None,
    ) -> None:
        super().__init__(_with_one_full_stop(message))
        self.advice_template: str = self.default_advice if advice is None else advice
        self.charge: Charge = self.default_charge if charge is None else charge
        self.scope: Scope = self.default_scope if scope is None else scope
        self.task_id: TaskId | None = task_id
        self.api: ApiName | None = None
        self.answer: str = ""
        self.in_memory: bool = False

    @property
    def message(self) -> str:
        """What happened, without the advice."""
        return str(self.args[0])

    @property
    def advice(self) -> str:
        """What to do next, for a caller of the library; the end of ``str(error)``."""
        return fill(self.advice_template, python_words(self.task_id, self.api, in_memory=self.in_memory))

    @advice.setter
    def advice(self, template: str) -> None:
        self.advice_template = template

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ calls cls(*args), which fails as soon as a subclass needs a keyword.
        return _restore, (type(self), self.args, self.__dict__)


class ConfigurationError(FluxError):
    """The client cannot be made or used as asked; nothing was sent."""

    default_advice = "Correct the setting and try again."


class ClientClosed(ConfigurationError):
    """A client was used after ``aclose()``."""

    default_advice = "Make a new FluxClient, or keep this one open for the life of the process."


class WrongEventLoop(ConfigurationError):
    """A client, or a journal, was used on another event loop than the one it belongs to."""

    default_advice = (
        "Make one FluxClient per event loop: inside the coroutine given to asyncio.run, or in the lifespan "
        "of the web application."
    )


class MissingExtra(ConfigurationError, ImportError):
    """A part of the package was used whose optional dependencies are not installed."""

    default_advice = "Install the extra named above and try again."

    @classmethod
    def for_extra(cls, what: str, extra: str) -> MissingExtra:
        """Return the error of ``what``, for which ``extra`` has to be installed."""
        return cls(f"{what} needs the extra {extra}.", advice=f"Run: {install_command(extra)}")


class InvalidInput(FluxError, ValueError):
    """Refused on this side, before any request was made and any credit spent."""

    default_advice = "Correct the value and try again; nothing was sent."


class RequestNotSent(FluxError):
    """The request was not sent: no connection could be made. Certainly not charged."""

    default_advice = "Check the network and KIE_BASE_URL; it is safe to try again."


class ConnectionLost(FluxError):
    """The request may have been delivered, but no answer came. A submit may have been charged."""

    default_charge = Charge.MAYBE
    default_advice = (
        "Look for the task at kie.ai/logs before submitting the same image again: a second submit may be "
        "a second charge."
    )


class UnexpectedResponse(FluxError):
    """An answer of no documented shape: HTML, an empty body, a success without its data.

    Attributes:
        http_status: HTTP status of the answer, or None if it did not matter.
        body_excerpt: The first characters of the body, for a bug report.
    """

    default_charge = Charge.MAYBE
    default_advice = "Check KIE_BASE_URL and kie.ai/logs before submitting the same image again."

    def __init__(
        self, message: str, *, http_status: int | None = None, body_excerpt: str = "", **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.http_status: int | None = http_status
        self.body_excerpt: str = body_excerpt


class TaskMismatch(UnexpectedResponse):
    """A submit was answered with a task that is not its own, and its own task is not known.

    Another submit has the task, or its record shows another request. The submit may have been charged.

    Attributes:
        refused_task_id: The task that the answer named. ``task_id`` is None: it is not this submit's.
        belongs_to: The key of the job whose task it is, in a batch, if known.
        record: The record that shows another request; None if no record was needed.
    """

    default_advice: ClassVar[str] = ConnectionLost.default_advice

    def __init__(
        self,
        message: str,
        *,
        refused_task_id: TaskId | None = None,
        belongs_to: JobKey | None = None,
        record: TaskRecord | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, **fields)
        self.refused_task_id: TaskId | None = refused_task_id
        self.belongs_to: JobKey | None = belongs_to
        self.record: TaskRecord | None = record


class TaskFailed(FluxError):
    """The task ended without an image: CREATE_TASK_FAILED or GENERATE_FAILED.

    Attributes:
        record: The record of the task, or None if the failure came without one.
    """

    # Failed tasks are usually refunded, but users have seen charges (API page: not stated).
    default_charge = Charge.MAYBE
    default_advice = "Read the reason, change the image or the prompt, and submit again (a new charge)."

    def __init__(self, message: str, *, record: TaskRecord | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.record: TaskRecord | None = record


class BudgetExhausted(FluxError):
    """The next submit would spend more than this run was allowed."""

    default_scope = Scope.STOP
    default_advice = "{larger_budget}; finished images are kept."


class UnexpectedPrice(FluxError):
    """An image cost over 10 % more, or less, than expected; no further one was submitted.

    Attributes:
        model: The name of its model.
        price: What it cost.
        expected: The price of the list, or the one that was given.
    """

    default_scope = Scope.STOP
    default_advice = "{accept_price}"

    def __init__(
        self, message: str, *, model: str = "", price: float = 0.0, expected: float = 0.0, **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.model: str = model
        self.price: float = price
        self.expected: float = expected


class TooManyUnknownAnswers(FluxError):
    """This submit was not made: too many of the last ones may have been charged without a known task.

    Ten minutes later, in a new batch, or with a new client, one submit is made alone, and its answer decides.

    Attributes:
        unknown: Submits of this session that may have been charged without a known task.
    """

    default_scope = Scope.STOP
    default_advice = "Look at kie.ai/logs for tasks that were made, and {check_network}. {new_run_after_halt}"

    def __init__(self, message: str, *, unknown: int = 0, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.unknown: int = unknown


class QueueFull(FluxError):
    """A job service takes no more jobs now: too many are waiting, or it is stopping. The job was not added.

    Attributes:
        retry_after_s: Seconds after which there is probably room.
    """

    default_advice = "Answer 503 with Retry-After, and give the same job again later."

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after_s: float = retry_after_s


class UnknownJob(FluxError, LookupError):
    """The journal of a job service has no job with this key."""

    default_advice = "Check the key; it is what add returned."


class JobCancelled(FluxError):
    """The job was cancelled before it was submitted."""

    default_advice = "Retry it if its image is wanted after all."


class AlreadySubmitted(FluxError):
    """A job cannot be cancelled any more: its submit is in progress, or was made. It goes on."""

    default_charge = Charge.MAYBE
    default_advice = "Wait for its outcome: the vendor cannot cancel a task."


class DeadlineExceeded(FluxError):
    """The call's own deadline passed before a task existed; nothing was spent."""

    default_advice = "Try again with a longer timeout; nothing was charged."


class PollDeadlineExceeded(DeadlineExceeded):
    """The deadline passed while a task was running. It may still finish, and it is paid.

    ``task_id`` is always set: the same task can be taken up again with ``client.wait(task_id)``.
    """

    default_charge = Charge.YES
    default_advice = "The task may still finish and is paid: {wait}; do not submit the image again."


class DownloadError(FluxError):
    """A file could not be saved to disk; the paid result is still at the vendor.

    Attributes:
        http_status: HTTP status of the file host's answer, or None without an answer.
        retryable: Whether the same download may succeed later. If not, a limit, the disk or the address
            prevents it.
        retry_after_s: Seconds the file host asked to wait, or None.
    """

    default_charge = Charge.YES
    default_advice: ClassVar[str] = f"The result is paid and {_KEPT}: download it again."
    default_retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, **fields)
        self.http_status: int | None = http_status
        self.retryable: bool = self.default_retryable if retryable is None else retryable
        self.retry_after_s: float | None = retry_after_s


class ResultExpired(DownloadError):
    """The vendor no longer has the file: it keeps results for 14 days (jobs API: 24 hours)."""

    default_retryable = False
    default_advice = "The image must be made again, which is a new charge{pay_again}."


class AddressForbidden(DownloadError):
    """The file's address, or one it redirects to, is forbidden; nothing was fetched.

    Private, loopback, link-local and other special addresses are refused, other schemes than http(s), and a
    step from https down to http.
    """

    default_retryable = False
    default_advice = "If the address is one of your own network, fetch the file yourself: it is {result_url}."


class DownloadCutShort(DownloadError):
    """The file stopped before its end: the connection broke off or stalled, or the image has no end."""

    default_advice: ClassVar[str] = f"Download it again: the result is paid and {_KEPT}."


class DownloadTimedOut(DownloadError):
    """The deadline passed before the file was whole."""

    default_advice: ClassVar[str] = (
        f"Download it again with a longer timeout: the result is paid and {_KEPT}."
    )


class NotAnImage(DownloadError):
    """What came is no JPEG, PNG, WebP or GIF: a web page, an empty, damaged or packed file."""

    default_advice = "Open {result_url} in a browser; if the image is there, download it again."


class ResultTooLarge(DownloadError):
    """The file has more bytes or more pixels than allowed; it was refused before the rest was read."""

    default_retryable = False
    default_advice = "If you want the image nevertheless, {larger_result}."


class DiskFull(DownloadError):
    """There is no room for the file on its disk, or in the quota."""

    default_retryable = False
    default_scope = Scope.STOP
    default_advice: ClassVar[str] = f"Make room: nothing is lost, the paid results are {_KEPT}."


class FolderNotWritable(DownloadError):
    """No file can be created in the folder: no permission, or a read-only disk."""

    default_retryable = False
    default_scope = Scope.STOP
    default_advice: ClassVar[str] = (
        f"Check the folder's permissions: nothing is lost, the paid results are {_KEPT}."
    )


class CheckFailed(FluxError):
    """An image could not be checked: the worker process that did it ended, several times."""

    default_advice = "Most often memory ran out: use fewer workers. Nothing was sent, no file was changed."


class CallbackRejected(FluxError):
    """A callback with a bad signature, an old timestamp or an unreadable body.

    Attributes:
        http_status: The status to answer with: 400 for its shape, 401 for its signature.
    """

    default_advice = "Check the webhook key and the clock; the task itself is not affected."

    def __init__(self, message: str, *, http_status: int = 401, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.http_status: int = http_status


class JournalError(FluxError):
    """The journal cannot be opened, read or written; the file was left as it is."""

    default_advice = "Check the path, the free disk space and the permissions."


class JournalBusyError(JournalError):
    """Another process holds the lock of this journal."""

    default_advice = "Wait for the other run to end, then run again; its paid work is not paid again."


class JournalRecordsLost(JournalError):
    """Records of submits are missing, which may have been charged; nothing was sent."""

    default_advice = (
        "Put the missing file back beside it. Otherwise {recover}: what may have been submitted is then in "
        "doubt, and is not submitted again."
    )


class JournalDisplaced(JournalError):
    """The journal was moved, deleted or replaced during its run; nothing more was submitted."""

    default_scope = Scope.STOP
    default_advice = (
        "Put the journal back before the next run: a new one would pay for the same images again. The tasks "
        "of this run are at kie.ai/logs."
    )


class JobConflictError(JournalError):
    """The same job key was given with another request."""

    default_advice = "Give the new request a key of its own."


class JournalVersionError(JournalError):
    """The journal was written by another release, with a version that this one does not support."""

    default_advice = "Use the release that wrote it. A new journal would pay again for what this one holds."
