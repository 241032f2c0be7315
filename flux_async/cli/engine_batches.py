"""What the commands `batch …` do with a batch of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs

from flux_async import FluxClient
from flux_async.api.models_table import ApiName, credits_of
from flux_async.batch.operations import Retried
from flux_async.cli.advice import command
from flux_async.cli.credits import Questions, in_credits, not_agreed
from flux_async.cli.display import message_console
from flux_async.cli.folder_commands import only_key, report_adopted, tries_in_words
from flux_async.cli.results import ResultRow, Status, row_of, utc_text
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.status import credits_in, findings_in_words
from flux_async.cli.terminal import Exit, Output, can_ask, printable
from flux_async.engine import BatchRow, BatchStatus, Engine, EngineBatch
from flux_async.journal.reader import findings_in
from flux_async.models import CheckResult
from flux_async.transport.factory import TransportName

T = TypeVar("T")


def show_status(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Print the counts of a batch."""
    return _print_status(of_batch(dsn, name, EngineBatch.status), name, as_json=as_json)


def cancel_batch(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Cancel a batch, and print its counts."""
    return _print_status(of_batch(dsn, name, EngineBatch.cancel), name, as_json=as_json)


def _print_status(status: BatchStatus, name: str, *, as_json: bool) -> Exit:
    output, counts = Output(), _counts(status)
    if as_json:
        output.json({"batch": name, "counts": counts, "credits": status.credits})
    else:
        output.line(printable(f"{name}: {status_in_words(status)}"))
    return Exit.SUCCEEDED


def show_results(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Print the row of each job of a batch."""
    output = Output()

    async def work(batch: EngineBatch) -> Exit:
        await batch.is_cancelled()  # refuses a name that is none
        code = Exit.SUCCEEDED
        async for found in batch.rows():
            row = result_row(found)
            if row.status in {Status.FAILED, Status.IN_DOUBT}:
                code = Exit.SOME_FAILED
            output.line(row.as_json() if as_json else printable(_line(row)))
        return code

    return of_batch(dsn, name, work)


def show_report(dsn: str, name: str, *, as_json: bool) -> Exit:
    """Print a summary of a batch."""

    async def work(batch: EngineBatch) -> dict[str, Any]:
        status, errors = await batch.status(), Counter[str]()
        times, checks = list[float](), Counter[str]()
        async for found in batch.rows():
            row, job = result_row(found), found.stored.job
            checks.update(() if job.checked is None else findings_in(job.checked))
            if row.error is not None:
                errors[row.error.type] += 1
            times += [at for at in (job.submitted_at, job.finished_at) if at is not None]
        return {
            "batch": name,
            "counts": _counts(status),
            "cancelled": status.is_cancelled,
            "credits": credits_in(await batch.spending()),
            "checks": dict(sorted(checks.items())),
            "errors": dict(errors.most_common()),
            "began_at": utc_text(min(times, default=None)),
            "ended_at": utc_text(max(times, default=None)),
        }

    report, output = of_batch(dsn, name, work), Output()
    if as_json:
        output.json(report)
        return Exit.SUCCEEDED
    credits_ = report["credits"]
    words = [f"{count} {what.replace('_', ' ')}" for what, count in report["counts"].items()]
    output.line(printable(f"{name}: {', '.join(words)}{'; cancelled' if report['cancelled'] else ''}"))
    line = f"credits: {in_credits(credits_['spent'])}"
    if credits_["perhaps"]:
        line += f", perhaps {in_credits(credits_['perhaps'])} more for submits without an answer"
    output.line(line)
    if report["checks"]:
        output.line(f"checks: {findings_in_words(report['checks'])}")
    if report["began_at"] is not None:
        output.line(f"from {report['began_at']} to {report['ended_at']}")
    for kind, count in report["errors"].items():
        output.line(f"{count} {kind}")
    return Exit.SUCCEEDED


def retry_batch(
    dsn: str, name: str, *, failed: bool, in_doubt: bool, yes: bool, confirm_above: float
) -> Exit:
    """Let workers submit images again, after saying how many and what they may cost.

    Raises:
        BudgetExhausted: The user's answer was no.
    """
    console = message_console()

    async def work(batch: EngineBatch) -> Exit:
        plan = await batch.retry(failed=failed, in_doubt=in_doubt, dry_run=True)
        count, cost = len(plan.to_submit), await _cost_of(batch, plan)
        console.note(tries_in_words(count, in_credits(cost), in_doubt=in_doubt))
        asks = cost > confirm_above and can_ask() and not yes
        if asks and not await Questions(show=console.note).ask("Submit them?"):
            raise not_agreed(confirm_above)
        plan = await batch.retry(failed=failed, in_doubt=in_doubt)
        if plan.to_fetch:
            console.note(f"Paid and not here yet: {len(plan.to_fetch)}. Workers fetch them, free of charge.")
        console.note(status_in_words(await batch.status()))
        return Exit.SUCCEEDED

    return of_batch(dsn, name, work)


async def _cost_of(batch: EngineBatch, plan: Retried) -> float:
    prices = {one.model: one.price for one in await batch.spending()}
    return sum(
        count * (prices.get(str(model)) or credits_of(str(model))) for model, count in plan.submits.items()
    )


def adopt_task(
    dsn: str, name: str, job: str, task_id: str, *, transport: TransportName | None, api: ApiName | None
) -> Exit:
    """Record that ``task_id`` is the task of a job in doubt."""

    async def work(batch: EngineBatch) -> Exit:
        await batch.is_cancelled()  # refuses a name that is none
        key = only_key(await batch.named(job), job, command("batch", "results", name, "--json"))
        async with FluxClient(transport=transport, api=api) as client:
            report_adopted(
                await batch.adopt(client, key, task_id), "Workers fetch its image, free of charge."
            )
        return Exit.SUCCEEDED

    return of_batch(dsn, name, work)


def result_row(found: BatchRow) -> ResultRow:
    """Return the line of a job in the form of results.jsonl; its files are relative to the batch's folder."""
    row = row_of(found.stored, found.obstacle)
    job, checked = found.stored.job, found.stored.job.checked or CheckResult()
    if row.status is not Status.SUCCEEDED:
        return attrs.evolve(row, file=None)
    return attrs.evolve(row, file=job.file, vendor_file=checked.vendor_file)


def _line(row: ResultRow) -> str:
    why = "" if row.error is None else f": {row.error.message}"
    return row.file or row.result_url or f"{row.status.value} {row.image}{why}"


def of_batch(dsn: str, name: str, work: Callable[[EngineBatch], Awaitable[T]]) -> T:
    """Do work on a batch, and return what it returns."""

    async def command(_: Interruption) -> T:
        async with Engine(dsn) as engine:
            return await work(engine.batch(name))

    return run_interruptible(command)


def _counts(status: BatchStatus) -> dict[str, int]:
    names = ("pending", "in_flight", "succeeded", "failed", "in_doubt")
    return {name: getattr(status, name) for name in names}


def status_in_words(status: BatchStatus) -> str:
    """Return the counts of a batch as one line."""
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in _counts(status).items())
    return f"{words}{'; cancelled' if status.is_cancelled else ''}; {status.credits:g} credits"
