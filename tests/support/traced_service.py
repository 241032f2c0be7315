"""A job service that tests kill: ``traced_service.py API PORT FOLDER SPANS IMAGE…``.

Its spans go to a file. It prints the name of each event, receives callbacks at the port, and ends when the
jobs whose keys it reads from its standard input have their outcomes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from flux_async import CallbackEndpoint, FluxClient, JobService, OpenTelemetry
from flux_async.events import FluxEvent


class Lines(SpanExporter):
    """Writes each span as a line of JSON as soon as it has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write them."""
        with self._path.open("a") as file:
            file.writelines(f"{span.to_json(indent=None)}\n" for span in spans)
        return SpanExportResult.SUCCESS


def show(event: FluxEvent) -> None:
    """Print the name of an event."""
    print(type(event).__name__, flush=True)  # noqa: T201 - the test reads it


async def main(url: str, port: int, folder: Path, spans: Path, images: list[str]) -> None:
    """Add the images, or continue with those of an earlier process."""
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(Lines(spans)))
    client = FluxClient("test", url, observers=[OpenTelemetry(tracer_provider=tracers), show])
    endpoint = CallbackEndpoint(f"http://127.0.0.1:{port}/callback")
    async with JobService(
        client, journal=folder / "jobs.sqlite3", directory=folder / "results", callbacks=endpoint
    ) as service:
        server = uvicorn.Server(
            uvicorn.Config(service.receiver, port=port, log_level="error", lifespan="off")
        )
        serving = asyncio.get_running_loop().create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print("listening", flush=True)  # noqa: T201 - as above
        for image in images:
            await service.add(image, key=image)
        for key in (await asyncio.to_thread(sys.stdin.read)).splitlines():
            await service.result(key)
        server.should_exit = True
        await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:]))
