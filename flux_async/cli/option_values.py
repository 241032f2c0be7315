"""Values of options of the command line: read, checked, or refused with a usage error."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from flux_async import CustomModel, InvalidInput, Model
from flux_async.api.models_table import AnyModel
from flux_async.batch.options import MOST_ATTEMPTS, price_list
from flux_async.cli.run_options import ListenAddress
from flux_async.verification.preserve import FORMATS

_OWN_MODELS = "flux_async.models"


def read_rate(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, float]:
    """Return the numbers of ``20/10``: submits, and seconds."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6}(?:\.\d{1,6})?)", value.strip())
    if found is None or int(found[1]) == 0 or float(found[2]) == 0:
        raise click.BadParameter(f"invalid rate {value!r}. Use SUBMITS/SECONDS, for example 20/10.")
    return int(found[1]), float(found[2])


def read_address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> ListenAddress | None:
    """Return the host and the port of ``0.0.0.0:8080``."""
    address = None if value is None else ListenAddress.read(value)
    if value is not None and address is None:
        raise click.BadParameter(f"invalid address {value!r}. Use HOST:PORT, for example 0.0.0.0:8080.")
    return address


def own_models(ctx: click.Context) -> Mapping[str, CustomModel]:
    """Return the models of ``--model-file`` by name. It is read before the other options."""
    found: Mapping[str, CustomModel] = ctx.meta.get(_OWN_MODELS, {})
    return found


def read_models(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Read the models of ``--model-file``."""
    from flux_async.cli.model_file import read_model_file  # noqa: PLC0415 - rarely needed

    try:
        ctx.meta[_OWN_MODELS] = {} if value is None else read_model_file(value)
    except InvalidInput as bad:
        raise click.BadParameter(str(bad), ctx, param) from None


def read_escalation(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[AnyModel, ...]:
    """Return the models of ``flux-kontext-pro,flux-kontext-max``."""
    names = [] if value is None else [name.strip() for name in value.split(",")]
    chosen = [ModelChoice().convert(name, param, ctx) for name in names]
    return tuple(model if isinstance(model, CustomModel) else Model(model) for model in chosen)


class ModelChoice(click.Choice[str]):
    """A model of the table, or of ``--model-file``."""

    def __init__(self) -> None:
        super().__init__([model.value for model in Model])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name of a model of the table, or a model of the user's own."""
        own = {} if ctx is None else own_models(ctx)
        return own[value] if value in own else super().convert(value, param, ctx)


def read_prices(
    ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> dict[AnyModel, float]:
    """Return the numbers of ``flux-kontext-pro=6``: credits, by model, of the models that are named."""
    prices: dict[AnyModel, float] = {}
    for value in values:
        name, _, price = value.rpartition("=")
        try:
            model = own_models(ctx).get(name.strip()) or Model(name.strip())
            prices[model] = float(price)
        except ValueError:
            words = "Use MODEL=CREDITS, with a model that `flux-async models` or --model-file has."
            raise click.BadParameter(f"invalid price {value!r}. {words}") from None
    try:
        price_list(prices)
    except InvalidInput as bad:
        raise click.BadParameter(bad.message) from None
    return prices


class Number(click.FloatRange):
    """A finite number in a range. A comparison with ``nan`` is never true, so it would limit nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or raise the usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class OutputFile(click.Path):
    """A file for one image. It is checked before the submit whether the file can be made."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or raise the usage error."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.name or str(value).endswith(os.sep):
            self.fail(f"{str(value)!r} does not name a file.", param, ctx)
        try:
            with contextlib.suppress(FileNotFoundError):
                path.stat()
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            tempfile.TemporaryFile(dir=folder).close()  # also a file system may refuse it
        except OSError as error:
            self.fail(f"{str(value)!r} cannot be made: {error.strerror}.", param, ctx)
        return path


def show_log(_ctx: click.Context, _param: click.Parameter, value: int) -> None:
    """Print the log from the level that ``-v`` asks for."""
    from flux_async.cli import display  # noqa: PLC0415 - loads rich

    display.show_log(value)


PRESERVE_FORMAT = click.option(
    "--preserve-format",
    type=click.Choice(FORMATS),
    default="png",
    help="Format of these images; a JPEG would change every pixel a little.",
)

PRESERVE = click.option(
    "--preserve",
    is_flag=True,
    help="Put every pixel that was not text back from the original; the vendor's image is kept in vendor/.",
)
VERIFY = click.option(
    "--verify", is_flag=True, help="Check that the text is gone and nothing else has changed."
)


def refuse_preserve_format(context: click.Context) -> None:
    """Refuse the format of composed images on a command line that has none composed.

    Raises:
        click.UsageError: It is given.
    """
    if context.get_parameter_source("preserve_format") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--preserve-format goes with --preserve.")


CHECK_OPTIONS = (
    click.option(
        "--skip-textless",
        is_flag=True,
        help="Check each original for text first; one without text is copied and costs nothing.",
    ),
    PRESERVE,
    PRESERVE_FORMAT,
    VERIFY,
    click.option(
        "--until-clean",
        type=click.IntRange(min=1, max=MOST_ATTEMPTS),
        default=1,
        show_default=False,
        help="Verify, and pay for up to N tasks for an image until its text is gone and nothing is damaged.",
        metavar="N",
    ),
    click.option(
        "--escalate",
        callback=read_escalation,
        help="Models of the second task of an image, the third and so on, with --until-clean.",
        metavar="MODELS",
    ),
)
"""The options of a run that ask for checks of its images."""
