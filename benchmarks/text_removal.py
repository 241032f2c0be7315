"""How well text is removed, measured on the samples whose clean originals are known.

    python benchmarks/text_removal.py [--long] [--quality fast good] [--fill hybrid ...] [--sample NAME ...]

The short form takes a few samples with the defaults of the package, the long one everything. One table per
quality and fill. All figures are measured when this runs:

left      letters and digits the recogniser still reads where text was (of those it read before)
psnr      peak signal to noise ratio against the clean image, in and right around the text, in decibels
ssim      structural similarity against the clean image, the same place
damage    share of the pixels far from any text that changed visibly, in percent
seconds   wall time and processor time
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import attrs
import cv2
import numpy as np

from flux_async.imaging import Fill, Mask, Pixels, Quality, read_text, remove_text
from flux_async.sandbox.samples import Sample, draw_sample, sample_names
from harness.report import introduce, parser

FEW = 3
VISIBLE = 12
"""A change of this many levels (of 255) in any channel counts as visible."""
FAR = 20
"""Farther than this many pixels from text is "outside"."""


@attrs.frozen(kw_only=True)
class Figures:
    """What was measured on one sample."""

    left: int
    letters: int
    psnr: float
    ssim: float
    damage: float
    wall: float
    processor: float


def main() -> None:
    """Measure and print."""
    options = _options()
    every = options.long
    qualities = options.quality or ([kind.value for kind in Quality] if every else ["fast"])
    fills = options.fill or ([kind.value for kind in Fill] if every else ["hybrid"])
    samples = options.sample or list(sample_names())[: None if every else FEW]
    introduce(
        f"{len(samples)} samples, once each", ("opencv-python-headless", "numpy", "rapidocr", "onnxruntime")
    )
    for quality in qualities:
        for fill in fills:
            print(f"\nquality {quality}, fill {fill}")
            print(f"{'':20}{'left':>9}{'psnr':>7}{'ssim':>7}{'damage':>9}{'wall':>8}{'cpu':>7}")
            rows = [_measure(name, Quality(quality), Fill(fill)) for name in samples]
            _print_mean(rows)


def _options() -> argparse.Namespace:
    options = parser(
        __doc__,
        short=f"the first {FEW} samples, quality fast, fill hybrid",
        long="every sample, quality and fill: minutes",
    )
    options.add_argument("--quality", nargs="+", choices=[kind.value for kind in Quality])
    options.add_argument("--fill", nargs="+", choices=[kind.value for kind in Fill])
    options.add_argument("--sample", nargs="+", metavar="NAME")
    return options.parse_args()


def _measure(name: str, quality: Quality, fill: Fill) -> Figures:
    sample = draw_sample(name)
    wall, processor = time.perf_counter(), time.process_time()
    result = remove_text(sample.image, quality=quality, fill=fill).image
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    figures = _compare(sample, result, wall, processor)
    _print_row(name, figures)
    return figures


def _compare(sample: Sample, result: Pixels, wall: float, processor: float) -> Figures:
    text = _text(sample)
    near = _grown(text, 3)
    error = float(((result.astype(np.float32) - sample.clean)[near] ** 2).mean())
    changed = np.abs(result.astype(np.int16) - sample.image).max(2) > VISIBLE
    before, unrelated = _letters_before(sample.name)
    return Figures(
        left=max(0, _letters(result, text) - unrelated),
        letters=max(0, before - unrelated),
        psnr=float(10 * np.log10(255**2 / max(error, 0.05))),
        ssim=float(_similarity(result, sample.clean)[near].mean()),
        damage=float(changed[~_grown(text, FAR)].mean()),
        wall=wall,
        processor=processor,
    )


def _text(sample: Sample) -> Mask:
    return np.abs(sample.image.astype(np.int16) - sample.clean).max(2) > 6


@functools.cache
def _letters_before(name: str) -> tuple[int, int]:
    """Count what is read before: in the sample, and (by mistake) in its clean original."""
    sample = draw_sample(name)
    return _letters(sample.image, _text(sample)), _letters(sample.clean, _text(sample))


def _letters(image: Pixels, text: Mask) -> int:
    """Count the letters and digits read in lines that lie mostly where text is."""
    zone = _grown(text, 14)
    return sum(
        line.letters
        for line in read_text(image, quality=Quality.GOOD, least_confidence=0.6)
        if zone[line.region.window.slices][line.region.mask].mean() >= 0.4
    )


def _grown(mask: Mask, pixels: int) -> Mask:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc), np.bool_)


def _similarity(one: Pixels, other: Pixels) -> np.ndarray:
    """Return the structural similarity of every pixel's surroundings (7 x 7, all channels)."""
    a, b = one.astype(np.float64), other.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (7, 7))

    spread_a, spread_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    together = mean(a * b) - mean(a) * mean(b)
    light, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean(a) * mean(b) + light) * (2 * together + contrast)
    below = (mean(a) ** 2 + mean(b) ** 2 + light) * (spread_a + spread_b + contrast)
    return (above / below).mean(2)


def _print_row(name: str, row: Figures) -> None:
    left = f"{row.left}/{row.letters}"
    print(
        f"{name:20}{left:>9}{row.psnr:7.1f}{row.ssim:7.2f}{row.damage:9.2%}{row.wall:7.2f}s{row.processor:6.2f}s",
        flush=True,
    )


def _print_mean(rows: list[Figures]) -> None:
    mean = {
        field: statistics.fmean(getattr(row, field) for row in rows)
        for field in ("psnr", "ssim", "damage", "wall", "processor")
    }
    total = Figures(left=sum(row.left for row in rows), letters=sum(row.letters for row in rows), **mean)
    _print_row("all (sum, mean)", total)


if __name__ == "__main__":
    main()
