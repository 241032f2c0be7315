"""Measures the engine on a real PostgreSQL, with three worker processes, against sandboxes that count.

Parts, of which ``--part`` runs one:

queue     jobs enqueued a second, seconds of ``status``, and the CPU of PostgreSQL and of an idle worker,
          without work and with that queue while the account is halted
work      CPU of workers and PostgreSQL, and commits, of a job, besides those of idle workers; then the
          memory of one worker with 1,000 tasks in flight
kills     three SIGKILLs at random times, with webhooks: what is lost, paid twice, in doubt, and what is in an
          S3 server; in the long form also without, and how soon a dead worker's tasks are polled again
limiter   429s and use of the account's limit, of three workers with two keys; in the long form also with one
outages   PostgreSQL killed and restarted, a worker stopped for 90 s (3 s in the short form), and the S3
          server of the results away for 60 s (3 s)

Without PostgreSQL's programs or the extra ``engine`` it says so and ends well. Without an S3 server (moto
and the extra ``storage``) results go to a folder.
"""

# ruff: noqa: ASYNC110, PLC0415 - it waits for other processes; without the extra it still prints its help

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import SUPPRESS
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

from flux_async import CallbackEndpoint, FluxClient, Limits, PollPolicy, Succeeded, WebhookReceiver, sink_for
from flux_async.job_state import Problem
from harness import distinct_results
from harness.processes import child, first_line, read_ledger, sandbox, serving
from harness.report import exit_code, introduce, parser

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import servers

PARTS = ("queue", "work", "kills", "limiter", "outages")
SPEED = 5.0
KEYS = ("first", "second")
POLLING = PollPolicy(first_s=0.3, interval_s=0.3, jitter=0)
TICKS = os.sysconf("SC_CLK_TCK")


# --- processes --------------------------------------------------------------------------------------------


async def work(dsn: str, urls: str, destination: str, submits: float, callback_url: str) -> None:
    """Work until the process is ended; one key and one account for each of ``urls``."""
    from flux_async.engine import WORKER_LIMITS, Engine, Worker

    callbacks = CallbackEndpoint(callback_url, doubt_wait_s=10.0) if callback_url else None
    async with contextlib.AsyncExitStack() as opened:
        clients = [
            await opened.enter_async_context(FluxClient(key, url, limits=WORKER_LIMITS, polling=POLLING))
            for key, url in zip(KEYS, urls.split(","), strict=False)
        ]
        worker = Worker(
            await opened.enter_async_context(Engine(dsn)),
            clients,
            lambda name: sink_for(f"{destination}/{name}"),
            rate=Limits(submits=int(submits), window_s=10.0),
            callbacks=callbacks,
        )
        await opened.enter_async_context(worker)
        print("running", flush=True)
        await asyncio.Event().wait()


async def endless(seconds: float) -> None:
    """Serve an API that takes every submit, and whose tasks generate for ``seconds``."""
    from flux_async.sandbox.server import listening

    began: dict[str, tuple[float, dict[str, Any]]] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if scope["method"] == "POST":
            task = uuid.uuid4().hex
            began[task] = time.monotonic(), json.loads(message["body"])
            data: Any = {"taskId": task}
        elif scope["path"].endswith("/credit"):
            data = 1e6
        else:
            task = dict(part.split("=") for part in scope["query_string"].decode().split("&"))["taskId"]
            at, sent = began[task]
            data = {"taskId": task, "successFlag": 0, "paramJson": json.dumps(sent)}
            if time.monotonic() - at > seconds:
                data |= {"successFlag": 3, "errorCode": 501, "errorMessage": "ended"}
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with listening(app, port=0) as url:
        print(f"endless ready at {url}", flush=True)
        await asyncio.Event().wait()


