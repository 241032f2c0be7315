"""The table of models, and its users."""

from __future__ import annotations

import copy
import pickle
from typing import get_args

import attrs
import pytest

from flux_async import EditRequest, GenerateRequest, InvalidInput, Model
from flux_async.api.models_table import (
    ApiName,
    ModelName,
    ModelRow,
    OnWire,
    credits_of,
    prices_in_words,
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


@pytest.mark.parametrize(
    ("prompt", "options", "problem"),
    [
        ("12345", set(), None),
        ("12345", {"aspect_ratio"}, None),
        ("123456", set(), "takes prompts of at most 5 characters, not 6"),
        ("12345", {"watermark", "aspect_ratio", "upload_cn"}, "does not take upload_cn, watermark"),
    ],
)
def test_a_model_refuses_what_it_does_not_take(prompt: str, options: set[str], problem: str | None) -> None:
    """Options and prompt lengths beyond the row of a model are named."""
    assert ROW.problem_with(prompt, frozenset(options)) == problem


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


def test_help_lists_every_price() -> None:
    """The price list as text has each model with its credits."""
    assert prices_in_words().startswith("5 (flux-kontext-pro), 10 (flux-kontext-max)")
