"""Real processes and sockets for the tests: a sandbox, and a host that serves images."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest

from commands import CLOSED_PORT, Cli, RunningSandbox, running_sandbox


@pytest.fixture(scope="session")
def sandbox_url() -> Iterator[str]:
    """The address of a sandbox 20 times as fast as the vendor, with exact results; its key is ``test``."""
    with running_sandbox("--speed", "20", "--credits", "1000000", "--exact") as sandbox:
        yield sandbox.url


@pytest.fixture(scope="session")
def quick_url() -> Iterator[str]:
    """The address of another one, which makes no images: every result is one pixel."""
    with running_sandbox("--speed", "20", "--credits", "1000000", "--images", "none") as sandbox:
        yield sandbox.url


@pytest.fixture
def start_sandbox() -> Iterator[Callable[..., RunningSandbox]]:
    """Start sandboxes for one test, ended with it."""
    with ExitStack() as stack:
        yield lambda *options, stderr=False: stack.enter_context(running_sandbox(*options, stderr=stderr))


@pytest.fixture
def reserved_port() -> Iterator[int]:
    """A port for a server of a child process: bound here, so that the system gives it to no other process.

    A socket that does not listen, with SO_REUSEADDR, lets a server bind it all the same.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@attrs.frozen
class ImageHost:
    """A web host with files to fetch.

    Attributes:
        url: Its address, without a slash at the end.
        files: What it serves, by path: content type and bytes. A test may add its own.
    """

    url: str
    files: dict[str, tuple[str, bytes]]

    def more(self, name: str, count: int) -> list[str]:
        """Serve the poster at ``count`` more addresses."""
        names = [f"/{name}-{number}.png" for number in range(count)]
        self.files.update(dict.fromkeys(names, self.files["/poster.png"]))
        return [self.url + name for name in names]


class _ImageHandler(BaseHTTPRequestHandler):
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
        content_type, content = found or ("text/plain", b"no such image")
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has disconnected

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


def _drawn(file_format: str, text: str, size: tuple[int, int] = (640, 400)) -> bytes:
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - only tests with images need it

    image = Image.linear_gradient("L").resize(size).convert("RGB")
    font = ImageFont.load_default(size[1] // 7)
    ImageDraw.Draw(image).text((size[0] // 12, size[1] // 3), text, fill=(250, 220, 60), font=font)
    content = io.BytesIO()
    image.save(content, file_format)
    return content.getvalue()


@pytest.fixture(scope="session")
def image_host() -> Iterator[ImageHost]:
    """A host with images that have text on them, and with files that are no images."""
    files = {
        "/poster.png": ("image/png", _drawn("PNG", "GRAND OPENING")),
        "/poster.jpg": ("image/jpeg", _drawn("JPEG", "SUMMER SALE")),
        "/tall.png": ("image/png", _drawn("PNG", "MENU", (300, 500))),
        "/page.html": ("text/html", b"<p>not an image</p>"),
        "/cut.png": ("image/png", _drawn("PNG", "CUT SHORT")[:900]),
        "/too-large.png": ("image/png", b"\x89PNG\r\n\x1a\n" + bytes(21 * 1024 * 1024)),
    }
    handler = type("Handler", (_ImageHandler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="image host", kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield ImageHost(f"http://127.0.0.1:{server.server_address[1]}", files)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def make_cli(tmp_path: Path) -> Callable[..., Cli]:
    """Make a command line in the test's folder: ``make_cli(url, key=…)``."""
    return lambda base_url=CLOSED_PORT, key="test": Cli(tmp_path, base_url, key)


@pytest.fixture
def cli(tmp_path: Path, sandbox_url: str) -> Cli:
    """A command line against the shared sandbox."""
    return Cli(tmp_path, sandbox_url)


@pytest.fixture
def quick_cli(tmp_path: Path, quick_url: str) -> Cli:
    """A command line against the sandbox that makes no images, with learned times in the folder ``out``."""
    made = Cli(tmp_path, quick_url)
    made.teach_times()
    return made


@pytest.fixture
def offline(tmp_path: Path) -> Cli:
    """A command line whose API cannot be reached: commands that work here make no request."""
    return Cli(tmp_path)


@pytest.fixture
def image_urls(image_host: ImageHost, request: pytest.FixtureRequest) -> list[str]:
    """Three image addresses that no other test uses."""
    return image_host.more(request.node.name, 3)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of localhost and of vendor.example, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    pem, key = folder / "here.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,DNS:vendor.example"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-out", pem]
    command += ["-keyout", key, "-subj", "/CN=localhost", "-addext", names]
    subprocess.run(command, check=True, capture_output=True)
    pem.write_text(pem.read_text() + key.read_text())
    return pem
