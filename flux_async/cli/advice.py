"""The advice of the command line: after an error, after a run, about a paid task.

No advice leads to a second charge, without saying so: ``tests/io/test_cli_advice.py`` runs the commands that
are printed here. "The same command again" is advised only where it pays for nothing twice; some options
repeat a charge, and the advice then says to leave them out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from flux_async import FluxError
from flux_async.advice import fill, must_be_named, other_api
from flux_async.api.models_table import ApiName

_NOT_TWICE = "nothing is paid twice."
_SOON_WRITTEN = 5_000
"""Rows of results.jsonl that are written in about half a second."""


def shell_command(*words: str | Path) -> str:
    """Return a command of this program in the form that can be pasted into a shell."""
    return f"flux-async {shlex.join(map(str, words))}"


def command(*words: str | Path) -> str:
    """Return the same for a message, between backticks."""
    return f"`{shell_command(*words)}`"


def error_text(error: FluxError, folder: Path | None = None) -> str:
    """Return the message of an error with its advice, worded as commands.

    Args:
        error: The error.
        folder: The folder of the run, or None.
    """
    words = with_commands(error.advice_template, folder, error.task_id, error.api)
    return f"{error.message} {words}".strip()


def with_commands(template: str, folder: Path | None, task_id: str | None, api: str | None = None) -> str:
    """Return ``template`` with each action worded as a command, folder, task and its API filled in."""
    return fill(template, _words(folder, task_id, api))


def _at(api: str | None) -> tuple[str, ...]:
    return ("--api", str(api)) if must_be_named(api) else ()


def _words(folder: Path | None, task_id: str | None, api: str | None) -> Mapping[str, str]:
    at = _at(api)
    wait = "wait for it with " + command("task", task_id or "TASK_ID", "--wait", *at)
    if folder is not None:
        wait = "wait for it with " + command("retry", folder)
    fetch = command("task", task_id or "TASK_ID", "-o", "FILE", *at)
    if folder is not None:
        fetch = command("retry", folder)
    doctor = command("doctor") if folder is None else command("doctor", "-o", folder)
    return {
        "accept_price": "Finished images are kept.",
        "check_network": f"check KIE_BASE_URL and the network with {doctor}",
        "fetch": f"Run {fetch} to fetch it.",
        "file": "the path of a file",
        "give_key": "set KIE_API_KEY",
        "larger_budget": "--max-credits counts for each run by itself",
        "larger_result": "fetch it from its address yourself",
        "larger_upload": "upload it with `flux-async upload --max-mb` and give the address that is printed",
        "new_key": ""
        if folder is None
        else f"If it is a new key of the same account, run {command('rekey', folder)} first: {_NOT_TWICE}",
        "new_run": "running the same again submits them, and fetches what is already paid.",
        "new_run_after_halt": "Images in doubt are not submitted again; the next run submits those that are "
        "left, one at a time until one is accepted, and each of them may be charged.",
        "other_api": f"It may be a task of the API {other_api(api)}: add --api {other_api(api)}.",
        "paid_once": "",
        "pay_again": "" if folder is None else f": {command('retry', folder, '--failed')}",
        "recover": f"run {command('recover', folder or 'DIR')}",
        "result_url": "its result_url" if folder is None else f"its result_url in {folder / 'results.jsonl'}",
        "sure": "add --yes",
        "unanswered_submit": "If no task is named above, look for it at kie.ai/logs before you submit again.",
        "wait": wait,
    }


def paid_task(task_id: str, api: ApiName) -> str:
    """Return the message about a task that was submitted, and that the command did not wait for."""
    wait = command("task", task_id, "--wait", *_at(api))
    return f"Task {task_id} was submitted and is paid: wait for it with {wait}."


def paid_result(task_id: str, api: ApiName, result_url: str, file: Path | None) -> str:
    """Return the message about a result that could not be downloaded."""
    again = command("task", task_id, "-o", file or "FILE", *_at(api))
    return f"Task {task_id} is done, but its image is not here: {result_url}. Download it with {again}."


def unprinted_result(task_id: str, api: ApiName, where: str) -> tuple[str, str]:
    """Return what to print before and after the reason why a paid result could not be printed."""
    again = command("task", task_id, *_at(api))
    return (
        f"Task {task_id} is done, but its result could not be printed",
        f"; {where} has it, and {again} prints it again, free of charge",
    )


@attrs.frozen
class Cost:
    """Images that can be paid for again, and the credits of another task for each."""

    images: int = 0
    credits: float = 0.0


@attrs.frozen(kw_only=True)
class AfterRun:
    """The work that is left when a run ends.

    Attributes:
        folder: The folder of the run.
        repeats: Options of the command that pay again each time it is run, and those that go only with them.
        unfinished: Images that the run did not finish.
        interrupted: Whether a signal ended it.
        failed: Images that failed for good.
        doubts: Images in doubt whose tasks are not known.
        found_tasks: Images in doubt whose tasks have been found.
        unrecognised: Results whose record shows another request than was sent.
        only_doubt: The key of the only image in doubt, and a task that may be its, or None.
        moved_away: Images of an earlier run that are not in the folder and could not be downloaded again.
        answers_made_no_sense: Whether the run halted because of that.
        fetch_by: When the vendor may delete the first paid result that is not here, where that is soon.
        left_at_jobs: Whether results of the jobs API were left at the vendor.
        price: The price at which it halted, as a value of ``--price``; None if another one.
        not_checked: Images of which a check could not be made.
        checks: The options of the command that ask for checks.
        text_left: Images of the folder that still have text, and what a retry of them costs.
        damaged: The same of images that are damaged or cropped.
    """

    folder: Path
    repeats: Sequence[str] = ()
    unfinished: int = 0
    interrupted: bool = False
    failed: int = 0
    doubts: int = 0
    found_tasks: int = 0
    unrecognised: int = 0
    only_doubt: tuple[str, str | None] | None = None
    moved_away: int = 0
    answers_made_no_sense: bool = False
    fetch_by: str | None = None
    left_at_jobs: bool = False
    price: str | None = None
    not_checked: int = 0
    checks: Sequence[str] = ()
    text_left: Cost = Cost()
    damaged: Cost = Cost()

    def lines(self) -> list[str]:
        """Return the messages about it, with the commands that go on."""
        lines = []
        if self.unfinished or self.interrupted:
            lines.append(self._about_the_rest())
        if self.fetch_by is not None:
            lines.append(f"The vendor may delete the first paid result that is not here at {self.fetch_by}.")
        if self.left_at_jobs:
            lines.append(
                "The vendor keeps results of the jobs API for 24 hours: fetch them before with "
                f"{command('retry', self.folder)}, free of charge."
            )
        if self.moved_away:
            lines.append(
                f"Delivered by an earlier run, moved away and not downloaded again: {self.moved_away}. "
                "They stay succeeded; results.jsonl says why."
            )
        lines += self._about_checks()
        if self.failed:
            lines.append(
                f"Failed for good: {self.failed}. To pay for another task for each: "
                f"{command('retry', self.folder, '--failed')}"
            )
        if self.found_tasks:
            lines.append(self._about_found_tasks())
        if self.doubts:
            lines.append(self._about_doubts())
        if self.unrecognised:
            lines.append(
                f"Results whose record shows another request than was sent: {self.unrecognised}. Compare "
                f"them with their images; {command('status', self.folder)} lists them."
            )
        return lines

    def _about_checks(self) -> Iterator[str]:
        if self.not_checked:
            yield (
                f"Not checked: {self.not_checked}. They are here and paid; results.jsonl says why. "
                f"To try again: {command('retry', self.folder, *self.checks)}; {_NOT_TWICE}"
            )
        for words, cost, option in (
            ("Text left", self.text_left, "--text-left"),
            ("Damaged or cropped", self.damaged, "--damaged"),
        ):
            if cost.images:
                again = command("retry", self.folder, option)
                yield (
                    f"{words}: {cost.images} in this folder. To pay for another task for each, up to "
                    f"{cost.credits:,g} credits: {again}"
                )

    def _about_the_rest(self) -> str:
        *others, last = self.repeats or ("",)
        named = f"{', '.join(others)} and {last}" if others else last
        without = f" without {named}" if named else ""
        if self.answers_made_no_sense:
            images = "image that is" if self.unfinished == 1 else f"{self.unfinished} images that are"
            return (
                f"Find out first why the answers make no sense. The same command{without} then submits the "
                f"{images} left, one at a time until one is accepted: each may be charged without a result. "
                "Those in doubt are not submitted again."
            )
        if self.price is not None:
            return (
                f"To go on at this price, run the same command{without} with --price {self.price}: "
                "nothing is paid twice."
            )
        if not self.repeats:
            return f"Run the same command again to resume; {_NOT_TWICE}"
        return f"Run the same command{without} to resume; that pays for nothing else again."

    def _about_found_tasks(self) -> str:
        fetch = command("retry", self.folder) if self.repeats else "the same command again"
        found, their = "tasks of {} images in doubt were", "their images"
        if self.found_tasks == 1:
            found, their = "task of {} image in doubt was", "its image"
        return f"The {found.format(self.found_tasks)} found: {fetch} fetches {their}, free of charge."

    def _about_doubts(self) -> str:
        status = "" if self.doubts == 1 else f"; {command('status', self.folder)} lists them"
        key, task = self.only_doubt or ("JOB", None)
        adopt = command("adopt", self.folder, key, task or "TASK_ID")
        resubmit = command("retry", self.folder, "--in-doubt")
        return (
            f"In doubt, perhaps paid: {self.doubts}{status}. Look for the task at kie.ai/logs. If it is "
            f"there: {adopt}. To submit again, perhaps for a second charge: {resubmit}"
        )


@attrs.frozen(kw_only=True)
class Advice:
    """A sentence about some images of a folder, and a command that helps, or None."""

    words: str
    command: str | None = None


def about_failed(folder: Path, cost: Cost) -> Advice:
    """Return the advice about images that failed for good."""
    return Advice(
        words=f"Pays for another task for every image that failed for good, up to {cost.credits:,g} credits. "
        "The number and the cost are printed first.",
        command=shell_command("retry", folder, "--failed"),
    )


def about_verdict(folder: Path, option: str, cost: Cost) -> Advice:
    """Return the advice about images whose verdict ``retry`` knows by an option."""
    return Advice(
        words=f"Pays for another task for each of these images, up to {cost.credits:,g} credits. The number "
        "and the cost are printed first. Of two images the better one is the result; the other is kept in "
        "images/earlier/.",
        command=shell_command("retry", folder, option),
    )


def about_in_doubt(folder: Path) -> Advice:
    """Return the advice about images whose submit got no answer."""
    return Advice(
        words="Perhaps paid. Look for the tasks at kie.ai/logs first, and record those you find with "
        f"{shell_command('adopt', folder, 'JOB', 'TASK_ID')}. This command submits again what is still in "
        "doubt, perhaps for a second charge.",
        command=shell_command("retry", folder, "--in-doubt"),
    )


def about_pending(folder: Path) -> Advice:
    """Return the advice about images that a run has left."""
    return Advice(
        words=f"Resumes the run: submits what was not submitted yet, and fetches what is paid; {_NOT_TWICE}",
        command=shell_command("retry", folder),
    )


def about_batch(name: str) -> dict[str, Advice]:
    """Return the advice about a batch on several machines, for failed, in_doubt and pending images.

    No command names its database, whose address may have a password: it is in FLUX_ASYNC_DSN.
    """
    return {
        "failed": Advice(
            words="Pays for another task for every image that failed for good, and submits those that could "
            "not be submitted. The number and the cost are printed first; FLUX_ASYNC_DSN names the database.",
            command=shell_command("batch", "retry", name, "--failed"),
        ),
        "in_doubt": Advice(
            words="Perhaps paid. Look for the tasks at kie.ai/logs first, and record those you find with "
            f"{shell_command('batch', 'adopt', name, 'JOB', 'TASK_ID')}. This command submits again what is "
            "still in doubt, perhaps for a second charge; FLUX_ASYNC_DSN names the database.",
            command=shell_command("batch", "retry", name, "--in-doubt"),
        ),
        "pending": Advice(words="Workers submit what was not submitted yet, and fetch what is paid."),
    }


ABOUT_REFUSED = Advice(
    words="Never submitted, nothing charged. Correct the inputs and run your own command again: the images "
    "that are done are not paid for again."
)
ABOUT_UNRECOGNISED = Advice(
    words="The records of these tasks show another request than was sent. Compare results and images."
)
ABOUT_UNSURE = Advice(
    words="The check is not sure about these, or could not be made: compare before and after."
)
ABOUT_NOT_PRESERVED = Advice(
    words="These are the vendor's own images, redrawn as a whole: they could not be composed with their "
    "originals, for the reason under each. Compare before and after."
)
ABOUT_RUNNING = Advice(words="A run is using the folder: wait for its end before you go on.")


def while_writing(images: int) -> str | None:
    """Return the message while results.jsonl is rewritten after Ctrl-C; None where that is done at once."""
    if images <= _SOON_WRITTEN:
        return None
    return f"Writing results.jsonl for {images} images. Ctrl-C leaves it as it is: the journal is complete."


def after_adopting(folder: Path) -> str:
    """Return the command that fetches the image of an adopted task."""
    return f"Fetch its image with {command('retry', folder)}; {_NOT_TWICE}"


def after_recovering(folder: Path, *, needs_list: bool) -> str:
    """Return the command that goes on with a run whose journal had lost records of submits.

    Args:
        folder: The folder of the run.
        needs_list: Whether the journal may have lost images as well, which only the list still names.
    """
    if needs_list:
        return (
            "Go on with the command that you ran before, with its whole list: it submits only what was "
            "certainly not submitted."
        )
    return f"Go on with {command('retry', folder)}: it submits only what was certainly not submitted."


def after_rekeying(folder: Path) -> str:
    """Return the command that goes on with a run whose folder has a new key."""
    return f"Go on with {command('retry', folder)}; {_NOT_TWICE}"
