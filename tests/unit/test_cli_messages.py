"""Small decisions of the command line: kinds of input, exit codes, messages."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import attrs
import click
import pytest
from click.shell_completion import ShellComplete
from rich.console import Console

from flux_async import (
    AuthenticationError,
    BudgetExhausted,
    ConfigurationError,
    FluxError,
    InvalidInput,
    JournalBusyError,
    JournalError,
    MaintenanceError,
    Model,
    RateLimitedError,
    Scope,
    TaskFailed,
)
from flux_async.batch.progress import BatchProgress
from flux_async.cli import main
from flux_async.cli.advice import while_writing
from flux_async.cli.commands import cli
from flux_async.cli.credits import cost_in_words, in_credits
from flux_async.cli.display import MessageConsole, RunView, WindowUse, duration, live_lines, plain_line
from flux_async.cli.doctor import Finding, doctor_lines
from flux_async.cli.folder_commands import loss_in_words
from flux_async.cli.inputs import names_a_file
from flux_async.cli.option_values import read_prices, read_rate
from flux_async.cli.results import utc_text
from flux_async.cli.run_folder import RunFolder
from flux_async.cli.terminal import Exit, Output, exit_for, printable
from flux_async.journal.lost_records import LostRecords
from flux_async.journal.submit_log import LoggedSubmit
from flux_async.models import JobKey

CONTEXT, PARAMETER = click.Context(click.Command("x")), click.Option(["--rate"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (InvalidInput("x"), 2),
        (JournalBusyError("x"), 2),
        (JournalError("full", scope=Scope.STOP), 3),
        (BudgetExhausted("x"), 3),
        (AuthenticationError("x"), 3),
        (MaintenanceError("x"), 3),
        (RateLimitedError("x"), 1),
        (TaskFailed("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: FluxError, code: int) -> None:
    """Settings are 2, errors that stop the batch are 3, the rest is 1."""
    assert exit_for(error) == Exit(code)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Été 日本.jpg", "Été 日本.jpg"),
        ("\x1b[31mred\n", r"\x1b[31mred\n"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_no_name_moves_the_cursor(text: str, shown: str) -> None:
    """Letters of all languages stay; what a terminal would obey is spelled out."""
    assert printable(text) == shown


def test_messages_are_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run and of its end, with any file name and any text of a host."""
    words = "\x1b[2Jgone\nError: none"
    MessageConsole().note(words)
    Output().line(next(line for line in doctor_lines([Finding.of("api", FluxError(words))])))
    reported = capsys.readouterr()
    assert "\x1b" not in reported.err + reported.out
    assert (reported.err.count("\n"), reported.out.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("amount", "shown"), [(0, "0"), (5916.25, "5916.25"), (1_234_567.5, "1234567.5"), (0.1 + 0.2, "0.3")]
)
def test_credits_are_not_rounded(amount: float, shown: str) -> None:
    """A large balance is printed to the last credit."""
    assert in_credits(amount) == shown
    words, short = cost_in_words(Counter({Model.PRO: 1}), 5.0, None, amount)
    assert (f"has {shown}." in words, short) == (True, amount < 5)


def test_a_total_that_may_grow_is_marked_and_no_time_is_promised() -> None:
    """While the inputs are read, the total is a least number, and how long it takes is not known."""
    batch = BatchProgress(seen=9, succeeded=6, elapsed_s=60.0)
    read, reading = (RunView(batch=batch, asked=20, is_read=is_read) for is_read in (True, False))
    assert plain_line(reading).startswith("6 of 20+ done")
    assert "left" not in plain_line(reading)
    assert plain_line(read).startswith("6 of 20 done")
    assert plain_line(read).endswith("2:20 left")


def test_file_names_are_distinguished_from_mistyped_arguments(tmp_path: Path) -> None:
    """Paths and names of images mean files whether or not they exist; other arguments are checked."""
    (tmp_path / "here").touch()
    for path in (str(tmp_path), "./x", "../x.png", "~/x.png", "/no/such", "mistyped.JPG", "here"):
        assert names_a_file(path, str(tmp_path))
    for word in ("nonsense", "http://h/x.png", "file:///x.png", "data:image/png;base64,AA", "\0", "x" * 9999):
        assert not names_a_file(word, str(tmp_path))


@pytest.mark.parametrize(("text", "value"), [("20/10", (20, 10.0)), (" 5/0.5 ", (5, 0.5))])
def test_a_rate_is_two_numbers(text: str, value: tuple[int, float]) -> None:
    """A rate is written as submits per seconds."""
    assert read_rate(CONTEXT, PARAMETER, text) == value


