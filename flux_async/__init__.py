"""Async client for KIE AI's Flux Kontext image API, first of all for removing text from images.

``async with FluxClient() as client: image = await client.remove_text("https://…/poster.jpg")``
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux_async.public import *  # noqa: F403 - the names are listed there

__version__ = "0.1.0"

# The names are loaded with the first that is used: until then Ctrl-C meets nothing but this file, and the
# command line can end without a traceback.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        public = vars(import_module("flux_async.public"))
        # pytest adds "@pytest_ar" to the modules whose assertions it rewrites: that is no name.
        names = sorted(
            each for each in public if each != "annotations" and each.isidentifier() and each[0] != "_"
        )
        if name == "__all__":
            return names
        if name not in names:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return public[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
