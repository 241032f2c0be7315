"""What the commands enqueue and worker do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping

import anyio
import click

from flux_async import (
    CallbackEndpoint,
    ConfigurationError,
    FluxClient,
    FluxError,
    InvalidInput,
    Job,
    Limits,
    Scope,
    sink_for,
)
from flux_async.api.models_table import AnyModel, ApiName
from flux_async.cli.advice import with_commands
from flux_async.cli.destination import check_results
from flux_async.cli.engine_batches import status_in_words
from flux_async.cli.input_reader import ReadingThread, refusal_text
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import Inputs
from flux_async.cli.run_options import ListenAddress, RunOptions, webhook_keys
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, printable
from flux_async.clock import SystemClock
from flux_async.engine import WORKER_LIMITS, Engine, Worker
from flux_async.engine.staging import Staging
from flux_async.job_state import WantedChecks
from flux_async.transport.factory import TransportName
from flux_async.verification.preserve import PreserveFormat

_LOOK_S = 2.0
_ENDING = (
    "The worker ends when the answers to submits in flight are recorded. A second signal does not wait, and "
    "leaves them in doubt, perhaps paid."
)


def run_enqueue(
    dsn: str, name: str, inputs: Inputs, options: RunOptions, *, priority: int, staging: str | None
) -> Exit:
    """Put the inputs into a batch, as they arrive; each that cannot be a job is named on stderr."""
    refused: list[str] = []

    def refuse(given: InputRow, error: FluxError) -> None:
        refused.append(given.place)
        _say(refusal_text(given, error))

    def make(given: InputRow) -> tuple[InputRow, Job | InvalidInput]:
        try:
            return given, _job_of(given, options, takes_files=staging is not None)
        except InvalidInput as refusal:
            return given, refusal

    async def command(interruption: Interruption) -> Exit:
        place = None if staging is None else Staging(staging)
        async with Engine(dsn) as engine:
            batch = await engine.open_batch(name, in_doubt=options.in_doubt, timeout=options.timeout_s)

            async def add(rows: list[tuple[InputRow, Job | InvalidInput]], *, is_last: bool) -> None:
                del is_last
                jobs = [made for _, made in rows if isinstance(made, Job)]
                with anyio.CancelScope(shield=True):  # a signal leaves no chunk half added
                    added = iter(await engine.add(name, jobs, priority, staging=place))
                for given, made in rows:
                    answer = next(added) if isinstance(made, Job) else made
                    if isinstance(answer, FluxError):
                        refuse(given, answer)

            with interruption.scope():
                await ReadingThread(inputs, make, SystemClock()).each_chunk(add)
            _say(status_in_words(await batch.status()))
        if interruption.happened:
            _say("Interrupted. Run the same command again to add the rest; nothing is added twice.")
            return Exit.INTERRUPTED
        return Exit.SOME_FAILED if refused else Exit.SUCCEEDED

    return run_interruptible(command)


def _job_of(given: InputRow, options: RunOptions, *, takes_files: bool) -> Job:
    if given.refusal is not None:
        raise InvalidInput(f"This row cannot be used: {given.refusal}.")
    if given.is_file and not takes_files:
        raise InvalidInput(
            f"{given.image} is a file of this machine, which workers cannot read.",
            advice="Add --staging s3://bucket/prefix, into which it is copied, or list its address.",
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
    checks: WantedChecks,
    preserve_format: PreserveFormat,
    api: ApiName | None,
    transport: TransportName | None,
) -> Exit:
    """Work until no work is left, or until a signal comes."""
    callbacks = None if callback_url is None else CallbackEndpoint(callback_url, webhook_keys())
    keys = _keys()

    async def command(interruption: Interruption) -> Exit:
        interruption.on_first = lambda: _say(_ENDING)
        await check_results(destination, checks)
        async with contextlib.AsyncExitStack() as opened:
            engine = await opened.enter_async_context(Engine(dsn))
            clients = [
                await opened.enter_async_context(
                    FluxClient(key, limits=WORKER_LIMITS, transport=transport, api=api)
                )
                for key in keys
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
                    verify=checks.verify,
                    preserve=checks.preserve,
                    preserve_format=preserve_format,
                )
            )
            _say(f"Worker {worker.executor} has begun.")
            with interruption.scope():
                await (_work_until_idle(worker) if until_idle else anyio.sleep_forever())
        return Exit.SUCCEEDED

    return run_interruptible(command)


async def _work_until_idle(worker: Worker) -> None:
    """Wait until no work is left.

    Raises:
        FluxError: No submit can be made any more.
    """
    while not await worker.is_idle():
        if (problem := await worker.halted()) is not None:
            raise FluxError(
                f"The worker ended with work left: {with_commands(problem.message, None, None)}",
                advice="Run the same command again after that; nothing is paid twice.",
                scope=Scope.STOP,
            )
        await anyio.sleep(_LOOK_S)


def _keys() -> list[str | None]:
    """Return the keys of the environment; None stands for ``KIE_API_KEY``.

    Raises:
        ConfigurationError: One of ``KIE_API_KEYS`` is blank.
    """
    given = os.environ.get("KIE_API_KEYS")
    if given is None:
        return [None]
    keys: list[str | None] = [key.strip() for key in given.split(",")]
    if not all(keys):
        raise ConfigurationError(
            "KIE_API_KEYS holds a blank key.",
            advice="Separate the keys by single commas, or unset it; nothing was sent.",
        )
    return keys


@contextlib.asynccontextmanager
async def _receiving(
    listen: ListenAddress, callbacks: CallbackEndpoint, engine: Engine
) -> AsyncIterator[None]:
    from flux_async.cli.webhook_server import bind, listening  # noqa: PLC0415 - needs an extra

    async with listening(bind(listen), callbacks, engine):
        yield


def _say(words: str) -> None:
    click.echo(printable(words), err=True)
