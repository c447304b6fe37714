"""Where a credential may go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from addons.credentials import may_travel
from addons.egress import Destination
from addons.exchange import Authority
from policies import Place
from policies.model import HostPattern, Route

ROUTE = Route("r", Place("p.yaml", 1, 1), (HostPattern("a.test"),), 443, ())
ALLOWING = replace(ROUTE, allow_cleartext=True)


@pytest.mark.parametrize(
    ("route", "cleartext", "addresses", "may"),
    [
        (ROUTE, False, ("93.184.215.14",), True),
        (ROUTE, True, ("127.0.0.1",), False),
        (ALLOWING, True, ("127.0.0.1",), True),
        (ALLOWING, True, ("10.1.2.3", "fd00::1"), True),
        (ALLOWING, True, ("93.184.215.14",), False),
        # One public address is enough: any of them may be dialled.
        (ALLOWING, True, ("10.1.2.3", "93.184.215.14"), False),
        (ALLOWING, True, ("::ffff:93.184.215.14",), False),
    ],
)
def test_never_in_cleartext_to_a_public_address(
    route: Route, cleartext: bool, addresses: tuple[str, ...], may: bool
) -> None:
    destination = Destination(
        Authority("a.test", 80, cleartext=cleartext), tuple((address, 80) for address in addresses)
    )
    assert may_travel(route, destination) is may
