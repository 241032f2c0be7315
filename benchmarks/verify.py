"""How often ``verify`` is right, what it costs, and how it scales.

    python benchmarks/verify.py [--long] [--seed N]

The results are simulated: 60 clean ones, 40 with text left, 40 damaged and 20 cut or padded. Half of them are
photographs and fonts of other packages, half are drawn; its limits were set on none of these scenes. The
short form takes a tenth of the drawn ones. Printed are

confusion   rows: what is true; columns: the verdict
recall      share of the results of a kind that have its verdict
precision   share of the results with a verdict that are of its kind
CPU         processor seconds for each megapixel of the original
speed-up    images a second of two worker processes against one
memory      peak of a worker process with a result of 12 megapixels
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import attrs
import cv2
from PIL import Image

from flux_async import ImageChecks, VerdictKind, verify
from flux_async.verification.worker_pool import WorkerPool
from harness.preserve_cases import HELD_OUT_SCENES
from harness.report import exit_code, introduce, parser
from harness.verify_cases import REPORTED, Pair, Plan, make_pair, plans

SEED = 20261201
FEW_SCENES = ("summer-sale", "coffee-title", "magazine")
FEW = 5
SHARED = 8
"""Pairs that one worker and two workers check."""


@attrs.frozen(kw_only=True)
class Row:
    """One case: what is true, the verdict, and CPU seconds for a megapixel of the original."""

    plan: Plan
    kind: VerdictKind
    cpu: float
    megapixels: float


def main() -> int:
    """Measure, print, and return 1 where the long form misses a limit."""
    options = _options()
    introduce(
        f"seed {options.seed}, one round", ("opencv-python-headless", "numpy", "rapidocr", "onnxruntime")
    )
    cv2.setNumThreads(1)  # as in a worker
    chosen = _chosen(long=options.long)
    pairs: list[Pair] = []
    rows = [_measure(plan, options.seed, pairs) for plan in chosen]
    good = _summary(rows)
    good &= _check_speed(pairs)
    if options.long:
        good &= _check_memory(options.seed)
    return exit_code(good=good, long=options.long)


def _options() -> argparse.Namespace:
    options = parser(__doc__, short="15 cases", long="all 160 cases, and peak memory: some minutes")
    options.add_argument("--seed", type=int, default=SEED, help="another seed makes other results")
    return options.parse_args()


def _chosen(*, long: bool) -> list[Plan]:
    if long:
        return [*plans(list(HELD_OUT_SCENES)), *plans(REPORTED)]
    found = list(plans(REPORTED))
    return [plan for scene in FEW_SCENES for plan in [each for each in found if each.scene == scene][:FEW]]


def _measure(plan: Plan, seed: int, pairs: list[Pair]) -> Row:
    """Return the verdict on a case; a few are kept in ``pairs``, for the measurement of two workers."""
    pair = make_pair(plan, seed)
    if not pairs:
        verify(pair.original, pair.result)  # loads the text models
    if len(pairs) < SHARED:
        pairs.append(pair)
    cpu = time.process_time()
    verdict = verify(pair.original, pair.result)
    cpu = time.process_time() - cpu
    megapixels = verdict.original_size[0] * verdict.original_size[1] / 1e6
    wrong = "" if verdict.kind == plan.truth else f"   WRONG: {verdict.kind}, {verdict.reason}"
    print(f"{plan.name:40}{megapixels:6.1f} MP{cpu:7.2f} s{wrong}", flush=True)
    return Row(plan=plan, kind=verdict.kind, cpu=cpu, megapixels=megapixels)


def _summary(rows: Sequence[Row]) -> bool:
    """Print the confusion tables and figures; returns whether the limits are kept."""
    good = True
    for title, some in (
        ("drawn scenes", [row for row in rows if not row.plan.held_out]),
        ("photographs and fonts of other packages", [row for row in rows if row.plan.held_out]),
        ("all", rows),
    ):
        if some:
            print(f"\n{title}: {len(some)} cases")
            good &= _print_confusion(some)
    usual = [row for row in rows if row.megapixels > 0.3]
    cost = sum(row.cpu for row in usual) / sum(row.megapixels for row in usual)
    near = [row for row in usual if row.megapixels < 2]
    typical = sum(row.cpu for row in near) / sum(row.megapixels for row in near)
    print(f"\nCPU seconds a megapixel: {typical:.2f} to 2 MP, {cost:.2f} with larger ones  <= 1")
    images = len(near) / sum(row.cpu for row in near)
    print(f"one core checks {images:.1f} such images a second; 2 a second need {2 / images:.1f} cores")
    return good and typical <= 1


def _print_confusion(rows: Sequence[Row]) -> bool:
    kinds = ["clean", "text_left", "damaged", "cropped", "unsure"]
    counts = Counter((row.plan.truth, str(row.kind)) for row in rows)
    print(f"  {'':12}" + "".join(f"{kind:>11}" for kind in kinds) + f"{'recall':>9}{'precision':>11}")
    good = True
    for truth in kinds[:-1]:
        right = counts[truth, truth]
        recall = right / max(1, sum(counts[truth, kind] for kind in kinds))
        precision = right / max(1, sum(counts[each, truth] for each in kinds))
        numbers = "".join(f"{counts[truth, kind]:11}" for kind in kinds)
        print(f"  {truth:12}{numbers}{recall:9.3f}{precision:11.3f}")
        if truth in {"text_left", "damaged"}:
            good &= recall >= 0.95 and precision >= 0.9
    return good


def _check_speed(pairs: Sequence[Pair]) -> bool:
    """Print how much faster two workers are than one."""
    seconds = [anyio.run(_seconds, workers, pairs) for workers in (1, 2)]
    gain = seconds[0] / seconds[1]
    print(f"\ntwo workers: {gain:.2f} times the images a second of one  >= 1.7")
    return gain >= 1.7


async def _seconds(workers: int, pairs: Sequence[Pair]) -> float:
    async with ImageChecks(workers=workers) as checks:
        async with anyio.create_task_group() as tasks:  # starts the workers and loads the models
            for _ in range(workers):
                tasks.start_soon(checks.verify, pairs[0].original, pairs[0].result)
        begun = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for pair in pairs:
                tasks.start_soon(checks.verify, pair.original, pair.result)
        return time.perf_counter() - begun


def _check_memory(seed: int) -> bool:
    """Print the peak memory of a worker with 12 megapixels: at most 1.5 GB in all."""
    plan = Plan(scene="12mp-photo", truth="text_left", kind="all", number=0)
    peak = anyio.run(_peak, make_pair(plan, seed))
    print(f"\npeak memory of a worker at 12 MP: {peak:.0f} MB  <= 1500")
    return peak <= 1500


async def _peak(pair: Pair) -> float:
    large = io.BytesIO()
    with Image.open(io.BytesIO(pair.result)) as result:
        result.resize((4288, 2848)).save(large, "PNG")
    async with WorkerPool(1) as pool:
        await pool.run(verify, pair.original, large.getvalue())
        # Not getrusage: a process starts with the peak of the one that started it.
        status = await pool.run(Path.read_text, Path("/proc/self/status"), "utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.exit(main())