class Bench:
    """A PostgreSQL server and what runs beside it in one part.

    Attributes:
        bucket: Where results of the parts go that check them; None without an S3 server.
    """

    def __init__(
        self,
        server: servers.Postgres,
        process: servers.RunningServer,
        folder: Path,
        bucket: servers.Bucket | None,
    ) -> None:
        self.server, self.process, self.folder, self.bucket = server, process, folder, bucket
        self.database = f"bench_{uuid.uuid4().hex}"
        server.create(self.database)
        self.dsn = server.dsn(self.database)

    @contextlib.contextmanager
    def workers(
        self, count: int, urls: str, *, submits: float = 20 * SPEED, callback_url: str = ""
    ) -> Iterator[list[subprocess.Popen[str]]]:
        """Run workers; returns when each holds its lock."""
        order = ("--work", self.dsn, urls, self.destination, submits, callback_url)
        with contextlib.ExitStack() as started:
            processes = [started.enter_context(child(__file__, *order)) for _ in range(count)]
            if any(first_line(process) != "running" for process in processes):
                raise SystemExit("engine: a worker did not start")
            yield processes

    @property
    def kind(self) -> str:
        """What results are saved in."""
        return "the S3 server" if self.bucket else "a folder"

    @property
    def destination(self) -> str:
        """Where the workers save results."""
        return f"{self.bucket.url if self.bucket else self.folder}/{self.database}"

    def saved(self, batch: str) -> dict[str, bytes]:
        """Return what is saved for a batch, by its reference."""
        if self.bucket is None:
            folder = self.folder / self.database / batch
            return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
        names = self.bucket.names(f"{self.database}/{batch}/")
        return {f"{self.bucket.url}/{name}": self.bucket.get(name).content for name in names}

    def unfinished(self, batch: str) -> int:
        """Return how many files or uploads in parts were begun for a batch, and are not complete."""
        if self.bucket is None:
            return sum(path.name[0] == "." for path in (self.folder / self.database / batch).iterdir())
        return len(self.bucket.unfinished(f"{self.database}/{batch}/"))

    def commits(self) -> int:
        """Return the transactions of the database so far."""
        sql = f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{self.database}'"
        command = [str(self.server.bin / "psql"), "-XAtc", sql, self.server.dsn()]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def cpu(self) -> float:
        """Return the seconds of CPU of the server with all its processes, those that ended included."""
        assert self.process.process is not None
        own = self.process.process.pid
        total = sum(stat_of(own)[11:15])
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                fields = stat_of(int(path.name))
                total += sum(fields[11:13]) if fields[1] == own else 0
        return total / TICKS


def stat_of(pid: int) -> list[int]:
    """Return the fields of /proc/PID/stat after the name; the state is 0."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2].split()
    return [0, *map(int, fields[1:])]


def cpu_of(process: subprocess.Popen[str]) -> float:
    """Return the seconds of CPU of a process so far."""
    return sum(stat_of(process.pid)[11:13]) / TICKS


def memory_of(process: subprocess.Popen[str]) -> float:
    """Return the most memory of a process so far, in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def images(count: int, name: str = "a") -> Iterator[str]:
    """Yield addresses."""
    return (f"https://pictures.example/{name}-{number}.jpg" for number in range(count))


def ledger_of(url: str) -> tuple[int, int, int]:
    """Return submits, those refused with 429, and images charged more than once."""
    ledger = read_ledger(url)
    twice = sum(max(line["requests"].values(), default=0) > 1 for line in ledger["images"].values())
    return ledger["submits"], ledger["refused"].get("429", 0), twice


def vendor(credits_: float, latency: float = 0.0) -> contextlib.AbstractContextManager[str]:
    """Run a sandbox whose results can be told apart."""
    options = ("--key", KEYS[0], "--speed", SPEED, "--credits", credits_, "--latency", latency)
    return serving(distinct_results.__file__, *options)


async def audit(bench: Bench, batch: Any, url: str, what: str) -> bool:
    """Hold the jobs of a batch against what the vendor has charged and what is saved."""
    status, (_, _, twice) = await batch.status(), ledger_of(url)
    saved, whole, jobs = bench.saved(batch.name), 0, 0
    async for row in batch.rows():
        jobs += 1
        if isinstance(outcome := row.outcome, Succeeded):
            content = saved.pop(outcome.reference or "", b"")
            whole += content == distinct_results.result_of(str(outcome.job.request.input_image))
    lost, doubt = jobs - status.succeeded - status.in_doubt, status.in_doubt
    print(
        f"{what}: {jobs} jobs, lost {lost}, paid twice {twice}, in doubt {doubt}; in {bench.kind} "
        f"{whole} right and whole, {len(saved)} more, {bench.unfinished(batch.name)} unfinished"
    )
    return not (lost or twice or saved) and whole == status.succeeded


# --- parts ------------------------------------------------------------------------------------------------


