"""What a request may share: never a connection for a destination that was vetted under another policy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.client_certificate import Shown
from addons.egress import Destination
from addons.exchange import Authority, WorkloadIdentity
from addons.parts import Deadlines
from addons.refusal import Code, Refusal
from ostiary.engines import needs
from ostiary.engines.mitm.dialling import Bound, TlsTerms
from ostiary.engines.needs import Bounds, times_of
from policies import Grant
from policies.tls import ClientCertSpec, TlsSpec

TIMES = Deadlines()
AUTHORITY = Authority("api.test", 443)


def destination(*addresses: str) -> Destination:
    return Destination(AUTHORITY, tuple((address, 443) for address in addresses or ("192.0.2.1",)))


class Asked:
    """Stands for an exchange whose stages have run."""

    def __init__(
        self, to: Destination, *, workload: str = "billing", route: str = "api", upgrade: bool = False, **of_route: Any
    ) -> None:
        self.upgrade = upgrade
        timeouts = of_route.pop(
            "timeouts", SimpleNamespace(connect_s=None, first_byte_s=None, idle_s=None, total_s=None)
        )
        made = SimpleNamespace(
            **{
                "name": route,
                "ca_file": None,
                "http2": "auto",
                "egress": None,
                "tls": None,
                "timeouts": timeouts,
                **of_route,
            }
        )
        self._facts: dict[type[Any], Any] = {
            Destination: to,
            WorkloadIdentity: WorkloadIdentity(workload, "any"),
            Grant: SimpleNamespace(workload=workload, route=made),
        }

    def ask(self, kind: type[Any]) -> Any:
        return self._facts[kind]

    def find(self, kind: type[Any]) -> Any:
        return self._facts.get(kind)


def of(bounds: Bounds, one: Asked) -> Bound:
    return bounds.of(cast("Any", one), TIMES)


def test_one_destination_is_one_bound() -> None:
    bounds, to = Bounds(), destination()
    first = of(bounds, Asked(to))
    assert first.destination is to
    assert of(bounds, Asked(to)) is first


def test_what_may_not_share_does_not() -> None:
    bounds, to = Bounds(), destination()
    keys = [
        of(bounds, one).pool_key
        for one in (
            Asked(to),
            Asked(to, workload="reports"),
            Asked(to, upgrade=True),
            Asked(to, route="strict", ca_file=Path("roots.pem")),
            Asked(to, route="newer", http2="prefer"),
            Asked(destination("192.0.2.2")),
        )
    ]
    assert len(set(keys)) == len(keys)


def test_a_reload_vets_anew_even_where_nothing_changed() -> None:
    """A destination of the policy before is never used for a request of the policy after it."""
    bounds = Bounds()
    before, after = destination(), destination()
    assert before == after
    old = of(bounds, Asked(before))
    new = of(bounds, Asked(after))
    assert new is not old
    assert new.destination is after
    assert of(bounds, Asked(before)).destination is before  # one that began before the reload


def test_a_reload_that_changes_the_route_alone() -> None:
    """Roots and http2 come from the route of the policy after it: its destination is another object."""
    bounds = Bounds()
    assert of(bounds, Asked(destination())).pool_key.ca_file is None
    new = of(bounds, Asked(destination(), ca_file=Path("roots.pem"), http2="never"))
    assert (new.pool_key.ca_file, new.pool_key.http2) == (Path("roots.pem"), "never")


def test_a_certificate_is_the_request_s_own() -> None:
    """Of one route and one destination each request has the connection of the certificate that it has opened."""
    bounds, to = Bounds(), destination()
    spec = TlsSpec(ClientCertSpec("cert", "key"), frozenset({b"pin"}), "roots")

    def asked(shown: str | None) -> Bound:
        one = Asked(to, tls=spec)
        if shown is not None:
            one._facts[Shown] = SimpleNamespace(identity=shown, certificate=shown)
        return of(bounds, one)

    first, second, again = asked("a@1"), asked("a@2"), asked("a@1")
    assert first.pool_key == again.pool_key != second.pool_key
    assert first.pool_key.tls == TlsTerms("a@1", frozenset({b"pin"}), "roots")
    assert [str(one.certificate) for one in (first, second)] == ["a@1", "a@2"]
    with pytest.raises(Refusal) as error:
        asked(None)
    assert error.value.code is Code.INTERNAL


def test_an_identity_that_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`id` of a destination that was freed may be that of the next one."""
    monkeypatch.setattr(needs, "id", lambda _one: 7, raising=False)
    bounds = Bounds()
    old = of(bounds, Asked(destination("192.0.2.1")))
    to = destination("192.0.2.2")
    new = of(bounds, Asked(to))
    assert new is not old
    assert new.destination is to
    assert new.pool_key.addresses == (("192.0.2.2", 443),)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "MAX_BOUNDS", 8)
    bounds = Bounds()
    for _ in range(50):
        to = destination()
        assert of(bounds, Asked(to)).destination is to
        assert len(bounds._known) <= 8


def test_deadlines_of_the_route_come_first() -> None:
    given = SimpleNamespace(connect_s=1.0, first_byte_s=None, idle_s=0.0, total_s=9.0)
    assert times_of(cast("Any", Asked(destination(), timeouts=given)), TIMES) == Deadlines(1.0, 300.0, 0.0, 9.0)
    assert times_of(cast("Any", Asked(destination())), TIMES) is TIMES
