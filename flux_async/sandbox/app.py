"""The vendor as an ASGI application: routes, bytes and files around `Vendor` and `Studio`.

Run it under a server (`flux_async.sandbox.serve`) or call it in-process; where pictures or callbacks are
wanted its lifespan must be running.
"""

from __future__ import annotations

import http
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final

import anyio
import anyio.to_thread
import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flux_async.sandbox import mishaps, replies, uploads
from flux_async.sandbox.callbacks import CallbackBook
from flux_async.sandbox.clock import ScaledTime, VendorClock, VirtualTime, as_clock
from flux_async.sandbox.courier import Courier, callback_client
from flux_async.sandbox.delivery import FILE_HEADERS, answer, answer_submit, hang_up, send_file
from flux_async.sandbox.faults import Place
from flux_async.sandbox.fetcher import web_client
from flux_async.sandbox.page import TaskView, render_page, render_tasks
from flux_async.sandbox.plan import HEADER, FaultPlan, Rule, parse_rules
from flux_async.sandbox.requests import BodyTooLargeError, base_url, is_json, json_body, limited, sent_key
from flux_async.sandbox.settings import SandboxSettings
from flux_async.sandbox.shelf import Shelf
from flux_async.sandbox.simulator import Upload, Vendor
from flux_async.sandbox.state import State, names_in_use
from flux_async.sandbox.studio import Studio, Thumbnails
from flux_async.sandbox.tasks import Account, Failure, Pictures, Task
from flux_async.sandbox.views import matches, summary, task_json, task_view

TASKS_ON_PAGE: Final = 60
SAVE_EVERY: Final = 0.25  # real seconds

# A base64 body is a third longer than its file.
_MAX_BASE64_BODY: Final = uploads.MAX_BASE64_BYTES * 3 // 2
_MAX_UPLOAD_BODY: Final = uploads.MAX_FILE_BYTES + 64 * 1024

_SIGNED_LINKS: Final = ("/files/origin/", "/files/fresh/")


class UnknownFaultError(Exception):
    """A request asks for a fault there is none of."""


