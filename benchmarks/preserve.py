"""How close composed images are to the clean originals, and whether bad results are refused.

    python benchmarks/preserve.py [--long] [--seed N] [--case WORDS ...] [--picture FILE.png]

The results are simulated. The short form takes a few cases, the long one all: 79 on the images on which the
limits of ``preserve`` were set (with fresh random edits), and 12 on photographs and fonts that were never
used for that. Beside it, on the same cases: the result resized, and a merge by thresholded difference without
alignment, as image editors' plug-ins do it. Measured inside the text area against the known clean image:

psnr      peak signal to noise ratio, in decibels
ssim      structural similarity
exact     share of unchanged pixels outside the replaced area (for the others: 20 pixels away from text)
error     90 % of the text's pixels are aligned to this many pixels of the result
missed    share of the text's visible pixels that were not replaced
seam      step across the border of the replaced area, in grey levels, beyond that of the clean image, saved
          as the original is; the limit is for the worst image
seconds   wall time, and processor time
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import cv2
import numpy as np
from PIL import Image, ImageOps
from skimage.metrics import structural_similarity

from flux_async import Preserved, PreserveRefusal, preserve
from flux_async.imaging import read_text
from flux_async.imaging.arrays import Mask, Pixels
from flux_async.sandbox.samples import draw_sample
from harness.preserve_cases import HELD_OUT, SPECS, Case, Spec, encode, make_case
from harness.preserve_sheet import draw_sheet, upright_hole
from harness.report import exit_code, introduce, parser

SEED = 20261130
FEW = ("chinese-banner.png", "market-poster.cmyk", "tiny-gradient.png", "cat-meme.png left=all")
SHOWN = 6
FAR = 20


@attrs.frozen(kw_only=True)
class Likeness:
    """One image against the clean one: inside the text area, and how much outside is unchanged."""

    psnr: float
    ssim: float
    exact: float


@attrs.frozen(kw_only=True)
class Row:
    """What was measured on one case; all but the first five only if it was composed."""

    name: str
    truth: str
    held_out: bool
    megapixels: float
    refusal: PreserveRefusal | None
    wall: float
    cpu: float
    invented: bool = False
    kept: bool = False
    composed: Likeness | None = None
    resized: Likeness | None = None
    merged: Likeness | None = None
    error: float = 0.0
    missed: float = 0.0
    seam: float = 0.0
    replaced: float = 0.0


def main() -> int:
    """Measure, print, and return 1 where the long form misses a limit."""
    options = _options()
    introduce(
        f"seed {options.seed}, one round", ("opencv-python-headless", "numpy", "rapidocr", "onnxruntime")
    )
    chosen = _chosen(options)
    read_text(draw_sample("chinese-banner").image)  # loads the text models
    rows, shown = [], []
    print(
        f"\n{'':44}{'psnr':>6}{'resize':>7}{'merge':>6}{'ssim':>7}{'error':>7}{'missed':>8}{'seam':>7}{'s':>6}{'cpu':>6}"
    )
    for number, spec in chosen:
        case = make_case(spec, options.seed, number)
        row, preserved = measure(case, held_out=spec in HELD_OUT)
        rows.append(row)
        _print_row(row)
        if options.picture and len(shown) < SHOWN and row.composed is not None:
            shown.append((case, preserved))
    if options.picture:
        draw_sheet(shown).save(options.picture)
    good = _summary(rows)
    if options.long:
        good &= _check_memory(options.seed)
    return exit_code(good=good, long=options.long)


def _options() -> argparse.Namespace:
    options = parser(
        __doc__, short=f"{len(FEW)} cases", long="all 91 cases, and peak memory: a quarter of an hour"
    )
    options.add_argument("--seed", type=int, default=SEED, help="another seed makes other results")
    options.add_argument(
        "--case", nargs="+", metavar="WORDS", help="only cases whose names contain one of these"
    )
    options.add_argument(
        "--picture", type=Path, metavar="FILE.png", help=f"draw the first {SHOWN} cases that were composed"
    )
    return options.parse_args()


def _chosen(options: argparse.Namespace) -> list[tuple[int, Spec]]:
    numbered = list(enumerate([*HELD_OUT, *SPECS]))
    if options.case:
        return [(n, spec) for n, spec in numbered if any(words in spec.name for words in options.case)]
    return numbered if options.long else [(n, spec) for n, spec in numbered if spec.name in FEW]


# --- one case ---------------------------------------------------------------------------------------------


def measure(case: Case, *, held_out: bool) -> tuple[Row, Preserved]:
    """Return what was measured on one case, and the composed image."""
    wall, cpu = time.perf_counter(), time.process_time()
    preserved = preserve(case.original, case.result)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    original = Image.open(io.BytesIO(case.original))
    row = Row(
        name=case.name,
        truth=case.truth,
        held_out=held_out,
        megapixels=original.width * original.height / 1e6,
        refusal=preserved.report.refusal,
        wall=wall,
        cpu=cpu,
        invented=case.invented,
    )
    if row.refusal or not case.text.any():  # there is nothing to compare
        return row, preserved
    return _compared(row, case, original, preserved), preserved


def _compared(row: Row, case: Case, original: Image.Image, preserved: Preserved) -> Row:
    report, composed = preserved.report, Image.open(io.BytesIO(preserved.image))
    hole = report.hole
    assert hole is not None
    before, after = np.asarray(original), np.asarray(composed)
    same_kind = before.shape == after.shape and original.mode == composed.mode
    kept = all(original.info.get(key) == composed.info.get(key) for key in ("icc_profile", "exif"))
    upright = upright_hole(case, preserved)
    images = _seen(original), _seen(composed)
    resized = _resized(case)
    scale = max(1, round(images[0].shape[1] / 1200))
    text = _grown(case.text, 2 * scale)
    visible = (np.abs(images[0].astype(int) - case.clean).max(2) > 24) & case.text
    exact = float((before[~hole] == after[~hole]).all()) if same_kind else 0.0
    far = ~_grown(case.text, FAR * scale)
    return attrs.evolve(
        row,
        kept=same_kind and kept,
        composed=attrs.evolve(_likeness(images[1], images[0], case.clean, text, far), exact=exact),
        resized=_likeness(resized, images[0], case.clean, text, far),
        merged=_likeness(threshold_merge(images[0], resized), images[0], case.clean, text, far),
        error=_alignment_error(case, np.array(report.alignment)),
        missed=float((visible & ~upright).sum() / max(1, visible.sum())),
        seam=_border_step(images[1], _as_file(case), upright),
        replaced=float(hole.mean()),
    )


def threshold_merge(original: Pixels, resized: Pixels) -> Pixels:
    """Return the resized result merged by a mask of thresholded difference, without alignment.

    As plug-ins of image editors do it: distance in CIELAB, specks dropped, dilated, and blurred.
    """
    lab = [cv2.cvtColor(each.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for each in (original, resized)]
    changed = (np.sqrt(((lab[0] - lab[1]) ** 2).sum(2)) > 12).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(changed)
    large = stats[:, cv2.CC_STAT_AREA] >= 250
    large[0] = False
    mask = cv2.dilate(large[labels].astype(np.float32), np.ones((17, 17), np.uint8))
    share = cv2.GaussianBlur(mask, (15, 15), 0)[..., None]
    return np.clip(original * (1 - share) + resized * share + 0.5, 0, 255).astype(np.uint8)


def _likeness(image: Pixels, original: Pixels, clean: Pixels, text: Mask, far: Mask) -> Likeness:
    error = float(((image.astype(np.float32) - clean)[text] ** 2).mean()) if text.any() else 0.0
    unchanged = (image == original).all(2)
    return Likeness(
        psnr=float(10 * np.log10(255**2 / max(error, 0.05))),
        ssim=_ssim(image, clean, text),
        exact=float(unchanged[far].mean()) if far.any() else 1.0,
    )


def _ssim(one: Pixels, other: Pixels, where: Mask) -> float:
    rows, columns = np.nonzero(where)
    window = tuple(slice(max(0, axis.min() - 8), axis.max() + 9) for axis in (rows, columns))
    grey = [cv2.cvtColor(np.ascontiguousarray(each[window]), cv2.COLOR_RGB2GRAY) for each in (one, other)]
    size = min(7, *grey[0].shape)
    full = structural_similarity(*grey, full=True, data_range=255, win_size=size - 1 + size % 2)[1]
    return float(full[where[window]].mean())


def _alignment_error(case: Case, alignment: np.ndarray) -> float:
    rows, columns = np.nonzero(case.text)
    step = max(1, len(rows) // 2000)
    places = np.stack([columns, rows, np.ones_like(rows)])[:, ::step]
    off = (case.to_result @ places)[:2] - alignment @ places
    return float(np.percentile(np.hypot(*off), 90))


def _border_step(composed: Pixels, clean: Pixels, hole: Mask) -> float:
    """Return the mean step across the hole's border beyond that of the clean image, in grey levels."""
    grey = [each.astype(np.float32).mean(2) for each in (composed, clean)]
    more = []
    for axis in (0, 1):
        across = np.diff(hole.astype(np.int8), axis=axis) != 0
        steps = [np.abs(np.diff(each, axis=axis)) for each in grey]
        more.append((steps[0] - steps[1])[across])
    return float(np.concatenate(more).mean())


