"""The clients of ``batch.py``, each in a process of its own: ``python batch_clients.py NAME URL …``.

What each needs it imports itself, so that none pays for what others use. Each prints what it took as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.machinery
import importlib.util
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parents[2] / "tests/samples/api_page/sample.py"
PROMPT = "Remove all text from this image while preserving the background"
PAGE_POLL_S, PAGE_WAIT_S = 3.0, 300.0


class Order(argparse.Namespace):
    """What a client is asked to do.

    Attributes:
        url: The server.
        tasks: How many pictures.
        slots: How many at once.
        speed: By how much everything is shorter than at the vendor.
        paced: Whether to keep the vendor's 20 submits in 10 s.
        journal: Where a client may keep one.
        start_s: CPU of the process when the client first asked for the pictures: imports, and a client made.
    """

    name: str
    url: str
    tasks: int
    slots: int
    speed: float
    paced: bool
    journal: str
    start_s: float | None = None

    @property
    def images(self) -> list[str]:
        """The pictures."""
        if self.start_s is None:
            self.start_s = cpu_s()
        return [f"https://pictures.example/a/folder/of/many/{n}.jpg" for n in range(self.tasks)]


# --- what users write -------------------------------------------------------------------------------------


def page_in_threads(order: Order) -> int:
    """The API page's own Python sample, unchanged but for address and waits, in threads."""
    spec = importlib.util.spec_from_file_location("sample", SAMPLE)
    assert spec is not None
    assert spec.loader is not None
    sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sample)
    sample.time = types.SimpleNamespace(time=time.time, sleep=lambda s: time.sleep(s / order.speed))  # type: ignore[attr-defined]
    api = sample.FluxKontextAPI("test")
    api.base_url = f"{order.url}/api/v1/flux/kontext"

    def one(image: str) -> bool:
        return bool(api.process_image_text_removal(image)["resultImageUrl"])

    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),  # it prints a lot
        ThreadPoolExecutor(order.slots) as threads,
    ):
        return sum(threads.map(one, order.images))


async def asked(request: Coroutine[Any, Any, Any]) -> Any:
    """Return the JSON of an answer, in the way of httpx or of aiohttp."""
    said = (await request).json()
    return await said if asyncio.iscoroutine(said) else said


async def remove_text(client: Any, order: Order, image: str, *, look_first: bool = False) -> str:
    """Submit one image and poll every 3 s, as the page does, until it is done."""
    base = f"{order.url}/api/v1/flux/kontext"
    body = {"prompt": PROMPT, "inputImage": image, "model": "flux-kontext-pro", "enableTranslation": True}
    answer = await asked(client.post(f"{base}/generate", json=body))
    if answer["code"] != 200:
        raise RuntimeError(answer["msg"])
    task_id = answer["data"]["taskId"]
    begun = time.monotonic()
    while time.monotonic() - begun < PAGE_WAIT_S:
        if not look_first:
            await asyncio.sleep(PAGE_POLL_S / order.speed)
        look_first = False
        answer = await asked(client.get(f"{base}/record-info", params={"taskId": task_id}))
        if answer["code"] != 200:
            raise RuntimeError(answer["msg"])
        if answer["data"]["successFlag"] == 1:
            return str(answer["data"]["response"]["resultImageUrl"])
        if answer["data"]["successFlag"] in {2, 3}:
            raise RuntimeError(answer["data"]["errorMessage"])
    raise TimeoutError(task_id)


def httpx_client() -> Any:
    """Return the client that httpx's own documentation makes, with patience."""
    import httpx  # noqa: PLC0415

    return httpx.AsyncClient(headers={"Authorization": "Bearer test"}, timeout=60.0)


async def chunks(order: Order) -> int:
    """The page's batch: chunks, each as fast as its slowest. It polls before it sleeps, as the page does."""
    finished = 0
    async with httpx_client() as client:
        for first in range(0, order.tasks, order.slots):
            batch = order.images[first : first + order.slots]
            results = await asyncio.gather(  # noqa: TID251 - it is what users write
                *(remove_text(client, order, image, look_first=True) for image in batch),
                return_exceptions=True,
            )
            finished += sum(isinstance(result, str) for result in results)
    return finished


