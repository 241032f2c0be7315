"""The sandbox as a server for benchmarks: shorter tasks, a raised limit, a way that takes time, all counted.

    python vendor.py --speed 4 --seed 1 --submits 20 --trip 0.1

Its clock is the real one, so that its times mean the same to a client as the vendor's. ``--speed``
shortens what a task takes, the window of the rate limit, and the way there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from typing import Any

import attrs

from flux_async.sandbox import abortable_http, simulator
from flux_async.sandbox.app import Sandbox
from flux_async.sandbox.models import MODELS
from flux_async.sandbox.server import listening
from flux_async.sandbox.settings import SandboxSettings

UNLIMITED = 10**9
COUNTS = "/__counts"


class Counted:
    """An ASGI application that counts its requests, and answers as if it were far away."""

    def __init__(self, app: Callable[..., Any], trip_s: float) -> None:
        self.app, self.trip_s = app, trip_s
        self.requests = self.connections = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer."""
        if scope["path"] == COUNTS:
            await self._tell(send)
            return
        if scope["path"].startswith("/api/"):
            self.requests += 1
            if self.trip_s:
                await asyncio.sleep(self.trip_s)
        await self.app(scope, receive, send)

    async def _tell(self, send: Any) -> None:
        counts = {"requests": self.requests, "connections": self.connections - 1}  # one of them is this
        body = json.dumps(counts).encode()
        headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def bend(speed: float, submits: int) -> None:
    """Make tasks short and the limit another one; no user of the sandbox has asked for that yet."""
    simulator.MODELS = {  # type: ignore[misc]
        name: attrs.evolve(model, median_s=model.median_s / speed) for name, model in MODELS.items()
    }
    simulator.SUBMITS_PER_WINDOW = submits  # type: ignore[misc]
    simulator.WINDOW = simulator.WINDOW / speed  # type: ignore[misc,attr-defined]


async def serve(seed: int, trip_s: float) -> None:
    """Serve on a free port until killed, and say which."""
    async with Sandbox(SandboxSettings(images="none", credits=1e12, seed=seed)) as sandbox:
        app = Counted(sandbox.app, trip_s)

        class Counting(abortable_http.AbortableProtocol):
            """Counts connections."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                """Count this one."""
                app.connections += 1
                super().connection_made(transport)

        abortable_http.AbortableProtocol = Counting  # type: ignore[misc]
        async with listening(app, port=0) as url:  # type: ignore[arg-type]
            print(f"vendor ready at {url}", flush=True)
            await asyncio.Event().wait()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--submits", type=int, default=UNLIMITED)
    parser.add_argument("--trip", type=float, default=0.0, help="vendor seconds there and back")
    options = parser.parse_args()
    bend(options.speed, options.submits)
    asyncio.run(serve(options.seed, options.trip / options.speed))


if __name__ == "__main__":
    main()
