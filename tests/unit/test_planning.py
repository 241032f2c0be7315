"""What a second run does with what the first one left: the rules that keep it from paying twice."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from flux_async import Charge, EditRequest, InvalidInput
from flux_async.cli.planning import Step, next_step, plan
from flux_async.cli.results import ErrorNote, ResultRow, Status

NEW = ResultRow(image="https://host/a.png", key="k")
SUBMITTED = attrs.evolve(NEW, task_id="t", charge=Charge.YES, attempts=1)
MADE = attrs.evolve(SUBMITTED, result_url="https://host/r.png")
DONE = attrs.evolve(MADE, status=Status.SUCCEEDED, file="images/a.png")


def failed(row: ResultRow, kind: str, charge: Charge) -> ResultRow:
    return attrs.evolve(
        row, status=Status.FAILED, charge=charge, error=ErrorNote(type=kind, message="It failed.")
    )


CASES = {
    "nothing was sent": (NEW, Step.SUBMIT),
    "submitted, cut short": (SUBMITTED, Step.WAIT),
    "made, cut short": (MADE, Step.DOWNLOAD),
    "the wait ran out": (failed(SUBMITTED, "PollDeadlineExceeded", Charge.YES), Step.WAIT),
    "the record could not be read": (failed(SUBMITTED, "UnexpectedResponse", Charge.YES), Step.WAIT),
    "the download failed": (failed(MADE, "DownloadError", Charge.YES), Step.DOWNLOAD),
    "the address ran out": (failed(MADE, "ResultExpired", Charge.YES), Step.WAIT),
    "the task failed, perhaps charged": (failed(SUBMITTED, "TaskFailed", Charge.MAYBE), Step.KEEP),
    "the task was not created": (failed(SUBMITTED, "TaskFailed", Charge.NO), Step.SUBMIT),
    "refused at no charge": (failed(NEW, "ContentPolicyError", Charge.NO), Step.SUBMIT),
    "never connected": (failed(NEW, "RequestNotSent", Charge.NO), Step.SUBMIT),
    "failed, perhaps charged, no task": (failed(NEW, "ServerError", Charge.MAYBE), Step.KEEP),
    "in doubt": (
        attrs.evolve(
            NEW,
            status=Status.IN_DOUBT,
            charge=Charge.MAYBE,
            error=ErrorNote(type="ConnectionLost", message="Gone."),
        ),
        Step.KEEP,
    ),
}


@pytest.mark.parametrize(("row", "step"), CASES.values(), ids=CASES)
def test_only_what_cost_nothing_is_submitted_again(row: ResultRow, step: Step) -> None:
    """Paid tasks are taken up, doubtful ones left alone, and only the free failures submitted again."""
    assert next_step(row, has_file=False, download=True) is step


@pytest.mark.parametrize(
    ("has_file", "download", "step"),
    [
        (True, True, Step.KEEP),
        (False, True, Step.DOWNLOAD),
        (False, False, Step.KEEP),
        (True, False, Step.KEEP),
    ],
)
def test_a_success_is_downloaded_only_where_its_file_is_missed(
    has_file: bool, download: bool, step: Step
) -> None:
    """A picture that succeeded is done, unless its file is wanted and not there."""
    assert next_step(DONE, has_file=has_file, download=download) is step


def make(image: str) -> EditRequest:
    return EditRequest.text_removal(image)


def test_the_same_image_twice_is_one_item(tmp_path: Path) -> None:
    """Duplicates are one job, in the place of the first."""
    images = ["https://host/b.png", "https://host/a.png", "https://host/b.png"]
    items = plan(images, {}, make, folder=tmp_path, download=True)
    assert [item.row.image for item in items] == images[:2]


def test_the_same_image_with_another_prompt_is_another_job(tmp_path: Path) -> None:
    """The key is that of image and options together."""
    (one,) = plan(["https://host/b.png"], {}, make, folder=tmp_path, download=True)
    (two,) = plan(
        ["https://host/b.png"],
        {one.key: one.row},
        lambda image: EditRequest.text_removal(image, prompt="Wipe it"),
        folder=tmp_path,
        download=True,
    )
    assert one.key != two.key


def test_an_address_that_is_none_is_refused_without_a_submit(tmp_path: Path) -> None:
    """An invalid address becomes an item that is not submitted, even if it is no Unicode."""
    items = plan(["nonsense", "\udcff"], {}, make, folder=tmp_path, download=True)
    assert [item.step for item in items] == [Step.REFUSE, Step.REFUSE]
    assert all(isinstance(item.request, InvalidInput) for item in items)


def test_a_row_that_is_taken_up_is_pending_again(tmp_path: Path) -> None:
    """What is worked on stands as pending with what was paid for, so that a cut leaves it resumable."""
    (fresh,) = plan([NEW.image], {}, make, folder=tmp_path, download=True)
    known = attrs.evolve(failed(SUBMITTED, "PollDeadlineExceeded", Charge.YES), key=fresh.key)
    (item,) = plan([NEW.image], {fresh.key: known}, make, folder=tmp_path, download=True)
    assert (item.step, item.row.status, item.row.task_id) == (Step.WAIT, Status.PENDING, "t")
    assert item.row.error is None


def test_a_file_on_disk_is_looked_for_in_the_folder(tmp_path: Path) -> None:
    """A row that succeeded is kept while its file is there, and downloaded when it has gone."""
    (fresh,) = plan([NEW.image], {}, make, folder=tmp_path, download=True)
    known = {fresh.key: attrs.evolve(DONE, key=fresh.key)}
    (gone,) = plan([NEW.image], known, make, folder=tmp_path, download=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (here,) = plan([NEW.image], known, make, folder=tmp_path, download=True)
    assert (gone.step, here.step) == (Step.DOWNLOAD, Step.KEEP)
