"""The table of models, and its users."""

from __future__ import annotations

import copy
import pickle
from typing import Any, get_args

import attrs
import pytest

from flux_async import EditRequest, GenerateRequest, InvalidInput, Model, RequestOptions
from flux_async.api.models_table import (
    OPTIONS,
    ApiName,
    ModelName,
    ModelRow,
    OnWire,
    api_for,
    credits_of,
)

URL = "https://example.com/a.jpg"


@pytest.mark.parametrize("model", list(Model))
def test_every_model_has_a_price_and_an_api(model: Model) -> None:
    """Each row has the price of an image, and at least one API of the package that accepts the model."""
    assert model.row.credits > 0
    assert model.row.apis
    assert model.row.apis.keys() <= set(get_args(ApiName))


def test_literals_of_type_checkers_are_the_models() -> None:
    """In the order of the table."""
    assert get_args(ModelName) == tuple(model.value for model in Model)


def test_a_model_is_its_name() -> None:
    """A member is found by its name, equals it, and survives pickle and copy."""
    assert Model("flux-kontext-max") is Model.MAX
    assert Model.MAX == "flux-kontext-max" == str(Model.MAX)  # type: ignore[comparison-overlap]
    assert pickle.loads(pickle.dumps(Model.MAX)) is copy.deepcopy(Model.MAX) is Model.MAX


ROW = ModelRow(
    credits=4, apis={"kontext": OnWire(model="small")}, options=frozenset({"aspect_ratio"}), max_prompt=5
)
STRICT = attrs.evolve(ROW, required=frozenset({"aspect_ratio"}), needs_image=True)
BARE = attrs.evolve(ROW, options=frozenset())


@pytest.mark.parametrize(
    ("row", "prompt", "options", "has_image", "problem"),
    [
        (ROW, "12345", set(), True, None),
        (ROW, "12345", {"aspect_ratio"}, False, None),
        (ROW, "123456", set(), True, "takes prompts of at most 5 characters, not 6"),
        (
            ROW,
            "1",
            {"watermark", "upload_cn"},
            True,
            "does not take upload_cn, watermark; it has aspect_ratio",
        ),
        (BARE, "1", {"aspect_ratio"}, True, "does not take aspect_ratio; it has no options"),
        (STRICT, "1", set(), True, "needs aspect_ratio: the vendor's default is not the shape of the image"),
        (STRICT, "1", {"aspect_ratio"}, False, "only edits images, and this request has none"),
        (STRICT, "1", {"aspect_ratio"}, True, None),
    ],
)
def test_a_model_refuses_what_it_does_not_take(
    row: ModelRow, prompt: str, options: set[str], has_image: bool, problem: str | None
) -> None:
    """What the row of a model does not allow is named, with what it has."""
    assert row.problem_with(prompt, frozenset(options), has_image=has_image) == problem


def test_options_are_the_fields_of_a_request() -> None:
    """All but those that every model has."""
    assert set(OPTIONS) == set(RequestOptions.__annotations__) - {"model", "callback_url"}
    for model in Model:
        assert model.row.required <= model.row.options <= OPTIONS


def test_a_request_its_model_does_not_take_is_refused_when_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes before anything is submitted, and names the model."""
    monkeypatch.setattr(Model.MAX, "row", attrs.evolve(ROW, max_safety_editing=1, max_safety_generating=3))
    GenerateRequest(prompt="x", model="flux-kontext-max", aspect_ratio="1:1")
    with pytest.raises(InvalidInput, match="flux-kontext-max does not take watermark"):
        GenerateRequest(prompt="x", model="flux-kontext-max", watermark="ours")
    with pytest.raises(InvalidInput, match="from 0 to 3 for GenerateRequest"):
        GenerateRequest(prompt="x", model="flux-kontext-max", safety_tolerance=4)
    with pytest.raises(InvalidInput, match="from 0 to 1 for EditRequest"):
        EditRequest(prompt="x", input_image=URL, model="flux-kontext-max", safety_tolerance=2)


def test_a_model_of_another_release_costs_what_the_default_costs() -> None:
    """A status of a journal that names an unknown model is an estimate, not an error."""
    assert credits_of("flux-kontext-max") == Model.MAX.row.credits
    assert credits_of("flux-kontext-next") == Model.PRO.row.credits


@pytest.mark.parametrize("model", list(Model))
def test_text_can_be_removed_with_every_model(model: Model) -> None:
    """The request with the default prompt is accepted, with an aspect ratio where the model needs one."""
    request = EditRequest.text_removal(URL, model=model, **ratio_for(model))
    assert request.model is model
    translates = "enable_translation" in model.row.options
    assert request.enable_translation is (False if translates else None)


def ratio_for(model: Model) -> dict[str, Any]:
    """Return the options that a request of a model must set."""
    return {"aspect_ratio": "16:9"} if model.row.required else {}


def test_a_model_that_only_edits_generates_nothing() -> None:
    """Without an image its request is refused when it is made."""
    with pytest.raises(InvalidInput, match=r"edit only edits images, and this request has none\."):
        GenerateRequest(prompt="A lighthouse", model="google/nano-banana-edit")
    assert GenerateRequest(prompt="A lighthouse", model="nano-banana-2").model is Model.NANO_BANANA_2


@pytest.mark.parametrize("preferred", get_args(ApiName))
def test_a_task_goes_to_the_preferred_api_or_to_the_only_one(preferred: ApiName) -> None:
    """A model that only the jobs API has goes there whatever the default; Pro follows the preference."""
    assert api_for(Model.PRO, preferred) == preferred
    assert api_for(Model.NANO_BANANA_EDIT, preferred) == "jobs"


def test_max_is_refused_over_jobs() -> None:
    """With the reason: nothing in that API chooses Max."""
    assert api_for(Model.MAX, "kontext") == "kontext"
    with pytest.raises(InvalidInput, match=r"flux-kontext-max: .*Pro might be made instead\."):
        api_for(Model.MAX, "jobs")


def test_an_aspect_ratio_that_an_api_does_not_have_is_refused() -> None:
    """With the ratios that it has; the other API may have it."""
    assert api_for(Model.PRO, "kontext", "16:21") == "kontext"
    assert api_for(Model.PRO, "jobs", "9:16") == "jobs"
    with pytest.raises(
        InvalidInput, match=r"pro over the jobs API has the aspect ratios 21:9, .*, not 16:21\."
    ):
        api_for(Model.PRO, "jobs", "16:21")
    with pytest.raises(InvalidInput, match="edit over the jobs API has the aspect ratios"):
        api_for(Model.NANO_BANANA_EDIT, "kontext", "16:21")
