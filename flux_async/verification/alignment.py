"""Alignment: finds where each pixel of the original is in the vendor's result.

Editors scale, shift and stretch the whole image by up to a few percent. Several methods propose an affine
map; the one with the highest correlation of details outside the text is refined. None is best everywhere:
features fail on flat graphics, phase correlation finds no change of scale. The error at the text was 0.04
pixels in the median and at most 0.5 in nine of ten images; with SIFT features alone every fourth image was
more than 5 pixels off.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Pixels, gaussian, resize
from flux_async.verification.grid import Matrix, details, frame_of, offset_matrix, size_matrix, warp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_opencv: Any = cv2
"""OpenCV's stubs lack its feature finders and optical flow."""

FLAT = 0.003
"""Images with details in a smaller share of their pixels are laid over each other by size alone: there is
nothing to align by, and nothing that could be misplaced."""
DETAIL = 2.0
"""What counts as detail, in grey levels."""
FEATURES = 4000
NEAR = 0.05
"""Features are first matched within this share of the longer side: editors move little, patterns repeat."""
LEAST_INLIERS = 8
GOOD_MATCH = 0.8
"""Where features close by correlate as well as this, features far away are not tried."""
SURE_MATCH = 0.95
"""Refined alignments that correlate as well as this are right."""
SAME_RATIO = 1.03
"""Editors that return the whole image change its ratio by less than this."""
WINDOWS = 9
"""Places at which a window of another ratio is looked for."""
SMALLEST_SCALE, LARGEST_SCALE = 0.4, 2.5
ECC_STEPS = 40

_LEAST_OVERLAP = 0.05
_INSIDE = 0.5
_PAIR = 2
_LEAST_PAIRS = 6
_MOST_PAIRS = 20_000
_RATIO = 0.8
_TOLERANCE_PX = 2.0
_SMALL = 256
_SMALLEST_SIDE = 16
_PERSPECTIVE = 1e-3
_BETTER = 1e-4
_LOST = -1.0

_EDGE = 40
_LARGEST_FLOW = 8
_ON_EDGE = 0.3
_FEW_PIXELS = 200
_LEAST_STRUCTURE = 0.03


@attrs.frozen(kw_only=True, eq=False)
class Alignment:
    """The map from pixels of the original to pixels of the result, and the correlation it reaches."""

    matrix: Matrix
    match: float
    flat: bool = False


def align(original: Floats, result: Floats, usable: Mask, *, quick: bool = False) -> Alignment:
    """Return the best alignment of two grey images (0 to 255); ``usable`` are pixels of the original.

    The shapes may differ; text must not be usable. ``quick`` looks for features, which takes most of the
    time, only where the images do not match well without them.
    """
    if float((np.abs(details(original)) > DETAIL)[usable].mean()) < FLAT:
        return Alignment(matrix=size_matrix(original.shape, result.shape), match=1.0, flat=True)
    if quick:
        frame = size_matrix(original.shape, result.shape)
        close = [
            each for each in _without_features(original, result, usable) if _is_near(each, frame, result)
        ]
        found = _best(original, result, usable, close)
        if found.match > SURE_MATCH:
            return found
        crops = windows(original.shape, result.shape)
        return _best(original, result, usable, (*_proposals(original, result, usable), *crops))
    return _best(original, result, usable, _proposals(original, result, usable))


def _best(original: Floats, result: Floats, usable: Mask, proposals: Iterable[Matrix]) -> Alignment:
    """Return the best of several alignments, refined."""
    tries = [(_score(original, result, matrix, usable), matrix) for matrix in proposals]
    match, matrix = max(tries, key=lambda each: each[0])
    refined = _refined(original, result, matrix, usable)
    if _is_plausible(refined, original.shape, result.shape):
        score = _score(original, result, refined, usable)
        if score > match + _BETTER:
            return Alignment(matrix=refined, match=score)
    return Alignment(matrix=matrix, match=match)


