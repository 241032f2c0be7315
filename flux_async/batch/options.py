"""What a batch is given: its options by name and type, checked, and the protocol of its client."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TypedDict

import attrs

from flux_async.api.models_table import AnyModel, ApiName, CustomModel, Model, ModelName, Prices
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.check_stage import Checker
from flux_async.batch.progress import ProgressObserver
from flux_async.errors import InvalidInput, shown
from flux_async.files.image_source import Source
from flux_async.files.image_writer import SavedFile
from flux_async.files.sink import SavedResult, Sink, check_sink
from flux_async.job_state import NO_CHECKS, WantedChecks
from flux_async.journal.store import Journal
from flux_async.models import ImageRequest, ImageResult, InDoubtPolicy, Job, TaskId, TaskRecord, UploadedFile
from flux_async.policy import check_function, check_positive, of_kind
from flux_async.policy.polling import PollPolicy
from flux_async.policy.retry import RetryPolicy
from flux_async.poller import Poller
from flux_async.session import Session
from flux_async.verification.preserve import PreserveFormat

MOST_ATTEMPTS = 10
"""Of an image with ``until_clean``, each of them paid: a larger number is a slip of the keyboard."""


def check_client(value: object) -> None:
    """Refuse what is no client.

    Raises:
        InvalidInput: It has no session.
    """
    if not isinstance(getattr(value, "session", None), Session):
        raise InvalidInput(
            f"The first argument must be a FluxClient, not {shown(value)}.",
            advice="Give the client of `async with FluxClient() as client:`; nothing was sent.",
        )


def check_flag(value: object, name: str) -> bool:
    """Return ``value``; any other value than True or False may mean the contrary of its truth.

    Raises:
        InvalidInput: It is neither.
    """
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be True or False, not {shown(value)}.")
    return value


def check_folder(value: object, name: str) -> Path:
    """Return a folder's path.

    Raises:
        InvalidInput: It is no path.
    """
    if not isinstance(value, str | os.PathLike):
        raise InvalidInput(f"{name} must be the path of a folder, not {shown(value)}.")
    return Path(value)


def check_functions(name_file: object, on_progress: object = None) -> None:
    """Refuse functions of the caller's that cannot be called.

    Raises:
        InvalidInput: One of them is no function of one argument.
    """
    for name, value in (("name_file", name_file), ("on_progress", on_progress)):
        if value is not None:
            words = f"{name} must be a function of one argument, not {shown(value)}"
            check_function(value, words, takes=1, advice="Give such a function, or leave it out.")


def check_attempts(value: object) -> int:
    """Return how many attempts an image may have.

    Raises:
        InvalidInput: It is no whole number from 1 to ``MOST_ATTEMPTS``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_ATTEMPTS:
        words = f"until_clean must be a whole number from 1 to {MOST_ATTEMPTS}"
        raise InvalidInput(f"{words}, not {shown(value)}.")
    return value


