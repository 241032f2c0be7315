"""A local service that speaks the vendor's API, for tests, demonstrations and dry runs.

It shares no code with the client of this package, so that a mistake in one of them fails against the other.
Needs ``pip install 'flux-async[sandbox]'``; importing this module does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux_async.sandbox.app import Sandbox, create_app
    from flux_async.sandbox.clock import VirtualTime
    from flux_async.sandbox.faults import Fault, FaultPlan
    from flux_async.sandbox.server import serve
    from flux_async.sandbox.settings import SandboxError, SandboxSettings

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

_HOMES = {
    "Fault": "faults",
    "FaultPlan": "faults",
    "Sandbox": "app",
    "SandboxError": "settings",
    "SandboxSettings": "settings",
    "VirtualTime": "clock",
    "create_app": "app",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    """Import the module of a name when it is used, as some need the extra."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