@pytest.mark.parametrize("text", ["20", "0/10", "20/0", "-1/5", "a/b", "1/2/3", "1e9/1"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """Anything else is a usage error that shows how to write it."""
    with pytest.raises(click.BadParameter, match="20/10"):
        read_rate(CONTEXT, PARAMETER, text)


def view(**fields: float) -> RunView:
    batch = BatchProgress(**fields)  # type: ignore[arg-type]
    return RunView(batch=batch, asked=60)


def test_progress_reads_like_a_sentence() -> None:
    """Progress shows done, submitted, in flight, failed, the rate and the remaining time."""
    progress = view(seen=40, submits=40, succeeded=20, failed=8, in_doubt=2, generating=10, elapsed_s=90.0)
    assert plain_line(progress) == (
        "30 of 60 done · 40 submitted · 10 in flight · 8 failed · 2 in doubt · 20/min · 1:30 left"
    )


def test_progress_without_an_outcome_promises_nothing() -> None:
    """Before the first outcome of this run there is no rate and no time left; what was kept is done."""
    progress = RunView(batch=BatchProgress(seen=1, elapsed_s=5.0), asked=4, kept=3)
    assert plain_line(progress) == "3 of 4 done · 0 submitted · 0 in flight · 0 failed"


def test_refused_inputs_count_as_failed() -> None:
    """The progress agrees with the table at the end, which counts them as failed."""
    progress = RunView(batch=BatchProgress(failed=1), asked=12, refused=10)
    assert plain_line(progress) == "11 of 12 done · 0 submitted · 0 in flight · 11 failed"


def test_the_remaining_time_leaves_out_jobs_that_wait_for_a_callback() -> None:
    """Jobs in doubt end with their callback, not at the rate of the others."""
    progress = view(seen=60, submits=60, succeeded=30, waiting=30, elapsed_s=60.0)
    assert plain_line(progress).endswith("30 wait for a callback · 30/min · 0:00 left")


def test_a_pause_is_shown_with_its_reason() -> None:
    """Why nothing is submitted, and until when."""
    batch = BatchProgress(pause_left_s=80.0, pause_reason="the vendor is under maintenance")
    progress = RunView(batch=batch, asked=3)
    pause = "submits pause for 1:20: the vendor is under maintenance"
    assert plain_line(progress).endswith(pause)
    assert pause in rendered(progress, 80)


def rendered(progress: RunView, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(live_lines(progress, width))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("width", [120, 80, 60, 50, 30])
def test_progress_is_whole_in_a_terminal_of_any_width(width: int) -> None:
    """Labels and numbers stay; what gives way is the bars."""
    batch = BatchProgress(submits=1234, succeeded=1000, in_doubt=2, waiting=3, generating=80, elapsed_s=900.0)
    shown = rendered(RunView(batch=batch, asked=5000, in_window=19), width)
    words = " ".join(shown.replace("━", " ").replace("╸", " ").split())
    for label in ("overall", "in flight", "rate limit"):
        assert label in shown
    for number in ("1002 of 5000 done", "80 of 100", "1234 submitted", "2 in doubt", "67/min"):
        assert number in words
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= width


def test_jobs_of_an_earlier_run_add_to_the_total() -> None:
    """A batch that takes up more than was asked for does not end above 100 percent."""
    assert RunView(batch=BatchProgress(seen=9), asked=4, kept=3).total == 12


def test_the_window_counts_the_submits_of_its_length() -> None:
    """Submits leave the window when they are older than it is long."""
    window = WindowUse(10.0)
    assert [window.count(*seen) for seen in ((1, 0.0), (3, 5.0), (3, 9.9), (3, 10.0), (4, 16.0))] == [
        1, 3, 3, 2, 1,
    ]  # fmt: skip


def test_durations_and_times_are_written_for_people() -> None:
    """Durations are m:ss or h:mm:ss, moments ISO 8601 in UTC with a Z."""
    assert [duration(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
    assert utc_text(1_785_585_600.25) == "2026-08-01T12:00:00.250Z"


def test_without_the_extra_the_command_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where rich is missing, the command names the extra on one line and exits 2."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "The command line needs the extra cli. "
        "Run: pip install 'flux-async[cli]'  (in a checkout: pip install '.[cli]')\n"
    )


def test_sigterm_while_the_command_starts_exits_as_an_interrupted_run() -> None:
    """The exit code is 130 before a command listens for signals, too."""
    program = (
        "import importlib.util, os, signal\n"
        "from flux_async.cli import main\n"
        "importlib.util.find_spec = lambda name: os.kill(os.getpid(), signal.SIGTERM)\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, b"")


def test_a_second_signal_leaves_no_part_of_the_results(tmp_path: Path) -> None:
    """The process is ended while it rewrites them; a part that was left before is removed by the next run."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from flux_async.cli.results import ResultFile\n"
        "from flux_async.cli.signals import Interruption\n"
        "results = ResultFile(Path(sys.argv[1]))\n"
        "stop = Interruption(before_exit=[results.remove_parts])\n"
        "def rows():\n"
        "    assert list(results.folder.glob('.results.jsonl.*.part'))\n"
        "    stop.receive()\n"
        "    stop.receive()\n"
        "    yield\n"
        "results.rewrite(rows())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, b"")
    assert not list(tmp_path.iterdir())


async def test_a_part_of_the_results_that_was_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    """A process that was killed while it rewrote the results leaves one."""
    part = tmp_path / ".results.jsonl.1a2b3c4d.part"
    part.write_bytes(b"{")
    folder = await RunFolder.open(tmp_path, account="")
    await folder.aclose()
    assert not part.exists()


def test_a_long_list_that_is_written_after_ctrl_c_is_announced() -> None:
    """200,000 rows take seconds, a hundred do not."""
    assert while_writing(100) is None
    assert (while_writing(200_000) or "").startswith("Writing results.jsonl for 200000 images.")


def test_on_windows_the_command_names_wsl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal's locks and the signals are those of Linux and macOS."""
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "inside WSL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "only"),
    [
        ({"seen": 4, "succeeded": 2, "fetching": 2, "retrying": 2}, True),
        ({"seen": 4, "succeeded": 1, "fetching": 2, "retrying": 2, "generating": 1}, False),
        ({"seen": 4, "succeeded": 2, "fetching": 2, "retrying": 1}, False),
        ({"seen": 4, "succeeded": 1, "fetching": 2, "retrying": 2}, False),
        ({"seen": 4, "succeeded": 4}, False),
    ],
)
def test_a_run_that_only_retries_downloads_is_announced(fields: dict[str, int], only: bool) -> None:
    """Once, with the advice that it can be interrupted."""
    view = RunView(batch=BatchProgress(**fields), asked=4)
    assert view.only_retries_downloads is only
    assert not attrs.evolve(view, is_read=False).only_retries_downloads


# --- values of options ------------------------------------------------------------------------------------


NUMBERS = [
    (command, option)
    for command in cli.commands.values()
    for option in command.params
    if isinstance(option.type, click.types.FloatParamType)
]


@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=lambda one: one.name)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1e308000", "x"])
def test_an_option_that_is_a_number_takes_finite_numbers_only(
    command: click.Command, option: click.Parameter, text: str
) -> None:
    """A comparison with nan is never true: a limit of nan credits would limit nothing."""
    with pytest.raises(click.BadParameter):
        option.type_cast_value(click.Context(command), text)


def test_rates_and_prices_take_finite_numbers_only() -> None:
    """The two options that hold several numbers."""
    for text in ("nan", "inf", "-1", "0", "x"):
        with pytest.raises(click.BadParameter):
            read_rate(CONTEXT, PARAMETER, f"20/{text}")
        with pytest.raises(click.BadParameter):
            read_prices(CONTEXT, PARAMETER, (f"flux-kontext-pro={text}",))


def test_numbers_are_options_of_every_command_that_spends() -> None:
    """The options checked above include those of a run."""
    found = {option.name for _, option in NUMBERS}
    assert found == {"timeout", "patience", "confirm_above", "max_credits", "max_mb", "min_credits"}


def test_an_output_file_that_cannot_be_made_is_refused_before_the_submit(tmp_path: Path) -> None:
    """A folder, a name with a slash at its end, no folder at all; missing folders are made later."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (output,) = (option for option in cli.commands["generate"].params if option.name == "file")
    context = click.Context(cli.commands["generate"])
    for text in ("folder", "new/", "", "file/x.png", "/proc/x.png", f"{'n' * 300}.png"):
        with pytest.raises(click.BadParameter):
            output.type_cast_value(context, text if text[:1] in {"", "/"} else f"{tmp_path}/{text}")
    for text in ("file", "new.png", "new/folder/x.png"):
        assert output.type_cast_value(context, f"{tmp_path}/{text}") == tmp_path / text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_options_of_the_sandbox_are_completed() -> None:
    """They are read by its own parser, and still known to the completion of a shell."""
    complete = ShellComplete(cli, {}, "flux-async", "_FLUX_ASYNC_COMPLETE")
    found = {item.value: item.help for item in complete.get_completions(["sandbox", "--port", "1"], "--s")}
    assert list(found) == ["--speed", "--seed", "--state"]
    assert found["--seed"] == "makes task ids and times repeatable"
    assert "--help" in {item.value for item in complete.get_completions(["sandbox"], "-")}


@pytest.mark.parametrize(("count", "images"), [(1, "1 image"), (2, "2 images")])
def test_the_loss_of_one_record_is_one_image(count: int, images: str) -> None:
    """The message of recover counts in words that fit the number."""
    keys = [JobKey(str(number)) for number in range(count)]
    lost = LostRecords(submits={key: LoggedSubmit(event=1, at=0.0, key=key) for key in keys})
    assert f"submits for {images}, made between 1970-01-01" in loss_in_words(lost)
