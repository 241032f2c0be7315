"""remove-text while its inputs are read: order of submits, questions, contents of the results."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import EditRequest, FluxClient, InvalidInput, Limits, PollPolicy
from flux_async.cli.credits import Questions
from flux_async.cli.display import RunDisplay
from flux_async.cli.dry_run import run_dry
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import gather_inputs
from flux_async.cli.run_command import RunCommand
from flux_async.cli.run_folder import Bits, Numbers
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption
from flux_async.cli.terminal import Exit, Output
from scripted_vendor import ScriptedVendor, echo

FAST = Limits(submits=1000, window_s=0.01, in_flight=20)
POLLING = PollPolicy(first_s=0.0, interval_s=0.002, jitter=0.0)
WAIT_S = 60


def echoing_vendor() -> ScriptedVendor:
    """A vendor whose tasks have ended at the first poll, and that echoes requests."""
    return ScriptedVendor(polls=1, shows=echo)


@attrs.define
class Answers:
    """A person who answers questions, and what was asked."""

    says: bool
    asked: list[str] = attrs.field(factory=list)

    async def ask(self, words: str) -> bool:
        """Answer a question."""
        self.asked.append(words)
        return self.says


@attrs.define
class Runs:
    """Runs remove-text in one folder, without its process."""

    folder: Path
    vendor: ScriptedVendor = attrs.field(factory=echoing_vendor)

    async def run(
        self, inputs: Iterable[InputRow], person: Answers | None = None, **options: Any
    ) -> tuple[Exit, list[dict[str, Any]]]:
        """Return the exit code and the lines of results.jsonl."""
        order = RunOptions(folder=self.folder, limits=FAST, download=False, **options)

        def make_client() -> FluxClient:
            return FluxClient("k", "http://127.0.0.1:1", transport=self.vendor, limits=FAST, polling=POLLING)

        command = RunCommand(
            options=order,
            select=lambda reader, _: reader.read(inputs),
            make_client=make_client,
            display=RunDisplay(output=Output(), prints_results=False),
            interruption=Interruption(),
            ask=None if person is None else person.ask,
        )
        code = await command.run()
        lines = (self.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return code, list(map(json.loads, lines))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "out")


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[tuple[str, int]]:
    path = tmp_path / "list"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield str(path), end
    os.close(end)


def url(n: int) -> str:
    return f"https://pictures.example/{n}.jpg"


def listed(*rows: str) -> Iterator[InputRow]:
    """Return the rows of a CSV list with keys."""
    text = "".join(f"{row}\n" for row in ("url,key", *rows))
    return gather_inputs([], ["-"], io.StringIO(text))


def signed(day: int, n: int = 1) -> str:
    return f"{url(n)}?X-Amz-Signature={day:x}"


# --- while it is read -------------------------------------------------------------------------------------


async def test_each_line_is_submitted_when_it_comes(runs: Runs, tmp_path: Path) -> None:
    """A list that is still being written is worked off as it grows, and its end ends the run."""
    path = tmp_path / "list"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    os.write(end, f"{url(0)}\n".encode())
    inputs = gather_inputs([], [str(path)])
    async with asyncio.TaskGroup() as group:
        run = group.create_task(runs.run(inputs))
        for n in range(1, 4):
            await runs.vendor.wait_for_submits(n)
            os.write(end, f"{url(n)}\n".encode())
        await runs.vendor.wait_for_submits(4)
        assert not run.done()
        os.close(end)
    code, rows = run.result()
    assert (code, [row["image"] for row in rows]) == (Exit.SUCCEEDED, [url(n) for n in range(4)])


async def test_the_first_submit_does_not_wait_for_the_list(runs: Runs) -> None:
    """Rows are read in a thread, and what has been read is submitted: here reading waits for a submit."""
    was_sent: list[int] = []
    loop = asyncio.get_running_loop()

    def rows() -> Iterator[InputRow]:
        for n in range(600):
            if n == 550:
                asyncio.run_coroutine_threadsafe(runs.vendor.wait_for_submits(1), loop).result(WAIT_S)
                was_sent.append(n)
            yield InputRow(source="list", line=n + 1, image=url(n))

    code, results = await runs.run(rows())
    assert (code, was_sent) == (Exit.SUCCEEDED, [550])
    assert [row["image"] for row in results] == [url(n) for n in range(600)]


async def test_results_keep_the_order_of_the_input_with_refused_rows(
    runs: Runs,
) -> None:
    """Invalid rows keep their position, also at the beginning and the end; duplicates are one job."""
    rows = ["nothing,", f"{url(2)},", f"{url(1)},", "bad,", f"{url(2)},", f"{url(3)},", "worse,"]
    code, results = await runs.run(listed(*rows))
    images = ["nothing", url(2), url(1), "bad", url(3), "worse"]
    assert (code, [row["image"] for row in results]) == (Exit.SOME_FAILED, images)
    assert sorted(runs.vendor.submitted) == [url(1), url(2), url(3)]
    code, results = await runs.run(listed(f"{url(4)},", *reversed(rows)))
    assert [row["image"] for row in results] == [url(4), "worse", url(3), url(2), "bad", url(1), "nothing"]
    assert len(runs.vendor.submitted) == 4


async def test_a_halted_run_waits_for_no_more_lines(runs: Runs, pipe: tuple[str, int]) -> None:
    """Nothing can be paid any more, and the pipe stays open: the run ends with what it has read."""
    path, end = pipe
    os.write(end, "".join(f"{url(n)}\n" for n in range(3)).encode())
    async with asyncio.timeout(WAIT_S):
        code, results = await runs.run(gather_inputs([], [path]), max_credits=10)
    assert (code, len(runs.vendor.submitted), len(results)) == (Exit.HALTED, 2, 3)


async def test_an_interrupted_run_waits_for_no_more_lines(runs: Runs, pipe: tuple[str, int]) -> None:
    """The thread that reads ends with the run."""
    path, end = pipe
    os.write(end, f"{url(0)}\n".encode())
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        run = group.create_task(runs.run(gather_inputs([], [path])))
        await runs.vendor.wait_for_submits(1)
        run.cancel()
    assert run.cancelled()


async def test_nothing_to_pay_asks_for_no_balance(runs: Runs) -> None:
    """A second run of the same list makes no request at all."""
    await runs.run(listed(f"{url(1)},"))
    asked = runs.vendor.count("credit")
    code, _ = await runs.run(listed(f"{url(1)},"))
    assert (code, runs.vendor.count("credit"), len(runs.vendor.submitted)) == (Exit.SUCCEEDED, asked, 1)


# --- questions --------------------------------------------------------------------------------------------


async def test_a_person_is_asked_before_more_is_spent_and_no_means_no(runs: Runs) -> None:
    """Nothing has left when the question comes; the folder keeps what was read for the next run."""
    person = Answers(says=False)
    code, results = await runs.run(listed(*(f"{url(n)}," for n in range(5))), person, confirm_above=24)
    assert (code, runs.vendor.submitted, len(results)) == (Exit.HALTED, [], 5)
    (question,) = person.asked
    assert question.startswith("5 images need about 25 credits; the account has 1000000")
    person = Answers(says=True)
    code, _ = await runs.run(listed(*(f"{url(n)}," for n in range(5))), person, confirm_above=24)
    assert (code, len(person.asked), len(runs.vendor.submitted)) == (Exit.SUCCEEDED, 1, 5)


@pytest.mark.parametrize("options", [{"confirm_above": 25}, {"max_credits": 24}, {"yes": True}])
async def test_within_the_amount_or_with_yes_no_question_is_asked(
    runs: Runs, options: dict[str, Any]
) -> None:
    """The most that a run can spend decides."""
    person = Answers(says=False)
    await runs.run(listed(*(f"{url(n)}," for n in range(5))), person, **{"confirm_above": 24, **options})
    assert (person.asked, len(runs.vendor.submitted) >= 4) == ([], True)


async def test_a_long_list_is_asked_about_before_more_than_the_amount_has_left(runs: Runs) -> None:
    """What was released before the need passed the amount is all that may leave without the answer."""
    sent: list[int] = []

    class Person(Answers):
        async def ask(self, words: str) -> bool:
            """Note what has left."""
            sent.append(len(runs.vendor.submitted))
            return await super().ask(words)

    person = Person(says=True)
    rows = (f"{url(n)}," for n in range(700))
    code, _ = await runs.run(listed(*rows), person, confirm_above=3_000)
    assert (code, len(runs.vendor.submitted), len(person.asked)) == (Exit.SUCCEEDED, 700, 1)
    assert sent[0] * 5 <= 3_000


async def test_an_answer_is_read_from_a_terminal_or_given_up() -> None:
    """Only an answer that begins with y is a yes; cancelling leaves no thread behind."""
    shown: list[str] = []
    read, write = os.pipe()
    questions = Questions(show=shown.append, descriptor=read)
    for text, meant in (("y\n", True), ("Yes\n", True), ("\n", False), ("no\n", False)):
        os.write(write, text.encode())
        assert await questions.ask("Submit?") is meant
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        waiting = group.create_task(questions.ask("Submit?"))
        await asyncio.sleep(0)
        waiting.cancel()
    assert waiting.cancelled()
    os.close(write)
    assert await questions.ask("Submit?") is False
    os.close(read)
    assert shown[0].startswith("Submit? Type y")


# --- addresses signed anew --------------------------------------------------------------------------------


async def test_a_row_with_a_key_is_one_job_however_it_is_signed(runs: Runs) -> None:
    """The second day's list pays nothing for what is done."""
    await runs.run(listed(f"{signed(1)},a"))
    code, (row,) = await runs.run(listed(f"{signed(2)},a"))
    assert (code, row["image"], runs.vendor.submitted) == (Exit.SUCCEEDED, signed(1), [signed(1)])


