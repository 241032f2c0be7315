"""Jobs from the rows of a data frame: of pandas, of polars, or of anything that is read like theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Unpack

from flux_async.batch.columns import AT_THE_ENDS, IMAGE_COLUMNS, OPTIONS, image_columns, normal
from flux_async.errors import InvalidInput, shown
from flux_async.images import LocalImage
from flux_async.models import EditRequest, Job, JobKey, RequestOptions

_MISSING = frozenset({"NAType", "NaTType"})
"""Names of pandas' types of missing values; a comparison with one is neither true nor false."""


class Frame(Protocol):
    """A data frame: of pandas, which has ``itertuples``, or of polars, which has ``iter_rows``."""

    @property
    def columns(self) -> Any:
        """The names of its columns."""
        ...


def frame_to_jobs(
    frame: Frame, *, column: str | None = None, **options: Unpack[RequestOptions]
) -> Iterator[Job | EditRequest]:
    """Return an input of :func:`run_batch` for each row of a pandas or polars frame, made as it is asked for.

    Images, keys and options are found by the names that columns of lists have: ``url`` or ``image`` and the
    like, ``key``, ``prompt``, ``model``, ``aspect_ratio``, ``output_format``. Other columns are ignored. All
    rows are checked before this returns.

    Args:
        frame: The frame.
        column: The column that holds the images; left out, it is found by its name.
        options: Options of all requests, where a row has none of its own.

    Raises:
        InvalidInput: It is no frame, no column holds images, or a row cannot be a request.
    """
    names, rows = _read(frame)
    known = [normal(name) for name in names]
    places = {name: known.index(name) for name in ("key", *OPTIONS) if name in known}
    images = image_columns(known, column)
    if not images:
        raise InvalidInput(
            f"No column of the frame holds images. Its columns: {', '.join(names[:30])}.",
            advice=f"Name one of them with column=, or call it {IMAGE_COLUMNS[0]}; nothing was sent.",
        )
    places["image"] = known.index(images[0])
    if doubled := [names[at] for at in places.values() if known.count(known[at]) > 1]:
        words = f"Several columns of the frame have the name {shown(doubled[0])}, but for case and blanks."
        raise InvalidInput(words, advice="Rename all of them but one; nothing was sent.")
    for _ in _jobs(rows(), places, options):
        pass
    return _jobs(rows(), places, options)


def _read(frame: Frame) -> tuple[list[str], Any]:
    """Return the names of the columns, and a function that begins to read the rows, as tuples."""
    rows = getattr(frame, "iter_rows", None)
    if rows is None and (tuples := getattr(frame, "itertuples", None)) is not None:
        rows = lambda: tuples(index=False, name=None)  # noqa: E731 - as polars has it
    if rows is None or not hasattr(frame, "columns"):
        raise InvalidInput(f"{shown(frame)} is no data frame.", advice="Give one of pandas or polars.")
    return [str(name) for name in frame.columns], rows


def _jobs(
    rows: Iterable[tuple[Any, ...]], places: Mapping[str, int], options: RequestOptions
) -> Iterator[Job | EditRequest]:
    for number, row in enumerate(rows):
        fields = {name: value for name, at in places.items() if (value := _value(row[at])) is not None}
        try:
            yield _job(fields, options)
        except InvalidInput as bad:
            words = f"Row {number} of the frame: {bad.message}"
            raise InvalidInput(words, advice=bad.advice_template) from None


def _value(cell: Any) -> Any:
    """Return what a cell holds; None where it is empty."""
    if cell is None or type(cell).__name__ in _MISSING or (isinstance(cell, float) and cell != cell):  # noqa: PLR0124
        return None
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)  # pandas makes floats of whole numbers where some are missing
    return (cell.strip(AT_THE_ENDS) or None) if isinstance(cell, str) else cell


def _job(fields: dict[str, Any], options: RequestOptions) -> Job | EditRequest:
    image, key = fields.pop("image", None), fields.pop("key", None)
    if not isinstance(image, str):
        raise InvalidInput(
            "it has no image." if image is None else f"{shown(image)} is no address of an image."
        )
    given: Any = options | fields
    request = EditRequest.text_removal(image if "://" in image else LocalImage(path=image), **given)
    if key is not None:
        return Job(request=request, key=JobKey(str(key)))
    return request if isinstance(request.input_image, LocalImage) else Job(request=request)
