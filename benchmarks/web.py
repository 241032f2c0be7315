"""The FastAPI example under load: how long does a POST take, and is each image answered and paid once?

The example is served by uvicorn in one process; another one is the load, a third one the vendor. Images are
added at a steady rate while up to 100 tasks are in flight. After a third of them the server gets SIGTERM,
after two thirds SIGKILL, and is started again each time; a request without an answer is made again, as a
browser would. 500 images (short: 60).

With ``--replicas`` two servers on one PostgreSQL get the requests in turn; SIGTERM goes to the first one,
SIGKILL to the second.

Exits 1 where an image has no result, was charged twice, or the server did not end within its grace; with
``--long`` also where the 95th percentile of POST is over 50 ms while no request has to be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import httpx

from harness.processes import read_ledger, sandbox
from harness.report import introduce, parser

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import servers

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KEY = "hook"
SPEED, RATE = 4.0, 8.0
# Records appear after 60 s of the vendor's clock, so that tasks stay in flight; callbacks come later still.
FAULTS = "late-record=60:100%,callback-late=60:100%"
GRACE_S = 5 + 30 + 5
SLOWEST_POST_MS = 50.0
START_S, END_S = 120.0, 600.0
DOUBT_S = 60.0
"""How long an image may be in doubt after all others have ended: then no callback comes any more."""


def serve(port: int) -> None:
    """Serve the example as it is, but for the rate limit, which is that of a vendor in a hurry."""
    import uvicorn  # noqa: PLC0415 - only the server needs it

    import flux_async  # noqa: PLC0415 - as above

    limits = flux_async.Limits(submits=19, window_s=10.0 / SPEED, in_flight=100)
    flux_async.FluxClient = partial(flux_async.FluxClient, limits=limits)  # type: ignore[assignment,misc]
    sys.path.insert(0, str(EXAMPLES))
    uvicorn.run("fastapi_service:app", port=port, timeout_graceful_shutdown=5, log_level="warning")


@attrs.define
class Server:
    """The server process, which ends and begins again."""

    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; it is not ready yet."""
        command = [sys.executable, __file__, "--serve", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environment)

    async def end(self, number: signal.Signals) -> float:
        """Send a signal, wait for its end, and return the seconds that took."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(number)
        await asyncio.to_thread(self.process.wait, END_S)
        return time.monotonic() - begun


@contextlib.contextmanager
def serving(vendor: str, folder: str, dsn: str | None = None) -> Iterator[Server]:
    """Serve the example, and end it whatever happens."""
    with servers.reserved_port() as reserved:
        port = servers.port_of(reserved)
        settings = {
            "KIE_BASE_URL": vendor,
            "KIE_API_KEY": "test",
            "KIE_WEBHOOK_KEY": KEY,
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "DATA_FOLDER": folder,
        } | ({} if dsn is None else {"FLUX_ASYNC_DSN": dsn})
        server = Server(port, os.environ | settings)
        server.start()
        try:
            yield server
        finally:
            if server.process is not None:
                server.process.kill()
                server.process.wait()


@contextlib.contextmanager
def serving_all(vendor: str, folder: str, *, has_replicas: bool) -> Iterator[list[Server]]:
    """Serve the example in one process, or in two on a PostgreSQL server."""
    with contextlib.ExitStack() as stack:
        if not has_replicas:
            yield [stack.enter_context(serving(vendor, folder))]
            return
        programs = servers.postgres_bin()
        if programs is None:
            raise SystemExit("PostgreSQL is not installed.")
        postgres, _ = stack.enter_context(servers.running_postgres(programs))
        yield [stack.enter_context(serving(vendor, folder, postgres.dsn())) for _ in range(2)]


@attrs.define
class Load:
    """What the load has sent to the servers in turn, and seen."""

    client: httpx.AsyncClient
    urls: list[str]
    taken_ms: list[float] = attrs.field(factory=list)
    recovering_ms: list[float] = attrs.field(factory=list)
    floor_ms: list[float] = attrs.field(factory=list)
    repeating: set[int] = attrs.field(factory=set)
    keys: set[str] = attrs.field(factory=set)
    again: int = 0
    most_in_flight: int = 0

    async def add(self, number: int) -> None:
        """Add an image, again while there is no answer; a first answer is timed."""
        form = {"url": f"https://pictures.example/{number}.jpg"}
        for attempt in range(round(END_S / 0.5)):
            begun = time.perf_counter()
            with contextlib.suppress(httpx.HTTPError):
                url = self.urls[(number + attempt) % len(self.urls)]
                answer = await self.client.post(f"{url}/images", data=form)
                if answer.status_code == 202:
                    if not attempt:
                        times = self.recovering_ms if self.repeating else self.taken_ms
                        times.append((time.perf_counter() - begun) * 1000.0)
                    self.repeating.discard(number)
                    self.keys.add(answer.json()["key"])
                    return
            self.repeating.add(number)
            self.again += 1
            await asyncio.sleep(0.5)

    async def until_ready(self) -> None:
        """Wait until the servers take images."""
        async with asyncio.timeout(START_S):
            for url in self.urls:
                while not await self._is_ready(url):  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.05)

    async def _is_ready(self, url: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return (await self.client.get(f"{url}/readyz")).status_code == 200
        return False

    async def watch(self) -> None:
        """Read how many tasks are in flight, five times a second, and how long that takes at the least."""
        while True:
            now = 0
            for url in self.urls:
                with contextlib.suppress(httpx.HTTPError):
                    begun = time.perf_counter()
                    now += (await self.client.get(f"{url}/healthz")).json()["in_flight"]
                    if not self.repeating:
                        self.floor_ms.append((time.perf_counter() - begun) * 1000.0)
            self.most_in_flight = max(self.most_in_flight, now)
            await asyncio.sleep(0.2)

    async def states(self) -> dict[str, str]:
        """Wait until each image has its outcome, and return them.

        A submit that SIGKILL has cut off stays in doubt if no callback names its task.
        """
        states: dict[str, str] = {}
        moved = time.monotonic()
        async with asyncio.timeout(END_S):
            while len(states) < len(self.keys):
                rest = {key: await self._state_of(key) for key in self.keys - states.keys()}
                ended = {key: state for key, state in rest.items() if state in {"succeeded", "failed"}}
                if ended:
                    moved = time.monotonic()
                elif set(rest.values()) == {"in_doubt"} and time.monotonic() - moved > DOUBT_S:
                    ended = rest
                states |= ended
                await asyncio.sleep(1.0)
        return states

    async def _state_of(self, key: str) -> str:
        return str((await self.client.get(f"{self.urls[-1]}/images/{key}")).json()["state"])


async def run(served: list[Server], jobs: int) -> tuple[Load, float, dict[str, str]]:
    """Send the load through both ends; return it, the seconds of the stop, and the outcomes."""
    stopped_s = 0.0
    async with httpx.AsyncClient(timeout=30.0) as client, asyncio.TaskGroup() as group:
        load = Load(client, [server.url for server in served])
        await load.until_ready()
        watching = group.create_task(load.watch())
        async with asyncio.TaskGroup() as adding:
            for number in range(jobs):
                if number == jobs // 3:
                    stopped_s = await served[0].end(signal.SIGTERM)
                    served[0].start()
                elif number == 2 * jobs // 3:
                    if len(served) > 1:
                        await load.until_ready()  # of several replicas one is always there
                    await served[-1].end(signal.SIGKILL)
                    served[-1].start()
                adding.create_task(load.add(number))
                await asyncio.sleep(1.0 / RATE)
        watching.cancel()
        await load.until_ready()
        states = await load.states()
    return load, stopped_s, states


def p95_of(taken_ms: list[float]) -> float:
    """Return the 95th percentile; 0 of fewer than two."""
    return statistics.quantiles(taken_ms, n=20)[-1] if len(taken_ms) > 1 else 0.0


def main() -> int:
    """Measure and print."""
    arguments = parser(__doc__, short="60 images", long="500 images")
    arguments.add_argument("--serve", type=int, metavar="PORT", help="serve the example (what a child does)")
    arguments.add_argument("--replicas", action="store_true", help="two servers on a PostgreSQL server")
    options = arguments.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    jobs = 500 if options.long else 60
    introduce(f"one round; {jobs} images, {RATE:g} a second", ("fastapi", "uvicorn"))
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="web-") as folder,
        sandbox(speed=SPEED, credits=jobs * 20, webhook_key=KEY, faults=FAULTS) as vendor,
        serving_all(vendor, folder, has_replicas=options.replicas) as served,
    ):
        load, stopped_s, states = asyncio.run(run(served, jobs))
        ledger = read_ledger(vendor)
        files = sum(not path.name.startswith(".") for path in Path(folder, "results").iterdir())
    succeeded = sum(state == "succeeded" for state in states.values())
    in_doubt = sum(state == "in_doubt" for state in states.values())
    twice = sum(len(line["tasks"]) > 1 for line in ledger["images"].values())
    p95 = p95_of(load.taken_ms)
    median = statistics.median(load.taken_ms)
    print(
        f"images {jobs}, succeeded {succeeded}, in doubt {in_doubt}, files {files}, "
        f"charged {len(ledger['images'])}, charged twice {twice}, made again {load.again}"
    )
    print(f"SIGTERM to end {stopped_s:.1f} s, grace {GRACE_S} s; most in flight {load.most_in_flight}")
    print(f"POST: median {median:.1f} ms, p95 {p95:.1f} ms, limit {SLOWEST_POST_MS:g} ms with --long")
    print(f"after a restart, beside repeated requests: p95 {p95_of(load.recovering_ms):.1f} ms")
    print(f"GET /healthz, which does nothing: p95 {p95_of(load.floor_ms):.1f} ms")
    print(f"load average {os.getloadavg()[0]:.1f}")
    is_wrong = twice > 0 or succeeded + in_doubt != jobs or files != succeeded or stopped_s > GRACE_S
    return int(is_wrong or (options.long and p95 > SLOWEST_POST_MS))


if __name__ == "__main__":
    raise SystemExit(main())
