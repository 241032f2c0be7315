"""Serves ``examples/fastapi_service.py`` on a port, with a higher rate limit and more polls than it has."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import uvicorn

import flux_async

EXAMPLES = Path(__file__).parents[2] / "examples"


if __name__ == "__main__":
    flux_async.FluxClient = partial(  # type: ignore[assignment,misc]
        flux_async.FluxClient,
        limits=flux_async.Limits(submits=300, window_s=10),
        polling=flux_async.PollPolicy(first_s=0.5, interval_s=0.5, jitter=0),
    )
    sys.path.insert(0, str(EXAMPLES))
    uvicorn.run(
        "fastapi_service:app", port=int(sys.argv[1]), timeout_graceful_shutdown=5, log_level="warning"
    )