def aiohttp_client() -> Any:
    """Return the same of aiohttp."""
    import aiohttp  # noqa: PLC0415

    return aiohttp.ClientSession(headers={"Authorization": "Bearer test"})


async def gather(order: Order, make_client: Callable[[], Any] = httpx_client) -> int:
    """All of them at once, held back by a semaphore; it sleeps before it polls, which saves a request."""
    slots = asyncio.Semaphore(order.slots)
    async with make_client() as client:

        async def one(image: str) -> str:
            async with slots:
                return await remove_text(client, order, image)

        results = await asyncio.gather(*map(one, order.images), return_exceptions=True)  # noqa: TID251 - as above
    return sum(isinstance(result, str) for result in results)


async def aiometer(order: Order) -> int:
    """The same, held back by aiometer, which can also keep a rate limit."""
    import aiometer as library  # noqa: PLC0415

    async with httpx_client() as client:

        async def one(image: str) -> bool:
            try:
                return bool(await remove_text(client, order, image))
            except RuntimeError:
                return False

        rate = 2.0 * order.speed if order.paced else None
        async with library.amap(one, order.images, max_at_once=order.slots, max_per_second=rate) as results:
            return sum([result async for result in results])


# --- ours -------------------------------------------------------------------------------------------------


async def ours(order: Order, *, transport: str) -> int:
    """``run_batch``, with a journal on a file."""
    from flux_async import FluxClient, Limits, PollPolicy, Succeeded, run_batch  # noqa: PLC0415

    policy = PollPolicy()
    polling = PollPolicy(poll_cost_s=policy.poll_cost_s / order.speed, cap_s=policy.cap_s / order.speed)
    rate = {"window_s": 10.0 / order.speed} if order.paced else {"submits": 10**6, "window_s": 1.0}
    limits = Limits(in_flight=order.slots, **rate)  # type: ignore[arg-type]
    finished = 0
    async with (
        FluxClient(
            "test",
            order.url,
            limits=limits,
            polling=polling,
            transport=transport,
        ) as client,
        run_batch(client, iter(order.images), journal=order.journal) as batch,
    ):
        async for outcome in batch:
            finished += isinstance(outcome, Succeeded)
    return finished


# --- the process ------------------------------------------------------------------------------------------

CLIENTS: dict[str, Callable[[Order], int | Coroutine[Any, Any, int]]] = {
    "page": page_in_threads,
    "chunks": chunks,
    "gather": gather,
    "gather-aiohttp": functools.partial(gather, make_client=aiohttp_client),
    "aiometer": aiometer,
    "ours-httpx": functools.partial(ours, transport="httpx"),
    "ours-httpx2": functools.partial(ours, transport="httpx2"),
    "ours-aiohttp": functools.partial(ours, transport="aiohttp"),
}


class WithoutSniffio(importlib.machinery.PathFinder):
    """Searches for ``sniffio`` in vain, as long as it would take where it is not installed."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Find everything else."""
        return super().find_spec("not_sniffio" if fullname == "sniffio" else fullname, path, target)


def hide_sniffio() -> None:
    """Have what ``pip install httpx`` brings: httpx searches for sniffio at every lock, in vain."""
    at = sys.meta_path.index(importlib.machinery.PathFinder)  # type: ignore[arg-type]
    sys.meta_path[at] = WithoutSniffio  # type: ignore[call-overload]


def cpu_s() -> float:
    """Return the CPU this process has used, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    """Return the most memory this process has held."""
    # Where there is no such file: getrusage also counts what the parent held at the fork.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Do it, and print what it took: CPU of the whole process, and the part of it before the first task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CLIENTS)
    parser.add_argument("url")
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--speed", type=float, required=True)
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--sniffio", action="store_true")
    parser.add_argument("--journal", required=True)
    order = parser.parse_args(namespace=Order())
    if not order.sniffio:
        hide_sniffio()
    begun = time.perf_counter()
    done = CLIENTS[order.name](order)
    finished = done if isinstance(done, int) else asyncio.run(done)
    figures = {"finished": finished, "seconds": time.perf_counter() - begun, "cpu_s": cpu_s()}
    print(json.dumps(figures | {"start_s": order.start_s, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
