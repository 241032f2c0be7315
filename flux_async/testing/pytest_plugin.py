"""The pytest plugin of flux_async: its fixtures and its marker.

It is installed beside the package, as ``flux_async_pytest``: pytest imports the plugins of all installed
packages at every run, and before coverage is measured. This file therefore imports the package only when a
fixture is used. Without it: ``pytest -p no:flux_async``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flux_async.client import FluxClient
    from flux_async.testing import FluxLedger, FluxSandbox, SignCallback, VirtualClock

MARKER = "flux_sandbox"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(sockets=False, api=None, faults='', **settings): how the sandbox of this test behaves, "
        "such as faults='drop-reply:1%'; with sockets=True it listens on a port.",
    )


@pytest.fixture
def flux_sandbox(request: pytest.FixtureRequest) -> Iterator[FluxSandbox]:
    """The vendor, for this test; the marker ``flux_sandbox`` sets its behaviour."""
    from flux_async.testing import FluxSandbox  # noqa: PLC0415 - see the module's docstring

    options = _options(request)
    if "flux_clock" in request.node.fixturenames:
        options["clock"] = request.getfixturevalue("flux_clock")
    with FluxSandbox(**options) as sandbox:
        yield sandbox


@pytest.fixture
def flux_client(flux_sandbox: FluxSandbox) -> FluxClient:
    """A client of that sandbox."""
    return flux_sandbox.client()


@pytest.fixture
def flux_clock(request: pytest.FixtureRequest) -> VirtualClock:
    """Virtual time for the sandbox and its clients: no wait takes real time."""
    from flux_async.testing import VirtualClock  # noqa: PLC0415 - see the module's docstring

    if "flux_clock" not in request.node.fixturenames:
        pytest.fail(
            "flux_clock must be an argument of the test or of one of its fixtures: the clock of a running "
            "sandbox cannot be replaced.",
            pytrace=False,
        )
    return VirtualClock()


@pytest.fixture
def flux_ledger(flux_sandbox: FluxSandbox) -> Iterator[FluxLedger]:
    """The sandbox's charges; at the end the test fails if an image was charged twice."""
    yield flux_sandbox.ledger
    flux_sandbox.ledger.check()


@pytest.fixture
def sign_callback(request: pytest.FixtureRequest) -> SignCallback:
    """Makes headers and body of a callback, signed as the vendor does."""
    from flux_async.testing import SignCallback  # noqa: PLC0415 - see the module's docstring

    options: dict[str, Any] = {}
    if "flux_sandbox" in request.node.fixturenames:
        key = request.getfixturevalue("flux_sandbox").webhook_key
        options |= {} if key is None else {"default_key": key}
    if "flux_clock" in request.node.fixturenames:
        options["now"] = request.getfixturevalue("flux_clock").wall
    return SignCallback(**options)


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of all markers, of which the nearest overrides, and of the parameter of an indirect fixture."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers(MARKER))):
        if marker.args:
            pytest.fail(f"The options of @pytest.mark.{MARKER} are keywords: faults='500:5%'.", pytrace=False)
        options |= marker.kwargs
    return options | dict(getattr(request, "param", {}))
