"""The cases of the verify benchmark: results that are clean, have text left, are damaged, or are cut.

The limits of ``verify`` were set on ``TUNING``. The benchmark reports on other scenes: half of its cases are
drawn like those, with other grounds and words; the others are the photographs and fonts of
``HELD_OUT_SCENES``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Mask, Pixels, lab
from flux_async.sandbox.samples import sample_names
from harness.preserve_cases import HELD_OUT_SCENES, SCENES, TUNING_PHOTOS, Spec, draw_scene, encode, make_case
from harness.simulated_editor import Edit, edit_image

_SCENES = [*sample_names(), *(name for name in SCENES if name not in {"no-text", "logo-alpha"})]
TUNING, REPORTED = [*_SCENES[::2], *TUNING_PHOTOS], _SCENES[1::2]
COUNTS = {"clean": 30, "text_left": 20, "damaged": 20, "cropped": 10}
"""Cases of each truth in each half."""
_KINDS: dict[str, Sequence[str]] = {
    "clean": ("usual", "far", "invented"),
    "text_left": ("all", "lines", "half", "lines", "faint"),
    "damaged": ("patch", "patch", "photo", "patch", "restyle", "patch", "texture"),
    "cropped": ("16:9", "zoom", "16:9 low", "pad"),
}
_USABLE_SHARE = 0.85
_VISIBLE = 14
_TRIES = 400

# Drawing a scene takes longer than anything else here, and its cases follow each other.
cached_scene = functools.lru_cache(2)(draw_scene)


@attrs.frozen(kw_only=True)
class Plan:
    """One case before it is drawn: the scene, the verdict that is right, and what the editor did."""

    scene: str
    truth: str
    kind: str
    number: int

    @property
    def held_out(self) -> bool:
        """Whether it is a photograph and a font of the held-out half."""
        return self.scene in HELD_OUT_SCENES

    @property
    def name(self) -> str:
        """Scene and what the editor did."""
        return f"{self.scene} {self.truth} {self.kind}"


@attrs.frozen(kw_only=True, eq=False)
class Pair:
    """An original and its result, as files."""

    original: bytes
    result: bytes


def plans(scenes: Sequence[str]) -> Iterator[Plan]:
    """Yield the cases of one half, those of a scene together."""
    made = []
    for truth, count in COUNTS.items():
        for number in range(count):
            kinds = _KINDS[truth]
            scene = scenes[(number + len(truth)) % len(scenes)]
            made.append(Plan(scene=scene, truth=truth, kind=kinds[number % len(kinds)], number=number))
    yield from sorted(made, key=lambda plan: scenes.index(plan.scene))


def make_pair(plan: Plan, seed: int) -> Pair:
    """Return the files of a case; the same numbers give the same files."""
    clean, drawn = cached_scene(plan.scene)
    file = "jpeg" if plan.number % 2 else "png"
    if plan.truth == "cropped":
        crop = _visible_crop(plan.kind, clean.shape[:2])
        case = make_case(Spec(scene=plan.scene, file=file, edit=Edit(crop=crop)), seed, plan.number)
        return Pair(original=case.original, result=case.result)
    if plan.kind in {"photo", "restyle", "texture"}:
        return _other_pair(plan, file, plan.kind, seed)
    rng = np.random.default_rng([seed, plan.number, len(plan.truth)])
    text = np.abs(drawn.astype(int) - clean).max(2) > 6
    content = clean
    if plan.truth == "text_left":
        content = keep_text(drawn, clean, text, plan.kind, rng)
    elif plan.truth == "damaged":
        found = patched(clean, text, rng)
        if found is None:
            return _other_pair(plan, file, "photo", seed)
        content = found
    edit = Edit(
        preset=bool(rng.random() < 0.7),
        move=0.02 if plan.kind == "far" else 0.012,
        invent=plan.kind == "invented",
    )
    return Pair(original=encode(drawn, file, clean), result=edit_image(drawn, content, edit, rng).file)


def _other_pair(plan: Plan, file: str, other: str, seed: int) -> Pair:
    """Return a pair whose result shows something else."""
    case = make_case(Spec(scene=plan.scene, file=file, other=other), seed, plan.number)
    return Pair(original=case.original, result=case.result)


def keep_text(drawn: Pixels, clean: Pixels, text: Mask, kind: str, rng: np.random.Generator) -> Pixels:
    """Return the clean image with some of its text: "all", the right "half", some "lines", or all "faint"."""
    if kind == "faint":
        return np.clip(clean + 0.45 * (drawn.astype(np.float32) - clean), 0, 255).astype(np.uint8)
    keep = np.ones_like(text)
    if kind == "half":
        columns = np.nonzero(text)[1]
        keep[:, : (columns.min() + columns.max()) // 2] = False
    if kind == "lines":
        keep = _some_lines(text, rng)
    near = cv2.dilate((keep & text).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.where(near[..., None], drawn, clean)


def _some_lines(text: Mask, rng: np.random.Generator) -> Mask:
    """Return lines or words with at least 15 % of the text, chosen at random."""
    reach = max(3, max(text.shape) // 70) | 1
    joined = cv2.dilate(text.astype(np.uint8), np.ones((reach, 2 * reach + 1), np.uint8))
    _, labels = cv2.connectedComponents(joined)
    areas = np.bincount(labels[text], minlength=labels.max() + 1)
    large = np.flatnonzero(areas > 0.03 * text.sum())
    order = rng.permutation(large[large > 0])
    enough = int(np.searchsorted(np.cumsum(areas[order]), 0.15 * text.sum())) + 1
    return np.isin(labels, order[:enough])


def patched(clean: Pixels, text: Mask, rng: np.random.Generator) -> Pixels | None:
    """Return the image with one place, away from the text, that visibly shows something else.

    None where text is everywhere.
    """
    height, width = text.shape
    zone = cv2.dilate(text.astype(np.uint8), np.ones((2 * int(0.04 * min(text.shape)) + 1,) * 2)) > 0
    for _ in range(_TRIES):
        side = int(rng.uniform(0.1, 0.22) * min(text.shape))
        top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        window = slice(top, top + side), slice(left, left + side)
        if zone[window].any():
            continue
        before = clean[window]
        after = _patch(clean, before, rng)
        difference = cv2.GaussianBlur(lab(after) - lab(before), (0, 0), min(text.shape) / 300)
        if (np.linalg.norm(difference, axis=2) > _VISIBLE).mean() > 0.3:
            changed = clean.copy()
            changed[window] = after
            return changed
    return None


def _patch(clean: Pixels, before: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a part of the image with a disc or a square of something else: a colour, blur, another part."""
    side = len(before)
    top, left = (int(rng.integers(0, room - side)) for room in clean.shape[:2])
    makers: list[Callable[[], np.ndarray]] = [
        lambda: np.broadcast_to(rng.uniform(30, 230, 3), before.shape),
        lambda: cv2.GaussianBlur(before.astype(np.float32), (0, 0), side / 5) * 0.85,
        lambda: clean[top : top + side, left : left + side],
        lambda: before[::-1, ::-1],
    ]
    shape = np.zeros((side, side), np.float32)
    if rng.random() < 0.5:
        cv2.circle(shape, (side // 2, side // 2), int(side * 0.46), (1,), -1)
    else:
        shape[side // 10 : side - side // 10, side // 10 : side - side // 10] = 1
    share = cv2.GaussianBlur(shape, (0, 0), max(1.0, min(clean.shape[:2]) / 400))[..., None]
    mixed = before * (1 - share) + makers[int(rng.integers(len(makers)))]() * share
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _visible_crop(kind: str, shape: tuple[int, ...]) -> str:
    """Return the way of cutting, or "zoom" where the ratio is 16:9 already, so that nothing would be cut."""
    ratio = shape[1] / shape[0] / (16 / 9)
    return "zoom" if kind != "zoom" and ratio > _USABLE_SHARE else kind
