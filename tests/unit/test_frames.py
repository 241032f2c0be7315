"""Jobs from the rows of data frames, of pandas and of polars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flux_async import EditRequest, InvalidInput, Job, LocalImage, Model, Succeeded, frame_to_jobs, run_batch
from flux_async.testing import FluxSandbox, VirtualClock

A, B = "https://example.com/a.jpg", "https://example.com/b.jpg"
Make = Callable[[dict[str, list[Any]]], Any]


@pytest.fixture(params=["pandas", "polars"])
def frame(request: pytest.FixtureRequest) -> Make:
    """Make a frame of one of the libraries."""
    make: Make = pytest.importorskip(request.param).DataFrame
    return make


def test_columns_have_the_names_of_lists(frame: Make) -> None:
    """Keys and options of a row come before those of the call; empty cells are none."""
    rows = frame(
        {
            "Image URL": [A, f" {B}\n"],
            "key": [7, None],
            "prompt": [None, "Say less"],
            "model": [None, "flux-kontext-max"],
        }
    )
    one, other = frame_to_jobs(rows, output_format="png")
    assert isinstance(one, Job)
    assert isinstance(other, Job)
    assert one == Job(request=EditRequest.text_removal(A, output_format="png"), key=one.key)
    assert one.key == "7"
    assert other.request == EditRequest.text_removal(
        B, prompt="Say less", model=Model.MAX, output_format="png"
    )


def test_a_file_is_read_when_its_turn_comes(frame: Make) -> None:
    """It is named by its content, unless the row has a key."""
    one, other = frame_to_jobs(frame({"path": ["a.png", "b.png"], "key": [None, "b"]}))
    assert isinstance(one, EditRequest)
    assert isinstance(one.input_image, LocalImage)
    assert isinstance(other, Job)


def test_the_column_can_be_chosen(frame: Make) -> None:
    """Without one that holds images the error lists them."""
    (job,) = frame_to_jobs(frame({"url": [A], "hero": [B]}), column="Hero")
    assert isinstance(job, Job)
    assert job.request == EditRequest.text_removal(B)
    with pytest.raises(InvalidInput, match="Several columns of the frame have the name 'url'"):
        frame_to_jobs(frame({"url": [A], "URL": [B]}))
    with pytest.raises(InvalidInput, match=r"Its columns: n\. Name one of them with column="):
        frame_to_jobs(frame({"n": [1]}))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"url": [A, None]}, "Row 1 of the frame: it has no image"),
        ({"url": [1]}, "Row 0 of the frame: 1 is no address of an image"),
        ({"url": ["ftp://x/y"]}, "Row 0 of the frame: input_image 'ftp://x/y' is not an http"),
        ({"url": [A], "model": ["flux-9"]}, "Row 0 of the frame: .*flux-9"),
    ],
    ids=["empty", "number", "scheme", "model"],
)
def test_all_rows_are_checked_at_once(frame: Make, columns: dict[str, list[Any]], words: str) -> None:
    """A batch never stops in the middle because of a row."""
    with pytest.raises(InvalidInput, match=words):
        frame_to_jobs(frame(columns))


def test_what_is_no_frame_is_refused() -> None:
    """Such as a list of images, which needs no frame."""
    with pytest.raises(InvalidInput, match="is no data frame"):
        frame_to_jobs([A])  # type: ignore[arg-type]


async def test_a_batch_of_a_frame(frame: Make, flux_clock: VirtualClock, flux_sandbox: FluxSandbox) -> None:
    """The outcomes have the keys of the rows."""
    rows = frame({"url": [A, B], "key": ["a", "b"]})
    async with flux_sandbox.client() as client, run_batch(client, frame_to_jobs(rows)) as batch:
        found = {outcome.job.key: type(outcome) async for outcome in batch if outcome.job is not None}
    assert found == {"a": Succeeded, "b": Succeeded}
