"""``results.jsonl``: one JSON object per image, the memory of a folder between two runs.

A line is appended when a task has been submitted (``pending``, with its task id) and when an image is
settled; of several lines with one key the last counts. At the end of a run the file is rewritten whole, one
line per image, in the order of the input; images of earlier runs that were not asked for this time follow.
"""

from __future__ import annotations

import enum
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import attrs
from attrs.validators import and_, ge, instance_of, optional

from flux_async import ApiError, Charge, ConfigurationError, FluxError, TaskFailed

FILE_NAME = "results.jsonl"
FIELDS = (
    "image",
    "key",
    "status",
    "task_id",
    "result_url",
    "file",
    "charge",
    "error",
    "attempts",
    "submitted_at",
    "finished_at",
)

_text = instance_of(str)
_text_or_none = optional(instance_of(str))


class Status(enum.StrEnum):
    """How an image stands."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    PENDING = "pending"


class ResultsError(FluxError):
    """The results cannot be written."""

    default_advice = "Check free space and permissions, then run the same command again."


@attrs.frozen(kw_only=True)
class ErrorNote:
    """An error as data: the name of its class, the vendor's code where there is one, its words."""

    type: str = attrs.field(validator=_text)
    code: int | None = attrs.field(default=None, validator=optional(instance_of(int)))
    message: str = attrs.field(validator=_text)

    @classmethod
    def of(cls, error: FluxError) -> Self:
        """Note down ``error``."""
        code = error.code if isinstance(error, ApiError) else None
        if isinstance(error, TaskFailed) and error.record is not None:
            code = error.record.error_code
        return cls(type=type(error).__name__, code=code, message=str(error))


def _note(value: ErrorNote | dict[str, Any] | None) -> ErrorNote | None:
    return ErrorNote(**value) if isinstance(value, dict) else value


@attrs.frozen(kw_only=True)
class ResultRow:
    """One line.

    Attributes:
        image: The address as given.
        key: Names image and options together.
        status: How it stands.
        task_id: The vendor's task, where there is one.
        result_url: Where the vendor keeps the result, for 14 days.
        file: The picture, relative to the folder, with forward slashes.
        charge: Whether it was paid for.
        error: Why there is no picture.
        attempts: Submits made.
        submitted_at: When the task was accepted, UTC.
        finished_at: When the image was settled, UTC.
    """

    image: str = attrs.field(validator=_text)
    key: str = attrs.field(validator=_text)
    status: Status = attrs.field(default=Status.PENDING, converter=Status)
    task_id: str | None = attrs.field(default=None, validator=_text_or_none)
    result_url: str | None = attrs.field(default=None, validator=_text_or_none)
    file: str | None = attrs.field(default=None, validator=_text_or_none)
    charge: Charge = attrs.field(default=Charge.NO, converter=Charge)
    error: ErrorNote | None = attrs.field(
        default=None, converter=_note, validator=optional(instance_of(ErrorNote))
    )
    attempts: int = attrs.field(default=0, validator=and_(instance_of(int), ge(0)))
    submitted_at: str | None = attrs.field(default=None, validator=_text_or_none)
    finished_at: str | None = attrs.field(default=None, validator=_text_or_none)

    def __attrs_post_init__(self) -> None:
        if self.status is Status.SUCCEEDED and not (self.task_id and self.result_url):
            raise ValueError("a row that succeeded names its task and its result")
        if self.status in {Status.FAILED, Status.IN_DOUBT} and self.error is None:
            raise ValueError(f"a row that is {self.status} says why")

    def as_json(self) -> str:
        """Return the line, without its end."""
        return json.dumps(attrs.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read one line.

        Raises:
            ValueError: It is no such line.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict) or set(fields) != set(FIELDS):
            raise ValueError("it does not have exactly the keys of a result")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(str(error.args[0])) from error


@attrs.define
class ResultBook:
    """The results of one folder; ``rows`` holds the latest row of every key."""

    folder: Path
    rows: dict[str, ResultRow] = attrs.field(factory=dict)
    _line_open: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read what is there; make the folder if it is not.

        Raises:
            ConfigurationError: The file is damaged, or the folder cannot be used. Nothing was changed.
        """
        book = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            book._read(book.path.read_bytes() if book.path.exists() else b"")
        except OSError as error:
            raise ConfigurationError(
                f"{folder} cannot be used: {error.strerror or error}.",
                advice="Choose another folder with -o.",
            ) from None
        if not os.access(folder, os.W_OK):
            raise ConfigurationError(
                f"{folder} is not writable.", advice="Choose another folder with -o; nothing was sent."
            )
        return book

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE_NAME

    def append(self, row: ResultRow) -> None:
        """Remember ``row`` and write its line.

        Raises:
            ResultsError: The disk refused it.
        """
        self.rows[row.key] = row
        try:
            with self.path.open("ab") as file:
                file.write(b"\n" * self._line_open + _encode(row))
        except OSError as error:
            raise self._unwritable(error) from None
        self._line_open = False

    def rewrite(self, first: Iterable[str]) -> None:
        """Write one line per image: the keys ``first`` in their order, then all others; all of it or nothing.

        Raises:
            ResultsError: The disk refused it; the old file is as it was.
        """
        order = dict.fromkeys(first) | dict.fromkeys(self.rows)
        part = self.path.with_name(f".{FILE_NAME}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                file.writelines(_encode(self.rows[key]) for key in order)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            part.unlink(missing_ok=True)

    def _read(self, content: bytes) -> None:
        self._line_open = bool(content) and not content.endswith(b"\n")
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                row = ResultRow.from_json(line.decode())
            except ValueError as error:
                raise ConfigurationError(
                    f"{self.path} line {number} cannot be read: {error}.",
                    advice="It says what was paid, so it was left as it is and nothing was sent: repair or "
                    "remove that line, or choose another folder with -o.",
                ) from None
            self.rows[row.key] = row

    def _unwritable(self, error: OSError) -> ResultsError:
        return ResultsError(f"{self.path} cannot be written: {error.strerror or error}.")


def _encode(row: ResultRow) -> bytes:
    # A lone surrogate, from an argument that was no Unicode, becomes \udcXX: in JSON that is its escape.
    return row.as_json().encode("utf-8", "backslashreplace") + b"\n"
