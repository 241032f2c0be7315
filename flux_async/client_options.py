"""The settings of a client that each of its copies may have of its own."""

from __future__ import annotations

from typing import Any

import attrs

from flux_async.policy import of_kind, positive_number
from flux_async.policy.downloads import DownloadLimits
from flux_async.policy.polling import PollPolicy
from flux_async.policy.retry import RetryPolicy

DEFAULT_TIMEOUT_S = 300.0


@attrs.frozen(kw_only=True)
class ClientOptions:
    """Settings of a client that :meth:`FluxClient.with_options` changes.

    Attributes:
        timeout: Seconds a call may take.
        polling: When to poll a task.
        retry: When a request is repeated.
        download_limits: Size of a result, and silence of its host.

    Raises:
        InvalidInput: A value of the wrong type, or out of range.
    """

    timeout: float = attrs.field(default=DEFAULT_TIMEOUT_S, validator=positive_number)
    polling: PollPolicy = attrs.field(factory=PollPolicy, validator=of_kind(PollPolicy))
    retry: RetryPolicy = attrs.field(validator=of_kind(RetryPolicy))
    download_limits: DownloadLimits = attrs.field(factory=DownloadLimits, validator=of_kind(DownloadLimits))

    def changed(self, **given: Any) -> ClientOptions:
        """Return a copy with the given values that are not None."""
        return attrs.evolve(self, **{name: value for name, value in given.items() if value is not None})
