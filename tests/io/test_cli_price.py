"""A vendor that charges another price than expected, from the command line."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def dear(make_cli: Any, start_sandbox: Any) -> Any:
    """A command line whose sandbox charges 55 credits for an image of Kontext Pro."""
    return make_cli(start_sandbox("--speed", "100", "--images", "none", "--faults", "overcharge=11").url)


def test_an_unexpected_price_is_paid_once_and_named(
    dear: Any, image_host: Any, request: pytest.FixtureRequest
) -> None:
    """Exit 3 after one of six; the same command pays nothing more, and with --price it finishes."""
    images = [str(url) for url in image_host.more(request.node.name, 6)]
    command = ("remove-text", *images, "--rate", "20/0.5", "-o", "out")
    dear.teach_times()
    ended = dear.run(*command)
    assert ended.code == 3, ended.stderr
    assert "Halted: An image with flux-kontext-pro cost 55 credits, not 5." in ended.stderr
    assert "run the same command with --price flux-kontext-pro=55: nothing is paid twice." in ended.stderr
    assert sum(dear.tasks_of_each(images)) == 1
    (row,) = [row for row in dear.rows() if row["status"] == "succeeded"]
    assert (row["credits"], (dear.folder / "out" / row["file"]).is_file()) == (55, True)
    again = dear.run(*command)
    assert (again.code, sum(dear.tasks_of_each(images))) == (3, 1)
    resumed = dear.run(*command, "--price", "flux-kontext-pro=55")
    assert resumed.code == 0, resumed.stderr
    assert dear.tasks_of_each(images) == [1] * 6
    assert dear.status()["credits"] == {"spent": 330, "measured": 110, "perhaps": 0, "saved": 0}
    assert "credits spent: 330 (110 measured)" in dear.run("status", "out").stdout
