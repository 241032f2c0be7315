"""A client that is used where it does not belong, or never closed, is named by where it was made."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from flux_async import FluxClient, WrongEventLoop
from flux_async.session import place_of_caller

_FORK = """
import asyncio, os, sys
from flux_async import FluxClient, FluxError, Journal
from flux_async.api.envelope import WireResponse
from flux_async.transport import Answered


class Vendor:
    async def exchange(self, request, *, timeout_s):
        return Answered(WireResponse(status=200, headers={}, body=b'{"code":200,"data":42}'))

    async def aclose(self):
        pass


unused = FluxClient("key", "http://127.0.0.1:1", transport=Vendor())
used = FluxClient("key", "http://127.0.0.1:1", transport=Vendor())


journal = Journal(sys.argv[1])


async def main():
    await journal.open()
    await used.credits()


asyncio.run(main())
if os.fork():
    os.wait()
    os._exit(0)
for ask in (used.credits, journal.counts, unused.credits):
    try:
        print(asyncio.run(ask()), flush=True)
    except FluxError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX only")
def test_a_forked_process_gets_an_error_instead_of_hanging(tmp_path: Path) -> None:
    """What was in use before the fork is refused; a client that was only made before it works."""
    script = tmp_path / "server.py"
    script.write_text(_FORK)
    command = [sys.executable, str(script), str(tmp_path / "run.sqlite3")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    client, journal, balance = done.stdout.splitlines()
    assert client.startswith("WrongEventLoop: This client, made at ")
    assert "server.py:17, was in use when this process was forked" in client
    assert "preload_app of gunicorn" in client
    assert journal.startswith("WrongEventLoop: This journal was open when this process was forked.")
    assert balance == "42.0"


def test_a_client_of_another_loop_is_named_by_its_place(transport: Any, make: Any, clock: Any) -> None:
    """The message has file and line of the call that made it."""
    client = FluxClient(make.key, transport=transport, clock=clock)
    asyncio.run(client.credits())
    with pytest.raises(WrongEventLoop, match=r"made at .*test_process_safety\.py:\d+, belongs to another"):
        asyncio.run(client.credits())


def test_a_client_that_is_never_closed_is_a_resource_warning(transport: Any, make: Any, clock: Any) -> None:
    """Once it was used; one that was closed, or never used, is none."""

    async def use(client: FluxClient, *, closes: bool) -> None:
        await client.credits()
        if closes:
            await client.aclose()

    gc.collect()  # clients of other tests
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FluxClient(make.key, transport=transport, clock=clock)
        asyncio.run(use(FluxClient(make.key, transport=transport, clock=clock), closes=True))
        gc.collect()
        assert not [each for each in caught if "FluxClient" in str(each.message)]
        asyncio.run(use(FluxClient(make.key, transport=transport, clock=clock), closes=False))
        gc.collect()
    (warning,) = [each for each in caught if "FluxClient" in str(each.message)]
    assert warning.category is ResourceWarning
    assert "never closed; it was made at" in str(warning.message)
    assert "test_process_safety.py" in str(warning.message)


def test_the_place_is_outside_of_the_package() -> None:
    """Where there is none, the message says so."""
    assert place_of_caller().startswith(f"{__file__}:")
