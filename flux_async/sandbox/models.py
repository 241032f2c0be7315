"""The models of both APIs: prices, image fields and options, the sandbox's own price list."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Final, Literal

import attrs

_DOLLARS_PER_CREDIT: Final = 0.005

RATIOS: Final = ("21:9", "16:9", "4:3", "1:1", "3:4", "9:16", "16:21")
FORMATS: Final = ("jpeg", "png")

_MORE_RATIOS: Final = ("auto", "21:9", "16:9", "3:2", "4:3", "5:4", "1:1", "4:5", "3:4", "2:3", "9:16")
_SIZES: Final = ("1K", "2K", "4K")


class Api(enum.StrEnum):
    """The API through which a task is submitted and read."""

    KONTEXT = "kontext"
    JOBS = "jobs"


Option = tuple[str, ...] | type[str] | type[bool] | type[int]
"""The values that an option takes, or their type."""


@attrs.frozen(kw_only=True)
class Model:
    """One model of the price list.

    Attributes:
        price: Credits an image; `prices` are those by the option ``resolution``.
        median_s: Vendor seconds that a task takes, in the median.
        image: The field of the input image.
        image_is: What the field takes: one address, a list of addresses, or either.
        most_images: The longest list.
        needs_image: Whether a request without an image is refused.
        options: The options it has besides prompt and image; the others are ignored.
        required: The options without a default.
        ratio: The option that sets the aspect ratio.
        output_format: The format of the result unless ``output_format`` says otherwise.
        same_as: The id under which the ledger compares its requests; empty for its own.
    """

    name: str
    api: Api = Api.JOBS
    provider: str
    price: float
    prices: Mapping[str, float] = attrs.Factory(dict)
    median_s: float = 15.0
    image: str
    image_is: Literal["one", "list", "either"] = "list"
    most_images: int = 10
    needs_image: bool = True
    options: Mapping[str, Option] = attrs.Factory(dict)
    required: tuple[str, ...] = ()
    ratio: str = "aspect_ratio"
    output_format: str = "png"
    same_as: str = ""

    def price_of(self, options: Mapping[str, object]) -> float:
        """Return the credits that an image with these options costs."""
        return self.prices.get(str(options.get("resolution")), self.price)


def _kontext(name: str, price: float, median_s: float) -> Model:
    return Model(
        name=name,
        api=Api.KONTEXT,
        provider="Black Forest Labs",
        price=price,
        median_s=median_s,
        image="inputImage",
        image_is="one",
        needs_image=False,
        output_format="jpeg",
    )


def _kontext_by_jobs(name: str) -> Model:
    return Model(
        name=name,
        provider="Black Forest Labs",
        price=5.0,
        median_s=12.0,
        image="input_image",
        image_is="one",
        needs_image=False,
        options={
            "aspect_ratio": RATIOS[:-1],
            "output_format": FORMATS,
            "enable_translation": bool,
            "prompt_upsampling": bool,
            "safety_tolerance": int,
            "upload_cn": bool,
            "watermark": str,
        },
        output_format="jpeg",
        same_as="flux-kontext-pro",
    )


MODELS: Final[Mapping[str, Model]] = {
    model.name: model
    for model in (
        _kontext("flux-kontext-pro", 5.0, 12.0),
        _kontext("flux-kontext-max", 10.0, 20.0),
        _kontext_by_jobs("flux1-kontext"),
        _kontext_by_jobs("custom_flux_kontext"),
        Model(
            name="google/nano-banana-edit",
            provider="Google",
            price=4.0,
            image="image_urls",
            options={"aspect_ratio": _MORE_RATIOS, "output_format": FORMATS},
        ),
        Model(
            name="nano-banana-2-lite",
            provider="Google",
            price=4.0,
            image="image_urls",
            options={"aspect_ratio": _MORE_RATIOS, "output_format": FORMATS},
            required=("aspect_ratio",),
        ),
        Model(
            name="nano-banana-2",
            provider="Google",
            price=8.0,
            image="image_input",
            needs_image=False,
            options={"aspect_ratio": _MORE_RATIOS, "resolution": _SIZES, "output_format": ("png", "jpg")},
        ),
        Model(
            name="nano-banana-pro",
            provider="Google",
            price=18.0,
            image="image_input",
            needs_image=False,
            options={"aspect_ratio": _MORE_RATIOS, "resolution": _SIZES, "output_format": ("png", "jpg")},
        ),
        Model(
            name="qwen/image-edit",
            provider="Qwen",
            price=5.0,  # a megapixel; every image counts as one
            image="image_url",
            image_is="one",
            options={"output_format": FORMATS},
        ),
        Model(
            name="qwen2/image-edit",
            provider="Qwen",
            price=5.6,
            image="image_url",
            image_is="either",
            options={"image_size": _MORE_RATIOS[1:], "output_format": FORMATS},
            ratio="image_size",
        ),
        Model(
            name="flux-2/pro-image-to-image",
            provider="Black Forest Labs",
            price=5.0,
            prices={"2K": 7.0},
            image="input_urls",
            most_images=8,
            options={"aspect_ratio": _MORE_RATIOS, "resolution": ("1K", "2K")},
            required=("aspect_ratio", "resolution"),
        ),
        Model(
            name="seedream/4.5-edit",
            provider="ByteDance",
            price=6.5,
            image="image_urls",
            options={"aspect_ratio": _MORE_RATIOS[1:], "quality": ("basic", "high")},
            required=("aspect_ratio", "quality"),
        ),
        Model(
            name="seedream/5-lite-image-to-image",
            provider="ByteDance",
            price=5.5,
            image="image_urls",
            options={"aspect_ratio": _MORE_RATIOS[1:], "quality": ("basic", "high")},
        ),
        Model(
            name="gpt-image-2-5-flare-image-to-image",
            provider="OpenAI",
            price=6.0,
            image="input_urls",
            options={"aspect_ratio": _MORE_RATIOS, "resolution": _SIZES},
        ),
    )
}


def catalogue(words: str = "", provider: str = "", task_types: str = "") -> dict[str, object]:
    """Return ``data`` of GET models, for the models of the jobs API.

    Args:
        words: Text in the id or the provider; empty for all.
        provider: The name of a provider; empty for all.
        task_types: Task types, separated by commas; empty for all.
    """
    found = [entry for entry in _entries() if _matches(entry, words, provider, task_types)]
    return {"total": len(found), "models": found}


def _entries() -> Iterator[dict[str, object]]:
    for model in MODELS.values():
        if model.api is Api.JOBS and model.name != "custom_flux_kontext":
            price = f"An image costs {model.price:g} credits ({model.price * _DOLLARS_PER_CREDIT:g} USD)"
            yield {
                "model": model.name,
                "slug": model.name,
                "title": model.name,
                "provider": model.provider,
                "taskType": ["Image to Image"],
                "description": None,
                "pricingDesc": "; ".join([price, *(f"{size}: {n:g}" for size, n in model.prices.items())]),
            }


def _matches(entry: Mapping[str, object], words: str, provider: str, task_types: str) -> bool:
    types = {name.strip().lower() for name in task_types.split(",") if name.strip()}
    text = f"{entry['model']} {entry['provider']}".lower()
    return (
        words.lower() in text
        and provider.lower() in {"", str(entry["provider"]).lower()}
        and (not types or "image to image" in types)
    )
