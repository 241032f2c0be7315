"""What type checkers see of the public API. Checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, assert_never, assert_type

import httpx

from flux_async import (
    ApiError,
    AspectRatio,
    BatchRun,
    Charge,
    CheckResult,
    ClientSnapshot,
    CustomModel,
    Echo,
    EditRequest,
    Failed,
    FetchReport,
    FluxClient,
    FluxError,
    FluxEvent,
    GenerateRequest,
    ImageChecks,
    ImageResult,
    InDoubt,
    Job,
    JobKey,
    JobService,
    JobStatus,
    Limits,
    LocalImage,
    MissingExtra,
    Model,
    Outcome,
    OutputFormat,
    PollDeadlineExceeded,
    PollPolicy,
    Preserved,
    PreserveRefusal,
    PreserveReport,
    RateLimitedError,
    RedisRateLimiter,
    Rekeyed,
    Retried,
    RetryPolicy,
    SavedFile,
    Scope,
    ServiceSnapshot,
    Sink,
    Succeeded,
    TaskFailed,
    TaskId,
    TaskRecord,
    TaskStatus,
    UnclaimedTask,
    UploadedFile,
    Verdict,
    WebhookReceiver,
    adopt,
    fetch_missing,
    frame_to_jobs,
    preserve,
    rekey,
    retry,
    run_batch,
    run_checks,
    sink_for,
)
from flux_async.batch.frames import Frame


def requests_() -> None:
    request = EditRequest.text_removal("https://example.com/a.jpg", safety_tolerance=1)
    assert_type(request, EditRequest)
    assert_type(request.model, Model | CustomModel)
    assert_type(request.aspect_ratio, AspectRatio | None)
    assert_type(request.output_format, OutputFormat | None)
    assert_type(request.safety_tolerance, int | None)
    assert_type(request.input_image, str | LocalImage)
    assert_type(
        GenerateRequest(prompt="A lighthouse", aspect_ratio="16:9", model="flux-kontext-max").prompt, str
    )
    job = Job(request=request, key=JobKey("first"))
    assert_type(job.key, JobKey)
    assert_type(job.request, GenerateRequest | EditRequest)


def which_library() -> None:
    assert_type(FluxClient("key", transport="aiohttp").transport_name, str)
    FluxClient("key", transport="httpx2")
    assert_type(FluxClient("key", api="jobs").api, Literal["kontext", "jobs"])
    FluxClient("key", api="job")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FluxClient("key", transport="curl")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def one_image(http_client: httpx.AsyncClient) -> None:
    async with FluxClient("key", timeout=60, http_client=http_client) as client:
        assert_type(client, FluxClient)
        image = await client.remove_text("https://example.com/a.jpg", timeout=30)
        assert_type(image, ImageResult)
        assert_type(image.task_id, TaskId)
        assert_type(image.result_url, str)
        assert_type(image.origin_url, str | None)
        assert_type(image.record, TaskRecord | None)
        assert_type(await client.edit("Make the sky orange", "https://example.com/a.jpg"), ImageResult)
        assert_type(await client.generate("A lighthouse", aspect_ratio=AspectRatio.WIDE), ImageResult)
        assert_type(await client.download(image, Path("a.jpg"), match_suffix=True), SavedFile)
        assert_type(await client.download(image.result_url, "a.jpg"), SavedFile)
        assert_type(await client.remove_text(Path("a.jpg")), ImageResult)
        assert_type(await client.edit("Make it blue", LocalImage(path="a.jpg")), ImageResult)
        uploaded = await client.upload("a.jpg", name="poster", max_bytes=10**7, on_progress=print)
        assert_type(uploaded, UploadedFile)
        assert_type(uploaded.sha256, str | None)
        assert_type(uploaded.expires_at, datetime)
        assert_type(await client.upload(b"..."), UploadedFile)
        assert_type(await client.upload_from_url(uploaded.url), UploadedFile)
        assert_type(await client.remove_text_many([Path("a.jpg")]), list[Outcome])
        assert_type(run_batch(client, [Path("a.jpg")], prices={Model.PRO: 6}), BatchRun)
        assert_type(
            run_batch(client, [], directory="out", preserve=True, verify=True, checks=ImageChecks()), BatchRun
        )
        assert_type(run_checks(client, "run.sqlite3", "out", verify=True), BatchRun)
        assert_type(await client.credits(), float)
        assert_type(client.unclaimed, tuple[UnclaimedTask, ...])


async def in_steps() -> None:
    client = FluxClient(
        limits=Limits(submits=10, in_flight=50),
        polling=PollPolicy(poll_cost_s=1.0),
        retry=RetryPolicy(max_tries=2),
    )
    task_id = await client.submit(GenerateRequest(prompt="A lighthouse"))
    assert_type(task_id, TaskId)
    record = await client.record(task_id)
    assert_type(record, TaskRecord)
    assert_type(record.status, TaskStatus)
    assert_type(record.completed_at, datetime | None)
    assert_type(record.generation_s, float | None)
    assert_type(record.params, Mapping[str, Any] | None)
    assert_type(await client.wait(str(task_id)), ImageResult)
    request = GenerateRequest(prompt="A lighthouse")
    assert_type(await client.wait(task_id, request=request, age=20.0, timeout=60), ImageResult)
    assert_type(PollPolicy.fixed(3.0, jitter=0.1), PollPolicy)
    assert_type(PollPolicy.backoff(1.0, growth=2.0, cap_s=30.0), PollPolicy)
    assert_type(Limits(polls_per_s=10.0).polls_per_s, float | None)
    assert_type(client.with_options(timeout=5), FluxClient)
    assert_type(await client.aclose(), None)


async def operations(client: FluxClient) -> None:
    assert_type(await retry(client, "run.sqlite3", failed=True, dry_run=True), Retried)
    assert_type((await adopt(client, "run.sqlite3", "poster", "t1")).echo, Echo)
    assert_type(await rekey(client, "run.sqlite3", same_account=True), Rekeyed)
    assert_type(await fetch_missing(client, "run.sqlite3", "clean", patience=60), FetchReport)


async def web_backend(client: FluxClient) -> None:
    async with JobService(client, journal="jobs.sqlite3", directory="clean", verify=True) as service:
        key = await service.add("https://example.com/poster.jpg", priority=1)
        assert_type(key, JobKey)
        assert_type(await service.get(key), JobStatus | Outcome)
        assert_type(await service.result(key, timeout=60), Outcome)
        async for event in service.events(key):
            assert_type(event, FluxEvent)
        assert_type(await service.cancel(key), None)
        assert_type(service.snapshot(), ServiceSnapshot)
        assert_type(service.snapshot().client, ClientSnapshot)
        assert_type(service.receiver, WebhookReceiver)
    JobService(client, engine="postgresql://host/flux", batch="web", sink=sink_for("s3://bucket/clean"))
    JobService(engine="postgresql://host/flux")


def preserved_image() -> None:
    done = preserve(b"", Path("result.jpg"), format="webp")
    assert_type(done, Preserved)
    assert_type(done.report, PreserveReport)
    assert_type(done.report.refusal, PreserveRefusal | None)
    assert_type(done.report.replaced, float | None)


async def several_machines(frame: Frame) -> None:
    assert_type(sink_for("s3://bucket/clean"), Sink)
    async with RedisRateLimiter("redis://127.0.0.1:6379/0") as limiter:
        client = FluxClient(rate_limiter=limiter)
        assert_type(await limiter.take(), float)
    jobs = frame_to_jobs(frame, column="hero", output_format="png")
    assert_type(next(jobs), Job | EditRequest)
    run_batch(client, jobs, sink=sink_for("clean"))


def outcomes(outcome: Outcome) -> None:
    match outcome:
        case Succeeded(job=job, image=image, file=file, verdict=verdict, check=check):
            assert_type(verdict, Verdict | None)
            assert_type(check, CheckResult | None)
            assert_type(job, Job)
            assert_type(image, ImageResult | None)
            assert_type(file, Path | None)
        case Failed(error=error) | InDoubt(error=error):
            assert_type(error, FluxError)
        case _:
            assert_never(outcome)


def errors(error: FluxError) -> None:
    assert_type(error.charge, Charge)
    assert_type(error.scope, Scope)
    assert_type(error.task_id, TaskId | None)
    assert_type(error.advice, str)
    match error:
        case RateLimitedError():
            assert_type(error.retry_after_s, float | None)
        case ApiError():
            assert_type(error.code, int)
            assert_type(error.http_status, int | None)
        case TaskFailed():
            assert_type(error.record, TaskRecord | None)
        case PollDeadlineExceeded() | MissingExtra():
            assert_type(error.message, str)
        case _:
            pass
