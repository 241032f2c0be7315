"""Compares ``paramJson`` of a record with the request that was sent, and decides when it is a contradiction.

Rules (``paramJson`` in the API page; that the vendor always echoes verbatim is proven nowhere):

1. The fields that were sent come back reordered, and perhaps not all of them. What is not shown contradicts
   nothing.
2. Prompt, image and model say which request it is. Percent-encoding and white space may be respelled.
3. A vendor that may translate or embellish a prompt may show the new one. So image and prompt are judged
   apart: what the prompt says does not excuse another image.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

import attrs

from flux_async.errors import TaskMismatch, shown
from flux_async.models import Echo, JobKey, TaskId, TaskRecord, without_query

_PROMPT, _IMAGE, _MODEL, _CALLBACK = "prompt", "inputImage", "model", "callBackUrl"
_UNTOUCHED = "!#$%&'()*+,/:;=?@[]~"  # what a browser leaves as it is in an address

Subject: TypeAlias = tuple[str | None, str | None]
"""Image and prompt, in one spelling."""


@attrs.frozen(kw_only=True)
class Comparison:
    """What a record shows, against one submit.

    Attributes:
        is_same: Whether prompt, image and model are those of the submit; None where prompt or image is not
            shown, and nothing else differs.
        is_same_image: Whether the image is that of the submit; None where none is shown.
        is_verbatim: Whether prompt and image are, character by character.
        rest_is_same: Whether all other fields that are shown are as they were sent.
        is_other_subject: Whether prompt or image differ.
        is_other_model: Whether the model differs.
        is_reworded: Whether only the prompt differs, of a request whose prompt the vendor may rewrite.
    """

    is_same: bool | None
    is_same_image: bool | None = None
    is_verbatim: bool = False
    rest_is_same: bool = False
    is_other_subject: bool = False
    is_other_model: bool = False
    is_reworded: bool = False

    @property
    def echo(self) -> Echo:
        """The same in one word."""
        if self.is_same is None:
            return Echo.ABSENT
        return Echo.CONFIRMED if self.is_same else Echo.UNRECOGNISED


def compare(told: Mapping[str, Any] | None, body: str) -> Comparison:
    """Compare a record's ``paramJson`` with the body of a submit."""
    sent: dict[str, Any] = json.loads(body)
    shown_here = {name: value for name, value in (told or {}).items() if value not in (None, "")}
    agree = {name: _agrees(name, shown_here, sent) for name in (_PROMPT, _IMAGE, _MODEL)}
    differing, image = [name for name, same in agree.items() if same is False], agree[_IMAGE]
    if differing:
        return Comparison(
            is_same=False,
            is_same_image=image,
            is_other_subject=differing != [_MODEL],
            is_other_model=_MODEL in differing,
            is_reworded=differing == [_PROMPT] and bool(image) and _may_reword(sent),
        )
    if agree[_PROMPT] is None or (_IMAGE in sent and image is None):
        return Comparison(is_same=None, is_same_image=image)
    return Comparison(
        is_same=True,
        is_same_image=image,
        is_verbatim=all(shown_here.get(name) == sent.get(name) for name in (_PROMPT, _IMAGE)),
        rest_is_same=all(
            shown_here[name] == value
            for name, value in sent.items()
            if name in shown_here and name not in agree
        ),
    )


def is_of_attempt(told: Mapping[str, Any] | None, body: str, callback_id: str | None = None) -> bool | None:
    """Return whether a record is of this very submit: is this the task whose answer was lost?

    An address to call that holds ``callback_id`` can be of no other submit, however the rest is spelled.
    Without one, all that is shown must be as it was sent.

    Returns:
        None where prompt or image is not shown, so that it may be ours or not.
    """
    called = (told or {}).get(_CALLBACK)
    is_called = callback_id is not None and called is not None
    if is_called and str(callback_id) not in str(called):
        return False
    seen = compare(told, body)
    return seen.is_same and (is_called or seen.rest_is_same)


def subject_of(fields: Mapping[str, Any]) -> Subject:
    """Return what a request is about, as it was sent or as a record shows it."""
    image, prompt = fields.get(_IMAGE), fields.get(_PROMPT)
    return _one_image(image) if image else None, _one_prompt(prompt) if prompt else None


def spellings_of(told: Mapping[str, Any]) -> list[str]:
    """Return how a submit may have spelled the image that a record shows, or its prompt where it has none."""
    if image := told.get(_IMAGE):
        plain = _one_image(image)
        found = [str(image), plain, quote(plain, safe=_UNTOUCHED, errors="replace")]
    else:
        found = [str(told[_PROMPT])] if told.get(_PROMPT) else []
    # JSON may hold half a surrogate pair, which SQLite does not take.
    return [text.encode("utf-8", "replace").decode() for text in dict.fromkeys(found)]


