"""Answers of a file host, for tests on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs

JPEG = (
    b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xc0\x00\x0b\x08\x00\x10\x00\x20\x01\x01\x11\x00"
    b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(100) + b"\xff\xd9"
)
"""The smallest file that a download accepts as an image."""


@attrs.frozen
class FileAnswer:
    """One answer: what ``transport.fetch`` opens."""

    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict, kw_only=True)
    body: bytes = attrs.field(default=JPEG, kw_only=True)
    host: str = attrs.field(default="files.example", kw_only=True)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Send the body at once."""
        yield self.body
