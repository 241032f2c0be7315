"""The option --api: one folder with tasks of both APIs, and what is refused before anything is sent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cli(make_cli: Any, start_sandbox: Any) -> Any:
    """A sandbox of its own: all polls of its ledger are those of the test."""
    return make_cli(start_sandbox("--speed", "20", "--credits", "1000000", "--images", "none").url)


@pytest.fixture
def images(image_host: Any, request: pytest.FixtureRequest) -> list[str]:
    return [str(url) for url in image_host.more(request.node.name, 40)]


def polls_of_unknown_tasks(cli: Any) -> int:
    """Return how many polls asked for a task at an API that does not have it."""
    ledger = cli.ledger()
    return int(ledger["polls"] - sum(line["polls"] for line in ledger["images"].values()))


def settled_lines(folder: Path) -> int:
    results = folder / "out" / "results.jsonl"
    return len(results.read_text("utf-8").splitlines()) if results.exists() else 0


def test_a_killed_run_over_kontext_is_completed_over_jobs(cli: Any, images: list[str]) -> None:
    """SIGKILL in the middle: each task is polled where it was submitted, and none is paid twice."""
    with cli.start("remove-text", *images, "--rate", "5/1", "-o", "out") as process:
        cli.wait_for(lambda: settled_lines(cli.folder) >= 2)
        process.kill()
        process.communicate()
    resumed = cli.run("remove-text", *images, "--rate", "20/0.5", "--api", "jobs", "-o", "out")
    rows = cli.rows()
    in_doubt = [row["image"] for row in rows if row["status"] == "in_doubt"]
    assert resumed.code == (1 if in_doubt else 0), resumed.stderr
    apis = Counter(row["api"] for row in rows)
    assert apis.keys() == {"kontext", "jobs"}
    assert polls_of_unknown_tasks(cli) == 0
    known = [image for image in images if image not in in_doubt]
    assert cli.tasks_of_each(known) == [1] * len(known)
    assert max(cli.tasks_of_each(images)) == 1
    assert cli.status()["apis"] == apis
    assert f"submitted to: jobs {apis['jobs']}, kontext {apis['kontext']}" in cli.run("status", "out").stdout


def test_kontext_max_over_jobs_is_refused_before_anything_is_spent(cli: Any, images: list[str]) -> None:
    """In a dry run, in a run and in a single command; over kontext the same folder goes on."""
    options = ("--model", "flux-kontext-max", "-o", "out")
    dry = cli.run("remove-text", images[0], *options, "--api", "jobs", "--dry-run")
    assert (dry.code, dry.stdout) == (1, "")
    assert "jobs API does not have the model flux-kontext-max" in dry.stderr
    refused = cli.run("remove-text", images[0], *options, "--api", "jobs")
    assert refused.code == 1
    [row] = cli.rows()
    assert (row["attempts"], row["api"], row["error"]["type"]) == (0, None, "InvalidInput")
    single = cli.run("generate", "A lighthouse", "--model", "flux-kontext-max", "--api", "jobs")
    assert single.code == 2
    assert cli.ledger()["submits"] == 0
    assert cli.run("remove-text", images[0], *options).code == 0
    assert cli.tasks_of(images[0]) == 1


def test_a_task_of_the_other_api_is_named_as_a_possibility(cli: Any, images: list[str]) -> None:
    """The message of a task that is not there, and the command that finds it."""
    assert cli.run("edit", "Make it blue", images[0], "--api", "jobs", "--json").code == 0
    [line] = cli.ledger()["images"].values()
    task = line["tasks"][0]
    missing = cli.run("task", task)
    assert missing.code == 1
    assert "It may be a task of the API jobs: add --api jobs." in missing.stderr
    assert cli.run("task", task, "--api", "jobs").code == 0


def test_results_of_the_jobs_api_that_stay_at_the_vendor_are_said_to_live_for_a_day(
    cli: Any, images: list[str]
) -> None:
    """The command that is printed fetches them, free of charge; results of the other API live for 14 days."""
    left = cli.run("remove-text", *images[:2], "--no-download", "-o", "out")
    assert "24 hours" not in left.stderr
    left = cli.run("remove-text", *images[:3], "--no-download", "--api", "jobs", "-o", "out")
    assert (
        "keeps results of the jobs API for 24 hours: fetch them before with `flux-async retry out`"
        in left.stderr
    )
    assert cli.run("retry", "out").code == 0
    assert all((cli.folder / "out" / row["file"]).is_file() for row in cli.rows())
    assert cli.tasks_of_each(images[:3]) == [1, 1, 1]


def test_an_interrupted_run_over_jobs_says_when_its_paid_results_may_be_deleted(
    make_cli: Any, start_sandbox: Any, images: list[str]
) -> None:
    """Paid and not here yet: the first end, a day after its submit."""
    cli = make_cli(start_sandbox("--speed", "0.01", "--images", "none").url)
    options = ("--timeout", "1", "-o", "out")
    run = cli.run("remove-text", images[0], "--api", "jobs", *options)
    assert run.code == 1
    assert f"first paid result that is not here at {cli.status()['fetch_by']}." in run.stderr
    assert "may delete" not in cli.run("remove-text", images[1], *options, "-o", "other").stderr


@pytest.mark.parametrize("arguments", [("credits",), ("doctor",)], ids=" ".join)
def test_a_wrong_word_in_the_environment_is_refused(make_cli: Any, arguments: tuple[str, ...]) -> None:
    """Before anything is sent, with the names there are; as an option it is a usage error."""
    cli = make_cli()
    cli.more["KIE_API"] = "unified"
    ended = cli.run(*arguments)
    assert ended.code in {1, 2}
    assert "KIE_API must be kontext or jobs, not 'unified'" in ended.stdout + ended.stderr
    assert cli.run("credits", "--api", "unified").code == 2