async def queue(bench: Bench, *, long: bool) -> bool:
    """Measure a long queue: enqueue it, count it, work on it at the vendor's rate, and wait with it."""
    from flux_async.engine import Engine
    from flux_async.engine.accounts import Accounts

    lengths, watched_s, settled_s = ((30_000, 1_000_000), 30.0, 5.0) if long else ((5_000,), 2.0, 1.0)
    good = True
    async with Engine(bench.dsn) as engine, contextlib.AsyncExitStack() as started:
        url = started.enter_context(sandbox(key=KEYS[0], credits=1e6))
        fingerprint = (await started.enter_async_context(FluxClient(KEYS[0], url))).fingerprint
        workers = started.enter_context(bench.workers(3, url, submits=20))
        await asyncio.sleep(settled_s)
        shares = {"without jobs": await shares_of(bench, workers, watched_s)}
        for jobs in lengths:
            await Accounts(engine.database).halt(fingerprint, Problem(type="Bench", message="halted"), 1e6)
            began = time.monotonic()
            batch = await engine.submit(images(jobs, f"many-{jobs}"), batch=f"many-{jobs}")
            rate = jobs / (time.monotonic() - began)
            began = time.monotonic()
            await batch.status()
            status_s = time.monotonic() - began
            print(f"queue: {jobs:,} jobs enqueued, {rate:,.0f} a second; status in {status_s:.2f} s")
            await asyncio.sleep(settled_s)
            shares[f"{jobs:,} queued, halted"] = await shares_of(bench, workers, watched_s)
            await Accounts(engine.database).register(fingerprint, Limits())
            await asyncio.sleep(settled_s)
            shares[f"{jobs:,} queued, 20 submits in 10 s"] = await shares_of(bench, workers, watched_s)
            good = good and rate >= 2000 and status_s < 2
    for state, (worker, postgres) in shares.items():
        print(f"       share of a core, {state}: each of 3 workers {worker:.1%}, PostgreSQL {postgres:.1%}")
    return good and shares["without jobs"][0] <= 0.05 and all(share[1] <= 0.1 for share in shares.values())


async def shares_of(
    bench: Bench, workers: list[subprocess.Popen[str]], seconds: float
) -> tuple[float, float]:
    """Return the share of a core that each worker takes, and PostgreSQL."""
    took_s, workers_ms, postgres_ms, _ = await measured(bench, workers, asyncio.sleep(seconds))
    return workers_ms / 1000 / took_s / len(workers), postgres_ms / 1000 / took_s


async def measured(
    bench: Bench, workers: list[subprocess.Popen[str]], work: Coroutine[Any, Any, None]
) -> tuple[float, float, float, float]:
    """Return the seconds of some work, CPU of workers and PostgreSQL meanwhile in ms, and commits."""
    began, before = time.monotonic(), (sum(map(cpu_of, workers)), bench.cpu(), bench.commits())
    await work
    after = (sum(map(cpu_of, workers)), bench.cpu(), bench.commits())
    workers_s, postgres_s, commits = (then - now for then, now in zip(after, before, strict=True))
    return time.monotonic() - began, workers_s * 1000, postgres_s * 1000, commits


async def jobs_of_work(bench: Bench, *, long: bool) -> bool:
    """Measure what a job costs, and the memory of many tasks in flight."""
    from flux_async.engine import Engine

    jobs = 600 if long else 60
    async with Engine(bench.dsn) as engine:
        with sandbox(speed=20.0, key=KEYS[0], credits=jobs * 20) as url, contextlib.ExitStack() as started:
            workers = started.enter_context(bench.workers(3, url, submits=380))
            await asyncio.sleep(2.0)
            idle = await measured(bench, workers, asyncio.sleep(3.0))

            async def whole_batch() -> None:
                batch = await engine.submit(images(jobs), batch="work")
                async for _ in batch:
                    pass

            busy = await measured(bench, workers, whole_batch())
            seconds = busy[0] / idle[0]
            cpu_ms, postgres_ms, each = (
                (there - here * seconds) / jobs for there, here in zip(busy[1:], idle[1:], strict=True)
            )
        print(
            f"work: a job takes {cpu_ms:.1f} ms CPU of workers, {postgres_ms:.1f} ms of PostgreSQL, "
            f"{each:.1f} commits"
        )
        many = 1000 if long else 30
        with serving(__file__, "--endless", 3600) as url, bench.workers(1, url, submits=500) as (worker,):
            batch = await engine.submit(images(many, "many"), batch="many")
            while (await batch.status()).in_flight < many:
                await asyncio.sleep(0.5)
            await asyncio.sleep(5.0 if long else 1.0)
            memory = memory_of(worker)
    print(f"      {many:,} tasks in flight in one worker: {memory:.0f} MB")
    return cpu_ms <= 40 and each <= 25 and memory <= 250


