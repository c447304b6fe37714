"""What of the faults is for `make test-slow`."""

from __future__ import annotations

import pytest

from tests.harness.ostiary_process import ENGINES


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cancellations go through our stages, which both engines share: one engine tells every day, the other in its time."""
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if given.get("how") == "cancellation" and given.get("engine") not in {None, ENGINES[-1]}:
            item.add_marker(pytest.mark.slow)
