"""Frozen values, checked when they are made: requests, records, results, jobs and outcomes.

A request that could not succeed is refused here, before any credit is spent. Field names are Python's; the
vendor's are in ``api/kontext.py`` and ``api/jobs.py``.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NewType, Self, TypeAlias, TypedDict, TypeVar, Unpack

import attrs

from flux_async.api.models_table import OPTIONS, AnyModel, ApiName, CustomModel, Model, ModelName
from flux_async.errors import FluxError, InvalidInput, shown
from flux_async.images import InputImage, LocalImage, as_image, check_http_url, check_image

if TYPE_CHECKING:
    from flux_async.verification.verdict import Verdict

TaskId = NewType("TaskId", str)
"""The vendor's name for one remote task: an opaque string (in practice 32 hex digits)."""

JobKey = NewType("JobKey", str)
"""Names one thing the caller wants: given by the caller, or the digest of the request."""

TEXT_REMOVAL_PROMPT = "Remove all text from this image while preserving the background"
"""The prompt of the API page for removing text."""

MAX_KEY_LENGTH = 200
_MAX_TEXT_LENGTH = 100_000  # five times the longest prompt that a model is known to take
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

K = TypeVar("K", bound=enum.StrEnum)


class AspectRatio(enum.StrEnum):
    """Width to height (API page, "Supported Aspect Ratios")."""

    ULTRA_WIDE = "21:9"
    WIDE = "16:9"
    STANDARD = "4:3"
    SQUARE = "1:1"
    PORTRAIT = "3:4"
    MOBILE_PORTRAIT = "9:16"
    ULTRA_TALL = "16:21"


AspectRatioName: TypeAlias = Literal["21:9", "16:9", "4:3", "1:1", "3:4", "9:16", "16:21"]
"""The values of :class:`AspectRatio`, for type checkers."""


class OutputFormat(enum.StrEnum):
    """File format of the result (API page, "Request Parameters"). The vendor may send JPEG all the same."""

    JPEG = "jpeg"
    PNG = "png"


OutputFormatName: TypeAlias = Literal["jpeg", "png"]
"""The values of :class:`OutputFormat`, for type checkers."""


class TaskStatus(enum.IntEnum):
    """What ``successFlag`` means (API page, "Status Codes")."""

    GENERATING = 0
    SUCCESS = 1
    CREATE_TASK_FAILED = 2
    GENERATE_FAILED = 3

    @property
    def is_failure(self) -> bool:
        """Whether the task ended without an image."""
        return self in {TaskStatus.CREATE_TASK_FAILED, TaskStatus.GENERATE_FAILED}


def _text(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _check_text(value, attribute.name)


def _check_text(value: object, name: str, longest: int = _MAX_TEXT_LENGTH) -> str:
    """Return a text that every journal can hold."""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a string, not {type(value).__name__}.")
    if not value.strip():
        raise InvalidInput(f"{name} must not be blank.")
    if "\0" in value:  # PostgreSQL holds none
        raise InvalidInput(f"{name} holds a NUL character.")
    if len(value) > longest:
        raise InvalidInput(f"{name} is longer than {longest:,} characters.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{name} is not valid Unicode (a lone surrogate).") from None
    return value


def _flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"{attribute.name} must be True or False, not {shown(value)}.")


