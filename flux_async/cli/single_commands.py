"""The commands about one picture, one task or the account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import anyio
import attrs

from flux_async import (
    DownloadError,
    FluxClient,
    ImageResult,
    LocalImage,
    TaskRecord,
    TaskStatus,
    UploadedFile,
)
from flux_async.cli.advice import error_text, paid_result, paid_task
from flux_async.cli.credits import in_credits
from flux_async.cli.display import MessageConsole, message_console
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.terminal import Exit, Output, printable
from flux_async.client import DEFAULT_TIMEOUT_S
from flux_async.models import ImageRequest
from flux_async.transport.factory import TransportName

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Presentation:
    """How a command answers.

    Attributes:
        file: Where the picture goes, if it is wanted.
        as_json: Print one JSON object instead of a short line.
        transport: Library that makes the requests; None stands for ``KIE_TRANSPORT``, else httpx.
        output: Standard output.
        console: Standard error.
    """

    file: Path | None = None
    as_json: bool = False
    transport: TransportName | None = None
    output: Output = attrs.field(factory=Output)
    console: MessageConsole = attrs.field(factory=message_console)

    def answer(self, answer: Answer) -> Exit:
        """Print an answer and return its exit code."""
        if self.as_json:
            self.output.json(answer.data)
        else:
            self.output.line(answer.line)
        if answer.note:
            self.console.note(answer.note)
        return answer.code


@attrs.frozen(kw_only=True)
class Answer:
    """What a command prints when its work is done and the spinner is gone.

    Attributes:
        line: For a person.
        data: The same with ``--json``.
        code: The exit code.
        note: What is said on standard error besides.
    """

    line: str
    data: Mapping[str, object]
    code: Exit = Exit.SUCCEEDED
    note: str = ""


def make_picture(request: ImageRequest, timeout: float, show: Presentation) -> Exit:
    """Submit one request, wait for its picture, bring it home."""

    async def work(client: FluxClient) -> Answer:
        return await _deliver(client, await client.run(request), show)

    return _with_client(work, timeout, show, "Generating …")


def look_at_task(task_id: str, *, wait: bool, timeout: float, show: Presentation) -> Exit:
    """Say how a task stands; with ``wait``, when it has ended."""

    async def work(client: FluxClient) -> Answer:
        if wait:
            return await _deliver(client, await client.wait(task_id), show)
        record = await client.record(task_id)
        if record.result_url is not None and record.status is TaskStatus.SUCCESS:
            image = ImageResult(
                task_id=record.task_id,
                result_url=record.result_url,
                origin_url=record.origin_url,
                record=record,
            )
            return await _deliver(client, image, show)
        return _unfinished(record, wants_file=show.file is not None)

    return _with_client(work, timeout, show, "Waiting …")


def upload_image(image: str | LocalImage, max_bytes: int, timeout: float, show: Presentation) -> Exit:
    """Put a picture on the vendor's upload host and print its address."""

    async def work(client: FluxClient) -> Answer:
        if isinstance(image, LocalImage):
            uploaded = await client.upload(image, max_bytes=max_bytes)
        else:
            uploaded = await client.upload_from_url(image)
        return Answer(line=uploaded.url, data=_upload_data(uploaded))

    return _with_client(work, timeout, show, "Uploading …")


def show_credits(show: Presentation) -> Exit:
    """Print the balance."""

    async def work(client: FluxClient) -> Answer:
        balance = await client.credits()
        return Answer(line=in_credits(balance), data={"credits": balance})

    return _with_client(work, DEFAULT_TIMEOUT_S, show, "Asking …")


def _with_client(
    work: Callable[[FluxClient], Awaitable[Answer]], timeout: float, show: Presentation, words: str
) -> Exit:
    """Run ``work`` with a client; name the tasks that are paid and that it left."""

    async def command(interruption: Interruption) -> Exit:
        client = FluxClient(timeout=timeout, transport=show.transport)
        answer: Answer | None = None
        try:
            with interruption.scope(), show.console.busy(words):
                answer = await work(client)
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()
            _name_the_paid(client, show)
        if answer is not None:
            show.answer(answer)
        return Exit.INTERRUPTED if answer is None or interruption.happened else answer.code

    return run_interruptible(command)


def _name_the_paid(client: FluxClient, show: Presentation) -> None:
    for loose in client.unclaimed:
        if loose.task_id is not None:
            show.console.note(paid_task(loose.task_id))
        elif loose.error is not None:
            show.console.note(f"The submit is in doubt. {error_text(loose.error)}")


async def _deliver(client: FluxClient, image: ImageResult, show: Presentation) -> Answer:
    """Return the result; with a file, download it first."""
    path: Path | None = None
    if show.file is not None:
        try:
            path = (await client.download(image, show.file)).path
        except DownloadError:
            show.console.note(paid_result(image.task_id, image.result_url, show.file))
            raise
    return Answer(line=str(path or image.result_url), data=_as_data(image, path))


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


def _as_data(image: ImageResult, path: Path | None) -> dict[str, object]:
    known = _record_data(image.record) if image.record is not None else {}
    return {
        **known,
        "task_id": image.task_id,
        "status": TaskStatus.SUCCESS.name,
        "result_url": image.result_url,
        "origin_url": image.origin_url,
        "file": str(path) if path else None,
    }


def _record_data(record: TaskRecord) -> dict[str, object]:
    return {
        "task_id": record.task_id,
        "status": record.status.name,
        "result_url": record.result_url,
        "origin_url": record.origin_url,
        "file": None,
        "error_code": record.error_code,
        "error_message": record.error_message,
        "created_at": _time(record.created_at),
        "completed_at": _time(record.completed_at),
    }


def _upload_data(uploaded: UploadedFile) -> dict[str, object]:
    return {
        "url": uploaded.url,
        "size": uploaded.size,
        "content_type": uploaded.content_type,
        "sha256": uploaded.sha256,
        "uploaded_at": _time(uploaded.uploaded_at),
        "expires_at": _time(uploaded.expires_at),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
