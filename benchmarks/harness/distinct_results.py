"""A sandbox whose results differ: each follows from the address of its input, so a saved one can be checked.

    python distinct_results.py --key first --speed 5 --credits 6000 --latency 1

One of fifty is larger than 8 MiB, which an object store receives in parts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import struct
import zlib
from typing import Any

from flux_async.sandbox.app import Sandbox
from flux_async.sandbox.server import listening
from flux_async.sandbox.settings import SandboxSettings

FOLDER = "/distinct/"
SIDE, LARGE_SIDE, LARGE_OF = 150, 1700, 50
RECORD = "/api/v1/flux/kontext/record-info"


def result_of(image: str) -> bytes:
    """Return the PNG that is the result for an input: noise, seeded with its address."""
    side = LARGE_SIDE if zlib.crc32(image.encode()) % LARGE_OF == 0 else SIDE
    noise = random.Random(image)
    rows = b"".join(b"\0" + noise.randbytes(3 * side) for _ in range(side))
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows, 0),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )


class DistinctResults:
    """An ASGI application: a sandbox, in whose records the address of each result is one of its own."""

    def __init__(self, app: Any) -> None:
        self.app, self.url = app, ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with an image, or as the sandbox does."""
        if scope["path"].startswith(FOLDER):
            name = scope["path"].removeprefix(FOLDER).removesuffix(".png")
            content = await asyncio.to_thread(result_of, bytes.fromhex(name).decode())
            await answer(send, content, [(b"content-type", b"image/png")])
        elif scope["path"] == RECORD:
            await self._record(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _record(self, scope: Any, receive: Any, send: Any) -> None:
        messages: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            messages.append(message)

        await self.app(scope, receive, keep)
        body = b"".join(message.get("body", b"") for message in messages[1:])
        record = json.loads(body)
        data = record.get("data") or {}
        if (response := data.get("response")) and response.get("resultImageUrl"):
            image = json.loads(data["paramJson"])["inputImage"]
            response["resultImageUrl"] = f"{self.url}{FOLDER}{image.encode().hex()}.png"
            body = json.dumps(record).encode()
        headers = [pair for pair in messages[0]["headers"] if pair[0] != b"content-length"]
        await answer(send, body, headers, messages[0]["status"])


async def answer(send: Any, body: bytes, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
    """Send a response."""
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", required=True)
    for name in ("speed", "credits", "latency"):
        parser.add_argument(f"--{name}", type=float, default=1.0)
    given = parser.parse_args()
    settings = SandboxSettings(
        images="none", keys=(given.key,), speed=given.speed, credits=given.credits, latency=given.latency
    )
    async with Sandbox(settings) as vendor:
        app = DistinctResults(vendor.app)
        async with listening(app, port=0) as app.url:
            print(f"vendor ready at {app.url}", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