async def kills(bench: Bench, *, long: bool, hooks: bool, seed: int = 1) -> bool:
    """Kill workers at random times."""
    from flux_async.engine import Engine
    from flux_async.sandbox.server import listening

    jobs, rng = (600 if long else 40), random.Random(seed)
    async with Engine(bench.dsn) as engine, listening(WebhookReceiver(engine), port=0) as hook:
        callback_url = f"{hook}/callback" if hooks else ""
        batch_name = "hooks" if hooks else "polls"
        with vendor(jobs * 20, latency=1.0) as url:
            batch = await engine.submit(
                images(jobs, batch_name), batch=batch_name, in_doubt="resubmit" if hooks else "hold"
            )
            with contextlib.ExitStack() as started:

                def start(count: int) -> list[subprocess.Popen[str]]:
                    options: dict[str, Any] = {"submits": 19 * SPEED, "callback_url": callback_url}
                    return started.enter_context(bench.workers(count, url, **options))

                workers = start(3)
                span_s = jobs / (2 * SPEED)
                for _ in range(3):
                    await asyncio.sleep(rng.uniform(0.1, 0.3) * span_s)
                    victim = workers.pop(0)
                    victim.kill()
                    victim.wait()
                    workers += await asyncio.to_thread(start, 1)
                status = await batch.wait()
            words = f"kills: 3 of 3 workers, {'with' if hooks else 'without'} webhooks"
            good = await audit(bench, batch, url, words)
    return good and (not hooks or status.in_doubt == 0)


async def recovery(bench: Bench) -> bool:
    """Measure how soon the tasks of a dead worker are polled again."""
    from flux_async.engine import Engine

    async with Engine(bench.dsn) as engine:
        with sandbox(key=KEYS[0]) as url, contextlib.ExitStack() as started:
            (first,) = started.enter_context(bench.workers(1, url))
            batch = await engine.submit(images(12, "recovery"), batch="recovery")
            while (await batch.status()).in_flight < 8:
                await asyncio.sleep(0.1)
            started.enter_context(bench.workers(1, url))
            await asyncio.sleep(2.0)
            first.kill()
            first.wait()
            killed, polls = time.monotonic(), read_ledger(url)["polls"]
            while read_ledger(url)["polls"] < polls + 4:
                await asyncio.sleep(0.1)
            took_s = time.monotonic() - killed
            await batch.wait()
            submits, _, twice = ledger_of(url)
    print(f"recovery: tasks of a dead worker polled again after {took_s:.1f} s, {submits} submits of 12 jobs")
    return took_s <= 10 and submits <= 12 and not twice


async def limiter(bench: Bench, *, long: bool, keys: int) -> bool:
    """Measure the use of the limit, which the sandbox counts; in the long form at the vendor's own speed."""
    from flux_async.engine import Engine

    speed, jobs = (1.0, 200 if keys == 1 else 240) if long else (SPEED, 40)
    async with Engine(bench.dsn) as engine, contextlib.AsyncExitStack() as started:
        urls = [
            started.enter_context(sandbox(speed=speed, key=key, credits=jobs * 20)) for key in KEYS[:keys]
        ]
        started.enter_context(bench.workers(3, ",".join(urls), submits=20 * speed))
        batch = await engine.submit(images(jobs, f"keys-{keys}"), batch=f"keys-{keys}")
        await batch.wait()
        times = [found.stored.job.submitted_at or 0.0 async for found in batch.rows()]
        counted = [ledger_of(url) for url in urls]
    span_s = max(times) - min(times)
    use = (len(times) - keys) / span_s / (2.0 * speed * keys)
    refused = sum(entry[1] for entry in counted) / sum(entry[0] for entry in counted)
    print(f"limiter: 3 workers, {keys} key(s): {use:.1%} of the limit used, {refused:.2%} of submits refused")
    return use >= 0.95 and refused <= 0.01