@pytest.mark.parametrize("person", [None, Answers(says=False)])
async def test_a_new_signature_without_a_key_is_not_paid_unasked(runs: Runs, person: Answers | None) -> None:
    """The row is refused, free, and names the job it repeats; with that key it is that job; others go on."""
    _, (done,) = await runs.run(listed(f"{signed(1)},"))
    code, results = await runs.run(listed(f"{signed(2)},", f"{url(7)},", f"{signed(3)},"), person)
    assert (code, runs.vendor.submitted) == (Exit.SOME_FAILED, [signed(1), url(7)])
    refused = [row for row in results if row["image"] in {signed(2), signed(3)}]
    assert [row["status"] for row in refused] == ["failed", "failed"]
    assert all(done["key"] in row["error"]["message"] for row in refused)
    if person is not None:
        (question,) = person.asked
        assert question.startswith("2 images of the rows read so far differ only in the signature")
    code, _ = await runs.run(listed(f"{signed(2)},{done['key']}"))
    assert (code, len(runs.vendor.submitted)) == (Exit.SUCCEEDED, 2)


@pytest.mark.parametrize("options", [{"person": Answers(says=True)}, {"yes": True}])
async def test_with_permission_it_is_paid_for_again(runs: Runs, options: dict[str, Any]) -> None:
    """The message says how many were."""
    await runs.run(listed(f"{signed(1)},"))
    code, _ = await runs.run(listed(f"{signed(2)},"), **options)
    assert (code, runs.vendor.submitted) == (Exit.SUCCEEDED, [signed(1), signed(2)])


