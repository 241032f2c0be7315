"""The effect of faults on answers and files: other answers, late ones, slow ones, none."""

from __future__ import annotations

import http
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from flux_async.sandbox import envelopes
from flux_async.sandbox.clock import VendorClock
from flux_async.sandbox.envelopes import Page, Reply
from flux_async.sandbox.faults import ActiveFaults, Fault, Target
from flux_async.sandbox.files import PublicFile

Answer = Reply | Page

BAD_GATEWAY: Final = envelopes.html_page(http.HTTPStatus.BAD_GATEWAY)
FORBIDDEN: Final = Page(b"error code: 1010", http.HTTPStatus.FORBIDDEN, "text/plain")

PRIVATE_ADDRESS: Final = "http://127.0.0.1:9/private.jpg"  # where no server listens

# A browser shows uploads, but runs no script of theirs in the origin of the page.
FILE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cache-Control": "private, max-age=600",
}
_DROPS: Final = frozenset({Fault.DROP_REQUEST, Fault.DROP_REPLY})

REFUSALS: Final[Mapping[Fault, Answer]] = {
    Fault.HTTP_429: envelopes.refusal(429, envelopes.TOO_FAST),
    Fault.ENVELOPE_429: Reply({"code": 429, "msg": envelopes.TOO_FAST, "data": None}),
    Fault.REFUSE_400: envelopes.refusal(400, envelopes.FLAGGED),
    Fault.REFUSE_401: envelopes.unauthorized(key_sent=True),
    Fault.REFUSE_402: envelopes.refusal(402, envelopes.NO_CREDITS),
    Fault.REFUSE_403: FORBIDDEN,
    Fault.REFUSE_404: envelopes.html_page(http.HTTPStatus.NOT_FOUND),
    Fault.REFUSE_422: envelopes.refusal(422, "The parameters are not valid."),
    Fault.REFUSE_433: envelopes.refusal(433, envelopes.KEY_CAP),
    Fault.REFUSE_455: envelopes.refusal(455, envelopes.MAINTENANCE),
    Fault.REFUSE_500: envelopes.refusal(500, envelopes.SERVER_ERROR),
    Fault.REFUSE_502: BAD_GATEWAY,
    Fault.REFUSE_505: envelopes.refusal(505, envelopes.SWITCHED_OFF),
}
"""The answers to refused submits; DROP_REQUEST gets none."""

_POLLS: Final[Mapping[Fault, Answer]] = {
    Fault.POLL_401: envelopes.unauthorized(key_sent=True),
    Fault.POLL_429: envelopes.refusal(429, envelopes.TOO_FAST),
    Fault.POLL_455: envelopes.refusal(455, envelopes.MAINTENANCE),
    Fault.POLL_500: envelopes.refusal(500, envelopes.SERVER_ERROR),
    Fault.POLL_502: BAD_GATEWAY,
    Fault.POLL_HTML: envelopes.html_page(http.HTTPStatus.OK),
}
_NOT_YET: Final[Mapping[Fault, Answer | None]] = {
    Fault.LATE_RECORD: None,
    Fault.LATE_RECORD_NULL: envelopes.success(None),
    Fault.LATE_RECORD_404: Reply({"code": 404, "msg": "Not Found", "data": None}, http.HTTPStatus.NOT_FOUND),
}
_UPLOADS: Final[Mapping[Fault, Answer]] = {
    Fault.UPLOAD_DOWN: envelopes.html_page(http.HTTPStatus.SERVICE_UNAVAILABLE),
    Fault.UPLOAD_500: envelopes.upload_refusal(500, "Internal server error"),
    Fault.UPLOAD_REFUSED: Reply({"success": False, "code": 500, "msg": "Internal server error"}),
}


def refused(faults: ActiveFaults, submits: int) -> Fault | None:
    """Return the fault that refuses a submit, the `submits`-th of its image, or None."""
    active = (fault for fault, most in faults.items() if fault.target is Target.SUBMIT and submits <= most)
    return next(active, None)


def answered(reply: Reply, faults: ActiveFaults) -> Answer:
    """Return the answer to an accepted submit, with its faults."""
    if Fault.PAID_500 in faults:
        return envelopes.refusal(500, envelopes.SERVER_ERROR)
    if Fault.PAID_502 in faults:
        return BAD_GATEWAY
    if Fault.NO_TASK_ID in faults:
        reply = envelopes.success({})
    spelt = respelt(reply, faults)
    return cut(spelt) if Fault.TRUNCATED_REPLY in faults else spelt


