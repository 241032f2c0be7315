"""The two PP-OCR networks (one finds text lines, one reads them), run by OpenCV.

The ONNX files travel inside the rapidocr wheel (Apache-2.0). Only the files are used: rapidocr itself is
never imported, and OpenCV 5 runs the networks without a further runtime.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from flux_async.imaging.arrays import Floats, Pixels

DETECTOR_FILE = "PP-OCRv6_det_small.onnx"
RECOGNISER_FILE = "PP-OCRv6_rec_small.onnx"
OLDEST_OPENCV = 5

_METADATA_FIELD = 14
"""Number of ``ModelProto.metadata_props`` in the ONNX schema."""

_LAST_BYTE = 0x80
"""The upper bit of a varint's byte says that more follow."""

_loading = threading.Lock()


class NetworksMissingError(ImportError):
    """The networks, or an OpenCV that can run them, are not installed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: run  pip install 'flux-async[imaging]'  (in a checkout: '.[imaging]')")


class Network:
    """One loaded network. Safe to share between threads: its runs are serialised by a lock."""

    def __init__(self, path: Path) -> None:
        self._net = cv2.dnn.readNetFromONNX(str(path))
        self._busy = threading.Lock()

    def run(self, batch: Floats) -> Floats:
        """Return the network's one output for a batch shaped (n, 3, height, width)."""
        with self._busy:
            self._net.setInput(np.ascontiguousarray(batch))
            return np.array(self._net.forward(), np.float32)


def detector() -> Network:
    """Return the network that finds text lines, loaded at first use."""
    return _load(DETECTOR_FILE)


def recogniser() -> Network:
    """Return the network that reads one text line, loaded at first use."""
    return _load(RECOGNISER_FILE)


@functools.cache
def alphabet() -> tuple[str, ...]:
    """Return what each class of the recogniser stands for; class 0 is CTC's blank, the last one a space."""
    listed = _metadata(network_file(RECOGNISER_FILE).read_bytes())["character"]
    return ("", *listed.split("\n"), " ")


def network_file(name: str) -> Path:
    """Find a network file of the installed rapidocr wheel without importing rapidocr.

    Raises:
        NetworksMissingError: rapidocr is not installed, or this version carries other networks.
    """
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise NetworksMissingError("the wheel that carries the text networks (rapidocr) is not installed")
    path = Path(spec.origin).parent / "models" / name
    if not path.is_file():
        raise NetworksMissingError(f"the installed rapidocr does not carry {name}")
    return path


def as_network_input(picture: Pixels) -> Floats:
    """Turn RGB bytes into what both networks were trained on: BGR from -1 to 1, channels first."""
    scaled = picture[..., ::-1].astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def _load(name: str) -> Network:
    with _loading:
        return _loaded(name)


@functools.cache
def _loaded(name: str) -> Network:
    if int(cv2.__version__.split(".", maxsplit=1)[0]) < OLDEST_OPENCV:
        raise NetworksMissingError(f"OpenCV {cv2.__version__} cannot run the text networks")
    return Network(network_file(name))


def _metadata(model: bytes) -> dict[str, str]:
    """Read the key-value notes of an ONNX file: cv2.dnn does not hand them out.

    An ONNX file is one protobuf message; its top level is walked, everything but the notes is skipped.
    """
    notes = {}
    for number, value in _fields(model):
        if number == _METADATA_FIELD:
            pair = {key: text.decode() for key, text in _fields(value)}
            notes[pair.get(1, "")] = pair.get(2, "")
    return notes


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """List the length-delimited fields (number, bytes) of a protobuf message; the other kinds are skipped."""
    found, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case _:
                length, at = _varint(message, at)
                found.append((key >> 3, message[at : at + length]))
                at += length
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a protobuf varint and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < _LAST_BYTE:
            return value, at
