"""Requests as journals store them: JSON with the names of the kontext API, whichever API they are sent to.

Each API module builds its submits from this form, and returns the echo of a record with its names. A local
file is named by its content (``sha256:…``) until its address after the upload is known.
"""

from __future__ import annotations

import json
import re
from typing import Any

import attrs

from flux_async.api.models_table import AnyModel, CustomModel, Model
from flux_async.errors import InvalidInput, shown
from flux_async.images import LocalImage, is_object
from flux_async.models import TEXT_REMOVAL_PROMPT, EditRequest, GenerateRequest, ImageRequest

IMAGE_FIELD = "inputImage"
_MODEL, _CUSTOM = "model", "customModel"
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def stored_name(field: str) -> str:
    """Return the name of a request's field in the stored form: ``aspect_ratio`` is ``aspectRatio``."""
    if field == "callback_url":
        return "callBackUrl"  # the capital B is the vendor's
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def field_name(stored: str) -> str:
    """Return the name of a request's field by its stored name: ``aspectRatio`` is ``aspect_ratio``."""
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", stored)


_OUR_NAMES = {
    kind: {stored_name(a.name): a.name for a in attrs.fields(kind)} for kind in (GenerateRequest, EditRequest)
}


def store_request(request: ImageRequest) -> str:
    """Return the stored form of a request. Unset fields are left out, never null.

    A model of the caller's own is stored with all its attributes: the request can be submitted from here.

    Raises:
        InvalidInput: Its image is a file that has not been read.
    """
    names = _OUR_NAMES[EditRequest if isinstance(request, EditRequest) else GenerateRequest]
    fields: dict[str, Any] = {
        stored: value for stored, name in names.items() if (value := getattr(request, name)) is not None
    }
    if isinstance(image := fields.get(IMAGE_FIELD), LocalImage):
        fields[IMAGE_FIELD] = image.reference
    if isinstance(request.model, CustomModel):
        fields |= {_MODEL: str(request.model), _CUSTOM: request.model.data}
    return encode(fields)


def encode(fields: dict[str, Any]) -> str:
    """Return the fields of a request as compact JSON."""
    return _ENCODER.encode(fields)


def with_input(body: str, input_url: str | None) -> str:
    """Return a stored request with the address of its uploaded image, if there is one."""
    return body if input_url is None else encode(json.loads(body) | {IMAGE_FIELD: input_url})


def fields_to_send(body: str, callback_url: str | None) -> dict[str, Any]:
    """Return the fields of a stored request and its callback address, each by its stored name.

    The model is its name, or a :class:`CustomModel`.

    Raises:
        InvalidInput: Its image has to be uploaded first.
    """
    fields: dict[str, Any] = json.loads(body)
    image = fields.get(IMAGE_FIELD)
    if image is not None and (is_object(image) or LocalImage.of_reference(str(image)) is not None):
        raise InvalidInput("The image of this request has not been uploaded.", advice="Upload it first.")
    if callback_url is not None:
        fields[stored_name("callback_url")] = callback_url
    if _CUSTOM in fields:
        fields[_MODEL] = CustomModel(**fields.pop(_CUSTOM))
    return fields


def read_request(body: str) -> ImageRequest:
    """Return the request of its stored form; a file has only the digest of its content.

    Raises:
        InvalidInput: It has unknown fields, of another release.
    """
    try:
        sent: dict[str, Any] = json.loads(body)
        custom = sent.pop(_CUSTOM, None)
        kind = EditRequest if IMAGE_FIELD in sent else GenerateRequest
        names = _OUR_NAMES[kind]
        given = {names[name]: value for name, value in sent.items()}
        if kind is EditRequest:
            given["input_image"] = LocalImage.of_reference(str(sent[IMAGE_FIELD])) or sent[IMAGE_FIELD]
        if custom is not None:
            given[_MODEL] = CustomModel(**custom)
        return kind(**given)
    except (KeyError, TypeError, ValueError) as bad:
        raise InvalidInput(f"A stored request cannot be read: {shown(bad)}.") from None


def model_patch(body: str, model: AnyModel) -> str | None:
    """Return what another model changes in a stored request, as a JSON merge patch; None for its own model.

    Our own prompt needs no translation: that is asked for as far as the model has the option.

    Raises:
        InvalidInput: The model does not take such a request, or the request is of another release.
    """
    request = read_request(body)
    if model == request.model:
        return None
    fields: dict[str, Any] = {"model": model}
    has_translation = "enable_translation" in model.row.options
    if request.enable_translation is False and not has_translation:
        fields["enable_translation"] = None
    elif request.prompt == TEXT_REMOVAL_PROMPT and request.enable_translation is None and has_translation:
        fields["enable_translation"] = False
    new: dict[str, Any] = json.loads(store_request(attrs.evolve(request, **fields)))
    names = (_MODEL, _CUSTOM, *(stored_name(name) for name in fields if name != "model"))
    return encode({name: new.get(name) for name in names})


def apply_patch(body: str, patch: str | None) -> str:
    """Return a stored request with the changes of :func:`model_patch`."""
    if patch is None:
        return body
    changes: dict[str, Any] = json.loads(patch)
    fields = json.loads(body) | changes
    return encode({name: value for name, value in fields.items() if value is not None})


def read_model(body: str) -> AnyModel:
    """Return only the model of a stored request."""
    fields = json.loads(body)
    return CustomModel(**fields[_CUSTOM]) if _CUSTOM in fields else Model(fields[_MODEL])


def read_aspect_ratio(body: str) -> str | None:
    """Return only the aspect ratio of a stored request, or None."""
    ratio: str | None = json.loads(body).get(stored_name("aspect_ratio"))
    return ratio


def without_terms(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a stored request without price and limits of its model: they may be corrected."""
    if _CUSTOM not in fields:
        return fields
    return fields | {_CUSTOM: CustomModel(**fields[_CUSTOM]).submit_data}


def read_image(body: str) -> str:
    """Return only the image of a stored request, or an empty string."""
    return str(json.loads(body).get(IMAGE_FIELD, ""))


def read_names(body: str) -> tuple[str | None, str | None]:
    """Return the image and the model of a stored request by their names; None for what it does not have."""
    fields = json.loads(body)
    return fields.get(IMAGE_FIELD), fields.get(_MODEL)
