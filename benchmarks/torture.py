"""Kills a batch again and again, and checks that no job is lost and none is paid twice.

Real processes, real sockets, real SIGKILL. A sandbox in a child process loses 1 % of its replies after
charging; a worker in another runs a batch on a journal, is killed at random times, and is started again on
the same journal. In the end the journal is audited against the sandbox's ledger. Exits 1 where a job
was lost or charged twice under ``hold``.

With ``--callbacks`` the worker receives the vendor's callbacks, and dies with its receiver; what is in doubt
is submitted again when no callback can come any more. Then nothing may be in doubt in the end either.

``--api jobs`` submits to the vendor's jobs API, ``--api both`` to the other API after each kill, so that one
journal has tasks of both. The sandbox knows a task only at the API of its submit, so polls of the other one
are counted.

With ``--checks`` the command ``remove-text --preserve --verify`` runs on drawn images with its own worker
processes, and the audit covers every file: whole, composed and verified once, no pixel changed but those that
were replaced. On two cores 300 images take about ten minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import subprocess
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flux_async import CallbackEndpoint, FluxClient, Journal, Limits, PollPolicy, run_batch
from flux_async.api import APIS
from flux_async.api.models_table import ApiName
from flux_async.cli.run_options import ListenAddress
from flux_async.cli.webhook_server import bind, listening
from harness.checked_runs import torture_checks
from harness.processes import child, first_line, free_port, read_ledger, sandbox
from harness.report import introduce, parser

SPEED = 20.0
"""The vendor's clock, left alone: 20 submits in 0.5 s, a task of 12 s takes 0.6 s."""
LATENCY = 1.0
"""Vendor seconds between a submit's charge and its reply: the gap that a kill can hit."""
DROPPED = 0.01
STALL_S = 20.0
"""Real seconds for which a busy machine may stand still: so much later a callback may come."""
RUN_LIMIT_S = 900.0
KEY = "torture"


# --- the worker -------------------------------------------------------------------------------------------


async def work(url: str, path: str, jobs: int, *, port: int, speed: float, api: ApiName) -> int:
    """Run the batch, or resume it; return 0 when it came to its end."""
    limits = Limits(submits=20, window_s=10.0 / speed)
    polling = PollPolicy(
        first_s=0.5, interval_s=0.2, not_found_grace_s=10.0, sweep_s=1.5, callback_within_s=0.5
    )
    # What a task may take and the vendor's retries of its callback, on the vendor's clock.
    doubt_wait_s = CallbackEndpoint("http://127.0.0.1").wait_for_doubts_s(300.0) / speed + STALL_S
    endpoint = CallbackEndpoint(f"http://127.0.0.1:{port}/", KEY, doubt_wait_s=doubt_wait_s) if port else None
    async with FluxClient("test", url, api=api, limits=limits, polling=polling, timeout=60.0) as client:
        images = (f"https://pictures.example/{n}.jpg" for n in range(jobs))
        journal = await Journal(path).open(account=client.fingerprint)
        try:
            async with receiving(endpoint, journal, client, port):
                doubt = "hold" if endpoint is None else "resubmit"
                batch = run_batch(client, images, journal=journal, callbacks=endpoint, in_doubt=doubt)
                async with batch:
                    print("running", flush=True)
                    async for _ in batch:
                        pass
        finally:
            await journal.aclose()
    return 0


def receiving(
    endpoint: CallbackEndpoint | None, journal: Journal, client: FluxClient, port: int
) -> contextlib.AbstractAsyncContextManager[None]:
    """Receive callbacks, where there are any."""
    if endpoint is None:
        return contextlib.nullcontext()
    return listening(bind(ListenAddress("127.0.0.1", port)), endpoint, journal, client)


# --- the parent -------------------------------------------------------------------------------------------


def torture(
    jobs: int,
    kills: int,
    seed: int,
    folder: Path,
    *,
    port: int = 0,
    speed: float = SPEED,
    apis: Sequence[ApiName] = ("kontext",),
) -> dict[str, float]:
    """Kill the worker ``kills`` times, let it finish, and return the audit."""
    rng = random.Random(seed)
    journal = folder / "journal.sqlite3"
    vendor = sandbox(
        speed=speed, credits=jobs * 20, latency=LATENCY, faults=f"drop-reply:{DROPPED}", webhook_key=KEY
    )
    begun, killed = time.monotonic(), 0
    mean_s = 0.8 * jobs / (20 / 10 * speed) / max(1, kills)  # so that the kills spread over the whole batch
    with vendor as url:
        while True:
            if time.monotonic() - begun > RUN_LIMIT_S:
                raise SystemExit("torture: not done in time")
            order = ("--work", url, journal, "--jobs", jobs, "--port", port, "--speed", speed)
            order += ("--api", apis[killed % len(apis)])
            with child(__file__, *order) as worker:
                if first_line(worker) != "running":
                    raise SystemExit(f"torture: the worker did not start (exit {worker.wait(10.0)})")
                limit = rng.uniform(0.0, 2 * mean_s) if killed < kills else RUN_LIMIT_S
                try:
                    code = worker.wait(limit)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
                    killed += 1
                    continue
            if code != 0:
                raise SystemExit(f"torture: the worker ended with exit code {code}")
            break
        ledger = read_ledger(url)
    figures = audit(journal, ledger, jobs)
    return {"jobs": jobs, "kills": killed, "seconds": round(time.monotonic() - begun, 1)} | figures


