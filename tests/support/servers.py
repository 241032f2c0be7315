"""PostgreSQL, Redis and an S3 server for tests: real processes on free ports, in a folder of their own.

Each can be stopped and started again on the same port with the same data, by its process id.
"""

from __future__ import annotations

import base64
import hmac
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any, Protocol

import attrs
import httpx

SECONDS = 120
S3_PROCESS = Path(__file__).with_name("s3_process.py")
UNPRIVILEGED = ("postgres", "nobody")
"""Users to run PostgreSQL as where the tests run as root, which it refuses."""


class Server(Protocol):
    """A process that serves on a port of this machine.

    Attributes:
        reserved: Holds the port, also while the process is stopped.
    """

    reserved: socket.socket

    def command(self) -> list[str]:
        """Return its command line."""
        ...

    def answers(self) -> bool:
        """Return whether it takes requests."""
        ...


def reserved_port() -> socket.socket:
    """Return a socket with a port that the system gives to no other process.

    A socket that does not listen, with SO_REUSEADDR, lets a server bind its port all the same.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def port_of(reserved: socket.socket) -> int:
    """Return the port of a socket."""
    port: int = reserved.getsockname()[1]
    return port


def is_listening(port: int) -> bool:
    """Return whether a connection to a port of this machine can be made."""
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex(("127.0.0.1", port)) == 0


@attrs.define
class RunningServer:
    """A server's process, and how to stop and start it."""

    server: Server
    log: Path
    options: dict[str, Any] = attrs.field(factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.server.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C ends the tests, which then end the server
                **self.options,
            )
        deadline = time.monotonic() + SECONDS
        while not self.server.answers():
            assert self.process.poll() is None, f"it ended at once: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"it does not answer: {self.log.read_text()[-2000:]}"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the process and wait until it has ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(SECONDS)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and start it again, on the same port with the same data."""
        self.stop(number)
        self.start()


@contextmanager
def running(server: Server, log: Path, **options: Any) -> Iterator[RunningServer]:
    """Run a server; its process does not outlive the block."""
    running_server = RunningServer(server, log, options)
    try:
        running_server.start()
        yield running_server
    finally:
        try:
            running_server.stop()
        finally:
            running_server.stop(signal.SIGKILL)
            server.reserved.close()


@contextmanager
def own_folder(name: str, owner: int | None = None) -> Iterator[Path]:
    """Make a temporary folder that another user may own; pytest's belong to the user of the tests alone."""
    folder = Path(tempfile.mkdtemp(prefix=f"flux-async-{name}-"))
    try:
        if owner is not None:
            os.chown(folder, owner, -1)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- PostgreSQL -----------------------------------------------------------------------------------------


@attrs.define
class Postgres:
    """PostgreSQL's programs and one cluster of theirs; it survives SIGKILL, not the loss of power."""

    bin: Path
    folder: Path
    reserved: socket.socket = attrs.field(factory=reserved_port)
    options: dict[str, Any] = attrs.field(factory=dict)

    @property
    def port(self) -> int:
        """Its port."""
        return port_of(self.reserved)

    def dsn(self, database: str = "postgres") -> str:
        """Return the address of a database."""
        return f"postgresql://flux@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        """Make the cluster."""
        self.run("initdb", "-D", str(self.folder / "data"), "-U", "flux", "-A", "trust", "-E", "UTF8", "-N")

    def command(self) -> list[str]:
        """Return the command line of the server."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "fsync": "off"}
        settings["unix_socket_directories"] = str(self.folder)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.bin / "postgres"), "-D", str(self.folder / "data"), *options]

    def answers(self) -> bool:
        """Return whether it takes connections, and not only those to the port."""
        return self._call("pg_isready", "-q").returncode == 0

    def create(self, database: str) -> None:
        """Make a database."""
        self._call("createdb", database).check_returncode()

    def drop(self, database: str) -> None:
        """Delete a database, and end the connections to it."""
        self._call("dropdb", "--force", "--if-exists", database)

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs as the user of the server."""
        command = [str(self.bin / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self.options)

    def _call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "flux")
        command = [str(self.bin / program), *where, *arguments]
        return subprocess.run(command, check=False, capture_output=True)


def postgres_bin() -> Path | None:
    """Return the folder of PostgreSQL's programs: of the newest version of Debian's, or of the path."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = max(versions, key=lambda path: float(path.parts[-3]), default=None) or shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def running_postgres(programs: Path) -> Iterator[tuple[Postgres, RunningServer]]:
    """Run a new cluster; as root, by an unprivileged user."""
    options: dict[str, Any] = {}
    owner = None
    if os.geteuid() == 0:
        users = {user.pw_name: user for user in pwd.getpwall()}
        user = next(users[name] for name in UNPRIVILEGED if name in users)
        owner = user.pw_uid
        options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with own_folder("postgres", owner) as folder, tempfile.TemporaryDirectory() as logs:
        server = Postgres(programs, folder, options=options)
        server.initialise()
        with running(server, Path(logs) / "log", cwd=folder, **options) as process:
            yield server, process


