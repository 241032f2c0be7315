"""A local service that speaks the vendor's API, for tests, demonstrations and dry runs.

It knows nothing of the client in this package: a mistake in one of the two shows against the other.
Needs ``pip install 'flux-async[sandbox]'``; importing this module does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flux_async.sandbox.clock import VirtualTime
from flux_async.sandbox.faults import Fault
from flux_async.sandbox.plan import FaultPlan
from flux_async.sandbox.settings import SandboxError, SandboxSettings

if TYPE_CHECKING:
    from flux_async.sandbox.app import create_app
    from flux_async.sandbox.local import Sandbox
    from flux_async.sandbox.server import serve

__all__ = [
    "Fault",
    "FaultPlan",
    "Sandbox",
    "SandboxError",
    "SandboxSettings",
    "VirtualTime",
    "create_app",
    "serve",
]


def __getattr__(name: str) -> object:
    match name:
        case "create_app":
            from flux_async.sandbox.app import create_app  # noqa: PLC0415 - needs the extra

            return create_app
        case "Sandbox":
            from flux_async.sandbox.local import Sandbox  # noqa: PLC0415 - needs the extra

            return Sandbox
        case "serve":
            from flux_async.sandbox.server import serve  # noqa: PLC0415 - needs the extra

            return serve
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
