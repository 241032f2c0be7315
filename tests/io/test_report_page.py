"""The report in a browser, opened from disk: 5,000 images, filters, search, sliders, keys, accessibility."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Browser, find_browser, running_browser
from flux_async.report.page import write_page
from report_rows import HOSTILE_NAME, HOSTILE_WORDS, RETRY, RETRY_TEXT_LEFT, head_of, make_rows

IMAGES = 5_000
AXE = "FLUX_ASYNC_AXE"
"""The variable that names axe.min.js of the npm package axe-core; nox installs it where npm is."""

TITLES = "[...document.querySelectorAll('article h3')].map(title => title.textContent)"
FOUND = "document.querySelector('#found').textContent"
FOCUSED = "document.activeElement.textContent"
FIRST_AT = "document.querySelector('.frame:not(.alone)').style.getPropertyValue('--at')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this module."""
    path = find_browser()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium to open the report: apt-get install chromium")
        pytest.skip("no chromium on this machine: the report is not opened")
    with running_browser(path, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report of 5,000 images, one with a hostile name and 500 with hostile errors."""
    folder = tmp_path_factory.mktemp("run")
    return write_page(head_of(folder, IMAGES), make_rows(folder, IMAGES)).as_uri()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Browser]:
    """The report, opened anew; in the end no error was logged, and no other host was asked."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(address)
    yield browser
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def click(page: Browser, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).click()")


def test_all_images_can_be_reached(page: Browser) -> None:
    """Only what is near the screen is drawn, and scrolling to the end draws the last image."""
    assert page.run("document.querySelectorAll('article').length") < 200
    page.run("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for(f"{TITLES}.includes('poster-05000.jpg')")
    assert page.run("document.querySelectorAll('article').length") < 200
    assert page.run("document.querySelectorAll('main img').length") < 400


def test_small_copies_are_shown(page: Browser) -> None:
    """The list loads small copies, an opened image the files themselves."""
    page.wait_for("[...document.querySelectorAll('article img')].slice(0, 4).every(img => img.naturalWidth)")
    assert page.run("[...document.querySelectorAll('article img')].every(img => img.src.endsWith('.webp'))")
    click(page, "article h3 button")
    page.wait_for("[...document.querySelectorAll('#detail img')].every(img => img.naturalWidth)")
    assert (
        page.run("[...document.querySelectorAll('#detail img')].map(i => i.src.split('.').pop()).join()")
        == "png,jpg"
    )


def test_filters_show_their_images_and_the_next_step(page: Browser) -> None:
    """A filter shows its images, and the exact command where one helps, which can be copied."""
    click(page, "[data-filter=failed]")
    assert page.run(FOUND) == "500 of 5,000 images"
    assert page.run(f"{TITLES}[0]") == "poster-00010.jpg"
    assert page.run("document.querySelector('#step code').textContent") == RETRY
    click(page, "[data-filter=text_left]")
    assert page.run("document.querySelector('#step code').textContent") == RETRY_TEXT_LEFT
    assert page.run("document.querySelector('[data-filter=text_left]').ariaPressed") == "true"
    assert "not only those found" not in page.run("document.querySelector('#step p').textContent")
    page.run("search.value = 'poster-0001', search.dispatchEvent(new Event('input'))")
    assert page.run(FOUND) == "1 of 5,000 images"
    assert "all 500 images of the filter" in page.run("document.querySelector('#step p').textContent")
    page.run("search.value = '', search.dispatchEvent(new Event('input'))")
    click(page, "[data-filter=clean]")
    assert page.run("document.querySelector('#step').hidden")
    click(page, "[data-filter=all]")
    assert page.run(FOUND) == ""


def test_search_finds_words_in_any_field(page: Browser) -> None:
    """All words must be there, in whatever case; the order is the chosen one."""
    page.run("document.querySelector('#search').focus()")
    page.type("POSTER-0123 sale")
    assert page.run(TITLES) == ["poster-01235.jpg"]
    page.press("Escape")
    click(page, "[data-filter=text_left]")
    page.run("sort.value = '-text_left', sort.dispatchEvent(new Event('change'))")
    assert page.run(f"{TITLES}.slice(0, 2)") == ["poster-00045.jpg", "poster-00095.jpg"]


def test_filter_search_and_order_outlive_a_reload(page: Browser) -> None:
    """They are in the address, so that a page that reloads itself stays where it was."""
    click(page, "[data-filter=failed]")
    page.run("search.value = 'poster-0001', search.dispatchEvent(new Event('input'))")
    page.open("about:blank", width=1400)
    page.send(
        "Page.navigateToHistoryEntry", entryId=page.send("Page.getNavigationHistory")["entries"][-2]["id"]
    )
    page.wait_for("document.readyState === 'complete' && document.querySelector('#found')?.textContent")
    assert page.run(FOUND) == "1 of 5,000 images"


def test_sliders_move_with_the_mouse_and_with_keys(page: Browser) -> None:
    """The divider follows a drag and the arrow keys; the original is cut off at it."""
    page.run("document.querySelector('.frame:not(.alone)').scrollIntoView({block: 'center'})")
    box = page.run(
        "JSON.parse(JSON.stringify(document.querySelector('.frame:not(.alone)').getBoundingClientRect()))"
    )
    middle = box["y"] + box["height"] / 2
    page.drag(box["x"] + box["width"] / 2, middle, box["x"] + box["width"] * 0.8)
    at = float(page.run(FIRST_AT).rstrip("%"))
    assert at == pytest.approx(80, abs=8)
    page.press("ArrowLeft")
    assert float(page.run(FIRST_AT).rstrip("%")) == at - 1
    clip = page.run("getComputedStyle(document.querySelector('.frame:not(.alone) .before')).clipPath")
    assert clip.startswith("inset(")


def test_keys(page: Browser) -> None:
    """Images, filters, search and dialogs need no mouse."""
    page.press("j")
    page.press("j")
    page.press("j")
    page.press("k")
    assert page.run(FOCUSED) == "poster-00002.jpg"
    page.press("Enter", "\r")
    assert page.run("document.querySelector('#detail').open")
    page.press("ArrowLeft")
    assert page.run("document.querySelector('#detail .frame').style.getPropertyValue('--at')") == "49%"
    page.press("j")
    page.press("z")
    assert page.run("document.querySelector('#detail-title').textContent") == "poster-00003.jpg"
    assert page.run("document.querySelector('#zoom').ariaPressed") == "true"
    page.press("Escape")
    page.wait_for(f"!document.querySelector('#detail').open && {FOCUSED} === 'poster-00003.jpg'")
    page.press("h")
    assert page.run("getComputedStyle(document.querySelector('.frame svg')).display") == "block"
    share = "(r => r.width / document.querySelector('.frame').getBoundingClientRect().width)"
    drawn = page.run(f"{share}(document.querySelector('.frame polygon').getBoundingClientRect())")
    assert drawn == pytest.approx(0.76, abs=0.02)
    page.press("p")
    assert page.run("document.querySelector('article img.after').alt.startsWith('after')")
    page.press("3")
    assert page.run(FOUND) == "500 of 5,000 images"
    page.press("/", "/")
    assert page.run("document.activeElement.id") == "search"


def test_hostile_names_do_nothing(page: Browser) -> None:
    """A name and an error that are markup are shown as they are."""
    assert HOSTILE_NAME in page.run(TITLES)
    page.run("[...document.querySelectorAll('article')][3].querySelector('h3 button').click()")
    assert page.run("document.querySelector('#detail-title').textContent") == HOSTILE_NAME
    page.press("Escape")
    click(page, "[data-filter=failed]")
    assert page.run("document.querySelector('article .nothing').textContent") == HOSTILE_WORDS
    assert page.run("document.querySelectorAll('script, main img[src=x]').length") == 2
    assert page.run("[...document.querySelectorAll('a')].every(a => /^(https?|file):/.test(a.href))")


def test_originals_elsewhere_are_loaded_only_on_a_click(browser: Browser, address: str) -> None:
    """Before it, no other host receives a request; the click loads that one, without a referrer."""
    browser.open(address)
    browser.requests.clear()
    first = "document.querySelector('article .ask')"
    assert browser.run(f"{first}.textContent") == "Load the original from shop.example"
    browser.run(f"window.card = {first}.closest('article'), {first}.click()")
    browser.wait_for("card.querySelector('.nothing')")  # there is no such host
    asked = [url for url in browser.requests if url.startswith("http")]
    assert asked == ["https://shop.example/poster-00009.jpg"]
    while not browser.errors:  # the browser reports it in its console
        browser.run("1")


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1400, 4)])
def test_the_page_fits_the_screen(page: Browser, address: str, width: int, columns: int) -> None:
    """Nothing is wider than a phone, and a wide screen has several columns; an opened image fits, too."""
    page.open(address, width=width)
    wide = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.run(wide) == [width, width]
    assert (
        page.run("getComputedStyle(document.querySelector('.chunk')).gridTemplateColumns.split(' ').length")
        == columns
    )
    click(page, "article h3 button")
    assert page.run(wide) == [width, width]
    assert page.run("document.querySelector('#detail').scrollWidth <= innerWidth")


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1400, True)], ids=["phone", "dark"])
def test_axe_finds_nothing_serious(page: Browser, address: str, width: int, dark: bool) -> None:
    """In the list, with a filter and its command, with an opened image, and in the help."""
    if AXE not in os.environ:
        pytest.skip(f"set {AXE} to axe.min.js of the npm package axe-core")
    page.open(address, width=width, dark=dark)
    page.run(Path(os.environ[AXE]).read_text("utf-8"))
    assert serious(page) == []
    click(page, "[data-filter=failed]")
    assert serious(page) == []
    click(page, "[data-filter=all]")
    click(page, "article h3 button")
    assert serious(page) == []
    click(page, "#detail [data-close]")
    click(page, "#keys")
    assert serious(page) == []


def serious(page: Browser) -> list[Any]:
    """Return the serious and critical findings of axe."""
    found = page.run(
        "axe.run({resultTypes: ['violations']}).then(result => result.violations"
        ".filter(one => ['serious', 'critical'].includes(one.impact))"
        ".map(one => [one.id, one.nodes.slice(0, 3).map(node => node.html + node.failureSummary)]))"
    )
    assert isinstance(found, list)
    return found
