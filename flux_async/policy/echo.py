"""When a record that does not show the request is a contradiction, and what one session has sent so far."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import attrs

from flux_async.models import Echo, TaskId

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