# --- Redis ----------------------------------------------------------------------------------------------


@attrs.define
class Redis:
    """A Redis server without persistence."""

    folder: Path
    reserved: socket.socket = attrs.field(factory=reserved_port)

    @property
    def port(self) -> int:
        """Its port."""
        return port_of(self.reserved)

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        """Return its command line."""
        address = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder))
        return ["redis-server", *address, "--save", "", "--appendonly", "no"]

    def answers(self) -> bool:
        """Return whether it takes connections."""
        return is_listening(self.port)


# --- S3 -------------------------------------------------------------------------------------------------


@attrs.define
class S3:
    """An S3 server; what it holds outlives SIGTERM, not SIGKILL."""

    folder: Path
    reserved: socket.socket = attrs.field(factory=reserved_port)

    @property
    def port(self) -> int:
        """Its port."""
        return port_of(self.reserved)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Return its command line."""
        return [sys.executable, str(S3_PROCESS), str(self.port), str(self.folder)]

    def answers(self) -> bool:
        """Return whether it takes connections."""
        return is_listening(self.port)


@attrs.frozen
class Bucket:
    """A bucket of an S3 server, read without the client under test.

    Attributes:
        endpoint: Address of the server.
        name: Name of the bucket.
        stop: Stops the server; requests in progress are answered.
        start: Starts it again, with what it held.
    """

    endpoint: str
    name: str
    stop: Callable[[], None]
    start: Callable[[], None]
    access_key_id: str = "test-key"
    secret_access_key: str = "test-secret"

    @property
    def url(self) -> str:
        """Its address, as an option of a command."""
        return f"s3://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which programs find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "us-east-1",
        }

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of its objects, at most a thousand."""
        answer = self._get("", params={"list-type": "2", "prefix": prefix}).text
        return [part.partition("</Key>")[0] for part in answer.split("<Key>")[1:]]

    def unfinished(self, prefix: str = "") -> list[str]:
        """Return the names of the uploads in parts that were begun and not completed."""
        answer = self._get("", params={"uploads": "", "prefix": prefix}).text
        return [part.partition("</Key>")[0] for part in answer.split("<Key>")[1:]]

    def get(self, name: str) -> httpx.Response:
        """Return an object: its bytes are the content, its media type a header."""
        return self._get(name)

    def put(self, name: str, content: bytes, content_type: str = "image/png") -> None:
        """Store an object."""
        address = f"{self.endpoint}/{self.name}/{name}"
        headers = {"Content-Type": content_type}
        httpx.put(address, content=content, headers=headers, timeout=SECONDS).raise_for_status()

    def create(self) -> None:
        """Make the bucket."""
        httpx.put(f"{self.endpoint}/{self.name}", timeout=SECONDS).raise_for_status()

    def _get(self, name: str, params: dict[str, str] | None = None) -> httpx.Response:
        # The server checks that there is a signature, not which.
        headers = {"Authorization": f"AWS {self.access_key_id}:signature"}
        address = f"{self.endpoint}/{self.name}/{name}"
        return httpx.get(address, params=params or {}, headers=headers, timeout=SECONDS).raise_for_status()


# --- Azure ----------------------------------------------------------------------------------------------


@attrs.define
class Azurite:
    """Microsoft's emulator of Azure Blob Storage, a program of Node, with the account that it always has."""

    folder: Path
    program: str
    reserved: socket.socket = attrs.field(factory=reserved_port)
    account: str = "devstoreaccount1"
    key: str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    @property
    def port(self) -> int:
        """Its port."""
        return port_of(self.reserved)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which programs find it."""
        return {
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{self.port}/{self.account}",
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
        }

    def command(self) -> list[str]:
        """Return its command line."""
        address = ("--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self.folder))
        return [self.program, *address, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def answers(self) -> bool:
        """Return whether it takes connections."""
        return is_listening(self.port)

    def create(self, container: str) -> None:
        """Make a container; the request is signed as Azure's own clients sign theirs."""
        path = f"/{self.account}/{container}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        named = "".join(f"{name}:{value}\n" for name, value in headers.items())
        signed = "PUT" + "\n" * 12 + f"{named}/{self.account}{path}\nrestype:container"
        digest = hmac.digest(base64.b64decode(self.key), signed.encode(), "sha256")
        headers["Authorization"] = f"SharedKey {self.account}:{base64.b64encode(digest).decode()}"
        address = f"http://127.0.0.1:{self.port}{path}?restype=container"
        httpx.put(address, headers=headers, timeout=SECONDS).raise_for_status()
