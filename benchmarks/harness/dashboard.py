"""Draws ``docs/grafana-dashboard.json`` with live data: ``python benchmarks/harness/dashboard.py FILE.png``.

Two clients work for some minutes at the vendor's own speed, one on a sandbox where much goes wrong, the other
on one whose results it verifies. A Prometheus server (``prometheus`` on the path, ``pip install matplotlib``)
reads their metrics. Then each panel's own queries are sent to it, and what they return is drawn with the
panel's title, unit and legend at its place. It is no picture of Grafana.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from flux_async import EditRequest, FluxClient, Job, Model, OpenTelemetry, run_batch

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness.dashboard_picture import SCRAPE_S, draw
from harness.processes import free_port, serving

FAULTS = "fail-501:6%,400:3%,drop-reply:3%,http-429:1%,poll-500:4%,poll-drop:2%"
RESULTS = "text-left:20%,hallucinate:20%"


async def jobs() -> AsyncIterator[Job]:
    """Yield 40 images at once, every 30 s; each fifth is for the larger model."""
    for number in itertools.count():
        if number % 40 == 0 and number:
            await asyncio.sleep(30.0)
        model = Model.MAX if number % 5 == 0 else Model.PRO
        yield Job(request=EditRequest.text_removal(f"https://pictures.example/{number}.jpg", model=model))


async def samples(url: str) -> AsyncIterator[str]:
    """Yield the address of a sample every 12 s, under another name each time."""
    names = ("coffee-badge", "letter", "coffee-title")
    for number in itertools.count():
        yield f"{url}/samples/{names[number % len(names)]}.png?n={number}"
        await asyncio.sleep(12.0)


async def work(faulty: str, real: str, seconds: float) -> None:
    """Run both batches at once for so long."""
    observer = OpenTelemetry()

    async def run(url: str, images: AsyncIterator[Any], **options: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="dashboard-") as folder:
            async with (
                FluxClient("test", url, observers=[observer]) as client,
                run_batch(client, images, directory=folder, **options) as batch,
            ):
                async for _ in batch:
                    pass

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            group.create_task(run(faulty, jobs()))
            group.create_task(run(real, samples(real), verify=True))


@contextlib.contextmanager
def prometheus(metrics_port: int) -> Iterator[str]:
    """Run a Prometheus server that reads the metrics of this process; yield its address."""
    with tempfile.TemporaryDirectory(prefix="prometheus-") as folder:
        config, address = Path(folder) / "prometheus.yml", f"127.0.0.1:{free_port()}"
        target = f"127.0.0.1:{metrics_port}"
        config.write_text(
            f"global: {{scrape_interval: {SCRAPE_S}s}}\n"
            f"scrape_configs: [{{job_name: app, static_configs: [{{targets: [{target!r}]}}]}}]\n"
        )
        options = (
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}",
            f"--web.listen-address={address}",
        )
        with subprocess.Popen(["prometheus", *options, "--log.level=error"]) as process:
            try:
                yield f"http://{address}"
            finally:
                process.terminate()


def main() -> int:
    """Work, draw, and name the panels without data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    asked = parser.parse_args()
    port = free_port()
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    start_http_server(port, "127.0.0.1")
    sandbox = ("-m", "flux_async.sandbox", "--port", 0, "--seed", 1, "--credits", 1e6)
    with (
        serving(*sandbox, "--images", "none", "--faults", FAULTS) as faulty,
        serving(*sandbox, "--workers", 1, "--speed", 4, "--faults", RESULTS) as real,
        prometheus(port) as server,
    ):
        time.sleep(2 * SCRAPE_S)
        began, seconds = time.time(), asked.minutes * 60
        asyncio.run(work(faulty, real, seconds))
        without = draw(server, began, began + seconds, asked.file)
    if without:
        print(f"without data: {', '.join(without)}", file=sys.stderr)
    return int(bool(without))


if __name__ == "__main__":
    raise SystemExit(main())
