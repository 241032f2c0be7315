"""The vendor's APIs: bytes to models and back, without I/O.

Each API for images is one module that fulfils :class:`Api`; ``models_table`` holds its models. All of them
share ``common_api`` (balance, fresh links), ``uploads`` and ``webhooks``: a callback names its task the same
way in each, so one receiver serves all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, get_args

from flux_async.api.models_table import ApiName
from flux_async.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from flux_async.api.envelope import WireRequest, WireResponse
    from flux_async.models import TaskId, TaskRecord


VARIABLE: Final = "KIE_API"
"""Environment variable that names the API of a client."""

APIS: Final[tuple[ApiName, ...]] = get_args(ApiName)
"""The names of all APIs."""


class Api(Protocol):
    """One API of the vendor: how a task is submitted, and how its state is read.

    Attributes:
        NAME: Its name in the table of models.
        SHOWS_COST: Whether its records show what a task costs; older ones may not.
    """

    NAME: ApiName
    SHOWS_COST: bool

    def build_submit(self, body: str, callback_url: str | None = None) -> WireRequest:
        """Return the POST that creates a task from a stored request, to be reported to ``callback_url``.

        Raises:
            InvalidInput: The request's image has not been uploaded, or this API does not have its model.
        """
        ...

    def parse_submit(self, response: WireResponse) -> TaskId:
        """Return the id of the task that a submit created.

        Raises:
            ApiError: The vendor refused; ``charge`` and ``scope`` hold the consequences.
            UnexpectedResponse: No documented shape, or a success without a task id: charge MAYBE.
        """
        ...

    def build_status(self, task_id: TaskId, *, keep_alive: bool = False) -> WireRequest:
        """Return the GET of a task's record. A poll with ``keep_alive`` needs :meth:`is_for_task`."""
        ...

    def parse_status(self, response: WireResponse, task_id: TaskId) -> TaskRecord:
        """Return the record of a task, its ``params`` by the names of a stored request.

        Raises:
            NotFoundError: No such task, or not visible yet.
            ApiError: Another refusal; ``api/error_codes.py`` holds its meaning for a wait.
            UnexpectedResponse: No documented shape, or the record of another task or of none.
        """
        ...

    def parse_poll(self, response: WireResponse, task_id: TaskId) -> TaskRecord:
        """Return the part of a record that a wait needs; of a generating task state and creation time."""
        ...

    def is_for_task(self, response: WireResponse, task_id: TaskId) -> bool:
        """Return False if an answer over a kept connection may belong to an earlier poll."""
        ...


def choose_api(choice: object, from_environment: str = "") -> ApiName:
    """Return the API of a client: ``choice``, else the value of ``KIE_API``, else kontext.

    Raises:
        ConfigurationError: There is no such API.
    """
    name = (from_environment.strip() or APIS[0]) if choice is None else choice
    for known in APIS:
        if name == known:
            return known
    which = VARIABLE if choice is None else "api"
    raise ConfigurationError(f"{which} must be {' or '.join(APIS)}, not {shown(name)}.")


def load_api(name: ApiName = "kontext") -> Api:
    """Return the API with a name."""
    from flux_async.api import jobs, kontext  # noqa: PLC0415 - requests are checked by a module of this package

    apis: dict[ApiName, Api] = {"kontext": kontext, "jobs": jobs}
    return apis[name]
