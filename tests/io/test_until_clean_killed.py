"""SIGKILL during remove-text --until-clean: no attempt too many, an image in its place, all others kept."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import pytest

from tests.io.test_checks_killed import rows

COMMAND = ("remove-text", "--until-clean", "3", "--no-report", "-o", "out")
KILLS = (("SubmitAccepted", 2), ("SubmitIntended", 3))


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_run_until_clean_that_is_killed_makes_no_attempt_too_many(
    make_cli: Any, start_sandbox: Any, image_host: Any
) -> None:
    """Killed after the second submit and at the third; then run to its end, and once more."""
    (image,) = image_host.more("until-clean", 1)
    url = start_sandbox("--speed", "120", "--faults", "text-left:100%").url
    cli = attrs.evolve(make_cli(url), more={"PYTHONUNBUFFERED": "1"})
    journal, out = cli.folder / "out" / "journal.sqlite3", cli.folder / "out" / "images"

    def has(event: str, count: int) -> bool:
        found = rows(journal, f"SELECT count(*) FROM event WHERE type = '{event}'")
        return bool(found) and found[0][0] >= count

    for event, count in KILLS:
        with cli.start(*COMMAND, image) as process:
            cli.wait_for(lambda: has(event, count) or process.poll() is not None)  # noqa: B023 - called here
            process.kill()
            process.wait()
        assert len(list(out.glob("*.jpg"))) == 1, "the image is in its place while another one is made"
    for _ in range(2):
        done = cli.run(*COMMAND, image)
        (row,) = cli.rows()
        assert cli.tasks_of(image) <= 3
        assert done.code == (1 if row["status"] == "in_doubt" else 0), done.stderr
    if row["status"] == "succeeded":
        assert (row["verdict"], row["attempts"], row["error"]) == ("text_left", 3, None)
        assert (cli.folder / "out" / row["file"]).is_file()
        assert len(list((out / "earlier").glob("*.jpg"))) in {2, 3}, (
            "one more, if it died before it deleted it"
        )