class Desk:
    """Everything the routes share."""

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
        # A later life draws anew, or it would hand out the ids of the first.
        seed = settings.seed if facts is None else f"{settings.seed} {facts.starts}"
        rng = random.Random(seed) if settings.seed is not None else random.Random()  # noqa: S311 - guards nothing
        self.vendor: Vendor = Vendor(rng, plan, began=facts.began if facts else clock())
        self.account: Account = self.vendor.open_account(settings.keys, settings.credits)
        self.shelf: Shelf = Shelf(state.folder if state else None)
        self.studio: Studio = Studio(settings, self.shelf, self._hand_in, clock)
        self.callbacks: CallbackBook = CallbackBook(settings.webhook_key)
        self.courier: Courier = Courier(
            self.vendor, self.callbacks, clock=clock, speed=settings.speed, wall=wall
        )

        if state is not None:
            self._wake_up(state)

    def _wake_up(self, state: State) -> None:
        """Go on where an earlier life ended."""
        thumbnails = state.restore(self.vendor, self.account, self.callbacks)
        self.shelf.keep_only(names_in_use(self.vendor, thumbnails))
        for task_id, (before, after) in thumbnails.items():
            self.studio.thumbnails[task_id] = Thumbnails(
                before=self.shelf.path(before), after=self.shelf.path(after)
            )

    def save(self) -> None:
        """Write down what has changed, where it is to outlive this process."""
        if self.state is None:
            return
        drawn = self.studio.thumbnails

        def names(task_id: str) -> tuple[str, str] | None:
            return (drawn[task_id].before.name, drawn[task_id].after.name) if task_id in drawn else None

        self.state.write(self.vendor, self.account, self.callbacks, self.now(), names)

    async def _keep(self) -> None:
        while True:
            await anyio.sleep(SAVE_EVERY)
            self.save()

    def _hand_in(self, task: Task, made: Pictures | Failure) -> None:
        now = self.now()
        if isinstance(made, Failure):
            self.vendor.fail(task.task_id, made, now)
        else:
            self.vendor.deliver(task.task_id, made, now)
        self.callbacks.expect(task)
        self.courier.wake()
        self.sweep()

    def sweep(self) -> None:
        """Delete the bytes nothing leads to any more."""
        for blob in self.vendor.files.sweep(self.now()):
            self.shelf.drop(blob.name)

    @asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        """Work on pictures and send callbacks for as long as the app lives."""
        try:
            async with (
                web_client() as web,
                callback_client() as receivers,
                anyio.create_task_group() as tasks,
            ):
                self.studio.open(tasks, web)
                self.courier.open(tasks, receivers)
                if self.state is not None:
                    tasks.start_soon(self._keep)
                for task in tuple(self.vendor.all_tasks()):  # of an earlier life that ended before they did
                    if task.made is None:
                        self.studio.take_on(task)
                yield
                tasks.cancel_scope.cancel()
        finally:
            self.save()
            if self.state is not None:
                self.state.close()
            self.shelf.clear()

    # The Flux Kontext API

    async def generate(self, request: Request) -> Response:
        """POST generate: create a task (API page, "Image Generation/Editing")."""
        body = await json_body(request)
        if not is_json(request):
            return answer(replies.unauthorized(key_sent=True))
        asked = _asked(request)
        submission = self.vendor.submit(sent_key(request), body, self.now(), base_url(request), asked)
        if (task := submission.task) is not None:
            self.save()  # before anybody hears of it
            try:
                if (early := self.callbacks.early(task)) is not None:
                    await self.courier.deliver(early)
            finally:  # only now, so that however fast the clock runs it came too early
                self.studio.take_on(task)
            if self.settings.latency:
                await self.now.sleep(self.settings.latency)
        if not submission.faults:
            return answer(submission.reply)
        return await answer_submit(request, submission.reply, submission.faults, self.now)

    async def record_info(self, request: Request) -> Response:
        """GET record-info: the state of a task (API page, "Task Status Query")."""
        task_id = request.query_params.get("taskId")
        reply = self.vendor.record_info(sent_key(request), task_id, self.now(), base_url(request))
        if self.vendor.drops_look(task_id):
            hang_up(request)
        return answer(reply)

    # The common API

    async def credit(self, request: Request) -> Response:
        """GET credit: what is left of the balance."""
        asked = _asked(request)
        return answer(self.vendor.credit(sent_key(request), self.now(), asked))

    async def download_url(self, request: Request) -> Response:
        """POST download-url: a fresh link to a result."""
        body = await json_body(request)
        if not is_json(request):
            return answer(replies.unauthorized(key_sent=True))
        return answer(self.vendor.download_url(sent_key(request), body, self.now(), base_url(request)))

    # The upload host

    async def upload_stream(self, request: Request) -> Response:
        """POST file-stream-upload."""
        return await self._upload(
            request, lambda: uploads.read_stream(limited(request, _MAX_UPLOAD_BODY), self.shelf)
        )

    async def upload_base64(self, request: Request) -> Response:
        """POST file-base64-upload."""

        async def read() -> Upload:
            return uploads.read_base64(await json_body(request, _MAX_BASE64_BODY), self.shelf)

        return await self._upload(request, read)

    async def upload_url(self, request: Request) -> Response:
        """POST file-url-upload."""

        async def read() -> Upload:
            if self.studio.web is None:
                raise RuntimeError("files are fetched while the app's lifespan runs: enter it")
            return await uploads.read_url(await json_body(request), self.shelf, self.studio.web)

        return await self._upload(request, read)

    async def _upload(self, request: Request, read: Callable[[], Awaitable[Upload]]) -> Response:
        account = self.vendor.account(sent_key(request))
        if account is None:
            return answer(uploads.BAD_KEY)
        asked = _asked(request)
        faults = self.vendor.faults_of_call(Place.UPLOAD, self.now(), asked)
        if (refusal := mishaps.upload_refused(faults)) is not None:
            account.ledger.strike(faults)
            return answer(refusal)
        try:
            upload = await read()
        except uploads.RefusedError as refused:
            return answer(refused.reply)
        except BodyTooLargeError:
            return answer(replies.upload_refusal(400, "File size exceeds the limit"))
        reply = self.vendor.upload(account, upload, self.now(), base_url(request))
        self.sweep()
        self.save()
        return answer(reply)

    # The file host

    async def file(self, request: Request) -> Response:
        """GET a result, an origin, a fresh link or an upload: no key asked, none looked at."""
        path = request.scope["path"]
        found = self.vendor.files.find(path, self.now())
        if found is None or not self.shelf.path(found.blob.name).is_file():
            signed = path.startswith(_SIGNED_LINKS)
            return PlainTextResponse(
                "the link has expired" if signed else "not found", 403 if signed else 404
            )
        fault = self.vendor.files.fetch(found) if found.faults else None
        return send_file(request, found, self.shelf.path(found.blob.name), fault)

    # What the vendor does not have

    async def ledger(self, _request: Request) -> Response:
        """GET the ledger: what was asked, paid, polled and called back."""
        return JSONResponse(self.book())

    def book(self) -> dict[str, Any]:
        """Return the ledger, the balance and all tasks, the newest first."""
        tasks = [task_json(task) for task in self.vendor.newest(self.now())]
        clock = {"now": self.now(), "speed": self.settings.speed}
        book = self.account.ledger.as_json()
        return {"clock": clock, "credits": self.account.balance, **book, "tasks": tasks}

    async def advance(self, request: Request) -> Response:
        """POST to let virtual time pass: ``{"advance": seconds}``."""
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
        return HTMLResponse(render_page(self._summary(), *self._shown(request), base_url(request)))

    async def page_tasks(self, request: Request) -> Response:
        """GET the part of the page that changes."""
        fragment = render_tasks(self._summary(), *self._shown(request))
        return HTMLResponse(fragment, headers={"Cache-Control": "no-store"})

    async def thumbnail(self, request: Request) -> Response:
        """GET a small picture of a task."""
        thumbnails = self.studio.thumbnails.get(request.path_params["task_id"])
        if thumbnails is None:
            raise HTTPException(http.HTTPStatus.NOT_FOUND)
        path = thumbnails.before if request.path_params["side"] == "before" else thumbnails.after
        return FileResponse(path, media_type="image/jpeg", headers=FILE_HEADERS)

    def _summary(self) -> dict[str, str]:
        return {**summary(self.account), "Clock": f"{self.settings.speed:g}\N{MULTIPLICATION SIGN}"}

    def _shown(self, request: Request) -> tuple[list[TaskView], str]:
        """Return the newest of the tasks a reader looks for, and what to say of the others."""
        words, state = request.query_params.get("q", ""), request.query_params.get("state", "")
        now, drawn = self.now(), self.studio.thumbnails
        found = (task for task in self.vendor.newest(now) if matches(task, words, state))
        tasks = list(itertools.islice(found, TASKS_ON_PAGE))
        views = [
            task_view(task, now, self.vendor.files, has_thumbnails=task.task_id in drawn) for task in tasks
        ]
        if words or state:
            return views, "and older ones" if next(found, None) is not None else _nothing(views)
        more = self.account.ledger.accepted - len(tasks)
        return views, f"and {more:,} older" if more else ""


