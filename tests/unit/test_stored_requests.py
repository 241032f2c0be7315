"""A request as a journal keeps it, and back."""

from __future__ import annotations

import json

import pytest

from flux_async import CustomModel, EditRequest, GenerateRequest, InvalidInput, LocalImage, Model
from flux_async.api.stored_requests import (
    apply_patch,
    model_patch,
    read_image,
    read_model,
    read_names,
    read_request,
    store_request,
)
from flux_async.models import ImageRequest

IMAGE = "https://h.example/a.jpg"


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt="Ein Leuchtturm", aspect_ratio="16:21", model="flux-kontext-max"),
        EditRequest.text_removal(IMAGE, output_format="png", callback_url="https://ours.example/hook"),
        EditRequest.text_removal(LocalImage(sha256="ab" * 32)),
    ],
    ids=["words", "image", "file"],
)
def test_a_stored_request_is_read_back_as_it_was(request_: ImageRequest) -> None:
    """Every field that was set comes back; the model and the image can be read alone."""
    body = store_request(request_)
    assert read_request(body) == request_
    assert read_model(body) is request_.model
    assert read_image(body) == str(getattr(request_, "input_image", ""))
    assert read_names(body) == (read_image(body) or None, str(request_.model))
    assert None not in json.loads(body).values()


@pytest.mark.parametrize("body", ['{"prompt":"x","sharpness":3}', '{"prompt":"x","model":"next"}', "["])
def test_a_request_of_another_release_is_refused(body: str) -> None:
    """With a field, a model or a shape that is unknown here."""
    with pytest.raises(InvalidInput):
        read_request(body)


def test_the_names_of_a_request_of_another_release_can_be_missing() -> None:
    """They are for events, which must not fail."""
    assert read_names('{"newField":1}') == (None, None)


MINE = CustomModel(id="mine/edit", credits=3, image_field="image_url", options=["aspect_ratio"])


@pytest.mark.parametrize(
    ("request_", "model"),
    [
        (EditRequest.text_removal(IMAGE), Model.MAX),
        (EditRequest.text_removal(IMAGE), Model.NANO_BANANA_EDIT),
        (EditRequest.text_removal(IMAGE), MINE),
        (EditRequest.text_removal(IMAGE, model=MINE), Model.PRO),
        (EditRequest.text_removal(IMAGE, model=MINE), CustomModel(id="b", credits=1, image_field="image")),
        (EditRequest.text_removal(LocalImage(sha256="ab" * 32), aspect_ratio="16:9"), MINE),
    ],
    ids=["of the API", "without translation", "own", "from own", "from own to own", "file"],
)
def test_a_request_with_another_model_is_the_one_that_would_be_made_with_it(
    request_: EditRequest, model: Model | CustomModel
) -> None:
    """With the translation that our prompt has with that model; prompt, image and options stay."""
    body = store_request(request_)
    patched = apply_patch(body, model_patch(body, model))
    options = {} if request_.aspect_ratio is None else {"aspect_ratio": request_.aspect_ratio}
    wanted = EditRequest.text_removal(request_.input_image, model=model, **options)
    assert (read_request(patched), read_model(patched)) == (wanted, model)
    assert json.loads(patched) == json.loads(store_request(wanted))


def test_its_own_model_changes_nothing() -> None:
    """There is nothing to store then."""
    body = store_request(EditRequest.text_removal(IMAGE))
    assert model_patch(body, Model.PRO) is None
    assert apply_patch(body, None) == body


def test_a_prompt_of_the_callers_is_translated_as_before() -> None:
    """Only our own prompt is known to be English."""
    body = store_request(EditRequest(prompt="Ohne Text", input_image=IMAGE, model=MINE))
    assert json.loads(model_patch(body, Model.PRO) or "") == {
        "model": "flux-kontext-pro",
        "customModel": None,
    }


def test_a_model_that_lacks_an_option_of_the_request_is_refused() -> None:
    """An aspect ratio is not left out silently."""
    body = store_request(EditRequest.text_removal(IMAGE, safety_tolerance=1))
    with pytest.raises(InvalidInput, match="safety_tolerance"):
        model_patch(body, MINE)


def test_the_default_model_is_stored_by_name() -> None:
    """A later release with another default reads what was meant."""
    assert json.loads(store_request(GenerateRequest(prompt="x")))["model"] == Model.PRO.value
