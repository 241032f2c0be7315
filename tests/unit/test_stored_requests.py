"""A request as a journal keeps it, and back."""

from __future__ import annotations

import json

import pytest

from flux_async import EditRequest, GenerateRequest, InvalidInput, LocalImage, Model
from flux_async.api.stored_requests import read_image, read_model, read_names, read_request, store_request
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


def test_the_default_model_is_stored_by_name() -> None:
    """A later release with another default reads what was meant."""
    assert json.loads(store_request(GenerateRequest(prompt="x")))["model"] == Model.PRO.value
