"""The pytest plugin of flux_async: names its fixtures and its marker, and loads the rest when one is used.

It is installed beside the package, as ``flux_async_pytest``: pytest imports the plugins of everything that is
installed, at every run and before coverage is measured. This file costs that run nothing, and the package is
left alone. Without it: ``pytest -p no:flux_async``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flux_async.client import FluxClient
    from flux_async.testing import FluxLedger, FluxSandbox, SignCallback, VirtualClock


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "flux_sandbox(sockets=False, faults='', **settings): how the sandbox of this test behaves, such as "
        "faults='drop-reply:1%'; with sockets=True it listens on a port.",
    )


@pytest.fixture
def flux_sandbox(request: pytest.FixtureRequest) -> Iterator[FluxSandbox]:
    """The vendor, for this test; the marker ``flux_sandbox`` says how it behaves."""
    from flux_async.testing import fixtures  # noqa: PLC0415 - see above

    yield from fixtures.sandbox(request)


@pytest.fixture
def flux_client(flux_sandbox: FluxSandbox) -> FluxClient:
    """A client of that sandbox."""
    return flux_sandbox.client()


@pytest.fixture
def flux_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """Virtual time for the sandbox and its clients: no waiting is real."""
    from flux_async.testing import fixtures  # noqa: PLC0415 - see above

    return fixtures.clock(request, monkeypatch)


@pytest.fixture
def flux_ledger(flux_sandbox: FluxSandbox) -> Iterator[FluxLedger]:
    """What the sandbox has charged; at the end the test fails if an image was charged twice."""
    yield flux_sandbox.ledger
    flux_sandbox.ledger.check()


@pytest.fixture
def sign_callback(request: pytest.FixtureRequest) -> SignCallback:
    """Makes headers and body of a callback, signed as the vendor does."""
    from flux_async.testing import fixtures  # noqa: PLC0415 - see above

    return fixtures.callback_signer(request)
