"""Object stores (S3, Google Cloud Storage, Azure): results are saved in them, and inputs read from them.

The extra ``storage``. Credentials come from the environment, in the variables of the providers themselves.

Rules:

1. An object appears under its name only whole: one PUT, or for a large image a multipart upload, which the
   store shows once it is complete.
2. The synchronous functions of obstore are called in worker threads. Its coroutines finish in threads of its
   own; one that finishes while the interpreter ends aborts the process (pyo3-async-runtimes, issue 40).
3. A failure that may pass is a retryable :class:`DownloadError`: the result stays paid, and is saved later.
   One that would come again for every image, such as a missing bucket, stops the run.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from flux_async.errors import (
    Charge,
    ConfigurationError,
    ConnectionLost,
    DownloadError,
    FluxError,
    FolderNotWritable,
    InvalidInput,
    MissingExtra,
    Scope,
    shown,
)
from flux_async.files.image_check import check_size
from flux_async.files.image_writer import ImageStream
from flux_async.files.sink import FolderSink, Sink
from flux_async.images import without_query
from flux_async.models import Job

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

SCHEMES = frozenset({"s3", "gs", "az", "memory"})
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
_ONE_PUT = 8 * 1024 * 1024
"""Bytes up to which an image is one request; a larger one is sent in parts, as it is read."""
_PART = 8 * 1024 * 1024
_PARTS_AT_ONCE = 2
_THREADS = 8
_REQUEST_S = 60
_BRIEF: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
"""For writing: a run has its own patience with results that cannot be saved."""
_PATIENT: RetryConfig = {"max_retries": 30, "retry_timeout": timedelta(seconds=120)}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_LONGEST_REASON = 200
_CHECK_NAME = ".flux-async-check"
_METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal")
"""Where credentials are looked for on a machine of the provider, if the environment has none."""
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_LOST_UPLOAD = "NoSuchUpload"
"""The parts of an upload are gone, as a rule of the bucket or a restart has deleted them."""
_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

_threads: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("object store threads")


def sink_for(destination: str | os.PathLike[str]) -> Sink:
    """Return the sink of a destination: a folder, ``file://``, or an address in an object store.

    Args:
        destination: The path of a folder, ``file:///path``, ``s3://bucket/prefix``, ``gs://bucket/prefix``,
            ``az://container/prefix``, or ``memory://`` for tests.

    Raises:
        InvalidInput: It is none of these.
        MissingExtra: The extra ``storage`` is not installed.
        ConfigurationError: The environment lacks a setting of the store.
    """
    text = os.fspath(destination)
    if "://" not in text:
        return FolderSink(Path(text))
    if text.startswith("file://"):
        return FolderSink(folder_of(text))
    return ObjectStoreSink(text.rstrip("/") if not text.endswith("://") else text)


def folder_of(url: str) -> Path:
    """Return the folder of a ``file://`` address.

    Raises:
        InvalidInput: It names a host, or no path.
    """
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise InvalidInput(f"{shown(url)} is not the address of a folder.", advice="Write file:///path.")
    return Path(unquote(parts.path))


@attrs.frozen
class ObjectStoreSink:
    """Saves images in an object store; the reference is the address of the object.

    Attributes:
        url: The address that names of images are appended to, without a slash at its end.
        store: The store, of obstore.

    Raises:
        InvalidInput: It is no address of an object store.
        MissingExtra: The extra ``storage`` is not installed.
        ConfigurationError: The environment lacks a setting of the store.
    """

    url: str
    store: Any = attrs.field(init=False, repr=False, eq=False)
    _prefix: str = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        scheme, bucket, prefix = _split(self.url)
        object.__setattr__(self, "store", _open(scheme, bucket, retries=_BRIEF))
        object.__setattr__(self, "_prefix", prefix.rstrip("/") + "/" if prefix else "")

    async def save(self, job: Job, stream: ImageStream) -> str:  # noqa: ARG002 - the protocol's
        """Put the image under its name; an object that is there is replaced."""
        kind = MEDIA_TYPES.get(PurePosixPath(stream.name).suffix, "application/octet-stream")
        with tempfile.SpooledTemporaryFile(max_size=_ONE_PUT) as content:
            async for chunk in stream:
                await anyio.to_thread.run_sync(content.write, chunk)
            content.seek(0)
            await self._put(stream.name, cast("IO[bytes]", content), stream.size, kind)
        return self.url + ("" if self.url.endswith("://") else "/") + stream.name

    async def put(self, name: str, content: bytes, kind: str) -> str:
        """Put bytes under a name, unless an object of that name is there; return its address.

        Raises:
            FolderNotWritable: The store takes none.
            DownloadError: It is away.
        """
        with contextlib.suppress(Exception):  # whatever is wrong, put finds it as well
            await _in_thread(partial(self.store.head, self._prefix + name))
            return f"{self.url}/{name}"
        await self._put(name, io.BytesIO(content), len(content), kind)
        return f"{self.url}/{name}"

    async def check(self) -> None:
        """Write and delete an empty object: a destination that cannot be written is found before a submit.

        Raises:
            ConfigurationError: It cannot be written; nothing was sent to the vendor.
        """
        try:
            await self._put(_CHECK_NAME, io.BytesIO(), 0, "text/plain")
        except DownloadError as error:
            advice = f"{_advice(self.url)} Nothing was sent."
            raise ConfigurationError(error.message, advice=advice) from None
        with contextlib.suppress(Exception):  # who may write may not always delete
            await _in_thread(partial(self.store.delete, self._prefix + _CHECK_NAME))

    async def _put(self, name: str, content: IO[bytes], size: int, kind: str) -> None:
        put = partial(
            self.store.put,
            self._prefix + name,
            content,
            attributes={"Content-Type": kind},
            use_multipart=size > _ONE_PUT,
            chunk_size=_PART,
            max_concurrency=_PARTS_AT_ONCE,
        )
        try:
            await _in_thread(put)
        except Exception as error:
            if not _is_of_the_store(error):
                raise
            if (why := _lasting(error)) is not None:
                words = f"{self.url} cannot be written: {why}."
                raise FolderNotWritable(words, advice=_advice(self.url)) from None
            raise DownloadError(f"{self.url} could not be written: {_reason(error)}.") from None


async def read_object(url: str, max_bytes: int) -> BinaryIO:
    """Return an object as an open temporary file; a store that is away is tried again for two minutes.

    Raises:
        InvalidInput: It does not exist, may not be read, or is larger than ``max_bytes``.
        MissingExtra: The extra ``storage`` is not installed.
        ConnectionLost: The store could not be reached; every other object is there, too.
    """
    scheme, bucket, key = _split(url)
    try:
        return await _in_thread(partial(_copy, scheme, bucket, key, max_bytes))
    except FluxError:
        raise
    except FileNotFoundError:
        raise InvalidInput(f"{shown(url)} does not exist.", advice="Nothing was sent.") from None
    except Exception as error:
        if not _is_of_the_store(error):
            raise
        if (why := _lasting(error)) is not None:
            raise InvalidInput(f"{shown(url)} cannot be read: {why}.", advice=_advice(url)) from None
        raise ConnectionLost(
            f"{shown(url)} could not be read: {_reason(error)}.",
            charge=Charge.NO,
            scope=Scope.STOP,
            advice=f"{_advice(url)} Nothing was charged for it.",
        ) from None


def _copy(scheme: str, bucket: str, key: str, max_bytes: int) -> BinaryIO:
    found = _open(scheme, bucket, retries=_PATIENT).get(key)
    check_size(found.meta["size"], key, max_bytes)
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - its Content closes it
    for chunk in found.stream():
        copy.write(chunk)
    copy.seek(0)
    return copy


# --- the store ------------------------------------------------------------------------------------------


def _split(url: str) -> tuple[str, str, str]:
    """Return scheme, bucket and key of an address; keys are not percent-encoded."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in SCHEMES or not (bucket or scheme == "memory") or set("?#") & set(url) or "//" in key:
        raise InvalidInput(
            f"{shown(without_query(url))} is not the address of an object store.",
            advice="Write s3://bucket/prefix, gs://bucket/prefix or az://container/prefix. Nothing was sent.",
        )
    return scheme, bucket, key


