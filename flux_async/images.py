"""An image to work on: an http(s) address that the vendor can fetch, an object of a store, or a file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

import attrs

from flux_async.errors import InvalidInput, shown

_VISIBLE_ASCII = re.compile(r"[!-~]+")
_MAX_URL_LENGTH = 16_384  # as long a line as any common server takes
_PLAIN_URL = re.compile(r"https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[!-~]*)?")
_OBJECT = re.compile(r"(?:s3|gs|az)://[^/?#]+/[^?#]*[^/?#]")
_OBJECT_SCHEMES = ("s3://", "gs://", "az://")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REFERENCE = "sha256:"


def without_query(url: str) -> str:
    """Return an address for logs, without its query, which may be a signature, and without a password.

    ``https://user:pw@host/a.jpg?sig=1#x`` becomes ``https://host/a.jpg``. A file path stays as it is.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def check_http_url(url: object, name: str = "image") -> str:
    """Return ``url`` if it is an absolute http(s) address, else raise :class:`InvalidInput`.

    Reachability is not checked: the vendor fetches the image later, and a failure is in the task's record.
    """
    if not isinstance(url, str):
        raise InvalidInput(f"{name} must be an http(s) URL as a string, not {shown(url)}.")
    if url[:5].lower() == "data:":
        raise InvalidInput(
            f"{name} is a data: URI, which the API does not take.",
            advice="Put the image where the vendor can fetch it and give its http(s) URL.",
        )
    if len(url) > _MAX_URL_LENGTH:
        raise InvalidInput(f"{name} {shown(url)} is longer than {_MAX_URL_LENGTH:,} characters.")
    if _PLAIN_URL.fullmatch(url):
        return url  # as nearly all are
    if not _VISIBLE_ASCII.fullmatch(url) and (not url.isprintable() or any(c.isspace() for c in url)):
        raise InvalidInput(
            f"{name} {shown(url)} holds white space or control characters.", advice="Percent-encode them."
        )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as bad:
        raise InvalidInput(f"{name} {shown(url)} is not a URL: {bad}.") from None
    if parts.scheme.lower() not in {"http", "https"} or not parts.hostname:
        raise InvalidInput(
            f"{name} {shown(url)} is not an http(s) URL.",
            advice="Give an address that starts with http:// or https:// and that the vendor can reach.",
        )
    return url


def is_object(image: object) -> bool:
    """Return whether an image is named by its address in an object store: ``s3://``, ``gs://``, ``az://``.

    The vendor cannot fetch such an address: the object is downloaded here and uploaded before the submit.
    """
    return isinstance(image, str) and image.startswith(_OBJECT_SCHEMES)


def _check_object(url: str, name: str) -> None:
    if not _OBJECT.fullmatch(url) or not url.isprintable():
        raise InvalidInput(
            f"{name} {shown(url)} is not the address of an object.",
            advice="Write s3://bucket/key, gs://bucket/key or az://container/key; ? and # cannot be in it.",
        )


def _digest(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InvalidInput(f"{attribute.name} must be 64 hex digits, not {shown(value)}.")


def _as_path(value: object) -> str:
    try:
        path = os.fsdecode(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput(f"path must be the path of a file, not {shown(value)}.") from None
    if not path or "\0" in path:
        raise InvalidInput(f"{shown(path)} is no path of a file.")
    return path


@attrs.frozen(kw_only=True)
class LocalImage:
    """An image on this machine, to be uploaded right before the request about it is submitted.

    Jobs about the same content are the same job, whatever the name of the file.

    Attributes:
        path: The file as given, or None if only its content is known.
        folder: Folder that a relative path starts from; left empty, the working directory.
        sha256: Digest of the content, 64 hex digits, or None before it has been read.

    Raises:
        InvalidInput: Neither path nor digest, or an invalid one.
    """

    path: str | None = attrs.field(default=None, converter=attrs.converters.optional(_as_path))
    folder: str = ""
    sha256: str | None = attrs.field(default=None, validator=attrs.validators.optional(_digest))

    def __attrs_post_init__(self) -> None:
        if self.path is None and self.sha256 is None:
            raise InvalidInput("A LocalImage needs the path of a file.")

    def __str__(self) -> str:
        return self.path if self.path is not None else self.reference

    @property
    def location(self) -> Path | None:
        """Path of the file, or None if only its content is known."""
        return None if self.path is None else Path(self.folder, self.path)

    @property
    def reference(self) -> str:
        """The name of its content in keys and journals: ``sha256:`` and 64 hex digits.

        Raises:
            InvalidInput: The file has not been read yet.
        """
        if self.sha256 is None:
            raise InvalidInput(
                f"{shown(self.path)} has not been read yet, so a job about it has no key.",
                advice="Give run_batch the request itself, or give the Job a key of its own.",
            )
        return _REFERENCE + self.sha256

    @classmethod
    def of_reference(cls, text: str) -> Self | None:
        """Return the image that ``text`` names by its content, or None if it names none."""
        kind, digest = text[: len(_REFERENCE)], text[len(_REFERENCE) :]
        return cls(sha256=digest) if kind == _REFERENCE and _SHA256.fullmatch(digest) else None


InputImage: TypeAlias = str | os.PathLike[str] | LocalImage
"""An image to work on: an http(s) URL, the address of an object (``s3://…``), or a file of this machine."""


def must_be_uploaded(image: object) -> bool:
    """Return whether an image is uploaded before the submit, because the vendor cannot fetch it."""
    return isinstance(image, LocalImage) or is_object(image)


def as_image(value: InputImage) -> str | LocalImage:
    """Return the image of a path, or an address without its fragment; an attrs converter."""
    if isinstance(value, os.PathLike):
        return LocalImage(path=value)
    # A fragment never reaches a server: addresses that differ in one are the same image.
    if isinstance(value, str) and "#" in value and not is_object(value):
        return value.partition("#")[0]
    return value


def check_image(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Raise :class:`InvalidInput` for what is no image; an attrs validator."""
    if isinstance(value, LocalImage):
        return
    if isinstance(value, str) and is_object(value):
        _check_object(value, attribute.name)
        return
    if isinstance(value, str) and "://" not in value and value[:5].lower() != "data:":
        raise InvalidInput(
            f"{attribute.name} {shown(value)} is not an http(s) URL.",
            advice="Give an address that starts with http:// or https://, or {file}.",
        )
    check_http_url(value, attribute.name)
