"""Finds and reads lines of text with RapidOCR.

Both models are part of the rapidocr package (Apache-2.0). They are given to RapidOCR by path, so it never
downloads one. onnxruntime runs them on the CPU.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from flux_async.imaging.arrays import Floats, Pixels, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rapidocr import RapidOCR

DETECTION_MODEL = "PP-OCRv6_det_small.onnx"
RECOGNITION_MODEL = "PP-OCRv6_rec_small.onnx"
SIDE_STEP = 32
"""The detection model takes sides that are multiples of this."""
LONGEST_SIDE = 4096
LEAST_SCORE, CERTAIN_SCORE = 0.5, 0.92
"""Lines with a lower score than the first are dropped; those above the second are text without being read."""
MARGIN = 2.0
"""Boxes are grown by this many pixels of the scaled image.

RapidOCR measures marks between the centres of their outer pixels, which makes its boxes 1.3 pixels too small
on every side. Letters that reach the border of their box are not recognised as ink.
"""
LINE_HEIGHT = 48
"""The recognition model takes lines of this height."""
SHORTEST_LINE, LONGEST_LINE = 8, 1216
"""Lines are scaled to a width within these limits."""

_FEWEST_PIXELS = 2

_COMMON = {
    "Global.use_cls": False,
    "Global.use_preprocess_img": False,
    "Global.use_vertical_padding": False,
    "Global.log_level": "critical",  # documented as the way to switch RapidOCR's own logger off
    # A second thread doubles the CPU time (0.34 s instead of 0.18 s for a detection at 736 pixels):
    # onnxruntime's threads spin while they wait.
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    # Memory is kept for the next image: a detection takes 15 % less CPU time, and less memory at its peak.
    "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
}
DETECTION: dict[str, Any] = {
    "Det.model_path": DETECTION_MODEL,
    "Global.use_det": True,
    "Global.use_rec": False,
    "Det.limit_type": "max",
    "Det.limit_side_len": LONGEST_SIDE,
    "Det.score_mode": "slow",  # the mean over the mark itself: bent lines fill little of their box
    "Det.use_dilation": False,  # it joins lines that are close together
}
RECOGNITION: dict[str, Any] = {
    "Rec.model_path": RECOGNITION_MODEL,
    "Global.use_det": False,
    "Global.use_rec": True,
    "Rec.rec_img_shape": [3, LINE_HEIGHT, LINE_HEIGHT],  # no padding of short lines to 320 pixels
}

_MODEL_PATHS = {"Det.model_path", "Rec.model_path"}


class ModelsMissingError(ImportError):
    """RapidOCR, its models or onnxruntime are not installed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: run  pip install 'flux-async[imaging]'  (in a checkout: '.[imaging]')")


@attrs.frozen(eq=False)
class TextBox:
    """One line of text: its corners clockwise from the top left, as (x, y) in pixels.

    ``certain`` says that the model scores the line with at least ``CERTAIN_SCORE``.
    """

    corners: Floats
    certain: bool


def detect_boxes(image: Pixels, long_side: int) -> tuple[TextBox, ...]:
    """Return the lines of text in an image that is scaled to a long side of ``long_side`` pixels.

    Raises:
        ModelsMissingError: rapidocr, its models or onnxruntime are not installed.
    """
    scale = long_side / max(image.shape[:2])
    height, width = (max(SIDE_STEP, round(side * scale / SIDE_STEP) * SIDE_STEP) for side in image.shape[:2])
    scaled = resize(image, (height, width))
    factor = np.array([image.shape[1] / width, image.shape[0] / height], np.float32)
    found = _detector.run(scaled, box_thresh=LEAST_SCORE)
    if found.boxes is None:
        return ()
    certain = _certain_boxes(scaled, found)
    return tuple(
        TextBox(_grown(corners.astype(np.float32) + np.float32(0.5)) * factor, corners.tobytes() in certain)
        for corners in found.boxes
    )


