"""How answers travel: at once, late, in drops, or not at all; and what becomes of files on their way."""

from __future__ import annotations

import http
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from flux_async.sandbox.clock import VendorClock
from flux_async.sandbox.fault_replies import Answer
from flux_async.sandbox.faults import Fault, Struck
from flux_async.sandbox.links import PublicFile

PRIVATE_ADDRESS: Final = "http://127.0.0.1:9/private.jpg"  # where nobody listens

# What callers upload is shown by browsers, but never runs in the origin of the page.
FILE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cache-Control": "private, max-age=600",
}
_DROPS: Final = frozenset({Fault.DROP_REQUEST, Fault.DROP_REPLY})


def hang_up(request: Request) -> None:
    """Close the connection; the reply that is made afterwards reaches nobody.

    Raises:
        ConnectionResetError: In-process, where there is no connection.
    """
    close: Callable[[], None] | None = getattr(request.state, "hang_up", None)
    if close is None:
        raise ConnectionResetError("the sandbox dropped this reply")
    close()


def answer(reply: Answer) -> Response:
    """Return the answer as it is."""
    return Response(reply.encode(), reply.status, headers={"Content-Type": reply.content_type})


async def answer_submit(request: Request, reply: Answer, faults: Struck, clock: VendorClock) -> Response:
    """Return the answer to a submit as its faults let it through."""
    if Fault.SLOW_REPLY in faults:
        await clock.sleep(faults[Fault.SLOW_REPLY])
    if faults.keys() & _DROPS:
        hang_up(request)
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
    """Return a file, or what a fault makes of it."""
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
    """The length of the whole, the first half of it, and the end of the connection."""

    def __init__(self, request: Request, content: bytes, media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._request = request
        self._half = content[: len(content) // 2]

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._half, "more_body": True})
        hang_up(self._request)
        while (await receive())["type"] != "http.disconnect":  # till then the server takes it for a mistake
            pass
