"""Compares the echo in a record with the request that was sent, and finds contradictions.

The echo is ``paramJson``, in the jobs API ``param``, in the names of a stored request. That the vendor always
echoes verbatim is not proven. Rules:

1. The echo has the fields in another order, and perhaps not all of them. A missing field contradicts nothing.
2. Prompt, image and model identify the request. Percent-encoding and white space may differ.
3. A vendor that may translate or embellish a prompt may echo the new one. So image and prompt are compared
   separately: another prompt does not excuse another image.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, unquote

import attrs

from flux_async.api.models_table import ApiName, name_of
from flux_async.errors import TaskMismatch, shown
from flux_async.images import without_query
from flux_async.models import Echo, JobKey, TaskId, TaskRecord

_PROMPT, _IMAGE, _MODEL, _CALLBACK = "prompt", "inputImage", "model", "callBackUrl"
_UNTOUCHED = "!#$%&'()*+,/:;=?@[]~"  # characters of an address that a browser does not escape

T = TypeVar("T")

Subject: TypeAlias = tuple[str | None, str | None]
"""Image and prompt in their normal form."""


@attrs.frozen(kw_only=True)
class Comparison:
    """The echo of a record compared with one submit.

    Attributes:
        is_same: Whether prompt, image and model are those of the submit; None if prompt or image is missing
            and nothing else differs.
        is_same_image: Whether the image is that of the submit; None if it is missing.
        is_verbatim: Whether prompt and image are the same character by character.
        rest_is_same: Whether all other echoed fields are as sent.
        is_other_subject: Whether prompt or image differ.
        is_other_model: Whether the model differs.
        is_reworded: Whether only the prompt differs, and the vendor may rewrite it.
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
        """The result as an :class:`Echo`."""
        if self.is_same is None:
            return Echo.ABSENT
        return Echo.CONFIRMED if self.is_same else Echo.UNRECOGNISED


def compare(echo: Mapping[str, Any] | None, body: str) -> Comparison:
    """Compare a record's ``paramJson`` with the body of a submit."""
    sent: dict[str, Any] = json.loads(body)
    echoed = {name: value for name, value in (echo or {}).items() if value not in (None, "")}
    agree = {name: _agrees(name, echoed, sent) for name in (_PROMPT, _IMAGE, _MODEL)}
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
        is_verbatim=all(echoed.get(name) == sent.get(name) for name in (_PROMPT, _IMAGE)),
        rest_is_same=all(
            echoed[name] == value for name, value in sent.items() if name in echoed and name not in agree
        ),
    )


def is_of_attempt(echo: Mapping[str, Any] | None, body: str, callback_id: str | None = None) -> bool | None:
    """Return whether a record is of this very submit, whose answer was lost; None if it may be or not.

    A callback address that contains ``callback_id`` identifies the submit, whatever the spelling of the rest.
    Without one, all echoed fields must be as sent.
    """
    address = (echo or {}).get(_CALLBACK)
    has_address = callback_id is not None and address is not None
    if has_address and str(callback_id) not in str(address):
        return False
    compared = compare(echo, body)
    return compared.is_same and (has_address or compared.rest_is_same)


def subject_of(fields: Mapping[str, Any]) -> Subject:
    """Return image and prompt of a request, as it was sent or as a record echoes it."""
    image, prompt = fields.get(_IMAGE), fields.get(_PROMPT)
    return _one_image(image) if image else None, _one_prompt(prompt) if prompt else None


def spellings_of(echo: Mapping[str, Any]) -> list[str]:
    """Return how a submit may have spelled the image that a record echoes; without an image, the prompt."""
    if image := echo.get(_IMAGE):
        plain = _one_image(image)
        found = [str(image), plain, quote(plain, safe=_UNTOUCHED, errors="replace")]
    else:
        found = [str(echo[_PROMPT])] if echo.get(_PROMPT) else []
    # JSON may contain half a surrogate pair, which SQLite does not accept.
    return [text.encode("utf-8", "replace").decode() for text in dict.fromkeys(found)]


