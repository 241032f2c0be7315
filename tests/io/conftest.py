"""Real processes and sockets for the tests: a sandbox, and a host that serves pictures."""

from __future__ import annotations

import io
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
import pytest

READY = "sandbox ready at "
START_SECONDS = 30
STOP_SECONDS = 10


@attrs.frozen
class RunningSandbox:
    """A sandbox in a child process."""

    url: str
    process: subprocess.Popen[str]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def running_sandbox(*options: str) -> Iterator[RunningSandbox]:
    """Start ``python -m flux_async.sandbox`` on a free port and end it, by its pid, in the end."""
    command = [sys.executable, "-m", "flux_async.sandbox", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
            line = process.stdout.readline() if readable else ""
            assert line.startswith(READY), f"the sandbox did not start: {line!r}"
            yield RunningSandbox(line.removeprefix(READY).strip(), process)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                finally:
                    process.kill()


@pytest.fixture(scope="session")
def sandbox_url() -> Iterator[str]:
    """The address of a sandbox that runs 20 times as fast as the vendor; its key is ``test``."""
    with running_sandbox("--speed", "20", "--credits", "1000000") as sandbox:
        yield sandbox.url


@pytest.fixture
def start_sandbox() -> Iterator[Callable[..., RunningSandbox]]:
    """Start sandboxes of one's own, ended with the test."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(running_sandbox(*options))


@attrs.frozen
class PictureHost:
    """A web host with files to fetch.

    Attributes:
        url: Its address, without a slash at the end.
        files: What it serves, by path: content type and bytes. A test may add its own.
    """

    url: str
    files: dict[str, tuple[str, bytes]]


class _PictureHandler(BaseHTTPRequestHandler):
    """Serves the files; ``/moved/`` before a path redirects to it."""

    files: dict[str, tuple[str, bytes]]

    def do_GET(self) -> None:
        """Answer with a file, a redirect or 404."""
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        found = self.files.get(self.path.partition("?")[0])
        content_type, content = found or ("text/plain", b"no such picture")
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader had enough

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def _drawn(file_format: str, text: str, size: tuple[int, int] = (640, 400)) -> bytes:
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - only where pictures are wanted

    image = Image.linear_gradient("L").resize(size).convert("RGB")
    font = ImageFont.load_default(size[1] // 7)
    ImageDraw.Draw(image).text((size[0] // 12, size[1] // 3), text, fill=(250, 220, 60), font=font)
    content = io.BytesIO()
    image.save(content, file_format)
    return content.getvalue()


@pytest.fixture(scope="session")
def picture_host() -> Iterator[PictureHost]:
    """A host with pictures that have text on them, and with files that are no pictures."""
    files = {
        "/poster.png": ("image/png", _drawn("PNG", "GRAND OPENING")),
        "/poster.jpg": ("image/jpeg", _drawn("JPEG", "SUMMER SALE")),
        "/tall.png": ("image/png", _drawn("PNG", "MENU", (300, 500))),
        "/page.html": ("text/html", b"<p>not a picture</p>"),
        "/cut.png": ("image/png", _drawn("PNG", "CUT SHORT")[:900]),
        "/too-large.png": ("image/png", b"\x89PNG\r\n\x1a\n" + bytes(21 * 1024 * 1024)),
    }
    handler = type("Handler", (_PictureHandler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(
        target=server.serve_forever, name="picture host", kwargs={"poll_interval": 0.05}
    )
    thread.start()
    try:
        yield PictureHost(f"http://127.0.0.1:{server.server_address[1]}", files)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
