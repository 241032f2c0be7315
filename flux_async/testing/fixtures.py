"""Fixtures for a copy of the pytest plugin that was installed before the plugin contained them."""

from __future__ import annotations

from collections.abc import Iterator
from time import time
from typing import Any

import pytest

from flux_async.testing.callbacks import WEBHOOK_KEY, SignCallback
from flux_async.testing.clock import VirtualClock
from flux_async.testing.sandbox import FluxSandbox

MARKER = "flux_sandbox"


def clock(request: pytest.FixtureRequest, _monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """Make virtual time."""
    if "flux_clock" not in request.node.fixturenames:
        pytest.fail(
            "flux_clock must be an argument of the test or of one of its fixtures: a sandbox that runs "
            "already cannot be given another time.",
            pytrace=False,
        )
    return VirtualClock()


def sandbox(request: pytest.FixtureRequest) -> Iterator[FluxSandbox]:
    """Run a sandbox as the markers of the test say, on virtual time if the test asks for that."""
    options = options_for(request)
    if "flux_clock" in request.node.fixturenames:
        options["clock"] = request.getfixturevalue("flux_clock")
    with FluxSandbox(**options) as made:
        yield made


def options_for(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what the markers say, the nearest last, and then the parameter of an indirect fixture."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers(MARKER))):
        if marker.args:
            pytest.fail(f"the options of @pytest.mark.{MARKER} have names: faults='500:5%'", pytrace=False)
        options |= marker.kwargs
    return options | dict(getattr(request, "param", {}))


def callback_signer(request: pytest.FixtureRequest) -> SignCallback:
    """Make the maker of callbacks: with the key and the clock of the test, if it has any."""
    named, key, now = request.node.fixturenames, WEBHOOK_KEY, time
    if "flux_sandbox" in named:
        key = request.getfixturevalue("flux_sandbox").webhook_key or WEBHOOK_KEY
    if "flux_clock" in named:
        now = request.getfixturevalue("flux_clock").wall
    return SignCallback(key, now)
