"""The library that makes the requests: argument, ``KIE_TRANSPORT``, default."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import httpx
import httpx2
import pytest

from flux_async import ConfigurationError, FluxClient, MissingExtra

KEY = "k-secret-0123456789"
NAMES = ["httpx", "httpx2", "aiohttp"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove proxies and the choice of a transport from the environment."""
    monkeypatch.delenv("KIE_TRANSPORT", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def without(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Make imports of ``library`` fail, as if it were not installed."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "flux_async.transport.aiohttp_", raising=False)
    monkeypatch.delattr("flux_async.transport.aiohttp_", raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_named_library_is_used_and_shown(name: Any) -> None:
    """In the property ``transport_name`` and the repr, also of a client with other options."""
    client = FluxClient(KEY, transport=name)
    assert client.transport_name == name
    assert client.with_options(timeout=1).transport_name == name
    assert repr(client) == f"<FluxClient https://api.kie.ai through {name}>"


def test_the_default_is_httpx_whatever_is_installed() -> None:
    """Installing aiohttp does not change which library makes paid requests."""
    assert importlib.util.find_spec("aiohttp") is not None
    assert FluxClient(KEY).transport_name == "httpx"


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_names_the_transport(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An argument wins over ``KIE_TRANSPORT``; an empty variable is none."""
    monkeypatch.setenv("KIE_TRANSPORT", f" {name} ")
    assert FluxClient(KEY).transport_name == name
    assert FluxClient(KEY, transport="httpx").transport_name == "httpx"
    monkeypatch.setenv("KIE_TRANSPORT", "")
    assert FluxClient(KEY).transport_name == "httpx"


@pytest.mark.parametrize("name", ["auto", "curl", "AIOHTTP"])
def test_a_wrong_name_in_the_environment_is_one_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It names the variable, the choices and the value."""
    monkeypatch.setenv("KIE_TRANSPORT", name)
    with pytest.raises(ConfigurationError) as caught:
        FluxClient(KEY)
    assert caught.value.message == f"KIE_TRANSPORT must be httpx, httpx2 or aiohttp, not {name!r}."


@pytest.mark.parametrize("version", ["3.8.6", "3.12.15", "4.0.0a1", "odd"])
def test_an_unsupported_version_of_aiohttp_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The error contains the command that updates it."""
    monkeypatch.setattr("aiohttp.__version__", version)
    with pytest.raises(MissingExtra, match="pip install --upgrade"):
        FluxClient(KEY, transport="aiohttp")


@pytest.mark.parametrize("name", ["httpx2", "aiohttp"])
def test_a_library_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    """It is not replaced by another."""
    without(monkeypatch, name)
    with pytest.raises(MissingExtra, match=rf"flux-async\[{name}\]"):
        FluxClient(KEY, transport=name)


@pytest.mark.parametrize("transport", ["", "auto", "curl", "AIOHTTP", 7, object()])
def test_an_unknown_transport_is_refused_with_the_choices(transport: Any) -> None:
    """An object that is no transport is refused as well."""
    with pytest.raises(
        ConfigurationError, match="transport must be httpx, httpx2 or aiohttp, or a Transport, not"
    ):
        FluxClient(KEY, transport=transport)


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_http_client_and_transport_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, library: Any
) -> None:
    """The caller's client wins over the environment, and its library is shown."""
    monkeypatch.setenv("KIE_TRANSPORT", "aiohttp")
    async with library.AsyncClient() as given:
        assert FluxClient(KEY, http_client=given).transport_name == library.__name__
        for transport in (*NAMES, object()):
            with pytest.raises(ConfigurationError, match="either http_client or transport"):
                FluxClient(KEY, http_client=given, transport=transport)
    with httpx.Client() as sync, pytest.raises(ConfigurationError):
        FluxClient(KEY, http_client=sync)  # type: ignore[arg-type]


def test_a_transport_of_the_caller_is_shown_by_its_class(transport: Any) -> None:
    """In the property ``transport_name``."""
    assert FluxClient(KEY, transport=transport).transport_name == "ScriptedVendor"
