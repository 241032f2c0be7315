"""The page of the sandbox: contents, search, filters, and that a browser can draw it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_http
from browser import find_browser
from flux_async.sandbox import Sandbox, VirtualTime

GENERATE = "/api/v1/flux/kontext/generate"
KEY = {"Authorization": "Bearer test"}


@pytest.fixture
async def web() -> AsyncIterator[httpx.AsyncClient]:
    """A sandbox with three tasks: one done, one failed, one that never ends."""
    async with Sandbox(clock=VirtualTime()) as sandbox, sandbox.http_client(KEY) as web:
        for name, prompt, fault in (
            ("poster", "Remove the text", ""),
            ("menu", "Remove all words", "fail-400"),
            ("flyer", "Paint it black", "never-ends,times-iso"),
        ):
            body = {"prompt": prompt, "inputImage": f"https://pictures.example/{name}.jpg"}
            await web.post(GENERATE, json=body, headers={"X-Sandbox-Fault": fault})
        await sandbox.advance(120)
        yield web


async def found(web: httpx.AsyncClient, **query: str) -> list[str]:
    """Return the names of the images whose tasks are shown."""
    part = (await web.get("/__sandbox/tasks", params=query)).text
    return re.findall(r"pictures\.example/(\w+)\.jpg</p>", part)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, ["flyer", "menu", "poster"]),
        ({"q": "remove"}, ["menu", "poster"]),
        ({"q": "REMOVE words"}, ["menu"]),
        ({"q": "flyer.jpg"}, ["flyer"]),
        ({"q": "times-iso"}, ["flyer"]),
        ({"state": "done"}, ["poster"]),
        ({"state": "failed"}, ["menu"]),
        ({"state": "generating"}, ["flyer"]),
        ({"state": "failed", "q": "poster"}, []),
        ({"state": "unknown"}, ["flyer", "menu", "poster"]),
    ],
)
async def test_search(web: httpx.AsyncClient, query: dict[str, str], names: list[str]) -> None:
    """Tasks are found by image, prompt, fault and state; the page itself takes the same query."""
    assert await found(web, **query) == names
    page = (await web.get("/", params=query)).text
    assert [name for name in ("flyer", "menu", "poster") if f"{name}.jpg" in page] == sorted(names)
    assert ("No task is like that." in page) is (names == [])


async def test_cards(web: httpx.AsyncClient) -> None:
    """A card shows the faults, the time, the duration and the charge."""
    part = (await web.get("/__sandbox/tasks")).text
    assert '<b class="fault">times-iso</b>' in part
    assert re.search(r"\d\d:\d\d:\d\d · 120\.0 s", part)
    assert "refunded · 0 polls" in part
    assert "<dt>Faults</dt><dd>3</dd>" in part
    assert "<dt>Paid twice</dt><dd>0</dd>" in part


async def test_tasks_of_the_jobs_api_are_shown(web: httpx.AsyncClient) -> None:
    """With their API and model, and found by it; others are those of the Kontext API."""
    body = {"prompt": "x", "image_urls": ["https://pictures.example/flower.jpg"]}
    await web.post("/api/v1/jobs/createTask", json={"model": "google/nano-banana-edit", "input": body})
    assert await found(web, q="nano-banana") == ["flower"]
    part = (await web.get("/__sandbox/tasks")).text
    assert "4 credits · 0 polls · google/nano-banana-edit · jobs" in part
    assert part.count("· jobs") == 1


async def test_a_double_charge_stands_out(web: httpx.AsyncClient) -> None:
    """The figure turns red when the same request has been paid twice; two edits of one image are none."""
    assert 'class="bad">1</dd>' not in (await web.get("/__sandbox/tasks")).text
    body = {"prompt": "x", "inputImage": "https://pictures.example/poster.jpg"}
    await web.post(GENERATE, json=body)
    assert 'class="bad">1</dd>' not in (await web.get("/__sandbox/tasks")).text
    await web.post(GENERATE, json=body)
    assert '<dt>Paid twice</dt><dd class="bad">1</dd>' in (await web.get("/__sandbox/tasks")).text


async def test_the_whole_task_id_can_be_copied(web: httpx.AsyncClient) -> None:
    """It is needed for `flux-async task` and `adopt`."""
    part = (await web.get("/__sandbox/tasks")).text
    listed = [task["taskId"] for task in (await web.get("/__sandbox/ledger")).json()["tasks"]]
    assert re.findall(r'<code class="id">(\w+)</code>', part) == listed


async def test_unknown_fields_are_shown(web: httpx.AsyncClient) -> None:
    """A misspelled field has no effect, as at the vendor, and can be seen."""
    assert "<dt>Unknown fields</dt><dd>0</dd>" in (await web.get("/__sandbox/tasks")).text
    await web.post(GENERATE, json={"prompt": "x", "safety_tolerance": 2})
    assert "<dt>Unknown fields</dt><dd>1</dd>" in (await web.get("/__sandbox/tasks")).text


async def test_foreign_text_is_escaped(web: httpx.AsyncClient) -> None:
    """Neither an image's address nor a search puts markup on the page."""
    body = {"prompt": "x", "inputImage": 'https://pictures.example/"><script>alert(1)</script>.jpg'}
    await web.post(GENERATE, json=body)
    for path in ("/", "/?q=<script>alert(1)", "/__sandbox/tasks?q=alert"):
        assert "<script>alert" not in (await web.get(path)).text


