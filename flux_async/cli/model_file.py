"""Models of the user's own, from a TOML file; and the command models, which prints the table of models."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from flux_async import CustomModel, InvalidInput, Model
from flux_async.api.models_table import RETENTION_S, AnyModel
from flux_async.cli.terminal import Exit, Output

_DAY_S = 86_400.0
_COLUMNS = ("model", "credits", "API", "prompt", "options")
_ATTRIBUTES = tuple(attribute.name for attribute in attrs.fields(CustomModel) if attribute.name != "id")


def read_model_file(path: Path) -> dict[str, CustomModel]:
    """Return the models of a TOML file by their ids: one table each, named by the id.

    Raises:
        InvalidInput: It cannot be read, or a model in it is none.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # also what is no UTF-8
        raise InvalidInput(f"{path} is not TOML: {error}.") from None
    if not tables:
        raise InvalidInput(f"{path} has no models.", advice='Begin each with its id: ["lab/model-9"].')
    return {name: _model(path, name, table) for name, table in tables.items()}


def _model(path: Path, name: str, table: Any) -> CustomModel:
    where = f"{path}, model {name if name.isprintable() else ascii(name)}"
    if not isinstance(table, dict):
        raise InvalidInput(f'{where}: it is not a table. Begin it with ["{name}"].')
    if unknown := sorted(table.keys() - set(_ATTRIBUTES)):
        raise InvalidInput(f"{where}: there is no {unknown[0]!r}. Known are {', '.join(_ATTRIBUTES)}.")
    if missing := [field for field in ("credits", "image_field") if field not in table]:
        raise InvalidInput(f"{where}: {' and '.join(missing)} must be given.")
    try:
        return CustomModel(id=name, **table)
    except InvalidInput as bad:
        raise InvalidInput(f"{where}: {bad.message}", advice=bad.advice) from None


# --- the table --------------------------------------------------------------------------------------------


def show_models(own: Mapping[str, CustomModel], *, as_json: bool) -> Exit:
    """Print every model with price, APIs, prompt limit and options; one of a file hides that of its name."""
    output, models = Output(), [*{model.value: model for model in [*Model, *own.values()]}.values()]
    if as_json:
        for model in models:
            output.json(_as_data(model))
        return Exit.SUCCEEDED
    rows = [_COLUMNS, *map(_in_words, models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        output.line("  ".join(map(str.ljust, row, widths)).rstrip())
    for line in _notes():
        output.line(line)
    return Exit.SUCCEEDED


def _as_data(model: AnyModel) -> dict[str, Any]:
    row = model.row
    return {
        "model": model.value,
        "credits": row.credits,
        "apis": list(row.apis),
        "options": sorted(row.options),
        "required": sorted(row.required),
        "max_prompt": row.max_prompt,
        "needs_image": row.needs_image,
    }


def _in_words(model: AnyModel) -> tuple[str, ...]:
    row = model.row
    options = _listed(f"{name}!" if name in row.required else name for name in sorted(row.options))
    longest = "" if row.max_prompt is None else f"{row.max_prompt:,}"
    name = model.value if row.needs_image else f"{model.value} *"
    return name, f"{row.credits:g}", ", ".join(row.apis), longest, options


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _notes() -> Iterator[str]:
    yield ""
    yield "*  makes images from words, too      !  must be given"
    kept = (f"{_time(seconds)} ({api})" for api, seconds in RETENTION_S.items())
    yield f"Results are kept for {', '.join(kept)}. Prices are credits an image."


def _time(seconds: float) -> str:
    return f"{seconds / _DAY_S:g} days" if seconds > _DAY_S else f"{seconds / 3600:g} hours"
