"""Runs moto's S3 server; its objects outlive a restart, as those of a real store do.

Usage: ``python s3_process.py PORT FOLDER``. After SIGTERM the requests in progress are answered, and what the
buckets hold is written into FOLDER.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import S3Backend, s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

REGION = "us-east-1"


class QuietHandler(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, type: str, message: str, *arguments: object) -> None:  # noqa: A002 - werkzeug's name
        """Log nothing."""


def restore(backend: S3Backend, folder: Path) -> None:
    """Put back what an earlier process has written."""
    index = folder / "index.json"
    for bucket, objects in json.loads(index.read_text() if index.exists() else "{}").items():
        backend.create_bucket(bucket, REGION)
        for name, (file, metadata) in objects.items():
            backend.put_object(bucket, name, (folder / file).read_bytes()).set_metadata(metadata)


def keep(backend: S3Backend, folder: Path) -> None:
    """Write the objects of all buckets, and their metadata."""
    index: dict[str, dict[str, tuple[str, dict[str, str]]]] = {}
    for bucket in backend.buckets.values():
        objects = index[bucket.name] = {}
        for name, stored in bucket.keys.items():
            file = f"{len(index)}-{len(objects)}"
            (folder / file).write_bytes(stored.value)
            objects[name] = (file, dict(stored.metadata))
    (folder / "index.json").write_text(json.dumps(index))


def main(port: int, folder: Path) -> None:
    """Serve until SIGTERM."""
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    restore(backend, folder)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=QuietHandler)
    server.daemon_threads = False  # so that `server_close` waits for the requests in progress

    def stop(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    keep(backend, folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
