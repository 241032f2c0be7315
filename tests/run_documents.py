"""Run the code blocks of README and docs against a sandbox: what is written there works.

Blocks marked ``python`` and ``sh`` are run, each by itself, in an empty directory, with the sandbox as the
API. ``http://127.0.0.1:8787`` stands for that sandbox, ``https://example.com/`` for a server that has an
image with text under every name. A comment on the line above a block changes that::

    <!-- not run: why -->
    <!-- exits with 3 -->
    <!-- a test -->      run by pytest

Usage: ``python tests/run_documents.py [FILE...]``; exits 1 where a block did not do as said.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGE_HOST = "https://example.com"
SANDBOX = "http://127.0.0.1:8787"
LONGEST_S = 60

BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n+)?```(?P<language>python|sh)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
EXITS = re.compile(r"exits with (\d+)")
# Blocks may await at their top level, as in the asyncio REPL.
RUN_PYTHON = """
import ast, asyncio, inspect, sys
source = sys.stdin.read()
code = compile(source, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
names = {"__name__": "__main__"}
waiting = eval(code, names)
if inspect.iscoroutine(waiting):
    asyncio.run(waiting)
"""


class Block(NamedTuple):
    """One fenced piece of code."""

    place: str
    language: str
    code: str
    note: str

    @property
    def is_run(self) -> bool:
        """Whether it is run at all."""
        return not self.note.startswith("not run")

    @property
    def is_test(self) -> bool:
        """Whether pytest runs it."""
        return self.note == "a test"

    @property
    def exit_code(self) -> int:
        """The exit code it has to end with."""
        found = EXITS.search(self.note)
        return int(found[1]) if found else 0


def blocks_of(document: Path) -> Iterator[Block]:
    """Yield the blocks of one document in their order."""
    text = document.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code"))
        name = document.resolve().relative_to(ROOT) if document.resolve().is_relative_to(ROOT) else document
        yield Block(f"{name}:{line}", found["language"], found["code"], found["note"] or "")


@contextmanager
def sandbox() -> Iterator[str]:
    """Run the sandbox in a child process; yield its address."""
    command = [sys.executable, "-m", "flux_async.sandbox", "--port", "0", "--speed", "20", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            ready = child.stdout.readline() if child.stdout else ""
            found = re.search(r"http://\S+", ready)
            if found is None:
                raise SystemExit(f"the sandbox did not start: {ready!r}")
            yield found[0]
        finally:
            child.terminate()


@contextmanager
def serve_images() -> Iterator[str]:
    """Serve an image with text under every name that ends in .jpg; yield the address."""
    image = draw()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.endswith(".jpg") and "missing" not in self.path
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "image/jpeg")
            self.end_headers()
            self.wfile.write(image if found else b"")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def draw() -> bytes:
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - only what is run needs it

    image = Image.new("RGB", (640, 360), (240, 225, 200))
    ImageDraw.Draw(image).text((90, 140), "AUTUMN MARKET", (40, 40, 60), ImageFont.load_default(56))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def run(block: Block, folder: str, api: str, images: str) -> str | None:
    """Run one block; return what was wrong, or None."""
    bash = ["bash", "-euo", "pipefail"]
    command = [sys.executable, "-c", RUN_PYTHON] if block.language == "python" else bash
    if block.is_test:
        (Path(folder) / "test_block.py").write_text(block.code, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "test_block.py"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"KIE_API_KEY": "test", "KIE_BASE_URL": api, "PATH": path}
    code = block.code.replace(IMAGE_HOST, images).replace(SANDBOX, api)
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with child:
        try:
            output, _ = child.communicate(code, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return f"took longer than {LONGEST_S} s"
    wrong = f"exit code {child.returncode}, not {block.exit_code}\n{output}"
    return None if child.returncode == block.exit_code else wrong


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run every block of the documents; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("documents", nargs="*", type=Path, default=DOCUMENTS)
    blocks = [block for document in parser.parse_args().documents for block in blocks_of(document)]
    failed = 0
    with sandbox() as api, serve_images() as images:
        for block in blocks:
            if not block.is_run:
                say(f"{block.place}: {block.note}")
                continue
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                wrong = run(block, folder, api, images)
            failed += wrong is not None
            say(f"{block.place}: {wrong or 'as written'} ({time.perf_counter() - began:.1f} s)")
    say(f"{len(blocks)} blocks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
