"""How long a report of 5,000 images takes to write, and a browser to open it from disk and to filter it.

A headless Chromium with a fresh profile opens the page several times, and medians are shown:

- *first paint*: from the navigation to the first pixel, as the browser reports it. The first opening is cold.
- *filter*, *search*: from the click or the key to the rebuilt list, layout included.
- *small copies*: made a second from JPEG images of one megapixel, on all cores.

In the long form it exits 1 where the slowest first paint takes 2 s or more. Without a browser the rest is
measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from flux_async.report.page import write_page
from flux_async.report.thumbnails import Thumbnails
from harness.report import exit_code, introduce, parser, spread

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from browser import Browser, find_browser, running_browser
from report_rows import head_of, make_rows

IMAGES, COPIES = 5_000, 60
MOST_S = 2.0

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
TIMED = """(() => {{ const begun = performance.now(); {}; document.documentElement.offsetHeight;
return performance.now() - begun; }})()"""
FILTER = TIMED.format("document.querySelector('[data-filter=failed]').click()")
SEARCH = TIMED.format("search.value = 'poster-04', search.dispatchEvent(new Event('input'))")


def copies_a_second(folder: Path) -> float:
    """Return how many small copies of photographs are made in a second."""
    noise = Image.effect_noise((1216, 832), 60).convert("RGB")
    sources = [folder / f"{number}.jpg" for number in range(COPIES)]
    for source in sources:
        noise.save(source, quality=85)
    begun = time.perf_counter()
    Thumbnails(folder).make(sources)
    return COPIES / (time.perf_counter() - begun)


def opened(browser: Browser, address: str) -> dict[str, float]:
    """Open the page anew and return its figures, in milliseconds."""
    browser.open("about:blank")
    browser.open(address)
    browser.wait_for(PAINT)
    paint, filtered, searched = (float(browser.run(script)) for script in (PAINT, FILTER, SEARCH))
    return {"first paint": paint, "filter": filtered, "search": searched}


def main() -> int:
    """Measure and print."""
    options = parser(__doc__, short="3 openings", long="20 openings").parse_args()
    rounds = 20 if options.long else 3
    introduce(f"{IMAGES:,} images, {rounds} openings", ["jinja2", "pillow"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "run"
        rows = make_rows(folder, IMAGES)
        begun = time.perf_counter()
        page = write_page(head_of(folder, IMAGES), rows)
        took = time.perf_counter() - begun
        print(f"page written in {took:.2f} s, {page.stat().st_size / 1e6:.1f} MB")
        print(f"small copies: {copies_a_second(folder):.0f} a second")
        path = find_browser()
        if path is None:
            print("no chromium on this machine: the page was not opened")
            return 0
        with running_browser(path, Path(temporary) / "profile") as browser:
            figures = [opened(browser, page.as_uri()) for _ in range(rounds)]
    for name in figures[0]:
        print(f"{name}: {spread([each[name] for each in figures], '.0f')} ms")
    return exit_code(good=max(each["first paint"] for each in figures) < 1000 * MOST_S, long=options.long)


if __name__ == "__main__":
    raise SystemExit(main())
