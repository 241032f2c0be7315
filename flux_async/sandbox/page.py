"""The page of the sandbox: its tasks, newest first, with the image before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from typing import Final

import attrs

from flux_async.sandbox.files import FileBook
from flux_async.sandbox.ledger import Attempt
from flux_async.sandbox.simulator import FAILURES, Account, Flag, Task

_STATES: Final = {
    "GENERATING": ("working", "generating"),
    "SUCCESS": ("good", "done"),
    "CREATE_TASK_FAILED": ("bad", "not created"),
    "GENERATE_FAILED": ("bad", "failed"),
}
PAID_TWICE: Final = "Paid twice"
"""The one figure of the summary that should be nothing."""

_SHOWN_PROMPT: Final = 160
_SHOWN_URL: Final = 120
_DOT: Final = "\N{MIDDLE DOT}"


@attrs.frozen(kw_only=True)
class TaskView:
    """What the page says about one task.

    Attributes:
        image: The address of the picture it edits, if it edits one.
        made_at: When it was made, as a clock shows it.
        seconds: How long it took, or has been running, in vendor seconds.
        price: Credits kept; nothing for one that was refunded.
        faults: The names of what goes wrong with it.
        callbacks: What each delivery of its callback was answered.
        result: The path of the full result while it lives.
        has_before: Whether there is a small picture of its input, `has_after` of its result.
    """

    task_id: str
    kind: str
    prompt: str
    image: str | None
    made_at: str
    model: str
    state: str
    problem: str | None
    seconds: float
    price: float
    polls: int
    faults: Sequence[str]
    callbacks: Sequence[str]
    result: str | None
    has_before: bool
    has_after: bool


def render_page(summary: Mapping[str, str], tasks: Sequence[TaskView], more: str, base_url: str) -> str:
    """Return the whole page."""
    page = _template().replace("@BASE_URL@", escape(base_url))
    return page.replace("@TASKS@", render_tasks(summary, tasks, more))


def render_tasks(summary: Mapping[str, str], tasks: Sequence[TaskView], more: str) -> str:
    """Return the part that changes: the figures and the tasks; `more` says what is not shown."""
    figures = "".join(map(_figure, summary.items()))
    older = f'<p class="older" data-id="older">{escape(more)}</p>' if more else ""
    return f'<dl data-id="figures">{figures}</dl>{"".join(map(_card, tasks))}{older}'


def _figure(entry: tuple[str, str]) -> str:
    name, value = entry
    alarm = ' class="bad"' if name == PAID_TWICE and value != "0" else ""
    return f"<div><dt>{escape(name)}</dt><dd{alarm}>{escape(value)}</dd></div>"


def _card(task: TaskView) -> str:
    css, state = _STATES[task.state]
    problem = f'<p class="problem">{escape(task.problem)}</p>' if task.problem else ""
    image = _image(task.image) if task.image else ""
    credits_ = f"{task.price:g} credits" if task.price else "refunded"
    told = [
        credits_,
        _count(task.polls, "poll"),
        *([f"callback {', '.join(task.callbacks)}"] if task.callbacks else []),
        task.model,
    ]
    faults = "".join(f'<b class="fault">{escape(name)}</b>' for name in task.faults)
    return (
        f'<article data-id="{task.task_id}">{_pictures(task)}'
        f'<div class="words"><p class="badges"><b class="{css}">{state}</b><b>{escape(task.kind)}</b>{faults}'
        f'<time title="made at {task.made_at} UTC">{task.made_at} {_DOT} {task.seconds:.1f} s</time></p>'
        f'<p class="prompt">{escape(_short(task.prompt, _SHOWN_PROMPT))}</p>{image}{problem}'
        f'<p class="small">{escape(f" {_DOT} ".join(told))}</p>'
        f'<p class="small"><code class="id">{task.task_id}</code></p></div></article>'
    )


def _image(url: str) -> str:
    shown = _short(url.partition("://")[2], _SHOWN_URL)
    return f'<p class="image" title="{escape(url)}">{escape(shown)}</p>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}\N{HORIZONTAL ELLIPSIS}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _pictures(task: TaskView) -> str:
    at_work = task.state == "GENERATING"
    if at_work and task.has_before and task.kind != "generation":
        waiting = '<figure class="waiting"><span>at work</span></figure>'
        return f'<div class="pictures">{_picture(task, "before")}{waiting}</div>'
    if not task.has_after:
        word = {"GENERATING": "at work", "SUCCESS": "no picture"}.get(task.state, "no result")
        return f'<div class="pictures none"><span>{word}</span></div>'
    after = _picture(task, "after")
    if task.result:
        after = f'<a href="{escape(task.result)}" title="open the result">{after}</a>'
    if task.kind == "generation":
        return f'<div class="pictures one">{after}</div>'
    return f'<div class="pictures">{_picture(task, "before")}{after}</div>'


def _picture(task: TaskView, side: str) -> str:
    source = f"/__sandbox/thumbnails/{task.task_id}/{side}.jpg"
    label = "made" if task.kind == "generation" else side
    return (
        f'<figure><img src="{source}" alt="{label}" loading="lazy"><figcaption>{label}</figcaption></figure>'
    )


@cache
def _template() -> str:
    return resources.files("flux_async.sandbox").joinpath("page.html").read_text("utf-8")


STATES: Final[dict[str, tuple[Flag, ...]]] = {
    "generating": (Flag.GENERATING,),
    "done": (Flag.SUCCESS,),
    "failed": FAILURES,
}
"""What the page calls the states a reader can ask for."""


def summary(account: Account) -> dict[str, str]:
    """Return the figures above the tasks."""
    ledger = account.ledger
    return {
        "Credits": f"{account.balance:,.2f}".removesuffix(".00"),
        "Spent": f"{ledger.charged - ledger.refunded:,.2f}".removesuffix(".00"),
        "Submits": f"{ledger.submits:,}",
        "Refused": f"{ledger.refused.total():,}",
        "Polls": f"{ledger.polls:,}",
        "Faults": f"{ledger.faults.total():,}",
        "Unknown fields": f"{ledger.unknown_fields.total():,}",
        PAID_TWICE: f"{len(ledger.double_charges):,}",
    }


def task_view(task: Task, now: float, files: FileBook, *, has_before: bool, has_after: bool) -> TaskView:
    """Return what the page shows of a task."""
    failure, result = task.failure, task.result
    return TaskView(
        task_id=task.task_id,
        kind=str(task.order.kind),
        prompt=task.order.prompt,
        image=task.order.input_image,
        made_at=datetime.fromtimestamp(task.created_at, UTC).strftime("%H:%M:%S"),
        model=task.order.model,
        state=task.flag.name,
        problem=failure.message if failure else None,
        seconds=(task.ended_at or now) - task.created_at,
        price=task.order.price - task.refunded,
        polls=task.polls,
        faults=sorted(task.faults),
        callbacks=[_answered(attempt) for attempt in task.callbacks],
        result=result.path if result and files.find(result.path, now) else None,
        has_before=has_before and task.flag in (Flag.GENERATING, Flag.SUCCESS),
        has_after=has_after and task.flag is Flag.SUCCESS,
    )


def matches(task: Task, words: str, state: str) -> bool:
    """Say whether a task is looked for: by words of its picture, prompt, id or faults, and by its state."""
    if state and STATES.get(state) is not None and task.flag not in STATES[state]:
        return False
    sought = (
        f"{task.task_id} {task.order.input_image or ''} {task.order.prompt} {' '.join(task.faults)}".lower()
    )
    return all(word in sought for word in words.lower().split())


def _answered(attempt: Attempt) -> str:
    told = str(attempt.status or "unanswered")
    return told if attempt.fault is None else f"{told} ({attempt.fault.removeprefix('callback-')})"
