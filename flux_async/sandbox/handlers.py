"""The endpoints of the sandbox: each passes a request to `Vendor`, `ImagePipeline` or `CallbackSender`."""

from __future__ import annotations

import http
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.to_thread
import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from flux_async.sandbox import envelopes, fault_replies, uploads
from flux_async.sandbox.callbacks import CallbackQueue, CallbackSender
from flux_async.sandbox.clock import VendorClock, VirtualTime
from flux_async.sandbox.fault_replies import FILE_HEADERS, answer, answer_submit, close_connection, send_file
from flux_async.sandbox.faults import FaultPlan, Target
from flux_async.sandbox.files import BlobStore
from flux_async.sandbox.http_client import callback_client, web_client
from flux_async.sandbox.image_pipeline import ImagePipeline, Thumbnails
from flux_async.sandbox.models import Api
from flux_async.sandbox.page import Page
from flux_async.sandbox.requests import (
    BodyTooLargeError,
    base_url,
    faults_of_header,
    is_json,
    json_body,
    limited,
    sent_key,
)
from flux_async.sandbox.settings import SandboxSettings
from flux_async.sandbox.simulator import Account, Failure, Task, TaskImages, Upload, Vendor, task_json
from flux_async.sandbox.state import State, names_in_use

SAVE_EVERY: Final = 0.25  # real seconds

# A base64 body is a third longer than its file.
_MAX_BASE64_BODY: Final = uploads.MAX_BASE64_BYTES * 3 // 2
_MAX_UPLOAD_BODY: Final = uploads.MAX_FILE_BYTES + 64 * 1024

_SIGNED_LINKS: Final = ("/files/origin/", "/files/fresh/")