def mismatch(task_id: TaskId, record: TaskRecord, *, belongs_to: JobKey | None = None) -> TaskMismatch:
    """Return the error for a task whose record shows another request than its submit sent."""
    whose = f"that of job {belongs_to}" if belongs_to is not None else "another request"
    return TaskMismatch(
        f"The API answered the submit with task {task_id}, whose record shows {whose} "
        f"({in_words(record.params)}). "
        "The submit was probably charged, and its own task is not known.",
        refused_task_id=task_id,
        belongs_to=belongs_to,
        record=record,
    )


def in_words(echo: Mapping[str, Any] | None) -> str:
    """Return the echo of a record for a message: the image without its query, prompt and model."""
    image, prompt, model = ((echo or {}).get(name) for name in (_IMAGE, _PROMPT, _MODEL))
    parts = [f"image {shown(without_query(str(image)))}"] if image else []
    parts += [f"prompt {shown(prompt)}"] if prompt else []
    parts += [f"model {shown(model)}"] if model else []
    return ", ".join(parts) or "nothing"


def _agrees(name: str, echo: Mapping[str, Any], sent: Mapping[str, Any]) -> bool | None:
    """Return whether a field is echoed as sent; None if it is missing."""
    if name not in echo:
        return None
    if name not in sent:
        return False
    one = {_PROMPT: _one_prompt, _IMAGE: _one_image}.get(name, name_of)
    return one(echo[name]) == one(sent[name])


def _one_image(url: object) -> str:
    return unquote(str(url))


def _one_prompt(prompt: object) -> str:
    return " ".join(str(prompt).split())


def _may_reword(sent: Mapping[str, Any]) -> bool:
    """Return whether the vendor may translate or embellish the prompt; by default it translates."""
    return sent.get("enableTranslation") is not False or sent.get("promptUpsampling") is True


# --- contradictions -------------------------------------------------------------------------------------

CONFIRMED_ENOUGH = 3
"""Records that echoed the request as sent, after which the account is known to echo verbatim."""

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
    """Return whether a task is certainly not that of its submit.

    Args:
        echo: How its record echoes the request.
        is_anothers: Whether it echoes another request of the caller's, or the image of one.
        is_other_image: Whether it echoes another image than was sent.
        is_reworded: Whether only a prompt differs that the vendor may rewrite.
        confirmed: Number of records of this account that echoed the request as sent.
        confirmed_images: Number of records that echoed the image as sent, whatever the prompt.
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
    """The latest submits of one session: their task ids, images and prompts.

    Attributes:
        confirmed: Number of records of each API that echoed the request as sent, in this session or before.
        confirmed_images: Number of records that echoed the image as sent, whatever the prompt.
        has_warned: Whether a record with an unknown request has been reported.
    """

    confirmed: Counter[ApiName] = attrs.field(factory=Counter)
    confirmed_images: Counter[ApiName] = attrs.field(factory=Counter)
    has_warned: bool = False
    _task_ids: OrderedDict[Hashable, ApiName] = attrs.field(factory=OrderedDict, repr=False)
    _subjects: OrderedDict[Hashable, None] = attrs.field(factory=OrderedDict, repr=False)
    _images: OrderedDict[Hashable, None] = attrs.field(factory=OrderedDict, repr=False)

    def record_submit(self, subject: tuple[str | None, str | None]) -> None:
        """Record the image and the prompt of a submit."""
        _keep(self._subjects, subject, None)
        image, _ = subject
        if image is not None:
            _keep(self._images, image, None)

    def has_sent_image(self, image: str | None) -> bool:
        """Return whether a submit had this image, whatever its prompt."""
        return image in self._images

    def has_sent(self, subject: Hashable) -> bool:
        """Return whether a submit had this image and prompt."""
        return subject in self._subjects

    def is_new(self, task_id: TaskId, api: ApiName) -> bool:
        """Record the task id of a submit, and its API; return False if another submit had it before."""
        is_new = task_id not in self._task_ids
        _keep(self._task_ids, task_id, api)
        return is_new

    def api_of(self, task_id: TaskId) -> ApiName | None:
        """Return the API that a task was submitted to, if that was here and not too long ago."""
        return self._task_ids.get(task_id)


def _keep(log: OrderedDict[Hashable, T], name: Hashable, value: T) -> None:
    log[name] = value
    log.move_to_end(name)
    if len(log) > _MOST_KEPT:
        log.popitem(last=False)
