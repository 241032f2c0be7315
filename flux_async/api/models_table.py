"""The table of models: their ids in each API, their price, and the options that they accept.

To add a model, add one member to :class:`Model` and its name to :data:`ModelName` below it; no other list of
models exists in the client. Prices are the vendor's at the time of writing; its API does not contain them.

This module imports only the errors: requests are checked with it, and the APIs build on it.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, TypeAlias

import attrs

from flux_async.errors import InvalidInput, shown

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


# --- models that are not in the table ---------------------------------------------------------------------

_ID = re.compile(r"[!-~]{1,200}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def _check(*, is_valid: bool, attribute: attrs.Attribute[Any], value: object, kind: str) -> None:
    if not is_valid:
        raise InvalidInput(f"{attribute.name} of a CustomModel must be {kind}, not {shown(value)}.")


def _id(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    is_id = isinstance(value, str) and _ID.fullmatch(value) is not None
    _check(is_valid=is_id, attribute=attribute, value=value, kind="the id of a model")


def _field(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    is_name = isinstance(value, str) and _FIELD.fullmatch(value) is not None and value != "prompt"
    _check(is_valid=is_name, attribute=attribute, value=value, kind="the name of a field")


def _flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _check(is_valid=isinstance(value, bool), attribute=attribute, value=value, kind="true or false")


def _price(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_price = is_number and 0 < value < float("inf")  # type: ignore[operator]
    _check(is_valid=is_price, attribute=attribute, value=value, kind="a number of credits above 0")


def _length(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    is_length = isinstance(value, int) and not isinstance(value, bool) and value > 0
    _check(is_valid=is_length, attribute=attribute, value=value, kind="a number of characters")


def _names(instance: CustomModel, attribute: attrs.Attribute[Any], value: Mapping[str, Any]) -> None:
    """Refuse names that are not options, and two fields of one name: one would silently replace the other."""
    fields = instance.options | instance.required | {"prompt"}
    sent = [value.get(field, field) for field in sorted(fields)]
    is_valid = (
        value.keys() <= OPTIONS | {"prompt"}
        and all(isinstance(name, str) and _FIELD.fullmatch(name) is not None for name in value.values())
        and len({*sent, instance.image_field}) == len(sent) + 1
    )
    _check(is_valid=is_valid, attribute=attribute, value=value, kind="options, each with a field of its own")


def _as_options(value: Iterable[str]) -> frozenset[str]:
    names = frozenset() if isinstance(value, str) else frozenset(value)
    if isinstance(value, str) or not names <= OPTIONS:
        listed = ", ".join(sorted(OPTIONS))
        raise InvalidInput(f"Options of a CustomModel must be some of {listed}, not {shown(value)}.")
    return names


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that no one else changes."""
    try:
        text = json.dumps(dict(value), allow_nan=False)
        copy: dict[str, Any] = json.loads(text)
        json.dumps(copy, ensure_ascii=False).encode()  # refuses a lone surrogate
        if "\\u0000" in text:
            raise ValueError(text)  # noqa: TRY301 - PostgreSQL holds no NUL
    except (TypeError, ValueError):
        raise InvalidInput(
            f"extras and names of a CustomModel must be tables of JSON values, not {shown(value)}."
        ) from None
    return copy


