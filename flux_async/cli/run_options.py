"""What a run is told by its options, and the request that it makes of an input."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import attrs

from flux_async import (
    CallbackEndpoint,
    EditRequest,
    InDoubtPolicy,
    InvalidInput,
    Job,
    Limits,
    LocalImage,
    Model,
)
from flux_async.batch.options import price_list
from flux_async.batch.runner import PATIENCE_S
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import is_address, no_image
from flux_async.files.image_source import identify_now
from flux_async.models import JobKey
from flux_async.policy.image_urls import with_scheme
from flux_async.transport.factory import TransportName

CONFIRM_ABOVE = 1_000.0
_ANY_URL = "https://example.com/"
KEY_VARIABLE = "KIE_WEBHOOK_KEY"

_PLACE = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65_535


@attrs.frozen
class Place:
    """Where to listen: a host and a port of this machine."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read ``HOST:PORT``, or return None; an empty host is every address of this machine."""
        found = _PLACE.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"]) <= _LAST_PORT:  # nobody would be told which port 0 is
            return None
        return cls(found["six"] or found["host"] or "0.0.0.0", int(found["port"]))  # noqa: S104 - as asked

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def webhook_keys(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the webhook keys of the environment: one, or several with commas between them."""
    return tuple(filter(None, (key.strip() for key in environment.get(KEY_VARIABLE, "").split(","))))


@attrs.frozen(kw_only=True)
class RunOptions:
    """How a run goes about it.

    Attributes:
        folder: Where journal, images and results are.
        limits: The account's pace, and how many tasks at once.
        transport: Library that makes the requests; None stands for ``KIE_TRANSPORT``, else httpx.
        timeout_s: Seconds an accepted task may take.
        patience_s: Seconds the run waits for a service that is away for now before it halts.
        download: Whether results are brought to disk.
        keep_originals: Whether the inputs are, too, as the vendor kept them.
        in_doubt: What to do with submits whose answer never came.
        repeats: Options of the command that pay again each time it is run.
        max_credits: What this run may spend.
        callbacks: Where the vendor reports ends, or None.
        listen: Where this run receives them; None leaves that to a receiver elsewhere.
        prices: Credits per image, by model.
        via_upload: Whether images that have an address go through the upload host, too.
        confirm_above: Credits above which a person is asked before they are spent.
        asks: Whether there is a person to ask.
        yes: Whether the answer to every question is yes.
        request_options: Fields of :class:`EditRequest` for every image that does not set them itself.

    Raises:
        InvalidInput: An option is out of range.
    """

    folder: Path
    limits: Limits = attrs.field(factory=Limits)
    transport: TransportName | None = None
    timeout_s: float = 300.0
    patience_s: float = PATIENCE_S
    download: bool = True
    keep_originals: bool = False
    in_doubt: InDoubtPolicy = InDoubtPolicy.HOLD
    repeats: tuple[str, ...] = ()
    max_credits: float | None = None
    callbacks: CallbackEndpoint | None = None
    listen: Place | None = None
    prices: Mapping[Model, float] = attrs.field(default=None, converter=price_list)
    via_upload: bool = False
    confirm_above: float = CONFIRM_ABOVE
    asks: bool = False
    yes: bool = False
    request_options: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        # An option that is wrong for one image is wrong for all.
        EditRequest.text_removal(_ANY_URL, **self.request_options)

    def job_for(self, given: InputRow) -> Job:
        """Return what is wanted for one input; a file is read, in the thread of the caller.

        Raises:
            InvalidInput: It is no request.
        """
        image: str | LocalImage = given.image
        if given.is_file:
            image = identify_now(LocalImage(path=given.image, folder=given.folder))
        elif not is_address(given.image) or with_scheme(given.image) is not None:
            raise InvalidInput(no_image(given.image))
        request = EditRequest.text_removal(image, **{**self.request_options, **given.options})
        return Job(request=request) if given.key is None else Job(request=request, key=JobKey(given.key))