def _as_file(case: Case) -> Pixels:
    """Return the clean image as a file like the original shows it.

    A JPEG has steps of its own: at the edges of stripes 1.5 grey levels more than the image it was made of.
    """
    if not case.file.startswith(("jpeg", "exif")):
        return case.clean
    return _seen(Image.open(io.BytesIO(encode(case.clean, case.file, case.clean))))


def _resized(case: Case) -> Pixels:
    image = Image.open(io.BytesIO(case.result)).convert("RGB")
    return np.asarray(image.resize(case.clean.shape[1::-1], Image.Resampling.LANCZOS))


def _seen(image: Image.Image) -> Pixels:
    """Return an image upright, in RGB, on white."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        whole = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
    return np.asarray(upright.convert("RGB"))


def _grown(mask: Mask, pixels: int) -> Mask:
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) <= pixels


# --- all cases --------------------------------------------------------------------------------------------


def _print_row(row: Row) -> None:
    time_ = f"{row.wall:6.1f}{row.cpu:6.1f}"
    if row.composed is None or row.resized is None or row.merged is None:
        verdict = f"{row.truth}: refused, {row.refusal}" if row.refusal else f"WRONG: {row.truth}"
        print(f"{row.name:44}{verdict:54}{time_}", flush=True)
        return
    wrong = "" if row.truth in {"same", "crop"} else f"   WRONG: {row.truth}"
    print(
        f"{row.name:44}{row.composed.psnr:6.1f}{row.resized.psnr:7.1f}{row.merged.psnr:6.1f}{row.composed.ssim:7.3f}"
        f"{row.error:7.2f}{row.missed:8.2%}{row.seam:7.2f}{time_}{wrong}",
        flush=True,
    )


def _summary(rows: Sequence[Row]) -> bool:
    """Print the figures of all cases beside their limits; returns whether all are kept."""
    used, fresh = ([row for row in rows if row.held_out is held] for held in (False, True))
    good = True
    for title, some in (
        ("images on which the limits were set, fresh edits", used),
        ("held-out images and fonts", fresh),
    ):
        if some:
            print(f"\n{title}: {len(some)} cases")
            good &= _limits(some)
            _side_by_side(some)
    return good


def _limits(rows: Sequence[Row]) -> bool:
    ordinary = [row for row in rows if row.truth == "same"]
    bad = [row for row in rows if row.truth not in {"same", "crop"}]
    done = [row for row in ordinary if row.composed and row.resized]
    true = [row for row in done if not row.invented]
    mega = [row for row in done if 0.3 < row.megapixels < 4]
    large, usual = (
        [row for row in rows if row.megapixels > 8],
        [row for row in rows if 0.3 < row.megapixels < 4],
    )
    checks = [
        ("bit-exact outside", _mean([row.composed.exact for row in done]), 1.0, ">="),
        ("size, mode, ICC, EXIF kept", _mean([row.kept for row in done]), 1.0, ">="),
        ("ordinary results accepted", len(done) / max(1, len(ordinary)), 0.95, ">="),
        ("bad results accepted", sum(row.refusal is None for row in bad), 0, "<="),
        ("text PSNR, true fills", _mean([row.composed.psnr for row in true]), 37.0, ">="),
        (
            "least gain over resize, dB",
            min((row.composed.psnr - row.resized.psnr for row in true), default=0),
            0,
            ">=",
        ),
        ("text SSIM at 1 MP", _mean([row.composed.ssim for row in mega if not row.invented]), 0.94, ">="),
        ("error at the text, median px", _median([row.error for row in done]), 0.1, "<="),
        ("error at most 0.5 px", _mean([row.error <= 0.5 for row in done]), 0.85, ">="),
        ("text pixels missed, mean", _mean([row.missed for row in done]), 0.005, "<="),
        ("worst seam at 1 MP", max((row.seam for row in mega), default=0), 0.3, "<="),
        ("CPU seconds, worst to 1.5 MP", max((row.cpu for row in usual), default=0), 7.0, "<="),
        ("CPU seconds, worst at 12 MP", max((row.cpu for row in large), default=0), 12.0, "<="),
    ]
    good = True
    for name, value, limit, sign in checks:
        kept = value >= limit if sign == ">=" else value <= limit
        good &= kept
        print(f"  {name:32}{value:9.3f}  {sign} {limit:<7g}{'' if kept else 'MISSED'}")
    print(f"  {len(bad)} bad results were refused as {_reasons(bad)}")
    print(f"  {_mean([row.replaced for row in done]):.1%} of the image was replaced")
    return good


def _side_by_side(rows: Sequence[Row]) -> None:
    done = [row for row in rows if row.composed and row.truth == "same" and not row.invented]
    print(f"  {'':32}{'psnr':>7}{'ssim':>8}{'exact outside':>16}")
    for name in ("composed", "resized", "merged"):
        values = [getattr(row, name) for row in done]
        figures = [_mean([getattr(each, part) for each in values]) for part in ("psnr", "ssim", "exact")]
        print(f"  {name:32}{figures[0]:7.1f}{figures[1]:8.3f}{figures[2]:16.2%}")


def _reasons(rows: Sequence[Row]) -> str:
    refused = [row.refusal.name for row in rows if row.refusal]
    return ", ".join(f"{refused.count(name)} {name}" for name in sorted(set(refused))) or "none"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _check_memory(seed: int) -> bool:
    """Print the peak memory of composing 12 megapixels: at most 1,500 MB above that of the imports."""
    number, spec = next((n, spec) for n, spec in enumerate(SPECS) if spec.scene == "12mp-photo")
    case = make_case(spec, seed, number)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        before, after = pool.submit(_peak_megabytes, case.original, case.result).result()
    kept = after - before <= 1500
    print(
        f"\npeak memory at 12 MP: {after - before:.0f} MB above imports  <= 1500 {'' if kept else 'MISSED'}"
    )
    return kept


def _peak_megabytes(original: bytes, result: bytes) -> tuple[float, float]:
    before = _high_water()
    preserve(original, result)
    return before, _high_water()


def _high_water() -> float:
    """Return the peak memory of this process in MB; ``getrusage`` would count that of its parent, too."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.exit(main())
