"""Reads requests: keys, bodies, addresses and the parameters of a submit of the Kontext API."""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import attrs
from starlette.requests import Request
from starlette.types import Message, Receive

from flux_async.sandbox.faults import HEADER, Rule, faults_of_url, parse_rules
from flux_async.sandbox.models import FORMATS, MODELS, RATIOS, Api

MAX_JSON_BYTES: Final = 1024 * 1024

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")


class UnknownFaultError(Exception):
    """A request asks for an unknown fault."""


class BodyTooLargeError(Exception):
    """The body is too long."""


def limited(request: Request, max_bytes: int) -> Request:
    """Return the request with a body that raises `BodyTooLargeError` beyond `max_bytes`."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise BodyTooLargeError
        return message

    checked: Receive = receive
    return Request(request.scope, checked)


def sent_key(request: Request) -> str | None:
    """Return the key of the Authorization header, or None."""
    scheme, _, key = request.headers.get("Authorization", "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def is_json(request: Request) -> bool:
    """Whether the Content-Type header is that of JSON."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "application/json"


async def json_body(request: Request, max_bytes: int = MAX_JSON_BYTES) -> object:
    """Return the decoded body, or None if it is not JSON.

    Raises:
        BodyTooLargeError: The body is longer than `max_bytes`.
    """
    try:
        return json.loads(await limited(request, max_bytes).body(), parse_constant=_refuse)
    except (ValueError, RecursionError):  # undecodable bytes and absurd numbers are ValueErrors as well
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def base_url(request: Request) -> str:
    """Return the origin that the client used for this service."""
    host = request.headers.get("Host", "")
    if _HOST.fullmatch(host) is None:
        name, port = request.scope.get("server") or ("localhost", None)
        host = f"{name}:{port}" if port else name
    return f"{request.scope['scheme']}://{host}"


def faults_of_header(request: Request) -> tuple[Rule, ...]:
    """Return the faults that a request asks for in its header.

    Raises:
        UnknownFaultError: A fault is unknown.
    """
    try:
        return parse_rules(request.headers.get(HEADER, ""))
    except ValueError as error:  # with a misspelled fault a test would test nothing
        raise UnknownFaultError(str(error)) from None


_MODELS: Final = tuple(model.name for model in MODELS.values() if model.api is Api.KONTEXT)

DEFAULT_MODEL: Final = "flux-kontext-pro"
DEFAULT_RATIO: Final = "16:9"
DEFAULT_FORMAT: Final = "jpeg"
DEFAULT_TOLERANCE: Final = 2
MAX_TOLERANCE_GENERATING: Final = 6
MAX_TOLERANCE_EDITING: Final = 2
MAX_URL_LENGTH: Final = 2048

_DIGEST_LENGTH: Final = 16
_LONGEST_NAME: Final = 60
_MOST_UNKNOWN: Final = 50

TOLERANCE_OUT_OF_RANGE: Final = "The security tolerance level is out of range and should be 0-2 or 0-6."

_TYPES: Final[Mapping[str, type]] = {
    "prompt": str,
    "enableTranslation": bool,
    "uploadCn": bool,
    "inputImage": str,
    "aspectRatio": str,
    "outputFormat": str,
    "promptUpsampling": bool,
    "model": str,
    "callBackUrl": str,
    "safetyTolerance": int,
    "watermark": str,
}
TYPE_NAMES: Final[Mapping[type, str]] = {str: "a string", bool: "a boolean", int: "an integer"}


class Kind(enum.StrEnum):
    """What a task does, by its prompt and input."""

    GENERATION = "generation"
    TEXT_REMOVAL = "text removal"
    EDIT = "edit"


@attrs.frozen(kw_only=True)
class Order:
    """A valid submit.

    Attributes:
        aspect_ratio: The requested ratio; None keeps that of the input.
        price: Price in credits.
        faults: The faults that the URL of the input asks for.
        sent: The known fields that were sent, as a record echoes them.
        digest: A digest of all fields but the callback address: equal requests have equal digests, whatever
            their API.
        unknown: The names of the other fields, which are ignored.
    """

    api: Api
    prompt: str
    input_image: str | None
    aspect_ratio: str | None
    output_format: str
    model: str
    price: float
    safety_tolerance: int
    call_back_url: str | None
    faults: tuple[Rule, ...]
    sent: Mapping[str, object]
    digest: str
    unknown: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the task does."""
        if self.input_image is None:
            return Kind.GENERATION
        return Kind.TEXT_REMOVAL if asks_to_remove_text(self.prompt) else Kind.EDIT


@attrs.frozen
class Refusal:
    """The code and message of the envelope that refuses a submit."""

    code: int
    message: str


def read_task_request(body: object) -> Order | Refusal:
    """Read the decoded JSON body of a submit."""
    if not isinstance(body, dict):
        return Refusal(422, "The request body must be a JSON object.")
    # Null is the same as absent; unknown fields are ignored.
    sent = {name: body[name] for name in _TYPES if body.get(name) is not None}
    for name, value in sent.items():
        if not has_type(value, _TYPES[name]):
            return Refusal(422, f"{name} must be {TYPE_NAMES[_TYPES[name]]}.")
    sent = {name: without_surrogates(value) for name, value in sent.items()}
    try:
        request = attrs.evolve(_request(sent), unknown=unknown_names(body, _TYPES))
    except ValueError as error:  # with a misspelled fault a test would test nothing
        return Refusal(422, f"inputImage: {error}")
    return _refusal(request) or request


def unknown_names(body: Mapping[Any, object], known: Collection[str]) -> tuple[str, ...]:
    """Return the names of the fields that are not known, shortened."""
    names = (str(without_surrogates(name)) for name in body if name not in known)
    return tuple(name[:_LONGEST_NAME] for name in names)[:_MOST_UNKNOWN]


def has_type(value: object, expected: type) -> bool:
    """Whether a JSON value has a type; a boolean is no integer."""
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def without_surrogates(value: object) -> object:
    """Return a text, or each text of a list, with lone surrogates replaced; other values unchanged."""
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def digest_of(asked: Mapping[str, object]) -> str:
    """Return the digest of the fields of a request."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]


