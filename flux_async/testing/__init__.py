"""A test kit: the sandbox, virtual time, a ledger that fails on a double charge, and signed callbacks.

Its pytest fixtures ``flux_sandbox``, ``flux_client``, ``flux_clock``, ``flux_ledger`` and ``sign_callback``
exist wherever the package is installed. This module holds their types. Their dependencies are installed by
``pip install 'flux-async[testing]'``.
"""

from __future__ import annotations

from flux_async.testing.callbacks import SignCallback, SignedCallback
from flux_async.testing.clock import VirtualClock
from flux_async.testing.ledger import FluxLedger, PaidTwice
from flux_async.testing.sandbox import FluxSandbox

__all__ = ["FluxLedger", "FluxSandbox", "PaidTwice", "SignCallback", "SignedCallback", "VirtualClock"]
