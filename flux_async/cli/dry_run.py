"""``remove-text --dry-run``: what would be submitted, and its cost; nothing is sent or changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import attrs

from flux_async import EditRequest, FluxError, InDoubtPolicy, InvalidInput, Job
from flux_async.api import VARIABLE, choose_api
from flux_async.api.models_table import AnyModel, ApiName, api_for
from flux_async.api.stored_requests import read_aspect_ratio, read_model
from flux_async.cli.credits import SKIPS, in_credits
from flux_async.cli.display import RunDisplay
from flux_async.cli.input_reader import Row, not_paid_for, read_row, refusal_text
from flux_async.cli.input_rows import InputRow
from flux_async.cli.results import IMAGES, is_address, refused_row
from flux_async.cli.run_folder import JOURNAL, Bits
from flux_async.cli.run_options import RunOptions
from flux_async.cli.status import warning_of_lost_records
from flux_async.cli.terminal import Exit, Output
from flux_async.job_state import JobState, next_attempt
from flux_async.journal.adding import Added
from flux_async.journal.reader import JournalPreview, JournalReader
from flux_async.journal.store import StoredJob
from flux_async.policy.image_urls import check_reachable
from flux_async.transport.credentials import Credentials

_WORDS = {
    "duplicates": "given twice in the input",
    "done": "done already",
    "tried_again": "done already with text left or damage, to be submitted again",
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


def run_dry(options: RunOptions, inputs: Iterable[InputRow], *, as_json: bool) -> Exit:
    """Print the images that would be submitted on stdout, and the counts on stderr; or all as one object.

    Raises:
        JournalError: The folder's journal cannot be read.
        click.ClickException: A list cannot be read to its end.
    """
    journal = options.folder / JOURNAL
    with ExitStack() as stack:
        reader = None
        if journal.exists():
            reader = stack.enter_context(JournalReader(journal, leaves_no_trace=True))
        preview = stack.enter_context(JournalPreview(reader))
        run = DryRun(options=options, preview=preview, reader=reader, as_json=as_json)
        for given in inputs:
            run.add(given)
    run.print()
    if (warning := warning_of_lost_records(options.folder)) is not None:
        run.display.note(warning, "yellow")
    return Exit.SOME_FAILED if run.counts["refused"] else Exit.SUCCEEDED


@attrs.define(kw_only=True, eq=False)
class DryRun:
    """Counts inputs by what a run would do with them.

    Attributes:
        options: The options of the run.
        preview: Returns what the journal would do.
        reader: Reads the journal, or None where there is none.
        as_json: Print one JSON object instead of addresses and words.
        counts: Images by what a run would do with them.
        models: Images that would be submitted, by model.
        further: The most further attempts that they may need, by model.
        display: Prints them.
    """

    options: RunOptions
    preview: JournalPreview
    reader: JournalReader | None
    as_json: bool
    counts: Counter[str] = attrs.field(factory=Counter, init=False)
    models: Counter[AnyModel] = attrs.field(factory=Counter, init=False)
    further: Counter[AnyModel] = attrs.field(factory=Counter, init=False)
    display: RunDisplay = attrs.field(
        factory=lambda: RunDisplay(output=Output(), prints_results=False), init=False
    )
    _seen: Bits = attrs.field(factory=Bits, init=False)
    _api_host: str = attrs.field(init=False)
    _api: ApiName = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._api = choose_api(self.options.api, os.environ.get(VARIABLE, ""))
        self._api_host = Credentials("none", os.environ.get("KIE_BASE_URL")).host

    def add(self, given: InputRow) -> None:
        """Count one input."""
        row = read_row(given, self._job)
        if row.refusal is not None:
            self._refuse("refused", given, row.refusal)
            return
        added = self.preview.add(
            row.key, row.request, pays_again=self.options.yes, is_given=self._seen.__contains__
        )
        if added.conflict is not None:
            self._refuse("refused", given, added.conflict)
        elif added.number is None:
            self._refuse("signed_anew", given, not_paid_for(added))
        elif not self._seen.add(added.number):
            self.counts["duplicates"] += 1
        else:
            self.counts["other_query"] += added.similar is not None
            self._count(row, added)

    def _job(self, given: InputRow) -> Job:
        job = self.options.job_for(given)
        if isinstance(job.request, EditRequest) and isinstance(job.request.input_image, str):
            check_reachable(job.request.input_image, api_host=self._api_host)
        return job

    def _count(self, row: Row, added: Added) -> None:
        stored = added.stored
        if stored is None or stored.job.state is JobState.PENDING or self._is_resubmitted(stored):
            request = row.request if stored is None else stored.submitted
            model = read_model(request)
            try:
                api_for(model, self._api, read_aspect_ratio(request))
            except InvalidInput as error:
                self._refuse("refused", row.given, error)
                return
            self.models[model] += 1
            self._add_further(request if stored is None else stored.request, stored)
            if not self.as_json:
                self.display.output.line(row.given.image)
        elif stored.job.state is JobState.DONE:
            is_here = self._is_here(stored)
            is_bad = is_here and next_attempt(stored.job, self.options.checks) is not None
            self.counts["tried_again" if is_bad else "done" if is_here else "to_download"] += 1
            if is_bad:
                self._add_further(stored.request, stored)
                if not self.as_json:
                    self.display.output.line(row.given.image)
        else:
            what = _OF_STATES[stored.job.state]
            self.counts[what] += 1
            if what == "under_way":
                self._add_further(stored.request, stored)

    def _add_further(self, request: str, stored: StoredJob | None) -> None:
        redone = 0 if stored is None else stored.job.redone
        own = read_model(request)
        self.further.update(model or own for model in self.options.checks.models_left(redone))

    def _is_resubmitted(self, stored: StoredJob) -> bool:
        is_doubt = _OF_STATES.get(stored.job.state) == "in_doubt"
        if not is_doubt or self.options.in_doubt is not InDoubtPolicy.RESUBMIT:
            return False
        return self.reader is None or self.reader.found_task(stored.number) is None

    def _is_here(self, stored: StoredJob) -> bool:
        file = stored.job.file
        is_here = file is not None and (is_address(file) or (self.options.folder / IMAGES / file).is_file())
        return is_here or not self.options.download

    def _refuse(self, count: str, given: InputRow, error: FluxError) -> None:
        self.counts[count] += 1
        self.display.refused(refused_row(given.image, given.name, error), refusal_text(given, error))

    def print(self) -> None:
        """Print the counts."""
        self.display.count_unprinted(are_in_results=False)
        cost, further = self._price_of(self.models), self._price_of(self.further)
        if self.as_json:
            self.display.output.json(self._as_data(cost, cost + further))
            return
        most = self.options.max_credits
        is_bound = most is not None and most < cost + further
        bound = f", of which the run may spend {in_credits(most)}" if is_bound and most is not None else ""
        self.display.note("Dry run: nothing was sent, nothing was changed.")
        self.display.note(f"To submit: {self._need(cost, further)}{bound}.")
        if self.options.checks.skip_textless and self.models:
            self.display.note(SKIPS)
        for name, words in _WORDS.items():
            if self.counts[name]:
                self.display.note(f"{words[0].upper()}{words[1:]}: {self.counts[name]}.")

    def _need(self, cost: float, further: float) -> str:
        """Return how many images need what; where only further attempts are left, what these may cost."""
        if further and not self.models:
            return f"only further attempts, for up to {in_credits(further)} credits"
        by_model = ", ".join(f"{model.value}: {count}" for model, count in self.models.items())
        images = f"{self.models.total()} ({by_model})" if by_model else "0"
        more = f", with all further attempts up to {in_credits(cost + further)}" if further else ""
        return f"{images}, for about {in_credits(cost)} credits{more}"

    def _price_of(self, counts: Counter[AnyModel]) -> float:
        return sum(self.options.expected_prices[model] * count for model, count in counts.items())

    def _as_data(self, cost: float, at_most: float) -> dict[str, Any]:
        return {
            "to_submit": {model.value: count for model, count in self.models.items()},
            "credits": cost,
            "credits_at_most": at_most,
            **{name: self.counts[name] for name in _WORDS},
        }
