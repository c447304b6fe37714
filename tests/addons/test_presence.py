"""Connections of one workload."""

from __future__ import annotations

import pytest

from addons.exchange import Connection, Listener
from addons.identity.presence import Presence
from addons.refusal import Code, Refusal


def connection(name: str) -> Connection:
    return Connection(name, Listener("sidecar", None), "127.0.0.1")


def test_no_more_than_so_many() -> None:
    presence = Presence(2)
    one, two, three = connection("1"), connection("2"), connection("3")
    presence.enter(one, "billing")
    presence.enter(one, "billing")  # another request on it
    presence.enter(two, "billing")
    with pytest.raises(Refusal) as refused:
        presence.enter(three, "billing")
    assert refused.value.code is Code.OVERLOADED
    presence.enter(three, "reports")
    presence.leave(one)
    presence.leave(one)
    # It proves another workload with its next request, and counts for that one.
    presence.enter(three, "billing")
    with pytest.raises(Refusal):
        presence.enter(one, "billing")
    presence.enter(one, "reports")


def test_any_number() -> None:
    presence = Presence(0)
    for index in range(100):
        presence.enter(connection(str(index)), "billing")
