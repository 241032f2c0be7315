"""Both parsers of the vendor's JSON, for tests that must not depend on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flux_async.api.envelope import fast_parser


@pytest.fixture(params=["json", "orjson"], scope="module")
def parser(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have a test read with orjson, and as where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "json":
            patch.setattr("flux_async.api.envelope.fast_parser", lambda: None)
        else:
            assert fast_parser() is not None
        yield request.param