def numbered(n: int) -> str:
    return f"{url(1)}?id={n}"


async def test_without_a_terminal_other_queries_are_paid_for_with_a_warning(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """``?id=17`` and ``?id=18`` may be two images; their number is printed before they are paid for."""
    await runs.run(listed(f"{numbered(1)},"))
    rows = [f"{numbered(n)}," for n in (2, 3)]
    assert (
        run_dry(RunOptions(folder=runs.folder, download=False), listed(*rows), as_json=True) is Exit.SUCCEEDED
    )
    reported = json.loads(capsys.readouterr().out)
    assert (reported["to_submit"], reported["other_query"]) == ({"flux-kontext-pro": 2}, 2)
    code, _ = await runs.run(listed(*rows))
    assert (code, len(runs.vendor.submitted)) == (Exit.SUCCEEDED, 3)
    reported = " ".join(capsys.readouterr().err.split())
    assert "2 images of the rows read so far differ only in the query of the address" in reported
    assert "of the address from one that" in reported
    assert "2 of 2 differ only in the query" in reported


@pytest.mark.parametrize("says", [True, False])
async def test_at_a_terminal_other_queries_are_asked_about(runs: Runs, says: bool) -> None:
    """Once, with the count; after a no the rows are refused, free, and a key of their own submits them."""
    await runs.run(listed(f"{numbered(1)},"))
    person = Answers(says=says)
    rows = [f"{numbered(n)}," for n in (2, 3)]
    code, results = await runs.run(listed(*rows), person)
    (question,) = person.asked
    assert question.startswith("2 images of the rows read so far differ only in the query")
    assert (code, len(runs.vendor.submitted)) == ((Exit.SUCCEEDED, 3) if says else (Exit.SOME_FAILED, 1))
    if not says:
        assert "differs only in its query" in results[0]["error"]["message"]
        code, _ = await runs.run(listed(f"{numbered(2)},two"), Answers(says=False))
        assert (code, len(runs.vendor.submitted)) == (Exit.SUCCEEDED, 2)


# --- dry run ----------------------------------------------------------------------------------------------


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_dry_run_prints_the_cost_and_changes_nothing(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Done, duplicate, refused and newly signed images are counted separately; the rest has its price."""
    await runs.run(listed(f"{url(1)},", f"{signed(1, 9)},"))
    before, sent = everything_in(runs.folder), list(runs.vendor.submitted)
    capsys.readouterr()
    order = RunOptions(folder=runs.folder, download=False)
    rows = [
        f"{url(1)},",
        f"{url(2)},",
        f"{url(2)},",
        "bad,",
        f"{signed(2, 9)},",
        f"{url(3)},k",
        f"{url(4)},k",
    ]
    assert run_dry(order, listed(*rows), as_json=True) is Exit.SOME_FAILED
    reported = json.loads(capsys.readouterr().out)
    assert reported["to_submit"] == {"flux-kontext-pro": 2}
    assert (reported["credits"], reported["done"], reported["duplicates"]) == (10, 1, 1)
    assert (reported["refused"], reported["signed_anew"], reported["failed"]) == (2, 1, 0)
    assert run_dry(order, listed(f"{url(2)},", f"{url(1)},"), as_json=False) is Exit.SUCCEEDED
    reported = capsys.readouterr()
    assert reported.out == f"{url(2)}\n"
    assert "To submit: 1 (flux-kontext-pro: 1), for about 5 credits." in reported.err
    assert (everything_in(runs.folder), runs.vendor.submitted) == (before, sent)


def test_a_dry_run_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is there before or after; a budget is named where it is smaller."""
    order = RunOptions(folder=tmp_path / "out", max_credits=5)
    assert run_dry(order, listed(f"{url(2)},", f"{url(3)},"), as_json=False) is Exit.SUCCEEDED
    assert "for about 10 credits, of which the run may spend 5." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- what a selection is kept in --------------------------------------------------------------------------


def test_a_million_numbers_take_nine_megabytes() -> None:
    """Eight bytes and a bit each, in order, each once."""
    numbers = Numbers()
    assert [numbers.add(n) for n in (5, 3, 5, 1 << 20)] == [True, True, False, True]
    assert (list(numbers), len(numbers), 3 in numbers, 4 in numbers, 1 << 30 in numbers) == (
        [5, 3, 1 << 20],
        3,
        True,
        False,
        False,
    )
    bits = Bits()
    assert (bits.add(7), bits.add(7), 6 in bits) == (True, False, False)


# --- words ------------------------------------------------------------------------------------------------


async def test_a_declined_cost_ends_with_one_advice(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """The halt says what to answer, the end how to resume: not both the same."""
    code, _ = await runs.run(listed(f"{url(1)},", f"{url(2)},"), Answers(says=False), confirm_above=5.0)
    reported = " ".join(capsys.readouterr().err.split())
    assert code is Exit.HALTED
    assert "Answer y the next time, or add --yes or --confirm-above." in reported
    assert reported.count("Run the same command again") == 1


def test_a_dry_run_names_no_results_that_it_does_not_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 30 bad rows 20 are printed; a run would keep them all, a dry run keeps none."""
    order = RunOptions(folder=tmp_path / "out")
    assert run_dry(order, listed(*[f"bad{n}," for n in range(30)]), as_json=False) is Exit.SOME_FAILED
    reported = capsys.readouterr().err
    assert "10 more could not be used." in reported
    assert "results.jsonl" not in reported


async def test_a_key_that_two_rows_give_to_two_images_is_not_blamed_on_the_journal(runs: Runs) -> None:
    """The earlier row stands in the same list."""
    code, (_, row) = await runs.run(listed(f"{url(1)},a", f"{url(2)},a"))
    assert code is Exit.SOME_FAILED
    assert row["error"]["message"].startswith("This run was given another request under the key 'a'")
    code, results = await runs.run(listed(f"{url(3)},a"))
    (row,) = (row for row in results if row["image"] == url(3))
    assert row["error"]["message"].startswith("The journal holds another request under the key 'a'")


async def test_a_row_without_an_address_is_refused_with_command_line_advice(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Callers of the library get Python advice instead."""
    await runs.run(gather_inputs([], ["-"], io.StringIO("images:\n- url: http://h/a.jpg\n")))
    reported = " ".join(capsys.readouterr().err.split())
    assert "pathlib" not in reported
    with pytest.raises(InvalidInput, match=r"pathlib\.Path"):
        EditRequest.text_removal("images:")