def _certain_boxes(scaled: Pixels, found: Any) -> set[bytes]:
    """Return the boxes with at least CERTAIN_SCORE.

    RapidOCR 3.10 sorts the boxes and leaves the scores in their former order, so a score does not belong to
    the box of the same index. Where the scores differ, a second detection with a higher limit decides.
    """
    if min(found.scores) < CERTAIN_SCORE:
        if max(found.scores) < CERTAIN_SCORE:
            return set()
        found = _detector.run(scaled, box_thresh=CERTAIN_SCORE)
    return {corners.tobytes() for corners in found.boxes}


def read_line(strip: Pixels) -> tuple[str, float]:
    """Return the text of one horizontal line, and the mean confidence (0 to 1) of its characters.

    Raises:
        ModelsMissingError: rapidocr, its models or onnxruntime are not installed.
    """
    height, width = strip.shape[:2]
    if min(height, width) < _FEWEST_PIXELS:
        return "", 0.0
    scaled = math.ceil(LINE_HEIGHT * width / height)
    shape = (LINE_HEIGHT, min(LONGEST_LINE, max(SHORTEST_LINE, scaled)))
    read = _recogniser.run(resize(strip, shape))
    return str(read.txts[0]), float(read.scores[0])


def model_file(name: str) -> Path:
    """Return the path of a model inside the installed rapidocr package.

    Raises:
        ModelsMissingError: rapidocr is not installed, or this version has other models.
    """
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise ModelsMissingError("rapidocr, which contains the text models, is not installed")
    path = Path(spec.origin).parent / "models" / name
    if not path.is_file():
        raise ModelsMissingError(f"the installed rapidocr does not contain {name}")
    return path


class Engine:
    """One RapidOCR object for one task.

    A RapidOCR object keeps the options of its last call and does not promise to be thread-safe. So each task
    has its own, which is always called with the same arguments and by one thread at a time.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._ocr: Any = None
        self._lock = threading.Lock()

    def run(self, image: Pixels, *, box_thresh: float | None = None) -> Any:
        """Return RapidOCR's output for an RGB image; ``box_thresh`` is the lowest score of a box."""
        bgr = np.ascontiguousarray(image[..., ::-1])
        with self._lock:
            self._ocr = self._ocr or _load(self._options)
            found = self._ocr(bgr, box_thresh=box_thresh)
            # RapidOCR makes its detector with the first call.
            detector: Any = getattr(self._ocr, "text_det", None)
            if hasattr(detector, "session") and not isinstance(detector.session, LastResult):
                detector.session = LastResult(detector.session)
            return found


class LastResult:
    """Calls a model, but not once more with the array that it was called with last.

    The second detection of ``_certain_boxes`` differs only in what becomes of the model's answer.
    """

    def __init__(self, model: Callable[[Floats], Floats]) -> None:
        self._model = model
        self._last: tuple[Floats, Floats] | None = None

    def __call__(self, values: Floats) -> Floats:
        """Return the model's answer."""
        if self._last is None or not np.array_equal(values, self._last[0]):
            self._last = None  # not both results at once
            self._last = values, self._model(values)
        return self._last[1]


def _load(options: Mapping[str, Any]) -> RapidOCR:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ModelsMissingError("onnxruntime, which runs the text models, is not installed")
    params = {**_COMMON, **options}
    for option in _MODEL_PATHS & params.keys():
        params[option] = str(model_file(params[option]))
    from rapidocr import RapidOCR  # noqa: PLC0415 - takes half a second

    return RapidOCR(params=params)


def _grown(corners: Floats) -> Floats:
    """Return a box grown by MARGIN pixels on every side."""
    along, across = corners[1] - corners[0], corners[3] - corners[0]
    along *= MARGIN / max(1.0, float(np.linalg.norm(along)))
    across *= MARGIN / max(1.0, float(np.linalg.norm(across)))
    moves = np.stack([-along - across, along - across, along + across, across - along])
    return np.asarray(corners + moves, np.float32)


_detector = Engine(DETECTION)
_recogniser = Engine(RECOGNITION)
