"""Real processes and sockets for the tests: a sandbox, and a host that serves images."""

from __future__ import annotations

import asyncio
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import attrs
import pytest

import local_http
from flux_async import EditRequest, Journal
from flux_async.cli.commands import cli as cli_commands
from flux_async.cli.display import message_console
from flux_async.cli.terminal import run_cli
from flux_async.policy.generation_times import GenerationTimes, kind_of
from loggers import unchanged_loggers

READY = "sandbox ready at "
START_SECONDS = 60
STOP_SECONDS = 60
SECONDS = 60
CLOSED_PORT = "http://127.0.0.1:9"


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
def running_sandbox(*options: str, stderr: bool = False) -> Iterator[RunningSandbox]:
    """Start ``python -m flux_async.sandbox`` on a free port and end it, by its pid, in the end."""
    command = [sys.executable, "-m", "flux_async.sandbox", "--port", "0", *options]
    errors = subprocess.PIPE if stderr else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
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


@attrs.frozen
class Ended:
    """Exit code and both streams of a command."""

    code: int
    stdout: str
    stderr: str


@attrs.frozen
class Cli:
    """Runs ``flux-async`` in a folder, against one address, with one key and more variables."""

    folder: Path
    base_url: str = CLOSED_PORT
    key: str | None = "test"
    more: dict[str, str] = attrs.field(factory=dict)

    @contextmanager
    def start(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a command; it does not outlive the block."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        with subprocess.Popen(
            [sys.executable, "-m", "flux_async", *arguments],
            cwd=self.folder,
            env=environment | self.environment(),
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            **options,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def run(self, *arguments: str, text: str = "") -> Ended:
        """Run a command to its end in this process; to start another would take most of the time."""
        stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")
        code, stderr = self.run_into(stdout, *arguments, text=text)
        return Ended(code, stdout.buffer.getvalue().decode(), stderr)

    def run_into(self, stdout: IO[str] | None, *arguments: str, text: str = "") -> tuple[int, str]:
        """Run a command in this process with another standard output; return its exit code and its stderr."""
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        stderr = io.TextIOWrapper(io.BytesIO(), "utf-8")
        message_console.cache_clear()
        with pytest.MonkeyPatch.context() as patch, unchanged_loggers(), os.fdopen(reader) as stdin:
            for name in [name for name in os.environ if name.startswith("KIE_")]:
                patch.delenv(name)
            for name, value in self.environment().items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["flux-async", *arguments])
            for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
                patch.setattr(sys, name, stream)
            code = run_cli(cli_commands)
        return code, stderr.buffer.getvalue().decode()

    def run_apart(self, *arguments: str) -> Ended:
        """Run a command to its end in a process of its own."""
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=SECONDS)
        return Ended(process.returncode, stdout, stderr)

    def environment(self) -> dict[str, str]:
        """Return the variables of the command, beside those of this process."""
        key = {} if self.key is None else {"KIE_API_KEY": self.key}
        return {"KIE_BASE_URL": self.base_url, "COLUMNS": "120"} | key | self.more

    def teach_times(self, folder: str = "out") -> None:
        """Store in the journal of a folder that tasks take half a second, as they do in a quick sandbox.

        A run without learned times polls as if they took eight seconds.
        """
        times, kind = GenerationTimes(), kind_of(EditRequest.text_removal("https://example.com/"))
        for _ in range(300):
            observation = times.begin(0.0, kind=kind, age=0.0)
            observation.generating(0.15)
            observation.ended(0.6)

        async def keep() -> None:
            async with Journal(self.folder / folder / "journal.sqlite3") as journal:
                await journal.record_generation_times(times.dump())

        asyncio.run(keep())

    def rows(self, folder: str = "out") -> list[dict[str, Any]]:
        """Return the lines of results.jsonl."""
        results = self.folder / folder / "results.jsonl"
        return [json.loads(line) for line in results.read_text().splitlines()]

    def status(self, folder: str = "out") -> dict[str, Any]:
        """Return the output of ``status --json``."""
        reported: dict[str, Any] = json.loads(self.run("status", folder, "--json").stdout)
        return reported

    def ledger(self) -> dict[str, Any]:
        """Return the sandbox's ledger."""
        ledger: dict[str, Any] = local_http.get(f"{self.base_url}/__sandbox/ledger").json()
        return ledger

    def tasks_of(self, image: str) -> int:
        """Return the number of tasks that were made, and paid, for an image."""
        return self.tasks_of_each([image])[0]

    def tasks_of_each(self, images: Iterable[str]) -> list[int]:
        """Return the number of tasks of each image; submits refused with 429 made none."""
        lines = self.ledger()["images"]
        return [len(lines[image]["tasks"]) if image in lines else 0 for image in images]

    @staticmethod
    def wait_for(what: Callable[[], object]) -> None:
        """Wait until ``what`` returns something true."""
        end = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.02)


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
def pictures(image_host: ImageHost, request: pytest.FixtureRequest) -> list[str]:
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
