"""``remove-text --dry-run``: what would be submitted, and for how much; nothing is sent or changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import attrs

from flux_async import EditRequest, FluxError, InDoubtPolicy, Job, Model
from flux_async.api.stored_requests import read_model
from flux_async.cli.advice import error_text
from flux_async.cli.credits import in_credits
from flux_async.cli.display import RunDisplay
from flux_async.cli.input_reader import Row, not_paid_for, read_row
from flux_async.cli.input_rows import InputRow
from flux_async.cli.results import IMAGES, refused_row
from flux_async.cli.run_folder import JOURNAL, Bits
from flux_async.cli.run_options import RunOptions
from flux_async.cli.status import warning_of_lost_records
from flux_async.cli.terminal import Exit, Output
from flux_async.job_state import JobState
from flux_async.journal.adding import Added
from flux_async.journal.reader import JournalPreview, JournalReader
from flux_async.journal.store import StoredJob
from flux_async.policy.image_urls import check_reachable
from flux_async.transport.credentials import DEFAULT_BASE_URL, origin_of

_WORDS = {
    "duplicates": "given twice in the input",
    "done": "done already",
    "to_download": "done already, to be downloaded again",
    "under_way": "paid already, to be waited for",
    "in_doubt": "in doubt, left as they are",
    "failed": "failed in an earlier run, left as they are",
    "refused": "cannot be used",
    "signed_anew": "submitted already, perhaps under another signature",
    "other_query": "to submit, though only the query of the address differs from one submitted already",
}
_OF_STATES = {
    JobState.SUBMITTING: "in_doubt",
    JobState.SUBMITTED: "under_way",
    JobState.GENERATED: "under_way",
    JobState.IN_DOUBT: "in_doubt",
    JobState.FAILED: "failed",
}


def run_dry(order: RunOptions, inputs: Iterable[InputRow], *, as_json: bool) -> Exit:
    """Print which images would be submitted (stdout) and what else there is (stderr), or all as one object.

    Raises:
        JournalError: The folder's journal cannot be read.
        click.ClickException: A list cannot be read to its end.
    """
    journal = order.folder / JOURNAL
    with ExitStack() as stack:
        reader = None
        if journal.exists():
            reader = stack.enter_context(JournalReader(journal, leaves_no_trace=True))
        preview = stack.enter_context(JournalPreview(reader))
        run = DryRun(order=order, preview=preview, reader=reader, as_json=as_json)
        for given in inputs:
            run.take(given)
    run.conclude()
    if (warning := warning_of_lost_records(order.folder)) is not None:
        run.warn(warning)
    return Exit.SOME_FAILED if run.counts["refused"] else Exit.SUCCEEDED


@attrs.define(kw_only=True, eq=False)
class DryRun:
    """Sorts inputs as a run would.

    Attributes:
        order: How the run would go about it.
        preview: Says what the journal would do.
        reader: Reads the journal, where there is one.
        as_json: Print one JSON object instead of addresses and words.
        counts: Images by what would become of them.
        models: Images that would be submitted, by model.
    """

    order: RunOptions
    preview: JournalPreview
    reader: JournalReader | None
    as_json: bool
    counts: Counter[str] = attrs.field(factory=Counter, init=False)
    models: Counter[Model] = attrs.field(factory=Counter, init=False)
    _seen: Bits = attrs.field(factory=Bits, init=False)
    _display: RunDisplay = attrs.field(factory=lambda: RunDisplay(output=Output(), prints_results=False))
    _api_host: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._api_host = origin_of(os.environ.get("KIE_BASE_URL") or DEFAULT_BASE_URL)[1]

    def take(self, given: InputRow) -> None:
        """Sort one input."""
        row = read_row(given, self._job)
        if row.refusal is not None:
            self._refuse(given, row.refusal)
            return
        added = self.preview.add(
            row.key, row.request, pays_again=self.order.yes, is_given=self._seen.__contains__
        )
        if added.conflict is not None:
            self._refuse(given, added.conflict)
        elif added.number is None:
            self.counts["signed_anew"] += 1
            self._say(given, not_paid_for(added))
        elif not self._seen.add(added.number):
            self.counts["duplicates"] += 1
        else:
            self.counts["other_query"] += added.similar is not None
            self._sort(row, added)

    def _job(self, given: InputRow) -> Job:
        job = self.order.job_for(given)
        if isinstance(job.request, EditRequest) and isinstance(job.request.input_image, str):
            check_reachable(job.request.input_image, api_host=self._api_host)
        return job

    def _sort(self, row: Row, added: Added) -> None:
        stored = added.stored
        if stored is None or stored.job.state is JobState.PENDING or self._is_resubmitted(stored):
            model = read_model(row.request if stored is None else stored.request)
            self.models[model] += 1
            if not self.as_json:
                self._display.output.line(row.given.image)
        elif stored.job.state is JobState.DONE:
            self.counts["done" if self._is_here(stored) else "to_download"] += 1
        else:
            self.counts[_OF_STATES[stored.job.state]] += 1

    def _is_resubmitted(self, stored: StoredJob) -> bool:
        is_doubt = _OF_STATES.get(stored.job.state) == "in_doubt"
        if not is_doubt or self.order.in_doubt is not InDoubtPolicy.RESUBMIT:
            return False
        return self.reader is None or self.reader.found_task(stored.number) is None

    def _is_here(self, stored: StoredJob) -> bool:
        file = stored.job.file
        is_here = file is not None and (self.order.folder / IMAGES / file).is_file()
        return is_here or not self.order.download

    def _refuse(self, given: InputRow, error: FluxError) -> None:
        self.counts["refused"] += 1
        self._say(given, error)

    def _say(self, given: InputRow, error: FluxError) -> None:
        words = error_text(error)
        placed = words if words.startswith(given.place) else f"{given.place}: {words}"
        self._display.refused(refused_row(given.image, given.name, error), placed)

    def conclude(self) -> None:
        """Print the sums."""
        self._display.count_what_was_not_printed(are_in_results=False)
        if self.as_json:
            self._display.output.json(self.as_data())
            return
        for line in self.in_words():
            self._display.note(line)

    def warn(self, words: str) -> None:
        """Print a warning to stderr."""
        self._display.note(words, "yellow")

    def as_data(self) -> dict[str, Any]:
        """Return the sums as data."""
        return {
            "to_submit": {model.value: self.models[model] for model in Model if self.models[model]},
            "credits": self._cost,
            **{name: self.counts[name] for name in _WORDS},
        }

    def in_words(self) -> list[str]:
        """Return the sums for a person."""
        cost, most = self._cost, self.order.max_credits
        bounded = "" if most is None or most >= cost else f", of which the run may spend {in_credits(most)}"
        by_model = ", ".join(f"{model.value}: {count}" for model, count in self.models.items())
        images = f"{self.models.total()} ({by_model})" if by_model else "0"
        lines = [
            "Dry run: nothing was sent, nothing was changed.",
            f"To submit: {images}, for about {in_credits(cost)} credits{bounded}.",
        ]
        for name, words in _WORDS.items():
            if self.counts[name]:
                lines.append(f"{words[0].upper()}{words[1:]}: {self.counts[name]}.")
        return lines

    @property
    def _cost(self) -> float:
        return sum(self.order.prices[model] * count for model, count in self.models.items())