def audit(journal: Path, ledger: dict[str, Any], jobs: int) -> dict[str, float]:
    """Hold what the journal believes against what the vendor charged."""
    with contextlib.closing(sqlite3.connect(journal)) as connection:
        integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
        rows = connection.execute("SELECT request, state, task_id FROM job").fetchall()
        attempts = connection.execute("SELECT count(*) FROM attempt").fetchone()[0]
    book = {json.loads(request)["inputImage"]: (state, task) for request, state, task in rows}
    charged = {image: line["tasks"] for image, line in ledger["images"].items()}
    in_doubt = {image for image, (state, _) in book.items() if state == "in_doubt"}
    ended = {image for image, (state, _) in book.items() if state in {"done", "failed", "in_doubt"}}
    unknown = {
        image for image, tasks in charged.items() if image not in in_doubt and book[image][1] not in tasks
    }
    phantoms = {image for image, (state, _) in book.items() if state == "done" and not charged.get(image)}
    return {
        "done": sum(state == "done" for state, _ in book.values()),
        "failed": sum(state == "failed" for state, _ in book.values()),
        "in doubt, charged": sum(bool(charged.get(image)) for image in in_doubt),
        "in doubt, not charged": sum(not charged.get(image) for image in in_doubt),
        "lost": jobs - len(ended) + len(unknown) + len(phantoms),
        "charged twice": sum(len(tasks) > 1 for tasks in charged.values()),
        "polls at the wrong API": ledger["polls"] - sum(line["polls"] for line in ledger["images"].values()),
        "submits intended": attempts,
        "submits received": ledger["submits"],
        "answered 429": ledger["refused"].get("429", 0),
        "integrity_check ok": int(integrity == "ok"),
    }


def checks(images: int, kills: int, seed: int) -> int:
    """Torture the command with checks and print the audit; return 1 where an image is not as it should be."""
    introduce(f"one round of {images:,} images, {kills} kills at times drawn with seed {seed}")
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        figures = torture_checks(images, kills, seed, Path(folder))
    for name, value in figures.items():
        print(f"{name:<24}{value:>10,}")
    unwanted = (
        "missing",
        "not whole",
        "not checked",
        "other pixels changed",
        "checked twice",
        "charged twice",
    )
    return int(any(figures[name] for name in unwanted))


def main() -> int:
    """Torture a batch and print the audit."""
    asked = parser(__doc__, short="300 jobs, 8 kills", long="5,000 jobs, 50 kills: some minutes")
    asked.add_argument("--jobs", type=int)
    asked.add_argument("--kills", type=int)
    asked.add_argument("--callbacks", action="store_true", help="with callbacks")
    asked.add_argument("--checks", action="store_true", help="the command, with results that are checked")
    asked.add_argument("--api", choices=[*APIS, "both"], default="kontext", help="of the submits")
    asked.add_argument("--port", type=int, default=0, help=SUPPRESS)
    asked.add_argument(
        "--speed", type=float, default=SPEED, help="of the vendor's clock (default: %(default)s)"
    )
    asked.add_argument("--seed", type=int, default=1, help="of the kill times (default: %(default)s)")
    asked.add_argument("--work", nargs=2, metavar=("URL", "JOURNAL"), help=SUPPRESS)
    options = asked.parse_args()
    jobs = options.jobs or (5_000 if options.long else 300)
    if options.work:
        url, journal = options.work
        how = {"port": options.port, "speed": options.speed, "api": options.api}
        return asyncio.run(work(url, journal, jobs, **how))
    kills = options.kills if options.kills is not None else (50 if options.long else 8)
    if options.checks:
        return checks(options.jobs or (300 if options.long else 24), options.kills or 3, options.seed)
    introduce(f"one round of {jobs:,} jobs, {kills} kills at times drawn with seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        port = free_port() if options.callbacks else 0
        apis = APIS if options.api == "both" else (options.api,)
        figures = torture(jobs, kills, options.seed, Path(folder), port=port, speed=options.speed, apis=apis)
    for name, value in figures.items():
        print(f"{name:<24}{value:>10,}")
    bad = (
        figures["polls at the wrong API"]
        or figures["lost"]
        or figures["charged twice"]
        or not figures["integrity_check ok"]
    )
    if options.callbacks:
        bad = bad or figures["in doubt, charged"] or figures["in doubt, not charged"]
    return 1 if bad or figures["kills"] < kills else 0


if __name__ == "__main__":
    raise SystemExit(main())