def mismatch(task_id: TaskId, record: TaskRecord, *, belongs_to: JobKey | None = None) -> TaskMismatch:
    """Return the error for a task whose record shows another request than its submit sent."""
    whose = f"that of job {belongs_to}" if belongs_to is not None else "another request"
    told = in_words(record.params)
    return TaskMismatch(
        f"The API answered the submit with task {task_id}, whose record shows {whose} ({told}). "
        "The submit was probably charged, and its own task is not known.",
        refused_task_id=task_id,
        belongs_to=belongs_to,
        record=record,
    )


def in_words(told: Mapping[str, Any] | None) -> str:
    """Return what a record shows of its request, for a message: the image without its query, the prompt."""
    told = told or {}
    image, prompt, model = (told.get(name) for name in (_IMAGE, _PROMPT, _MODEL))
    parts = [f"image {shown(without_query(str(image)))}"] if image else []
    parts += [f"prompt {shown(prompt)}"] if prompt else []
    parts += [f"model {shown(model)}"] if model else []
    return ", ".join(parts) or "nothing"


def _agrees(name: str, told: Mapping[str, Any], sent: Mapping[str, Any]) -> bool | None:
    """Return whether a field is shown as it was sent, or None where it is not shown."""
    if name not in told:
        return None
    if name not in sent:
        return False
    one = {_PROMPT: _one_prompt, _IMAGE: _one_image}.get(name, str)
    return one(told[name]) == one(sent[name])


def _one_image(url: object) -> str:
    return unquote(str(url))


def _one_prompt(prompt: object) -> str:
    return " ".join(str(prompt).split())


def _may_reword(sent: Mapping[str, Any]) -> bool:
    """Return whether the vendor may translate or embellish the prompt; left unset, it translates."""
    return sent.get("enableTranslation") is not False or sent.get("promptUpsampling") is True


# --- contradictions -------------------------------------------------------------------------------------

CONFIRMED_ENOUGH = 3
"""Records that showed the request as it was sent: from then on the account is known to echo verbatim."""

_MOST_KEPT = 10_000


def is_contradiction(
    echo: Echo,
    *,
    is_anothers: bool,
    is_other_image: bool,
    is_reworded: bool,
    confirmed: int,
    confirmed_images: int,
) -> bool:
    """Return whether a task is not the one that was asked for.

    Args:
        echo: What its record shows of the request.
        is_anothers: Whether it shows another request of the caller's, or the image of one.
        is_other_image: Whether it shows another image than was sent.
        is_reworded: Whether only a prompt differs that the vendor may rewrite.
        confirmed: How many records of this account have shown the request as it was sent.
        confirmed_images: How many have shown the image as it was sent, whatever the prompt.
    """
    if is_anothers:
        return True
    if echo is not Echo.UNRECOGNISED:
        return False
    if is_other_image:
        return confirmed_images >= CONFIRMED_ENOUGH
    return not is_reworded and confirmed >= CONFIRMED_ENOUGH


@attrs.define
class SubmitLog:
    """The latest submits of one session: their task ids, and what they were about.

    Attributes:
        confirmed: Records that showed the request as it was sent, in this session or before.
        confirmed_images: Records that showed the image as it was sent, whatever the prompt.
        has_warned: Whether a record that shows an unknown request has been reported.
    """

    confirmed: int = 0
    confirmed_images: int = 0
    has_warned: bool = False
    _task_ids: OrderedDict[Hashable, None] = attrs.field(factory=OrderedDict, repr=False)
    _subjects: OrderedDict[Hashable, None] = attrs.field(factory=OrderedDict, repr=False)
    _images: OrderedDict[Hashable, None] = attrs.field(factory=OrderedDict, repr=False)

    def sends(self, subject: tuple[str | None, str | None]) -> None:
        """Note the image and the prompt of a submit."""
        _keep(self._subjects, subject)
        image, _ = subject
        if image is not None:
            _keep(self._images, image)

    def has_sent_image(self, image: str | None) -> bool:
        """Return whether a submit was about this image, whatever its prompt."""
        return image in self._images

    def has_sent(self, subject: Hashable) -> bool:
        """Return whether a submit was about this."""
        return subject in self._subjects

    def is_new(self, task_id: TaskId) -> bool:
        """Note the id that a submit was answered with; False where another submit had it before."""
        is_new = task_id not in self._task_ids
        _keep(self._task_ids, task_id)
        return is_new


def _keep(log: OrderedDict[Hashable, None], value: Hashable) -> None:
    log[value] = None
    log.move_to_end(value)
    if len(log) > _MOST_KEPT:
        log.popitem(last=False)