def _nothing(views: list[TaskView]) -> str:
    return "" if views else "No task is like that."


@attrs.frozen
class _BrowserCheck:
    """The vendor's front door turns away urllib's default User-Agent with 403 and this text."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(("/api/", "/files/", "/kieai/")):
            agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
            if agent.startswith(b"Python-urllib"):
                await PlainTextResponse("error code: 1010", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def create_app(
    settings: SandboxSettings,
    *,
    plan: FaultPlan | None = None,
    clock: Callable[[], float] | VendorClock | None = None,
    wall: Callable[[], float] = time.time,
) -> Starlette:
    """Return the sandbox as an ASGI application.

    Args:
        settings: How it behaves.
        plan: What goes wrong; left out, what the settings say.
        clock: The vendor's time, such as a `VirtualTime`; left out, real time, scaled by ``settings.speed``.
            Where it can only tell the present, ``settings.speed`` of its seconds pass in a real one.
        wall: Real seconds since the epoch, for the timestamps of signatures.
    """
    state = State(settings.state) if settings.state else None
    began = state.facts.now if state and state.facts else None
    desk = Desk(settings, plan or settings.plan, _clock(settings, clock, began), wall, state)
    app = Starlette(
        routes=[
            Route("/api/v1/flux/kontext/generate", desk.generate, methods=["POST"]),
            Route("/api/v1/flux/kontext/record-info", desk.record_info),
            Route("/api/v1/chat/credit", desk.credit),
            Route("/api/v1/common/download-url", desk.download_url, methods=["POST"]),
            Route("/api/file-stream-upload", desk.upload_stream, methods=["POST"]),
            Route("/api/file-base64-upload", desk.upload_base64, methods=["POST"]),
            Route("/api/file-url-upload", desk.upload_url, methods=["POST"]),
            Route("/files/{rest:path}", desk.file),
            Route("/kieai/{rest:path}", desk.file),
            Route("/samples/", _samples),
            Route("/samples/{name}.png", _sample),
            Route("/__sandbox/ledger", desk.ledger),
            Route("/__sandbox/clock", desk.advance, methods=["POST"]),
            Route("/__sandbox/tasks", desk.page_tasks),
            Route("/__sandbox/thumbnails/{task_id}/{side}.jpg", desk.thumbnail),
            Route("/", desk.page),
        ],
        middleware=[Middleware(_BrowserCheck)],
        exception_handlers={
            http.HTTPStatus.NOT_FOUND: _not_found,
            BodyTooLargeError: _too_large,
            ClientDisconnect: _nobody_there,
            UnknownFaultError: _unknown_fault,
        },
        lifespan=desk.running,
    )
    app.state.desk = desk
    return app


def _clock(
    settings: SandboxSettings, given: Callable[[], float] | VendorClock | None, begin: float | None
) -> VendorClock:
    if given is not None:
        return as_clock(given, settings.speed)
    if settings.virtual_clock:
        return VirtualTime() if begin is None else VirtualTime(begin)
    return ScaledTime(settings.speed, not_before=begin or 0.0)


def desk_of(app: Starlette) -> Desk:
    """Return what is behind an application made by `create_app`."""
    desk = app.state.desk
    assert isinstance(desk, Desk)  # noqa: S101 - put there by create_app
    return desk


def _asked(request: Request) -> tuple[Rule, ...]:
    """Return the faults a request asks for in its header."""
    try:
        return parse_rules(request.headers.get(HEADER, ""))
    except ValueError as error:  # a misspelled fault would be a test that tests nothing
        raise UnknownFaultError(str(error)) from None


async def _samples(request: Request) -> Response:
    names = await anyio.to_thread.run_sync(_sample_names)
    listed = []
    for name in names:
        title, _ = await anyio.to_thread.run_sync(_draw_sample, name)
        listed.append({"name": name, "title": title, "url": f"{base_url(request)}/samples/{name}.png"})
    return JSONResponse({"samples": listed})


async def _sample(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in await anyio.to_thread.run_sync(_sample_names):
        raise HTTPException(http.HTTPStatus.NOT_FOUND)
    _, content = await anyio.to_thread.run_sync(_draw_sample, name)
    return Response(content, media_type="image/png", headers={"Cache-Control": "max-age=3600"})


def _sample_names() -> tuple[str, ...]:
    try:
        from flux_async.sandbox import samples  # noqa: PLC0415 - loads numpy; few callers want samples
    except ImportError as error:
        raise HTTPException(http.HTTPStatus.NOT_FOUND) from error
    return tuple(samples.sample_names())


@lru_cache(maxsize=64)
def _draw_sample(name: str) -> tuple[str, bytes]:
    """Return title and PNG of a sample; drawn once, as drawing takes a moment."""
    from flux_async.imaging import encode_picture  # noqa: PLC0415 - loads numpy
    from flux_async.sandbox import samples  # noqa: PLC0415 - as above

    sample = samples.draw_sample(name)
    return sample.title, encode_picture(sample.picture)


async def _not_found(_request: Request, _error: Exception) -> Response:
    page = "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>404 Not Found</body>\r\n</html>\r\n"
    return HTMLResponse(page, http.HTTPStatus.NOT_FOUND)


async def _too_large(_request: Request, _error: Exception) -> Response:
    page = "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n</html>\r\n"
    return HTMLResponse(page, http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, headers={"Connection": "close"})


async def _unknown_fault(_request: Request, error: Exception) -> Response:
    return answer(replies.refusal(422, f"{HEADER}: {error}"))


async def _nobody_there(_request: Request, _error: Exception) -> Response:
    return Response(status_code=http.HTTPStatus.BAD_REQUEST)
