"""What the commands of the engine do."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio
import attrs
import click

from flux_async import CallbackEndpoint, FluxClient, InvalidInput, Job, Limits, sink_for
from flux_async.api.models_table import AnyModel, ApiName
from flux_async.cli.destination import check_writable
from flux_async.cli.input_reader import refusal_text
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import Inputs
from flux_async.cli.results import ResultRow, Status, row_of, utc_text
from flux_async.cli.run_options import ListenAddress, RunOptions, webhook_keys
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, Output, printable
from flux_async.engine import WORKER_LIMITS, BatchRow, BatchStatus, Engine, EngineBatch, Worker
from flux_async.transport.factory import TransportName

T = TypeVar("T")

_LOOK_S = 2.0


def run_enqueue(dsn: str, name: str, inputs: Inputs, options: RunOptions, *, priority: int) -> Exit:
    """Put the inputs into a batch; each that cannot be a job is named on stderr."""
    refused: list[str] = []

    def jobs() -> Iterator[Job]:
        for given in inputs:
            try:
                yield _job_of(given, options)
            except InvalidInput as error:
                refused.append(given.place)
                _say(refusal_text(given, error))

    async def command(_: Interruption) -> Exit:
        async with Engine(dsn) as engine:
            batch = await engine.submit(
                jobs(), batch=name, priority=priority, in_doubt=options.in_doubt, timeout=options.timeout_s
            )
            status = await batch.status()
        _say(_in_words(status))
        return Exit.SOME_FAILED if refused else Exit.SUCCEEDED

    return run_interruptible(command)


def _job_of(given: InputRow, options: RunOptions) -> Job:
    if given.refusal is not None:
        raise InvalidInput(f"This row cannot be used: {given.refusal}.")
    if given.is_file:
        raise InvalidInput(
            f"{given.image} is a file of this machine, which workers cannot read.",
            advice="Put it where they can fetch it, and list its address.",
        )
    return options.job_for(given)


def run_worker(
    dsn: str,
    destination: str,
    rate: tuple[int, float],
    *,
    callback_url: str | None,
    listen: ListenAddress | None,
    until_idle: bool,
    min_credits: float | None,
    prices: Mapping[AnyModel, float],
    api: ApiName | None,
    transport: TransportName | None,
) -> Exit:
    """Work until no work is left, or until a signal comes."""
    callbacks = None if callback_url is None else CallbackEndpoint(callback_url, webhook_keys())

    async def command(interruption: Interruption) -> Exit:
        await check_writable(destination)
        async with contextlib.AsyncExitStack() as opened:
            engine = await opened.enter_async_context(Engine(dsn))
            clients = [
                await opened.enter_async_context(
                    FluxClient(key, limits=WORKER_LIMITS, transport=transport, api=api)
                )
                for key in _keys()
            ]
            if listen is not None and callbacks is not None:
                await opened.enter_async_context(_receiving(listen, callbacks, engine))
            worker = await opened.enter_async_context(
                Worker(
                    engine,
                    clients,
                    lambda folder: sink_for(f"{destination.rstrip('/')}/{folder}"),
                    rate=Limits(submits=rate[0], window_s=rate[1]),
                    prices=prices,
                    min_credits=min_credits,
                    callbacks=callbacks,
                )
            )
            _say(f"Worker {worker.executor} has begun.")
            with interruption.scope():
                while not until_idle or not await worker.is_idle():  # noqa: ASYNC110 - a database
                    await anyio.sleep(_LOOK_S)
        return Exit.SUCCEEDED

    return run_interruptible(command)


def _keys() -> list[str | None]:
    """Return the keys of the environment; None stands for ``KIE_API_KEY``."""
    keys = [key.strip() for key in os.environ.get("KIE_API_KEYS", "").split(",")]
    return [key for key in keys if key] or [None]


@contextlib.asynccontextmanager
async def _receiving(
    listen: ListenAddress, callbacks: CallbackEndpoint, engine: Engine
) -> AsyncIterator[None]:
    from flux_async.cli.webhook_server import bind, listening  # noqa: PLC0415 - needs an extra

    async with listening(bind(listen), callbacks, engine):
        yield


# --- batches ----------------------------------------------------------------------------------------------


def show_status(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Print the counts of a batch."""
    return _print_status(_of_batch(dsn, name, EngineBatch.status), name, as_json=as_json)


def cancel_batch(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Cancel a batch, and print its counts."""
    return _print_status(_of_batch(dsn, name, EngineBatch.cancel), name, as_json=as_json)


def _print_status(status: BatchStatus, name: str, *, as_json: bool) -> Exit:
    output, counts = Output(), _counts(status)
    if as_json:
        output.json({"batch": name, "counts": counts, "credits": status.credits})
    else:
        output.line(printable(f"{name}: {_in_words(status)}"))
    return Exit.SUCCEEDED


def show_results(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Print the row of each job of a batch."""
    output = Output()

    async def work(batch: EngineBatch) -> Exit:
        await batch.status()  # refuses a name that is none
        code = Exit.SUCCEEDED
        async for found in batch.rows():
            row = _result_row(found)
            if row.status in {Status.FAILED, Status.IN_DOUBT}:
                code = Exit.SOME_FAILED
            output.line(row.as_json() if as_json else printable(_line(row)))
        return code

    return _of_batch(dsn, name, work)


def show_report(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Print a summary of a batch."""

    async def work(batch: EngineBatch) -> dict[str, Any]:
        status, errors = await batch.status(), Counter[str]()
        times: list[float] = []
        async for found in batch.rows():
            row, job = _result_row(found), found.stored.job
            if row.error is not None:
                errors[row.error.type] += 1
            times += [at for at in (job.submitted_at, job.finished_at) if at is not None]
        return {
            "batch": name,
            "counts": _counts(status),
            "credits": status.credits,
            "errors": dict(errors.most_common()),
            "began_at": utc_text(min(times, default=None)),
            "ended_at": utc_text(max(times, default=None)),
        }

    report, output = _of_batch(dsn, name, work), Output()
    if as_json:
        output.json(report)
        return Exit.SUCCEEDED
    output.line(printable(f"{name}: " + ", ".join(f"{n} {what}" for what, n in report["counts"].items())))
    output.line(f"credits, as far as records say: {report['credits']:g}")
    if report["began_at"] is not None:
        output.line(f"from {report['began_at']} to {report['ended_at']}")
    for kind, count in report["errors"].items():
        output.line(f"{count} {kind}")
    return Exit.SUCCEEDED


def _result_row(found: BatchRow) -> ResultRow:
    row = row_of(found.stored, found.obstacle)
    return attrs.evolve(row, file=found.stored.job.file if row.status is Status.SUCCEEDED else None)


def _line(row: ResultRow) -> str:
    why = "" if row.error is None else f": {row.error.message}"
    return row.file or row.result_url or f"{row.status.value} {row.image}{why}"


def _of_batch(dsn: str, name: str, work: Callable[[EngineBatch], Awaitable[T]]) -> T:
    async def command(_: Interruption) -> T:
        async with Engine(dsn) as engine:
            return await work(engine.batch(name))

    return run_interruptible(command)


def _counts(status: BatchStatus) -> dict[str, int]:
    names = ("pending", "in_flight", "succeeded", "failed", "in_doubt")
    return {name: getattr(status, name) for name in names}


def _in_words(status: BatchStatus) -> str:
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in _counts(status).items())
    return f"{words}{'; cancelled' if status.is_cancelled else ''}; {status.credits:g} credits"


def _say(words: str) -> None:
    click.echo(printable(words), err=True)
