"""Draws the page of the sandbox: its tasks, newest first, with the picture before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Final

import attrs

_STATES: Final = {
    "GENERATING": ("working", "generating"),
    "SUCCESS": ("good", "done"),
    "CREATE_TASK_FAILED": ("bad", "not created"),
    "GENERATE_FAILED": ("bad", "failed"),
}
_SHOWN_PROMPT: Final = 160
_DOT: Final = "\N{MIDDLE DOT}"


@attrs.frozen(kw_only=True)
class TaskView:
    """What the page says about one task.

    Attributes:
        seconds: How long it took, or has been running, in vendor seconds.
        price: Credits kept; nothing for a failed task.
        callbacks: Deliveries of its callback attempted.
        result: The path of the full result while it lives.
        has_thumbnails: Whether there are small pictures of it.
    """

    task_id: str
    kind: str
    prompt: str
    model: str
    state: str
    problem: str | None
    seconds: float
    price: float
    polls: int
    callbacks: int
    result: str | None
    has_thumbnails: bool


def render_page(summary: Mapping[str, str], tasks: Sequence[TaskView], more: int, base_url: str) -> str:
    """Return the whole page."""
    page = _template().replace("@BASE_URL@", escape(base_url))
    return page.replace("@TASKS@", render_tasks(summary, tasks, more))


def render_tasks(summary: Mapping[str, str], tasks: Sequence[TaskView], more: int) -> str:
    """Return the part that changes: the figures and the tasks; `more` older ones are not shown."""
    figures = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in summary.items()
    )
    older = f'<p class="older" data-id="older">and {more:,} older</p>' if more else ""
    return f'<dl data-id="figures">{figures}</dl>{"".join(map(_card, tasks))}{older}'


def _card(task: TaskView) -> str:
    css, state = _STATES[task.state]
    prompt = (
        task.prompt
        if len(task.prompt) <= _SHOWN_PROMPT
        else f"{task.prompt[:_SHOWN_PROMPT]}\N{HORIZONTAL ELLIPSIS}"
    )
    problem = f'<p class="problem">{escape(task.problem)}</p>' if task.problem else ""
    credits_ = "refunded" if task.problem else f"{task.price:g} credits"
    called = f" {_DOT} {_count(task.callbacks, 'callback')}" if task.callbacks else ""
    return (
        f'<article data-id="{task.task_id}">{_pictures(task)}'
        f'<div class="words"><p class="badges"><b class="{css}">{state}</b><b>{escape(task.kind)}</b>'
        f"<time>{task.seconds:.1f} s</time></p>"
        f'<p class="prompt">{escape(prompt)}</p>{problem}'
        f'<p class="small">{credits_} {_DOT} {_count(task.polls, "poll")}{called} {_DOT} {escape(task.model)}'
        f" {_DOT} <code>{task.task_id[:8]}</code></p></div></article>"
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _pictures(task: TaskView) -> str:
    if not task.has_thumbnails:
        word = {"GENERATING": "in the darkroom", "SUCCESS": "no picture"}.get(task.state, "no result")
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
