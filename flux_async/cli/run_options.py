"""The options of a run, and the job that it makes of an input."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import attrs

from flux_async import (
    CallbackEndpoint,
    CustomModel,
    EditRequest,
    InDoubtPolicy,
    InvalidInput,
    Job,
    JobKey,
    Limits,
    LocalImage,
)
from flux_async.api.models_table import AnyModel, ApiName
from flux_async.batch.options import price_list
from flux_async.batch.runner import PATIENCE_S
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import is_address, no_image
from flux_async.files.image_source import identify_now
from flux_async.job_state import NO_CHECKS, WantedChecks
from flux_async.policy.image_urls import with_scheme
from flux_async.transport.factory import TransportName
from flux_async.verification.preserve import PreserveFormat

CONFIRM_ABOVE = 1_000.0
RESULT_FORMATS = ("jsonl", "parquet")
_ANY_URL = "https://example.com/"
_HOST_AND_PORT = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65_535


@attrs.frozen
class ListenAddress:
    """A host and a port of this machine that receives callbacks."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read ``HOST:PORT``, or return None; an empty host stands for every address of this machine."""
        found = _HOST_AND_PORT.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"]) <= _LAST_PORT:  # the vendor could not be given port 0
            return None
        return cls(found["six"] or found["host"] or "0.0.0.0", int(found["port"]))  # noqa: S104 - as asked

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def webhook_keys() -> tuple[str, ...]:
    """Return the webhook keys of ``KIE_WEBHOOK_KEY``, which commas separate."""
    return tuple(filter(None, (key.strip() for key in os.environ.get("KIE_WEBHOOK_KEY", "").split(","))))


@attrs.frozen(kw_only=True)
class RunOptions:
    """The options of a run.

    Attributes:
        folder: Holds journal, images and results.
        destination: The address that the images go to instead, or None.
        limits: The account's rate limit, and the most tasks in flight.
        transport: Library that makes the requests; None stands for ``KIE_TRANSPORT``, else httpx.
        api: API that images are submitted to; None stands for ``KIE_API``, else kontext.
        timeout_s: Seconds an accepted task may take.
        patience_s: Seconds the run waits for a service that is away before it halts.
        download: Whether results are downloaded.
        keep_originals: Whether the inputs are downloaded, too, as the vendor kept them.
        in_doubt: Whether submits in doubt are resubmitted.
        repeats: Options of the command that pay again each time it is run, and those that go only with them.
        max_credits: The most credits this run may spend.
        callbacks: Where the vendor reports ends, or None.
        listen: Where this run receives callbacks; None leaves that to a receiver elsewhere.
        prices: Credits per image, by model, where the user has given them.
        models: Models of the user's own, by name.
        via_upload: Whether images that have an address go through the upload host, too.
        confirm_above: Credits above which the user is asked before they are spent.
        asks: Whether there is a user to ask.
        yes: Whether the answer to every question is yes.
        checks: What is checked once an image is downloaded.
        preserve_format: Format of composed images.
        only_checks: Whether nothing is submitted or fetched, and images that are here are checked.
        results: "parquet" where the run writes results.parquet at its end, too.
        report: Whether the run writes its report at the end, where the extra is installed.
        request_options: Fields of :class:`EditRequest` for every image that does not set them itself.

    Raises:
        InvalidInput: An option is out of range.
    """

    folder: Path
    destination: str | None = None
    limits: Limits = attrs.field(factory=Limits)
    transport: TransportName | None = None
    api: ApiName | None = None
    timeout_s: float = 300.0
    patience_s: float = PATIENCE_S
    download: bool = True
    keep_originals: bool = False
    in_doubt: InDoubtPolicy = InDoubtPolicy.HOLD
    repeats: tuple[str, ...] = ()
    max_credits: float | None = None
    callbacks: CallbackEndpoint | None = None
    listen: ListenAddress | None = None
    prices: Mapping[AnyModel, float] = attrs.field(factory=dict)
    models: Mapping[str, CustomModel] = attrs.field(factory=dict)
    via_upload: bool = False
    confirm_above: float = CONFIRM_ABOVE
    asks: bool = False
    yes: bool = False
    checks: WantedChecks = NO_CHECKS
    preserve_format: PreserveFormat = "png"
    only_checks: bool = False
    results: str = "jsonl"
    report: bool = False
    request_options: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        EditRequest.text_removal(_ANY_URL, **self.request_options)  # refuses what no image could be sent with
        for model in self.checks.escalate:
            EditRequest.text_removal(_ANY_URL, **{**self.request_options, "model": model})

    @property
    def check_flags(self) -> tuple[str, ...]:
        """The options of the command line that ask for the checks."""
        return ("--preserve",) * self.checks.preserve + ("--verify",) * self.checks.verify

    @property
    def keeps_originals(self) -> bool:
        """Whether the inputs are downloaded: to be kept, or to be compared with the results."""
        return self.keep_originals or self.checks != NO_CHECKS

    @property
    def expected_prices(self) -> Mapping[AnyModel, float]:
        """Credits per image, by model: as given, else as in the price list."""
        return price_list(self.prices)

    def job_for(self, given: InputRow) -> Job:
        """Return the job of one input. A file is read, in the caller's thread.

        Raises:
            InvalidInput: It cannot be a request.
        """
        image: str | LocalImage = given.image
        if given.is_file:
            image = identify_now(LocalImage(path=given.image, folder=given.folder))
        elif not is_address(given.image) or with_scheme(given.image) is not None:
            raise InvalidInput(no_image(given.image))
        options = {**self.request_options, **given.options}
        if (own := self.models.get(options.get("model", ""))) is not None:
            options["model"] = own
        request = EditRequest.text_removal(image, **options)
        return Job(request=request) if given.key is None else Job(request=request, key=JobKey(given.key))
