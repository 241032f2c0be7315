"""``transport=`` names the library that makes the requests; what is asked for is what is used, and shown."""

from __future__ import annotations

import sys
from typing import Any

import httpx
import httpx2
import pytest

from flux_async import ConfigurationError, FluxClient, InvalidInput, MissingExtra

KEY = "k-secret-0123456789"
NAMES = ["httpx", "httpx2", "aiohttp"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxies this machine has, the tests set their own."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def without(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Have this process behave as if ``library`` were not installed."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "flux_async.transport.aiohttp_", raising=False)
    monkeypatch.delattr("flux_async.transport.aiohttp_", raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_one_that_is_named_is_used_and_shown(name: Any) -> None:
    """By the client's property and in its repr, also by a client with other options."""
    client = FluxClient(KEY, transport=name)
    assert client.transport_name == name
    assert client.with_options(timeout=1).transport_name == name
    assert repr(client) == f"<FluxClient https://api.kie.ai through {name}>"


def test_left_alone_it_is_aiohttp_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else httpx, which always is."""
    assert FluxClient(KEY).transport_name == "aiohttp"
    without(monkeypatch, "aiohttp")
    assert FluxClient(KEY).transport_name == "httpx"


@pytest.mark.parametrize("version", ["3.8.6", "3.12.15", "4.0.0a1", "odd"])
def test_an_aiohttp_of_another_age_is_left_alone(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Unless it is asked for: then the error says what to do."""
    monkeypatch.setattr("aiohttp.__version__", version)
    assert FluxClient(KEY).transport_name == "httpx"
    with pytest.raises(MissingExtra, match="pip install --upgrade"):
        FluxClient(KEY, transport="aiohttp")


def test_a_proxy_that_aiohttp_cannot_use_leaves_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it stands before other hosts only."""
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:9")
    assert FluxClient(KEY).transport_name == "httpx"
    assert FluxClient(KEY, "http://127.0.0.1:8787").transport_name == "aiohttp"
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert FluxClient(KEY).transport_name == "aiohttp"


@pytest.mark.parametrize("name", ["httpx2", "aiohttp"])
def test_one_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    """It is not replaced by another behind the caller's back."""
    without(monkeypatch, name)
    with pytest.raises(MissingExtra, match=rf"flux-async\[{name}\]"):
        FluxClient(KEY, transport=name)


@pytest.mark.parametrize("transport", ["", "curl", "AIOHTTP", None, 7, object()])
def test_a_name_that_is_none_lists_the_choices(transport: Any) -> None:
    """And what is no transport is refused before it is used."""
    with pytest.raises(InvalidInput, match="'auto', 'httpx', 'httpx2', 'aiohttp', or a Transport"):
        FluxClient(KEY, transport=transport)


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_a_client_of_the_callers_excludes_a_transport(library: Any) -> None:
    """It decides by itself, and its library is shown."""
    async with library.AsyncClient() as given:
        assert FluxClient(KEY, http_client=given).transport_name == library.__name__
        for transport in (*NAMES, object()):
            with pytest.raises(InvalidInput, match="exclude each other"):
                FluxClient(KEY, http_client=given, transport=transport)
    with httpx.Client() as sync, pytest.raises(ConfigurationError):
        FluxClient(KEY, http_client=sync)  # type: ignore[arg-type]


def test_one_of_the_callers_own_is_shown_by_its_class(transport: Any) -> None:
    """However it is made."""
    assert FluxClient(KEY, transport=transport).transport_name == "ScriptedTransport"
