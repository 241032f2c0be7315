"""``--transport`` and ``KIE_TRANSPORT``: which library the requests of a command are made with."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

IMAGE = "https://files.example.com/poster.jpg"
COMMANDS: dict[str, tuple[str, ...]] = {
    "credits": ("credits",),
    "generate": ("generate", "a cat"),
    "task": ("task", "t" * 32),
    "remove-text": ("remove-text", IMAGE, "--yes", "-o", "out"),
}


async def libraries_of(raw_server: Any, make: Any, cli: Any, *arguments: str, **variables: str) -> set[str]:
    """Return the libraries that a command's requests name in their User-Agent; the server refuses the key."""

    async def behave(*args: Any) -> bool:
        args[3].write(make.http(b'{"code":401,"msg":"no"}'))
        return True

    async with raw_server(behave) as server:
        command = attrs.evolve(cli, base_url=server.url, more=variables)
        ended = await asyncio.to_thread(command.run_apart, *arguments)
        assert server.requests, ended.stderr
    agents = (headers["user-agent"] for _, headers, _ in server.requests)
    return {agent.rpartition("; ")[2].partition("/")[0] for agent in agents}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_a_command_uses_the_library_it_is_given(
    raw_server: Any, make: Any, offline: Any, command: tuple[str, ...]
) -> None:
    """The option wins over the environment."""
    found = await libraries_of(
        raw_server, make, offline, *command, "--transport", "httpx2", KIE_TRANSPORT="aiohttp"
    )
    assert found == {"httpx2"}


@pytest.mark.parametrize(("variables", "library"), [({"KIE_TRANSPORT": "aiohttp"}, "aiohttp"), ({}, "httpx")])
async def test_without_the_option_the_environment_decides(
    raw_server: Any, make: Any, offline: Any, variables: dict[str, str], library: str
) -> None:
    """Without either it is httpx."""
    assert await libraries_of(raw_server, make, offline, "credits", **variables) == {library}


def test_a_wrong_name_is_a_usage_error_with_the_choices(offline: Any) -> None:
    """In the option as in the environment; doctor reports it among the settings."""
    ended = offline.run("credits", "--transport", "curl")
    assert ended.code == 2
    assert all(name in ended.stderr for name in ("'httpx'", "'httpx2'", "'aiohttp'"))
    wrong = attrs.evolve(offline, more={"KIE_TRANSPORT": "curl"})
    ended = wrong.run("credits")
    assert (ended.code, "KIE_TRANSPORT must be httpx, httpx2 or aiohttp" in ended.stderr) == (2, True)
    assert "settings" in next(
        line for line in wrong.run("doctor").stdout.splitlines() if "KIE_TRANSPORT" in line
    )
