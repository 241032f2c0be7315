"""Serves the sandbox over a socket, and its command line: ``python -m flux_async.sandbox``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, Literal

import anyio

from flux_async.sandbox.faults import list_of_faults, read_script
from flux_async.sandbox.settings import DEFAULT_HOST, DEFAULT_PORT, OPTIONS, SandboxError, SandboxSettings

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

MAX_PORT: Final = 65_535
BACKLOG: Final = 2048

USAGE_ERROR: Final = 2
SAMPLE: Final = "summer-sale"  # needs no photograph

_POLL_S: Final = 0.002  # seconds
_CHUNK: Final = 65_536

_SERVING: Final = ("starlette", "uvicorn", "python_multipart")
_IMAGES: Final = ("numpy", "cv2", "PIL", "rapidocr", "onnxruntime")


def serve(
    settings: SandboxSettings | None = None,
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    ledger: bool = False,
) -> None:
    """Serve the sandbox until SIGINT or SIGTERM.

    When it is ready it prints its address to stdout, and that of a sample image if it makes images.

    Args:
        settings: Its options; left out, the defaults.
        host: The address to listen on.
        port: The port; 0 picks a free one.
        ledger: Whether to print a summary of the ledger to stderr at the end.

    Raises:
        SandboxError: The port is taken, the address cannot be used, or the extra is not installed.
    """
    settings = settings or SandboxSettings()
    _require(_SERVING + (_IMAGES if settings.images == "real" else ()))
    from flux_async.sandbox.app import create_app, handlers_of  # noqa: PLC0415 - needs the extra
    from flux_async.sandbox.ledger import ledger_table  # noqa: PLC0415 - needs the extra

    app = create_app(settings)
    with _listen(host, port) as listener:
        config = _config(app, lifespan="on")
        address = settings.public_url or _address(host, listener)
        sample = f"{address}/samples/{SAMPLE}.png" if settings.images == "real" else None
        _quiet_server(config, address, sample).run([listener])
    if ledger:
        print(ledger_table(handlers_of(app).account.ledger), end="", file=sys.stderr)  # noqa: T201 - asked for


def _config(app: ASGIApp, *, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    import uvicorn  # noqa: PLC0415 - needs the extra

    from flux_async.sandbox.abortable_http import AbortableProtocol  # noqa: PLC0415 - needs the extra

    return uvicorn.Config(
        app,
        http=AbortableProtocol,
        access_log=False,
        log_config=None,
        lifespan=lifespan,
        timeout_graceful_shutdown=1,
        server_header=False,
    )


@asynccontextmanager
async def listening(app: ASGIApp, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> AsyncIterator[str]:
    """Serve an application, whose lifespan runs already, in this event loop; yield its address.

    Raises:
        SandboxError: The port is taken, the address cannot be used, or the extra is not installed.
    """
    _require(_SERVING)
    with _listen(host, port) as listener:
        listener.setblocking(False)  # noqa: FBT003 - the socket's own name for it
        server = _guest_server(_config(app, lifespan="off"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await anyio.sleep(_POLL_S)
            try:
                yield _address(host, listener)
            finally:
                server.should_exit = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 after a signal, 2 if the sandbox could not start."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="sandbox: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        run(parser("python -m flux_async.sandbox").parse_args(arguments))
    except (SandboxError, ValueError) as error:
        print(f"sandbox: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return USAGE_ERROR
    return 0


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of `OPTIONS`; its result has the options that were given and no others."""
    made = argparse.ArgumentParser(
        prog=program,
        description="Serve the vendor's API on this machine, without a charge.",
        allow_abbrev=False,
    )
    for option in OPTIONS:
        text = f"{option.help} (default: {option.default})".replace("%", "%%")
        made.add_argument(
            option.flag, dest=option.name, default=argparse.SUPPRESS, help=text, **option.parsing
        )
    return made


def run(options: argparse.Namespace) -> None:
    """Serve with the given options, until SIGINT or SIGTERM.

    Raises:
        SandboxError: The sandbox cannot start.
        ValueError: A value is out of range, or a fault is unknown.
    """
    given = vars(options)
    if given.pop("list_faults", False):
        try:
            print(list_of_faults(), end="", flush=True)  # noqa: T201 - this is a command
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SandboxError(f"Standard output cannot be written: {error.strerror}.") from None
        return
    ends_with_input = given.pop("until_eof", False)
    serving = {name: given.pop(name) for name in ("host", "port", "ledger") if name in given}
    given.setdefault("webhook_key", os.environ.get("KIE_WEBHOOK_KEY") or None)
    if "script" in given:
        given["script"] = read_script(given["script"])
    settings = SandboxSettings(**given)
    if ends_with_input:
        _end_with_input()
    serve(settings, **serving)


def _print_address(text: str) -> None:
    """Print one line; where stdout cannot be written, log it, and serve nevertheless."""
    try:
        print(text, flush=True)  # noqa: T201 - this is a command
    except OSError as error:
        logging.getLogger(__name__).warning("%s; standard output cannot be written: %s", text, error.strerror)


def _end_with_input() -> None:
    if sys.stdin is None:
        raise SandboxError("--until-eof needs a standard input, and there is none.")
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process with SIGTERM when the other end of file ``parent`` is closed.

    It is read by descriptor: Python aborts at exit if a thread holds the lock of a file object.
    """
    with contextlib.suppress(OSError):  # a closed terminal
        while os.read(parent, _CHUNK):
            pass
    signal.raise_signal(signal.SIGTERM)


def _require(modules: Sequence[str]) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SandboxError(
            f"{', '.join(missing)} not installed: run  pip install 'flux-async[sandbox]'  "
            "(in a checkout: '.[sandbox]')"
        )


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= MAX_PORT:  # the resolver would use it modulo 65,536
        raise SandboxError(f"cannot listen on {host} port {port}: a port is a number from 0 to {MAX_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SandboxError(f"cannot listen on {host} port {port}: {error}") from error
    try:
        if sys.platform != "win32":  # where two servers could share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SandboxError(
                f"port {port} is in use: choose another with --port, or 0 for a free one"
            ) from error
        raise SandboxError(f"cannot listen on {host} port {port}: {error}") from error
    return listener


def _address(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _guest_server(config: uvicorn.Config) -> uvicorn.Server:
    import uvicorn  # noqa: PLC0415 - needs the extra

    class GuestServer(uvicorn.Server):
        """Installs no signal handlers."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return GuestServer(config)


def _quiet_server(config: uvicorn.Config, address: str, sample: str | None) -> uvicorn.Server:
    import uvicorn  # noqa: PLC0415 - needs the extra

    class QuietServer(uvicorn.Server):
        """Prints its address when it is ready, and returns after a signal instead of raising it again."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _print_address(f"sandbox ready at {address}")
                if sample is not None:
                    _print_address(f"a sample image: {sample}")

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(_signal: int, _frame: FrameType | None) -> None:
                self.force_exit = self.should_exit
                self.should_exit = True

            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return QuietServer(config)
