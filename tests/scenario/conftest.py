"""A vendor for batches, on the scripted transport."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest


@pytest.fixture
def vendor(transport: Any, make: Any) -> Any:
    """A vendor that makes a new task for every submit and has its picture at the second look."""
    looks: Counter[str] = Counter()
    numbers = iter(range(10_000))

    def look(request: Any) -> Any:
        task = request.query["taskId"]
        looks[task] += 1
        return make.record(int(looks[task] > 1), task)

    transport.script["generate"] = [lambda request: make.answer({"taskId": f"t{next(numbers)}"})]
    transport.script["record-info"] = [look]
    return transport