def _request(sent: Mapping[str, object]) -> Order:
    tolerance = sent.get("safetyTolerance", DEFAULT_TOLERANCE)
    assert isinstance(tolerance, int)  # noqa: S101 - read_task_request checked the types
    text = {name: value for name, value in sent.items() if isinstance(value, str)}
    input_image = text.get("inputImage", "").strip() or None
    model = text.get("model", DEFAULT_MODEL)
    asked = {name: value for name, value in sent.items() if name != "callBackUrl"} | {"model": model}
    return Order(
        api=Api.KONTEXT,
        prompt=text.get("prompt", ""),
        input_image=input_image,
        aspect_ratio=text.get("aspectRatio", None if input_image else DEFAULT_RATIO),
        output_format=text.get("outputFormat", DEFAULT_FORMAT),
        model=model,
        price=MODELS[model].price if model in MODELS else 0.0,
        safety_tolerance=tolerance,
        call_back_url=text.get("callBackUrl", "").strip() or None,
        faults=faults_of_url(input_image) if input_image and is_web_address(input_image) else (),
        sent=sent,
        digest=digest_of(asked),
    )


def _refusal(request: Order) -> Refusal | None:
    if not request.prompt.strip():
        return Refusal(422, "Please enter prompt.")
    for name, url in (("inputImage", request.input_image), ("callBackUrl", request.call_back_url)):
        if url is not None and not is_web_address(url):
            return Refusal(422, f"{name} must be a publicly accessible http or https URL.")
    # Authors of clients report values outside the enums as 500, not as 422.
    for name, value, options in (
        ("model", request.model, _MODELS),
        ("aspectRatio", request.aspect_ratio, (*RATIOS, None)),
        ("outputFormat", request.output_format, FORMATS),
    ):
        if value not in options:
            return Refusal(500, f"{name} is not within the range of allowed options")
    editing = request.input_image is not None
    highest = MAX_TOLERANCE_EDITING if editing else MAX_TOLERANCE_GENERATING
    if not 0 <= request.safety_tolerance <= highest:
        return Refusal(500, TOLERANCE_OUT_OF_RANGE)
    return None


def is_web_address(url: str) -> bool:
    """Whether `url` is an http or https URL with a host, of at most 2,048 characters."""
    if len(url) > MAX_URL_LENGTH:
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


# "remove", a few words that only describe, then a word for writing. A word such as "keep" or "behind" between
# the two means that something else is to go.
_REMOVING = (
    r"(?:(?:remov|eras|delet|wip|eliminat)(?:e|es|ed|ing|al|ion)|strip(?:s|ped|ping)?|get(?:ting)?\s+rid"
    r"|(?:clean|clear|cleaning|clearing|take|taking)\s+(?:up|out|off|away))"
)
_WRITING = (
    r"(?:texts?|words?|wording|letters?|lettering|captions?|subtitles?|watermarks?|writings?|handwriting"
    r"|inscriptions?|typography|headlines?|slogans?|typeface)"
)
_OTHER_AIM = (
    r"(?:but|keep\w*|leav\w*|preserv\w*|except|behind|near|beside|besides|next|under|above|below|over|around"
    r"|with|without|while|instead|into|onto|not)"
)
_BETWEEN = rf"(?:[\s,;:'\"()/&-]+(?!{_OTHER_AIM}\b)[\w'-]+){{0,8}}?"
_REMOVES_TEXT = re.compile(
    rf"(?<!not )(?<!n't )(?<!never )\b{_REMOVING}\b{_BETWEEN}[\s,;:'\"()/&-]+{_WRITING}\b"
    r"|\btext[\s-]?free\b|\b(?:text|watermark|caption)s?\s+removal\b",
    re.IGNORECASE,
)


def asks_to_remove_text(prompt: str) -> bool:
    """Whether a prompt asks to remove text from an image."""
    return _REMOVES_TEXT.search(prompt[:10_000]) is not None