async def outages(bench: Bench, *, long: bool) -> bool:
    """Kill and restart PostgreSQL, stop a worker for a while, stop the store of the results for a while."""
    from flux_async.engine import Engine

    jobs, stopped_s, away_s = (300, 90.0, 60.0) if long else (30, 3.0, 3.0)

    async def interrupt(what: str, worker: subprocess.Popen[str]) -> str:
        match what, bench.bucket:
            case "restart", _:
                await asyncio.to_thread(bench.process.restart, signal.SIGKILL)
                return "PostgreSQL killed and restarted"
            case "stop", _:
                worker.send_signal(signal.SIGSTOP)
                await asyncio.sleep(stopped_s)
                worker.send_signal(signal.SIGCONT)
                return f"a worker stopped for {stopped_s:.0f} s"
            case _, bucket:
                assert bucket is not None
                await asyncio.to_thread(bucket.stop)
                await asyncio.sleep(away_s)
                await asyncio.to_thread(bucket.start)
                return f"the S3 server away for {away_s:.0f} s"

    good = True
    async with Engine(bench.dsn) as engine, contextlib.AsyncExitStack() as started:
        url = started.enter_context(vendor(jobs * 60))
        workers = started.enter_context(bench.workers(3, url, submits=19 * SPEED))
        for what in ("restart", "stop", "store") if bench.bucket else ("restart", "stop"):
            batch = await engine.submit(images(jobs, what), batch=what)
            while (await batch.status()).succeeded < jobs // 5:
                await asyncio.sleep(0.2)
            words = await interrupt(what, workers[0])
            status = await batch.wait()
            good = await audit(bench, batch, url, f"outages: {words}") and good and not status.in_doubt
    return good


async def run(bench: Bench, part: str, *, long: bool) -> AsyncIterator[bool]:
    """Run a part, and yield whether each of its limits was kept."""
    match part:
        case "queue":
            yield await queue(bench, long=long)
        case "work":
            yield await jobs_of_work(bench, long=long)
        case "kills":
            for hooks in (True, False) if long else (True,):
                yield await kills(bench, long=long, hooks=hooks)
            if long:
                yield await recovery(bench)
        case "limiter":
            for keys in (1, 2) if long else (2,):
                yield await limiter(bench, long=long, keys=keys)
        case "outages":
            yield await outages(bench, long=long)


@contextlib.contextmanager
def bucket_of(folder: Path) -> Iterator[servers.Bucket | None]:
    """Run an S3 server with a bucket, which this process and its children find in the environment."""
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "flask_cors", "obstore")):
        yield None
        return
    (folder / "s3").mkdir()
    server = servers.S3(folder / "s3")
    with servers.running(server, folder / "s3.log") as process:
        bucket = servers.Bucket(server.endpoint, "results", process.stop, process.start)
        bucket.create()
        os.environ.update(bucket.environment)
        yield bucket


def main() -> int:
    """Run the parts."""
    options = parser(
        __doc__,
        short="small numbers: a minute and a half",
        long="a million jobs, the real limit: half an hour",
    )
    options.add_argument("--part", choices=PARTS, help="only this part")
    options.add_argument("--work", nargs=5, help=SUPPRESS)
    options.add_argument("--endless", type=float, help=SUPPRESS)
    given = options.parse_args()
    if given.work:
        dsn, urls, destination, submits, callback_url = given.work
        asyncio.run(work(dsn, urls, destination, float(submits), callback_url))
    if given.endless:
        asyncio.run(endless(given.endless))
    programs = servers.postgres_bin()
    if programs is None or importlib.util.find_spec("dbos") is None:
        print("engine: not measured: it needs PostgreSQL's programs and the extra engine")
        return 0
    introduce("each part on a database of its own, fsync off", ("dbos", "psycopg"))

    async def all_parts(bench: Bench, part: str) -> list[bool]:
        return [good async for good in run(bench, part, long=given.long)]

    results: list[bool] = []
    with (
        servers.running_postgres(programs) as running,
        tempfile.TemporaryDirectory() as folder,
        bucket_of(Path(folder)) as bucket,
    ):
        for part in (given.part,) if given.part else PARTS:
            results += asyncio.run(all_parts(Bench(*running, Path(folder), bucket), part))
    return exit_code(good=all(results), long=given.long)


if __name__ == "__main__":
    sys.exit(main())
