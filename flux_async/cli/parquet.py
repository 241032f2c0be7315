"""Parquet files: lists are read from them, and results written to one; needs the extra `parquet`.

Files are read in batches of rows, and only the columns with a meaning, so that memory is bounded however long
a list is.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import click

from flux_async import MissingExtra
from flux_async.batch.columns import OPTIONS, image_columns, normal
from flux_async.cli.input_rows import InputRow, ListOptions
from flux_async.cli.list_files import Note
from flux_async.cli.list_formats import fields_of, row_of_value
from flux_async.cli.results import ResultFile, ResultRow, ResultsError
from flux_async.cli.terminal import printable

PARQUET = (".parquet", ".pq")
_BATCH = 2_000
_BUFFER = 1 << 20
_SHOWN_COLUMNS = 30


def load_pyarrow() -> Any:
    """Return the module ``pyarrow.parquet``.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415 - needs an extra
    except ImportError as missing:
        raise MissingExtra.for_extra("Parquet", "parquet") from missing
    return pq


def parquet_files_in(folder: str) -> list[str]:
    """Return the Parquet files of a folder and those below it, in order of name; hidden ones are left out.

    Raises:
        click.UsageError: There are none.
    """
    found = []
    for path in sorted(Path(folder).rglob("*")):
        inner = path.relative_to(folder)
        if path.suffix.lower() in PARQUET and not any(part[0] in "._" for part in inner.parts):
            found.append(os.path.join(folder, inner))  # noqa: PTH118 - as typed
    if not found:
        words = f"{printable(folder)} holds no Parquet file. A folder of images is given without --from."
        raise click.UsageError(f"{words} Nothing was sent.")
    return found


def parquet_rows(name: str, options: ListOptions, note: Note) -> Iterator[InputRow]:
    """Yield the rows of a Parquet file; the line of one is its number.

    Raises:
        click.UsageError: It cannot be read, or no column holds images.
        MissingExtra: pyarrow is not installed.
    """
    pq = load_pyarrow()
    try:
        # A row group may be as large as the file: it is read through a buffer, not as a whole.
        with pq.ParquetFile(name, pre_buffer=False, buffer_size=_BUFFER) as file:
            columns = _columns(name, file.schema_arrow.names, options, note)
            number = 0
            for batch in file.iter_batches(_BATCH, columns=columns, use_threads=False):
                names = batch.schema.names
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    pairs = list(zip(names, values, strict=True))
                    yield row_of_value(name, number, fields_of(pairs), options)
    except (OSError, ValueError) as error:  # those of pyarrow are among them
        words = f"{printable(name)} cannot be read as Parquet: {printable(str(error))}"
        raise click.UsageError(f"{words.rstrip('.')}.") from None


def _columns(name: str, names: list[str], options: ListOptions, note: Note) -> list[str]:
    """Return the columns to read: of images, keys and options."""
    known = [normal(each) for each in names]
    images = image_columns(known, options.column)
    if not images:
        shown = ", ".join(names[:_SHOWN_COLUMNS])
        wanted = "images, such as url or image" if options.column is None else repr(options.column)
        words = f"{name} has no column of {wanted}. Its columns: {shown}. Choose one with --column NAME."
        raise click.UsageError(printable(f"{words} Nothing was sent."))
    if len(images) > 1:
        first, *others = (names[known.index(each)] for each in images)
        words = f"{name}: the images are taken from column {first}, not from {', '.join(others)}"
        note(printable(f"{words} (--column chooses)."))
    wanted_names = {images[0], "key", *OPTIONS}
    return [each for each in names if normal(each) in wanted_names]


# --- results ----------------------------------------------------------------------------------------------


FILE_NAME = "results.parquet"
_TIMES = ("submitted_at", "finished_at")


def write_results(results: ResultFile) -> Path:
    """Write the rows of ``results.jsonl`` to ``results.parquet`` beside it, whole or not at all.

    Raises:
        ResultsError: It cannot be written.
    """
    pq = load_pyarrow()
    path, schema = results.folder / FILE_NAME, _schema()
    part = path.with_name(f".{FILE_NAME}.{secrets.token_hex(4)}.part")
    rows = results.rows()
    try:
        with pq.ParquetWriter(part, schema) as writer:
            while batch := [_cells(row) for row in islice(rows, _BATCH)]:
                writer.write_batch(_record_batch(batch, schema))
        part.replace(path)
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def _cells(row: ResultRow) -> dict[str, Any]:
    cells = attrs.asdict(row)
    cells |= {"status": row.status.value, "charge": row.charge.value, "words_left": list(row.words_left)}
    return cells | {name: _time(cells[name]) for name in _TIMES}


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _record_batch(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - needs an extra

    return pa.RecordBatch.from_pylist(rows, schema=schema)


def _schema() -> Any:
    """Return the columns: the keys of a line of ``results.jsonl``, in their order; times are timestamps."""
    import pyarrow as pa  # noqa: PLC0415 - needs an extra

    error = pa.struct([("type", pa.string()), ("code", pa.int64()), ("message", pa.string())])
    kinds = {
        "int": pa.int64(),
        "float | None": pa.float64(),
        "tuple[str, ...]": pa.list_(pa.string()),
        "ErrorNote | None": error,
    }
    time = pa.timestamp("ms", tz="UTC")
    columns = {field.name: kinds.get(str(field.type), pa.string()) for field in attrs.fields(ResultRow)}
    return pa.schema(columns | dict.fromkeys(_TIMES, time))
