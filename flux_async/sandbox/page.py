"""The page of the sandbox: its tasks, newest first, with the image before and after."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Final

import attrs

from flux_async.sandbox.files import LinkTable
from flux_async.sandbox.image_pipeline import Thumbnails
from flux_async.sandbox.ledger import Attempt
from flux_async.sandbox.models import Api
from flux_async.sandbox.requests import Kind
from flux_async.sandbox.simulator import FAILURES, Account, Flag, Task

TASKS_ON_PAGE: Final = 60

FILTERS: Final[Mapping[str, tuple[Flag, ...]]] = {
    "generating": (Flag.GENERATING,),
    "done": (Flag.SUCCESS,),
    "failed": FAILURES,
}
"""The states of the filter."""

_BADGES: Final = {
    Flag.GENERATING: '<b class="working">generating</b>',
    Flag.SUCCESS: '<b class="good">done</b>',
    Flag.CREATE_TASK_FAILED: '<b class="bad">not created</b>',
    Flag.GENERATE_FAILED: '<b class="bad">failed</b>',
}
_PAID_TWICE: Final = "Paid twice"
_SHOWN_PROMPT: Final = 160
_SHOWN_URL: Final = 120
_SEPARATOR: Final = " \N{MIDDLE DOT} "


@attrs.frozen(kw_only=True)
class Page:
    """The page at one moment.

    Attributes:
        tasks: All tasks, the newest first.
        words: Words to search for in address, prompt, id and faults; `state` is a key of `FILTERS`, or empty.
    """

    account: Account
    tasks: Iterator[Task]
    links: LinkTable
    thumbnails: Mapping[str, Thumbnails]
    now: float
    speed: float
    words: str = ""
    state: str = ""

    def whole(self, base_url: str) -> str:
        """Return the document."""
        template = resources.files("flux_async.sandbox").joinpath("page.html").read_text("utf-8")
        return template.replace("@BASE_URL@", escape(base_url)).replace("@TASKS@", self.changing_part())

    def changing_part(self) -> str:
        """Return the figures and the tasks."""
        found = (task for task in self.tasks if self._matches(task))
        shown = list(itertools.islice(found, TASKS_ON_PAGE))
        if not (self.words or self.state):
            older = self.account.ledger.accepted - len(shown)
            more = f"and {older:,} older" if older else ""
        elif next(found, None) is not None:
            more = "and older ones"
        else:
            more = "" if shown else "No task is like that."
        figures = "".join(_figure(name, value) for name, value in self._figures().items())
        last = f'<p class="older" data-id="older">{more}</p>' if more else ""
        return f'<dl data-id="figures">{figures}</dl>{"".join(map(self._card, shown))}{last}'

    def _matches(self, task: Task) -> bool:
        if task.flag not in FILTERS.get(self.state, tuple(Flag)):
            return False
        request = task.request
        named = f"{task.task_id} {request.model} {request.input_image or ''} {request.prompt}"
        text = f"{named} {' '.join(task.faults)}".lower()
        return all(word in text for word in self.words.lower().split())

    def _figures(self) -> dict[str, str]:
        ledger = self.account.ledger
        return {
            "Credits": f"{self.account.balance:,.2f}".removesuffix(".00"),
            "Spent": f"{ledger.charged - ledger.refunded:,.2f}".removesuffix(".00"),
            "Submits": f"{ledger.submits:,}",
            "Refused": f"{ledger.refused.total():,}",
            "Polls": f"{ledger.polls:,}",
            "Faults": f"{ledger.faults.total():,}",
            "Unknown fields": f"{ledger.unknown_fields.total():,}",
            _PAID_TWICE: f"{len(ledger.double_charges):,}",
            "Clock": f"{self.speed:g}\N{MULTIPLICATION SIGN}",
        }

    def _card(self, task: Task) -> str:
        request, failure = task.request, task.failure
        facts = [
            f"{task.consumed:g} credits" if task.consumed else "refunded",
            f"{task.polls} poll{'' if task.polls == 1 else 's'}",
            *([f"callback {', '.join(map(_answer, task.callbacks))}"] if task.callbacks else []),
            request.model,
            *(["jobs"] if request.api is Api.JOBS else []),
        ]
        problem = f'<p class="problem">{escape(failure.message)}</p>' if failure else ""
        faults = "".join(f'<b class="fault">{escape(name)}</b>' for name in sorted(task.faults))
        created = datetime.fromtimestamp(task.created_at, UTC).strftime("%H:%M:%S")
        seconds = (task.ended_at or self.now) - task.created_at
        return (
            f'<article data-id="{task.task_id}">{self._images(task)}'
            f'<div class="words"><p class="badges">{_BADGES[task.flag]}<b>{request.kind}</b>{faults}'
            f'<time title="created at {created} UTC">{created}{_SEPARATOR}{seconds:.1f} s</time></p>'
            f'<p class="prompt">{escape(_short(request.prompt, _SHOWN_PROMPT))}</p>'
            f"{_address(request.input_image) if request.input_image else ''}"
            f"{problem}"
            f'<p class="small">{escape(_SEPARATOR.join(facts))}</p>'
            f'<p class="small"><code class="id">{task.task_id}</code></p></div></article>'
        )

    def _images(self, task: Task) -> str:
        drawn, is_generation = self.thumbnails.get(task.task_id), task.request.kind is Kind.GENERATION
        has_before = drawn is not None and drawn.before.is_file() and not is_generation
        if task.flag is Flag.GENERATING and has_before:
            working = '<figure class="waiting"><span>in progress</span></figure>'
            return f'<div class="images">{_thumbnail(task, "before")}{working}</div>'
        if drawn is None or task.flag is not Flag.SUCCESS or not drawn.after.is_file():
            word = {Flag.GENERATING: "in progress", Flag.SUCCESS: "no image"}.get(task.flag, "no result")
            return f'<div class="images none"><span>{word}</span></div>'
        after = _thumbnail(task, "after")
        if task.result and self.links.find(task.result.path, self.now):
            after = f'<a href="{escape(task.result.path)}" title="open the result">{after}</a>'
        if is_generation:
            return f'<div class="images one">{after}</div>'
        return f'<div class="images">{_thumbnail(task, "before")}{after}</div>'


def _figure(name: str, value: str) -> str:
    alarm = ' class="bad"' if name == _PAID_TWICE and value != "0" else ""
    return f"<div><dt>{name}</dt><dd{alarm}>{value}</dd></div>"


def _answer(attempt: Attempt) -> str:
    status = str(attempt.status or "unanswered")
    return status if attempt.fault is None else f"{status} ({attempt.fault.removeprefix('callback-')})"


def _address(url: str) -> str:
    shown = _short(url.partition("://")[2], _SHOWN_URL)
    return f'<p class="image" title="{escape(url)}">{escape(shown)}</p>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}\N{HORIZONTAL ELLIPSIS}"


def _thumbnail(task: Task, side: str) -> str:
    source = f"/__sandbox/thumbnails/{task.task_id}/{side}.jpg"
    label = "made" if task.request.kind is Kind.GENERATION else side
    return (
        f'<figure><img src="{source}" alt="{label}" loading="lazy"><figcaption>{label}</figcaption></figure>'
    )