def _open(scheme: str, bucket: str, *, retries: RetryConfig) -> ObjectStore:
    """Return a store with the settings of the environment."""
    try:
        from obstore.store import MemoryStore, from_url  # noqa: PLC0415 - needs an extra
    except ImportError as missing:
        raise MissingExtra.for_extra(f"{scheme}://", "storage") from missing
    if scheme == "memory":
        return MemoryStore()
    client: ClientConfig = {"timeout": timedelta(seconds=_REQUEST_S)}
    if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS[scheme]):
        client["allow_http"] = True  # the user's own word: it is in the address
    try:
        return from_url(f"{scheme}://{bucket}", client_options=client, retry_config=retries)
    except Exception as error:
        if not _is_of_the_store(error):
            raise
        raise ConfigurationError(
            f"{scheme}://{bucket} cannot be opened: {_reason(error)}.", advice=_advice(f"{scheme}://")
        ) from None


async def _in_thread(work: Callable[[], T]) -> T:
    """Do work in a thread, few at a time: those of the process are left to its disks.

    A caller that is cancelled does not wait for it: it ends within its own timeouts.
    """
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _threads.set(limiter)
    async with limiter:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


# --- errors ---------------------------------------------------------------------------------------------


def _is_of_the_store(error: Exception) -> bool:
    from obstore.exceptions import BaseError  # noqa: PLC0415 - needs an extra

    return isinstance(error, BaseError | OSError)


def _lasting(error: Exception) -> str | None:
    """Return why a request would fail again, or None if a later one may succeed."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError  # noqa: PLC0415 - as above

    found = _CODE.search(str(error))
    code = found[1] if found else ""
    if isinstance(error, FileNotFoundError):
        return None if code == _LOST_UPLOAD else "there is no such bucket"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "access was refused" + (f" ({code})" if code else "")
    if any(host in str(error) for host in _METADATA_SERVICES):
        return "the environment has no credentials"
    return None


def _reason(error: Exception) -> str:
    """Return the reason of an error, in one line and without the address of the request.

    ``Generic S3 error: Error performing PUT http://… in 2ms - HTTP error: error sending request`` gives
    ``HTTP error: error sending request``.
    """
    first = str(error).partition("\n")[0].partition(": <?xml")[0]
    reason = first.rpartition(" - ")[2] if " - " in first else first.partition(": ")[2]
    return type(error).__name__ if not reason or "://" in reason else reason.strip(" .")[:_LONGEST_REASON]


def _advice(url: str) -> str:
    variables = _ENVIRONMENT.get(url.partition("://")[0])
    return "Check the address" + (f", and in the environment {variables}." if variables else ".")
