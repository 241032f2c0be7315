"""Small decisions of the command line: what an input is, what a code means, what a person reads."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from flux_async import (
    AuthenticationError,
    ConfigurationError,
    FluxError,
    InvalidInput,
    MaintenanceError,
    RateLimitedError,
    TaskFailed,
)
from flux_async.cli import main
from flux_async.cli.commands import read_rate
from flux_async.cli.display import duration, plain_line
from flux_async.cli.exits import Exit, exit_for
from flux_async.cli.fanout import utc_text
from flux_async.cli.inputs import gather_images, is_local
from flux_async.cli.progress import Phase, Progress, Tally

CONTEXT, PARAMETER = click.Context(click.Command("x")), click.Option(["--rate"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (InvalidInput("x"), 2),
        (AuthenticationError("x"), 3),
        (MaintenanceError("x"), 3),
        (RateLimitedError("x"), 1),
        (TaskFailed("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: FluxError, code: int) -> None:
    """Settings are 2, what stops everybody is 3, the rest is 1."""
    assert exit_for(error) == Exit(code)


def test_images_come_from_the_arguments_and_from_standard_input() -> None:
    """A hyphen stands for the lines of standard input; blank lines and comments are skipped."""
    lines = ["http://h/2\n", "\n", "# no\n", "  http://h/3  \n"]
    assert gather_images(["http://h/1", "-", "http://h/4"], lines) == [f"http://h/{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_no_image_at_all_is_a_usage_error(arguments: list[str]) -> None:
    """Nothing to do is said, not done."""
    with pytest.raises(click.UsageError, match="at least one image"):
        gather_images(arguments, [])


def test_what_is_on_this_machine_is_told_from_what_is_mistyped(tmp_path: Path) -> None:
    """Paths are local whether or not they exist; a word that names no file is left to the validation."""
    local = [str(tmp_path), "./x.png", "../x.png", "~/x.png", "/no/such.png", "file:///x.png"]
    assert all(map(is_local, local))
    assert not any(
        map(is_local, ["nonsense.png", "http://h/x.png", "data:image/png;base64,AA", "\0", "x" * 9999])
    )


@pytest.mark.parametrize(("text", "value"), [("20/10", (20, 10.0)), (" 5/0.5 ", (5, 0.5))])
def test_a_rate_is_two_numbers(text: str, value: tuple[int, float]) -> None:
    """A rate is written as submits per seconds."""
    assert read_rate(CONTEXT, PARAMETER, text) == value


@pytest.mark.parametrize("text", ["20", "0/10", "20/0", "-1/5", "a/b", "1/2/3", "1e9/1"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """Anything else is a usage error that shows how to write it."""
    with pytest.raises(click.BadParameter, match="20/10"):
        read_rate(CONTEXT, PARAMETER, text)


def test_progress_reads_like_a_sentence() -> None:
    """Progress tells done, submitted, generating, failed, the rate and what is left of the time."""
    phases = {Phase.SUCCEEDED: 20, Phase.FAILED: 8, Phase.IN_DOUBT: 2, Phase.GENERATING: 10, Phase.QUEUED: 20}
    progress = Progress(phases=phases, kept=0, submitted=40, elapsed_s=90.0)
    assert plain_line(progress) == (
        "20 of 60 done · 40 submitted · 10 generating · 10 failed · 20/min · 1:30 left"
    )


def test_progress_without_an_outcome_promises_nothing() -> None:
    """Before the first outcome of this run there is no rate and no time left."""
    progress = Progress(phases={Phase.SUCCEEDED: 3, Phase.QUEUED: 1}, kept=3, elapsed_s=5.0)
    assert plain_line(progress) == "3 of 4 done · 0 submitted · 0 generating · 0 failed"


def test_a_tally_counts_every_image_once() -> None:
    """An image that moves on is no longer counted where it was."""
    tally = Tally()
    for phase in (Phase.QUEUED, Phase.SUBMITTING, Phase.GENERATING):
        tally.move("a", phase)
    assert (tally.progress(1.0).total, tally.progress(1.0).generating) == (1, 1)


def test_durations_and_times_are_written_for_people() -> None:
    """Durations are m:ss or h:mm:ss, moments ISO 8601 in UTC with a Z."""
    assert [duration(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
    assert utc_text(1_785_585_600.25) == "2026-08-01T12:00:00.250Z"


def test_without_the_extra_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where rich is missing, the command names the extra on one line and exits 2."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "The command line needs an extra: run  pip install 'flux-async[cli]'\n"