class Handlers:
    """The endpoints and the state that they share."""

    def __init__(
        self,
        settings: SandboxSettings,
        plan: FaultPlan,
        clock: VendorClock,
        wall: Callable[[], float],
        state: State | None,
    ) -> None:
        self.settings: SandboxSettings = settings
        self.now: VendorClock = clock
        self.state: State | None = state
        facts = state.facts if state else None
        # A later process draws other ids than the first.
        seed = settings.seed if facts is None else f"{settings.seed} {facts.starts}"
        rng = random.Random(seed) if settings.seed is not None else random.Random()  # noqa: S311 - guards nothing
        began = facts.began if facts else clock()
        self.vendor: Vendor = Vendor(rng, plan, began, job_records=settings.job_records)
        self.account: Account = self.vendor.open_account(settings.keys, settings.credits)
        self.blobs: BlobStore = BlobStore(state.folder if state else None)
        self.image_pipeline: ImagePipeline = ImagePipeline(settings, self.blobs, self._complete, clock)
        self.callbacks: CallbackQueue = CallbackQueue(settings.webhook_key)
        self.callback_sender: CallbackSender = CallbackSender(
            self.vendor,
            self.callbacks,
            clock=clock,
            speed=settings.speed,
            wall=wall,
            anywhere=settings.callbacks_anywhere,
        )

        if state is not None:
            self._restore(state)

    def _restore(self, state: State) -> None:
        """Restore the state of an earlier process."""
        thumbnails = state.restore(self.vendor, self.account, self.callbacks)
        self.blobs.keep_only(names_in_use(self.vendor, thumbnails))
        for task_id, (before, after) in thumbnails.items():
            self.image_pipeline.thumbnails[task_id] = Thumbnails(
                before=self.blobs.path(before), after=self.blobs.path(after)
            )

    def address(self, request: Request) -> str:
        """Return the origin of the links of this service."""
        return self.settings.public_url or base_url(request)

    def save(self) -> None:
        """Write changes to the state file, if there is one."""
        if self.state is None:
            return
        drawn = self.image_pipeline.thumbnails

        def names(task_id: str) -> tuple[str, str] | None:
            return (drawn[task_id].before.name, drawn[task_id].after.name) if task_id in drawn else None

        self.state.write(self.vendor, self.account, self.callbacks, self.now(), names)

    async def _save_regularly(self) -> None:
        while True:
            await anyio.sleep(SAVE_EVERY)
            self.save()

    def _complete(self, task: Task, made: TaskImages | Failure) -> None:
        self.vendor.complete(task.task_id, made, self.now())
        self.callbacks.expect(task)
        self.callback_sender.wake()
        self.sweep()

    def sweep(self) -> None:
        """Delete the bytes of expired links."""
        for blob in self.vendor.files.sweep(self.now()):
            self.blobs.drop(blob.name)

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Make images and send callbacks during the lifespan of the app."""
        try:
            async with (
                web_client(self._own_links(app)) as web,
                callback_client() as receivers,
                anyio.create_task_group() as tasks,
            ):
                self.image_pipeline.open(tasks, web)
                self.callback_sender.open(tasks, receivers)
                if self.state is not None:
                    tasks.start_soon(self._save_regularly)
                for task in tuple(self.vendor.all_tasks()):  # unfinished ones of an earlier process
                    if task.made is None:
                        self.image_pipeline.start(task)
                yield
                tasks.cancel_scope.cancel()
        finally:
            self.save()
            if self.state is not None:
                self.state.close()
            self.blobs.clear()

    def _own_links(self, app: Starlette) -> dict[str, httpx.AsyncBaseTransport]:
        """Return the transport for links under the public address: this application itself."""
        url = self.settings.public_url
        return {} if url is None else {url: httpx.ASGITransport(app)}

    # The Flux Kontext API

    async def generate(self, request: Request) -> Response:
        """POST generate: create a task (API page, "Image Generation/Editing")."""
        return await self._submit(request, Api.KONTEXT)

    async def record_info(self, request: Request) -> Response:
        """GET record-info: the state of a task (API page, "Task Status Query")."""
        return self._record(request, Api.KONTEXT)

    # The jobs API

    async def create_task(self, request: Request) -> Response:
        """POST createTask: create a task of any model."""
        return await self._submit(request, Api.JOBS)

    async def job_record_info(self, request: Request) -> Response:
        """GET recordInfo: the state of such a task."""
        return self._record(request, Api.JOBS)

    async def models(self, request: Request) -> Response:
        """GET models: the models of the jobs API."""
        asked = request.query_params
        words, provider, task_types = (asked.get(name, "") for name in ("q", "provider", "taskType"))
        return answer(self.vendor.models(sent_key(request), self.now(), words, provider, task_types))

    # Both

    async def _submit(self, request: Request, api: Api) -> Response:
        body = await json_body(request)
        if not is_json(request):
            return answer(envelopes.unauthorized(key_sent=True))
        asked = faults_of_header(request)
        submission = self.vendor.submit(
            sent_key(request), body, self.now(), self.address(request), asked, api=api
        )
        if (task := submission.task) is not None:
            self.save()  # before the client learns the task's id
            try:
                if (early := self.callbacks.early(task)) is not None:
                    await self.callback_sender.deliver(early)
            finally:  # only now: with a fast clock, too, the callback comes too early
                self.image_pipeline.start(task)
            if self.settings.latency:
                await self.now.sleep(self.settings.latency)
        if not submission.faults:
            return answer(submission.reply)
        return await answer_submit(request, submission.reply, submission.faults, self.now)

    def _record(self, request: Request, api: Api) -> Response:
        task_id = request.query_params.get("taskId")
        reply = self.vendor.record_info(
            sent_key(request), task_id, self.now(), self.address(request), api=api
        )
        if self.vendor.drops_poll(task_id):
            close_connection(request)
        return answer(reply)

    # The common API

    async def credit(self, request: Request) -> Response:
        """GET credit: the balance."""
        asked = faults_of_header(request)
        return answer(self.vendor.credit(sent_key(request), self.now(), asked))

    async def download_url(self, request: Request) -> Response:
        """POST download-url: a fresh link to a result."""
        body = await json_body(request)
        if not is_json(request):
            return answer(envelopes.unauthorized(key_sent=True))
        return answer(self.vendor.download_url(sent_key(request), body, self.now(), self.address(request)))

    # The upload host

    async def upload_stream(self, request: Request) -> Response:
        """POST file-stream-upload."""
        return await self._upload(
            request, lambda: uploads.read_stream(limited(request, _MAX_UPLOAD_BODY), self.blobs)
        )

    async def upload_base64(self, request: Request) -> Response:
        """POST file-base64-upload."""

        async def read() -> Upload:
            return uploads.read_base64(await json_body(request, _MAX_BASE64_BODY), self.blobs)

        return await self._upload(request, read)

    async def upload_url(self, request: Request) -> Response:
        """POST file-url-upload."""

        async def read() -> Upload:
            if self.image_pipeline.web is None:
                raise RuntimeError("files are fetched only during the lifespan of the app: enter it")
            return await uploads.read_url(await json_body(request), self.blobs, self.image_pipeline.web)

        return await self._upload(request, read)

    async def _upload(self, request: Request, read: Callable[[], Awaitable[Upload]]) -> Response:
        account = self.vendor.account(sent_key(request))
        if account is None:
            return answer(uploads.BAD_KEY)
        asked = faults_of_header(request)
        faults = self.vendor.faults_of_call(Target.UPLOAD, self.now(), asked)
        if (refusal := fault_replies.upload_refused(faults)) is not None:
            account.ledger.strike(faults)
            return answer(refusal)
        try:
            upload = await read()
        except uploads.RefusedError as refused:
            return answer(refused.reply)
        except BodyTooLargeError:
            return answer(envelopes.upload_refusal(400, "File size exceeds the limit"))
        reply = self.vendor.upload(account, upload, self.now(), self.address(request))
        self.sweep()
        self.save()
        return answer(reply)

    # The file host

    async def file(self, request: Request) -> Response:
        """GET a result, an origin, a fresh link or an upload; no key is needed."""
        path = request.scope["path"]
        found = self.vendor.files.find(path, self.now())
        if found is None or not self.blobs.path(found.blob.name).is_file():
            signed = path.startswith(_SIGNED_LINKS)
            return PlainTextResponse(
                "the link has expired" if signed else "not found", 403 if signed else 404
            )
        fault = self.vendor.files.fetch(found) if found.faults else None
        return send_file(request, found, self.blobs.path(found.blob.name), fault)

    # Endpoints of the sandbox alone

    async def ledger(self, _request: Request) -> Response:
        """GET the ledger, the balance and the tasks."""
        return JSONResponse(self.record())

    def record(self) -> dict[str, Any]:
        """Return the ledger, the balance and all tasks, the newest first."""
        tasks = [task_json(task) for task in self.vendor.newest(self.now())]
        clock = {"now": self.now(), "speed": self.settings.speed}
        ledger = self.account.ledger.as_json()
        return {"clock": clock, "credits": self.account.balance, **ledger, "tasks": tasks}

    async def advance(self, request: Request) -> Response:
        """POST ``{"advance": seconds}``: advance virtual time."""
        body = await json_body(request)
        seconds = body.get("advance") if isinstance(body, dict) else None
        if not isinstance(self.now, VirtualTime):
            return JSONResponse({"error": "start the sandbox with --virtual-clock"}, http.HTTPStatus.CONFLICT)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
            words = 'the body must be {"advance": seconds}, with a number from 0 on'
            return JSONResponse({"error": words}, http.HTTPStatus.BAD_REQUEST)
        await self.now.advance(seconds)
        return JSONResponse({"now": self.now()})

    async def page(self, request: Request) -> Response:
        """GET the page that shows the tasks."""
        return HTMLResponse(self._page(request).whole(self.address(request)))

    async def page_tasks(self, request: Request) -> Response:
        """GET the part of the page that changes."""
        return HTMLResponse(self._page(request).changing_part(), headers={"Cache-Control": "no-store"})

    def _page(self, request: Request) -> Page:
        now = self.now()
        return Page(
            account=self.account,
            tasks=self.vendor.newest(now),
            links=self.vendor.files,
            thumbnails=self.image_pipeline.thumbnails,
            now=now,
            speed=self.settings.speed,
            words=request.query_params.get("q", ""),
            state=request.query_params.get("state", ""),
        )

    async def thumbnail(self, request: Request) -> Response:
        """GET a thumbnail of a task."""
        thumbnails = self.image_pipeline.thumbnails.get(request.path_params["task_id"])
        if thumbnails is None:
            raise HTTPException(http.HTTPStatus.NOT_FOUND)
        path = thumbnails.before if request.path_params["side"] == "before" else thumbnails.after
        if not path.is_file():
            raise HTTPException(http.HTTPStatus.NOT_FOUND)
        return FileResponse(path, media_type="image/jpeg", headers=FILE_HEADERS)