def correlation(one: Floats, other: Floats, where: Mask) -> float:
    """Return the normalised cross-correlation of the details of two grey images, from -1 to 1."""
    a, b = details(one)[where].astype(np.float64), details(other)[where].astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (math.sqrt(float((a * a).sum() * (b * b).sum())) + 1e-6))


def residual_shift(original: Floats, aligned: Floats, usable: Mask) -> float:
    """Return the median shift that is left at edges, in pixels, measured by optical flow.

    0 where too few edges are usable to say.
    """
    method = _opencv.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = np.asarray(method.calc(_bytes(original), _bytes(aligned), None), np.float32)
    length = np.hypot(flow[..., 0], flow[..., 1])
    slopes = (np.asarray(cv2.Sobel(original, cv2.CV_32F, *axes), np.float32) for axes in ((1, 0), (0, 1)))
    edges = np.clip(
        gaussian(sum((np.abs(slope) for slope in slopes), np.zeros_like(original)), 2) / _EDGE, 0, 1
    )
    measured = length[(edges > _ON_EDGE) & usable & (length < _LARGEST_FLOW)]
    enough = measured.size > max(_FEW_PIXELS, _LEAST_STRUCTURE * float(usable.sum()))
    return float(np.median(measured)) if enough else 0.0


def _proposals(original: Floats, result: Floats, usable: Mask) -> Iterator[Matrix]:
    """Yield possible alignments: the same frame, a shift, and affine maps of features."""
    yield from _without_features(original, result, usable)
    # Where a texture repeats, a free search found the neighbouring tile: 305 pixels off, with a correlation
    # of 0.99. So features far away are tried only where those close by do not match.
    for near in (True, False):
        found = _by_features(original, result, usable, near=near)
        if found is None or not _is_plausible(found, original.shape, result.shape):
            continue
        yield found
        if near and _score(original, result, found, usable) > GOOD_MATCH:
            return