def _url(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_http_url(value, attribute.name)


def _safety(instance: _ImageRequest, attribute: attrs.Attribute[Any], value: object) -> None:
    # API page, "Safety Tolerance". Out of range the vendor answers code 500.
    row = instance.model.row
    top = row.max_safety_editing if isinstance(instance, EditRequest) else row.max_safety_generating
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= top:
        raise InvalidInput(
            f"{attribute.name} must be a whole number from 0 to {top} for {type(instance).__name__}, "
            f"not {shown(value)}."
        )


def _member(kind: type[K], name: str, value: K | str) -> K:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(member.value for member in kind)
        raise InvalidInput(f"{name} must be one of {choices}, not {shown(value)}.") from None


def _model(value: AnyModel | ModelName) -> AnyModel:
    return value if isinstance(value, CustomModel) else _member(Model, "model", value)


def _aspect_ratio(value: AspectRatio | AspectRatioName) -> AspectRatio:
    return _member(AspectRatio, "aspect_ratio", value)


def _output_format(value: OutputFormat | OutputFormatName) -> OutputFormat:
    return _member(OutputFormat, "output_format", value)


class RequestOptions(TypedDict, total=False):
    """Fields of a request beside its prompt and image, as :meth:`FluxClient.remove_text` takes them.

    :class:`GenerateRequest` and :class:`EditRequest` document them.
    """

    model: AnyModel | ModelName
    aspect_ratio: AspectRatio | AspectRatioName | None
    output_format: OutputFormat | OutputFormatName | None
    enable_translation: bool | None
    prompt_upsampling: bool | None
    safety_tolerance: int | None
    upload_cn: bool | None
    watermark: str | None
    callback_url: str | None


@attrs.frozen(kw_only=True)
class _ImageRequest:
    """Fields of both kinds (API page, "Request Parameters"). None leaves a field to the vendor."""

    prompt: str = attrs.field(validator=_text)
    model: AnyModel = attrs.field(default=Model.PRO, converter=_model)
    aspect_ratio: AspectRatio | None = attrs.field(
        default=None, converter=attrs.converters.optional(_aspect_ratio)
    )
    output_format: OutputFormat | None = attrs.field(
        default=None, converter=attrs.converters.optional(_output_format)
    )
    enable_translation: bool | None = attrs.field(default=None, validator=attrs.validators.optional(_flag))
    prompt_upsampling: bool | None = attrs.field(default=None, validator=attrs.validators.optional(_flag))
    safety_tolerance: int | None = attrs.field(default=None, validator=attrs.validators.optional(_safety))
    upload_cn: bool | None = attrs.field(default=None, validator=attrs.validators.optional(_flag))
    watermark: str | None = attrs.field(default=None, validator=attrs.validators.optional(_text))
    callback_url: str | None = attrs.field(default=None, validator=attrs.validators.optional(_url))

    def __attrs_post_init__(self) -> None:
        options = frozenset(name for name in OPTIONS if getattr(self, name) is not None)
        has_image = isinstance(self, EditRequest)
        problem = self.model.row.problem_with(self.prompt, options, has_image=has_image)
        if problem is not None:
            raise InvalidInput(f"{self.model.value} {problem}.")


@attrs.frozen(kw_only=True)
class GenerateRequest(_ImageRequest):
    """Make an image from words (API page, "Text-to-Image Generation").

    Attributes:
        prompt: Description of the image, in English unless ``enable_translation`` is left on.
        model: A :class:`Model` or its name, such as ``flux-kontext-max``; or a :class:`CustomModel`.
        aspect_ratio: Width to height; left unset the vendor takes 16:9.
        output_format: ``jpeg`` or ``png``; left unset the vendor takes jpeg.
        enable_translation: Translate a prompt that is not English; left unset the vendor does.
        prompt_upsampling: Let the vendor extend the prompt; slower.
        safety_tolerance: 0 (strict) to 6 (permissive); left unset the vendor takes 2.
        upload_cn: Upload the result through servers in China.
        watermark: Identifier of a watermark to add.
        callback_url: Address at which the vendor reports the end of the task.

    Raises:
        InvalidInput: A value the API would refuse.
    """


@attrs.frozen(kw_only=True)
class EditRequest(_ImageRequest):
    """Change an image as the prompt says (API page, "Image Editing").

    The fields are those of :class:`GenerateRequest`, and:

    Attributes:
        input_image: http(s) URL that the vendor's servers can reach, kept without its fragment; or a file of
            this machine (:class:`pathlib.Path`, or :class:`LocalImage`), which is uploaded before the submit.
        aspect_ratio: Left unset, the image keeps its own; a set one **crops or pads** it.
        safety_tolerance: 0 to 2 when editing.

    Raises:
        InvalidInput: A value the API would refuse.
    """

    input_image: str | LocalImage = attrs.field(converter=as_image, validator=check_image)

    @classmethod
    def text_removal(
        cls, image: InputImage, *, prompt: str = TEXT_REMOVAL_PROMPT, **options: Unpack[RequestOptions]
    ) -> Self:
        """Return the request for ``image`` without its text.

        Translation is switched off for our own prompt, which is English (API page, "Translation Settings"),
        where the model has that option.

        Raises:
            InvalidInput: ``image`` is neither an http(s) URL nor a path, or an option is out of range.
        """
        model = _model(options.get("model", Model.PRO))
        if prompt == TEXT_REMOVAL_PROMPT and "enable_translation" in model.row.options:
            options.setdefault("enable_translation", False)
        return cls(prompt=prompt, input_image=image, **options)


ImageRequest: TypeAlias = GenerateRequest | EditRequest
"""Either kind of request."""


def check_request(request: object) -> ImageRequest:
    """Return ``request`` if it is one, else raise :class:`InvalidInput` with advice how to make one."""
    if isinstance(request, GenerateRequest | EditRequest):
        return request
    raise InvalidInput(
        f"Expected a GenerateRequest or an EditRequest, not {shown(request)}.",
        advice="For an image URL, use client.remove_text(url) or EditRequest.text_removal(url).",
    )


def _request(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    check_request(value)


def digest_key(request: ImageRequest) -> JobKey:
    """Return the digest of a request's content: 64 hex digits, the same on every machine.

    ``callback_url`` does not count: it does not change the image. Of a file only the content counts, of a
    :class:`CustomModel` only what is submitted.

    Raises:
        InvalidInput: The file has not been read yet.
    """
    fields = {
        a.name: value for a in attrs.fields(type(request)) if (value := getattr(request, a.name)) is not None
    }
    fields.pop("callback_url", None)
    if isinstance(image := fields.get("input_image"), LocalImage):
        fields["input_image"] = image.reference
    if isinstance(request.model, CustomModel):
        fields["model"] = request.model.submit_data
    return JobKey(hashlib.sha256(_CANONICAL.encode(fields).encode()).hexdigest())


def check_job_key(value: object) -> JobKey:
    """Return ``value`` if it can be the key of a job, else raise :class:`InvalidInput`."""
    return JobKey(_check_text(value, "key", MAX_KEY_LENGTH))


def _job_key(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    check_job_key(value)


@attrs.frozen(kw_only=True)
class Job:
    """One thing the caller wants.

    Attributes:
        request: What to submit.
        key: Its name; left out, the digest of the request.
    """

    request: ImageRequest = attrs.field(validator=_request)
    key: JobKey = attrs.field(
        default=attrs.Factory(lambda self: digest_key(check_request(self.request)), takes_self=True),
        validator=_job_key,
    )


class Echo(enum.StrEnum):
    """What the record of a task shows of the request it was made from (``paramJson`` of record-info)."""

    CONFIRMED = "confirmed"
    """The prompt, image and model that were sent: the result is of this request."""
    ABSENT = "absent"
    """Prompt or image are missing, and nothing differs: no sign that the result is of another request."""
    UNRECOGNISED = "unrecognised"
    """Another prompt, image or model than was sent, and no other request of the caller's. A service may
    translate prompts and copy images; compare the result with its input."""


@attrs.frozen(kw_only=True)
class TaskRecord:
    """The record of a task from record-info (API page, "Task Status Query"), or from recordInfo (jobs API).

    Attributes:
        task_id: The task.
        status: GENERATING also stands for a flag that is missing or unknown.
        unknown_flag: The ``successFlag`` as sent, if it was none of the documented four.
        result_url: The finished image, kept 14 days; a result of the jobs API perhaps only 24 hours.
        other_urls: Further results, where the task made several.
        origin_url: The vendor's copy of the input, kept 10 minutes; the jobs API has none.
        created_at: When the task was made (UTC), to the second.
        completed_at: When it ended (UTC); may lie up to a second ahead of our clock.
        credits: What the vendor charges for the task, if the record has it (jobs API).
        error_code: 400, 500 or 501 of a failed task; None for a code that is no number.
        error_message: The vendor's words for it; without any, a code that is no number.
        params: The request's fields as the vendor echoes them; partial, or None if unreadable.
        api: The API that it was read from.
        raw: The record word for word, unknown fields included.
    """

    task_id: TaskId
    status: TaskStatus
    unknown_flag: object = None
    result_url: str | None = None
    other_urls: tuple[str, ...] = ()
    origin_url: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    credits: float | None = None
    error_code: int | None = None
    error_message: str | None = None
    params: Mapping[str, Any] | None = None
    api: ApiName = "kontext"
    raw: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False)

    @property
    def generation_s(self) -> float | None:
        """Seconds from creation to completion by the vendor's own clock, or None."""
        if self.created_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.created_at).total_seconds()


@attrs.frozen(kw_only=True)
class ImageResult:
    """A finished image.

    Attributes:
        task_id: The task that made it.
        result_url: Its address, for 14 days, of the jobs API for 24 hours; download it at once.
        origin_url: The vendor's copy of the input, for 10 minutes, or None.
        echo: Whether its record shows the request it is the result of; None if the request is not known here,
            as in a ``wait`` for a bare task id.
        credits: What its task has cost, by the vendor's own figure (jobs API) or, for the first image of a
            batch, by the balance; None if neither says.
        api: The API that has its task.
        record: The record it was read from.
    """

    task_id: TaskId
    result_url: str
    origin_url: str | None = None
    echo: Echo | None = None
    credits: float | None = None
    api: ApiName = "kontext"
    record: TaskRecord | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen(kw_only=True)
class UploadedFile:
    """A file that the vendor, and anyone who has its address, can fetch. Times are of our own clock, UTC.

    Attributes:
        url: Its address, for the input of any request.
        size: Bytes.
        content_type: Its kind.
        sha256: Digest of its content; None if the upload host fetched it itself.
        uploaded_at: When the upload began.
        expires_at: When it may be gone: 24 hours later.
    """

    url: str
    size: int
    content_type: str
    sha256: str | None
    uploaded_at: datetime
    expires_at: datetime


@attrs.frozen(kw_only=True)
class CallbackEvent:
    """A callback: something may have happened to a task (API page, "Callback Format").

    It only triggers a poll: the vendor's signature does not cover the body, so the result in the body is not
    even kept.

    Attributes:
        task_id: The task it names; the one thing the signature covers.
        code: The envelope code as claimed: 200, 400, 500 or 501; None if unreadable.
        message: The vendor's message as claimed.
        attempt_id: The id of the submit, from the address that was called, if it has one.
        signed: Whether a signature was verified.
    """

    task_id: TaskId
    code: int | None = None
    message: str = ""
    attempt_id: str | None = None
    signed: bool = False


@attrs.frozen(kw_only=True)
class UnclaimedTask:
    """A submit whose caller was cancelled before it received the task id.

    Attributes:
        request: What was submitted.
        task_id: The paid task: ``client.wait(task_id, api=api)`` waits for it. None if no answer came.
        api: The API that it was submitted to.
        error: Why there is no task id, if there is none.
    """

    request: ImageRequest
    task_id: TaskId | None = None
    api: ApiName = "kontext"
    error: FluxError | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class CheckResult:
    """What a batch with ``preserve`` or ``verify`` found about a result. Files are relative to its folder.

    Attributes:
        is_preserved: Whether the file is the original with only its text areas taken from the vendor's image;
            None before that was tried.
        not_preserved: Why the vendor's image was kept instead, in words.
        vendor_file: The vendor's own image.
        replaced: Share of the original's pixels that were replaced.
        outlines: Polygons around them: x and y of each corner, in thousandths of the width and height of the
            upright image.
        verdict: What ``verify`` found about the file, by the names of the fields of ``Verdict``; None before
            it was verified.
        problem: Why a check could not be made, in words. The next run tries again.
        saved_credits: What its submit would have cost, where the original has no text and was not submitted
            (``skip_textless``); else None.
    """

    is_preserved: bool | None = None
    not_preserved: str | None = None
    vendor_file: str | None = None
    replaced: float | None = None
    outlines: Sequence[Sequence[int]] | None = attrs.field(default=None, repr=False)
    verdict: Mapping[str, Any] | None = None
    problem: str | None = None
    saved_credits: float | None = None


@attrs.frozen(kw_only=True)
class Succeeded:
    """The job has its image.

    Attributes:
        job: The job.
        image: The result at the vendor; None in a batch with ``skip_textless`` where the original has no
            text: nothing was submitted, and ``file`` is a copy of it.
        file: The image on disk, or None if it was not downloaded to a folder. With ``preserve`` the composed
            image, or the vendor's where it could not be composed.
        reference: What the sink of the batch returned for the image; for a folder, the name of its file.
        verdict: What ``verify`` found about the file, or would find about the copy of an original without
            text; None if it was not verified.
        error: Why another attempt for a better image failed; ``image`` is the earlier one then. Else None.
        check: All that the checks found, in a batch with ``preserve``, ``verify`` or ``skip_textless``; else
            None.
    """

    job: Job
    image: ImageResult | None
    file: Path | None = None
    reference: str | None = None
    verdict: Verdict | None = None
    check: CheckResult | None = None
    error: FluxError | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class Failed:
    """The job ended without an image, or cannot go on in this run.

    Attributes:
        job: The job; None if the input was no request.
        error: Why, and whether it was charged.
    """

    job: Job | None
    error: FluxError


@attrs.frozen(kw_only=True)
class InDoubt:
    """No answer to the submit came: it may be charged, and is not resubmitted without permission."""

    job: Job
    error: FluxError


class InDoubtPolicy(enum.StrEnum):
    """What to do with a submit in doubt: one whose answer never came."""

    HOLD = "hold"
    """Spend nothing: it stays in doubt until a person or a callback settles it."""
    RESUBMIT = "resubmit"
    """Submit again, at the risk of a second charge."""


Outcome: TypeAlias = Succeeded | Failed | InDoubt
"""How a job of a batch ended; one bad image never ends the others."""