@attrs.frozen(kw_only=True)
class CustomModel:
    """A model of the jobs API, as its caller describes it: mostly one that is not in the table of models.

    Its id may be in the table, too: a later release may add it, and must still read the journals of this one.

    Two are equal if their submits are: price and limits do not count, so that a job stays the same job when
    the price is corrected.

    Attributes:
        id: Its id in a submit, and its name.
        credits: Price of an image.
        image_field: Field for the address of the input image.
        image_is_list: Whether that field holds a list of addresses.
        extras: Fields that every submit needs, by the API's names, unless the request sets them.
        names: The API's names of options that it names otherwise: ``{"aspect_ratio": "image_size"}``.
        options: The options that it accepts, by the names of :class:`flux_async.RequestOptions`.
        required: Those of them that a request must set.
        max_prompt: Characters a prompt may have; None without a known limit.
        needs_image: Whether it only edits.

    Raises:
        InvalidInput: A value of a wrong kind.
    """

    id: str = attrs.field(validator=_id)
    credits: float = attrs.field(validator=_price, eq=False)
    image_field: str = attrs.field(validator=_field)
    image_is_list: bool = attrs.field(default=False, validator=_flag)
    extras: Mapping[str, Any] = attrs.field(factory=dict, converter=_as_json, hash=False)
    names: Mapping[str, str] = attrs.field(factory=dict, converter=_as_json, validator=_names, hash=False)
    options: frozenset[str] = attrs.field(default=frozenset(), converter=_as_options, eq=False)
    required: frozenset[str] = attrs.field(default=frozenset(), converter=_as_options, eq=False)
    max_prompt: int | None = attrs.field(default=None, validator=attrs.validators.optional(_length), eq=False)
    needs_image: bool = attrs.field(default=True, validator=_flag, eq=False)

    def __str__(self) -> str:
        return self.id

    @property
    def value(self) -> str:
        """Its name, as that of a :class:`Model`."""
        return self.id

    @property
    def row(self) -> ModelRow:
        """Its row, as that of a :class:`Model`."""
        wire = OnWire(
            model=self.id,
            image_field=self.image_field,
            image_is_list=self.image_is_list,
            names=self.names,
            extras=self.extras,
        )
        return ModelRow(
            credits=self.credits,
            apis={"jobs": wire},
            options=self.options | self.required,
            required=self.required,
            max_prompt=self.max_prompt,
            needs_image=self.needs_image,
        )

    @property
    def data(self) -> dict[str, Any]:
        """Its attributes as JSON; those with their default are left out."""
        fields = {a.name: (getattr(self, a.name), a.default) for a in attrs.fields(type(self))}
        return {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, (value, default) in fields.items()
            if value not in (default, {})
        }

    @property
    def submit_data(self) -> dict[str, Any]:
        """Those of its attributes that a submit depends on."""
        counted = {a.name for a in attrs.fields(type(self)) if a.eq}
        return {name: value for name, value in self.data.items() if name in counted}


AnyModel: TypeAlias = Model | CustomModel
"""A model of the table, or one that the caller describes."""

Prices: TypeAlias = Mapping[Model, float] | Mapping[CustomModel, float] | Mapping[AnyModel, float]
"""Credits per image, by model."""


def credits_of(name: str) -> float:
    """Return the price of a model by its name; for a name of another release, the default model's."""
    try:
        return Model(name).row.credits
    except ValueError:
        return Model.PRO.row.credits


def on_wire(api: ApiName, model: AnyModel | str, aspect_ratio: str | None = None) -> OnWire:
    """Return an API's names for a model.

    Raises:
        InvalidInput: The API does not have it, or not in that aspect ratio.
    """
    try:
        row = (Model(model) if isinstance(model, str) else model).row
    except ValueError:
        raise _not_in(api, str(model)) from None
    if api not in row.apis:
        raise _not_in(api, str(model), row.not_in_jobs if api == "jobs" else "")
    wire = row.apis[api]
    if aspect_ratio is not None and wire.aspect_ratios is not None and aspect_ratio not in wire.aspect_ratios:
        listed = ", ".join(wire.aspect_ratios)
        raise InvalidInput(f"{model} over the {api} API has the aspect ratios {listed}, not {aspect_ratio}.")
    return wire


def _not_in(api: ApiName, name: str, why: str = "") -> InvalidInput:
    return InvalidInput(f"The {api} API does not have the model {name}{why and ': '}{why}.")


def api_for(model: AnyModel, preferred: ApiName, aspect_ratio: str | None = None) -> ApiName:
    """Return the API that a task of a model is submitted to: the preferred one, or the only one that has it.

    Raises:
        InvalidInput: The jobs API is preferred, and does not have the model; or that API does not have it in
            that aspect ratio.
    """
    api = "jobs" if preferred == "kontext" and preferred not in model.row.apis else preferred
    on_wire(api, model, aspect_ratio)
    return api


def model_of(api: ApiName, wire_model: object) -> Model | None:
    """Return the model whose id in an API is ``wire_model``, or None."""
    found = (model for model in Model if api in model.row.apis and model.row.apis[api].model == wire_model)
    return next(found, None)


def name_of(wire_model: object) -> str:
    """Return the name of the model whose id in any API is ``wire_model``, else that id.

    Models are compared by it: a caller's own model may have the id of one in the table.
    """
    found = (model_of(api, wire_model) for api in RETENTION_S)
    return next((model.value for model in found if model is not None), str(wire_model))