def poll_reply(
    record: Callable[[], Reply], no_record: Reply, faults: ActiveFaults, polls: int, age: float
) -> Answer:
    """Return the answer to the `polls`-th poll of a task, `age` vendor seconds after its submit.

    `no_record` is the answer about an unknown task.
    """
    for fault, answer in _NOT_YET.items():
        if age < faults.get(fault, 0.0):
            return answer or no_record
    for fault, refusal in _POLLS.items():
        if polls <= faults.get(fault, 0):
            return refusal
    spelt = respelt(record(), faults)
    if polls <= faults.get(Fault.POLL_OTHER, 0):
        spelt = _of_another(spelt)
    return cut(spelt) if polls <= faults.get(Fault.POLL_TRUNCATED, 0) else spelt


def _of_another(reply: Reply) -> Reply:
    data = reply.body["data"]
    assert isinstance(data, dict)  # noqa: S101 - the record of a task
    return Reply({**reply.body, "data": {**data, "taskId": str(data["taskId"])[::-1]}}, reply.status)


def balance(credits_: float, faults: ActiveFaults) -> Reply:
    """Return the answer of credit."""
    if Fault.CREDITS_AS_TEXT in faults:
        return envelopes.success(f"{credits_:g}")
    return envelopes.success(int(credits_) if Fault.CREDITS_INTEGER in faults else credits_)


def upload_refused(faults: ActiveFaults) -> Answer | None:
    """Return the answer that refuses an upload, or None."""
    return next((answer for fault, answer in _UPLOADS.items() if fault in faults), None)


def respelt(reply: Reply, faults: ActiveFaults) -> Reply:
    """Return an envelope with the faults of its code and message."""
    if not faults.keys() & {Fault.CODE_AS_TEXT, Fault.MESSAGE_KEY}:
        return reply
    body = dict(reply.body)
    if Fault.CODE_AS_TEXT in faults:
        body["code"] = str(body["code"])
    if Fault.MESSAGE_KEY in faults:
        body = {"message" if name == "msg" else name: value for name, value in body.items()}
    return Reply(body, reply.status)


def cut(reply: Reply) -> Page:
    """Return the first half of an answer."""
    content = reply.encode()
    return Page(content[: len(content) // 2], reply.status, reply.content_type)


def close_connection(request: Request) -> None:
    """Close the connection; an answer that is sent afterwards is discarded.

    Raises:
        ConnectionResetError: In this process there is no connection to close.
    """
    close: Callable[[], None] | None = getattr(request.state, "close_connection", None)
    if close is None:
        raise ConnectionResetError("the sandbox closed this connection")
    close()


def answer(reply: Answer) -> Response:
    """Return an answer unchanged."""
    return Response(reply.encode(), reply.status, headers={"Content-Type": reply.content_type})


async def answer_submit(
    request: Request, reply: Answer, faults: ActiveFaults, clock: VendorClock
) -> Response:
    """Return the answer to a submit, late, byte by byte or not at all if its faults say so."""
    if Fault.SLOW_REPLY in faults:
        await clock.sleep(faults[Fault.SLOW_REPLY])
    if faults.keys() & _DROPS:
        close_connection(request)
    if Fault.DRIPPING_REPLY not in faults:
        return answer(reply)
    content, gap = reply.encode(), faults[Fault.DRIPPING_REPLY]

    async def drops() -> AsyncIterator[bytes]:
        for index in range(len(content)):
            await clock.sleep(gap)
            yield content[index : index + 1]

    headers = {"Content-Type": reply.content_type, "Content-Length": str(len(content))}
    return StreamingResponse(drops(), reply.status, headers)


def send_file(request: Request, file: PublicFile, path: Path, fault: Fault | None) -> Response:
    """Return a file, changed by its fault."""
    media_type = "image/png" if Fault.FILE_JPEG_AS_PNG in file.faults else file.blob.content_type
    match fault:
        case Fault.FILE_403:
            return PlainTextResponse("the link has expired", http.HTTPStatus.FORBIDDEN)
        case Fault.FILE_404:
            return PlainTextResponse("not found", http.HTTPStatus.NOT_FOUND)
        case Fault.FILE_HTML:
            return HTMLResponse("<!doctype html><title>One moment</title><p>Checking your browser</p>")
        case Fault.FILE_REDIRECT:
            return Response(status_code=http.HTTPStatus.FOUND, headers={"Location": PRIVATE_ADDRESS})
        case Fault.FILE_TRUNCATED:
            return _Truncated(request, path.read_bytes(), media_type)
        case Fault.FILE_WRONG_TYPE:
            media_type = "application/octet-stream"
        case _:
            pass
    return FileResponse(path, media_type=media_type, headers=FILE_HEADERS)


class _Truncated(Response):
    """A response that ends in the middle, with the connection."""

    def __init__(self, request: Request, content: bytes, media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._request = request
        self._half = content[: len(content) // 2]

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._half, "more_body": True})
        close_connection(self._request)
        while (await receive())["type"] != "http.disconnect":  # an earlier return would be logged as an error
            pass
