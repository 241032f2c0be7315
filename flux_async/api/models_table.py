"""The table of models: their ids in each API, their price, and the options that they accept.

To add a model, add one member to :class:`Model` and its name to :data:`ModelName` below it; no other list of
models exists in the client. Prices are the vendor's at the time of writing; its API does not contain them.

This module imports only the errors: requests are checked with it, and the APIs build on it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeAlias

import attrs

from flux_async.errors import InvalidInput

ApiName: TypeAlias = Literal["kontext", "jobs"]
"""The APIs of the vendor, each a module of ``flux_async.api``."""

RETENTION_S: Mapping[ApiName, float] = {"kontext": 14 * 86_400.0, "jobs": 86_400.0}
"""Seconds for which the vendor keeps results. Its pages say 24 hours and 14 days of the jobs API."""


@attrs.frozen(kw_only=True)
class OnWire:
    """One API's names for a model.

    Attributes:
        model: The model's id in a submit.
        image_field: Field for the address of the input image.
        image_is_list: Whether that field holds a list of addresses.
        extras: Fields that every submit needs, by the API's names, unless the request sets them.
    """

    model: str
    image_field: str = "inputImage"
    image_is_list: bool = False
    extras: Mapping[str, Any] = attrs.field(factory=dict)

    def with_extras(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a submit, and the extras that are not among them."""
        return {**fields, **{name: value for name, value in self.extras.items() if name not in fields}}


@attrs.frozen(kw_only=True)
class ModelRow:
    """One row of the table.

    Attributes:
        credits: Price of an image.
        apis: The APIs that have the model.
        not_in_jobs: Why the jobs API does not have the model, as the end of a sentence.
        options: Fields of a request that the model accepts, besides prompt, image and callback address; None
            stands for all.
        max_prompt: Characters a prompt may have; None without a limit.
        max_safety_generating: Highest ``safety_tolerance`` of a :class:`flux_async.GenerateRequest`.
        max_safety_editing: Highest ``safety_tolerance`` of an :class:`flux_async.EditRequest`.
    """

    credits: float
    apis: Mapping[ApiName, OnWire]
    not_in_jobs: str = ""
    options: frozenset[str] | None = None
    max_prompt: int | None = None
    max_safety_generating: int = 6
    max_safety_editing: int = 2

    def problem_with(self, prompt: str, options: frozenset[str]) -> str | None:
        """Return why the model refuses a request, as the end of a sentence, or None.

        Args:
            prompt: The prompt of the request.
            options: The other fields that the request sets.
        """
        refused = frozenset() if self.options is None else options - self.options
        if refused:
            return f"does not take {', '.join(sorted(refused))}"
        if self.max_prompt is not None and len(prompt) > self.max_prompt:
            return f"takes prompts of at most {self.max_prompt:,} characters, not {len(prompt):,}"
        return None


class Model(enum.StrEnum):
    """The models (API page, "Model Selection"), each with its ``row`` of the table."""

    row: ModelRow

    def __new__(cls, name: str, *rows: ModelRow) -> Self:
        """Make a member of its name and its one row."""
        member = str.__new__(cls, name)
        member._value_ = name
        (member.row,) = rows  # type checkers take Model("…") for a call of this method
        return member

    PRO = (
        "flux-kontext-pro",
        ModelRow(
            credits=5.0,
            apis={
                "kontext": OnWire(model="flux-kontext-pro"),
                "jobs": OnWire(model="flux1-kontext", image_field="input_image"),
            },
        ),
    )
    """Standard."""
    MAX = (
        "flux-kontext-max",
        ModelRow(
            credits=10.0,
            apis={"kontext": OnWire(model="flux-kontext-max")},
            not_in_jobs="its documentation has no field that chooses Max, so Pro might be made instead",
        ),
    )
    """Enhanced."""


ModelName: TypeAlias = Literal["flux-kontext-pro", "flux-kontext-max"]
"""The names of all members of :class:`Model`, for type checkers."""


def credits_of(name: str) -> float:
    """Return the price of a model by its name; for a name of another release, the default model's."""
    try:
        return Model(name).row.credits
    except ValueError:
        return Model.PRO.row.credits


def prices_in_words() -> str:
    """Return the price list for a help text: ``5 (flux-kontext-pro), 10 (flux-kontext-max)``."""
    return ", ".join(f"{model.row.credits:g} ({model.value})" for model in Model)


def on_wire(api: ApiName, name: str) -> OnWire:
    """Return an API's names for a model.

    Raises:
        InvalidInput: The API does not have it.
    """
    try:
        row = Model(name).row
    except ValueError:
        raise _not_in(api, name) from None
    if api not in row.apis:
        raise _not_in(api, name, row.not_in_jobs if api == "jobs" else "")
    return row.apis[api]


def _not_in(api: ApiName, name: str, why: str = "") -> InvalidInput:
    return InvalidInput(f"The {api} API does not have the model {name}{why and ': '}{why}.")


def api_for(model: Model, preferred: ApiName) -> ApiName:
    """Return the API that a task of a model is submitted to: the preferred one, or the only one that has it.

    Raises:
        InvalidInput: The jobs API is preferred, and does not have the model.
    """
    if preferred == "kontext" and preferred not in model.row.apis:
        return "jobs"
    on_wire(preferred, model.value)
    return preferred


def model_of(api: ApiName, wire_model: object) -> Model | None:
    """Return the model whose id in an API is ``wire_model``, or None."""
    found = (model for model in Model if api in model.row.apis and model.row.apis[api].model == wire_model)
    return next(found, None)