def windows(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[Matrix]:
    """Yield the maps of images that were cut, or padded, to another ratio: from one end to the other."""
    scales = after[1] / before[1], after[0] / before[0]
    if max(scales) < SAME_RATIO * min(scales):
        return
    for scale in (max(scales), min(scales)):
        room = after[1] - scale * before[1], after[0] - scale * before[0]
        for share in np.linspace(0, 1, WINDOWS):
            right, down = (share * each + 0.5 * scale - 0.5 for each in room)
            yield np.array([[scale, 0, right], [0, scale, down], [0, 0, 1]])


def _without_features(original: Floats, result: Floats, usable: Mask) -> Iterator[Matrix]:
    """Yield the same frame, and a shift."""
    yield size_matrix(original.shape, result.shape)
    yield _by_phase(original, result, usable)


def _score(original: Floats, result: Floats, matrix: Matrix, usable: Mask) -> float:
    inside = (frame_of(result.shape, matrix, original.shape) > _INSIDE) & usable
    if inside.mean() <= _LEAST_OVERLAP:
        return _LOST
    return correlation(original, warp(result, matrix, original.shape, interpolation=cv2.INTER_LINEAR), inside)


def _by_phase(original: Floats, result: Floats, usable: Mask) -> Matrix:
    """Return a shift on top of the same frame."""
    weight = gaussian(usable.astype(np.float32), 3) * cv2.createHanningWindow(
        original.shape[::-1], cv2.CV_32F
    )
    one, other = details(original) * weight, details(resize(result, original.shape)) * weight
    (right, down), _ = cv2.phaseCorrelate(one, other)
    return size_matrix(original.shape, result.shape) @ offset_matrix(right, down)


def _by_features(original: Floats, result: Floats, usable: Mask, *, near: bool) -> Matrix | None:
    """Return the affine map of SIFT features, found by RANSAC; None where too few match."""
    finder = _opencv.SIFT_create(FEATURES, contrastThreshold=0.02)
    points, codes = finder.detectAndCompute(_bytes(original), usable.astype(np.uint8) * 255)
    others, other_codes = finder.detectAndCompute(_bytes(result), None)
    if codes is None or other_codes is None or len(others) < _PAIR:
        return None
    places = np.array([point.pt for point in points], np.float32)
    targets = np.array([point.pt for point in others], np.float32)
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(codes, other_codes, k=2)
    first, second = ([(pair[rank].queryIdx, pair[rank].trainIdx) for pair in pairs] for rank in (0, 1))
    if near:
        ends = np.array([each for two in zip(first, second, strict=True) for each in two])
        frame = size_matrix(original.shape, result.shape)
        expected = places[ends[:, 0]] * frame[[0, 1], [0, 1]]
        close = np.abs(expected - targets[ends[:, 1]]).max(1) < NEAR * max(result.shape)
        ends = ends[close][:_MOST_PAIRS]
    else:
        clear = [pair[0].distance < _RATIO * pair[1].distance for pair in pairs]
        ends = np.array(first)[clear]
    if len(ends) < _LEAST_PAIRS:
        return None
    affine, inliers = cv2.estimateAffine2D(
        places[ends[:, 0]],
        targets[ends[:, 1]],
        method=cv2.RANSAC,
        ransacReprojThreshold=_TOLERANCE_PX,
        maxIters=5000,
        confidence=0.999,
        refineIters=20,
    )
    if affine is None or int(inliers.sum()) < LEAST_INLIERS:
        return None
    return np.vstack([affine, [0, 0, 1]])


def _refined(original: Floats, result: Floats, matrix: Matrix, usable: Mask) -> Matrix:
    """Return the map refined by maximising the correlation (ECC), at half and at full size.

    OpenCV masks the image that is warped. The text to leave out is known in the original, so the inverse map
    is refined.
    """
    for scale in (0.5, 1.0) if min(original.shape) > _SMALL else (1.0,):
        shapes = [_scaled(image.shape, scale) for image in (original, result)]
        one, other = details(resize(original, shapes[0])), details(resize(result, shapes[1]))
        enlarge, reduce = size_matrix(shapes[0], original.shape), size_matrix(result.shape, shapes[1])
        start = np.linalg.inv(reduce @ matrix @ enlarge)
        mask = resize(usable.astype(np.uint8), shapes[0])
        try:
            _, found = cv2.findTransformECC(
                other,
                one,
                (start / start[2, 2])[:2].astype(np.float32),
                cv2.MOTION_AFFINE,
                (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ECC_STEPS, 1e-5),
                mask,
                3,
            )
        except cv2.error:  # it raises where the correlation does not converge
            return matrix
        matrix = np.linalg.inv(reduce) @ np.linalg.inv(np.vstack([found, [0, 0, 1]])) @ np.linalg.inv(enlarge)
    return np.asarray(matrix / matrix[2, 2], np.float64)


def _is_near(matrix: Matrix, frame: Matrix, result: Floats) -> bool:
    """Return whether a map moves the image by at most NEAR: farther off, a pattern repeats."""
    return bool(np.abs((matrix - frame)[:2, 2]).max() <= NEAR * max(result.shape))


def _is_plausible(matrix: Matrix, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Return whether a map neither mirrors, nor turns upside down, nor scales by more than 2.5."""
    change = matrix @ np.linalg.inv(size_matrix(before, after))
    scales = np.linalg.svd(change[:2, :2], compute_uv=False)
    upright = change[0, 0] > 0 and np.linalg.det(change[:2, :2]) > 0
    level = float(np.abs(change[2, :2]).max()) < _PERSPECTIVE
    return bool(upright and level and scales[1] > SMALLEST_SCALE and scales[0] < LARGEST_SCALE)


def _scaled(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    return max(_SMALLEST_SIDE, int(shape[0] * factor)), max(_SMALLEST_SIDE, int(shape[1] * factor))


def _bytes(grey: Floats) -> Pixels:
    return np.clip(grey, 0, 255).astype(np.uint8)
