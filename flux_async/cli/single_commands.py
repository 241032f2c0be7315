"""The commands about one image, one task or the account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import anyio
import attrs

from flux_async import DownloadError, FluxClient, ImageResult, LocalImage, TaskRecord, TaskStatus
from flux_async.api.models_table import ApiName
from flux_async.cli.advice import error_text, paid_result, paid_task
from flux_async.cli.credits import in_credits
from flux_async.cli.display import MessageConsole, message_console
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, Output, as_json, printable
from flux_async.client_options import DEFAULT_TIMEOUT_S
from flux_async.models import ImageRequest
from flux_async.transport.factory import TransportName


@attrs.frozen(kw_only=True)
class Reply:
    """How a command replies.

    Attributes:
        file: Receives the image, where it is to be downloaded.
        as_json: Print one JSON object instead of a short line.
        transport: Library that makes the requests; None stands for ``KIE_TRANSPORT``, else httpx.
        api: API of the vendor; None stands for ``KIE_API``, else kontext.
        output: Standard output.
        console: Standard error.
    """

    file: Path | None = None
    as_json: bool = False
    transport: TransportName | None = None
    api: ApiName | None = None
    output: Output = attrs.field(factory=Output)
    console: MessageConsole = attrs.field(factory=message_console)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Take the options of a command that say how it replies out of the others."""
        names = {"file", "as_json", "transport", "api"} & options.keys()
        return cls(**{name: options.pop(name) for name in names})


@attrs.frozen(kw_only=True)
class Answer:
    """What a command prints when its work is done.

    Attributes:
        line: The answer as text.
        data: The same with ``--json``.
        code: The exit code.
        note: A message for standard error.
        result: The task of a paid result, its API, and the address or file.
    """

    line: str
    data: Mapping[str, object]
    code: Exit = Exit.SUCCEEDED
    note: str = ""
    result: tuple[str, ApiName, str] | None = None


def run_request(request: ImageRequest, timeout: float, reply: Reply) -> Exit:
    """Submit one request, wait for its image and deliver it."""

    async def work(client: FluxClient) -> Answer:
        return await _deliver(client, await client.run(request), reply)

    return _with_client(work, timeout, reply, "Generating …")


def show_task(task_id: str, *, wait: bool, timeout: float, reply: Reply) -> Exit:
    """Show how a task stands; with ``wait``, when it has ended."""

    async def work(client: FluxClient) -> Answer:
        if wait:
            return await _deliver(client, await client.wait(task_id), reply)
        record = await client.record(task_id)
        if record.result_url is not None and record.status is TaskStatus.SUCCESS:
            image = ImageResult(
                task_id=record.task_id,
                result_url=record.result_url,
                origin_url=record.origin_url,
                api=record.api,
                record=record,
            )
            return await _deliver(client, image, reply)
        return _unfinished(record, wants_file=reply.file is not None)

    return _with_client(work, timeout, reply, "Waiting …")


def upload_image(image: str | LocalImage, max_bytes: int, timeout: float, reply: Reply) -> Exit:
    """Put an image on the vendor's upload host and print its address."""

    async def work(client: FluxClient) -> Answer:
        if isinstance(image, LocalImage):
            uploaded = await client.upload(image, max_bytes=max_bytes)
        else:
            uploaded = await client.upload_from_url(image)
        data = {
            "url": uploaded.url,
            "size": uploaded.size,
            "content_type": uploaded.content_type,
            "sha256": uploaded.sha256,
            "uploaded_at": _time(uploaded.uploaded_at),
            "expires_at": _time(uploaded.expires_at),
        }
        return Answer(line=uploaded.url, data=data)

    return _with_client(work, timeout, reply, "Uploading …")


def show_credits(reply: Reply) -> Exit:
    """Print the balance."""

    async def work(client: FluxClient) -> Answer:
        balance = await client.credits()
        return Answer(line=in_credits(balance), data={"credits": balance})

    return _with_client(work, DEFAULT_TIMEOUT_S, reply, "Reading the balance …")


def _with_client(
    work: Callable[[FluxClient], Awaitable[Answer]], timeout: float, reply: Reply, words: str
) -> Exit:
    """Run ``work`` with a client and print its answer, and the paid tasks whose answer nothing received."""

    async def command(interruption: Interruption) -> Exit:
        client = FluxClient(timeout=timeout, transport=reply.transport, api=reply.api)
        answer: Answer | None = None
        try:
            with interruption.scope(), reply.console.busy(words):
                answer = await work(client)
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()
            _name_unclaimed(client, reply.console)
        if answer is None:
            return Exit.INTERRUPTED
        text = as_json(answer.data) if reply.as_json else answer.line
        if answer.result is None:
            reply.output.line(text)
        else:
            reply.output.paid_result(text, *answer.result)
        if answer.note:
            reply.console.note(answer.note)
        return Exit.INTERRUPTED if interruption.happened else answer.code

    return run_interruptible(command)


def _name_unclaimed(client: FluxClient, console: MessageConsole) -> None:
    for unclaimed in client.unclaimed:
        if unclaimed.task_id is not None:
            console.note(paid_task(unclaimed.task_id, unclaimed.api))
        elif unclaimed.error is not None:
            console.note(f"The submit is in doubt. {error_text(unclaimed.error)}")


async def _deliver(client: FluxClient, image: ImageResult, reply: Reply) -> Answer:
    """Return the result; where a file is wanted, download it first."""
    path: Path | None = None
    if reply.file is not None:
        try:
            path = (await client.download(image, reply.file)).path
        except DownloadError:
            reply.console.note(paid_result(image.task_id, image.api, image.result_url, reply.file))
            raise
    known = {} if image.record is None else _record_data(image.record)
    data = {
        **known,
        "task_id": image.task_id,
        "api": image.api,
        "status": TaskStatus.SUCCESS.name,
        "result_url": image.result_url,
        "origin_url": image.origin_url,
        "file": str(path) if path else None,
    }
    where = str(path or image.result_url)
    return Answer(line=where, data=data, result=(image.task_id, image.api, where))


def _unfinished(record: TaskRecord, *, wants_file: bool) -> Answer:
    """Return the state of a task that has no image, or none yet."""
    why = f": {record.error_message}" if record.status.is_failure and record.error_message else ""
    lacks_file = record.status is TaskStatus.GENERATING and wants_file
    return Answer(
        line=f"{record.status.name}{printable(why)}",
        data=_record_data(record),
        code=Exit.SOME_FAILED if record.status.is_failure or lacks_file else Exit.SUCCEEDED,
        note="There is no image yet: add --wait." if lacks_file else "",
    )


def _record_data(record: TaskRecord) -> dict[str, object]:
    return {
        "task_id": record.task_id,
        "api": record.api,
        "status": record.status.name,
        "result_url": record.result_url,
        "origin_url": record.origin_url,
        "file": None,
        "error_code": record.error_code,
        "error_message": record.error_message,
        "created_at": _time(record.created_at),
        "completed_at": _time(record.completed_at),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