def check_models(values: Sequence[object]) -> tuple[AnyModel, ...]:
    """Return the models that a caller named in a list.

    Raises:
        InvalidInput: It is no list of models.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidInput(f"escalate must be a list of models, not {shown(values)}.")
    return tuple(map(check_model, values))


def check_model(value: object) -> AnyModel:
    """Return the model that a caller named.

    Raises:
        InvalidInput: There is none of that name.
    """
    if isinstance(value, CustomModel):
        return value
    try:
        return Model(str(value))
    except ValueError:
        names = ", ".join(member.value for member in Model)
        raise InvalidInput(f"{shown(value)} is no model.", advice=f"Choose one of {names}.") from None


class ServiceOptions(TypedDict, total=False):
    """Options of :func:`flux_async.run_batch`, which documents them, without the journal."""

    directory: str | os.PathLike[str] | None
    sink: Sink | None
    originals: str | os.PathLike[str] | None
    name_file: Callable[[Job], str] | None
    in_doubt: InDoubtPolicy | Literal["hold", "resubmit"]
    max_credits: float | None
    prices: Prices | None
    timeout: float | None
    retry: RetryPolicy | None
    patience: float
    callbacks: CallbackEndpoint | None
    via_upload: bool
    skip_textless: bool
    preserve: bool
    verify: bool
    preserve_format: PreserveFormat
    until_clean: int
    escalate: Sequence[AnyModel | ModelName]
    checks: Checker | None
    on_progress: ProgressObserver | None


class BatchOptions(ServiceOptions, total=False):
    """Options of :func:`flux_async.run_batch`, which documents them."""

    journal: str | os.PathLike[str] | Journal


class BatchClient(Protocol):
    """What a batch uses of a client; ``FluxClient`` has it all."""

    @property
    def session(self) -> Session:
        """Connections, limits and clock."""

    @property
    def poller(self) -> Poller:
        """Waits for tasks."""

    @property
    def polling(self) -> PollPolicy:
        """When tasks are polled."""

    @property
    def timeout(self) -> float:
        """Seconds a task may take by default."""

    @property
    def fingerprint(self) -> str:
        """A digest that differs between keys and does not reveal the key."""

    def check_reachable(self, request: ImageRequest) -> None:
        """Refuse a request with an image that the vendor can certainly not fetch."""

    async def credits(self) -> float:
        """Return the balance in credits."""

    async def record(self, task_id: TaskId | str, *, api: ApiName | None = None) -> TaskRecord:
        """Poll a task once."""

    async def upload(self, source: Source, *, timeout: float | None = None) -> UploadedFile:
        """Upload an image."""

    async def upload_from_url(self, url: str, *, timeout: float | None = None) -> UploadedFile:
        """Have the upload host fetch an image."""

    async def save(self, image: ImageResult, sink: Sink, *, job: Job, name: str) -> SavedResult:
        """Download a result once and save it in a sink."""

    async def download(
        self,
        image: ImageResult | str,
        destination: str | os.PathLike[str],
        *,
        match_suffix: bool = False,
        retry: bool = True,
    ) -> SavedFile:
        """Download an image to disk."""


@attrs.frozen(kw_only=True)
class RunOptions:
    """The options of one run.

    Attributes:
        sink: Where results go; None leaves them at the vendor.
        directory: The folder that results go to, if ``sink`` is one.
        originals: Where the vendor's copies of the inputs go; None leaves them there.
        timeout_s: Seconds a task may take from its acceptance.
        retry: When a submit is repeated, and how often a job may be paid for.
        patience_s: Seconds the run waits for a service that is away before it halts.
        callbacks: Where the vendor reports ends; None for no callbacks.
        in_doubt: What becomes of a submit in doubt once no callback can come any more.
        via_upload: Whether images that have an address go to the upload host first, too.
        checks: What is checked, before a submit and once an image is saved.

    Raises:
        InvalidInput: One of them has the wrong type.
    """

    sink: Sink | None = attrs.field()
    directory: Path | None
    originals: Path | None
    timeout_s: float
    retry: RetryPolicy = attrs.field(validator=of_kind(RetryPolicy))
    patience_s: float
    callbacks: CallbackEndpoint | None = attrs.field()
    in_doubt: InDoubtPolicy
    via_upload: bool
    checks: WantedChecks = NO_CHECKS

    @sink.validator
    def _check_sink(self, _: object, value: object) -> None:
        if value is not None:
            check_sink(value)

    @callbacks.validator
    def _check_callbacks(self, _: object, value: object) -> None:
        if value is not None and not isinstance(value, CallbackEndpoint):
            raise InvalidInput(
                f"callbacks must be a CallbackEndpoint, not {shown(value)}.",
                advice="Write CallbackEndpoint(url=…, key=…).",
            )

    @property
    def doubt_wait_s(self) -> float:
        """Seconds after a submit for which its callback may still name its task."""
        return 0.0 if self.callbacks is None else self.callbacks.wait_for_doubts_s(self.timeout_s)

    @property
    def fetches(self) -> bool:
        """Whether anything is downloaded."""
        return self.sink is not None or self.originals is not None

    @property
    def place(self) -> str | None:
        """Where files go, for messages; None if none are saved."""
        places = (self.directory, self.sink and type(self.sink).__name__, self.originals)
        return next((str(place) for place in places if place is not None), None)


def in_doubt_policy(value: InDoubtPolicy | str) -> InDoubtPolicy:
    """Return the policy that a caller named.

    Raises:
        InvalidInput: There is none of that name.
    """
    try:
        return InDoubtPolicy(value)
    except ValueError:
        raise InvalidInput(f"in_doubt must be 'hold' or 'resubmit', not {shown(value)}.") from None


class PriceList(dict[AnyModel, float]):
    """The prices of models; of one that is not listed, the price it has itself."""

    def __missing__(self, model: AnyModel) -> float:
        """Return the price of a model of the caller's own."""
        return model.row.credits


def price_list(prices: Prices | None) -> Mapping[AnyModel, float]:
    """Return the price of every model: the given one, else the price of the table.

    Raises:
        InvalidInput: A model that does not exist, or an invalid price.
    """
    given: dict[AnyModel, float] = {}
    try:
        for name, price in (prices or {}).items():
            model = name if isinstance(name, CustomModel) else Model(name)
            given[model] = check_positive(price, "a price")
    except (AttributeError, ValueError) as bad:
        if isinstance(bad, InvalidInput):
            raise
        raise InvalidInput(f"prices must give credits by model, not {shown(prices)}.") from None
    table: dict[AnyModel, float] = {model: model.row.credits for model in Model}
    return MappingProxyType(PriceList(table | given))
