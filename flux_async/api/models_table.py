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


OPTIONS = frozenset(
    {
        "aspect_ratio",
        "enable_translation",
        "output_format",
        "prompt_upsampling",
        "safety_tolerance",
        "upload_cn",
        "watermark",
    }
)
"""The fields of a request that a model may refuse."""

_COMMON_RATIOS = ("21:9", "16:9", "4:3", "1:1", "3:4", "9:16")


@attrs.frozen(kw_only=True)
class OnWire:
    """One API's names for a model.

    Attributes:
        model: The model's id in a submit.
        image_field: Field for the address of the input image.
        image_is_list: Whether that field holds a list of addresses.
        names: The API's names of fields that it names otherwise than its other models.
        aspect_ratios: The aspect ratios that it lists; None stands for all.
        extras: Fields that every submit needs, by the API's names, unless the request sets them.
    """

    model: str
    image_field: str = "inputImage"
    image_is_list: bool = False
    names: Mapping[str, str] = attrs.field(factory=dict)
    aspect_ratios: tuple[str, ...] | None = None
    extras: Mapping[str, Any] = attrs.field(factory=dict)

    def with_extras(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a submit, and the extras that are not among them."""
        return {**fields, **{name: value for name, value in self.extras.items() if name not in fields}}

    def check_aspect_ratio(self, ratio: str | None) -> None:
        """Refuse an aspect ratio that is not listed.

        Raises:
            InvalidInput: It is not.
        """
        if ratio is not None and self.aspect_ratios is not None and ratio not in self.aspect_ratios:
            listed = ", ".join(self.aspect_ratios)
            raise InvalidInput(f"{self.model} has the aspect ratios {listed}, not {ratio}.")


@attrs.frozen(kw_only=True)
class ModelRow:
    """One row of the table.

    Attributes:
        credits: Price of an image.
        apis: The APIs that have the model.
        not_in_jobs: Why the jobs API does not have the model, as the end of a sentence.
        options: The fields in :data:`OPTIONS` that the model accepts.
        required: Those of them that a request must set.
        max_prompt: Characters a prompt may have; None without a known limit.
        needs_image: Whether the model only edits.
        max_safety_generating: Highest ``safety_tolerance`` of a :class:`flux_async.GenerateRequest`.
        max_safety_editing: Highest ``safety_tolerance`` of an :class:`flux_async.EditRequest`.
    """

    credits: float
    apis: Mapping[ApiName, OnWire]
    not_in_jobs: str = ""
    options: frozenset[str] = OPTIONS
    required: frozenset[str] = frozenset()
    max_prompt: int | None = None
    needs_image: bool = False
    max_safety_generating: int = 6
    max_safety_editing: int = 2

    def problem_with(self, prompt: str, options: frozenset[str], *, has_image: bool) -> str | None:
        """Return why the model refuses a request, as the end of a sentence, or None.

        Args:
            prompt: The prompt of the request.
            options: The fields in :data:`OPTIONS` that the request sets.
            has_image: Whether the request has an input image.
        """
        if refused := options - self.options:
            has = ", ".join(sorted(self.options)) or "no options"
            return f"does not take {', '.join(sorted(refused))}; it has {has}"
        if missing := self.required - options:
            return f"needs {', '.join(sorted(missing))}: the vendor's default is not the shape of the image"
        if self.needs_image and not has_image:
            return "only edits images, and this request has none"
        if self.max_prompt is not None and len(prompt) > self.max_prompt:
            return f"takes prompts of at most {self.max_prompt:,} characters, not {len(prompt):,}"
        return None


def _edits(
    model: str,
    image_field: str,
    *,
    price: float,
    image_is_list: bool = True,
    options: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    names: Mapping[str, str] | None = None,
    extras: Mapping[str, Any] | None = None,
    max_prompt: int | None = None,
    needs_image: bool = True,
) -> tuple[str, ModelRow]:
    """Return name and row of a model that only the jobs API has, under the same name."""
    wire = OnWire(
        model=model,
        image_field=image_field,
        image_is_list=image_is_list,
        names=names or {},
        aspect_ratios=_COMMON_RATIOS,
        extras=extras or {},
    )
    return model, ModelRow(
        credits=price,
        apis={"jobs": wire},
        options=frozenset(options),
        required=frozenset(required),
        max_prompt=max_prompt,
        needs_image=needs_image,
    )


class Model(enum.StrEnum):
    """The models, each with its ``row`` of the table.

    Sources: API page, "Model Selection"; of the others the vendor's pages of 2026. The vendor's default shape
    of most of them is not that of the image: hence ``aspect_ratio: auto`` where it exists, and a request must
    set it where it does not.
    """

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
                "jobs": OnWire(
                    model="flux1-kontext", image_field="input_image", aspect_ratios=_COMMON_RATIOS
                ),
            },
        ),
    )
    """Flux Kontext, standard."""
    MAX = (
        "flux-kontext-max",
        ModelRow(
            credits=10.0,
            apis={"kontext": OnWire(model="flux-kontext-max")},
            not_in_jobs="its documentation has no field that chooses Max, so Pro might be made instead",
        ),
    )
    """Flux Kontext, enhanced."""
    NANO_BANANA_EDIT = _edits(
        "google/nano-banana-edit",
        "image_urls",
        price=4.0,
        options=("aspect_ratio", "output_format"),
        extras={"aspect_ratio": "auto"},
        max_prompt=5000,
    )
    """Gemini 2.5 Flash Image."""
    NANO_BANANA_2_LITE = _edits(
        "nano-banana-2-lite",
        "image_urls",
        price=4.0,
        options=("aspect_ratio",),
        extras={"aspect_ratio": "auto"},
    )
    """Gemini 3.1 Flash Lite Image."""
    NANO_BANANA_2 = _edits(
        "nano-banana-2",
        "image_input",
        price=8.0,
        options=("aspect_ratio",),
        extras={"aspect_ratio": "auto", "resolution": "1K"},
        max_prompt=20_000,
        needs_image=False,
    )
    """Gemini 3.1 Flash Image."""
    QWEN_2_EDIT = _edits(
        "qwen2/image-edit",
        "image_url",
        price=5.6,
        image_is_list=False,
        options=("aspect_ratio", "output_format"),
        required=("aspect_ratio",),
        names={"aspect_ratio": "image_size"},
        max_prompt=800,
    )
    """Qwen Image 2."""
    FLUX_2_PRO = _edits(
        "flux-2/pro-image-to-image",
        "input_urls",
        price=5.0,
        options=("aspect_ratio",),
        extras={"aspect_ratio": "auto", "resolution": "1K"},
        max_prompt=5000,
    )
    """Flux 2."""
    SEEDREAM_4_5_EDIT = _edits(
        "seedream/4.5-edit",
        "image_urls",
        price=6.5,
        options=("aspect_ratio",),
        required=("aspect_ratio",),
        extras={"quality": "basic"},
        max_prompt=3000,
    )
    """Seedream 4.5."""
    SEEDREAM_5_LITE = _edits(
        "seedream/5-lite-image-to-image",
        "image_urls",
        price=5.5,
        options=("aspect_ratio",),
        required=("aspect_ratio",),
        extras={"quality": "basic"},
        max_prompt=3000,
    )
    """Seedream 5 Lite."""
    GPT_IMAGE_2_5_FLARE = _edits("gpt-image-2-5-flare-image-to-image", "input_urls", price=6.0)
    """GPT Image 2.5 Flare."""


ModelName: TypeAlias = Literal[
    "flux-kontext-pro",
    "flux-kontext-max",
    "google/nano-banana-edit",
    "nano-banana-2-lite",
    "nano-banana-2",
    "qwen2/image-edit",
    "flux-2/pro-image-to-image",
    "seedream/4.5-edit",
    "seedream/5-lite-image-to-image",
    "gpt-image-2-5-flare-image-to-image",
]
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
