"""Rows of a report: filters, links and data; its figures; the page they make; small copies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flux_async.report.holes import Holes
from flux_async.report.page import render_page, write_page
from flux_async.report.rows import Kind, Picture, ReportRow, link_to, web_link
from flux_async.report.summary import Histogram, Summary
from flux_async.report.thumbnails import Thumbnails
from report_rows import HOSTILE_NAME, HOSTILE_WORDS, head_of


def row(**fields: Any) -> ReportRow:
    known: dict[str, Any] = {"number": 1, "key": "k", "image": "a.jpg", "title": "a.jpg"}
    return ReportRow(**known | {"kind": Kind.SUCCEEDED} | fields)


# --- rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "filters"),
    [
        ({}, ["all", "succeeded"]),
        ({"verdict": "clean"}, ["all", "succeeded", "clean"]),
        ({"verdict": "no_text"}, ["all", "succeeded", "no_text"]),
        ({"kind": Kind.PENDING}, ["all", "pending"]),
        ({"kind": Kind.FAILED}, ["all", "attention", "failed"]),
        ({"kind": Kind.REFUSED}, ["all", "attention", "refused"]),
        ({"kind": Kind.IN_DOUBT}, ["all", "attention", "in_doubt"]),
        ({"verdict": "text_left"}, ["all", "attention", "text_left", "succeeded"]),
        ({"verdict": "cropped"}, ["all", "attention", "damaged", "succeeded"]),
        ({"not_preserved": "no match"}, ["all", "attention", "not_preserved", "succeeded"]),
        ({"is_unrecognised": True}, ["all", "attention", "unrecognised", "succeeded"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_filters_of_a_row(fields: dict[str, Any], filters: list[str]) -> None:
    """Kind and verdict decide which filters show a row, and whether it needs a look."""
    assert list(row(**fields).filters) == filters


def test_data_of_a_row_holds_what_is_known(tmp_path: Path) -> None:
    """Files become links from the folder of the page; unknown fields are left out, zero is not."""
    picture = Picture(file=tmp_path / "images" / "a #1.jpg")
    data = row(vendor=picture, text_left=0.0, hole=[[0, 0, 1000, 0, 1000, 1000]]).as_data(tmp_path)
    assert data["vendor"] == {"file": "images/a%20%231.jpg"}
    assert data["text_left"] == 0.0
    assert json.loads(json.dumps(data["hole"])) == [[0, 0, 1000, 0, 1000, 1000]]
    assert {"original", "error", "is_unrecognised"}.isdisjoint(data)


def test_links_to_files_never_name_another_scheme(tmp_path: Path) -> None:
    """Also a file that is called as an address of a script would be."""
    assert link_to(tmp_path / "javascript:alert(1)", tmp_path) == "javascript%3Aalert%281%29"
    assert link_to(Path("/elsewhere/a b.jpg"), tmp_path) == "file:///elsewhere/a%20b.jpg"


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "data:text/html,<script>",
        "//host/a",
        "file:///etc/passwd",
        "http:",
        "http://[",
        None,
    ],
)
def test_addresses_that_are_no_links(address: str | None) -> None:
    """Only http and https addresses with a host become links."""
    assert web_link(address) is None
    assert row(original_url=address, result_url=address).result_url is None


# --- figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "bins", "width"),
    [([5.0], 1, 0.1), ([3.0, 31.0], 15, 2.0), ([0.0, 0.25], 3, 0.1), ([1.0, 100_000.0], 23, 100_000 / 22)],
    ids=["one", "usual", "short", "long"],
)
def test_histogram_has_few_bins_of_one_width(seconds: list[float], bins: int, width: float) -> None:
    """Its width is round where that takes at most 24 bins; every duration is in one of them."""
    histogram = Histogram.of([*seconds, float("nan"), -1.0])
    assert histogram is not None
    assert len(histogram.bins) == bins
    assert histogram.bins[0].end - histogram.bins[0].start == pytest.approx(width)
    assert sum(each.count for each in histogram.bins) == len(seconds)
    assert histogram.bins[0].start <= min(seconds)
    assert max(seconds) <= histogram.bins[-1].end


def test_histogram_of_nothing_is_none() -> None:
    """A run without a finished task has none; the quantiles are durations that occurred."""
    assert Histogram.of([]) is None
    hundred = Histogram.of([float(number) for number in range(1, 101)])
    assert hundred is not None
    assert (hundred.median, hundred.p95) == (50.0, 95.0)


def test_summary_counts_by_filter_and_by_error() -> None:
    """Failures are counted by class, the most frequent first; pauses between runs are part of the time."""
    rows = [
        row(submitted_at=10.0, finished_at=15.0, saved_credits=5.0),
        row(submitted_at=40.0, finished_at=72.0),
        row(kind=Kind.REFUSED, error_type="InvalidInput", error="no image"),
        row(kind=Kind.FAILED, error_type="TaskFailed", error="first"),
        row(kind=Kind.FAILED, error_type="TaskFailed", error="second"),
        row(kind=Kind.IN_DOUBT, error_type="ConnectionLost", error="lost"),
    ]
    summary = Summary.of(rows)
    assert [(one.type, one.count, one.example) for one in summary.failures] == [
        ("TaskFailed", 2, "first"),
        ("InvalidInput", 1, "no image"),
    ]
    assert (summary.counts["all"], summary.counts["attention"], summary.counts["succeeded"]) == (6, 4, 2)
    assert (summary.elapsed_s, summary.saved_credits, summary.is_checked) == (62.0, 5.0, False)
    assert Summary.of([]).elapsed_s is None


# --- the page ---------------------------------------------------------------------------------------------


def test_hostile_words_are_data(tmp_path: Path) -> None:
    """No name and no message ends the data or becomes markup, wherever the page shows it."""
    hostile = row(
        title=HOSTILE_NAME,
        image=HOSTILE_NAME,
        kind=Kind.FAILED,
        error_type=HOSTILE_WORDS,
        error=HOSTILE_WORDS,
    )
    folder = tmp_path / HOSTILE_NAME.replace("/", "")
    page = "".join(render_page(head_of(folder, 1, warning=HOSTILE_WORDS), [hostile]))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert len(re.findall(r"<script[ >]", page)) == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["rows"][0]["error"] == HOSTILE_WORDS


def test_the_page_names_no_other_host(tmp_path: Path) -> None:
    """Style, script and data are in the page; its policy allows no others."""
    page = "".join(render_page(head_of(tmp_path, 1), [row()]))
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[\w.]+", page) == []
    assert "default-src 'none'" in page


@pytest.mark.parametrize("count", [0, 1])
def test_a_page_of_few_rows(tmp_path: Path, count: int) -> None:
    """Nothing but what is known is on it; a long run says that it shows a part."""
    page = "".join(render_page(head_of(tmp_path, 1_234_567), [row()] * count))
    assert f"This page shows {count} of 1,234,567 images" in page
    assert "<svg" not in page
    assert 'data-filter="text_left"' not in page


def test_a_page_appears_only_complete(tmp_path: Path) -> None:
    """A page that cannot be written leaves the earlier one and no part; odd names are no obstacle."""
    page = write_page(head_of(tmp_path, 1), [row(title="caf\udce9.jpg", image="caf\udce9.jpg")])
    before = page.read_bytes()
    with pytest.raises(FileNotFoundError):
        write_page(head_of(tmp_path / "gone", 1), [row()])
    write_page(head_of(tmp_path, 1, warning="caf\udce9"), [])
    assert page.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# --- small copies -----------------------------------------------------------------------------------------


def test_small_copies_are_made_once(tmp_path: Path) -> None:
    """A second call makes only what is missing; an image that changed gets a new copy."""
    source, thumbnails = tmp_path / "images" / "a.png", Thumbnails(tmp_path)
    source.parent.mkdir()
    Image.new("RGB", (1600, 400), "red").save(source)
    assert thumbnails.make([source, tmp_path / "missing.png"]) == 1
    assert thumbnails.make([source]) == 0
    first = thumbnails.path_of(source)
    assert first is not None
    with Image.open(first) as copy:
        assert (copy.format, copy.size) == ("WEBP", (480, 120))
    Image.new("RGB", (16, 4), "blue").save(source)
    assert thumbnails.make([source]) == 1
    assert thumbnails.path_of(source) != first


def test_small_copies_stop_when_asked(tmp_path: Path) -> None:
    """The rest is made by the next call."""
    source = tmp_path / "a.png"
    Image.new("RGB", (10, 10)).save(source)
    assert Thumbnails(tmp_path).make([source], is_over=lambda: True) == 0
    assert Thumbnails(tmp_path).make([source]) == 1


@pytest.mark.parametrize("content", [b"", b"<p>not an image</p>", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_damaged_images_get_no_small_copy(tmp_path: Path, content: bytes) -> None:
    """They are left out, and no part of a file stays."""
    (tmp_path / "a.png").write_bytes(content)
    assert Thumbnails(tmp_path).make([tmp_path / "a.png"]) == 0
    assert list((tmp_path / "thumbnails").iterdir()) == []


def test_huge_images_get_no_small_copy(tmp_path: Path) -> None:
    """The size is read from the header: an image of 64 million pixels is not decoded."""
    Image.new("1", (8_000, 8_000)).save(tmp_path / "a.png")
    assert Thumbnails(tmp_path).make([tmp_path / "a.png"]) == 0


def test_small_copies_are_upright_and_keep_transparency(tmp_path: Path) -> None:
    """EXIF turns are applied; transparent images stay transparent; CMYK becomes RGB."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("CMYK", (900, 300)).save(tmp_path / "turned.jpg", exif=turned)
    Image.new("LA", (300, 300), (10, 0)).save(tmp_path / "clear.png")
    thumbnails = Thumbnails(tmp_path)
    assert thumbnails.make(sorted(tmp_path.glob("*.*"))) == 2
    seen = []
    for name in ("turned.jpg", "clear.png"):
        with Image.open(thumbnails.path_of(tmp_path / name) or "") as copy:
            seen.append((copy.mode, copy.height > copy.width))
    assert seen == [("RGB", True), ("RGBA", False)]


# --- what was changed -------------------------------------------------------------------------------------


def test_outlines_of_results_of_older_journals_are_found_once(tmp_path: Path) -> None:
    """JPEG files, where every pixel differs, images of other sizes and damaged ones have none."""
    before, after, other = (tmp_path / f"{name}.png" for name in ("before", "after", "other"))
    assert Holes(Thumbnails(tmp_path)).of(tmp_path / "lossy.jpg") == ()
    Image.new("RGB", (64, 64)).save(before)
    Image.new("RGB", (64, 64), "white").save(after)
    Image.new("RGB", (32, 64)).save(other)
    holes = Holes(Thumbnails(tmp_path))
    assert holes.of(after) is None
    assert holes.make([(before, after), (before, other), (tmp_path / "none.png", before)]) == 2
    assert [sorted(outline) for outline in holes.of(after) or ()] == [[0, 0, 0, 0, 1000, 1000, 1000, 1000]]
    assert holes.of(other) == ()
    assert holes.of(before) is None