@pytest.mark.parametrize("width", [375, 1280])
def test_browser(start_sandbox: Any, width: int, tmp_path: Path) -> None:
    """A browser draws the page without an error of its script, and nothing is wider than the screen."""
    browser = find_browser()
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium to draw the page: apt-get install chromium")
        pytest.skip("no chromium on this machine: the page is not drawn")
    sandbox = start_sandbox("--images", "none", "--speed", "1000")
    for name in ("an-image-" + "x" * 150, "flyer"):
        body = {"prompt": "Remove the text " * 20, "inputImage": f"https://pictures.example/{name}.jpg"}
        local_http.post(sandbox.url + GENERATE, json=body, headers=KEY)
    drawn = draw(browser, f"{sandbox.url}/?state=done", width, tmp_path)
    assert drawn.count("<article") == 2
    framed = draw(browser, in_a_frame(sandbox.url, width, tmp_path), width, tmp_path)
    assert f"<title>{width} of {width}</title>" in framed


def in_a_frame(url: str, width: int, folder: Path) -> str:
    """Return the address of a frame as wide as a screen, whose title says how wide the page in it becomes.

    The browser's own window cannot be made as narrow as a phone where its content is to be read.
    """
    reported = "parent.postMessage(document.documentElement.scrollWidth + ' of ' + innerWidth, '*')"
    page = local_http.get(f"{url}/").text.replace("<head>", f'<head><base href="{url}/">')
    copy, frame = folder / "copy.html", folder / "frame.html"
    copy.write_text(page.replace("</body>", f"<script>{reported}</script></body>"), encoding="utf-8")
    frame.write_text(
        "<title></title><script>onmessage = message => document.title = message.data</script>"
        f'<iframe src="{copy.as_uri()}" style="border: 0; width: {width}px; height: 1200px"></iframe>'
    )
    return frame.as_uri()


def draw(browser: str, url: str, width: int, folder: Path) -> str:
    """Have the page drawn, and return what the browser made of it."""
    image = folder / "page.png"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    command = [
        browser,
        *options,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},1200",
        "--virtual-time-budget=2500",
    ]
    shot = [*command, f"--screenshot={image}", url]
    subprocess.run(shot, capture_output=True, timeout=240, check=True)
    assert image.read_bytes().startswith(b"\x89PNG")
    dumped = subprocess.run(
        [*command, "--dump-dom", "--enable-logging=stderr", url],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "Uncaught" not in dumped.stderr
    return dumped.stdout
