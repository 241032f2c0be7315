"""Reads the submits of the jobs API: model, callback address and the fields of ``input``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flux_async.sandbox.faults import Rule, faults_of_url
from flux_async.sandbox.models import MODELS, Api, Model, Option
from flux_async.sandbox.requests import (
    DEFAULT_TOLERANCE,
    MAX_TOLERANCE_EDITING,
    MAX_TOLERANCE_GENERATING,
    TOLERANCE_OUT_OF_RANGE,
    TYPE_NAMES,
    Order,
    Refusal,
    digest_of,
    has_type,
    is_web_address,
    unknown_names,
    without_surrogates,
)

# Public clients that probe models with an empty input report these two codes and texts.
NO_SUCH_MODEL: Final = (
    "The model name you specified is not supported. "
    "Please verify your input and use one of the supported models provided by KIE."
)
_MISSING: Final = 500

_ENVELOPE: Final = ("model", "callBackUrl", "input")
_TAKES: Final[Mapping[str, tuple[type, ...]]] = {"one": (str,), "list": (list,), "either": (str, list)}


class _RefusedError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.refusal: Refusal = Refusal(code, message)


def read_job_request(body: object) -> Order | Refusal:
    """Read the decoded JSON body of a submit to createTask."""
    try:
        return _read(body)
    except _RefusedError as error:
        return error.refusal


def _read(body: object) -> Order:
    if not isinstance(body, dict):
        raise _RefusedError(422, "The request body must be a JSON object.")
    name = body.get("model")
    model = MODELS.get(name) if isinstance(name, str) else None
    if model is None or model.api is not Api.JOBS:
        raise _RefusedError(422, NO_SUCH_MODEL)
    fields = body.get("input")
    if not isinstance(fields, dict):
        raise _RefusedError(_MISSING, "input is required")
    sent = _checked(fields, model)
    images = _images(sent, model)
    image = images[0] if images else None
    options = {field: value for field, value in sent.items() if field != model.image}
    callback = _callback(body)
    output_format = str(options.get("output_format", model.output_format))
    # The ledger compares requests of both APIs in the spelling of the older one.
    asked = {_camel_case(field): value for field, value in options.items()}
    asked |= {"model": model.same_as or model.name, **({"inputImage": image} if image else {})}
    return Order(
        api=Api.JOBS,
        prompt=str(sent["prompt"]),
        input_image=image,
        aspect_ratio=_ratio(options.get(model.ratio), image),
        output_format="jpeg" if output_format == "jpg" else output_format,
        model=model.name,
        price=model.price_of(options),
        safety_tolerance=_tolerance(sent, image),
        call_back_url=callback,
        faults=_faults(image, model),
        sent={
            "input": _echoed(fields),
            **({"callBackUrl": callback} if callback else {}),
            "model": model.name,
        },
        digest=digest_of(asked | ({"images": images} if len(images) > 1 else {})),
        unknown=unknown_names(body, _ENVELOPE) + unknown_names(fields, (*_options(model), model.image)),
    )


def _options(model: Model) -> Mapping[str, Option]:
    return {"prompt": str, **model.options}


def _checked(fields: Mapping[Any, object], model: Model) -> dict[str, object]:
    """Return the known fields that were sent; null is the same as absent."""
    known = (*_options(model), model.image)
    sent = {name: without_surrogates(fields[name]) for name in known if fields.get(name) is not None}
    for name in ("prompt", *((model.image,) if model.needs_image else ()), *model.required):
        value = sent.get(name)
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            raise _RefusedError(_MISSING, f"{name} is required")
    for name, option in _options(model).items():
        _check(name, sent.get(name), option)
    return sent


def _check(name: str, value: object, option: Option) -> None:
    kind = str if isinstance(option, tuple) else option
    if value is not None and not has_type(value, kind):
        raise _RefusedError(422, f"{name} must be {TYPE_NAMES[kind]}.")
    if value is not None and isinstance(option, tuple) and value not in option:
        raise _RefusedError(500, f"{name} is not within the range of allowed options")


def _images(sent: Mapping[str, object], model: Model) -> list[str]:
    """Return the addresses of the input images."""
    value = sent.get(model.image)
    if value is None or value == "":
        return []
    if not isinstance(value, _TAKES[model.image_is]):
        shape = "a string" if model.image_is == "one" else "an array of strings"
        raise _RefusedError(422, f"{model.image} must be {shape}.")
    urls = value if isinstance(value, list) else [value]
    if len(urls) > model.most_images:
        raise _RefusedError(422, f"{model.image} must not exceed {model.most_images} items.")
    for url in urls:
        if not isinstance(url, str) or not is_web_address(url.strip()):
            raise _RefusedError(422, f"{model.image} must be a publicly accessible http or https URL.")
    return [str(url).strip() for url in urls]


def _tolerance(sent: Mapping[str, object], image: str | None) -> int:
    tolerance = sent.get("safety_tolerance", DEFAULT_TOLERANCE)
    assert isinstance(tolerance, int)  # noqa: S101 - checked with its options
    if not 0 <= tolerance <= (MAX_TOLERANCE_EDITING if image else MAX_TOLERANCE_GENERATING):
        raise _RefusedError(500, TOLERANCE_OUT_OF_RANGE)
    return tolerance


def _callback(body: Mapping[Any, object]) -> str | None:
    url = without_surrogates(body.get("callBackUrl"))
    if url is None or url == "":
        return None
    if not isinstance(url, str) or not is_web_address(url.strip()):
        raise _RefusedError(422, "callBackUrl must be a publicly accessible http or https URL.")
    return url.strip()


def _echoed(fields: Mapping[Any, object]) -> dict[str, object]:
    """Return ``input`` as records echo it: with the fields that the model does not have."""
    return {str(without_surrogates(name)): without_surrogates(value) for name, value in fields.items()}


def _ratio(ratio: object, image: str | None) -> str | None:
    if ratio is None and image is None:
        return "16:9"
    return None if ratio in {None, "auto"} else str(ratio)


def _faults(image: str | None, model: Model) -> tuple[Rule, ...]:
    try:
        return faults_of_url(image) if image else ()
    except ValueError as error:  # with a misspelled fault a test would test nothing
        raise _RefusedError(422, f"{model.image}: {error}") from None


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
